// The product of few rows straight from global memory, with a weight of bf16.
#include "skinny_direct.cuh"

using namespace minisgl;

SKINNY_DIRECT(1, Bf16, )
SKINNY_DIRECT(2, Bf16, )
SKINNY_DIRECT(4, Bf16, )
SKINNY_DIRECT(8, Bf16, )
