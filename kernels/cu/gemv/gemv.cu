// Product of one row with a weight of e4m3, at the speed of reading the weight once.
//
//   out[n] = x[k] * weight[n, k]^T                        x = rms_norm(residual) * norm_weight, if asked for
//   then: + bias, or as f32, or out += , or silu(gate) * up
//
// Shapes: x bf16, weight e4m3 with a scale for a row or for 128 x 128, f32 sums. The weight is widened to fp16, exactly; so is x,
// each 128 columns under a power of two of their own, by which bf16 loses nothing that counts. k up to 25,600.
// Bytes moved: n k; FLOPs 2 n k. Bound: read bandwidth.
// Measured (one H200, 4.6 TB/s, 2026-11-30, a step of Qwen3-32B): 51200 x 5120 gated 59.0 us (97 % of the read bandwidth), 10240 x 5120
// 11.9, both with the norm; 5120 x 8192 11.0; 5120 x 25600 32.9 (87 %).
//
// A block has neighbouring rows of the weight, whole ones, so that a stage of its ring is one piece of memory, and a copy. Its warps
// share the columns, 512 of each STEPS times, and keep those of x in registers; none of them waits for another before all rows
// are through. Two blocks are on a multiprocessor: when the first ends, one of the next kernel takes its place and
// fills its ring.

#include "../skinny/skinny.cuh"

namespace minisgl {

[[maybe_unused]] constexpr uint32_t STAGES_MAX = 16;
// Columns that a warp multiplies in a step: 16 of each lane.
[[maybe_unused]] constexpr uint32_t STEP = 512;

#if __CUDA_ARCH__ >= 900

// What a block multiplies: outputs from `first` on, ROWS rows of the weight a stage. Gated, an output is two rows: a stage has as
// many of the gate and then of `up`.
template <int ROWS>
struct Share {
  uint32_t first, last, span, stages;

