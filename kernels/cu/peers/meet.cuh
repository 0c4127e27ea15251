// Ranks meet: what each wrote before is there for all of them after.
#pragma once

#include "../common.cuh"
#include "../peers.h"

namespace minisgl {

__device__ __forceinline__ uint64_t nanoseconds() {
  uint64_t now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  return now;
}

// A block's place among its peers. Turns are counted for each block, since launches differ in their number
// of blocks; all ranks launch the same, so that all count the same.
struct Meeting {
  const minisgl_peers& peers;
  uint32_t turn;

  // After wait_for_inputs(): the launch before this one counted, too.
  __device__ __forceinline__ explicit Meeting(const minisgl_peers& peers)
      : Meeting(peers, peers.ranks > 1 ? peers.turns[blockIdx.x] : 0) {}
  __device__ __forceinline__ Meeting(const minisgl_peers& peers, uint32_t turn) : peers(peers), turn(turn) {}

  // By all threads. Tells every peer that this block is here, and waits until they all are.
  __device__ __forceinline__ void meet() {
    if (peers.ranks == 1) return;
    turn++;
    __syncthreads();
    const uint32_t peer = threadIdx.x;
    if (peer < peers.ranks && peer != peers.rank) {
      uint32_t* there = peers.arrivals[peer] + blockIdx.x * MINISGL_RANKS_MAX + peers.rank;
      const uint32_t* here = peers.arrivals[peers.rank] + blockIdx.x * MINISGL_RANKS_MAX + peer;
      asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(there), "r"(turn) : "memory");
      wait_for(here, peer);
    }
    __syncthreads();
  }

  // By all threads, when the launch has met for the last time.
  __device__ __forceinline__ void leave() const {
    if (peers.ranks > 1 && threadIdx.x == 0) peers.turns[blockIdx.x] = turn;
  }

  __device__ __forceinline__ void wait_for(const uint32_t* here, uint32_t peer) const {
    const uint64_t begin = nanoseconds();
    for (uint32_t tries = 1;; tries++) {
      uint32_t come;
      asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(come) : "l"(here) : "memory");
      // A peer may be a turn ahead.
      if (static_cast<int32_t>(come - turn) >= 0) return;
      if (tries % 1024 == 0 && nanoseconds() - begin > peers.patience_ns) give_up(peer);
    }
  }

  // Nothing that comes after may run: the sums would be wrong. The host reads why.
  __device__ __noinline__ void give_up(uint32_t peer) const {
    if (atomicCAS_system(&peers.fault->failed, 0u, 2u) == 0) {
      peers.fault->missing = peer;
      peers.fault->block = blockIdx.x;
      peers.fault->turn = turn;
      __threadfence_system();
      atomicExch_system(&peers.fault->failed, 1u);
      __threadfence_system();
    }
    // The end of one thread is the end of all: whoever is not the one that writes lets it.
    for (uint32_t tries = 0; atomicAdd_system(&peers.fault->failed, 0u) != 1 && tries < 10'000; tries++) {
    }
    __trap();
  }
};

}  // namespace minisgl
