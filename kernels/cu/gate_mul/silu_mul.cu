// The gate of a SwiGLU feed-forward layer; `gate_mul.cu` has the others.
//
//   out[r, i] = silu(gate[r, i]) * up[r, i]            silu(x) = x / (1 + exp(-x))
//
// Shapes: gate_up bf16 [rows, 2, width] (one GEMM writes both), out bf16 [rows, width]; f32 inside.
// Bytes moved: 6 * rows * width (two thirds read). Bound: copy bandwidth.
// Measured (H100 80GB HBM3, 2026-11-21, `gpu --bench`), width 12288: 99 % at 4,096 rows; 1.4 us at 1 row.

#include "../common.cuh"

using namespace minisgl;

KERNEL minisgl_silu_mul(const __grid_constant__ minisgl_gate_mul_args a) {
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
  for (int i = 0; i < VEC; i++) gate[i] = gate[i] / (1.0f + __expf(-gate[i])) * up[i];
  store8(a.out + at.in(a.width), pack(gate));
}
