// The gate of a feed-forward layer that is not SwiGLU's.
//
//   out[r, i] = gate(gate[r, i], up[r, i])            see gate.cuh
//
// Shapes: gate_up bf16 [rows, 2, width] (one GEMM writes both), out bf16 [rows, width]; f32 inside.
// Bytes moved: 6 * rows * width (two thirds read). Bound: copy bandwidth.

#include "../gate.cuh"

using namespace minisgl;

KERNEL minisgl_gate_mul(const __grid_constant__ minisgl_gate_mul_args a) {
  wait_for_inputs();
  let_next_start();

  const VectorAt at(a.width);  // Of the output.
  if (at.row >= a.rows) return;
  const minisgl_bf16* from = a.gate_up + at.in(2 * a.width);

  float gate[VEC], up[VEC];
  const Vec8 gate_raw = load8(from), up_raw = load8(from + a.width);
  unpack(gate_raw, gate);
  unpack(up_raw, up);
#pragma unroll
  for (int i = 0; i < VEC; i++) gate[i] = gate_of(gate[i], up[i], a.gate);
  store8(a.out + at.in(a.width), pack(gate));
}
