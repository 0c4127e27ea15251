// The first part of a ranking as a short list in one block, where what top-k, top-p and min-p keep of it
// is found by holding its tokens against each other. For all rows but those with very flat logits.
#pragma once

#include "part.cuh"

namespace minisgl {

constexpr uint32_t LIST_MAX = 512;

// What a row wants of its ranking.
struct Wanted {
  uint32_t top_k;         // 0: off
  float top_p;            // 1: off
  uint64_t least_weight;  // min-p's

  // The weight that top-p keeps at least, of a sum.
  __device__ __forceinline__ uint64_t mass(uint64_t sum) const {
    const double need = ceil(__dmul_rn(top_p, __ull2double_rn(sum)));
    return max(need > 0.0 ? __double2ull_rz(need) : 0ull, 1ull);
  }
};

struct List {
  uint32_t len;                    // Of this block's own; may be more than there is room for.
  uint32_t len_of[CLUSTER_MAX];    // Of every block.
  uint32_t bound_key;
  uint32_t best_key[CLUSTER_MAX * WARPS_MAX];  // Of every warp.
  uint64_t rank[LIST_MAX];         // Of all blocks, in the first block.
  union {
    uint64_t own[LIST_MAX];        // This block's own ranks, until all are together.
    uint64_t weight[LIST_MAX];     // Of all blocks, then.
  };
  uint64_t sums[WARPS_MAX];

  // Keeps the best logit of each warp, for bound().
  __device__ __forceinline__ void note(const uint64_t* best_of_warp) {
    for (uint32_t i = threadIdx.x; i < Exchange::len(); i += threads()) {
      best_key[i] = static_cast<uint32_t>(best_of_warp[i] >> TOKEN_BITS);
    }
  }

  // A logit that at least `count` tokens reach: the best of so many warps, and more of their next. -inf if there
  // are fewer warps.
  __device__ __forceinline__ float bound(uint32_t count) {
    if (count > Exchange::len()) return -INFINITY;
    if (threadIdx.x == 0) bound_key = ~0u;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < Exchange::len(); i += threads()) {
      const uint32_t key = best_key[i];
      uint32_t before = 0;
#pragma unroll 8
      for (uint32_t j = 0; j < Exchange::len(); j++) before += best_key[j] > key;
      if (before < count) atomicMin(&bound_key, key);
    }
    __syncthreads();
    return logit_of(uint64_t(bound_key) << TOKEN_BITS);
  }

