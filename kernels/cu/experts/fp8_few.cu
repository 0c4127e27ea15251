// The kernel of few.cuh for weights of e4m3, which are widened to bf16 in registers: x stays what it is.
//
// Bytes moved: 3 * hidden * width for each expert that has a row, and little else. Bound: read bandwidth. Measured: see
// docs/benchmarks.md.

#include "few.cuh"
#include "fp8.cuh"

using namespace minisgl;

KERNEL __launch_bounds__(CONSUMERS + 32, 1) minisgl_fp8_few(const __grid_constant__ minisgl_experts_few_args a) {
  few<SlabsE4m3>(a);
}
