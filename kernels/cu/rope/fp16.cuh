// Eight floats as fp16, clipped to what it can hold, NaN as NaN: one 16-byte store.
#pragma once

#include "../common.cuh"

#include <cuda_fp16.h>

namespace minisgl {

__device__ __forceinline__ void store8_fp16(__half* to, const float (&f)[VEC]) {
  const auto clipped = [](float x) { return x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x; };
  alignas(16) __half2 pair[4];
#pragma unroll
  for (int i = 0; i < 4; i++) pair[i] = __floats2half2_rn(clipped(f[2 * i]), clipped(f[2 * i + 1]));
  *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(pair);
}

}  // namespace minisgl
