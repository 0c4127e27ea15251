// The product of few rows straight from global memory, with a weight of e4m3.
#include "skinny_direct.cuh"

using namespace minisgl;

SKINNY_DIRECT(1, E4m3, _e4m3)
SKINNY_DIRECT(2, E4m3, _e4m3)
SKINNY_DIRECT(4, E4m3, _e4m3)
SKINNY_DIRECT(8, E4m3, _e4m3)
