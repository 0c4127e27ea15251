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

#include "meet.cuh"

using namespace minisgl;

namespace {

// One row, over the threads of a block.
template <int VECTORS>
struct Row {
  Vec8 of[VECTORS];

  template <class F>
  __device__ __forceinline__ static void each(uint32_t hidden, F f) {
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
      const uint32_t at = (threadIdx.x + v * blockDim.x) * VEC;
      if (at < hidden) f(v, at);
    }
  }

  __device__ __forceinline__ void load(const minisgl_bf16* row, uint32_t hidden) {
    each(hidden, [&](int v, uint32_t at) { of[v] = load8(row + at); });
  }
  // What a peer wrote: never from this multiprocessor's own cache.
  __device__ __forceinline__ void load_shared(const minisgl_bf16* row, uint32_t hidden) {
    each(hidden, [&](int v, uint32_t at) {
      const uint4 bits = __ldcg(reinterpret_cast<const uint4*>(row + at));
      of[v] = *reinterpret_cast<const Vec8*>(&bits);
    });
  }
  __device__ __forceinline__ void store(minisgl_bf16* row, uint32_t hidden) const {
    each(hidden, [&](int v, uint32_t at) { store8(row + at, of[v]); });
  }
};

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

// Norms rows one after the other; `shared` takes turns, so that no thread waits for the slowest twice.
template <int VECTORS>
struct Norm {
  const minisgl_all_reduce_args& a;
  float (&shared)[2][32];
  Row<VECTORS> weight;
  uint32_t turn;

  __device__ __forceinline__ Norm(const minisgl_all_reduce_args& a, float (&shared)[2][32])
      : a(a), shared(shared), turn(0) {
    if (a.norm_weight) weight.load(a.norm_weight, a.hidden);
  }

  __device__ __forceinline__ void operator()(const Row<VECTORS>& row, size_t first) {
    if (!a.norm_weight) return;
    float squares = 0.0f;
    Row<VECTORS>::each(a.hidden, [&](int v, uint32_t) {
      float f[VEC];
      unpack(row.of[v], f);
#pragma unroll
      for (uint32_t i = 0; i < VEC; i++) squares += f[i] * f[i];
    });
    const float scale = rsqrtf(sum_block(squares, shared[turn]) / a.hidden + a.eps);
    turn ^= 1;
    Row<VECTORS>::each(a.hidden, [&](int v, uint32_t at) {
      float f[VEC], w[VEC];
      unpack(row.of[v], f);
      unpack(weight.of[v], w);
#pragma unroll
      for (uint32_t i = 0; i < VEC; i++) f[i] = f[i] * scale * w[i];
      store8(a.normed + first + at, pack(f));
    });
  }
};

template <int VECTORS, bool TWICE>
__device__ __forceinline__ void all_reduce(const minisgl_all_reduce_args& a) {
  __shared__ float shared[2][32];
  Norm<VECTORS> norm(a, shared);
  wait_for_inputs();
  let_next_start();
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
