// The product of skinny_stream.cu for weights so small that the shared memory of the GPU holds all of them:
// then latency is what there is to save.
//
// A block owns TILES tiles of 16 rows. It has them copied before it waits for the kernel before, and then waits
// for nothing but x, which goes straight into the registers that multiply it, eight tokens at a time. Each warp
// multiplies STEPS * 32 columns, of e4m3 STEPS * 64.

#pragma once

#include "skinny.cuh"

namespace minisgl {

#if __CUDA_ARCH__ >= 900

template <class W, int TILES, int STEPS>
__device__ __forceinline__ void skinny(const minisgl_skinny_args& a) {
  constexpr uint32_t PART = 8 * TOKEN_STRIDE<TILES>;
  constexpr int VECTORS = W::LANE / VEC;
  // More columns leave the norm no registers.
  constexpr bool NORMS = STEPS * W::STEP <= 256;
  // [TILES * 16] rows of the weight, then partial sums, [groups][WARPS][8][TOKEN_STRIDE].
  extern __shared__ __align__(128) char shared[];
  __shared__ uint64_t full;
  __shared__ float squares[64][WARPS];
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const uint32_t first_tile = blockIdx.x * TILES, groups = (a.m + 7) / 8, pitch = pitch_of<W>(a.k);
  float* partial = reinterpret_cast<float*>(shared + 16 * TILES * pitch);

  // Copy the weight, every warp some rows. Only the last tile of all may be cut, after 8 rows.
  const uint32_t tiles = (a.n + 15) / 16, whole = min(uint32_t(TILES), tiles - first_tile);
  const uint32_t rows = whole * 16 - (a.n % 16 != 0 && first_tile + whole == tiles ? 8 : 0);
  if (threadIdx.x == 0) {
    barrier_init(&full, 1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    barrier_expect(&full, rows * a.k * W::BYTES);
  }
  __syncthreads();
  if (const uint32_t row = lane * WARPS + warp; row < rows) {
    const char* from = weight_at<W>(a, weight_row(a, first_tile + row / 16, row % 16), 0);
    copy_once(shared + row * pitch, from, a.k * W::BYTES, &full, read_once());
  }

  // A warp takes neighbouring columns in two steps, then those of the next round of warps.
  const auto step_at = [&](int step) { return (step / 2 * WARPS + warp) * 2 * W::STEP + step % 2 * W::STEP; };
  const auto column_of = [&](int step) { return step_at(step) + t * W::LANE; };
  uint4 norm[STEPS][VECTORS];
#pragma unroll
  for (int step = 0; step < STEPS; step++) {
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
      norm[step][v] = make_uint4(0, 0, 0, 0);
      if (NORMS && a.norm_weight && column_of(step) < a.k) {
        norm[step][v] = *reinterpret_cast<const uint4*>(a.norm_weight + column_of(step) + v * VEC);
      }
    }
  }
  // Two steps of e4m3 are a block of columns.
  float2 scale[STEPS / 2][TILES];
  if constexpr (W::BYTES == 1) {
#pragma unroll
    for (int pair = 0; pair < STEPS / 2; pair++) {
#pragma unroll
      for (int tile = 0; tile < TILES; tile++) {
        scale[pair][tile] = BlockScales(a, first_tile + tile).at(step_at(2 * pair));
      }
    }
  }
  let_next_start();
  wait_for_inputs();

  uint4 x[STEPS][1][VECTORS];
  const auto load = [&](uint32_t group) {
    const minisgl_bf16* row = a.x + size_t(min(group * 8 + g, a.m - 1)) * a.k;
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
#pragma unroll
      for (int v = 0; v < VECTORS; v++) {
        x[step][0][v] = make_uint4(0, 0, 0, 0);
        if (column_of(step) < a.k) x[step][0][v] = *reinterpret_cast<const uint4*>(row + column_of(step) + v * VEC);
      }
    }
  };

