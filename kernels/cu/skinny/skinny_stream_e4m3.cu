// The product of few rows with a streamed weight of e4m3.
#include "skinny_stream.cuh"

using namespace minisgl;

SKINNY_STREAM(1, 1, E4m3, _e4m3)
SKINNY_STREAM(1, 2, E4m3, _e4m3)
SKINNY_STREAM(2, 1, E4m3, _e4m3)
SKINNY_STREAM(2, 2, E4m3, _e4m3)
