// The blocks that share one row of logits: a thread block cluster on sm_90 and later, one block before.
#pragma once

#include "arithmetic.cuh"

#include <cooperative_groups.h>

namespace minisgl {

// Of a block and of a cluster; launchers choose.
constexpr uint32_t THREADS_MIN = 256, THREADS_MAX = 512, WARPS_MAX = THREADS_MAX / 32, CLUSTER_MAX = 16;

__device__ __forceinline__ uint32_t threads() { return blockDim.x; }
__device__ __forceinline__ uint32_t warps() { return blockDim.x / 32; }

struct Cluster {
#if __CUDA_ARCH__ >= 900
  __device__ static uint32_t rank() { return cooperative_groups::this_cluster().block_rank(); }
  __device__ static uint32_t size() { return cooperative_groups::this_cluster().num_blocks(); }
  __device__ static void sync() {
    if (size() > 1) {
      cooperative_groups::this_cluster().sync();
    } else {
      __syncthreads();
    }
  }
  // A block's memory may be touched by others only once it runs; this pair says that all do. A block alone may
  // have been launched without a cluster, and then has no such barrier.
  __device__ static void announce() {
    if (size() > 1) asm volatile("barrier.cluster.arrive.relaxed.aligned;");
  }
  __device__ static void await_all() {
    if (size() > 1) asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
  }
  template <class T>
  __device__ static T& of(T& shared, uint32_t rank) {
    return *cooperative_groups::this_cluster().map_shared_rank(&shared, rank);
  }
#else
  __device__ static uint32_t rank() { return 0; }
  __device__ static uint32_t size() { return 1; }
  __device__ static void sync() { __syncthreads(); }
  __device__ static void announce() {}
  __device__ static void await_all() {}
  template <class T>
  __device__ static T& of(T& shared, uint32_t) { return shared; }
#endif
};

// Sum over a warp of numbers that add up to less than 2^59; every lane gets it.
__device__ __forceinline__ uint64_t sum_warp(uint64_t x) {
  const uint32_t low = __reduce_add_sync(~0u, static_cast<uint32_t>(x) & 0x7ffffffu);
  const uint32_t high = __reduce_add_sync(~0u, static_cast<uint32_t>(x >> 27));
  return (uint64_t(high) << 27) + low;
}

__device__ __forceinline__ uint64_t max_warp(uint64_t x) {
  const uint32_t high = x >> 32, highest = __reduce_max_sync(~0u, high);
  return uint64_t(highest) << 32 | __reduce_max_sync(~0u, high == highest ? static_cast<uint32_t>(x) : 0);
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

#if __CUDA_ARCH__ >= 900
// A barrier in shared memory that counts bytes as they arrive, from the copy engine or from other blocks.
struct Arrivals {
  uint64_t barrier;

  __device__ __forceinline__ void init() {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address(&barrier)) : "memory");
  }
  // By one thread, once for each time that bytes arrive.
  __device__ __forceinline__ void expect(uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address(&barrier)), "r"(bytes)
                 : "memory");
  }
  // For the first time with parity 0, then 1, and so on.
  __device__ __forceinline__ void wait(uint32_t parity) {
    uint32_t done = 0;
    while (!done) {
      asm volatile(
          "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
          : "=r"(done) : "r"(address(&barrier)), "r"(parity) : "memory");
    }
  }
  // From global to this block's shared memory; `bytes` is a multiple of 16.
  __device__ __forceinline__ void copy(float* to, const float* from, uint32_t bytes) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
        "r"(address(to)), "l"(from), "r"(bytes), "r"(address(&barrier)) : "memory");
  }
  // To another block's shared memory and barrier, where this block's are given.
  __device__ __forceinline__ void send(uint64_t& to, uint64_t value, uint32_t rank) {
    asm volatile(
        "{\n.reg .b32 a, b;\nmapa.shared::cluster.u32 a, %0, %3;\nmapa.shared::cluster.u32 b, %2, %3;\n"
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u64 [a], %1, [b];\n}" ::
        "r"(address(&to)), "l"(value), "r"(address(&barrier)), "r"(rank) : "memory");
  }
  // By the thread that called init(), before others may use the barrier.
  __device__ static void publish() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }

 private:
  __device__ static uint32_t address(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
  }
};
#endif

// One value of every warp of the row, known to all of them: each warp writes its own to every block. The two
// arrays take turns, so that no one waits for readers: who writes to one again has seen that all
// wrote to the other, and so had read this one.
struct Exchange {
  uint64_t of_warp[2][CLUSTER_MAX * WARPS_MAX];
#if __CUDA_ARCH__ >= 900
  Arrivals arrivals[2];
#endif

  __device__ static uint32_t len() { return Cluster::size() * warps(); }
  __device__ static uint32_t own() { return Cluster::rank() * warps() + threadIdx.x / 32; }

  // Takes the same value from all lanes of a warp; gives an array of len(). `round` counts the calls.
  __device__ __forceinline__ const uint64_t* share(uint32_t& round, uint64_t value) {
    const uint32_t turn = round % 2, lane = threadIdx.x % 32;
    uint64_t* all = of_warp[turn];
    round++;
#if __CUDA_ARCH__ >= 900
    if (Cluster::size() > 1) {
      if (threadIdx.x == 0) arrivals[turn].expect(len() * sizeof(uint64_t));
      if (lane < Cluster::size()) arrivals[turn].send(all[own()], value, lane);
      arrivals[turn].wait((round - 1) / 2 % 2);
      return all;
    }
#endif
    if (lane == 0) all[own()] = value;
    __syncthreads();
    return all;
  }

  __device__ __forceinline__ static uint64_t max_of(const uint64_t* all) {
    uint64_t highest = 0;
    for (uint32_t i = threadIdx.x % 32; i < len(); i += 32) highest = max(highest, all[i]);
    return max_warp(highest);
  }

  // The sum over all warps, and over those before this one.
  __device__ __forceinline__ static uint64_t sum_of(const uint64_t* all, uint64_t& before) {
    const uint32_t mine = own();
    uint64_t sum = 0, earlier = 0;
    for (uint32_t i = threadIdx.x % 32; i < len(); i += 32) {
      sum += all[i];
      if (i < mine) earlier += all[i];
    }
    before = sum_warp(earlier);
    return sum_warp(sum);
  }
};

}  // namespace minisgl
