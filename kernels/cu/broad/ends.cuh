// How sums of the products of broad.cuh become outputs.
#pragma once

#include "work.cuh"

namespace minisgl {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ __forceinline__ uint32_t two_bf16(float low, float high) {
  const __nv_bfloat162 two = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(two);
}
__device__ __forceinline__ float2 two_floats(uint32_t two) {
  return __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(two));
}

// Four lanes that have two columns each of four times eight, a word each: afterwards a lane has all eight of one.
__device__ __forceinline__ uint4 turn_words(const uint32_t (&words)[4]) {
  const uint32_t lane = threadIdx.x % 4;
  const bool odd = lane % 2, late = lane / 2;
  uint32_t a[4];
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t got = __shfl_xor_sync(~0u, odd ? words[i] : words[i + 1], 1);
    a[i] = odd ? got : words[i], a[i + 1] = odd ? words[i + 1] : got;
  }
  uint32_t b[4];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const uint32_t got = __shfl_xor_sync(~0u, late ? a[i] : a[i + 2], 2);
    b[i] = late ? got : a[i], b[i + 2] = late ? a[i + 2] : got;
  }
  return make_uint4(b[0], b[1], b[2], b[3]);
}

// Outputs of a block that has all of its tile's columns, out of registers.
template <int WIDE, int TEAMS>
__device__ __forceinline__ void broad_put(const Broad<WIDE, TEAMS>& work, uint32_t item,
                                          float (&sum)[Broad<WIDE, TEAMS>::MINE / 2]) {
  using Form = Broad<WIDE, TEAMS>;
  const minisgl_broad_args& a = work.a;
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, t = lane % 4;
  const uint32_t token = work.token(item) + (TEAMS == 2 ? warp * 16 : warp % 4 * 16) + lane / 4;
  constexpr uint32_t EIGHTS = Form::MINE / 8;
  if (a.scale_form == MINISGL_SCALE_ROW) {
#pragma unroll
    for (uint32_t eight = 0; eight < EIGHTS; eight++) {
      const uint32_t row = work.row(item, broad_half<WIDE, TEAMS>(eight)) + broad_offset<WIDE, TEAMS>(eight) + 2 * t;
      const float2 by = row < a.n ? *reinterpret_cast<const float2*>(a.scales + row) : make_float2(0.0f, 0.0f);
      sum[4 * eight] *= by.x, sum[4 * eight + 1] *= by.y, sum[4 * eight + 2] *= by.x, sum[4 * eight + 3] *= by.y;
    }
  }
  const uint32_t width = work.gated ? a.n / 2 : a.n;
  const auto column = [&](uint32_t eight) {
    const uint32_t half = work.gated ? 0 : broad_half<WIDE, TEAMS>(eight);
    return work.row(item, half) + broad_offset<WIDE, TEAMS>(eight);
  };
  // Words of two columns, of tokens `token` and `token + 8`.
  uint32_t words[2][EIGHTS];
  uint32_t outputs = EIGHTS;
  if (work.gated) {
    outputs = EIGHTS / 2;
#pragma unroll
    for (uint32_t pair = 0; pair < TEAMS; pair++) {
#pragma unroll
      for (uint32_t i = 0; i < Form::QUARTER / 8; i++) {
        const float* gate = sum + 4 * (pair * 2 * Form::QUARTER / 8 + i);
        const float* up = gate + 4 * Form::QUARTER / 8;
#pragma unroll
        for (uint32_t low = 0; low < 2; low++) {
          const __nv_bfloat162 two = __halves2bfloat162(minisgl::gated(gate[2 * low], up[2 * low], a.gate),
                                                        minisgl::gated(gate[2 * low + 1], up[2 * low + 1], a.gate));
          words[low][pair * Form::QUARTER / 8 + i] = reinterpret_cast<const uint32_t&>(two);
        }
      }
    }
  } else if (a.epilogue == MINISGL_SKINNY_F32) {
#pragma unroll
    for (uint32_t eight = 0; eight < EIGHTS; eight++) {
      if (column(eight) >= width) continue;
      float* out = static_cast<float*>(a.out) + column(eight) + 2 * t;
      const float* of = sum + 4 * eight;
      if (token < a.m) *reinterpret_cast<float2*>(out + size_t(token) * width) = make_float2(of[0], of[1]);
      if (token + 8 < a.m) *reinterpret_cast<float2*>(out + size_t(token + 8) * width) = make_float2(of[2], of[3]);
    }
    return;
  } else {
    const minisgl_bf16* old = static_cast<const minisgl_bf16*>(a.out);
#pragma unroll
    for (uint32_t eight = 0; eight < EIGHTS; eight++) {
      const uint32_t at = column(eight) + 2 * t;
      const bool there = column(eight) < width;
      float2 bias = make_float2(0.0f, 0.0f);
      if (a.bias && there) bias = two_floats(*reinterpret_cast<const uint32_t*>(a.bias + at));
#pragma unroll
      for (uint32_t low = 0; low < 2; low++) {
        float2 add = bias;
        if (a.epilogue == MINISGL_SKINNY_ADD && there && token + 8 * low < a.m) {
          const float2 of = two_floats(*reinterpret_cast<const uint32_t*>(old + size_t(token + 8 * low) * width + at));
          add.x += of.x, add.y += of.y;
        }
        words[low][eight] = two_bf16(sum[4 * eight + 2 * low] + add.x, sum[4 * eight + 2 * low + 1] + add.y);
      }
    }
  }
  // Eight columns at a time, 16 bytes a lane, 64 or more of a token side by side.
  minisgl_bf16* out = static_cast<minisgl_bf16*>(a.out);
#pragma unroll
  for (uint32_t first = 0; first < EIGHTS; first += 4) {
    if (first >= outputs) break;
    const uint32_t mine = first + t, eights = Form::QUARTER / 8;
    // Of what is gated, quarters of gates alone are left.
    const uint32_t eight = work.gated ? mine / eights * 2 * eights + mine % eights : mine;
    const uint32_t at = column(eight);
#pragma unroll
    for (uint32_t low = 0; low < 2; low++) {
      uint32_t four[4];
#pragma unroll
      for (uint32_t i = 0; i < 4; i++) four[i] = first + i < EIGHTS ? words[low][first + i] : 0;
      const uint4 vector = turn_words(four);
      if (mine < outputs && at < width && token + 8 * low < a.m) {
        *reinterpret_cast<uint4*>(out + size_t(token + 8 * low) * width + at) = vector;
      }
    }
  }
}

