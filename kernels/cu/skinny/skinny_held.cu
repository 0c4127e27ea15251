// The product of few rows with a small weight of bf16, held in shared memory.
#include "skinny_held.cuh"

using namespace minisgl;

SKINNY_HELD(1, 4, Bf16, )
SKINNY_HELD(1, 8, Bf16, )
SKINNY_HELD(1, 12, Bf16, )
SKINNY_HELD(2, 4, Bf16, )
SKINNY_HELD(2, 8, Bf16, )
SKINNY_HELD(3, 4, Bf16, )
SKINNY_HELD(4, 4, Bf16, )
