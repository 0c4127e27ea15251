// From logits to one token, as the CPU sampler defines it, and with the same result to the bit.
//
//   1 clean the logits         2 log-probabilities       3 bias, penalties, bans
//   4 the first of the ranking (larger logit, then lower token): greedy ends here
//   5 w = floor(2^40 exp((z - z_max) / temperature))     6 top-k, top-p, min-p keep a first part
//   7 the first token, in the order of ids, with which the running sum of w exceeds floor(u * sum / 2^64)
//
// Shapes: logits f32 [rows, stride], only read; parameters in minisgl_sample_row. One launch for all rows. A
// row belongs to the blocks of one cluster, each with a working copy of its part: read from
// memory once, then worked on in shared memory (or in `scratch`, where no cluster is to be had).
// Bytes moved: 4 * rows * vocab. Bound: read bandwidth; the exponentials and a division a
// token are of the same size.
// Measured (H100 80GB HBM3, 2026-11-21, `gpu --bench`), vocabulary 151936, 256 rows: greedy 121 us, with
// temperature 229 us, with top-p 526 us, of a floor of 50 us; at 1 row 10, 20 and 45 us.

#include "filter.cuh"

using namespace minisgl;

namespace {

struct Shared {
  Reduction reduction;
  Filter filter;
};

// Highest rank of this thread's below `limit`; 0 if there is none.
__device__ __forceinline__ uint64_t best_below(const Part& part, uint64_t limit) {
  uint64_t best = 0;
  part.each([&](uint32_t i) {
    const uint64_t rank = part.rank(i);
    if (rank < limit) best = max(best, rank);
  });
  return best;
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
  uint32_t turn = 0;

  const uint32_t first = Cluster::rank() * a.part;
  float* copy = IN_SHARED ? shared_part : a.scratch + size_t(row_at) * a.stride + first;
  Part part(copy, first, first < a.vocab ? min(a.part, a.vocab - first) : 0, a.part);

  // 1. Copy, clean and rank, in vectors of four; `stride` leaves room past `vocab`.
  uint64_t best = 0;
#pragma unroll 4
  for (uint32_t i = threadIdx.x * 4; i < part.count; i += THREADS * 4) {
    const float4 four = __ldcs(reinterpret_cast<const float4*>(logits + first + i));
    const float z[4] = {clean(four.x), clean(four.y), clean(four.z), clean(four.w)};
    *reinterpret_cast<float4*>(part.z + i) = {z[0], z[1], z[2], z[3]};
#pragma unroll
    for (uint32_t j = 0; j < 4; j++) {
      if (i + j < part.count) best = max(best, rank_of_token(z[j], first + i + j));
    }
  }
  best = reduce<Max>(shared.reduction, turn, best).all;

  // 2. Log-probabilities, of the raw logits at temperature 1.
  float raw_highest = 0.0f;
  double log_sum = 0.0;
  if (row.logprobs >= 0) {
    raw_highest = logit_of(best);
    uint64_t sum = 0;
    part.each([&](uint32_t i) { sum += weight(__fsub_rn(part.z[i], raw_highest)); });
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
      if (i + 1 < top && next) {
        next = reduce<Max>(shared.reduction, turn, best_below(part, next)).all;
      }
    }
  }

  // 3. and 4. Adjust, and rank again.
  const bool penalised = static_cast<uint32_t>(row.history) < a.tables;
  if (row.bias_len > 0 || row.banned_len > 0 || penalised) {
    adjust(a, row, part);
    best = reduce<Max>(shared.reduction, turn, best_below(part, ~0ull)).all;
  }

  const auto publish = [&](uint32_t token) {
    a.tokens[row.out] = token;
    if (row.logprobs >= 0) a.logprob[row_at] = logprob_of(clean(logits[token]), raw_highest, log_sum);
    if (penalised) a.marks[size_t(row.history) * a.vocab + token] += 2;
  };
  part.highest = logit_of(best);
  part.temperature = Divisor(row.temperature);
  if (part.highest == -INFINITY || !(row.temperature > 0.0f)) {
    if (Cluster::rank() == 0 && threadIdx.x == 0) publish(token_of(best));
    Cluster::sync();  // Shared memory must outlive its readers.
    return;
  }

  // 5. and 6. Filter; each filter sees what the one before kept.
  if (row.top_k > 0) {
    const auto count = [&](uint64_t) -> uint64_t { return row.top_k; };
    part.least_rank = shared.filter.keep(part, [](uint64_t) { return 1ull; }, count);
  }
  if (row.top_p < 1.0f) {
    const auto mass = [&](uint64_t sum) -> uint64_t {
      const double need = ceil(__dmul_rn(row.top_p, __ull2double_rn(sum)));
      return max(need > 0.0 ? __double2ull_rz(need) : 0ull, 1ull);
    };
    part.least_rank = shared.filter.keep(part, [](uint64_t w) { return w; }, mass);
  }
  if (row.min_p > 0.0f) {
    const double least = ceil(__dmul_rn(fminf(row.min_p, 1.0f), static_cast<double>(ONE)));
    part.least_weight = __double2ull_rz(least);
  }

  // 7. Draw: find the thread whose tokens hold the target; its warp goes through them.
  uint64_t sum = 0;
  part.each([&](uint32_t i) { sum += part.share(i); });
  const Total total = reduce<Add>(shared.reduction, turn, sum);
  const uint64_t target = __umul64hi(uniform(row.seed, row.position), total.all);
  const uint64_t before = total.before_warp + scan_warp(sum) - sum;
  const uint32_t owner = __ballot_sync(~0u, before <= target && target - before < sum);
  if (owner) {
    const uint32_t lane = threadIdx.x % 32, from = __ffs(owner) - 1;
    const uint32_t begin = __shfl_sync(~0u, part.begin(), from), end = __shfl_sync(~0u, part.end(), from);
    uint64_t running = __shfl_sync(~0u, before, from);
    for (uint32_t i = begin; i < end; i += 32) {
      const uint64_t upto = scan_warp(i + lane < end ? part.share(i + lane) : 0);
      const uint32_t past = __ballot_sync(~0u, running + upto > target);
      if (past) {
        if (lane == __ffs(past) - 1) publish(first + i + lane);
        break;
      }
      running += __shfl_sync(~0u, upto, 31);
    }
  }
  Cluster::sync();  // Shared memory must outlive its readers.
}

}  // namespace

KERNEL __launch_bounds__(THREADS, 2)
minisgl_sample_shared(const __grid_constant__ minisgl_sample_args a) { sample<true>(a); }

KERNEL __launch_bounds__(THREADS, 2)
minisgl_sample_scratch(const __grid_constant__ minisgl_sample_args a) { sample<false>(a); }
