// Eight values as codes of e4m3, as all kernels make them.
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

__device__ __forceinline__ uint2 narrow(const Vec8& y, float scale) {
  float f[VEC];
  unpack(y, f);
  // Of scales so small that they have no inverse, zeros shall stay zeros.
  const float up = scale > 0.0f ? fminf(1.0f / scale, 3.0e38f) : 0.0f;
  __nv_fp8x2_storage_t two[4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    two[i] = __nv_cvt_float2_to_fp8x2(make_float2(f[2 * i] * up, f[2 * i + 1] * up), __NV_SATFINITE, __NV_E4M3);
  }
  return make_uint2(two[0] | uint32_t(two[1]) << 16, two[2] | uint32_t(two[3]) << 16);
}

}  // namespace minisgl
