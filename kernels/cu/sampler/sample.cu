// From logits to one token, as the CPU sampler defines it, and with the same result to the bit.
//
//   1 clean the logits         2 log-probabilities       3 bias, penalties, bans
//   4 the first of the ranking (larger logit, then lower token): greedy ends here
//   5 w = floor(2^40 exp((z - z_max) / temperature))     6 top-k, top-p, min-p keep a first part
//   7 the first token, in the order of ids, with which the running sum of w exceeds floor(u * sum / 2^64)
//
// Shapes: logits f32 [rows, stride], only read; parameters in minisgl_sample_row. One launch for all rows. A
// row belongs to the blocks of one cluster, each with a working copy of its part: read from
// memory once, then worked on in shared memory (or in `scratch`, where no cluster is to be had). The
// filters find the last token they keep by a radix descent over (logit, token), without a sort.
// Bytes moved: 4 * rows * vocab. Bound: read bandwidth; the exponentials and one IEEE division a
// token are of the same size.

#include "arithmetic.cuh"
#include "cluster.cuh"

using namespace minisgl;

namespace {

constexpr uint32_t DIGIT_BITS = 10, BINS = 1u << DIGIT_BITS;
static_assert(BINS == 2 * THREADS && RANK_BITS % DIGIT_BITS == 0);

struct Shared {
  Reduction reduction;
  uint32_t low[BINS], high[BINS];  // A histogram of 64-bit sums; 32-bit atomics are the fast ones.
  uint64_t need, sum;              // Of the bin that a descent goes on in.
  uint32_t digit;
};

// One block's part of a row, and what was found out about the row.
struct Part {
  float* z;         // Working copy, [count].
  uint32_t first;   // Token of z[0].
  uint32_t count;
  float highest, temperature;
  uint64_t least_rank, least_weight;  // What is below is filtered out.

  __device__ uint64_t rank(uint32_t i) const { return rank_of_token(z[i], first + i); }

  // Weight in the draw: 0 for what is filtered out.
  __device__ uint64_t share(uint32_t i) const {
    const float below = __fsub_rn(z[i], highest);
    if (below < __fmul_rn(-27.6f, temperature)) return 0;  // Spares most divisions.
    const uint64_t w = weight(__fdiv_rn(below, temperature));
    return w >= least_weight && w > 0 && rank(i) >= least_rank ? w : 0;
  }

  // Calls f(i) for each token of this warp's stretch, lanes side by side. Every lane makes the same
  // number of calls; those past the end have i >= count.
  template <class F>
  __device__ void each(uint32_t part, F f) const {
    const uint32_t stretch = part / WARPS, begin = threadIdx.x / 32 * stretch;
    const uint32_t end = min(begin + stretch, (count + 31) / 32 * 32);
#pragma unroll 4
    for (uint32_t i = begin + threadIdx.x % 32; i < end; i += 32) f(i);
  }
};

__device__ __forceinline__ void add64(Shared& shared, uint32_t bin, uint64_t x) {
  const uint32_t low = static_cast<uint32_t>(x);
  const uint32_t carry = atomicAdd(&shared.low[bin], low) + low < low;
  const uint32_t high = static_cast<uint32_t>(x >> 32) + carry;
  if (high) atomicAdd(&shared.high[bin], high);
}

// The least rank among the fewest first tokens whose measures add up to `want(sum of all)`; that of
// the filters so far if that is all of them.
template <class Measure, class Want>
__device__ uint64_t descend(Shared& shared, const Part& part, uint32_t part_len, Measure measure,
                            Want want) {
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  uint64_t prefix = 0, need = 0;
  for (int shift = RANK_BITS - DIGIT_BITS; shift >= 0; shift -= DIGIT_BITS) {
    // Histogram of the next digit over the tokens that share the digits found so far.
    for (uint32_t bin = threadIdx.x; bin < BINS; bin += THREADS) shared.low[bin] = shared.high[bin] = 0;
    __syncthreads();
    part.each(part_len, [&](uint32_t i) {
      if (i >= part.count) return;
      const uint64_t rank = part.rank(i);
      if (rank >> (shift + DIGIT_BITS) != prefix) return;
      const uint64_t w = part.share(i);
      if (w > 0) add64(shared, rank >> shift & (BINS - 1), measure(w));
    });
    Cluster::sync();

    // Each thread adds up two bins over all blocks, the highest first, and scans over threads.
    const uint32_t bin = BINS - 1 - 2 * threadIdx.x;
    uint64_t upper = 0, lower = 0;
    for (uint32_t rank = 0; rank < Cluster::size(); rank++) {
      upper += Cluster::of(shared.low[bin], rank) | uint64_t(Cluster::of(shared.high[bin], rank)) << 32;
      lower += Cluster::of(shared.low[bin - 1], rank) | uint64_t(Cluster::of(shared.high[bin - 1], rank)) << 32;
    }
    uint64_t upto = upper + lower;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const uint64_t other = __shfl_up_sync(~0u, upto, step);
      if (lane >= step) upto += other;
    }
    if (lane == 31) shared.reduction.of_warp[warp] = upto;
    Cluster::sync();  // Now no block reads a histogram any more.
    const uint64_t of_warp = lane < WARPS ? shared.reduction.of_warp[lane] : 0;
    upto += reduce_warp<Add>(lane < warp ? of_warp : 0);
    if (shift == RANK_BITS - DIGIT_BITS) {
      const uint64_t all = reduce_warp<Add>(of_warp);
      need = want(all);
      if (need >= all) {
        __syncthreads();  // `of_warp` is read above and written next.
        return part.least_rank;
      }
    }

    // The bin in which the sum is reached is one thread's.
    const uint64_t before = upto - upper - lower;
    if (before < need && need <= upto) {
      const bool in_upper = need <= before + upper;
      shared.digit = in_upper ? bin : bin - 1;
      shared.need = in_upper ? need - before : need - before - upper;
      shared.sum = in_upper ? upper : lower;
    }
    __syncthreads();
    prefix = prefix << DIGIT_BITS | shared.digit;
    need = shared.need;
    const bool all_of_bin = need == shared.sum;
    __syncthreads();
    if (all_of_bin || shift == 0) return prefix << shift;
  }
  return 0;
}

