// RMSNorm of all rows, or of those whose logits are wanted (Zhang and Sennrich, "Root Mean Square Layer
// Normalization", NeurIPS 2019, equation 4).
//
//   out[r, i] = s[i] * rsqrt(mean(s^2) + eps) * weight[i]               s = x[r, :], or x[index[r], :]
//
// With _plus_one weights are stored less 1, and the sum is f32's: in bf16 it would lose what the checkpoint has.
//
// Shapes: x bf16 [x_rows, hidden], index i32 [rows], out bf16 [rows, hidden], weight bf16 [hidden]; f32
// inside. A row whose index is negative or not in x is padding: its output is left as it is. The residual
// stream is added to where products end, so that nothing is added here.
// Bytes moved: 4 * rows * hidden. Bound: copy bandwidth.

#include "../common.cuh"

using namespace minisgl;

// One block, one row, kept in registers: VECTORS 16-byte vectors a thread.
template <int VECTORS, bool PLUS_ONE>
__device__ __forceinline__ void rmsnorm(const minisgl_rmsnorm_args& a) {
  __shared__ float shared[32];
  const uint32_t vectors = a.hidden / VEC;

  // Weights depend on no other kernel: fetch them while the one before drains.
  Vec8 weight[VECTORS];
#pragma unroll
  for (int v = 0; v < VECTORS; v++) {
    const uint32_t at = threadIdx.x + v * blockDim.x;
    if (at < vectors) weight[v] = load8(a.weight + at * VEC);
  }
  wait_for_inputs();
  let_next_start();
  const uint32_t from = a.index ? a.index[blockIdx.x] : blockIdx.x;
  if (from >= a.x_rows) return;
  const minisgl_bf16* x = a.x + size_t(from) * a.hidden;
  minisgl_bf16* out = a.out + size_t(blockIdx.x) * a.hidden;

  // Load everything before the first use.
  Vec8 values[VECTORS];
#pragma unroll
  for (int v = 0; v < VECTORS; v++) {
    const uint32_t at = threadIdx.x + v * blockDim.x;
    if (at < vectors) values[v] = load8(x + at * VEC);
  }

  float squares = 0.0f;
#pragma unroll
  for (int v = 0; v < VECTORS; v++) {
    const uint32_t at = threadIdx.x + v * blockDim.x;
    if (at >= vectors) continue;
    float f[VEC];
    unpack(values[v], f);
#pragma unroll
    for (int i = 0; i < VEC; i++) squares += f[i] * f[i];
  }

  // Normalise.
  const float scale = rsqrtf(sum_block(squares, shared) / a.hidden + a.eps);
#pragma unroll
  for (int v = 0; v < VECTORS; v++) {
    const uint32_t at = threadIdx.x + v * blockDim.x;
    if (at >= vectors) continue;
    float f[VEC], w[VEC];
    unpack(values[v], f);
    unpack(weight[v], w);
#pragma unroll
    for (int i = 0; i < VEC; i++) f[i] = f[i] * scale * (PLUS_ONE ? 1.0f + w[i] : w[i]);
    store8(out + at * VEC, pack(f));
  }
}

KERNEL __launch_bounds__(1024) minisgl_rmsnorm_1(const __grid_constant__ minisgl_rmsnorm_args a) {
  rmsnorm<1, false>(a);
}
KERNEL __launch_bounds__(1024) minisgl_rmsnorm_2(const __grid_constant__ minisgl_rmsnorm_args a) {
  rmsnorm<2, false>(a);
}
KERNEL __launch_bounds__(1024) minisgl_rmsnorm_1_plus_one(const __grid_constant__ minisgl_rmsnorm_args a) {
  rmsnorm<1, true>(a);
}
KERNEL __launch_bounds__(1024) minisgl_rmsnorm_2_plus_one(const __grid_constant__ minisgl_rmsnorm_args a) {
  rmsnorm<2, true>(a);
}
