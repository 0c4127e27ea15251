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
// Measured (H200, 2026-11-30, docs/benchmarks.md), 32 experts, hidden 2880, with the norm, in a step of 1 row: 7.9 us.
//
// A block has eight experts, its warps share the columns; sixteen rows are multiplied at a time by the tensor cores, and
// gridDim.y blocks share the rows. With few rows the block that is last to store its logits makes the choices; with more the
// blocks wait for each other and share the rows. The last of all makes the plan. The blocks are few enough to be on the
// GPU at once.

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
    last = count_one(arrived) == gridDim.x * gridDim.y - 1;
  }
  __syncthreads();
  return last;
}

// Columns that one step of a warp multiplies: 16 bytes a lane, four lanes a row.
constexpr uint32_t STEP = 32;

// Which steps a lane takes, and where they are.
struct Columns {
  uint32_t hidden, warp, lane;
  __device__ __forceinline__ uint32_t at(uint32_t step) const {
    return (step * ROUTE_WARPS + warp) * STEP + lane % 4 * VEC;
  }
  __device__ __forceinline__ uint32_t steps() const {
    return (hidden + ROUTE_WARPS * STEP - 1) / (ROUTE_WARPS * STEP);
  }
};

// Logits of eight experts and sixteen rows, or eight without MANY. Loops are rolled: most SMs run this for the first time in a
// while, and what costs is to bring the code there.
template <bool MANY>
__device__ __forceinline__ void multiply_rows(const minisgl_router_args& a, const minisgl_bf16* expert, uint32_t first,
                                              bool writes, float (&sum)[4], float (&squares)[16][ROUTE_WARPS]) {
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const Columns columns = {a.hidden, warp, lane};
  const uint32_t steps = columns.steps();
  const uint32_t low_row = min(first + g, a.rows - 1), high_row = min(first + g + 8, a.rows - 1);
  const minisgl_bf16 *low_x = a.x + size_t(low_row) * a.hidden, *high_x = a.x + size_t(high_row) * a.hidden;
  float low_scale = 1.0f, high_scale = 1.0f;
  if (a.norm_weight) {
    float low = 0.0f, high = 0.0f;
    constexpr uint32_t AHEAD = MANY ? 4 : 6;
#pragma unroll 1
    for (uint32_t from = 0; from < steps; from += AHEAD) {
      uint4 x[AHEAD], y[AHEAD];
#pragma unroll
      for (uint32_t i = 0; i < AHEAD; i++) {
        const uint32_t column = columns.at(from + i);
        x[i] = load16(low_x, column, column < a.hidden);
        if (MANY) y[i] = load16(high_x, column, column < a.hidden);
      }
#pragma unroll
      for (uint32_t i = 0; i < AHEAD; i++) {
        low += sum_squares(reinterpret_cast<const Vec8&>(x[i]));
        if (MANY) high += sum_squares(reinterpret_cast<const Vec8&>(y[i]));
      }
    }
    low = sum_lanes<4>(low), high = sum_lanes<4>(high);
    if (t == 0) squares[g][warp] = low, squares[g + 8][warp] = high;
    __syncthreads();
    low = high = 0.0f;
#pragma unroll
    for (uint32_t i = 0; i < ROUTE_WARPS; i++) {
      low += squares[g][i];
      if (MANY) high += squares[g + 8][i];
    }
    low_scale = rsqrtf(low / a.hidden + a.eps), high_scale = rsqrtf(high / a.hidden + a.eps);
  }

  constexpr uint32_t AHEAD = MANY ? 3 : 6;
#pragma unroll 1
  for (uint32_t from = 0; from < steps; from += AHEAD) {
    uint4 low[AHEAD], high[AHEAD], norm[AHEAD], weight[AHEAD];
#pragma unroll
    for (uint32_t i = 0; i < AHEAD; i++) {
      const uint32_t column = columns.at(from + i);
      const bool there = column < a.hidden;
      low[i] = load16(low_x, column, there);
      high[i] = MANY ? load16(high_x, column, there) : make_uint4(0, 0, 0, 0);
      norm[i] = load16(a.norm_weight ? a.norm_weight : a.x, column, there);
      weight[i] = load16(expert, column, there);
    }
#pragma unroll
    for (uint32_t i = 0; i < AHEAD; i++) {
      if (a.norm_weight) {
        const Vec8& by = reinterpret_cast<const Vec8&>(norm[i]);
        reinterpret_cast<Vec8&>(low[i]) = normalise(reinterpret_cast<const Vec8&>(low[i]), by, low_scale);
        if (MANY) reinterpret_cast<Vec8&>(high[i]) = normalise(reinterpret_cast<const Vec8&>(high[i]), by, high_scale);
      }
      mma(sum, low[i].x, high[i].x, low[i].y, high[i].y, weight[i].x, weight[i].y);
      mma(sum, low[i].z, high[i].z, low[i].w, high[i].w, weight[i].z, weight[i].w);
      const uint32_t column = columns.at(from + i);
      if (writes && column < a.hidden) {
        if (first + g < a.rows) *reinterpret_cast<uint4*>(a.normed + size_t(low_row) * a.hidden + column) = low[i];
        if (MANY && first + g + 8 < a.rows) {
          *reinterpret_cast<uint4*>(a.normed + size_t(high_row) * a.hidden + column) = high[i];
        }
      }
    }
  }
}

