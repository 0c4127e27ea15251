// Keys of heads of 96 are numbers whatever comes: what is behind a key of that width is read along with it
// (src/attention/wide.rs).
#pragma once

#include "../common.cuh"

namespace minisgl {

// What bf16 holds no number for becomes 0.
__device__ __forceinline__ void keep_numbers(float (&f)[VEC]) {
#pragma unroll
  for (int i = 0; i < VEC; i++) f[i] = fabsf(f[i]) <= 3.3895314e38f ? f[i] : 0.0f;
}

}  // namespace minisgl
