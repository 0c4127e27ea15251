// A warp's tile of K and V in shared memory: how it is loaded from the pages, and its two products.
#pragma once

#include "element.cuh"
#include "heads.cuh"

namespace minisgl {

template <int D, typename Kv>
struct Tile {
  using Stored = typename Kv::Stored;
  static constexpr bool BYTES = sizeof(Stored) == 1;
  static constexpr int TOKENS = BYTES ? 32 : 16, TOKENS8 = TOKENS / 8;

  // 16-byte columns of a head, and their elements. Rows are padded by one: no two of eight share banks.
  static constexpr int ELEMENTS = 16 / sizeof(Stored), COLUMNS = D / ELEMENTS;
  static constexpr int ROW = 16 * COLUMNS + 16, K_BYTES = TOKENS * ROW, TILE_BYTES = 2 * K_BYTES;
  static constexpr int Q_ROW = 2 * D + 16;

  // Steps of 16 elements, steps of 16 tokens, groups of 8 elements.
  static constexpr int Q_STEPS = D / 16, P_STEPS = TOKENS / 16, D8 = D / 8;

  // Copies 16 bytes in the background; zeros if there is nothing to copy. What is read once leaves the cache first: page
  // tables and the projection's rows, which all blocks wait for, stay.
  static __device__ __forceinline__ void copy16(uint32_t to, const char* from, bool there) {
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    asm volatile("cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2, %3;" ::"r"(to), "l"(from),
                 "r"(there ? 16 : 0), "l"(policy)
                 : "memory");
  }

  // Loads a tile of the block's key head; the lanes have its tokens' places in `slot`, -1 for none.
  static __device__ __forceinline__ void load(const minisgl_decode_args& a, char* to, int32_t slot) {
    const uint32_t lane = threadIdx.x % 32, k_to = shared_address(to), v_to = k_to + K_BYTES;
    const size_t token_bytes = size_t(a.kv_heads) * D * sizeof(Stored);
    const size_t of_head = head_of_block(a) * D * sizeof(Stored);
    const char* k = static_cast<const char*>(a.k_pages) + of_head;
    const char* v = static_cast<const char*>(a.v_pages) + of_head;
#pragma unroll
    for (int i = 0; i < TOKENS * COLUMNS / 32; i++) {
      const uint32_t piece = lane + i * 32, row = piece / COLUMNS, column = piece % COLUMNS;
      const int32_t of_row = __shfl_sync(~0u, slot, row);
      const size_t from = max(of_row, 0) * token_bytes + column * 16;
      copy16(k_to + row * ROW + column * 16, k + from, of_row >= 0);
      copy16(v_to + row * ROW + column * 16, v + from, of_row >= 0);
    }
  }

  // The queries of a pair as the left side of products. Kept in registers where they leave room.
  struct Queries {
    static constexpr bool KEPT = D <= 128;
    const char* from;
    uint32_t kept[KEPT ? Q_STEPS : 1][4];

    static __device__ __forceinline__ void load(uint32_t (&q)[4], const char* from, int step) {
      const uint32_t lane = threadIdx.x % 32;
      if constexpr (BYTES) {
        // In the order in which a column of 16 bytes has its elements in the lanes.
        const char* at = from + lane / 4 * Q_ROW + step * 32 + lane % 4 * 8;
        const uint2 low = *reinterpret_cast<const uint2*>(at), high = *reinterpret_cast<const uint2*>(at + 8 * Q_ROW);
        q[0] = low.x, q[1] = high.x, q[2] = low.y, q[3] = high.y;
      } else {
        load_matrices(q, shared_address(from) + lane % 16 * Q_ROW + lane / 16 * 16 + step * 32);
      }
    }

    __device__ __forceinline__ explicit Queries(const char* q) : from(q) {
      if constexpr (KEPT) {
#pragma unroll
        for (int step = 0; step < Q_STEPS; step++) load(kept[step], from, step);
      }
    }

    __device__ __forceinline__ void get(uint32_t (&q)[4], int step) const {
      if constexpr (KEPT) {
#pragma unroll
        for (int i = 0; i < 4; i++) q[i] = kept[step][i];
      } else {
        load(q, from, step);
      }
    }
  };