  // Collects the ranks of all tokens whose logits are not below `least` in the first block, of each of the team's
  // GPUs. Gives how many there are to all blocks; nothing is collected if that is more than LIST_MAX.
  template <class Team>
  __device__ __forceinline__ uint32_t collect(const Part& part, float least, Team& team) {
    if (!(least > -INFINITY)) {
      Cluster::sync();  // As at the end: what led here has been read by all.
      return LIST_MAX + 1;
    }
    if (threadIdx.x == 0) len = 0;
    __syncthreads();
    part.each_four([&](uint32_t i, const float4& four) {
      if (!(fmaxf(fmaxf(four.x, four.y), fmaxf(four.z, four.w)) >= least)) return;
      const float logits[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (uint32_t j = 0; j < 4; j++) {
        if (!(logits[j] >= least)) continue;
        const uint32_t at = atomicAdd(&len, 1);
        if (at < LIST_MAX) own[at] = rank_of_token(clean(logits[j]), part.first + i + j);
      }
    });
    __syncthreads();
    if (threadIdx.x < Cluster::size()) Cluster::of(len_of[Cluster::rank()], threadIdx.x) = len;
    Cluster::sync();
    uint32_t all = 0, before = 0;
    for (uint32_t block = 0; block < Cluster::size(); block++) {
      before = block == Cluster::rank() ? all : before;
      all += len_of[block];
    }
    uint64_t unused = 0;
    const uint64_t everywhere = team.sum(all, unused);
    if (everywhere > LIST_MAX) {
      __syncthreads();  // Who uses this memory next need not wait.
      return LIST_MAX + 1;
    }
    for (uint32_t i = threadIdx.x; i < len; i += threads()) Cluster::of(rank[before + i], 0) = own[i];
    Cluster::sync();
    if (Cluster::rank() == 0) team.join(*this, all);
    return everywhere;
  }

  // The weight of this thread's share of what its block collected. Before the list is worked on.
  __device__ __forceinline__ uint64_t weight_of_own(const Part& part) const {
    uint64_t sum = 0;
    for (uint32_t i = threadIdx.x; i < min(len, LIST_MAX); i += threads()) sum += part.weigh(logit_of(own[i]));
    return sum;
  }

  // By the first block: calls f(i, place) for every token of the list, with its place in the ranking.
  template <class F>
  __device__ __forceinline__ void each_placed(uint32_t all, F f) const {
    for (uint32_t i = threadIdx.x; i < all; i += threads()) {
      const uint64_t mine = rank[i];
      uint32_t place = 0;
#pragma unroll 8
      for (uint32_t j = 0; j < all; j++) place += rank[j] > mine;
      f(i, place);
    }
  }

  __device__ __forceinline__ uint64_t sum_block(uint64_t x) {
    x = sum_warp(x);
    __syncthreads();  // The sum before this one has been read.
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
    __syncthreads();
    return sum_warp(threadIdx.x % 32 < warps() ? sums[threadIdx.x % 32] : 0);
  }

  // By the first block: keeps what is wanted and draws with `random` from it; `total` is the sum of all of the
  // row's weights, needed for top-p without top-k. Calls publish(token) in one thread.
  template <class Publish>
  __device__ __forceinline__ void draw(const Part& part, uint32_t all, const Wanted& wanted, uint64_t total,
                                       uint64_t random, Publish publish) {
    for (uint32_t i = threadIdx.x; i < all; i += threads()) weight[i] = part.weigh(logit_of(rank[i]));
    __syncthreads();
    // The place of each token in the ranking, and the weight before it.
    constexpr uint32_t OWN_MAX = LIST_MAX / THREADS_MIN;
    uint64_t before[OWN_MAX], mine[OWN_MAX];
    uint64_t sum = 0;
#pragma unroll
    for (uint32_t turn = 0; turn < OWN_MAX; turn++) {
      const uint32_t i = threadIdx.x + turn * threads();
      before[turn] = mine[turn] = 0;
      if (i >= all) continue;
      const uint64_t own_rank = rank[i];
      uint64_t sum_before = 0;
      uint32_t place = 0;
#pragma unroll 8
      for (uint32_t j = 0; j < all; j++) {
        const bool higher = rank[j] > own_rank;
        place += higher;
        sum_before += higher ? weight[j] : 0;
      }
      before[turn] = sum_before;
      mine[turn] = wanted.top_k == 0 || place < wanted.top_k ? weight[i] : 0;
      sum += mine[turn];
    }
    sum = sum_block(sum);
    if (wanted.top_k == 0) sum = total;
    const uint64_t need = wanted.top_p < 1.0f ? wanted.mass(sum) : ~0ull;
    sum = 0;
#pragma unroll
    for (uint32_t turn = 0; turn < OWN_MAX; turn++) {
      const uint32_t i = threadIdx.x + turn * threads();
      if (before[turn] >= need || mine[turn] < wanted.least_weight) mine[turn] = 0;
      if (i < all) weight[i] = mine[turn];
      sum += mine[turn];
    }
    const uint64_t target = __umul64hi(random, sum_block(sum));

    // In the order of ids: the token whose share holds the target.
#pragma unroll
    for (uint32_t turn = 0; turn < OWN_MAX; turn++) {
      const uint32_t i = threadIdx.x + turn * threads();
      if (mine[turn] == 0) continue;
      const uint32_t token = token_of(rank[i]);
      uint64_t lower = 0;
#pragma unroll 8
      for (uint32_t j = 0; j < all; j++) lower += token_of(rank[j]) < token ? weight[j] : 0;
      if (lower <= target && target - lower < mine[turn]) publish(token);
    }
  }
};

}  // namespace minisgl
