// Rows of x brought together by expert, in the form in which experts_many.cu copies them.
//
//   to[s, p, :] = x[r, 64 s .. 64 s + 64]        for the pair p = (r, e) at place p
//
// Shapes: x bf16 [rows, columns], to bf16 [ceil(columns / 64), rows * top, 64]. Columns past the last are zeros. The eight
// 16-byte units of a row are permuted: unit u of the row that is the i-th of its batch lies at u ^ (i % 8).
// Bytes moved: 2 * columns * rows * (1 + top). Bound: copy bandwidth, mostly the cache's. Not measured by itself.
//
// A warp has a pair.

#include "experts.cuh"

using namespace minisgl;

KERNEL minisgl_gather(const __grid_constant__ minisgl_gather_args a) {
  wait_for_inputs();
  let_next_start();
  const uint32_t place = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
  const PlanAt<const int32_t> plan(a.plan, a.batches_max, a.rows * a.top);
  const int4 head = __ldcg(reinterpret_cast<const int4*>(plan.head));
  if (place >= min(uint32_t(head.y), a.rows * a.top)) return;
  const minisgl_bf16* x = a.x + size_t(min(uint32_t(__ldcg(plan.pairs + place)) / a.top, a.rows - 1)) * a.columns;

  const uint32_t swizzle = (place - first_of_batch(plan, head.x, a.batches_max, place)) % 8;
  const uint32_t units = (a.columns + STEP_COLUMNS - 1) / STEP_COLUMNS * 8;
#pragma unroll 4
  for (uint32_t unit = lane; unit < units; unit += 32) {
    uint4 values = make_uint4(0, 0, 0, 0);
    if (unit * VEC < a.columns) values = *reinterpret_cast<const uint4*>(x + unit * VEC);
    const size_t row = size_t(unit / 8) * a.rows * a.top + place;
    *reinterpret_cast<uint4*>(a.to + row * STEP_COLUMNS + (unit % 8 ^ swizzle) * VEC) = values;
  }
}
