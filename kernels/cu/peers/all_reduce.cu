// What each rank's row-parallel product adds to the residual stream, summed over ranks, with the norm that follows.
//
//   residual[r, :] = (residual[r, :] +) delta of rank 0 [r, :] + delta of rank 1 [r, :] + ...
//   normed[r, :] = rms_norm(residual[r, :]) * norm_weight            if asked for
//
// Shapes: bf16 [rows, hidden]; f32 inside, in the order of ranks, so that all ranks have the same bits.
// One shot: every rank reads all of every peer's rows, (ranks - 1) * 2 * rows * hidden bytes over the link. Twice:
// every rank sums its share of the rows, leaves the result where its own part was, and after a second
// meeting all read it: 2 * (ranks - 1) / ranks of the same, so that it pays from three ranks on, for large
// messages.
// Bound: a round trip over the link for few rows, its bandwidth for many.
//
// A rank writes the deltas of its next collective into another buffer, and so meets all others once more
// before it writes to this one again: by then all have read it.

#include "row.cuh"

using namespace minisgl;

namespace {

// The sum of a row over ranks, in their order.
template <int VECTORS>
__device__ __forceinline__ Row<VECTORS> sum_of(const minisgl_all_reduce_args& a, size_t first) {
  constexpr uint32_t AT_ONCE = 4;  // Ranks whose parts are asked for before the first is needed.
  float all[VECTORS][VEC] = {};
  Row<VECTORS> sum;
  if (a.add) sum.load(a.residual + first, a.hidden);
#pragma unroll
  for (uint32_t begin = 0; begin < MINISGL_RANKS_MAX; begin += AT_ONCE) {
    if (begin >= a.peers.ranks) break;
    Row<VECTORS> part[AT_ONCE];
#pragma unroll
    for (uint32_t i = 0; i < AT_ONCE; i++) {
      if (begin + i < a.peers.ranks) part[i].load_shared(a.delta[begin + i] + first, a.hidden);
    }
    Row<VECTORS>::each(a.hidden, [&](int v, uint32_t) {
      float one[VEC];
      if (begin == 0 && a.add) unpack(sum.of[v], all[v]);
#pragma unroll
      for (uint32_t i = 0; i < AT_ONCE; i++) {
        if (begin + i >= a.peers.ranks) break;
        unpack(part[i].of[v], one);
#pragma unroll
        for (uint32_t j = 0; j < VEC; j++) all[v][j] += one[j];
      }
    });
  }
  Row<VECTORS>::each(a.hidden, [&](int v, uint32_t) { sum.of[v] = pack(all[v]); });
  return sum;
}

template <int VECTORS, bool TWICE>
__device__ __forceinline__ void all_reduce(const minisgl_all_reduce_args& a) {
  __shared__ float shared[2][32];
  Norm<VECTORS> norm(a, shared);
  let_next_start();
  wait_for_inputs();
  Meeting meeting(a.peers);
  meeting.meet();
  const uint32_t ranks = a.peers.ranks, rank = a.peers.rank;
  // In turn, the rows of a block belong to one rank after the other.
  for (uint32_t row = blockIdx.x, turn = 0; row < a.rows; row += gridDim.x, turn++) {
    if (TWICE && turn % ranks != rank) continue;
    const size_t first = size_t(row) * a.hidden;
    const Row<VECTORS> sum = sum_of<VECTORS>(a, first);
    sum.store(a.residual + first, a.hidden);
    if (TWICE) sum.store(a.delta[rank] + first, a.hidden);
    norm(sum, first);
  }
  if (TWICE) {
    meeting.meet();
    for (uint32_t row = blockIdx.x, turn = 0; row < a.rows; row += gridDim.x, turn++) {
      if (turn % ranks == rank) continue;
      const size_t first = size_t(row) * a.hidden;
      Row<VECTORS> sum;
      sum.load_shared(a.delta[turn % ranks] + first, a.hidden);
      sum.store(a.residual + first, a.hidden);
      norm(sum, first);
    }
  }
  meeting.leave();
}

}  // namespace

KERNEL __launch_bounds__(1024) minisgl_all_reduce_1(const __grid_constant__ minisgl_all_reduce_args a) {
  all_reduce<1, false>(a);
}
KERNEL __launch_bounds__(1024) minisgl_all_reduce_2(const __grid_constant__ minisgl_all_reduce_args a) {
  all_reduce<2, false>(a);
}
KERNEL __launch_bounds__(1024) minisgl_all_reduce_twice_1(const __grid_constant__ minisgl_all_reduce_args a) {
  all_reduce<1, true>(a);
}
KERNEL __launch_bounds__(1024) minisgl_all_reduce_twice_2(const __grid_constant__ minisgl_all_reduce_args a) {
  all_reduce<2, true>(a);
}
