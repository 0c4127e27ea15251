// The end of a block whose result is normalised before it is added, and the norm that the next one begins with (Gemma 2 and 3:
// arXiv 2408.00118, section 2).
//
//   residual[r, :] += norm(x[r, :]) * after          then, where it is wanted,    normed[r, :] = norm(residual[r, :]) * next
//
// Shapes: x, residual, normed bf16 [rows, hidden], after, next bf16 [hidden]; f32 inside, the residual stream rounded
// before its norm, as whoever reads it finds it. Weights stored less 1 have it added in f32.
// Bytes moved: 8 * rows * hidden. Bound: copy bandwidth.

#include "../common.cuh"

using namespace minisgl;

// One block, one row, kept in registers: VECTORS 16-byte vectors a thread.
template <int VECTORS>
__device__ __forceinline__ void add_norm(const minisgl_add_norm_args& a) {
  __shared__ float shared[2][32];
  const uint32_t vectors = a.hidden / VEC;
  const auto at = [](int v) { return threadIdx.x + v * blockDim.x; };
  const float more = a.plus_one ? 1.0f : 0.0f;

  // Weights depend on no other kernel: fetch them while the one before drains.
  Vec8 after[VECTORS], next[VECTORS] = {};
#pragma unroll
  for (int v = 0; v < VECTORS; v++) {
    if (at(v) < vectors) after[v] = load8(a.after + at(v) * VEC);
    if (at(v) < vectors && a.next) next[v] = load8(a.next + at(v) * VEC);
  }
  wait_for_inputs();
  let_next_start();

  // Load everything before the first use; behind the row are zeros.
  const size_t row = size_t(blockIdx.x) * a.hidden;
  float x[VECTORS][VEC] = {}, sum[VECTORS][VEC] = {};
  Vec8 raw[VECTORS], old[VECTORS];
#pragma unroll
  for (int v = 0; v < VECTORS; v++) {
    if (at(v) < vectors) raw[v] = load8(a.x + row + at(v) * VEC), old[v] = load8(a.residual + row + at(v) * VEC);
  }
  float squares = 0.0f;
#pragma unroll
  for (int v = 0; v < VECTORS; v++) {
    if (at(v) >= vectors) continue;
    unpack(raw[v], x[v]);
    unpack(old[v], sum[v]);
#pragma unroll
    for (int i = 0; i < VEC; i++) squares += x[v][i] * x[v][i];
  }

  // Add the norm of what the block gives.
  const float scale = rsqrtf(sum_block(squares, shared[0]) / a.hidden + a.eps);
  squares = 0.0f;
#pragma unroll
  for (int v = 0; v < VECTORS; v++) {
    if (at(v) >= vectors) continue;
    float w[VEC];
    unpack(after[v], w);
#pragma unroll
    for (int i = 0; i < VEC; i++) sum[v][i] += x[v][i] * scale * (w[i] + more);
    const Vec8 rounded = pack(sum[v]);
    store8(a.residual + row + at(v) * VEC, rounded);
    unpack(rounded, sum[v]);
#pragma unroll
    for (int i = 0; i < VEC; i++) squares += sum[v][i] * sum[v][i];
  }
  if (!a.next) return;

  // Normalise the sum.
  const float of_sum = rsqrtf(sum_block(squares, shared[1]) / a.hidden + a.eps);
#pragma unroll
  for (int v = 0; v < VECTORS; v++) {
    if (at(v) >= vectors) continue;
    float w[VEC];
    unpack(next[v], w);
#pragma unroll
    for (int i = 0; i < VEC; i++) sum[v][i] *= of_sum * (w[i] + more);
    store8(a.normed + row + at(v) * VEC, pack(sum[v]));
  }
}

KERNEL __launch_bounds__(1024) minisgl_add_norm_1(const __grid_constant__ minisgl_add_norm_args a) { add_norm<1>(a); }
KERNEL __launch_bounds__(1024) minisgl_add_norm_2(const __grid_constant__ minisgl_add_norm_args a) { add_norm<2>(a); }
