// One block's part of a row, and what was found out about the row.
#pragma once

#include "arithmetic.cuh"
#include "cluster.cuh"

namespace minisgl {

struct Part {
  float* z;             // Working copy of the logits, [count].
  uint32_t first;       // Token of z[0].
  uint32_t count;
  uint32_t each_thread; // Tokens of one thread, side by side; odd, so that banks do not conflict.
  float highest;
  Divisor temperature;
  uint64_t least_rank, least_weight;  // What is below is filtered out.

  __device__ Part(float* z, uint32_t first, uint32_t count, uint32_t part_len)
      : z(z), first(first), count(count), each_thread(part_len / THREADS), highest(0.0f),
        temperature(1.0f), least_rank(0), least_weight(0) {}

  __device__ uint32_t begin() const { return min(threadIdx.x * each_thread, count); }
  __device__ uint32_t end() const { return min(begin() + each_thread, count); }

  // Calls f(i) for each token of this thread.
  template <class F>
  __device__ __forceinline__ void each(F f) const {
    const uint32_t last = end();
#pragma unroll 4
    for (uint32_t i = begin(); i < last; i++) f(i);
  }

  __device__ __forceinline__ uint64_t rank(uint32_t i) const { return rank_of_token(z[i], first + i); }

  // Weight in the draw: 0 for what is filtered out.
  __device__ __forceinline__ uint64_t share(uint32_t i) const {
    const float below = __fsub_rn(z[i], highest);
    if (below < __fmul_rn(-27.6f, temperature.by)) return 0;
    const uint64_t w = weight(temperature.divide(below));
    return w >= least_weight && (least_rank == 0 || rank(i) >= least_rank) ? w : 0;
  }
};

}  // namespace minisgl