// Highest rank below `limit`; 0 if there is none.
__device__ __forceinline__ uint64_t best_below(Shared& shared, uint32_t& turn, const Part& part,
                                               uint32_t part_len, uint64_t limit) {
  uint64_t best = 0;
  part.each(part_len, [&](uint32_t i) {
    if (i >= part.count) return;
    const uint64_t rank = part.rank(i);
    if (rank < limit) best = max(best, rank);
  });
  return reduce<Max>(shared.reduction, turn, best).all;
}

// The log-probability of a clean raw logit.
__device__ __forceinline__ float logprob_of(float logit, float highest, double log_sum) {
  if (logit == -INFINITY) return logit;
  return static_cast<float>(static_cast<double>(__fsub_rn(logit, highest)) - log_sum);
}

// Step 3. What a row refers to outside the arrays is as if it were not there.
__device__ void adjust(const minisgl_sample_args& a, const minisgl_sample_row& row, const Part& part) {
  const auto at = [&](uint32_t token) { return token - part.first; };
  if (uint64_t(row.bias_at) + row.bias_len <= a.bias_len) {
    for (uint32_t i = threadIdx.x; i < row.bias_len; i += THREADS) {
      const uint32_t token = at(a.bias_tokens[row.bias_at + i]);
      if (token < part.count) part.z[token] = clean(__fadd_rn(part.z[token], a.bias_values[row.bias_at + i]));
    }
    __syncthreads();
  }
  if (static_cast<uint32_t>(row.history) < a.tables) {
    const uint32_t* marks = a.marks + size_t(row.history) * a.vocab + part.first;
    for (uint32_t i = threadIdx.x; i < part.count; i += THREADS) {
      const uint32_t mark = marks[i];
      if (mark == 0) continue;
      float z = part.z[i];
      const float repetition = row.repetition_penalty;
      z = clean(z > 0.0f ? __fdiv_rn(z, repetition) : __fmul_rn(z, repetition));
      if (mark > 1) {
        const float frequency = __fmul_rn(row.frequency_penalty, static_cast<float>(mark / 2));
        z = clean(__fsub_rn(__fsub_rn(z, row.presence_penalty), frequency));
      }
      part.z[i] = z;
    }
    __syncthreads();
  }
  if (uint64_t(row.banned_at) + row.banned_len <= a.banned_len) {
    for (uint32_t i = threadIdx.x; i < row.banned_len; i += THREADS) {
      const uint32_t token = at(a.banned[row.banned_at + i]);
      if (token < part.count) part.z[token] = -INFINITY;
    }
    __syncthreads();
  }
}

