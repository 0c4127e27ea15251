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

  const VectorAt at(a.hidden);
  if (at.row >= a.rows) return;
  const uint32_t from = a.index[at.row];
  if (from >= a.x_rows) return;
  store8(a.out + at.in(a.hidden), load8(a.x + at.in(a.hidden, from)));
}
