// Runs of integers, each from its place in one array to its place in another.
//
//   to[r.to + i] = from[r.from + i]          i < r.len, for every run r
//
// Shapes: runs i32 [count, 4] of {from, to, len, -}, from i32 [from_len], to i32 [to_len]. Runs are written side by side: what
// two of them write must not overlap. Of a run that leaves an array nothing is copied.
// Bytes moved: 8 a word. Bound: latency, of one block for a run.
// Measured: nothing yet; a step of 256 decode rows has 16 runs of one word.

#include "../common.cuh"

using namespace minisgl;

KERNEL minisgl_copy_runs(const __grid_constant__ minisgl_copy_runs_args a) {
  wait_for_inputs();
  let_next_start();

  const int4 run = reinterpret_cast<const int4*>(a.runs)[blockIdx.x];
  const uint32_t first = run.x, at = run.y, len = run.z;
  if (first > a.from_len || len > a.from_len - first || at > a.to_len || len > a.to_len - at) return;
#pragma unroll 4
  for (uint32_t i = threadIdx.x; i < len; i += blockDim.x) a.to[at + i] = a.from[first + i];
}
