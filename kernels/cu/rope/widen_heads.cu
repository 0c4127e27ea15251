// Heads of another width, for attention templates that lack a model's own.
//
//   out[h, d] = x[h, d] for d < min(from, to), else 0
//
// Shapes: x [heads, from], out [heads, to], `heads` those of all rows; elements of two bytes, from and to
// multiples of 8. Bytes moved: 2 * heads * (min(from, to) + to). Bound: copy bandwidth.

#include "../common.cuh"

using namespace minisgl;

KERNEL minisgl_widen_heads(const __grid_constant__ minisgl_widen_heads_args a) {
  wait_for_inputs();
  let_next_start();

  // A thread has one vector of the output.
  const uint32_t vectors = a.to / VEC, index = blockIdx.x * blockDim.x + threadIdx.x;
  const uint32_t head = index / vectors, at = index % vectors * VEC;
  if (head >= a.heads) return;
  Vec8 v = {};
  if (at < a.from) v = load8(a.x + size_t(head) * a.from + at);
  store8(a.out + size_t(head) * a.to + at, v);
}
