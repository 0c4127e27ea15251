// The kernel of few.cuh for bf16 weights.

#include "few.cuh"

using namespace minisgl;

KERNEL __launch_bounds__(CONSUMERS + 32, 1) minisgl_experts_few(const __grid_constant__ minisgl_experts_few_args a) {
  few<SlabsBf16>(a);
}
