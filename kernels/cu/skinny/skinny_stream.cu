// The product of few rows with a streamed weight of bf16.
#include "skinny_stream.cuh"

using namespace minisgl;

SKINNY_STREAM(1, 1, Bf16, )
SKINNY_STREAM(2, 1, Bf16, )
SKINNY_STREAM(2, 2, Bf16, )
