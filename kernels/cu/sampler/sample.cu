// From logits to one token, as the CPU sampler defines it, and with the same result to the bit.
//
//   0 a NaN, or nothing above -inf: the token is -1, the log-probability NaN
//   1 clean the logits         2 log-probabilities, where a token that is given ends
//   3 bias, penalties, bans
//   4 the first of the ranking (larger logit, then lower token): greedy ends here
//   5 w = floor(2^40 exp((z - z_max) / temperature))     6 top-k, top-p, min-p keep a first part
//   7 the first token, in the order of ids, with which the running sum of w exceeds floor(u * sum / 2^64)
//
// Shapes: logits f32 [rows, stride], only read; parameters in minisgl_sample_params, by the slots that rows name. One launch for all rows, on each
// GPU that has some of the columns (ranks.cuh). A row belongs to the blocks of one cluster, each with a working copy of its part: read from
// memory once, then worked on in shared memory (or in `scratch`, where no cluster is to be had).
// Several blocks share a multiprocessor, so that one copies while another computes, and a
// cluster goes from row to row, so that none waits for the launch of others.
// Bytes moved: 4 * rows * vocab. Bound: read bandwidth; the exponentials and a division a
// token are of the same size.

#include "adjust.cuh"
#include "filter.cuh"
#include "ranks.cuh"

using namespace minisgl;

namespace {

struct Shared {
  Row row;
#if __CUDA_ARCH__ >= 900
  Arrivals copy;
#endif
  Exchange exchange;
  union {
    List list;
    Filter filter;  // Takes over where the list was too short.
  };
};

// Copies a struct of words, by one warp.
template <class T>
__device__ __forceinline__ void take(T& to, const T* from, uint32_t warp) {
  const uint32_t word = threadIdx.x - warp * 32;
  if (word < sizeof(T) / sizeof(uint32_t)) {
    reinterpret_cast<uint32_t*>(&to)[word] = reinterpret_cast<const uint32_t*>(from)[word];
  }
}

// Rows up to which a padding row is not worth looking for before its logits are asked for.
constexpr uint32_t EAGER_ROWS = 8;

// The log-probability of a clean raw logit.
__device__ __forceinline__ float logprob_of(float logit, float highest, double log_sum) {
  if (logit == -INFINITY) return logit;
  return static_cast<float>(static_cast<double>(__fsub_rn(logit, highest)) - log_sum);
}

// The working copies of one row after the other, as far as the copy engine can bring them.
struct Copies {
  uint32_t len;     // Of the logits, a multiple of 4; the rest is for the threads.
  uint32_t parity;  // Of the next one to arrive.

  __device__ static bool is_real(const minisgl_sample_args& a, uint32_t row) {
    return row < a.rows && static_cast<uint32_t>(a.draws[row].out) < a.tokens_len;
  }

  // By one thread, when no one uses the copy before any more.
  __device__ __forceinline__ void start(const float* logits, const Part& part, Shared& shared) {
#if __CUDA_ARCH__ >= 900
    if (len == 0) return;
    shared.copy.expect(len * sizeof(float));
    shared.copy.copy(part.z, logits, len * sizeof(float));
#endif
  }
  __device__ __forceinline__ void wait(Shared& shared) {
#if __CUDA_ARCH__ >= 900
    if (len == 0) return;
    shared.copy.wait(parity);
    parity ^= 1;
#endif
  }
};

template <bool IN_SHARED>
__device__ __forceinline__ uint64_t sum_of_thread(const Part& part, float highest, const Divisor& divisor) {
  if (IN_SHARED && divisor.ordinary) return part.sum(highest, divisor);
  uint64_t sum = 0;
  part.each([&](uint32_t i) { sum += weight(divisor.divide(__fsub_rn(part.z[i], highest))); });
  return sum;
}

// A logit below which top-k, top-p and min-p keep nothing, in a row whose weights add up to `total`. The
// margins are far above what rounding can do. -inf: no idea.
__device__ __forceinline__ float floor_of(const Part& part, const Wanted& wanted, uint64_t total, uint32_t vocab) {
  float share;  // Of the highest weight.
  if (wanted.top_p < 1.0f) {
    // All tokens that weigh no more add up to less than top-p leaves out.
    share = static_cast<float>((1.0 - wanted.top_p) * __ull2double_rn(total) / (static_cast<double>(vocab) * ONE));
  } else {
    share = static_cast<float>(__ull2double_rn(wanted.least_weight) / ONE);
  }
  const float x = fminf(logf(share), 0.0f) - 0.01f;
  return __fadd_rd(part.highest, __fmul_rn(x, part.temperature.by));
}

// Where a row's token goes.
template <class Team>
struct Publisher {
  const minisgl_sample_args& a;
  const Team& team;
  const Row& row;
  uint32_t row_at;
  float raw_highest;
  double log_sum;

