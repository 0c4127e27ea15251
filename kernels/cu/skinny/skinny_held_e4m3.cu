// The product of few rows with a small weight of e4m3, held in shared memory.
#include "skinny_held.cuh"

using namespace minisgl;

SKINNY_HELD(1, 2, E4m3, _e4m3)
SKINNY_HELD(1, 4, E4m3, _e4m3)
SKINNY_HELD(2, 2, E4m3, _e4m3)
SKINNY_HELD(2, 4, E4m3, _e4m3)
SKINNY_HELD(3, 2, E4m3, _e4m3)
SKINNY_HELD(4, 2, E4m3, _e4m3)
