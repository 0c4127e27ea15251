// Values as codes of e4m3, as all kernels make them.
#pragma once

#include <cuda_fp8.h>

#include "../common.cuh"

namespace minisgl {

// The largest value of e4m3.
constexpr float LARGEST = 448.0f;

__device__ __forceinline__ float max_of(const Vec8& y) {
  float f[VEC], largest = 0.0f;
  unpack(y, f);
#pragma unroll
  for (int i = 0; i < VEC; i++) largest = fmaxf(largest, fabsf(f[i]));
  return largest;
}

// What values are multiplied by. Of scales so small that they have no inverse, zeros shall stay zeros.
__device__ __forceinline__ float inverse_of(float scale) { return scale > 0.0f ? fminf(1.0f / scale, 3.0e38f) : 0.0f; }

__device__ __forceinline__ uint32_t narrow4(const float4& y, float up) {
  const uint32_t low = __nv_cvt_float2_to_fp8x2(make_float2(y.x * up, y.y * up), __NV_SATFINITE, __NV_E4M3);
  const uint32_t high = __nv_cvt_float2_to_fp8x2(make_float2(y.z * up, y.w * up), __NV_SATFINITE, __NV_E4M3);
  return low | high << 16;
}

__device__ __forceinline__ uint2 narrow(const Vec8& y, float scale) {
  float f[VEC];
  unpack(y, f);
  const float up = inverse_of(scale);
  return make_uint2(narrow4(make_float4(f[0], f[1], f[2], f[3]), up), narrow4(make_float4(f[4], f[5], f[6], f[7]), up));
}

}  // namespace minisgl
