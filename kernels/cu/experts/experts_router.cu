// The router of a mixture of experts for few rows, in one launch: logits, choice, plan.
//
//   logits[r, e] = x[r, :] . weight[e, :] + bias[e]             x = rms_norm(residual) * norm_weight, if asked for
//   softmax: the `top` largest logits; weights softmax over all experts, or over the chosen if renormalised
//   sigmoid: the `top` largest of sigmoid(logit) + correction; weights the sigmoids, over their sum if renormalised
//   both times `scale`. Equal scores go to the lower index; NaN counts as -inf.
//
// Shapes: x bf16 [rows, hidden], weight bf16 [experts, hidden], f32 sums and outputs; rows up to 64, experts up to
// 512, top up to 16. A row that `there` marks as padding gets ids of -1 and is in no plan.
// Bytes moved: 2 * experts * hidden, fetched before the kernel before has ended. Bound: latency.
// Measured (H200, 2026-11-29, docs/benchmarks.md), 128 experts, hidden 2048: 5.1 us at 1 row, 8.2 with the norm; 9.2 and
// 16.5 at 32 rows.
//
// A block has eight experts, its warps share the columns; sixteen rows at a time are multiplied by the tensor cores. With
// few rows the block that is last to store its logits makes the choices; with more the blocks wait for each other
// and share the rows. The last of all makes the plan. The blocks are few enough to be on the GPU at once.

#include "route.cuh"

using namespace minisgl;

// Never a branch, so that loads are not kept apart.
__device__ __forceinline__ uint4 load16(const minisgl_bf16* row, uint32_t column, bool there) {
  uint4 x = *reinterpret_cast<const uint4*>(row + (there ? column : 0));
  x.x = there ? x.x : 0, x.y = there ? x.y : 0, x.z = there ? x.z : 0, x.w = there ? x.w : 0;
  return x;
}

// Counts the blocks that have come here, after all that this block wrote. True for the last.
__device__ __forceinline__ bool arrive(const minisgl_router_args& a, uint32_t* arrived) {
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) {
    last = count_one(arrived) == gridDim.x - 1;
  }
  __syncthreads();
  return last;
}

// Columns that one step of a warp multiplies: 16 bytes a lane, four lanes a row.
constexpr uint32_t STEP = 32;

