// One block's part of a row: getting it, and going over it.
#pragma once

#include "cluster.cuh"

namespace minisgl {

constexpr float FLOAT_MAX = 3.402823466e38f;

struct Part {
  float* z;             // The logits, [padded]; as the model gave them, until tidy() or adjusted.
  uint32_t first;       // Token of z[0].
  uint32_t count;
  uint32_t padded;      // Past `count` come logits of -inf, for tokens that are none.
  uint32_t each_thread; // Tokens of one thread, side by side; odd, so that banks do not conflict.
  float highest;
  Divisor temperature;
  uint64_t least_rank, least_weight;  // What is below is filtered out.

  __device__ Part(float* z, uint32_t first, uint32_t count, uint32_t padded, uint32_t each_thread)
      : z(z), first(first), count(count), padded(padded), each_thread(each_thread), highest(0.0f),
        temperature(1.0f), least_rank(0), least_weight(0) {}

  __device__ uint32_t begin() const { return min(threadIdx.x * each_thread, padded); }
  __device__ uint32_t end() const { return min(begin() + each_thread, padded); }

  // The larger one; NaN if either is, of which fmaxf() says nothing.
  __device__ static __forceinline__ float max_or_nan(float a, float b) {
    float highest;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(highest) : "f"(a), "f"(b));
    return highest;
  }

  // Calls f(i) for each token of this thread.
  template <class F>
  __device__ __forceinline__ void each(F f) const {
    const uint32_t last = end();
#pragma unroll 2
    for (uint32_t i = begin(); i < last; i++) f(i);
  }

  // Calls f(i) for each token, over all threads: neighbours look at neighbours.
  template <class F>
  __device__ __forceinline__ void each_in_any_order(F f) const {
#pragma unroll 4
    for (uint32_t i = threadIdx.x; i < padded; i += threads()) f(i);
  }

  // Calls f(i, four) for vectors of four logits, over all threads.
  template <class F>
  __device__ __forceinline__ void each_four(F f) const {
#pragma unroll 2
    for (uint32_t i = threadIdx.x * 4; i < padded; i += threads() * 4) {
      f(i, *reinterpret_cast<const float4*>(z + i));
    }
  }

  __device__ __forceinline__ uint64_t rank(uint32_t i) const {
    return rank_of_token(clean(z[i]), first + i);
  }

  // To be called by threads that wrote logits, before the copy engine may write there again.
  __device__ static void written() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
  }

  // The logits that no model should give, replaced in place. Costs a pass, so only where it matters.
  __device__ void tidy() const {
    for (uint32_t i = threadIdx.x; i < padded; i += threads()) z[i] = clean(z[i]);
    written();
    __syncthreads();
  }

  // The highest logit of this warp and the lowest token that has it, as a rank, with NOT_A_NUMBER if a logit is NaN. If
  // that logit is +inf, it passes for the largest finite one, and the token is too high if that too is in the row.
  __device__ __forceinline__ uint64_t best_of_warp() const {
    float highest = -INFINITY;
    uint32_t at = 0;
    bool numbers = true;
    each_four([&](uint32_t i, const float4& four) {
      const float of_four = max_or_nan(max_or_nan(four.x, four.y), max_or_nan(four.z, four.w));
      if (!(of_four <= highest)) {
        if (of_four > highest) {
          highest = of_four;
          at = i;
        } else {
          numbers = false;
        }
      }
    });
    const uint32_t key = order_key(clean(highest)), highest_key = __reduce_max_sync(~0u, key);
    uint32_t token = ~0u;
    if (key == highest_key && highest > -INFINITY) {
      while (z[at] != highest) at++;
      token = first + at;
    }
    const uint32_t lowest = __reduce_min_sync(~0u, token);
    const uint64_t flag = __all_sync(~0u, numbers) ? 0 : NOT_A_NUMBER;
    return flag | uint64_t(highest_key) << TOKEN_BITS | (TOKEN_MASK - min(lowest, TOKEN_MASK));
  }

  // Sum of this thread's weights, exp((z - highest) / by). Shared memory only: there each thread has the
  // same number of logits, counting the padding.
  __device__ __forceinline__ uint64_t sum(float highest, const Divisor& divisor) const {
    const float least = __fadd_rd(highest, __fmul_rn(-27.7f, divisor.by));  // Surely weighs 0.
    Sum sum;
    const auto add = [&](float a, float b, float c, float d) {
      if (!__any_sync(~0u, fmaxf(fmaxf(a, b), fmaxf(c, d)) >= least)) return;
      const float four[4] = {a, b, c, d};
#pragma unroll
      for (uint32_t i = 0; i < 4; i++) sum.add(unfloored(divisor.quotient(__fsub_rn(four[i], highest))));
    };
    const float* own = z + threadIdx.x * each_thread;
    uint32_t left = each_thread;
    for (; left >= 4; left -= 4, own += 4) add(own[0], own[1], own[2], own[3]);
    if (left > 0) add(own[0], left > 1 ? own[1] : -INFINITY, left > 2 ? own[2] : -INFINITY, -INFINITY);
    return sum.whole();
  }

  // Weight in the draw of a logit: 0 for what is far below the highest.
  __device__ __forceinline__ uint64_t weigh(float logit) const {
    const float below = __fsub_rn(logit, highest);
    if (!(below >= __fmul_rn(-27.6f, temperature.by))) return 0;
    return weight(temperature.divide(below));
  }
  // The same for a token: also 0 for what is filtered out.
  __device__ __forceinline__ uint64_t share(uint32_t i) const {
    const uint64_t w = weigh(z[i]);
    return w >= least_weight && (least_rank == 0 || rank(i) >= least_rank) ? w : 0;
  }
};

}  // namespace minisgl