  __device__ __forceinline__ explicit Share(const minisgl_skinny_args& a) {
    const bool gated = a.epilogue == MINISGL_SKINNY_GATED;
    const uint32_t outputs = gated ? a.n / 2 : a.n;
    first = uint64_t(outputs) * blockIdx.x / gridDim.x;
    last = uint64_t(outputs) * (blockIdx.x + 1) / gridDim.x;
    span = gated ? ROWS / 2 : ROWS;
    stages = (last - first + span - 1) / span;
  }
  // Which row of the weight is row `row` of the stage that begins with output `start`.
  __device__ __forceinline__ uint32_t weight_row(const minisgl_skinny_args& a, uint32_t start, uint32_t row) const {
    const bool up = a.epilogue == MINISGL_SKINNY_GATED && 2 * row >= ROWS;
    return up ? a.n / 2 + start + row - ROWS / 2 : start + row;
  }
};

// A place in the ring, and the phase of its barriers.
struct Place {
  uint32_t at = 0, phase = 0;
  __device__ __forceinline__ void next(uint32_t stages) {
    if (++at == stages) at = 0, phase ^= 1;
  }
};

// Copies a stage after the other, as long as the ring has room. Weights depend on nothing: it does not wait for the kernel
// before.
template <int ROWS>
__device__ __forceinline__ void copy_rows(const minisgl_skinny_args& a, const Share<ROWS>& share, char* ring,
                                          uint64_t* full, uint64_t* empty) {
  if (threadIdx.x % 32 != 0) return;
  const uint64_t policy = read_once();
  const bool gated = a.epilogue == MINISGL_SKINNY_GATED;
  Place place;
  uint32_t start = share.first;
  for (uint32_t i = 0; i < share.stages; i++, start += share.span) {
    if (i >= a.stages) barrier_wait(&empty[place.at], place.phase ^ 1);
    const uint32_t bytes = min(share.span, share.last - start) * a.k;
    char* to = ring + place.at * ROWS * a.k;
    barrier_expect(&full[place.at], gated ? 2 * bytes : bytes);
    copy_once(to, weight_at<E4m3>(a, start, 0), bytes, &full[place.at], policy);
    if (ROWS > 1 && gated) {
      copy_once(to + ROWS / 2 * a.k, weight_at<E4m3>(a, a.n / 2 + start, 0), bytes, &full[place.at], policy);
    }
    place.next(a.stages);
  }
}

__device__ __forceinline__ void consumers_meet(uint32_t warps) {
  asm volatile("bar.sync 1, %0;" ::"r"(warps * 32) : "memory");
}

// The largest value of a block of columns, which eight lanes have.
__device__ __forceinline__ float largest_of_block(const Vec8 (&x)[2]) {
  __nv_bfloat162 most = __habs2(x[0].pair[0]);
#pragma unroll
  for (int i = 1; i < 8; i++) most = __hmax2(most, __habs2(x[i / 4].pair[i % 4]));
#pragma unroll
  for (int step = 4; step > 0; step /= 2) most = __hmax2(most, __shfl_xor_sync(~0u, most, step));
  const float2 two = __bfloat1622float2(most);
  return fmaxf(two.x, two.y);
}

// Brings the lane's columns of x as fp16. `factors` is [STEPS * warps][4]: what undoes the power of two of each block of them.
template <int STEPS>
__device__ __forceinline__ void fetch_x(const minisgl_skinny_args& a, uint32_t warps, const Vec8 (&norm)[STEPS][2],
                                        float* squares, float* factors, uint4 (&to)[STEPS][2]) {
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  Vec8 x[STEPS][2];
#pragma unroll
  for (int s = 0; s < STEPS; s++) {
    const uint32_t column = (s * warps + warp) * STEP + lane * 16;
#pragma unroll
    for (int v = 0; v < 2; v++) {
      x[s][v] = Vec8{};
      if (column < a.k) x[s][v] = load8(a.x + column + v * VEC);
    }
  }
  if (STEPS <= 2 && a.norm_weight) {
    float sum = 0.0f;
#pragma unroll
    for (int s = 0; s < STEPS; s++) sum += sum_squares(x[s][0]) + sum_squares(x[s][1]);
    sum = sum_lanes<32>(sum);
    if (lane == 0) squares[warp] = sum;
    consumers_meet(warps);
    sum = sum_lanes<32>(lane < warps ? squares[lane] : 0.0f);
    const float scale = norm_scale(a, sum);
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
#pragma unroll
      for (int v = 0; v < 2; v++) x[s][v] = normalise(x[s][v], norm[s][v], scale);
    }
  }
#pragma unroll
  for (int s = 0; s < STEPS; s++) {
    const float factor = half_factor(largest_of_block(x[s]));
    to[s][0] = to_half(x[s][0], factor), to[s][1] = to_half(x[s][1], factor);
    if (lane % 8 == 0) factors[(s * warps + warp) * 4 + lane / 8] = factor;
  }
  __syncwarp();
}

// What the lane has of ROWS rows, `scale` times. Lane 4 g + t brings 16 columns of each row and of x; as operands, rows g of the
// weight are the g-th 64 columns of a row (rows g + 8 those of another row), and so is token g of x. So the sum of these columns
// is in row g of token g, with the lane where t is g / 2; what the others have is of no use. Neighbouring lanes read neighbouring
// bytes, and x is where it is wanted.
template <int ROWS, int STEPS>
__device__ __forceinline__ void multiply_rows(float (&sum)[ROWS], const uint4 (&w)[ROWS][STEPS],
                                              const uint4 (&x)[STEPS][2], const float (&scale)[ROWS][STEPS], bool odd) {
  constexpr int TWO = ROWS > 1 ? 2 : 1, PAIRS = ROWS / TWO;
  float part[STEPS][PAIRS][4] = {};
#pragma unroll
  for (int s = 0; s < STEPS; s++) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const uint4 b = x[s][i / 2];
#pragma unroll
      for (int pair = 0; pair < PAIRS; pair++) {
        const auto four = [&](const uint4& from) { return i == 0 ? from.x : i == 1 ? from.y : i == 2 ? from.z : from.w; };
        const uint2 l = widen_half(four(w[TWO * pair][s]));
        uint2 h = make_uint2(0, 0);
        if (TWO == 2) h = widen_half(four(w[TWO * pair + TWO - 1][s]));
        mma_half(part[s][pair], l.x, h.x, l.y, h.y, i % 2 ? b.z : b.x, i % 2 ? b.w : b.y);
      }
    }
  }