  // Each warp knows the squares of its columns; the norm wants those of the row.
  if (NORMS && a.norm_weight) {
#pragma unroll 1
    for (uint32_t group = 0; group < groups; group++) {
      load(group);
      float sum = 0.0f;
#pragma unroll
      for (int step = 0; step < STEPS; step++) {
#pragma unroll
        for (int v = 0; v < VECTORS; v++) sum += sum_squares(reinterpret_cast<const Vec8&>(x[step][0][v]));
      }
      sum = sum_lanes<4>(sum);
      if (t == 0) squares[group * 8 + g][warp] = sum;
    }
  }
  const Ahead<W, 1, TILES> ahead(a, first_tile, 0);
  if (NORMS && a.norm_weight) __syncthreads();

#pragma unroll 1
  for (uint32_t group = groups; group-- > 0;) {
    // With a norm, the last group is still here.
    if (!NORMS || !a.norm_weight || group != groups - 1) load(group);
    if (NORMS && a.norm_weight) {
      float sum = 0.0f;
#pragma unroll
      for (uint32_t i = 0; i < WARPS; i++) sum += squares[group * 8 + g][i];
      const float factor = norm_scale(a, sum);
#pragma unroll
      for (int step = 0; step < STEPS; step++) {
#pragma unroll
        for (int v = 0; v < VECTORS; v++) {
          Vec8& one = reinterpret_cast<Vec8&>(x[step][0][v]);
          one = normalise(one, reinterpret_cast<const Vec8&>(norm[step][v]), factor);
        }
      }
    }
    barrier_wait(&full, 0);
    float sum[TILES][1][4] = {};
    // Behind the last column lies anything, even NaN.
    const auto fetch = [&](uint4(&low)[TILES], uint4(&high)[TILES], int step) {
      const bool there = column_of(step) < a.k;
#pragma unroll
      for (int tile = 0; tile < TILES; tile++) {
        const char* row = shared + (tile * 16 + g) * pitch + column_of(step) * W::BYTES;
        low[tile] = high[tile] = make_uint4(0, 0, 0, 0);
        if (there) low[tile] = *reinterpret_cast<const uint4*>(row);
        if (there) high[tile] = *reinterpret_cast<const uint4*>(row + 8 * pitch);
      }
    };
    if constexpr (W::BYTES == 2) {
#pragma unroll
      for (int step = 0; step < STEPS; step++) {
        uint4 low[TILES], high[TILES];
        fetch(low, high, step);
        multiply<1, TILES>(sum, low, high, x[step]);
      }
    } else {
#pragma unroll
      for (int pair = 0; pair < STEPS / 2; pair++) {
        uint4 low[2][TILES], high[2][TILES];
        // The block's columns of a token are with four lanes.
        float largest = 0.0f;
#pragma unroll
        for (int i = 0; i < 2 * VECTORS; i++) {
          largest = fmaxf(largest, largest_of(reinterpret_cast<const Vec8&>(x[2 * pair + i / VECTORS][0][i % VECTORS])));
        }
        const float of_mine = half_factor(largest_of_lanes<4>(largest));
        uint4 token[2][1][VECTORS];
#pragma unroll
        for (int i = 0; i < 2 * VECTORS; i++) {
          const uint4& from = x[2 * pair + i / VECTORS][0][i % VECTORS];
          token[i / VECTORS][0][i % VECTORS] = to_half(reinterpret_cast<const Vec8&>(from), of_mine);
        }
        const float2 factor[1] = {{__shfl_sync(~0u, of_mine, 8 * t), __shfl_sync(~0u, of_mine, 8 * t + 4)}};
#pragma unroll
        for (int i = 0; i < 2; i++) fetch(low[i], high[i], 2 * pair + i);
        float part[2][TILES][1][4] = {};
        multiply_all<true, 1, TILES, 2>(part, low, high, token);
        add_scaled<1, TILES>(sum, part[0], part[1], scale[pair], factor);
      }
    }
    float* mine = partial + (group * WARPS + warp) * PART;
    each_sum<1, TILES>(a.m - group * 8, sum, [&](uint32_t at, float value) { mine[at] = value; });
  }

  __syncthreads();
  finish<W, 1, TILES>(a, partial, first_tile, 0, ahead);
#pragma unroll 1
  for (uint32_t group = 1; group < groups; group++) {
    const Ahead<W, 1, TILES> more(a, first_tile, group * 8);
    finish<W, 1, TILES>(a, partial + group * WARPS * PART, first_tile, group * 8, more);
  }
}

#else  // No older GPU is given this.

template <class W, int TILES, int STEPS>
__device__ __forceinline__ void skinny(const minisgl_skinny_args&) {
  __trap();
}

#endif

}  // namespace minisgl

#define SKINNY_HELD(TILES, STEPS, W, NAME)                                              \
  KERNEL __launch_bounds__(CONSUMERS, 2) minisgl_skinny_held_##TILES##_##STEPS##NAME( \
      const __grid_constant__ minisgl_skinny_args a) {                                \
    skinny<W, TILES, STEPS>(a);                                                       \
  }
