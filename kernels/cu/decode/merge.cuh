// Chunks of a pair that several blocks worked on: put aside by each, merged by the last to finish.
//
// A chunk is its output before the division, relative to its maximum, with that maximum and the sum. A block has
// two places for chunks: one that goes on from the block before, and one that goes on in the next. The merge
// goes through the chunks in the order of their tokens, so who is last makes no difference to the result.
#pragma once

#include "../quantise/e4m3.cuh"
#include "walk.cuh"

namespace minisgl {

// Of the tensor unit's 2^x, to 2 ulp; 0 for -inf.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Four elements of a head's output, divided by the sum of weights: as bf16; or as e4m3 with a scale for the head, as
// quantise/quantise.cu makes them of bf16. Then a warp has the head.
template <int D>
__device__ __forceinline__ void store_output(const minisgl_decode_args& a, uint32_t row, uint32_t head, uint32_t at,
                                             const float4& out, float sum) {
  const float inverse = 1.0f / sum;
  const __nv_bfloat162 low = __floats2bfloat162_rn(out.x * inverse, out.y * inverse);
  const __nv_bfloat162 high = __floats2bfloat162_rn(out.z * inverse, out.w * inverse);
  const size_t place = (size_t(row) * a.q_heads + head) * D + at;
  if constexpr (D == 128) {
    if (a.codes != nullptr) {
      const float2 l = __bfloat1622float2(low), h = __bfloat1622float2(high);
      float largest = fmaxf(fmaxf(fabsf(l.x), fabsf(l.y)), fmaxf(fabsf(h.x), fabsf(h.y)));
#pragma unroll
      for (int step = 16; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
      const float scale = largest / LARGEST, up = inverse_of(scale);
      *reinterpret_cast<uint32_t*>(a.codes + place) = narrow4(make_float4(l.x, l.y, h.x, h.y), up);
      if (at == 0) a.scales[size_t(head) * a.scale_stride + row] = scale;
      return;
    }
  }
  *reinterpret_cast<uint2*>(a.out + place) =
      make_uint2(*reinterpret_cast<const uint32_t*>(&low), *reinterpret_cast<const uint32_t*>(&high));
}

// A head's sink joins the sum of weights: one more logit, a natural logarithm, that belongs to no value. `most` is the
// maximum that `out` and `sum` are relative to, as a power of 2.
template <bool WINDOW>
__device__ __forceinline__ void add_sink(const minisgl_decode_args& a, uint32_t head, float most, float4& out,
                                         float& sum) {
  if (!WINDOW || a.sinks == nullptr) return;
  const uint32_t group = a.q_heads / a.kv_heads;
  const float sink = __bfloat162float(a.sinks[head_of_block(a) * group + head]) * 1.4426950408889634f;
  const float next = fmaxf(most, sink), kept = exp2_fast(most - next);
  sum = sum * kept + exp2_fast(sink - next);
  out.x *= kept, out.y *= kept, out.z *= kept, out.w *= kept;
}

// Where chunks are kept.
struct Partials {
  float* out;    // [2 * blocks, group, D]
  float2* sums;  // [2 * blocks, group]: maximum, as a power of 2, and sum

  template <int D>
  static __device__ __forceinline__ Partials of(const minisgl_decode_args& a, uint32_t group) {
    return {a.partials, reinterpret_cast<float2*>(a.partials + size_t(2) * gridDim.x * group * D)};
  }

  // The place, in rows of the group, of this key head's chunk in a team, of a pair that begins in team `first`.
  static __device__ __forceinline__ size_t place(const minisgl_decode_args& a, uint32_t team, uint32_t first) {
    const uint32_t block = team * a.kv_heads + head_of_block(a);
    return size_t(2 * block + (team == first ? 1 : 0)) * (a.q_heads / a.kv_heads);
  }
};

// Whether all chunks of a segment's pair are there, this block's included. For whole blocks; `flag` is shared.
__device__ __forceinline__ bool arrive_last(const minisgl_decode_args& a, const Segment& s, uint32_t* flag) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    uint32_t* arrived = a.arrived + s.first * a.kv_heads + head_of_block(a);
    const bool last = atomicAdd(arrived, 1) + 1 == s.chunks;
    if (last) *arrived = 0;
    *flag = last;
  }
  __syncthreads();
  const bool last = *flag;
  if (last) __threadfence();
  return last;
}

template <int D, int THREADS, bool WINDOW>
__device__ __forceinline__ void merge(const minisgl_decode_args& a, const Segment& s) {
  constexpr uint32_t VECTORS = D / 4, AHEAD = 8;
  const uint32_t group = a.q_heads / a.kv_heads;
  const Partials partials = Partials::of<D>(a, group);
#pragma unroll 1
  for (uint32_t i = threadIdx.x; i < group * VECTORS; i += THREADS) {
    const uint32_t head = i / VECTORS, at = i % VECTORS * 4;
    float most = -INFINITY, sum = 0.0f;
    float4 out = {};
#pragma unroll 1
    for (uint32_t chunk = 0; chunk < s.chunks; chunk += AHEAD) {
      // Several chunks at a time: their loads wait together.
      float4 part[AHEAD];
      float2 sums[AHEAD];
#pragma unroll
      for (uint32_t j = 0; j < AHEAD; j++) {
        sums[j] = make_float2(-INFINITY, 0.0f);
        part[j] = {};
        if (chunk + j < s.chunks) {
          const size_t row = Partials::place(a, s.first + chunk + j, s.first) + head;
          sums[j] = __ldcg(partials.sums + row);
          part[j] = __ldcg(reinterpret_cast<const float4*>(partials.out + row * D + at));
        }
      }
      float next = most;
#pragma unroll
      for (uint32_t j = 0; j < AHEAD; j++) next = fmaxf(next, sums[j].x);
      const float kept = exp2_fast(most - next);
      most = next;
      sum *= kept, out.x *= kept, out.y *= kept, out.z *= kept, out.w *= kept;
#pragma unroll
      for (uint32_t j = 0; j < AHEAD; j++) {
        const float share = exp2_fast(sums[j].x - most);
        sum += share * sums[j].y;
        out.x += share * part[j].x, out.y += share * part[j].y;
        out.z += share * part[j].z, out.w += share * part[j].w;
      }
    }
    add_sink<WINDOW>(a, head, most, out, sum);
    store_output<D>(a, s.row, head_of_block(a) * group + head, at, out, sum);
  }
}

}  // namespace minisgl
