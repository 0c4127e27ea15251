// Which tokens of which (request, key head) pairs a block works on, read from the work list that
// `attention/decode_plan.rs` writes and describes.
#pragma once

#include "../common.cuh"

namespace minisgl {

// KV tokens that are never cut apart.
constexpr uint32_t UNIT = 16;

constexpr uint32_t BLOCK_WORDS = 8;

// Some tokens of one pair.
struct Segment {
  uint32_t row;         // of the request
  uint32_t head;        // key head
  uint32_t begin, end;  // tokens
  uint32_t len;         // of the request
  uint32_t first_page;  // of the request, in the list of pages
  uint32_t first;       // block of the pair's first chunk
  uint32_t chunks;      // of the pair
};

// One pass over a block's work.
struct Walk {
  const int4* rows;
  uint32_t heads, at, end, row, share;
  uint32_t base, stride, len, first_page;  // of the row

  __device__ __forceinline__ Walk(const minisgl_decode_args& a) : heads(a.kv_heads) {
    const int4* blocks = reinterpret_cast<const int4*>(a.work);
    const int4 head = blocks[2 * blockIdx.x], of_row = blocks[2 * blockIdx.x + 1];
    rows = blocks + 2 * gridDim.x;
    at = head.x, end = head.y, row = head.z, share = head.w;
    set(of_row);
  }

  __device__ __forceinline__ void set(const int4& of_row) {
    base = of_row.x, stride = of_row.y, len = of_row.z, first_page = of_row.w;
  }

  // The next segment; false if there is none.
  __device__ __forceinline__ bool next(Segment& s) {
    while (at < end) {
      const uint32_t in_row = at - base;
      if (in_row >= stride * heads) {
        set(rows[++row]);
        continue;
      }
      const uint32_t head = in_row / stride, from = in_row % stride, pair = at - from;
      const uint32_t units = (len + UNIT - 1) / UNIT;
      if (from >= units) {
        at = pair + stride;
        continue;
      }
      const uint32_t to = min(units, from + end - at), first = pair / share;
      s = {row, head, from * UNIT, min(to * UNIT, len), len, first_page, first, (pair + units - 1) / share - first + 1};
      at = to == units ? pair + stride : end;
      return true;
    }
    return false;
  }
};

}  // namespace minisgl