KERNEL __launch_bounds__(ROUTE_THREADS, 1) minisgl_router(const __grid_constant__ minisgl_router_args a) {
  __shared__ float partial[ROUTE_WARPS][16][8 + 1];
  __shared__ float squares[16][ROUTE_WARPS];
  __shared__ Chosen chosen;
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const uint32_t blocks = gridDim.x * gridDim.y, block = blockIdx.y * gridDim.x + blockIdx.x;

  // Weights depend on no other kernel.
  const minisgl_bf16* expert = a.weight + size_t(min(blockIdx.x * 8 + g, a.experts - 1)) * a.hidden;
  const Columns columns = {a.hidden, warp, lane};
#pragma unroll 1
  for (uint32_t step = 0; step < columns.steps(); step++) {
    const uint32_t column = columns.at(step);
    if (column >= a.hidden) break;
    asm volatile("prefetch.global.L2 [%0];" ::"l"(expert + column));
    if (g == 0 && a.norm_weight) asm volatile("prefetch.global.L2 [%0];" ::"l"(a.norm_weight + column));
  }
  if (threadIdx.x == 0 && a.bias) asm volatile("prefetch.global.L2 [%0];" ::"l"(a.bias + blockIdx.x * 8));
  let_next_start();
  forget(a, chosen);
  wait_for_inputs();

  for (uint32_t first = blockIdx.y * 16; first < a.rows; first += gridDim.y * 16) {
    float sum[4] = {};
    const bool writes = a.normed && first / 16 % gridDim.x == blockIdx.x;
    if (a.rows - first > 8) {
      multiply_rows<true>(a, expert, first, writes, sum, squares);
    } else {
      multiply_rows<false>(a, expert, first, writes, sum, squares);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) partial[warp][g + i / 2 * 8][2 * t + i % 2] = sum[i];
    __syncthreads();
    if (const uint32_t row = first + threadIdx.x / 8, e = blockIdx.x * 8 + threadIdx.x % 8;
        threadIdx.x < 128 && row < a.rows && e < a.experts) {
      float logit = 0.0f;
#pragma unroll
      for (uint32_t i = 0; i < ROUTE_WARPS; i++) logit += partial[i][threadIdx.x / 8][threadIdx.x % 8];
      a.logits[size_t(row) * a.logits_stride + e] = logit + (a.bias ? __bfloat162float(a.bias[e]) : 0.0f);
    }
    __syncthreads();
  }

  const bool last = arrive(a, a.arrived), alone = a.rows <= ROUTE_WARPS;
  if (alone) {
    if (!last) return;
  } else {
    if (threadIdx.x == 0) {
      while (count_of(a.arrived) < blocks) {
      }
    }
    __syncthreads();
  }
  const uint32_t row_first = alone ? warp : warp * blocks + block;
  for (uint32_t row = row_first; row < a.rows; row += alone ? ROUTE_WARPS : ROUTE_WARPS * blocks) {
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