__device__ __forceinline__ void meet_consumers() { asm volatile("bar.sync 1, 256;" ::: "memory"); }
__device__ __forceinline__ void meet_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Outputs of blocks that share a tile's columns: each adds up its share of the tokens.
template <int WIDE, int TEAMS>
__device__ __forceinline__ void broad_share(const Broad<WIDE, TEAMS>& work, uint32_t item, uint32_t ring, float* partial,
                                            const float (&sum)[Broad<WIDE, TEAMS>::MINE / 2]) {
  using Form = Broad<WIDE, TEAMS>;
  const minisgl_broad_args& a = work.a;
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, t = lane % 4;
  const uint32_t here = (TEAMS == 2 ? warp * 16 : warp % 4 * 16) + lane / 4;
  meet_consumers();  // Nobody multiplies any more.
#pragma unroll
  for (uint32_t eight = 0; eight < Form::MINE / 8; eight++) {
    const uint32_t half = broad_half<WIDE, TEAMS>(eight), at = half * Form::HALF + broad_offset<WIDE, TEAMS>(eight) + 2 * t;
    const float* of = sum + 4 * eight;
    *reinterpret_cast<float2*>(partial + here * Form::STRIDE + at) = make_float2(of[0], of[1]);
    *reinterpret_cast<float2*>(partial + (here + 8) * Form::STRIDE + at) = make_float2(of[2], of[3]);
  }
  const uint32_t token = work.token(item), tokens = work.tokens(item);
  const uint32_t begin = tokens * work.rank / work.size, end = tokens * (work.rank + 1) / work.size;
  const uint32_t lanes = (work.gated ? Form::HALF : WIDE) / 4, width = work.gated ? a.n / 2 : a.n;
  const uint32_t column = work.row(item, 0);
  meet_cluster();
#pragma unroll 2
  for (uint32_t i = threadIdx.x; i < (end - begin) * lanes; i += BROAD_CONSUMERS) {
    const uint32_t of = begin + i / lanes, four = i % lanes * 4;
    if (column + four >= width) continue;
    const size_t to = size_t(token + of) * width + column + four;
    uint2 old = make_uint2(0, 0), bias = make_uint2(0, 0);
    if (a.epilogue == MINISGL_SKINNY_ADD) old = *reinterpret_cast<const uint2*>(static_cast<const minisgl_bf16*>(a.out) + to);
    if (a.bias) bias = *reinterpret_cast<const uint2*>(a.bias + column + four);
    const auto scaled = [&](float4 y, uint32_t row) {
      if (a.scale_form != MINISGL_SCALE_ROW) return y;
      const float4 by = *reinterpret_cast<const float4*>(a.scales + row);
      return make_float4(y.x * by.x, y.y * by.y, y.z * by.z, y.w * by.w);
    };
    const uint32_t from = ring + (of * Form::STRIDE + four) * 4;
    float4 y = scaled(sum_of_all(work.size, from), column + four);
    if (work.gated) {
      const float4 up = scaled(sum_of_all(work.size, from + Form::HALF * 4), width + column + four);
      const __nv_bfloat162 low = __halves2bfloat162(minisgl::gated(y.x, up.x, a.gate), minisgl::gated(y.y, up.y, a.gate));
      const __nv_bfloat162 high = __halves2bfloat162(minisgl::gated(y.z, up.z, a.gate), minisgl::gated(y.w, up.w, a.gate));
      *reinterpret_cast<uint2*>(static_cast<minisgl_bf16*>(a.out) + to) =
          make_uint2(reinterpret_cast<const uint32_t&>(low), reinterpret_cast<const uint32_t&>(high));
    } else if (a.epilogue == MINISGL_SKINNY_F32) {
      *reinterpret_cast<float4*>(static_cast<float*>(a.out) + to) = y;
    } else {
      const float2 old_low = two_floats(old.x), old_high = two_floats(old.y);
      const float2 bias_low = two_floats(bias.x), bias_high = two_floats(bias.y);
      *reinterpret_cast<uint2*>(static_cast<minisgl_bf16*>(a.out) + to) =
          make_uint2(two_bf16(y.x + bias_low.x + old_low.x, y.y + bias_low.y + old_low.y),
                     two_bf16(y.z + bias_high.x + old_high.x, y.w + bias_high.y + old_high.y));
    }
  }
}

#endif

}  // namespace minisgl
