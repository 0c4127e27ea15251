// Decode attention over a paged KV cache: one new token a request, contexts split over a fixed grid.
//
//   out[r, h] = softmax(scale * q[r, h] . K^T) V        over all tokens of r's request
//
// Split and merged as in Flash-Decoding (Dao et al., 2023), with the online softmax of FlashAttention-2
// (arXiv 2307.08691, section 3.1).
// Shapes: q, out bf16 [rows, q_heads, D], pages bf16, fp16 or fp8 (e4m3) [pages, page_size, kv_heads, D]; f32
// inside, probabilities in bf16, or fp16 where the pages are not bf16. Fused, q is the projection's row and
// this kernel does what `rope/qk_rope_page.cu` does as well.
// A block walks over its segments (walk.cuh) in tiles of TILE tokens, which a ring in shared memory holds
// some tiles ahead, across segments. The queries of a group are the 16 rows of the tensor cores' product. Of
// a tile, each warp has the scores of some tokens, and some columns of the output.
// Bytes moved: every live K and V once. Bound: read bandwidth.
#pragma once

#include "element.cuh"
#include "heads.cuh"
#include "merge.cuh"
#include "walk.cuh"

namespace minisgl {

constexpr int STAGES_MAX = 4;

template <int D, typename Kv>
struct Decode {
  using Stored = typename Kv::Stored;
  static constexpr bool BYTES = sizeof(Stored) == 1;
  static constexpr int WARPS = 4, THREADS = 32 * WARPS;
  static constexpr int TILE = D > 128 ? 32 : 64;

  // 16-byte columns of a head, and their elements. Rows are padded by one: no two of eight share banks.
  static constexpr int ELEMENTS = 16 / sizeof(Stored), COLUMNS = D / ELEMENTS;
  static constexpr int ROW = 16 * COLUMNS + 16, TILE_BYTES = TILE * ROW;
  static constexpr int Q_ROW = 2 * D + 16, P_ROW = 2 * TILE + 16;

  // Of each warp: groups of 8 tokens, elements of the output, their columns and groups of 8.
  static constexpr int TOKENS8 = TILE / 8 / WARPS;
  static constexpr int WIDTH = D == 96 ? 32 : D / WARPS;
  static constexpr int V_COLUMNS = WIDTH / ELEMENTS, WIDTH8 = WIDTH / 8;

  // Steps of 16 in the products.
  static constexpr int Q_STEPS = D / 16, P_STEPS = TILE / 16;

  struct Shared {
    char *ring, *q, *p;
    Stored* fresh;
    int32_t* slots;      // [STAGES_MAX, TILE]; in the loop only the first row
    float *most, *sums;  // [WARPS, 16]
    uint32_t* flag;

    __device__ __forceinline__ Shared(char* at, uint32_t stages)
        : ring(at),
          q(ring + stages * 2 * TILE_BYTES),
          p(q + 16 * Q_ROW),
          fresh(reinterpret_cast<Stored*>(p + 16 * P_ROW)),
          slots(reinterpret_cast<int32_t*>(fresh + 2 * D)),
          most(reinterpret_cast<float*>(slots + STAGES_MAX * TILE)),
          sums(most + WARPS * 16),
          flag(reinterpret_cast<uint32_t*>(sums + WARPS * 16)) {}
  };

