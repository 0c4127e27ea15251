// The end of the block that all rows share, beside their experts.
//
//   out[r, :] += sigmoid(x[r, :] . gate) * y[r, :]          without a gate the factor is 1
//
// Shapes: x, y, out bf16 [rows, hidden], gate bf16 [hidden]; f32 inside, rounded once.
// Bytes moved: 8 * rows * hidden. Bound: copy bandwidth, or with few rows latency. Not measured yet.
//
// A block has a row, and its threads a vector each of every so many.

#include "experts.cuh"

using namespace minisgl;

KERNEL minisgl_add_shared(const __grid_constant__ minisgl_add_shared_args a) {
  __shared__ float shared[32];
  wait_for_inputs();
  let_next_start();
  const size_t row = size_t(blockIdx.x) * a.hidden;
  float factor = 1.0f;
  if (a.gate) {
    float sum = 0.0f;
    for (uint32_t at = threadIdx.x * VEC; at < a.hidden; at += blockDim.x * VEC) {
      float x[VEC], gate[VEC];
      unpack(load8(a.x + row + at), x), unpack(load8(a.gate + at), gate);
#pragma unroll
      for (int i = 0; i < VEC; i++) sum += x[i] * gate[i];
    }
    factor = 1.0f / (1.0f + __expf(-sum_block(sum, shared)));
  }
  for (uint32_t at = threadIdx.x * VEC; at < a.hidden; at += blockDim.x * VEC) {
    float y[VEC], out[VEC];
    unpack(load8(a.y + row + at), y), unpack(load8(a.out + row + at), out);
#pragma unroll
    for (int i = 0; i < VEC; i++) out[i] += factor * y[i];
    store8(a.out + row + at, pack(out));
  }
}
