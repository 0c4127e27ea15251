// Weights of one expert in MXFP4, from codes and scales as files have them to the slabs of mxfp4.cuh.
//
// A thread makes one word of eight codes. Bytes moved: about rows * columns. Runs while a model is loaded, once a matrix.

#include "mxfp4.cuh"

using namespace minisgl;

KERNEL minisgl_mxfp4_pack(const __grid_constant__ minisgl_mxfp4_pack_args a) {
  wait_for_inputs();
  let_next_start();
  const MxMatrix matrix(a.rows_are == MINISGL_PACK_GATE || a.rows_are == MINISGL_PACK_UP ? 2 * a.to_rows : a.to_rows,
                        a.to_columns, a.in_parts);
  // Threads of a row: 8 words for each step.
  const uint32_t at = blockIdx.x * blockDim.x + threadIdx.x, words = matrix.steps * 8;
  const uint32_t index = at / words, step = at % words / 8, b = at % 8 / 4, t = at % 4;
  if (index >= a.to_rows) return;
  uint32_t to = index;
  if (a.rows_are == MINISGL_PACK_GATE) to = index / 8 * 16 + index % 8;
  if (a.rows_are == MINISGL_PACK_UP) to = index / 8 * 16 + 8 + index % 8;
  if (a.rows_are == MINISGL_PACK_ALTERNATE) to = index / 16 * 16 + index % 2 * 8 + index / 2 % 8;

  // Rows and columns that are not there are zeros.
  const uint32_t row = index - a.above, block = step * 2 + b;
  const bool there = index >= a.above && row < a.rows;
  const auto code = [&](uint32_t in_block) -> uint32_t {
    const uint32_t column = block * 32 + in_block - a.left;
    if (!there || block * 32 + in_block < a.left || column >= a.columns) return 0;
    return a.codes[size_t(row) * a.row_bytes + column / 2] >> column % 2 * 4 & 15;
  };
  uint32_t word = 0;
#pragma unroll
  for (uint32_t i = 0; i < 4; i++) {
    const uint32_t sign[4] = {15, 12, 14, 13}, magnitude[4] = {6, 3, 0, 9};
#pragma unroll
    for (uint32_t odd = 0; odd < 2; odd++) {
      const uint32_t four = code(8 * i + 2 * t + odd);
      word |= (four >> 3 << sign[i] | (four & 7) << magnitude[i]) << 16 * odd;
    }
  }
  const uint32_t g = to % 8, h = to / 8 % 2;
  const uint32_t part = step / matrix.part;
  const MxStep where(step - part * matrix.part, matrix.steps_of(part));
  uint8_t* here = a.to + matrix.at(to / SLAB, part);
  reinterpret_cast<uint32_t*>(here + where.codes)[(4 * g + t) * 4 + 2 * b + h] = word;
  if (t != 0) return;
  uint32_t scale = 0;
  if (there && block * 32 < a.left + a.columns) scale = a.scales[size_t(row) * a.scales_stride + block];
  // 2^62 and more, and NaN, are infinite: nobody has such weights, and nothing should make others of them.
  here[where.scales + 4 * g + 2 * b + h] = there ? min(scale + 66, 255u) : 0;
}