  // By one thread.
  __device__ __forceinline__ void operator()(uint32_t token) const {
    a.tokens[row.out] = token;
    if (row.logprobs >= 0) {
      const float logit = clean(team.raw_logit(row_at, token));
      a.logprob[row_at] = logprob_of(logit, raw_highest, log_sum);
    }
    if (static_cast<uint32_t>(row.history) < a.tables) a.marks[size_t(row.history) * a.vocab + token] += 2;
  }
};

// 7. Draw, where `own` is the sum over this thread: the thread whose tokens hold the target is found, and its
// warp goes through them.
template <class Team, class Publish>
__device__ __forceinline__ void draw(const Part& part, Exchange& exchange, uint32_t& round, Team& team, uint64_t own,
                                     uint64_t random, const Publish& publish) {
  const uint64_t of_warp = sum_warp(own);
  uint64_t before;
  const uint64_t of_rank = Exchange::sum_of(exchange.share(round, of_warp), before);
  const uint64_t target = __umul64hi(random, team.sum(of_rank, before));
  if (!team.is_mine(target)) {
    if (Cluster::rank() == 0 && threadIdx.x < 32) {
      const uint32_t token = team.receive_token(target);
      if (threadIdx.x == 0) publish(token);
    }
    return;
  }
  if (before > target || target - before >= of_warp) return;
  before += scan_warp(own) - own;
  const uint32_t owner = __ffs(__ballot_sync(~0u, before <= target && target - before < own)) - 1;
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t begin = __shfl_sync(~0u, part.begin(), owner), end = __shfl_sync(~0u, part.end(), owner);
  uint64_t running = __shfl_sync(~0u, before, owner);
  for (uint32_t i = begin; i < end; i += 32) {
    const uint64_t upto = scan_warp(i + lane < end ? part.share(i + lane) : 0);
    const uint32_t past = __ballot_sync(~0u, running + upto > target);
    if (past) {
      if (lane == __ffs(past) - 1) {
        team.send_token(part.first + i + lane);
        publish(part.first + i + lane);
      }
      break;
    }
    running += __shfl_sync(~0u, upto, 31);
  }
}

// 6. and 7. over all of the row, where a list is too short. Takes and gives the exchange's round; apart, so that
// the usual way has the registers.
template <bool IN_SHARED, class Publish>
__device__ __noinline__ uint32_t sample_flat(const minisgl_sample_args& a, Part part, Shared& shared, uint32_t round,
                                             Wanted wanted, uint64_t random, Publish publish) {
  __builtin_assume(__isShared(&shared));
  if (IN_SHARED) __builtin_assume(__isShared(part.z));
  Filter& filter = shared.filter;
  if (wanted.top_k > 0) {
    const auto count = [&](uint64_t) -> uint64_t { return wanted.top_k; };
    part.least_rank = filter.keep(part, shared.exchange, round, [](uint64_t) { return 1ull; }, count);
  }
  if (wanted.top_p < 1.0f) {
    const auto mass = [&](uint64_t sum) { return wanted.mass(sum); };
    part.least_rank = filter.keep(part, shared.exchange, round, [](uint64_t w) { return w; }, mass);
  }
  part.least_weight = wanted.least_weight;
  uint64_t own = 0;
  part.each([&](uint32_t i) { own += part.share(i); });
  Alone alone(a, nullptr);
  draw(part, shared.exchange, round, alone, own, random, publish);
  return round;
}

// Samples a row whose working copy and parameters are there. `round` is the exchange's.
template <bool IN_SHARED, class Team>
__device__ __forceinline__ void sample(const minisgl_sample_args& a, uint32_t row_at, Part part, Shared& shared,
                                       uint32_t& round, Team& team) {
  const Row& row = shared.row;

  // 1. Rank. +inf passes for the largest finite logit, so then that must be made true first.
  const auto rank_all = [&] {
    const uint64_t* best_of_warp = shared.exchange.share(round, part.best_of_warp());
    shared.list.note(best_of_warp);
    return team.max(Exchange::max_of(best_of_warp));
  };
  uint64_t best = rank_all();
  // 0. Nothing to sample from: no token, and none is counted.
  if (best >= NOT_A_NUMBER || logit_of(best) == -INFINITY) {
    if (Cluster::rank() == 0 && threadIdx.x == 0) {
      if (!(static_cast<uint32_t>(row.given) < a.vocab)) a.tokens[row.out] = -1;
      if (row.logprobs >= 0) a.logprob[row_at] = NAN;
    }
    return;
  }
  if (logit_of(best) == FLOAT_MAX) {
    part.tidy();
    best = rank_all();
  }

  // 2. Log-probabilities, of the raw logits at temperature 1.
  float raw_highest = 0.0f;
  double log_sum = 0.0;
  if (row.logprobs >= 0) {
    raw_highest = logit_of(best);
    uint64_t before;
    const uint64_t own = sum_of_thread<IN_SHARED>(part, raw_highest, Divisor(1.0f));
    const uint64_t sum = team.sum(Exchange::sum_of(shared.exchange.share(round, sum_warp(own)), before), before);
    log_sum = log(static_cast<double>(sum) / static_cast<double>(ONE));
    const uint32_t top = min(static_cast<uint32_t>(row.logprobs), a.top_max);
    const auto put = [&](uint32_t i, uint64_t rank) {
      a.top_tokens[size_t(row_at) * a.top_max + i] = rank ? static_cast<int32_t>(token_of(rank)) : -1;
      a.top_logprobs[size_t(row_at) * a.top_max + i] =
          rank ? logprob_of(logit_of(rank), raw_highest, log_sum) : -INFINITY;
    };
    const uint32_t listed = top > 0 ? shared.list.collect(part, team.bound(shared.list, top), team) : 0;
    if (listed <= LIST_MAX) {
      if (Cluster::rank() == 0) {
        shared.list.each_placed(listed, [&](uint32_t i, uint32_t place) {
          if (place < top) put(place, shared.list.rank[i]);
        });
      }
    } else {
      uint64_t next = ~0ull;
      for (uint32_t i = 0; i < top; i++) {
        uint64_t of_thread = 0;
        part.each([&](uint32_t j) {
          if (j < part.count && part.rank(j) < next) of_thread = max(of_thread, part.rank(j));
        });
        next = team.max(Exchange::max_of(shared.exchange.share(round, max_warp(of_thread))));
        if (Cluster::rank() == 0 && threadIdx.x == 0) put(i, next);
      }
    }
  }

  // A token that is given is not drawn.
  if (static_cast<uint32_t>(row.given) < a.vocab) {
    if (row.logprobs >= 0 && Cluster::rank() == 0 && threadIdx.x == 0) {
      a.logprob[row_at] = logprob_of(clean(team.raw_logit(row_at, row.given)), raw_highest, log_sum);
    }
    return;
  }

  // 3. and 4. Adjust, and rank again.
  const bool penalised = static_cast<uint32_t>(row.history) < a.tables;
  const bool masked = static_cast<uint32_t>(row.mask) < a.masks_len;
  const bool adjusted = row.bias_len > 0 || row.is_banned() || penalised || masked;
  if (adjusted) {
    adjust(a, row, part);
    best = rank_all();
  }

  const Publisher<Team> publish = {a, team, row, row_at, raw_highest, log_sum};
  part.highest = logit_of(best);
  part.temperature = Divisor(row.temperature);
  if (part.highest == -INFINITY || !(row.temperature > 0.0f)) {
    if (Cluster::rank() == 0 && threadIdx.x == 0) publish(part.highest == -INFINITY ? 0 : token_of(best));
    return;
  }

  // 5. and 6. Filter; each filter sees what the one before kept. First by a list.
  const uint64_t random = uniform(row.seed, row.position);
  Wanted wanted = {row.top_k < a.vocab ? row.top_k : 0, row.top_p, 0};
  if (row.min_p > 0.0f) wanted.least_weight = __double2ull_rz(ceil(__dmul_rn(fminf(row.min_p, 1.0f), ONE)));
  const bool filtered = wanted.top_k > 0 || wanted.top_p < 1.0f || wanted.least_weight > 0;
  uint64_t own = 0, before = 0, total = 0;
  if (filtered && IN_SHARED && part.temperature.ordinary) {
    if (wanted.top_k == 0 && wanted.top_p < 1.0f) {
      own = part.sum(part.highest, part.temperature);
      total = team.sum(Exchange::sum_of(shared.exchange.share(round, sum_warp(own)), before), before);
    }
    // Top-p: first of few tokens, hoping that they are enough, where it takes many to be certain.
    float least = wanted.top_k > 0 ? team.bound(shared.list, wanted.top_k)
                                   : floor_of(part, wanted, total, a.vocab);
    bool certain = true;
    if (wanted.top_k == 0 && wanted.top_p < 1.0f) {
      const float few = team.bound_of_many(shared.list);
      certain = least >= few;
      least = fmaxf(least, few);
    }
    const uint32_t listed = shared.list.collect(part, least, team);
    if (listed <= LIST_MAX && !certain) {
      uint64_t unused;
      const uint64_t mass = sum_warp(shared.list.weight_of_own(part));
      const uint64_t of_rank = Exchange::sum_of(shared.exchange.share(round, mass), unused);
      certain = team.sum(of_rank, unused) >= wanted.mass(total);
    }
    if (listed <= LIST_MAX && certain) {
      if (Cluster::rank() == 0) shared.list.draw(part, listed, wanted, total, random, publish);
      return;
    }
  }
  if (!filtered) {
    own = sum_of_thread<IN_SHARED>(part, part.highest, part.temperature);
    draw(part, shared.exchange, round, team, own, random, publish);
  } else if constexpr (Team::JOINED) {
    Part whole = team.whole(row_at);
    whole.highest = part.highest;
    whole.temperature = part.temperature;
    if (adjusted) adjust(a, row, whole);
    round = sample_flat<false>(a, whole, shared, round, wanted, random, publish);
  } else {
    round = sample_flat<IN_SHARED>(a, part, shared, round, wanted, random, publish);
  }
}

// One row after the other.
template <bool IN_SHARED, class Team>
__device__ __forceinline__ void sample_all(const minisgl_sample_args& a, const minisgl_sample_ranks_args* ranks) {
  __shared__ Shared shared;
  extern __shared__ __align__(128) float shared_part[];
#if __CUDA_ARCH__ >= 900
  constexpr bool BULK = IN_SHARED;
  if (threadIdx.x == 0) {
    shared.copy.init();
    shared.exchange.arrivals[0].init();
    shared.exchange.arrivals[1].init();
    Arrivals::publish();
  }
  __syncwarp();
#else
  constexpr bool BULK = false;
#endif
  Team team(a, ranks);
  if constexpr (Team::JOINED) {
    wait_for_inputs();
    team.begin();
    Cluster::announce();
  } else {
    Cluster::announce();
    wait_for_inputs();
  }

  const uint32_t first = Cluster::rank() * a.part, clusters = gridDim.x / Cluster::size();
  const uint32_t count = first < team.columns() ? min(a.part, team.columns() - first) : 0;
  const uint32_t padded = IN_SHARED ? a.part : (count + 3) / 4 * 4;
  Copies copies = {BULK ? count / 4 * 4 : 0, 0};
  uint32_t round = 0;
  const auto part_of = [&](uint32_t row) {
    float* copy = IN_SHARED ? shared_part : a.scratch + size_t(row) * a.stride + first;
    return Part(copy, team.first() + first, count, padded, a.part / threads());
  };
  const auto logits_of = [&](uint32_t row) { return a.logits + size_t(row) * a.stride + first; };
  uint32_t row_at = blockIdx.x / Cluster::size();
  // Few rows are asked for before it is known whether they are padding.
  const bool eager = a.rows <= EAGER_ROWS;
  if (threadIdx.x == 0 && (eager || Copies::is_real(a, row_at))) {
    // The first copies begin one after the other, at about the pace of memory, so that from then on some
    // clusters of a multiprocessor copy while others compute.
    for (const int64_t begin = clock64(); clock64() - begin < int64_t(row_at) * a.stagger;) {
    }
    copies.start(logits_of(row_at), part_of(row_at), shared);
  }
  let_next_start();
  for (bool wanted = eager; row_at < a.rows; row_at += clusters, wanted = false) {
    const Part part = part_of(row_at);
    const uint32_t next = row_at + clusters;
    const bool next_is_real = threadIdx.x == 0 && Copies::is_real(a, next);
    take(static_cast<minisgl_sample_row&>(shared.row), a.draws + row_at, 0);
    take(static_cast<minisgl_sample_params&>(shared.row), a.params + min(a.draws[row_at].slot, a.slots - 1), 1);
    const float* logits = logits_of(row_at);
    for (uint32_t i = copies.len + threadIdx.x; i < padded; i += threads()) {
      part.z[i] = i < count ? logits[i] : -INFINITY;
    }
    __syncthreads();
    const bool real = static_cast<uint32_t>(shared.row.out) < a.tokens_len;
    if (wanted || real) copies.wait(shared);
    if (row_at < clusters) Cluster::await_all();
    if (real) sample<IN_SHARED>(a, row_at, part, shared, round, team);
    __syncthreads();
    if (next_is_real) copies.start(logits_of(next), part, shared);
  }
  team.end();
}

}  // namespace

KERNEL __launch_bounds__(THREADS_MAX, 2)
minisgl_sample_shared(const __grid_constant__ minisgl_sample_args a) { sample_all<true, Alone>(a, nullptr); }

KERNEL __launch_bounds__(THREADS_MAX, 2)
minisgl_sample_scratch(const __grid_constant__ minisgl_sample_args a) { sample_all<false, Alone>(a, nullptr); }

KERNEL __launch_bounds__(THREADS_MAX, 2)
minisgl_sample_ranks_shared(const __grid_constant__ minisgl_sample_ranks_args a) {
  sample_all<true, Ranks>(a.sample, &a);
}

KERNEL __launch_bounds__(THREADS_MAX, 2)
minisgl_sample_ranks_scratch(const __grid_constant__ minisgl_sample_ranks_args a) {
  sample_all<false, Ranks>(a.sample, &a);
}
