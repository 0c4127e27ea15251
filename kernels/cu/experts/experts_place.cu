// Choice and plan for any number of rows, from logits that a matrix product has left: two launches, no host between.
//
// minisgl_choose: what router.cu says of logits, `choose_rows` a block, and how many rows of a block go to each expert.
// minisgl_place: the places of a block's pairs, of 64 rows. Every block adds up the counts of all for itself.
//
// Measured (H200, 2026-11-30, docs/benchmarks.md), in steps of 128 rows: 3.8 and 6.7 us with 128 experts, 3.0 and 3.5 with 32.
// Bytes moved: 4 * rows * experts read, 16 * rows * top written, and 4 * experts * rows / 64 * rows / choose_rows of counts
// from the cache.

#include "route.cuh"

using namespace minisgl;

KERNEL __launch_bounds__(ROUTE_THREADS) minisgl_choose(const __grid_constant__ minisgl_router_args a) {
  __shared__ Chosen chosen;
  wait_for_inputs();
  let_next_start();
  const uint32_t first = blockIdx.x * a.choose_rows;
  choose(a, first, min(a.choose_rows, a.rows - first), chosen);
  for (uint32_t e = threadIdx.x; e < a.experts; e += blockDim.x) {
    a.counts[size_t(blockIdx.x) * a.experts + e] = rows_of(chosen, e);
  }
}

KERNEL __launch_bounds__(ROUTE_THREADS) minisgl_place(const __grid_constant__ minisgl_router_args a) {
  __shared__ Chosen chosen;
  __shared__ uint32_t total[MINISGL_EXPERTS_MAX], earlier[MINISGL_EXPERTS_MAX];
  wait_for_inputs();
  let_next_start();
  const uint32_t first = blockIdx.x * MINISGL_ROUTE_ROWS, rows = min(uint32_t(MINISGL_ROUTE_ROWS), a.rows - first);
  for (uint32_t e = threadIdx.x; e < a.experts; e += ROUTE_THREADS) total[e] = earlier[e] = 0;
  recall(a, first, rows, chosen);
  // Several threads an expert, each with its share of the blocks.
  const uint32_t shares = max(1u, ROUTE_THREADS / a.experts), share = threadIdx.x / a.experts;
  const uint32_t blocks = (a.rows + a.choose_rows - 1) / a.choose_rows, mine = first / a.choose_rows;
  for (uint32_t e = threadIdx.x % a.experts; e < a.experts && share < shares; e += ROUTE_THREADS) {
    uint32_t sum = 0, before = 0;
#pragma unroll 8
    for (uint32_t block = share; block < blocks; block += shares) {
      const uint32_t count = __ldcg(a.counts + size_t(block) * a.experts + e);
      sum += count;
      if (block < mine) before += count;
    }
    atomicAdd(&total[e], sum), atomicAdd(&earlier[e], before);
  }
  __syncthreads();
  arrange(a, chosen, blockIdx.x == 0, [&](uint32_t e) { return total[e]; }, [&](uint32_t e) { return earlier[e]; });
  place(a, first, rows, chosen);
}
