// Greedy sampling: the exact argmax, ties to the lowest token id.
//
//   tokens[out_index[r]] = min { i : z[i] = max z }          z = clean(logits[r, :vocab])
//
// NaN counts as -inf, +inf as the largest finite float, -0 as +0: the order of the sampler, so that
// temperature 0 gives the same token from either. Many blocks share a row; each offers its best as one
// integer (logit, then token) to an atomic maximum, which no order of blocks can change, and the last
// block of the row publishes the winner and leaves the scratch as it found it.
// Shapes: logits f32 [rows, stride], out_index i32 [rows], tokens i32.
// Bytes moved: 4 * rows * vocab. Bound: read bandwidth.
// Measured (H100 80GB HBM3, 2026-11-21, `gpu --bench`), vocabulary 151936: 2.17 TB/s at 256 rows, 69 % of
// 3.14 TB/s read; 3.9 us at 1 row.

#include "../common.cuh"

using namespace minisgl;

KERNEL __launch_bounds__(256) minisgl_argmax(const __grid_constant__ minisgl_argmax_args a) {
  __shared__ uint64_t best_of_warp[8];
  wait_for_inputs();
  let_next_start();

  const uint32_t row = blockIdx.x, parts = gridDim.y;
  const uint32_t out = a.out_index[row];
  if (out >= a.tokens_len) return;  // A padding row: all of its blocks leave here.

  // This block's vectors of four logits, a stride of all blocks apart. The tail past `vocab` is ignored.
  const float4* logits = reinterpret_cast<const float4*>(a.logits + size_t(row) * a.stride);
  const uint32_t vectors = (a.vocab + 3) / 4, step = parts * blockDim.x;
  uint64_t best = 0;
  const auto offer = [&](const float4& four, uint32_t vector) {
    const float f[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
      const uint32_t token = vector * 4 + i;
      if (token < a.vocab) best = max(best, rank_of(clean(f[i]), token));
    }
  };
  uint32_t at = blockIdx.y * blockDim.x + threadIdx.x;
  for (; at + 3 * step < vectors; at += 4 * step) {
    float4 four[4];
#pragma unroll
    for (int u = 0; u < 4; u++) four[u] = __ldcs(logits + at + u * step);
#pragma unroll
    for (int u = 0; u < 4; u++) offer(four[u], at + u * step);
  }
  for (; at < vectors; at += step) offer(__ldcs(logits + at), at);

  // Best of the block.
  best = max_lanes(best);
  if (threadIdx.x % 32 == 0) best_of_warp[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int warp = 1; warp < 8; warp++) best = max(best, best_of_warp[warp]);

  // Best of the row; the last block to arrive knows it.
  atomicMax(reinterpret_cast<unsigned long long*>(a.best + row), best);
  __threadfence();
  if (atomicAdd(a.done + row, 1) + 1 < parts) return;
  __threadfence();
  best = atomicExch(reinterpret_cast<unsigned long long*>(a.best + row), 0);
  a.done[row] = 0;
  a.tokens[out] = ~static_cast<uint32_t>(best);
}
