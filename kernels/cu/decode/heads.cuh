// The heads of one pair that come from the projection's row: queries, and the new token's key and value.
//
// Does to a row what `rope/qk_rope_page.cu` does, in the same order of operations, so to the same bits.
#pragma once

#include "../rope/numbers.cuh"
#include "element.cuh"
#include "walk.cuh"

namespace minisgl {

// Where in the pages a token of a segment's request is, in tokens.
__device__ __forceinline__ uint32_t slot_of(const minisgl_decode_args& a, const Segment& s, uint32_t token) {
  return a.pages[s.first_page + token / a.page_size] * a.page_size + token % a.page_size;
}

// Copies the queries of a pair to shared memory, `q_row` bytes apart. Those of fp16 are moved as if bf16.
template <int D, int THREADS, typename Kv>
__device__ __forceinline__ void copy_queries(const minisgl_decode_args& a, const Segment& s, char* q, int q_row) {
  constexpr uint32_t VECTORS = D / VEC;
  const uint32_t group = a.q_heads / a.kv_heads;
  const minisgl_bf16* from = static_cast<const minisgl_bf16*>(a.q) + (size_t(s.row) * a.q_heads + head_of_block(a) * group) * D;
#pragma unroll 1
  for (uint32_t i = threadIdx.x; i < group * VECTORS; i += THREADS) {
    const uint32_t head = i / VECTORS, at = i % VECTORS * VEC;
    *reinterpret_cast<Vec8*>(q + head * q_row + 2 * at) = Kv::query(load8(from + head * D + at));
  }
}

__device__ __forceinline__ float element(const float4& four, int i) {
  return i == 0 ? four.x : i == 1 ? four.y : i == 2 ? four.z : four.w;
}

// Brings what `make_heads` will read of a pair near, a line a lane: on its way there loads of K and V would be before it.
// Returns something of it, to be looked at when it is there.
template <int D, int WARPS>
__device__ __forceinline__ uint32_t touch_heads(const minisgl_decode_args& a, const Segment& s) {
  constexpr uint32_t LINE = 128, HEAD = D * 2 / LINE, TURNS = D * 4 / LINE;
  const uint32_t group = a.q_heads / a.kv_heads, kv_head = head_of_block(a);
  const uint32_t i = threadIdx.x % 32 * WARPS + threadIdx.x / 32, of = i / HEAD;
  const char* from = reinterpret_cast<const char*>(a.cos_sin + size_t(min(s.len, a.positions_len) - 1) * D);
  if (of < group + 2) {
    const uint32_t head = of < group ? kv_head * group + of : a.q_heads + (of - group) * a.kv_heads + kv_head;
    const size_t row = size_t(s.row) * (a.q_heads + 2 * a.kv_heads) + head;
    from = static_cast<const char*>(a.q) + row * D * 2 + i % HEAD * LINE;
  } else if (i - (group + 2) * HEAD < TURNS) {
    from += (i - (group + 2) * HEAD) * LINE;
  } else {
    return 0;
  }
  return *reinterpret_cast<const uint32_t*>(from);
}

// Makes the queries of a pair from the projection; with `fresh` the new token's key and value as well, which go
// to `fresh_kv` ([2, D]) and to their pages.
template <int D, int THREADS, typename Kv, bool WINDOW>
__device__ __forceinline__ void make_heads(const minisgl_decode_args& a, const Segment& s, bool fresh, char* q,
                                           int q_row, typename Kv::Stored* fresh_kv) {
  constexpr uint32_t HALF = D / 2, USED = HALF / VEC;
  constexpr uint32_t LANES = USED <= 4 ? 4 : USED <= 8 ? 8 : 16;
  const uint32_t group = a.q_heads / a.kv_heads, heads = group + (fresh ? 2 : 0);
  const uint32_t kv_head = head_of_block(a);
  const uint32_t lane = threadIdx.x % LANES, at = lane * VEC;
  const uint32_t position = min(s.len, a.positions_len) - 1;
  const size_t row = size_t(s.row) * (a.q_heads + 2 * a.kv_heads);

  // Whole warps go round together: they reduce together.
#pragma unroll 1
  for (uint32_t first = 0; first < heads; first += THREADS / LANES) {
    const uint32_t i = first + threadIdx.x / LANES;
    const bool live = i < heads && lane < USED, is_q = i < group, is_v = i > group;
    const uint32_t head = is_q ? kv_head * group + i : a.q_heads + (is_v ? a.kv_heads : 0) + kv_head;

    // Load both halves, and all that is made of them: one after the other they would wait for each other.
    Vec8 raw[2] = {}, weights[2] = {};
    float4 turns[2][VEC / 4] = {};
    uint32_t slot = 0;
    if (live) {
      const minisgl_bf16* from = static_cast<const minisgl_bf16*>(a.q) + (row + head) * D + at;
      raw[0] = load8(from), raw[1] = load8(from + HALF);
      if (a.q_weight && !is_v) {
        const minisgl_bf16* weight = (is_q ? a.q_weight : a.k_weight) + at;
        weights[0] = load8(weight), weights[1] = load8(weight + HALF);
      }
      if (!is_v) {
        const float4* table = reinterpret_cast<const float4*>(a.cos_sin + size_t(position) * D + at);
#pragma unroll
        for (int j = 0; j < int(VEC) / 4; j++) turns[0][j] = table[j], turns[1][j] = table[HALF / 4 + j];
      }
      if (!is_q) slot = slot_of(a, s, s.len - 1);
    }
    float lo[VEC], hi[VEC];
    unpack(raw[0], lo);
    unpack(raw[1], hi);

    // Normalise queries and keys.
    if (a.q_weight) {
      float squares = 0.0f;
#pragma unroll
      for (int j = 0; j < VEC; j++) squares += lo[j] * lo[j] + hi[j] * hi[j];
      const float scale = rsqrtf(sum_lanes<LANES>(squares) / D + a.eps);
      if (live && !is_v) {
        const float more = WINDOW && a.plus_one ? 1.0f : 0.0f;
        float w[VEC];
        unpack(weights[0], w);
#pragma unroll
        for (int j = 0; j < VEC; j++) lo[j] *= scale * (WINDOW ? w[j] + more : w[j]);
        unpack(weights[1], w);
#pragma unroll
        for (int j = 0; j < VEC; j++) hi[j] *= scale * (WINDOW ? w[j] + more : w[j]);
      }
    }
    if (!live) continue;

    // Rotate queries and keys.
    if (!is_v) {
#pragma unroll
      for (int j = 0; j < VEC; j++) {
        const float cos = element(turns[0][j / 4], j % 4), sin = element(turns[1][j / 4], j % 4);
        const float l = lo[j], h = hi[j];
        lo[j] = l * cos - h * sin;
        hi[j] = h * cos + l * sin;
      }
      if (D == 96 && !is_q) keep_numbers(lo), keep_numbers(hi);
    }

    // Store where this block reads, and the pages keep.
    if (is_q) {
      *reinterpret_cast<Vec8*>(q + i * q_row + 2 * at) = Kv::query(lo);
      *reinterpret_cast<Vec8*>(q + i * q_row + 2 * (at + HALF)) = Kv::query(hi);
    } else {
      using Stored = typename Kv::Stored;
      Stored* near = fresh_kv + (is_v ? D : 0) + at;
      Stored* far = static_cast<Stored*>(is_v ? a.v_pages : a.k_pages) +
                    (size_t(slot) * a.kv_heads + kv_head) * D + at;
      Kv::store(near, lo);
      Kv::store(near + HALF, hi);
      Kv::store(far, lo);
      Kv::store(far + HALF, hi);
    }
  }
}

}  // namespace minisgl