  // Copies 16 bytes in the background; without a source, zeros.
  static __device__ __forceinline__ void copy16(uint32_t to, const char* from, bool there) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0)
                 : "memory");
  }

  static __device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

  // Until all but the last `stages - 2` groups are there.
  static __device__ __forceinline__ void wait_for_tile(uint32_t stages) {
    if (stages == 4) {
      asm volatile("cp.async.wait_group 2;" ::: "memory");
    } else if (stages == 3) {
      asm volatile("cp.async.wait_group 1;" ::: "memory");
    } else {
      asm volatile("cp.async.wait_group 0;" ::: "memory");
    }
  }

  // The tiles of a block's segments, one after the other, for those who load them.
  struct Ahead {
    Walk walk;
    Segment s;
    uint32_t at;
    bool live;

    __device__ __forceinline__ explicit Ahead(const minisgl_decode_args& a) : walk(a), s{}, at(0), live(true) {}

    // Goes to the next tile and gives this thread's token of it a place in the pages; -1: nothing to load.
    __device__ __forceinline__ int32_t next(const minisgl_decode_args& a) {
      at += TILE;
      if (at >= s.end) {
        live = live && walk.next(s);
        at = s.begin;
      }
      const uint32_t token = at + threadIdx.x;
      if (!live || threadIdx.x >= TILE || token >= s.end) return -1;
      if (a.fused && token + 1 == s.len) return -1;  // Is made here.
      return slot_of(a, s, token);
    }
  };

  static __device__ __forceinline__ void load_tile(const minisgl_decode_args& a, char* to, const int32_t* slots,
                                                   uint32_t head) {
    const uint32_t k_to = shared_address(to), v_to = k_to + TILE_BYTES;
    const size_t token_bytes = size_t(a.kv_heads) * D * sizeof(Stored);
    const char* k = static_cast<const char*>(a.k_pages) + head * D * sizeof(Stored);
    const char* v = static_cast<const char*>(a.v_pages) + head * D * sizeof(Stored);
#pragma unroll
    for (int i = 0; i < TILE * COLUMNS / THREADS; i++) {
      const uint32_t piece = threadIdx.x + i * THREADS, row = piece / COLUMNS, column = piece % COLUMNS;
      const int32_t slot = slots[row];
      const size_t from = max(slot, 0) * token_bytes + column * 16;
      copy16(k_to + row * ROW + column * 16, k + from, slot >= 0);
      copy16(v_to + row * ROW + column * 16, v + from, slot >= 0);
    }
  }

  // Queries as the left side of products, for every step of 16 elements.
  static __device__ __forceinline__ void load_queries(uint32_t (&q)[Q_STEPS][4], const char* from) {
    const uint32_t lane = threadIdx.x % 32;
    if constexpr (BYTES) {
      // In the order in which a column of 16 bytes has its elements in the lanes.
#pragma unroll
      for (int step = 0; step < Q_STEPS; step++) {
        const char* at = from + lane / 4 * Q_ROW + step * 32 + lane % 4 * 8;
        const uint2 low = *reinterpret_cast<const uint2*>(at);
        const uint2 high = *reinterpret_cast<const uint2*>(at + 8 * Q_ROW);
        q[step][0] = low.x, q[step][1] = high.x, q[step][2] = low.y, q[step][3] = high.y;
      }
    } else {
      const uint32_t at = shared_address(from) + lane % 16 * Q_ROW + lane / 16 * 16;
#pragma unroll
      for (int step = 0; step < Q_STEPS; step++) load_matrices(q[step], at + step * 32);
    }
  }

  // Scores of this warp's tokens.
  static __device__ __forceinline__ void score(float (&s)[TOKENS8][4], const uint32_t (&q)[Q_STEPS][4],
                                               const char* k_tile) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, matrix = lane / 8;
    // Two sums side by side: each product waits for the one before it in its sum.
    float sums[2][TOKENS8][4] = {};
    // Of four matrices, two are side by side if there are two groups of tokens, else four.
    constexpr int SIDE = 4 / TOKENS8;
    const uint32_t token = warp * 8 * TOKENS8 + matrix / SIDE * 8 + lane % 8;
    const uint32_t at = shared_address(k_tile) + token * ROW + matrix % SIDE * 16;
#pragma unroll
    for (int column = 0; column < COLUMNS; column += SIDE) {
      uint32_t k[4];
      load_matrices(k, at + column * 16);
#pragma unroll
      for (int group = 0; group < TOKENS8; group++) {
        if constexpr (BYTES) {
#pragma unroll
          for (int i = 0; i < SIDE; i++) {
            const uint32_t four = k[group * SIDE + i];
            multiply_add<true>(sums[i % 2][group], q[column + i], Fp8::widen(four & 0xffff), Fp8::widen(four >> 16));
          }
        } else {
#pragma unroll
          for (int i = 0; i < SIDE; i += 2) {
            const int step = (column + i) / 2;
            multiply_add<Kv::HALF>(sums[step % 2][group], q[step], k[group * SIDE + i], k[group * SIDE + i + 1]);
          }
        }
      }
    }
