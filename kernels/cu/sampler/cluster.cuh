// The blocks that share one row of logits: a thread block cluster on sm_90 and later, one block before.
#pragma once

#include "../common.cuh"

#include <cooperative_groups.h>

namespace minisgl {

constexpr uint32_t THREADS = 512, WARPS = THREADS / 32;

struct Cluster {
#if __CUDA_ARCH__ >= 900
  __device__ static uint32_t rank() { return cooperative_groups::this_cluster().block_rank(); }
  __device__ static uint32_t size() { return cooperative_groups::this_cluster().num_blocks(); }
  __device__ static void sync() { cooperative_groups::this_cluster().sync(); }
  template <class T>
  __device__ static T& of(T& shared, uint32_t rank) {
    return *cooperative_groups::this_cluster().map_shared_rank(&shared, rank);
  }
#else
  __device__ static uint32_t rank() { return 0; }
  __device__ static uint32_t size() { return 1; }
  __device__ static void sync() { __syncthreads(); }
  template <class T>
  __device__ static T& of(T& shared, uint32_t) { return shared; }
#endif
};

// Shared memory of a reduction. The two `of_block` take turns, so that one barrier a reduction is enough.
struct Reduction {
  uint64_t of_warp[WARPS];
  uint64_t of_block[2];
};

struct Max {
  __device__ static uint64_t of(uint64_t a, uint64_t b) { return max(a, b); }
};
struct Add {
  __device__ static uint64_t of(uint64_t a, uint64_t b) { return a + b; }
};

// Blocks of a cluster at most; loops over them are unrolled, so that remote reads overlap.
constexpr uint32_t CLUSTER_MAX = 8;

template <class Op>
__device__ __forceinline__ uint64_t reduce_warp(uint64_t x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = Op::of(x, __shfl_xor_sync(~0u, x, step));
  return x;
}

// Sum over this lane and those before it.
__device__ __forceinline__ uint64_t scan_warp(uint64_t x) {
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const uint64_t other = __shfl_up_sync(~0u, x, step);
    if (threadIdx.x % 32 >= step) x += other;
  }
  return x;
}

// What a reduction over all blocks of a row gives: the whole, and what comes before this block and warp.
struct Total {
  uint64_t all, before_block, before_warp;
};

// 0 is the neutral element of both operations.
template <class Op>
__device__ __forceinline__ Total reduce(Reduction& shared, uint32_t& turn, uint64_t x) {
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  x = reduce_warp<Op>(x);
  if (lane == 0) shared.of_warp[warp] = x;
  __syncthreads();
  const uint64_t other = lane < WARPS ? shared.of_warp[lane] : 0;
  const uint64_t of_block = reduce_warp<Op>(other);
  const uint64_t before_warp = reduce_warp<Op>(lane < warp ? other : 0);
  if (threadIdx.x == 0) shared.of_block[turn] = of_block;
  Cluster::sync();
  Total total = {0, 0, 0};
#pragma unroll
  for (uint32_t rank = 0; rank < CLUSTER_MAX; rank++) {
    if (rank >= Cluster::size()) break;
    if (rank == Cluster::rank()) total.before_block = total.all;
    total.all = Op::of(total.all, Cluster::of(shared.of_block[turn], rank));
  }
  total.before_warp = Op::of(total.before_block, before_warp);
  turn ^= 1;
  return total;
}

}  // namespace minisgl