  // Scores of 16 queries and the tile's tokens.
  static __device__ __forceinline__ void score(float (&s)[TOKENS8][4], const Queries& queries, const char* k_tile) {
    const uint32_t lane = threadIdx.x % 32, matrix = lane / 8;
    // With few tokens two sums side by side: each product waits for the one before it in its sum.
    constexpr int SUMS = TOKENS8 == 2 ? 2 : 1;
    float sums[SUMS][TOKENS8][4] = {};
    const uint32_t at = shared_address(k_tile) + (matrix / 2 * 8 + lane % 8) * ROW + matrix % 2 * 16;
#pragma unroll
    for (int column = 0; column < COLUMNS; column += 2) {
      uint32_t q[2][4];
      queries.get(q[0], BYTES ? column : column / 2);
      if constexpr (BYTES) queries.get(q[1], column + 1);
#pragma unroll
      for (int group = 0; group < TOKENS8; group += 2) {
        uint32_t k[4];
        load_matrices(k, at + group * 8 * ROW + column * 16);
        if constexpr (BYTES) {
#pragma unroll
          for (int i = 0; i < 4; i++) {
            multiply_add<true>(sums[0][group + i / 2], q[i % 2], Fp8::widen(k[i] & 0xffff), Fp8::widen(k[i] >> 16));
          }
        } else {
          auto& sum = sums[column / 2 % SUMS];
          multiply_add<Kv::HALF>(sum[group], q[0], k[0], k[1]);
          multiply_add<Kv::HALF>(sum[group + 1], q[0], k[2], k[3]);
        }
      }
    }
#pragma unroll
    for (int group = 0; group < TOKENS8; group++) {
#pragma unroll
      for (int i = 0; i < 4; i++) s[group][i] = sums[0][group][i] + (SUMS == 2 ? sums[SUMS - 1][group][i] : 0.0f);
    }
  }

  // Adds the tile's values, weighed. With fp8, groups 2i and 2i + 1 of the output have the even and the odd
  // elements of a column.
  static __device__ __forceinline__ void add_values(float (&out)[D8][4], const float (&p)[TOKENS8][4],
                                                    const char* v_tile) {
    const uint32_t lane = threadIdx.x % 32, matrix = lane / 8;
    const uint32_t at = shared_address(v_tile) + lane % 16 * ROW + matrix / 2 * 16;
#pragma unroll
    for (int step = 0; step < P_STEPS; step++) {
      // Where a product leaves its result is where the next takes its left side.
      const float(&low)[4] = p[2 * step], (&high)[4] = p[2 * step + 1];
      const uint32_t left[4] = {Kv::pair(low[0], low[1]), Kv::pair(low[2], low[3]), Kv::pair(high[0], high[1]),
                                Kv::pair(high[2], high[3])};
#pragma unroll
      for (int column = 0; column < COLUMNS; column += 2) {
        uint32_t v[4];
        load_transposed(v, at + step * 16 * ROW + column * 16);
        if constexpr (BYTES) {
          // Each has 2 tokens x 2 elements: sort by element.
#pragma unroll
          for (int i = 0; i < 4; i++) v[i] = __byte_perm(v[i], 0, 0x3120);
#pragma unroll
          for (int i = 0; i < 4; i += 2) {
            float(&even)[4] = out[2 * column + i], (&odd)[4] = out[2 * column + i + 1];
            multiply_add<true>(even, left, Fp8::widen(v[i] & 0xffff), Fp8::widen(v[i + 1] & 0xffff));
            multiply_add<true>(odd, left, Fp8::widen(v[i] >> 16), Fp8::widen(v[i + 1] >> 16));
          }
        } else {
          multiply_add<Kv::HALF>(out[column], left, v[0], v[1]);
          multiply_add<Kv::HALF>(out[column + 1], left, v[2], v[3]);
        }
      }
    }
  }

  // Lays a warp's output out in the place of a tile: 16 rows, OUT_ROW apart, of D elements, their maximum and
  // their sum.
  static constexpr int OUT_ROW = TILE_BYTES / 16 / 4;
  static_assert(OUT_ROW >= D + 2 && OUT_ROW % 4 == 0);

  static __device__ __forceinline__ void put_output(float* to, const float (&out)[D8][4], const float (&most)[2],
                                                    const float (&sum)[2]) {
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float* row = to + (half * 8 + lane / 4) * OUT_ROW;
      if (lane % 4 == 0) *reinterpret_cast<float2*>(row + D) = make_float2(most[half], sum[half]);
      if constexpr (BYTES) {
#pragma unroll
        for (int i = 0; i < D8; i += 2) {
          *reinterpret_cast<float4*>(row + i * 8 + lane % 4 * 4) = make_float4(
              out[i][2 * half], out[i + 1][2 * half], out[i][2 * half + 1], out[i + 1][2 * half + 1]);
        }
      } else {
#pragma unroll
        for (int i = 0; i < D8; i++) {
          *reinterpret_cast<float2*>(row + i * 8 + lane % 4 * 2) = make_float2(out[i][2 * half], out[i][2 * half + 1]);
        }
      }
    }
  }
};

}  // namespace minisgl
