// The product of skinny_stream.cu for weights so small that the shared memory of the GPU holds all of them:
// then latency is what there is to save.
//
// A block owns TILES tiles of 16 rows. It has them copied before it waits for the kernel before, and then waits
// for nothing but x, which goes straight into the registers that multiply it, eight tokens at a time. Each warp
// multiplies STEPS * 32 columns.

#include "skinny.cuh"

using namespace minisgl;

#if __CUDA_ARCH__ >= 900

template <int TILES, int STEPS>
__device__ __forceinline__ void skinny(const minisgl_skinny_args& a) {
  constexpr uint32_t PART = 8 * TOKEN_STRIDE<TILES>;
  // [TILES * 16] rows of the weight, then partial sums, [groups][WARPS][8][TOKEN_STRIDE].
  extern __shared__ __align__(128) char shared[];
  __shared__ uint64_t full;
  __shared__ float squares[64][WARPS];
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const uint32_t first_tile = blockIdx.x * TILES, groups = (a.m + 7) / 8, pitch = pitch_of(a.k);
  float* partial = reinterpret_cast<float*>(shared + 16 * TILES * pitch);

  // Copy the weight, every warp some rows. Only the last tile of all may be cut, after 8 rows.
  const uint32_t tiles = (a.n + 15) / 16, whole = min(uint32_t(TILES), tiles - first_tile);
  const uint32_t rows = whole * 16 - (a.n % 16 != 0 && first_tile + whole == tiles ? 8 : 0);
  if (threadIdx.x == 0) {
    barrier_init(&full, 1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    barrier_expect(&full, rows * a.k * 2);
  }
  __syncthreads();
  if (const uint32_t row = lane * WARPS + warp; row < rows) {
    const size_t from = size_t(weight_row(a, first_tile + row / 16, row % 16)) * a.k;
    copy_once(shared + row * pitch, a.weight + from, a.k * 2, &full, read_once());
  }

  // A warp takes 64 neighbouring columns in two steps, then those of the next round of warps.
  const auto column_of = [&](int step) { return (step / 2 * WARPS + warp) * 2 * STEP + step % 2 * STEP + t * VEC; };
  uint4 norm[STEPS];
#pragma unroll
  for (int step = 0; step < STEPS; step++) {
    norm[step] = make_uint4(0, 0, 0, 0);
    if (a.norm_weight && column_of(step) < a.k) {
      norm[step] = *reinterpret_cast<const uint4*>(a.norm_weight + column_of(step));
    }
  }
  let_next_start();
  wait_for_inputs();

  uint4 x[STEPS];
  const auto load = [&](uint32_t group) {
    const minisgl_bf16* row = a.x + size_t(min(group * 8 + g, a.m - 1)) * a.k;
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
      x[step] = make_uint4(0, 0, 0, 0);
      if (column_of(step) < a.k) x[step] = *reinterpret_cast<const uint4*>(row + column_of(step));
    }
  };

  // Each warp knows the squares of its columns; the norm wants those of the row.
  if (a.norm_weight) {
#pragma unroll 1
    for (uint32_t group = 0; group < groups; group++) {
      load(group);
      float sum = 0.0f;
#pragma unroll
      for (int step = 0; step < STEPS; step++) sum += sum_squares(reinterpret_cast<const Vec8&>(x[step]));
      sum = sum_lanes<4>(sum);
      if (t == 0) squares[group * 8 + g][warp] = sum;
    }
  }
  const Ahead<1, TILES> ahead(a, first_tile, 0);
  if (a.norm_weight) __syncthreads();

#pragma unroll 1
  for (uint32_t group = groups; group-- > 0;) {
    // With a norm, the last group is still here.
    if (!a.norm_weight || group != groups - 1) load(group);
    if (a.norm_weight) {
      float sum = 0.0f;
#pragma unroll
      for (uint32_t i = 0; i < WARPS; i++) sum += squares[group * 8 + g][i];
      const float scale = norm_scale(a, sum);
#pragma unroll
      for (int step = 0; step < STEPS; step++) {
        reinterpret_cast<Vec8&>(x[step]) =
            normalise(reinterpret_cast<const Vec8&>(x[step]), reinterpret_cast<const Vec8&>(norm[step]), scale);
      }
    }
    barrier_wait(&full, 0);
    float sum[TILES][1][4] = {};
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
      uint4 low[TILES], high[TILES];
      const uint4 token[1] = {x[step]};
      // Behind the last column lies anything, even NaN.
      const bool there = column_of(step) < a.k;
#pragma unroll
      for (int tile = 0; tile < TILES; tile++) {
        const char* row = shared + (tile * 16 + g) * pitch + column_of(step) * 2;
        low[tile] = high[tile] = make_uint4(0, 0, 0, 0);
        if (there) low[tile] = *reinterpret_cast<const uint4*>(row);
        if (there) high[tile] = *reinterpret_cast<const uint4*>(row + 8 * pitch);
      }
      multiply<1, TILES>(sum, low, high, token);
    }
    float* mine = partial + (group * WARPS + warp) * PART;
    each_sum<1, TILES>(a.m - group * 8, sum, [&](uint32_t at, float value) { mine[at] = value; });
  }

  __syncthreads();
  finish<1, TILES>(a, partial, first_tile, 0, ahead);
#pragma unroll 1
  for (uint32_t group = 1; group < groups; group++) {
    const Ahead<1, TILES> more(a, first_tile, group * 8);
    finish<1, TILES>(a, partial + group * WARPS * PART, first_tile, group * 8, more);
  }
}

#else  // No older GPU is given this.

template <int TILES, int STEPS>
__device__ __forceinline__ void skinny(const minisgl_skinny_args&) {
  __trap();
}

#endif

#define SKINNY(TILES, STEPS)                                                    \
  KERNEL __launch_bounds__(CONSUMERS, 2) minisgl_skinny_held_##TILES##_##STEPS( \
      const __grid_constant__ minisgl_skinny_args a) {                          \
    skinny<TILES, STEPS>(a);                                                    \
  }

SKINNY(1, 4)
SKINNY(1, 8)
SKINNY(2, 4)
SKINNY(2, 8)
SKINNY(3, 4)
SKINNY(4, 4)
