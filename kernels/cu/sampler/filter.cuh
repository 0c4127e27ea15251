// Keeping the first part of a ranking without sorting it: the least rank that still belongs.
//
// A histogram over the distance from the highest logit finds the bin in which the wanted sum is reached;
// the few tokens in that bin are ranked one against the other. Where they are many (equal logits), or
// the temperature is out of the ordinary, a radix descent over the 50 bits of a rank does it all.
#pragma once

#include "part.cuh"

namespace minisgl {

constexpr uint32_t DIGIT_BITS = 10, BINS = 1u << DIGIT_BITS, NO_BIN = BINS, LIST_MAX = THREADS;
static_assert(BINS == 2 * THREADS && RANK_BITS % DIGIT_BITS == 0);

struct Filter {
  uint32_t low[BINS], high[BINS];  // A histogram of 64-bit sums; 32-bit atomics are the fast ones.
  uint64_t of_warp[WARPS];
  uint64_t need, sum;              // Of the bin that was found.
  uint32_t bin;
  uint32_t list_len;               // The tokens of that bin.
  uint64_t list_rank[LIST_MAX], list_measure[LIST_MAX];
  uint64_t picked;

  __device__ __forceinline__ void add(uint32_t to, uint64_t x) {
    const uint32_t part = static_cast<uint32_t>(x);
    const uint32_t carry = atomicAdd(&low[to], part) + part < part;
    const uint32_t rest = static_cast<uint32_t>(x >> 32) + carry;
    if (rest) atomicAdd(&high[to], rest);
  }

  // Fills the histogram over all blocks with measure(w) in bin_of(i), for tokens of weight w > 0, and finds
  // the bin, from the highest down, in which the sum reaches want(sum of all). False if all are wanted.
  template <class BinOf, class Measure, class Want>
  __device__ __forceinline__ bool find(const Part& part, BinOf bin_of, Measure measure, Want want) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (uint32_t i = threadIdx.x; i < BINS; i += THREADS) low[i] = high[i] = 0;
    __syncthreads();
    part.each([&](uint32_t i) {
      const uint32_t to = bin_of(i);
      const uint64_t w = to == NO_BIN ? 0 : part.share(i);
      if (w > 0) add(to, measure(w));
    });
    Cluster::sync();

    // Each thread adds up two bins over all blocks, the highest first, and scans over threads.
    const uint32_t upper_bin = BINS - 1 - 2 * threadIdx.x;
    uint64_t upper = 0, lower = 0;
#pragma unroll
    for (uint32_t rank = 0; rank < CLUSTER_MAX; rank++) {
      if (rank >= Cluster::size()) break;
      const auto& theirs = Cluster::of(*this, rank);
      upper += theirs.low[upper_bin] | uint64_t(theirs.high[upper_bin]) << 32;
      lower += theirs.low[upper_bin - 1] | uint64_t(theirs.high[upper_bin - 1]) << 32;
    }
    uint64_t upto = scan_warp(upper + lower);
    if (lane == 31) of_warp[warp] = upto;
    Cluster::sync();  // Now no block reads a histogram any more.
    const uint64_t other = lane < WARPS ? of_warp[lane] : 0;
    upto += reduce_warp<Add>(lane < warp ? other : 0);
    const uint64_t all = reduce_warp<Add>(other), wanted = want(all);

    // The bin in which the sum is reached is one thread's.
    const uint64_t before = upto - upper - lower;
    if (before < wanted && wanted <= upto) {
      const bool in_upper = wanted <= before + upper;
      bin = in_upper ? upper_bin : upper_bin - 1;
      need = in_upper ? wanted - before : wanted - before - upper;
      sum = in_upper ? upper : lower;
    }
    __syncthreads();
    return wanted < all;
  }

  // Ranks the tokens of the bin that was found, one against the other: the last one needed. 0 if they are
  // too many for the list of the first block, where they gather.
  template <class BinOf, class Measure>
  __device__ __forceinline__ uint64_t pick(const Part& part, BinOf bin_of, Measure measure) {
    Filter& gathered = Cluster::of(*this, 0);
    part.each([&](uint32_t i) {
      if (bin_of(i) != bin) return;
      const uint64_t w = part.share(i);
      if (w == 0) return;
      const uint32_t at = atomicAdd(&gathered.list_len, 1);
      if (at >= LIST_MAX) return;
      gathered.list_rank[at] = part.rank(i);
      gathered.list_measure[at] = measure(w);
    });
    Cluster::sync();
    const uint32_t len = gathered.list_len;
    if (len <= LIST_MAX && threadIdx.x < len && Cluster::rank() > 0) {
      list_rank[threadIdx.x] = gathered.list_rank[threadIdx.x];
      list_measure[threadIdx.x] = gathered.list_measure[threadIdx.x];
    }
    Cluster::sync();
    if (len > LIST_MAX) return 0;

    if (threadIdx.x < len) {
      const uint64_t rank = list_rank[threadIdx.x];
      uint64_t before = 0;
      for (uint32_t i = 0; i < len; i++) before += list_rank[i] > rank ? list_measure[i] : 0;
      if (before < need && need <= before + list_measure[threadIdx.x]) picked = rank;
    }
    __syncthreads();
    return picked;
  }

  // Finds one digit of the least rank after the other, among the tokens that share those before.
  template <class Measure, class Want>
  __device__ __noinline__ uint64_t descend(Part part, Measure measure, Want want) {
    uint64_t prefix = 0;
    for (int shift = RANK_BITS - DIGIT_BITS; shift >= 0; shift -= DIGIT_BITS) {
      const bool top = shift == RANK_BITS - DIGIT_BITS;
      const uint64_t still = need;
      const auto digit = [&](uint32_t i) -> uint32_t {
        const uint64_t rank = part.rank(i);
        return rank >> (shift + DIGIT_BITS) == prefix ? rank >> shift & (BINS - 1) : NO_BIN;
      };
      const bool some = find(part, digit, measure, [&](uint64_t all) { return top ? want(all) : still; });
      if (!some) return top ? part.least_rank : prefix << (shift + DIGIT_BITS);
      prefix = prefix << DIGIT_BITS | bin;
    }
    return prefix;
  }

  // The least rank among the fewest first tokens whose measures add up to want(sum of all); that of the
  // filters so far if that is all of them.
  template <class Measure, class Want>
  __device__ __forceinline__ uint64_t keep(const Part& part, Measure measure, Want want) {
    if (part.temperature.ordinary) {
      const float scale = (BINS - 1) / (27.6f * part.temperature.by);
      const auto distance = [&](uint32_t i) -> uint32_t {
        return BINS - 1 - min(__float2uint_rz((part.highest - part.z[i]) * scale), BINS - 1);
      };
      if (threadIdx.x == 0) list_len = 0;
      if (!find(part, distance, measure, want)) return part.least_rank;
      if (const uint64_t least = pick(part, distance, measure)) return least;
    }
    return descend(part, measure, want);
  }
};

}  // namespace minisgl
