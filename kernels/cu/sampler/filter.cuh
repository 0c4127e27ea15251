// Keeping the first part of a ranking that is too long for a list: the least rank that still belongs.
//
// A histogram over the distance from the highest logit finds the bin in which the wanted sum is reached;
// the few tokens in that bin are ranked one against the other. Where they are many (equal logits), or
// the temperature is out of the ordinary, a radix descent over the bits of a rank does it all.
#pragma once

#include "list.cuh"

namespace minisgl {

constexpr uint32_t DIGIT_BITS = 10, BINS = 1u << DIGIT_BITS, NO_BIN = BINS, PICK_MAX = 256;
constexpr uint32_t DESCENT_BITS = (RANK_BITS + DIGIT_BITS - 1) / DIGIT_BITS * DIGIT_BITS;
static_assert(BINS % THREADS_MAX == 0 && DESCENT_BITS < 64);

struct Filter {
  uint32_t low[BINS], high[BINS];  // A histogram of 64-bit sums; 32-bit atomics are the fast ones.
  uint64_t need;                   // Of the bin that was found.
  uint32_t bin;
  uint32_t list_len;               // The tokens of that bin.
  uint64_t list_rank[PICK_MAX], list_measure[PICK_MAX];
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
  __device__ __forceinline__ bool find(const Part& part, Exchange& exchange, uint32_t& round, BinOf bin_of,
                                       Measure measure, Want want) {
    for (uint32_t i = threadIdx.x; i < BINS; i += threads()) low[i] = high[i] = 0;
    __syncthreads();
    part.each_in_any_order([&](uint32_t i) {
      const uint32_t to = bin_of(i);
      const uint64_t w = to == NO_BIN ? 0 : part.share(i);
      if (w > 0) add(to, measure(w));
    });
    Cluster::sync();

    // Each block adds up a part of the bins over all blocks, the first block the highest, each thread some
    // neighbours.
    const uint32_t of_block = BINS / Cluster::size(), of_thread = max(of_block / threads(), 1);
    const uint32_t from = BINS - 1 - Cluster::rank() * of_block - threadIdx.x * of_thread;
    constexpr uint32_t OF_THREAD_MAX = BINS / THREADS_MIN;
    uint64_t bins[OF_THREAD_MAX], own = 0;
#pragma unroll
    for (uint32_t i = 0; i < OF_THREAD_MAX; i++) {
      bins[i] = 0;
      if (i >= of_thread || threadIdx.x * of_thread >= of_block) continue;
#pragma unroll 8
      for (uint32_t rank = 0; rank < Cluster::size(); rank++) {
        const Filter& theirs = Cluster::of(*this, rank);
        bins[i] += theirs.low[from - i] | uint64_t(theirs.high[from - i]) << 32;
      }
      own += bins[i];
    }
    uint64_t before;
    const uint64_t all = Exchange::sum_of(exchange.share(round, sum_warp(own)), before), wanted = want(all);
    before += scan_warp(own) - own;

    // The bin in which the sum is reached is one thread's, which tells all blocks.
#pragma unroll
    for (uint32_t i = 0; i < OF_THREAD_MAX; i++) {
      if (before < wanted && wanted <= before + bins[i]) {
        for (uint32_t rank = 0; rank < Cluster::size(); rank++) {
          Cluster::of(bin, rank) = from - i;
          Cluster::of(need, rank) = wanted - before;
        }
      }
      before += bins[i];
    }
    Cluster::sync();
    return wanted < all;
  }

  // Ranks the tokens of the bin that was found, one against the other: the last one needed. 0 if they are
  // too many for the list of the first block, where they gather.
  template <class BinOf, class Measure>
  __device__ __forceinline__ uint64_t pick(const Part& part, BinOf bin_of, Measure measure) {
    Filter& gathered = Cluster::of(*this, 0);
    part.each_in_any_order([&](uint32_t i) {
      if (bin_of(i) != bin) return;
      const uint64_t w = part.share(i);
      if (w == 0) return;
      const uint32_t at = atomicAdd(&gathered.list_len, 1);
      if (at >= PICK_MAX) return;
      gathered.list_rank[at] = part.rank(i);
      gathered.list_measure[at] = measure(w);
    });
    Cluster::sync();
    const uint32_t len = gathered.list_len;
    if (len <= PICK_MAX && Cluster::rank() > 0) {
      for (uint32_t i = threadIdx.x; i < len; i += threads()) {
        list_rank[i] = gathered.list_rank[i];
        list_measure[i] = gathered.list_measure[i];
      }
    }
    Cluster::sync();
    if (len > PICK_MAX) return 0;

    for (uint32_t i = threadIdx.x; i < len; i += threads()) {
      const uint64_t rank = list_rank[i];
      uint64_t before = 0;
      for (uint32_t j = 0; j < len; j++) before += list_rank[j] > rank ? list_measure[j] : 0;
      if (before < need && need <= before + list_measure[i]) picked = rank;
    }
    __syncthreads();
    return picked;
  }

  // Finds one digit of the least rank after the other, among the tokens that share those before.
  template <class Measure, class Want>
  __device__ __forceinline__ uint64_t descend(const Part& part, Exchange& exchange, uint32_t& round, Measure measure,
                                           Want want) {
    uint64_t prefix = 0;
    for (int shift = DESCENT_BITS - DIGIT_BITS; shift >= 0; shift -= DIGIT_BITS) {
      const bool top = shift == DESCENT_BITS - DIGIT_BITS;
      const uint64_t still = need;
      const auto digit = [&](uint32_t i) -> uint32_t {
        const uint64_t rank = part.rank(i);
        return rank >> (shift + DIGIT_BITS) == prefix ? rank >> shift & (BINS - 1) : NO_BIN;
      };
      const bool some = find(part, exchange, round, digit, measure, [&](uint64_t all) { return top ? want(all) : still; });
      if (!some) return top ? part.least_rank : prefix << (shift + DIGIT_BITS);
      prefix = prefix << DIGIT_BITS | bin;
    }
    return prefix;
  }

  // The least rank among the fewest first tokens whose measures add up to want(sum of all); that of the
  // filters so far if that is all of them.
  template <class Measure, class Want>
  __device__ __forceinline__ uint64_t keep(const Part& part, Exchange& exchange, uint32_t& round, Measure measure,
                                           Want want) {
    __syncthreads();  // Others may have used this memory.
    if (part.temperature.ordinary) {
      const float scale = (BINS - 1) / (27.6f * part.temperature.by);
      const auto distance = [&](uint32_t i) -> uint32_t {
        return BINS - 1 - min(__float2uint_rz((part.highest - part.z[i]) * scale), BINS - 1);
      };
      if (threadIdx.x == 0) list_len = 0;
      if (!find(part, exchange, round, distance, measure, want)) return part.least_rank;
      if (const uint64_t least = pick(part, distance, measure)) return least;
    }
    return descend(part, exchange, round, measure, want);
  }
};

}  // namespace minisgl