#pragma unroll
  for (int row = 0; row < ROWS; row++) {
    sum[row] = 0.0f;
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
      const float(&of)[4] = part[s][row / TWO];
      sum[row] += (row % TWO ? (odd ? of[3] : of[2]) : (odd ? of[1] : of[0])) * scale[row][s];
    }
  }
}

// What eight lanes have of each row, of 32 rows, until one lane adds it up. [slots][8 lanes][ROWS] floats, with space behind each
// slot so that the lanes that add are in banks of their own.
constexpr uint32_t HELD = 32 * 9;
template <int ROWS>
constexpr uint32_t SLOTS = 32 / ROWS;
template <int ROWS>
constexpr uint32_t SLOT = 9 * ROWS;

template <int ROWS>
__device__ __forceinline__ void hold(float* held, uint32_t slot, const float (&sum)[ROWS]) {
  const uint32_t lane = threadIdx.x % 32;
  if (lane % 4 != lane / 8) return;
  float* to = held + slot * SLOT<ROWS> + lane / 4 * ROWS;
  if constexpr (ROWS == 4) *reinterpret_cast<float4*>(to) = make_float4(sum[0], sum[1], sum[2], sum[3]);
  if constexpr (ROWS == 2) *reinterpret_cast<float2*>(to) = make_float2(sum[0], sum[1]);
  if constexpr (ROWS == 1) *to = sum[0];
}

template <int ROWS>
__device__ __forceinline__ void add_held(const float* held, float* to, uint32_t rows) {
  const uint32_t lane = threadIdx.x % 32;
  __syncwarp();
  const float* from = held + lane / ROWS * SLOT<ROWS> + lane % ROWS;
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 8; i++) sum += from[i * ROWS];
  if (lane < rows) to[lane] = sum;
  __syncwarp();
}

// The scales of a stage's rows. Lanes that hold no sum of their own columns have one too.
template <int ROWS, int STEPS>
__device__ __forceinline__ void fetch_scales(const minisgl_skinny_args& a, const Share<ROWS>& share, uint32_t warps,
                                             uint32_t start, float (&scale)[ROWS][STEPS]) {
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t blocks = (a.k + BLOCK - 1) / BLOCK, stride = round_up(blocks, MINISGL_SCALE_UNIT);
#pragma unroll
  for (int row = 0; row < ROWS; row++) {
    const uint32_t at = min(share.weight_row(a, start, row), a.n - 1) / BLOCK;
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
      scale[row][s] = 1.0f;
      if (a.scale_form != MINISGL_SCALE_BLOCK) continue;
      scale[row][s] = a.scales[size_t(at) * stride + min((s * warps + warp) * 4 + lane / 8, blocks - 1)];
    }
  }
}

// Brings those of later stages into the second cache.
template <int ROWS>
__device__ __forceinline__ void expect_scales(const minisgl_skinny_args& a, const Share<ROWS>& share, uint32_t warps) {
  if (a.scale_form != MINISGL_SCALE_BLOCK) return;
  const uint32_t blocks = (a.k + BLOCK - 1) / BLOCK, stride = round_up(blocks, MINISGL_SCALE_UNIT);
  const uint32_t lines = (blocks + 31) / 32;
  const bool gated = a.epilogue == MINISGL_SKINNY_GATED;
  for (uint32_t half = 0; half < 1 + gated; half++) {
    const uint32_t first = (share.first + half * (a.n / 2)) / BLOCK, last = (share.last - 1 + half * (a.n / 2)) / BLOCK;
    for (uint32_t i = threadIdx.x; i < (last - first + 1) * lines; i += warps * 32) {
      const float* line = a.scales + size_t(first + i / lines) * stride + min(i % lines * 32, blocks - 1);
      asm volatile("prefetch.global.L2 [%0];" ::"l"(line));
    }
  }
}

