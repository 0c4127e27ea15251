// The kernels of few.cuh for bf16 weights.

#include "few.cuh"

using namespace minisgl;

#define FEW(GROUPS)                                                                \
  KERNEL __launch_bounds__(CONSUMERS + 32, 1) minisgl_experts_few_##GROUPS(        \
      const __grid_constant__ minisgl_experts_few_args a) {                        \
    few<SlabsBf16, GROUPS>(a);                                                     \
  }

FEW(1)
FEW(2)
