// Which tokens of which (request, key head) pairs a block works on, read from the work list that
// `attention/decode_plan.rs` writes and describes.
#pragma once

#include "../common.cuh"

namespace minisgl {

// KV tokens that are never cut apart.
constexpr uint32_t UNIT = 16;

// The first token that a request's newest one sees, in layers with a window: as many as that, itself the last.
template <bool WINDOW>
__device__ __forceinline__ uint32_t first_seen(uint32_t len, uint32_t window) {
  return WINDOW && len > window ? len - window : 0;
}

// Some tokens of one pair.
struct Segment {
  uint32_t row;         // of the request
  uint32_t begin, end;  // tokens
  uint32_t len;         // of the request
  uint32_t first_page;  // of the request, in the list of pages
  uint32_t first;       // team of the pair's first chunk
  uint32_t chunks;      // of the pair
};

// The blocks of a team have the same segments, each of another key head.
__device__ __forceinline__ uint32_t head_of_block(const minisgl_decode_args& a) { return blockIdx.x % a.kv_heads; }

__device__ __forceinline__ uint32_t team_of_block(const minisgl_decode_args& a) { return blockIdx.x / a.kv_heads; }

// One pass over a team's work. Units are counted from the one with the first token that is seen.
template <bool WINDOW>
struct Walk {
  const int4* rows;
  uint32_t window;
  uint32_t at, end, row, share;
  uint32_t base, stride, len, first_page;  // of the row

  __device__ __forceinline__ explicit Walk(const minisgl_decode_args& a) {
    const uint32_t teams = gridDim.x / a.kv_heads, team = team_of_block(a);
    const int4* of_teams = reinterpret_cast<const int4*>(a.work);
    const int4 range = of_teams[2 * team], of_row = of_teams[2 * team + 1];
    rows = of_teams + 2 * teams;
    window = a.window;
    at = range.x, end = range.y, row = range.z, share = range.w;
    set(of_row);
  }

  __device__ __forceinline__ void set(const int4& of_row) {
    base = of_row.x, stride = of_row.y, len = of_row.z, first_page = of_row.w;
  }

  // The next segment; false if there is none.
  __device__ __forceinline__ bool next(Segment& s) {
    while (at < end) {
      const uint32_t skipped = first_seen<WINDOW>(len, window) / UNIT;
      const uint32_t from = at - base, units = (len + UNIT - 1) / UNIT - skipped;
      if (from >= units) {
        // Beyond its units nobody works on a row; a row of padding has none.
        at = max(at, base + stride);
        if (at < end) set(rows[++row]);
        continue;
      }
      const uint32_t to = min(units, from + end - at), first = base / share;
      s = {row,        (skipped + from) * UNIT, min((skipped + to) * UNIT, len), len,
           first_page, first,                   (base + units - 1) / share - first + 1};
      at = to == units ? base + stride : end;
      return true;
    }
    return false;
  }
};

}  // namespace minisgl
