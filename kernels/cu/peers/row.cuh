// Rows of the residual stream, and the norm that follows a sum.
#pragma once

#include "meet.cuh"

namespace minisgl {

// One row, over the threads of a block.
template <int VECTORS>
struct Row {
  Vec8 of[VECTORS];

  template <class F>
  __device__ __forceinline__ static void each(uint32_t hidden, F f) {
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
      const uint32_t at = (threadIdx.x + v * blockDim.x) * VEC;
      if (at < hidden) f(v, at);
    }
  }

  __device__ __forceinline__ void load(const minisgl_bf16* row, uint32_t hidden) {
    each(hidden, [&](int v, uint32_t at) { of[v] = load8(row + at); });
  }
  // What a peer wrote: never from this multiprocessor's own cache.
  __device__ __forceinline__ void load_shared(const minisgl_bf16* row, uint32_t hidden) {
    each(hidden, [&](int v, uint32_t at) {
      const uint4 bits = __ldcg(reinterpret_cast<const uint4*>(row + at));
      of[v] = *reinterpret_cast<const Vec8*>(&bits);
    });
  }
  __device__ __forceinline__ void store(minisgl_bf16* row, uint32_t hidden) const {
    each(hidden, [&](int v, uint32_t at) { store8(row + at, of[v]); });
  }
};

// Norms rows one after the other; `shared` takes turns, so that no thread waits for the slowest twice.
template <int VECTORS>
struct Norm {
  const minisgl_all_reduce_args& a;
  float (&shared)[2][32];
  Row<VECTORS> weight;
  uint32_t turn;

  __device__ __forceinline__ Norm(const minisgl_all_reduce_args& a, float (&shared)[2][32])
      : a(a), shared(shared), turn(0) {
    if (a.norm_weight) weight.load(a.norm_weight, a.hidden);
  }

  __device__ __forceinline__ void operator()(const Row<VECTORS>& row, size_t first) {
    if (!a.norm_weight) return;
    float squares = 0.0f;
    Row<VECTORS>::each(a.hidden, [&](int v, uint32_t) {
      float f[VEC];
      unpack(row.of[v], f);
#pragma unroll
      for (uint32_t i = 0; i < VEC; i++) squares += f[i] * f[i];
    });
    const float scale = rsqrtf(sum_block(squares, shared[turn]) / a.hidden + a.eps);
    turn ^= 1;
    Row<VECTORS>::each(a.hidden, [&](int v, uint32_t at) {
      float f[VEC], w[VEC];
      unpack(row.of[v], f);
      unpack(weight.of[v], w);
#pragma unroll
      for (uint32_t i = 0; i < VEC; i++) f[i] = f[i] * scale * w[i];
      store8(a.normed + first + at, pack(f));
    });
  }
};

}  // namespace minisgl
