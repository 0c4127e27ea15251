// What the experts of a row say, added up.
//
//   out[r, :] (+)= sum over the row's choices c of weights[r, c] * y[place of (r, c), :]       in the order of choices
//
// Shapes: y bf16 [rows * top, hidden], out bf16 [rows, hidden]; f32 inside, rounded once. A padding row stays as it is, or is 0.
// Bytes moved: 2 * (top + 2) * rows * hidden. Bound: read bandwidth.
// Measured (H200, 2026-11-29, docs/benchmarks.md), hidden 2048, top 8: 83 us at 8,192 rows, 4.0 TB/s.

#include "experts.cuh"

using namespace minisgl;

KERNEL minisgl_combine(const __grid_constant__ minisgl_combine_args a) {
  wait_for_inputs();
  let_next_start();
  const VectorAt at(a.hidden);
  if (at.row >= a.rows) return;
  minisgl_bf16* out = a.out + at.in(a.hidden);
  float sum[VEC] = {};
  if (a.adds) unpack(load8(out), sum);
  constexpr uint32_t AHEAD = 8;
  for (uint32_t first = 0; first < a.top; first += AHEAD) {
    Vec8 values[AHEAD];
    float weights[AHEAD];
#pragma unroll
    for (uint32_t i = 0; i < AHEAD; i++) {
      // What is not there is read as the first choice, and not added.
      const uint32_t pair = at.row * a.top + (first + i < a.top ? first + i : 0);
      const int32_t place = a.place[pair];
      values[i] = load8(a.y + size_t(max(place, 0)) * a.hidden + at.column);
      weights[i] = first + i < a.top && place >= 0 ? a.weights[pair] : 0.0f;
    }
#pragma unroll
    for (uint32_t i = 0; i < AHEAD; i++) {
      if (weights[i] == 0.0f) continue;
      float value[VEC];
      unpack(values[i], value);
#pragma unroll
      for (int j = 0; j < VEC; j++) sum[j] += weights[i] * value[j];
    }
  }
  store8(out, pack(sum));
}
