// Gathers the rows whose logits are wanted.
//
//   out[r, :] = x[index[r], :]
//
// Shapes: x bf16 [x_rows, hidden], index i32 [rows], out bf16 [rows, hidden]. A row whose index is
// negative or not in x is padding: its output is left as it is.
// Bytes moved: 4 * rows * hidden (half read, half written). Bound: copy bandwidth.

#include "../common.cuh"

using namespace minisgl;

KERNEL minisgl_gather(const __grid_constant__ minisgl_gather_args a) {
  wait_for_inputs();
  let_next_start();

  // One thread, one 16-byte vector.
  const uint32_t vectors = a.hidden / VEC;
  const uint32_t at = blockIdx.x * blockDim.x + threadIdx.x;
  const uint32_t row = at / vectors;
  if (row >= a.rows) return;
  const uint32_t from = a.index[row];
  if (from >= a.x_rows) return;
  const uint32_t column = at % vectors * VEC;
  store8(a.out + size_t(row) * a.hidden + column, load8(a.x + size_t(from) * a.hidden + column));
}
