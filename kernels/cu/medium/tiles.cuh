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

// This block's share of the tokens of a tile. A thread has four neighbouring rows of a token at a time.
template <class Args>
struct Share {
  uint32_t first, end, step, row, column, width;

  __device__ __forceinline__ Share(const Args& a, const Work& work, uint32_t tile) {
    const bool gated = a.epilogue == MINISGL_SKINNY_GATED;
    const uint32_t lanes = (gated ? HALF : ROWS) / 4;
    first = a.m * work.rank / work.size + threadIdx.x / lanes, end = a.m * (work.rank + 1) / work.size;
    step = CONSUMERS / lanes;
    row = threadIdx.x % lanes * 4, column = tile * (gated ? HALF : ROWS) + row;
    width = gated ? a.n / 2 : a.n;
    if (column >= width) end = 0;
  }
  __device__ __forceinline__ size_t place(uint32_t token) const { return size_t(token) * width + column; }
};

__device__ __forceinline__ float4 widen4(uint2 four) {
  const float2 low = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(four.x));
  const float2 high = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(four.y));
  return make_float4(low.x, low.y, high.x, high.y);
}

// What is added to a thread's first outputs of a tile, fetched before the sums are there.
template <class Args>
struct Ahead {
  static constexpr int TURNS = 2;
  uint2 add[TURNS];
  float4 bias;

  __device__ __forceinline__ Ahead(const Args& a, const Share<Args>& share) : add{}, bias{} {
    if (share.first >= share.end) return;
    if (a.bias) bias = widen4(*reinterpret_cast<const uint2*>(a.bias + share.column));
    if (a.epilogue != MINISGL_SKINNY_ADD) return;
#pragma unroll
    for (int turn = 0; turn < TURNS; turn++) {
      const uint32_t token = share.first + turn * share.step;
      if (token < share.end) add[turn] = old(a, share, token);
    }
  }
  __device__ static __forceinline__ uint2 old(const Args& a, const Share<Args>& share, uint32_t token) {
    return *reinterpret_cast<const uint2*>(static_cast<const minisgl_bf16*>(a.out) + share.place(token));
  }
};

// Adds up the sums of the cluster for this block's share, and hands them on: to `hand(token, place, outputs)` if gated.
template <class Args, class Hand>
__device__ __forceinline__ void finish(const Args& a, const Work& work, uint32_t partial, const Share<Args>& share,
                                       const Ahead<Args>& ahead, Hand hand) {
  const bool gated = a.epilogue == MINISGL_SKINNY_GATED;
  const auto scaled = [&](float4 sum, uint32_t row) {
    if (a.scale_form != MINISGL_SCALE_ROW) return sum;
    const float4 by = *reinterpret_cast<const float4*>(a.scales + row);
    return make_float4(sum.x * by.x, sum.y * by.y, sum.z * by.z, sum.w * by.w);
  };
  int turn = 0;
#pragma unroll 2
  for (uint32_t token = share.first; token < share.end; token += share.step, turn++) {
    const uint32_t from = partial + (token * TOKEN_STRIDE + share.row) * 4;
    const size_t to = share.place(token);
    float4 sum = sum_of_all(work.size, from);
    if (gated) {
      const float4 up = scaled(sum_of_all(work.size, from + HALF * 4), share.width + share.column);
      sum = scaled(sum, share.column);
      minisgl_bf16 of[4] = {minisgl::gated(sum.x, up.x, a.gate), minisgl::gated(sum.y, up.y, a.gate),
                            minisgl::gated(sum.z, up.z, a.gate), minisgl::gated(sum.w, up.w, a.gate)};
      const __nv_bfloat162 low = __halves2bfloat162(of[0], of[1]), high = __halves2bfloat162(of[2], of[3]);
      hand(token, to,
           make_uint2(reinterpret_cast<const uint32_t&>(low), reinterpret_cast<const uint32_t&>(high)));
      continue;
    }
    sum = scaled(sum, share.column);
    if (a.epilogue == MINISGL_SKINNY_F32) {
      *reinterpret_cast<float4*>(static_cast<float*>(a.out) + to) = sum;
      continue;
    }
    float4 add = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (a.epilogue == MINISGL_SKINNY_ADD) {
      add = widen4(turn == 0 ? ahead.add[0] : turn == 1 ? ahead.add[1] : Ahead<Args>::old(a, share, token));
    }
    const float4 b = ahead.bias;
    const __nv_bfloat162 low = __floats2bfloat162_rn(sum.x + b.x + add.x, sum.y + b.y + add.y);
    const __nv_bfloat162 high = __floats2bfloat162_rn(sum.z + b.z + add.z, sum.w + b.w + add.w);
    *reinterpret_cast<uint2*>(static_cast<minisgl_bf16*>(a.out) + to) =
        make_uint2(reinterpret_cast<const uint32_t&>(low), reinterpret_cast<const uint32_t&>(high));
  }
}

// Gated outputs as they are.
template <class Args>
__device__ __forceinline__ void put(const Args& a, size_t to, uint2 four) {
  *reinterpret_cast<uint2*>(static_cast<minisgl_bf16*>(a.out) + to) = four;
}

#endif

}  // namespace minisgl
