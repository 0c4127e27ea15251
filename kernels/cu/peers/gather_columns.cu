// Joins columns that the ranks have, of each row, where they were brought to this GPU: the logits of a vocabulary
// that is divided among them.
//
//   out[r, start[p] + i] = part[p][r, i]                 i < start[p + 1] - start[p]
//
// Shapes: f32, part [rows, part_stride of it], out [rows, stride]. Bytes moved: 8 * rows * columns. Bound: memory.

#include "../common.cuh"
#include "../peers.h"

using namespace minisgl;

KERNEL minisgl_gather_columns(const __grid_constant__ minisgl_gather_columns_args a) {
  let_next_start();
  wait_for_inputs();
  const uint32_t unit = a.vectors ? 4 : 1;
  for (uint32_t p = 0; p < a.parts; p++) {
    const uint32_t columns = (a.start[p + 1] - a.start[p] + unit - 1) / unit;
    const size_t all = size_t(a.rows) * columns, step = size_t(gridDim.x) * blockDim.x;
#pragma unroll 4
    for (size_t at = size_t(blockIdx.x) * blockDim.x + threadIdx.x; at < all; at += step) {
      const size_t row = at / columns, column = at % columns * unit;
      const float* from = a.part[p] + row * a.part_stride[p] + column;
      float* to = a.out + row * a.stride + a.start[p] + column;
      if (a.vectors) {
        *reinterpret_cast<float4*>(to) = *reinterpret_cast<const float4*>(from);
      } else {
        *to = *from;
      }
    }
  }
}