// Scales that undo the power of two of x as well.
template <int ROWS, int STEPS>
__device__ __forceinline__ void times_factors(const float* factors, uint32_t warps, float (&scale)[ROWS][STEPS]) {
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int s = 0; s < STEPS; s++) {
    const float factor = factors[(s * warps + warp) * 4 + lane / 8];
#pragma unroll
    for (int row = 0; row < ROWS; row++) scale[row][s] *= factor;
  }
}

// A norm is for rows that one or two steps hold.
template <int STEPS>
__device__ __forceinline__ void fetch_norm(const minisgl_skinny_args& a, uint32_t warps, Vec8 (&norm)[STEPS][2]) {
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int s = 0; s < STEPS; s++) {
    const uint32_t column = (s * warps + warp) * STEP + lane * 16;
#pragma unroll
    for (int v = 0; v < 2; v++) {
      norm[s][v] = Vec8{};
      if (STEPS <= 2 && a.norm_weight && column < a.k) norm[s][v] = load8(a.norm_weight + column + v * VEC);
    }
  }
}

// What an output is added to.
__device__ __forceinline__ float summand(const minisgl_skinny_args& a, uint32_t column) {
  float add = a.bias ? __bfloat162float(a.bias[column]) : 0.0f;
  if (a.epilogue == MINISGL_SKINNY_ADD) add += __bfloat162float(static_cast<const minisgl_bf16*>(a.out)[column]);
  return add;
}

// Adds up what the warps have, in their order. `partial` is [warps][stages * ROWS].
template <int ROWS>
__device__ __forceinline__ void finish_outputs(const minisgl_skinny_args& a, const Share<ROWS>& share, uint32_t warps,
                                               const float* partial, float ahead) {
  const uint32_t rows = share.stages * ROWS;
  const bool gated = a.epilogue == MINISGL_SKINNY_GATED;
  for (uint32_t at = threadIdx.x; at < share.last - share.first; at += warps * 32) {
    const uint32_t column = share.first + at;
    const float* from = partial + (gated ? at / share.span * ROWS + at % share.span : at);
    float sum = 0.0f, up = 0.0f;
    for (uint32_t warp = 0; warp < warps; warp++) {
      sum += from[warp * rows];
      if (gated) up += from[warp * rows + ROWS / 2];
    }
    if (a.scale_form == MINISGL_SCALE_ROW) {
      sum *= a.scales[column];
      if (gated) up *= a.scales[a.n / 2 + column];
    }
    if (gated) {
      static_cast<minisgl_bf16*>(a.out)[column] = minisgl::gated(sum, up, a.gate);
    } else if (a.epilogue == MINISGL_SKINNY_F32) {
      static_cast<float*>(a.out)[column] = sum;
    } else {
      const float add = at == threadIdx.x ? ahead : summand(a, column);
      const minisgl_bf16 value = __float2bfloat16_rn(sum + add);
      static_cast<minisgl_bf16*>(a.out)[column] = value;
      for (uint32_t peer = 0; peer < a.peers; peer++) send(a.inbox[peer] + column, value);
    }
  }
}

