// What the products of some rows with a weight of e4m3 share: how rows and columns are shared out over blocks, and how sums
// of a cluster become outputs.
//
// A cluster owns 256 rows of the weight at a time; its blocks share the columns, 128 at a time. `Args` are a kernel's.
#pragma once

#include "../gate.cuh"
#include "instructions.cuh"

namespace minisgl {

// Groups of four warps that multiply.
[[maybe_unused]] constexpr int GROUPS = 2;
constexpr uint32_t CONSUMERS = 128 * GROUPS;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr uint32_t ROWS = 256, HALF = 128, BLOCK = 128;
constexpr uint32_t STAGES_MAX = 8;
// Floats between two tokens of partial sums: without the 4, four lanes would meet in a bank.
constexpr uint32_t TOKEN_STRIDE = ROWS + 4;

// Which tiles a cluster owns, and which blocks of columns are this block's share.
struct Work {
  uint32_t rank, size, tile, tiles, step, first, count;

  template <class Args>
  __device__ __forceinline__ explicit Work(const Args& a) {
    rank = cluster_rank(), size = cluster_size();
    const uint32_t blocks = (a.k + BLOCK - 1) / BLOCK;
    first = blocks * rank / size, count = blocks * (rank + 1) / size - first;
    tile = blockIdx.x / size, step = gridDim.x / size;
    const uint32_t width = a.epilogue == MINISGL_SKINNY_GATED ? HALF : ROWS;
    tiles = ((a.epilogue == MINISGL_SKINNY_GATED ? a.n / 2 : a.n) + width - 1) / width;
  }
  __device__ __forceinline__ uint32_t rounds() const {
    return tile < tiles ? ((tiles - 1 - tile) / step + 1) * count : 0;
  }
  // The first row of the weight in a half of a tile.
  template <class Args>
  __device__ __forceinline__ uint32_t row(const Args& a, uint32_t of_tile, uint32_t half) const {
    if (a.epilogue == MINISGL_SKINNY_GATED) return of_tile * HALF + (half ? a.n / 2 : 0);
    return of_tile * ROWS + half * HALF;
  }
};

// What belongs to row `row` of the weight.
template <class Args>
__device__ __forceinline__ float row_scale(const Args& a, uint32_t row) {
  return a.scale_form == MINISGL_SCALE_ROW ? a.scales[row] : 1.0f;
}

// Adds up the sums of the cluster for this block's share of the rows of a tile, two at a time, and hands them on.
template <class Args>
__device__ __forceinline__ void finish(const Args& a, const Work& work, uint32_t partial, uint32_t tile) {
  const bool gated = a.epilogue == MINISGL_SKINNY_GATED;
  const uint32_t pairs = (gated ? HALF : ROWS) / 2, width = gated ? a.n / 2 : a.n;
  const uint32_t first = pairs * work.rank / work.size, count = pairs * (work.rank + 1) / work.size - first;
  for (uint32_t at = threadIdx.x; at < count * a.m; at += CONSUMERS) {
    const uint32_t token = at / count, row = (first + at % count) * 2;
    const uint32_t column = tile * (gated ? HALF : ROWS) + row;
    if (column >= width) continue;
    const uint32_t from = partial + (token * TOKEN_STRIDE + row) * 4;
    float2 sum = sum_of_all(work.size, from), up;
    if (gated) up = sum_of_all(work.size, from + HALF * 4);
    sum.x *= row_scale(a, column), sum.y *= row_scale(a, column + 1);
    const size_t to = size_t(token) * width + column;
    if (a.epilogue == MINISGL_SKINNY_F32) {
      *reinterpret_cast<float2*>(static_cast<float*>(a.out) + to) = sum;
      continue;
    }
    __nv_bfloat162* out = reinterpret_cast<__nv_bfloat162*>(static_cast<minisgl_bf16*>(a.out) + to);
    if (gated) {
      up.x *= row_scale(a, width + column), up.y *= row_scale(a, width + column + 1);
      *out = __halves2bfloat162(minisgl::gated(sum.x, up.x, a.gate), minisgl::gated(sum.y, up.y, a.gate));
      continue;
    }
    float2 add = make_float2(0.0f, 0.0f);
    if (a.epilogue == MINISGL_SKINNY_ADD) add = __bfloat1622float2(*out);
    if (a.bias) {
      const float2 bias = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(a.bias + column));
      sum.x += bias.x, sum.y += bias.y;
    }
    *out = __floats2bfloat162_rn(sum.x + add.x, sum.y + add.y);
  }
}

#endif

}  // namespace minisgl
