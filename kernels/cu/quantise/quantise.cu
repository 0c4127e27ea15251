// Activations as e4m3 with scales, for products with weights of e4m3; before that, what makes them: nothing, the norm, or
// the gate of a feed-forward layer.
//
//   y = x                       or  bf16(rms_norm(x) * norm_weight)  or  bf16(gate(gate, up)), see gate.cuh
//   scales[c / 128, r] = max |y[r, block of c]| / 448         or, for a whole row,  scales[r] = max |y[r, :]| / 448
//   out[r, c] = e4m3(y[r, c] * (1 / scale))                   zeros where the scale is 0
//
// Shapes: x bf16 [rows, hidden] (gate and up: [rows, 2, hidden]), out e4m3 [rows, hidden], scales f32
// [ceil(hidden / 128), scale_stride] or [rows]; f32 inside. As FineGrainedFP8 of Hugging Face transformers does it
// (act_quant of its integration), where a block of zeros would be NaN.
// Bytes moved: 3 * rows * hidden, 5 from gate and up. Bound: copy bandwidth.
// Measured (one H200 that copies 4.2 TB/s, 2026-11-30) at 7,936 rows: 4096 columns 29 us (80 %), with the norm 38 (61 %; 48 with a thread
// a vector); gate and up of 12288 125 (93 %; 155 with exact divisions of integers and floats). At 128 rows 1.8, 2.6 and 3.7 us.

#include "../gate.cuh"
#include "e4m3.cuh"

using namespace minisgl;

// Lanes that hold a block of 128 columns.
constexpr uint32_t LANES = 128 / VEC;

// Maximum over a block of whole warps; every thread gets it. `shared` is for one use.
__device__ __forceinline__ float max_block(float x, float (&shared)[32]) {
  const uint32_t warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
  if (lane == 0) shared[warp] = x;
  __syncthreads();
  x = lane < warps ? shared[lane] : 0.0f;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
  return x;
}

// One block, one row, kept in registers: VECTORS 16-byte vectors a thread.
template <int VECTORS>
__device__ __forceinline__ void quantise(const minisgl_quantise_args& a) {
  __shared__ float shared[32], shared_max[32];
  const uint32_t vectors = a.hidden / VEC;
  const auto at = [&](int v) { return threadIdx.x + v * blockDim.x; };

  // Weights depend on no other kernel: fetch them while the one before drains.
  Vec8 weight[VECTORS];
#pragma unroll
  for (int v = 0; v < VECTORS; v++) {
    if (a.norm_weight && at(v) < vectors) weight[v] = load8(a.norm_weight + at(v) * VEC);
  }
  // What comes after fetches weights of its own while this waits.
  let_next_start();
  wait_for_inputs();

  // Load everything before the first use; behind the row are zeros.
  const minisgl_bf16* x = a.x + size_t(blockIdx.x) * a.hidden * (a.gated ? 2 : 1);
  Vec8 y[VECTORS];
#pragma unroll
  for (int v = 0; v < VECTORS; v++) {
    const float zeros[VEC] = {};
    y[v] = at(v) < vectors ? load8(x + at(v) * VEC) : pack(zeros);
  }

  if (a.gated) {
    Vec8 up[VECTORS];
#pragma unroll
    for (int v = 0; v < VECTORS; v++) up[v] = at(v) < vectors ? load8(x + a.hidden + at(v) * VEC) : y[v];
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
      float g[VEC], u[VEC];
      unpack(y[v], g);
      unpack(up[v], u);
#pragma unroll
      for (int i = 0; i < VEC; i++) g[i] = gate_of(g[i], u[i], a.gate);
      y[v] = pack(g);
    }
  } else if (a.norm_weight) {
    float squares = 0.0f;
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
      float f[VEC];
      unpack(y[v], f);
#pragma unroll
      for (int i = 0; i < VEC; i++) squares += f[i] * f[i];
    }
    const float scale = rsqrtf(sum_block(squares, shared) / a.hidden + a.eps);
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
      if (at(v) >= vectors) continue;
      float f[VEC], w[VEC];
      unpack(y[v], f);
      unpack(weight[v], w);
#pragma unroll
      for (int i = 0; i < VEC; i++) f[i] = f[i] * scale * (a.plus_one ? 1.0f + w[i] : w[i]);
      y[v] = pack(f);
    }
  }

  float scale[VECTORS];
  if (a.scale_form == MINISGL_SCALE_BLOCK) {
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
      float largest = max_of(y[v]);
#pragma unroll
      for (int step = LANES / 2; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
      scale[v] = largest / LARGEST;
      if (at(v) % LANES == 0 && at(v) < vectors) a.scales[size_t(at(v) / LANES) * a.scale_stride + blockIdx.x] = scale[v];
    }
  } else {
    float largest = 0.0f;
#pragma unroll
    for (int v = 0; v < VECTORS; v++) largest = fmaxf(largest, max_of(y[v]));
    largest = max_block(largest, shared_max) / LARGEST;
#pragma unroll
    for (int v = 0; v < VECTORS; v++) scale[v] = largest;
    if (threadIdx.x == 0) a.scales[blockIdx.x] = largest;
  }

#pragma unroll
  for (int v = 0; v < VECTORS; v++) {
    if (at(v) >= vectors) continue;
    *reinterpret_cast<uint2*>(a.out + size_t(blockIdx.x) * a.hidden + at(v) * VEC) = narrow(y[v], scale[v]);
  }
}

#define QUANTISE(VECTORS)                                                  \
  KERNEL __launch_bounds__(1024) minisgl_quantise_##VECTORS(               \
      const __grid_constant__ minisgl_quantise_args a) {                   \
    quantise<VECTORS>(a);                                                  \
  }

// A thread, eight columns: scales for blocks of columns want nothing of the rest of a row. Rows are whole blocks of columns;
// blocks in x have the vectors of a row, blocks in y rows by turns.
KERNEL __launch_bounds__(256) minisgl_quantise_blocks(const __grid_constant__ minisgl_quantise_args a) {
  let_next_start();
  wait_for_inputs();
  const uint32_t column = (blockIdx.x * blockDim.x + threadIdx.x) * VEC;
  if (column >= a.hidden) return;  // A block of columns as a whole.
  const uint32_t lanes = 0xffffu << threadIdx.x % 32 / LANES * LANES;
  for (uint32_t row = blockIdx.y; row < a.rows; row += gridDim.y) {
    Vec8 y;
    if (a.gated) {
      const minisgl_bf16* x = a.x + size_t(row) * a.hidden * 2 + column;
      float g[VEC], u[VEC];
      const Vec8 gate = load8(x), up = load8(x + a.hidden);
      unpack(gate, g);
      unpack(up, u);
#pragma unroll
      for (int i = 0; i < VEC; i++) g[i] = gate_of(g[i], u[i], a.gate);
      y = pack(g);
    } else {
      y = load8(a.x + size_t(row) * a.hidden + column);
    }
    float largest = max_of(y);
#pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(lanes, largest, step));
    const float scale = largest / LARGEST;
    if (threadIdx.x % LANES == 0) a.scales[size_t(column / 128) * a.scale_stride + row] = scale;
    *reinterpret_cast<uint2*>(a.out + size_t(row) * a.hidden + column) = narrow(y, scale);
  }
}

QUANTISE(1)
QUANTISE(2)
QUANTISE(4)