template <int STEPS, int ROWS>
__device__ __forceinline__ void gemv(const minisgl_skinny_args& a) {
  extern __shared__ __align__(128) char shared[];
  __shared__ uint64_t full[STAGES_MAX], empty[STAGES_MAX];
  __shared__ float squares[32];
  const uint32_t warps = blockDim.x / 32 - 1, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Share<ROWS> share(a);
  float* held = reinterpret_cast<float*>(shared + a.stages * ROWS * a.k) + warp * HELD;
  float* factors = reinterpret_cast<float*>(shared + a.stages * ROWS * a.k) + warps * HELD;
  float* partial = factors + STEPS * warps * 4;
  if (threadIdx.x == warps * 32) {
    for (uint32_t i = 0; i < a.stages; i++) {
      barrier_init(&full[i], 1);
      barrier_init(&empty[i], warps);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  let_next_start();
  if (warp == warps) {
    __syncwarp();
    asm volatile("bar.arrive 2, %0;" ::"r"(blockDim.x) : "memory");
    copy_rows<ROWS>(a, share, shared, full, empty);
    return;
  }
  Vec8 norm[STEPS][2];
  fetch_norm<STEPS>(a, warps, norm);
  float scale[ROWS][STEPS];
  fetch_scales<ROWS, STEPS>(a, share, warps, share.first, scale);
  expect_scales<ROWS>(a, share, warps);
  asm volatile("bar.sync 2, %0;" ::"r"(blockDim.x) : "memory");
  wait_for_inputs();
  uint4 x[STEPS][2];
  fetch_x<STEPS>(a, warps, norm, squares, factors, x);
  float ahead = 0.0f;
  if (const uint32_t column = share.first + threadIdx.x;
      column < share.last && a.epilogue != MINISGL_SKINNY_GATED) {
    ahead = summand(a, column);
  }
  float* mine = partial + warp * share.stages * ROWS;
  const char* from = shared + warp * STEP + lane * 16;
  const bool odd = lane / 4 % 2;
  const uint32_t stage_bytes = ROWS * a.k;
  times_factors<ROWS, STEPS>(factors, warps, scale);
  Place place;
  uint32_t slot = 0, start = share.first;
  // Which block of rows the scales are of; none, if they are of two.
  const auto block_of = [&](uint32_t start) {
    const uint32_t block = (start + share.span - 1) / BLOCK;
    return start / BLOCK == block ? block : ~0u;
  };
  uint32_t known = block_of(start);
  for (uint32_t i = 0; i < share.stages; i++, start += share.span) {
    if (const uint32_t block = block_of(start); i > 0 && (block != known || block == ~0u)) {
      fetch_scales<ROWS, STEPS>(a, share, warps, start, scale);
      times_factors<ROWS, STEPS>(factors, warps, scale);
      known = block;
    }
    barrier_wait(&full[place.at], place.phase);
    uint4 w[ROWS][STEPS];
    const char* stage = from + place.at * stage_bytes;
#pragma unroll
    for (int row = 0; row < ROWS; row++) {
#pragma unroll
      for (int s = 0; s < STEPS; s++) {
        w[row][s] = make_uint4(0, 0, 0, 0);
        if ((s * warps + warp) * STEP + lane * 16 < a.k) {
          w[row][s] = *reinterpret_cast<const uint4*>(stage + row * a.k + s * warps * STEP);
        }
      }
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(&empty[place.at]);
    float sum[ROWS];
    multiply_rows<ROWS, STEPS>(sum, w, x, scale, odd);
    hold<ROWS>(held, slot, sum);
    if (++slot == SLOTS<ROWS>) {
      add_held<ROWS>(held, mine + (i + 1 - slot) * ROWS, 32);
      slot = 0;
    }
    place.next(a.stages);
  }
  if (slot > 0) add_held<ROWS>(held, mine + (share.stages - slot) * ROWS, slot * ROWS);
  consumers_meet(warps);
  finish_outputs<ROWS>(a, share, warps, partial, ahead);
}

#else

template <int STEPS, int ROWS>
__device__ __forceinline__ void gemv(const minisgl_skinny_args&) {
  __trap();
}

#endif

}  // namespace minisgl

// Threads that leave two blocks the registers they want.
#define GEMV(STEPS, ROWS, WARPS)                                                                                        \
  KERNEL __launch_bounds__(32 * WARPS + 32, 2) minisgl_gemv_##STEPS(const __grid_constant__ minisgl_skinny_args a) { \
    minisgl::gemv<STEPS, ROWS>(a);                                                                                      \
  }

GEMV(1, 4, 12)
GEMV(2, 2, 10)
GEMV(3, 2, 10)
GEMV(5, 1, 10)
