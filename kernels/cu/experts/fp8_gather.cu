// Rows brought together by expert as codes of e4m3 with a scale for 128 columns, as fp8_many.cu copies them.
//
//   scales[s, p] = max |x[r, 128 s .. 128 s + 128]| / 448              for the pair p = (r, e) at place p
//   to[s, p, :]  = e4m3(x[r, 128 s .. 128 s + 128] / scales[s, p])     as quantise.cu has it
//
// Shapes: x bf16 [rows, columns], or by places [rows * top, columns]; to [ceil(columns / 128), rows * top, 128] bytes;
// scales f32 [2][ceil(columns / 128)][scale_stride], by places, and once more by places and 1: of every batch one of
// the two begins with an even number. Columns past the last are zeros. The eight 16-byte units of a row are permuted: unit
// u of the row that is the i-th of its batch lies at u ^ (i % 8).
// Bytes moved: columns * rows * (2 + top), or 3 * columns * rows * top by places. Bound: copy bandwidth, mostly the cache's.
//
// A warp has a pair, 16 lanes 128 columns.

#include "../quantise/e4m3.cuh"
#include "fp8.cuh"

using namespace minisgl;

KERNEL minisgl_fp8_gather(const __grid_constant__ minisgl_fp8_gather_args a) {
  wait_for_inputs();
  let_next_start();
  const uint32_t place = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32, places = a.rows * a.top;
  const PlanAt<const int32_t> plan(a.plan, a.batches_max, places);
  const int4 head = __ldcg(reinterpret_cast<const int4*>(plan.head));
  if (place >= min(uint32_t(head.y), places)) return;
  const uint32_t from = a.by_places ? place : min(uint32_t(__ldcg(plan.pairs + place)) / a.top, a.rows - 1);
  const minisgl_bf16* x = a.x + size_t(from) * a.columns;

  const uint32_t swizzle = (place - first_of_batch(plan, head.x, a.batches_max, place)) % 8;
  const uint32_t steps = (a.columns + FP8_COLUMNS - 1) / FP8_COLUMNS;
#pragma unroll 4
  for (uint32_t two = 0; two < steps; two += 2) {
    const uint32_t step = two + lane / 16, unit = lane % 16, column = step * FP8_COLUMNS + unit * VEC;
    const float zeros[VEC] = {};
    const Vec8 values = column < a.columns ? load8(x + column) : pack(zeros);
    float largest = max_of(values);
#pragma unroll
    for (int other = 8; other > 0; other /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, other));
    if (step >= steps) continue;
    const float scale = largest / LARGEST;
    uint8_t* row = a.to + (size_t(step) * places + place) * FP8_COLUMNS;
    *reinterpret_cast<uint2*>(row + (unit / 2 ^ swizzle) * 16 + unit % 2 * 8) = narrow(values, scale);
    if (unit == 0) {
      a.scales[size_t(step) * a.scale_stride + place] = scale;
      a.scales[size_t(steps + step) * a.scale_stride + place + 1] = scale;
    }
  }
}