template <int STEPS>
__device__ __forceinline__ void router(const minisgl_router_args& a) {
  __shared__ float partial[WARPS][16][8 + 1];
  __shared__ float squares[16][WARPS];
  __shared__ Chosen chosen;
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const auto column_of = [&](int step) { return (step * WARPS + warp) * STEP + t * VEC; };

  // Weights depend on no other kernel.
  uint4 weight[STEPS];
  const minisgl_bf16* expert = a.weight + size_t(min(blockIdx.x * 8 + g, a.experts - 1)) * a.hidden;
#pragma unroll
  for (int step = 0; step < STEPS; step++) {
    weight[step] = load16(expert, column_of(step), column_of(step) < a.hidden);
  }
  if (a.norm_weight) {
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
      if (column_of(step) < a.hidden) asm volatile("prefetch.global.L2 [%0];" ::"l"(a.norm_weight + column_of(step)));
    }
  }
  let_next_start();
  forget(a, chosen);
  wait_for_inputs();

  for (uint32_t first = 0; first < a.rows; first += 16) {
    const uint32_t low_row = min(first + g, a.rows - 1), high_row = min(first + g + 8, a.rows - 1);
    const minisgl_bf16 *low_x = a.x + size_t(low_row) * a.hidden, *high_x = a.x + size_t(high_row) * a.hidden;
    const bool many = a.rows - first > 8;  // Else the upper eight rows are not there.
    float low_scale = 1.0f, high_scale = 1.0f;
    if (a.norm_weight) {
      float low = 0.0f, high = 0.0f;
#pragma unroll 8
      for (int step = 0; step < STEPS; step++) {
        const bool there = column_of(step) < a.hidden;
        const uint4 x = load16(low_x, column_of(step), there), y = load16(high_x, column_of(step), there && many);
        low += sum_squares(reinterpret_cast<const Vec8&>(x)), high += sum_squares(reinterpret_cast<const Vec8&>(y));
      }
      low = sum_lanes<4>(low), high = sum_lanes<4>(high);
      if (t == 0) squares[g][warp] = low, squares[g + 8][warp] = high;
      __syncthreads();
      low = high = 0.0f;
#pragma unroll
      for (uint32_t i = 0; i < WARPS; i++) low += squares[g][i], high += squares[g + 8][i];
      low_scale = rsqrtf(low / a.hidden + a.eps), high_scale = rsqrtf(high / a.hidden + a.eps);
    }

    float sum[4] = {};
    const bool writes = a.normed && first / 16 % gridDim.x == blockIdx.x;
    constexpr int AHEAD = 4;
#pragma unroll
    for (int from = 0; from < STEPS; from += AHEAD) {
      uint4 low[AHEAD], high[AHEAD], norm[AHEAD];
#pragma unroll
      for (int i = 0; i < AHEAD; i++) {
        const uint32_t column = column_of(from + i);
        const bool there = column < a.hidden;
        low[i] = load16(low_x, column, there), high[i] = load16(high_x, column, there && many);
        norm[i] = load16(a.norm_weight ? a.norm_weight : a.x, column, there);
      }
      if (a.norm_weight) {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
          const Vec8& by = reinterpret_cast<const Vec8&>(norm[i]);
          reinterpret_cast<Vec8&>(low[i]) = normalise(reinterpret_cast<const Vec8&>(low[i]), by, low_scale);
          reinterpret_cast<Vec8&>(high[i]) = normalise(reinterpret_cast<const Vec8&>(high[i]), by, high_scale);
        }
      }
#pragma unroll
      for (int i = 0; i < AHEAD; i++) {
        mma(sum, low[i].x, high[i].x, low[i].y, high[i].y, weight[from + i].x, weight[from + i].y);
        mma(sum, low[i].z, high[i].z, low[i].w, high[i].w, weight[from + i].z, weight[from + i].w);
      }
      if (writes) {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
          const uint32_t column = column_of(from + i);
          if (column >= a.hidden) continue;
          if (first + g < a.rows) *reinterpret_cast<uint4*>(a.normed + size_t(low_row) * a.hidden + column) = low[i];
          if (first + g + 8 < a.rows) *reinterpret_cast<uint4*>(a.normed + size_t(high_row) * a.hidden + column) = high[i];
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) partial[warp][g + i / 2 * 8][2 * t + i % 2] = sum[i];
    __syncthreads();
    if (const uint32_t row = first + threadIdx.x / 8, e = blockIdx.x * 8 + threadIdx.x % 8;
        threadIdx.x < 128 && row < a.rows && e < a.experts) {
      float logit = 0.0f;
#pragma unroll
      for (uint32_t i = 0; i < WARPS; i++) logit += partial[i][threadIdx.x / 8][threadIdx.x % 8];
      a.logits[size_t(row) * a.logits_stride + e] = logit + (a.bias ? __bfloat162float(a.bias[e]) : 0.0f);
    }
    __syncthreads();
  }

  const bool last = arrive(a, a.arrived), alone = a.rows <= ROUTE_WARPS;
  if (alone) {
    if (!last) return;
  } else {
    if (threadIdx.x == 0) {
      while (count_of(a.arrived) < gridDim.x) {
      }
    }
    __syncthreads();
  }
  const uint32_t row_first = alone ? warp : warp * gridDim.x + blockIdx.x;
  for (uint32_t row = row_first; row < a.rows; row += alone ? WARPS : WARPS * gridDim.x) {
    const int32_t choice = choose_row(a, row);
    if (alone && lane < a.top) remember(chosen, row, lane, choice);
  }
  if (alone) {
    __syncthreads();
  } else {
    if (!arrive(a, a.arrived + 1)) return;
    recall(a, 0, a.rows, chosen);
  }
  if (threadIdx.x == 0) a.arrived[0] = a.arrived[1] = 0;
  arrange(a, chosen, true, [&](uint32_t e) { return rows_of(chosen, e); }, [](uint32_t) { return 0u; });
  place(a, 0, a.rows, chosen);
}

#define ROUTER(STEPS)                                                                                                  \
  KERNEL __launch_bounds__(ROUTE_THREADS, 1) minisgl_router_##STEPS(const __grid_constant__ minisgl_router_args a) { \
    router<STEPS>(a);                                                                                                  \
  }

ROUTER(8)
ROUTER(16)
ROUTER(32)
