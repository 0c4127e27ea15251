// What changes with a step, in one launch, from memory of the host that the GPU reads: words as they lie, and entries of a table
// each to its place.
//
//   to[i] = words[i]               i < words_len
//   table[pairs[2 j]] = pairs[2 j + 1]   j < pairs_len
//
// Shapes: words, to i32 [words_len], of 16-byte vectors; pairs i32 [pairs_len, 2]; table i32 [table_len]. No two pairs name the
// same entry; one that is not in the table is left out.
// Bytes moved: 4 a word and 8 a pair over PCIe. Bound: its latency; a thread has one vector, or one pair.
// No other kernel starts before all of it is written: some read what it brings before they wait for the kernel before them.

#include "../common.cuh"

using namespace minisgl;

KERNEL minisgl_bring(const __grid_constant__ minisgl_bring_args a) {
  wait_for_inputs();

  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x, vectors = a.words_len / 4;
  if (i < vectors) {
    // Not from a cache: the host wrote it a moment ago.
    reinterpret_cast<int4*>(a.to)[i] = __ldcv(reinterpret_cast<const int4*>(a.words) + i);
  } else if (i - vectors < a.pairs_len) {
    const int2 pair = __ldcv(reinterpret_cast<const int2*>(a.pairs) + (i - vectors));
    const uint32_t at = pair.x;
    if (at < a.table_len) a.table[at] = pair.y;
  }
}
