// The product of skinny_stream.cu for GPUs without bulk copies (before Hopper), and for what does not fit
// into shared memory: everything goes from global memory to registers.
//
// A block owns one tile of 16 rows of the weight; its warps share the columns.

#pragma once

#include "skinny.cuh"

namespace minisgl {

__device__ __forceinline__ uint4 load16(const void* p, bool there) {
  return there ? *static_cast<const uint4*>(p) : make_uint4(0, 0, 0, 0);
}

template <class W, int GROUPS>
__device__ __forceinline__ void skinny(const minisgl_skinny_args& a) {
  __shared__ float partial[WARPS][GROUPS * 8][TOKEN_STRIDE<1>];
  __shared__ float scales[GROUPS * 8];
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  wait_for_inputs();
  let_next_start();

  // What the norm multiplies each row by.
  if (a.norm_weight) {
    for (uint32_t row = warp; row < a.m; row += WARPS) {
      float sum = 0.0f;
      for (uint32_t at = lane; at < a.k / VEC; at += 32) sum += sum_squares(load8(a.x + size_t(row) * a.k + at * VEC));
      sum = sum_lanes<32>(sum);
      if (lane == 0) scales[row] = norm_scale(a, sum);
    }
    __syncthreads();
  }

  // Rows and tokens that are not there are read as the last one, and not stored.
  const char* rows[2];
#pragma unroll
  for (int i = 0; i < 2; i++) rows[i] = weight_at<W>(a, min(weight_row(a, blockIdx.x, g + 8 * i), a.n - 1), 0);
  const minisgl_bf16* tokens[GROUPS];
#pragma unroll
  for (int i = 0; i < GROUPS; i++) tokens[i] = a.x + size_t(min(i * 8 + g, a.m - 1)) * a.k;

  float sum[1][GROUPS][4] = {};
  [[maybe_unused]] const BlockScales scales_of_rows(a, blockIdx.x);
#pragma unroll 4
  for (uint32_t first = warp * W::STEP; first < a.k; first += WARPS * W::STEP) {
    const uint32_t column = first + t * W::LANE;
    const bool there = column < a.k;
    const uint4 low[1] = {load16(rows[0] + column * W::BYTES, there)}, high[1] = {load16(rows[1] + column * W::BYTES, there)};
    uint4 x[GROUPS][W::LANE / VEC];
#pragma unroll
    for (int v = 0; v < int(W::LANE / VEC); v++) {
#pragma unroll
      for (int i = 0; i < GROUPS; i++) x[i][v] = load16(tokens[i] + column + v * VEC, there);
      if (a.norm_weight && there) {
        const Vec8 weight = load8(a.norm_weight + column + v * VEC);
#pragma unroll
        for (int i = 0; i < GROUPS; i++) {
          const float scale = scales[min(i * 8 + g, a.m - 1)];
          reinterpret_cast<Vec8&>(x[i][v]) = normalise(reinterpret_cast<const Vec8&>(x[i][v]), weight, scale);
        }
      }
    }
    if constexpr (W::BYTES == 2) {
      multiply<GROUPS, 1>(sum, low, high, x);
    } else {
      float part[1][1][GROUPS][4] = {};
      const float none[1][GROUPS][4] = {};
      float2 ones[GROUPS];
#pragma unroll
      for (int i = 0; i < GROUPS; i++) ones[i] = make_float2(1.0f, 1.0f);
      const float2 scale[1] = {scales_of_rows.at(first)};
      multiply_all<false, GROUPS, 1, 1>(part, {{low[0]}}, {{high[0]}}, reinterpret_cast<const uint4(&)[1][GROUPS][2]>(x));
      add_scaled<GROUPS, 1>(sum, part[0], none, scale, ones);
    }
  }

  float* mine = &partial[warp][0][0];
  each_sum<GROUPS, 1>(a.m, sum, [&](uint32_t at, float value) { mine[at] = value; });
  __syncthreads();
  const Ahead<W, GROUPS, 1> ahead(a, blockIdx.x, 0);
  finish<W, GROUPS, 1>(a, &partial[0][0][0], blockIdx.x, 0, ahead);
}

}  // namespace minisgl

#define SKINNY_DIRECT(GROUPS, W, NAME)                                                                 \
  KERNEL __launch_bounds__(CONSUMERS) minisgl_skinny_direct_##GROUPS##NAME(                               \
      const __grid_constant__ minisgl_skinny_args a) {                                                    \
    skinny<W, GROUPS>(a);                                                                                 \
  }
