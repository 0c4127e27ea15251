// Weights of one expert, from rows as files have them to the slabs of experts.h.
//
// A thread moves one 16-byte unit. Bytes moved: 4 * rows * columns. Runs while a model is loaded, once a matrix.

#include "experts.cuh"

using namespace minisgl;

KERNEL minisgl_pack(const __grid_constant__ minisgl_pack_args a) {
  wait_for_inputs();
  let_next_start();
  const uint32_t steps = (a.columns + STEP_COLUMNS - 1) / STEP_COLUMNS, units = steps * 8;
  const uint32_t at = blockIdx.x * blockDim.x + threadIdx.x, row = at / units, unit = at % units;
  if (row >= a.rows) return;

  uint32_t to = row;
  if (a.rows_are == MINISGL_PACK_GATE) to = row / 8 * 16 + row % 8;
  if (a.rows_are == MINISGL_PACK_UP) to = row / 8 * 16 + 8 + row % 8;
  if (a.rows_are == MINISGL_PACK_ALTERNATE) to = row / 16 * 16 + row % 2 * 8 + row / 2 % 8;

  Vec8 values;
  minisgl_bf16* value = reinterpret_cast<minisgl_bf16*>(&values);
#pragma unroll
  for (uint32_t i = 0; i < VEC; i++) {
    const uint32_t column = unit * VEC + i;
    value[i] = __float2bfloat16_rn(0.0f);
    if (column < a.columns) value[i] = a.from[row * a.row_stride + column * a.column_stride];
  }
  const size_t slab = size_t(to / SLAB) * steps + unit / 8;
  store8(a.to + slab * (SLAB_STEP_BYTES / 2) + to % SLAB * STEP_COLUMNS + (unit % 8 ^ to % 8) * VEC, values);
}