#pragma unroll
    for (int group = 0; group < TOKENS8; group++) {
#pragma unroll
      for (int i = 0; i < 4; i++) s[group][i] = sums[0][group][i] + sums[1][group][i];
    }
  }

  // Adds the tile's values, weighed, to this warp's part of the output. With fp8, groups 2i and 2i + 1 have the
  // even and the odd elements of a column.
  static __device__ __forceinline__ void add_values(float (&out)[WIDTH8][4], const char* p_tile,
                                                    const char* v_tile) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, matrix = lane / 8;
    const uint32_t p_at = shared_address(p_tile) + lane % 16 * P_ROW + lane / 16 * 16;
    const uint32_t v_at = shared_address(v_tile) + warp * V_COLUMNS * 16;
    uint32_t p[P_STEPS][4];
#pragma unroll
    for (int step = 0; step < P_STEPS; step++) load_matrices(p[step], p_at + step * 32);
    const auto add_bytes = [&](int column, int step, uint32_t low, uint32_t high) {
      // Each has 2 tokens x 2 elements: sort by element.
      low = __byte_perm(low, 0, 0x3120), high = __byte_perm(high, 0, 0x3120);
      multiply_add<true>(out[2 * column], p[step], Fp8::widen(low & 0xffff), Fp8::widen(high & 0xffff));
      multiply_add<true>(out[2 * column + 1], p[step], Fp8::widen(low >> 16), Fp8::widen(high >> 16));
    };
    uint32_t v[4];
    if constexpr (V_COLUMNS == 1) {
#pragma unroll
      for (int step = 0; step < P_STEPS; step += 2) {
        load_transposed(v, v_at + (step * 16 + lane) * ROW);
        add_bytes(0, step, v[0], v[1]);
        add_bytes(0, step + 1, v[2], v[3]);
      }
    } else {
#pragma unroll
      for (int step = 0; step < P_STEPS; step++) {
#pragma unroll
        for (int column = 0; column < V_COLUMNS; column += 2) {
          load_transposed(v, v_at + (step * 16 + lane % 16) * ROW + (column + matrix / 2) * 16);
          if constexpr (BYTES) {
            add_bytes(column, step, v[0], v[1]);
            add_bytes(column + 1, step, v[2], v[3]);
          } else {
            multiply_add<Kv::HALF>(out[column], p[step], v[0], v[1]);
            multiply_add<Kv::HALF>(out[column + 1], p[step], v[2], v[3]);
          }
        }
      }
    }
  }

  // Calls `put(row of two, element of the head, two or four neighbours)` for what this thread has of the output.
  template <typename Put>
  static __device__ __forceinline__ void for_outputs(const float (&out)[WIDTH8][4], Put put) {
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (warp * WIDTH >= D) return;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      if constexpr (BYTES) {
#pragma unroll
        for (int i = 0; i < WIDTH8; i += 2) {
          const float four[4] = {out[i][2 * half], out[i + 1][2 * half], out[i][2 * half + 1], out[i + 1][2 * half + 1]};
          put(half, warp * WIDTH + i * 8 + lane % 4 * 4, four);
        }
      } else {
#pragma unroll
        for (int i = 0; i < WIDTH8; i++) {
          const float two[2] = {out[i][2 * half], out[i][2 * half + 1]};
          put(half, warp * WIDTH + i * 8 + lane % 4 * 2, two);
        }
      }
    }
  }

  static __device__ __forceinline__ void run(const minisgl_decode_args& a) {
    extern __shared__ __align__(128) char memory[];
    const Shared shared(memory, a.stages);
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t group = a.q_heads / a.kv_heads;
    const float scale = a.scale * 1.4426950408889634f;  // exp(x) is 2^(x log2 e).

    // Rows without a query are zeros.
    for (uint32_t i = threadIdx.x; i < 16 * Q_ROW / 16; i += THREADS) {
      reinterpret_cast<uint4*>(shared.q)[i] = make_uint4(0, 0, 0, 0);
    }

    // Fused, the pages' older tokens were written long before the kernel that this one may overlap.
    if (!a.fused) wait_for_inputs();
    Ahead ahead(a);
    uint32_t next_head = 0;
    bool next_live = false;
    {
      // Look up the first tiles together; load all but the last of them.
      int32_t slots[STAGES_MAX];
      uint32_t heads[STAGES_MAX];
      bool live[STAGES_MAX];
#pragma unroll
      for (int i = 0; i < STAGES_MAX; i++) {
        if (i >= a.stages) break;
        slots[i] = ahead.next(a);
        heads[i] = ahead.s.head, live[i] = ahead.live;
      }
#pragma unroll
      for (int i = 0; i < STAGES_MAX; i++) {
        if (i >= a.stages) break;
        const bool last = i + 1 == a.stages;
        if (threadIdx.x < TILE) shared.slots[(last ? 0 : i + 1) * TILE + threadIdx.x] = slots[i];
        if (last) next_head = heads[i], next_live = live[i];
      }
      __syncthreads();
#pragma unroll
      for (int i = 0; i < STAGES_MAX - 1; i++) {
        if (i + 1 >= a.stages) break;
        if (live[i]) load_tile(a, shared.ring + i * 2 * TILE_BYTES, shared.slots + (i + 1) * TILE, heads[i]);
        commit();
      }
    }
    if (a.fused) wait_for_inputs();
    let_next_start();

    Walk walk(a);
    Segment s;
    uint32_t stage = 0;
    while (walk.next(s)) {
      const bool fresh = a.fused && s.end == s.len;
      if (a.fused) {
        make_heads<D, THREADS, Kv>(a, s, fresh, shared.q, Q_ROW, shared.fresh);
      } else {
        copy_queries<D, THREADS, Kv>(a, s, shared.q, Q_ROW);
      }
      __syncthreads();
      uint32_t q[Q_STEPS][4];
      load_queries(q, shared.q);
      float out[WIDTH8][4] = {};
      float most[2] = {-INFINITY, -INFINITY}, sum[2] = {};  // of rows lane / 4 and lane / 4 + 8

      for (uint32_t at = s.begin; at < s.end; at += TILE) {
        // Take the tile; load one into the place of the tile before; look up the next.
        wait_for_tile(a.stages);
        __syncthreads();
        char* tile = shared.ring + stage * 2 * TILE_BYTES;
        const uint32_t free = stage == 0 ? a.stages - 1 : stage - 1;
        if (next_live) load_tile(a, shared.ring + free * 2 * TILE_BYTES, shared.slots, next_head);
        commit();
        stage = stage + 1 == a.stages ? 0 : stage + 1;
        const int32_t next_slot = ahead.next(a);
        next_head = ahead.s.head, next_live = ahead.live;

        if (fresh && at + TILE >= s.end) {
          // The warp that scores the new token puts it in; the others see its value after the barriers below.
          const uint32_t row = s.len - 1 - at;
          if (warp == row / (8 * TOKENS8)) {
            for (uint32_t i = lane; i < 2 * COLUMNS; i += 32) {
              const uint32_t is_v = i / COLUMNS, column = i % COLUMNS;
              *reinterpret_cast<uint4*>(tile + is_v * TILE_BYTES + row * ROW + column * 16) =
                  reinterpret_cast<const uint4*>(shared.fresh)[i];
            }
            __syncwarp();
          }
        }

        // Score, and find each query's highest score.
        float p[TOKENS8][4];
        score(p, q, tile);
        const uint32_t limit = s.end - at, token = warp * 8 * TOKENS8 + lane % 4 * 2;
        float high[2] = {-INFINITY, -INFINITY};
#pragma unroll
        for (int i = 0; i < TOKENS8; i++) {
#pragma unroll
          for (int j = 0; j < 4; j++) {
            p[i][j] = token + i * 8 + j % 2 < limit ? p[i][j] * scale : -INFINITY;
            high[j / 2] = fmaxf(high[j / 2], p[i][j]);
          }
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
          high[half] = fmaxf(high[half], __shfl_xor_sync(~0u, high[half], 1));
          high[half] = fmaxf(high[half], __shfl_xor_sync(~0u, high[half], 2));
          if (lane % 4 == 0) shared.most[warp * 16 + half * 8 + lane / 4] = high[half];
        }
        __syncthreads();
        float kept[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
          float next = most[half];
#pragma unroll
          for (int i = 0; i < WARPS; i++) next = fmaxf(next, shared.most[i * 16 + half * 8 + lane / 4]);
          kept[half] = exp2_fast(most[half] - next);
          most[half] = next;
          sum[half] *= kept[half];
        }

        // Weigh the tokens; what came before is worth less by as much as the maximum has grown.
#pragma unroll
        for (int i = 0; i < TOKENS8; i++) {
#pragma unroll
          for (int half = 0; half < 2; half++) {
            const float x = exp2_fast(p[i][2 * half] - most[half]), y = exp2_fast(p[i][2 * half + 1] - most[half]);
            sum[half] += x + y;
            char* to = shared.p + (half * 8 + lane / 4) * P_ROW + (token + i * 8) * 2;
            *reinterpret_cast<uint32_t*>(to) = Kv::pair(x, y);
          }
        }
#pragma unroll
        for (int i = 0; i < WIDTH8; i++) {
#pragma unroll
          for (int j = 0; j < 4; j++) out[i][j] *= kept[j / 2];
        }
        if (threadIdx.x < TILE) shared.slots[threadIdx.x] = next_slot;
        __syncthreads();
        if (warp * WIDTH < D) add_values(out, shared.p, tile + TILE_BYTES);
      }

      // Sum over the warps' tokens.
#pragma unroll
      for (int half = 0; half < 2; half++) {
        sum[half] += __shfl_xor_sync(~0u, sum[half], 1);
        sum[half] += __shfl_xor_sync(~0u, sum[half], 2);
        if (lane % 4 == 0) shared.sums[warp * 16 + half * 8 + lane / 4] = sum[half];
      }
      __syncthreads();
#pragma unroll
      for (int half = 0; half < 2; half++) {
        sum[half] = 0.0f;
#pragma unroll
        for (int i = 0; i < WARPS; i++) sum[half] += shared.sums[i * 16 + half * 8 + lane / 4];
      }

      if (s.chunks == 1) {
        minisgl_bf16* to = a.out + (size_t(s.row) * a.q_heads + s.head * group) * D;
        const float inverse[2] = {1.0f / sum[0], 1.0f / sum[1]};
        for_outputs(out, [&](int half, uint32_t element, const auto& values) {
          const uint32_t head = half * 8 + lane / 4;
          if (head >= group) return;
#pragma unroll
          for (int i = 0; i < int(sizeof(values) / 4); i += 2) {
            *reinterpret_cast<__nv_bfloat162*>(to + head * D + element + i) =
                __floats2bfloat162_rn(values[i] * inverse[half], values[i + 1] * inverse[half]);
          }
        });
      } else {
        const Partials partials = Partials::of<D>(a, group);
        const size_t row = size_t(Partials::place(blockIdx.x, s.first)) * group;
        for_outputs(out, [&](int half, uint32_t element, const auto& values) {
          const uint32_t head = half * 8 + lane / 4;
          if (head >= group) return;
#pragma unroll
          for (int i = 0; i < int(sizeof(values) / 4); i += 2) {
            *reinterpret_cast<float2*>(partials.out + (row + head) * D + element + i) =
                make_float2(values[i], values[i + 1]);
          }
        });
        if (warp == 0 && lane % 4 == 0) {
#pragma unroll
          for (int half = 0; half < 2; half++) {
            const uint32_t head = half * 8 + lane / 4;
            if (head < group) partials.sums[row + head] = make_float2(most[half], sum[half]);
          }
        }
        if (arrive_last(a, s, shared.flag)) merge<D, THREADS>(a, s);
      }
    }
  }
};

}  // namespace minisgl

#define DECODE(KV, NAME)                                                                              \
  KERNEL __launch_bounds__(128, 2) NAME(const __grid_constant__ minisgl_decode_args a) {               \
    minisgl::Decode<HEAD_DIM, minisgl::KV>::run(a);                                                    \
  }
