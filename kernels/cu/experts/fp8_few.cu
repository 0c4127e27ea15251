// The kernel of few.cuh for weights of e4m3, which are widened to bf16 in registers: x stays what it is.
//
// Bytes moved: 3 * hidden * width for each expert that has a row, and little else. Bound: read bandwidth.
// Measured (H200, 2026-11-30, docs/benchmarks.md), Qwen3-30B-A3B, with the router: 29.9 us at 1 row, 95.5 at 8 (2.7 TB/s).

#include "few.cuh"
#include "fp8.cuh"

using namespace minisgl;

KERNEL __launch_bounds__(CONSUMERS + 32, 1) minisgl_fp8_few(const __grid_constant__ minisgl_experts_few_args a) {
  few<SlabsE4m3>(a);
}