template <bool IN_SHARED>
__device__ __forceinline__ void sample(const minisgl_sample_args& a) {
  __shared__ Shared shared;
  extern __shared__ __align__(16) float shared_part[];
  wait_for_inputs();
  let_next_start();

  const uint32_t row_at = blockIdx.x / Cluster::size();
  const minisgl_sample_row row = a.params[row_at];
  if (static_cast<uint32_t>(row.out) >= a.tokens_len) return;  // Padding: the whole cluster leaves.
  const float* logits = a.logits + size_t(row_at) * a.stride;
  const uint32_t lane = threadIdx.x % 32;
  uint32_t turn = 0;

  Part part;
  part.first = Cluster::rank() * a.part;
  part.count = part.first < a.vocab ? min(a.part, a.vocab - part.first) : 0;
  part.z = IN_SHARED ? shared_part : a.scratch + size_t(row_at) * a.stride + part.first;
  part.least_rank = part.least_weight = 0;

  // 1. Copy and clean, in vectors of four; `stride` leaves room past `vocab`.
#pragma unroll 4
  for (uint32_t i = threadIdx.x * 4; i < part.count; i += THREADS * 4) {
    float4 four = __ldcs(reinterpret_cast<const float4*>(logits + part.first + i));
    four = {clean(four.x), clean(four.y), clean(four.z), clean(four.w)};
    *reinterpret_cast<float4*>(part.z + i) = four;
  }
  __syncthreads();
  uint64_t best = best_below(shared, turn, part, a.part, ~0ull);

  // 2. Log-probabilities, of the raw logits at temperature 1.
  float raw_highest = 0.0f;
  double log_sum = 0.0;
  if (row.logprobs >= 0) {
    raw_highest = logit_of(best);
    uint64_t sum = 0;
    part.each(a.part, [&](uint32_t i) {
      if (i < part.count) sum += weight(__fsub_rn(part.z[i], raw_highest));
    });
    sum = reduce<Add>(shared.reduction, turn, sum).all;
    log_sum = log(static_cast<double>(sum) / static_cast<double>(ONE));
    const uint32_t top = min(static_cast<uint32_t>(row.logprobs), a.top_max);
    uint64_t next = best;
    for (uint32_t i = 0; i < top; i++) {
      if (Cluster::rank() == 0 && threadIdx.x == 0) {
        a.top_tokens[size_t(row_at) * a.top_max + i] = next ? static_cast<int32_t>(token_of(next)) : -1;
        a.top_logprobs[size_t(row_at) * a.top_max + i] =
            next ? logprob_of(logit_of(next), raw_highest, log_sum) : -INFINITY;
      }
      if (i + 1 < top && next) next = best_below(shared, turn, part, a.part, next);
    }
  }

  // 3. and 4. Adjust, and rank again.
  const bool penalised = static_cast<uint32_t>(row.history) < a.tables;
  if (row.bias_len > 0 || row.banned_len > 0 || penalised) {
    adjust(a, row, part);
    best = best_below(shared, turn, part, a.part, ~0ull);
  }

  const auto publish = [&](uint32_t token) {
    a.tokens[row.out] = token;
    if (row.logprobs >= 0) a.logprob[row_at] = logprob_of(clean(logits[token]), raw_highest, log_sum);
    if (penalised) a.marks[size_t(row.history) * a.vocab + token] += 2;
  };
  part.highest = logit_of(best);
  part.temperature = row.temperature;
  if (part.highest == -INFINITY || !(row.temperature > 0.0f)) {
    if (Cluster::rank() == 0 && threadIdx.x == 0) publish(token_of(best));
    Cluster::sync();  // Shared memory must outlive its readers.
    return;
  }

  // 5. and 6. Filter; each filter sees what the one before kept.
  if (row.top_k > 0) {
    part.least_rank = descend(shared, part, a.part, [](uint64_t) { return 1ull; },
                              [&](uint64_t) { return uint64_t(row.top_k); });
  }
  if (row.top_p < 1.0f) {
    part.least_rank = descend(shared, part, a.part, [](uint64_t w) { return w; }, [&](uint64_t sum) {
      const double need = ceil(__dmul_rn(row.top_p, __ull2double_rn(sum)));
      return max(need > 0.0 ? __double2ull_rz(need) : 0ull, 1ull);
    });
  }
  if (row.min_p > 0.0f) {
    const double least = ceil(__dmul_rn(fminf(row.min_p, 1.0f), static_cast<double>(ONE)));
    part.least_weight = __double2ull_rz(least);
  }

  // 7. Draw: find the warp whose stretch holds the target, then the token.
  uint64_t sum = 0;
  part.each(a.part, [&](uint32_t i) {
    if (i < part.count) sum += part.share(i);
  });
  const Total total = reduce<Add>(shared.reduction, turn, sum);
  const uint64_t target = __umul64hi(uniform(row.seed, row.position), total.all);
  uint64_t running = total.before_warp;
  const bool here = running <= target && target - running < reduce_warp<Add>(sum);
  if (here) {
    bool found = false;
    part.each(a.part, [&](uint32_t i) {
      if (found) return;
      uint64_t upto = i < part.count ? part.share(i) : 0;
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const uint64_t other = __shfl_up_sync(~0u, upto, step);
        if (lane >= step) upto += other;
      }
      const uint32_t past = __ballot_sync(~0u, running + upto > target);
      if (past) {
        if (lane == __ffs(past) - 1) publish(part.first + i);
        found = true;
      }
      running += __shfl_sync(~0u, upto, 31);
    });
  }
  Cluster::sync();  // Shared memory must outlive its readers.
}

}  // namespace

KERNEL __launch_bounds__(THREADS, 2)
minisgl_sample_shared(const __grid_constant__ minisgl_sample_args a) { sample<true>(a); }

KERNEL __launch_bounds__(THREADS, 2)
minisgl_sample_scratch(const __grid_constant__ minisgl_sample_args a) { sample<false>(a); }
