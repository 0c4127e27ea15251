// Decode attention over a paged KV cache: one new token a request, contexts split over a fixed grid.
//
//   out[r, h] = softmax(scale * q[r, h] . K^T) V        over all tokens of r's request
//
// With heads of 128 outputs may be left as e4m3, with a scale for each head, for a product that takes them so.
// With WINDOW over the last `window` of them (pages before those are not read), with one more logit in the softmax of
// each head, its sink, and with norms whose weights are stored less 1; each of the three where a launch has it.
// Split and merged as in Flash-Decoding (Dao et al., 2023), with the online softmax of FlashAttention-2
// (arXiv 2307.08691, section 3.1).
// Shapes: q bf16 (fp16 with fp16 pages), out bf16 [rows, q_heads, D], pages bf16, fp16 or fp8 (e4m3) [pages, page_size, kv_heads, D]; f32
// inside, probabilities in bf16, or fp16 where the pages are not bf16. Fused, q is the projection's row and
// this kernel does what `rope/qk_rope_page.cu` does as well.
// A team of blocks, one for each key head, walks over its segments (walk.cuh) side by side: together they
// read whole tokens of the pages. Its warps take turns with tiles of a segment, each by itself, with
// a ring of tiles in shared memory that are loaded ahead, across segments; at a segment's end they meet to add
// up. The queries of a group are the 16 rows of the tensor cores' product.
// Bytes moved: every live K and V once. Bound: read bandwidth.
// Measured (H100 80GB HBM3, 2026-11-22, `gpu decode --bench`), bf16, 8 key heads of 128, group 2, page_size 16, of
// 3.14 TB/s: 91 % at 256 requests of 100 to 1,600 tokens, 83 % at 64, 76 % at 32; one request of 1,000 tokens takes
// 6.8 us (floor 1.3), of 8,000 tokens 17.5 us (floor 10.4), fused, and of 32,000 54 us (floor 41.7).
#pragma once

#include "merge.cuh"
#include "tile.cuh"

namespace minisgl {

template <int D, typename Kv, bool WINDOW = false>
struct Decode {
  using Tile = minisgl::Tile<D, Kv>;
  using Stored = typename Kv::Stored;
  static constexpr uint32_t WARPS = 4, THREADS = 32 * WARPS, TOKENS = Tile::TOKENS;

  struct Shared {
    char *ring, *q;   // [WARPS, stages] tiles; [16] rows
    Stored* fresh;    // [2, D]: the new token's K and V
    float** outputs;  // [WARPS]: where a warp has laid out its output; null if it had no tile
    uint32_t* flag;

    __device__ __forceinline__ Shared(char* at, uint32_t stages)
        : ring(at),
          q(ring + WARPS * stages * Tile::TILE_BYTES),
          fresh(reinterpret_cast<Stored*>(q + 16 * Tile::Q_ROW)),
          outputs(reinterpret_cast<float**>(fresh + 2 * D)),
          flag(reinterpret_cast<uint32_t*>(outputs + WARPS)) {}
  };

  static __device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

  // Until all but the last `stages - 2` groups are there, for the whole warp.
  static __device__ __forceinline__ void wait_for_tile(uint32_t stages) {
    if (stages == 4) {
      asm volatile("cp.async.wait_group 2;" ::: "memory");
    } else if (stages == 3) {
      asm volatile("cp.async.wait_group 1;" ::: "memory");
    } else {
      asm volatile("cp.async.wait_group 0;" ::: "memory");
    }
    __syncwarp();
  }

  // A tile to be loaded: each lane's token of it.
  struct Lookup {
    uint32_t page;
    int32_t rest;  // in the page; -1: nothing to load
    bool live;     // whether there is a tile

    __device__ __forceinline__ int32_t slot(uint32_t page_size) const {
      return rest < 0 ? -1 : int32_t(page * page_size + rest);
    }
  };

  // This warp's tiles of the block's segments, one after the other.
  struct Ahead {
    Walk<WINDOW> walk;
    Segment s;
    uint32_t at, touched;
    bool live, touches;

    __device__ __forceinline__ explicit Ahead(const minisgl_decode_args& a)
        : walk(a), s{}, at(0), touched(0), live(true), touches(false) {}

    __device__ __forceinline__ Lookup next(const minisgl_decode_args& a) {
      const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
      at += WARPS * TOKENS;
      while (live && at >= s.end) {
        live = walk.next(s);
        at = s.begin + warp * TOKENS;
        if (touches && live) {
          // Looked at only so that it is loaded, and not before it is there.
          if (touched == 0x7fd5ffff) __nanosleep(1);
          touched = touch_heads<D, WARPS>(a, s);
        }
      }
      Lookup tile = {0, -1, live};
      const uint32_t token = at + lane;
      // Fused, the newest token is made here.
      const bool seen = !WINDOW || token >= first_seen<WINDOW>(s.len, a.window);
      if (live && lane < TOKENS && token < s.end && seen && !(a.fused && token + 1 == s.len)) {
        tile.page = a.pages[s.first_page + token / a.page_size];
        tile.rest = token % a.page_size;
      }
      return tile;
    }
  };

  // Adds up what the warps have of a segment, and puts it where it belongs.
  static __device__ __forceinline__ void finish(const minisgl_decode_args& a, const Segment& s, const Shared& shared) {
    constexpr uint32_t VECTORS = D / 4;
    const uint32_t group = a.q_heads / a.kv_heads;
    const Partials partials = Partials::of<D>(a, group);
    const size_t place = Partials::place(a, team_of_block(a), s.first);
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < group * VECTORS; i += THREADS) {
      const uint32_t head = i / VECTORS, at = i % VECTORS * 4;
      float most = -INFINITY, sum = 0.0f;
      float2 sums[WARPS];
#pragma unroll
      for (uint32_t warp = 0; warp < WARPS; warp++) {
        const float* output = shared.outputs[warp];
        sums[warp] = make_float2(-INFINITY, 0.0f);
        if (output != nullptr) sums[warp] = *reinterpret_cast<const float2*>(output + head * Tile::OUT_ROW + D);
        most = fmaxf(most, sums[warp].x);
      }
      float4 out = {};
#pragma unroll
      for (uint32_t warp = 0; warp < WARPS; warp++) {
        const float* output = shared.outputs[warp];
        if (output == nullptr) continue;
        const float share = exp2_fast(sums[warp].x - most);
        const float4 part = *reinterpret_cast<const float4*>(output + head * Tile::OUT_ROW + at);
        sum += share * sums[warp].y;
        out.x += share * part.x, out.y += share * part.y, out.z += share * part.z, out.w += share * part.w;
      }
      if (s.chunks == 1) {
        add_sink<WINDOW>(a, head, most, out, sum);
        store_output<D>(a, s.row, head_of_block(a) * group + head, at, out, sum);
      } else {
        *reinterpret_cast<float4*>(partials.out + (place + head) * D + at) = out;
        if (at == 0) partials.sums[place + head] = make_float2(most, sum);
      }
    }
    if (s.chunks > 1 && arrive_last(a, s, shared.flag)) merge<D, THREADS, WINDOW>(a, s);
  }

  static __device__ __forceinline__ void run(const minisgl_decode_args& a) {
    extern __shared__ __align__(128) char memory[];
    const Shared shared(memory, a.stages);
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t group = a.q_heads / a.kv_heads;
    const float scale = a.scale * 1.4426950408889634f;  // exp(x) is 2^(x log2 e).
    char* ring = shared.ring + warp * a.stages * Tile::TILE_BYTES;

    // Rows without a query are zeros.
    for (uint32_t i = group * (Tile::Q_ROW / 16) + threadIdx.x; i < 16 * (Tile::Q_ROW / 16); i += THREADS) {
      reinterpret_cast<uint4*>(shared.q)[i] = make_uint4(0, 0, 0, 0);
    }

    // Lookups stay two tiles ahead of loads, so that no load waits long for its addresses. Fused, the pages'
    // older tokens were written long before the kernel that this one may overlap.
    Ahead ahead(a);
    Lookup next = ahead.next(a), far = ahead.next(a);
    if (!a.fused) wait_for_inputs();
    const auto load = [&](uint32_t stage) {
      if (next.live) Tile::load(a, ring + stage * Tile::TILE_BYTES, next.slot(a.page_size));
      commit();
      next = far;
      far = ahead.next(a);
    };
#pragma unroll 1
    for (uint32_t i = 0; i + 1 < a.stages; i++) load(i);
    if (a.fused) wait_for_inputs();
    let_next_start();
    ahead.touches = a.fused;

    Walk<WINDOW> walk(a);
    Segment s;
    uint32_t stage = 0;
    while (walk.next(s)) {
      const bool fresh = a.fused && s.end == s.len;
      if (a.fused) {
        make_heads<D, THREADS, Kv, WINDOW>(a, s, fresh, shared.q, Tile::Q_ROW, shared.fresh);
      } else {
        copy_queries<D, THREADS, Kv>(a, s, shared.q, Tile::Q_ROW);
      }
      __syncthreads();
      const typename Tile::Queries queries(shared.q);
      float out[Tile::D8][4] = {};
      float most[2] = {-INFINITY, -INFINITY}, sum[2] = {};  // of rows lane / 4 and lane / 4 + 8
      float* output = nullptr;

      for (uint32_t at = s.begin + warp * TOKENS; at < s.end; at += WARPS * TOKENS) {
        // Take the tile, and load one into the place of the tile before.
        wait_for_tile(a.stages);
        char* tile = ring + stage * Tile::TILE_BYTES;
        load(stage == 0 ? a.stages - 1 : stage - 1);
        stage = stage + 1 == a.stages ? 0 : stage + 1;

        if (fresh && at + TOKENS >= s.end) {
          const uint32_t row = s.len - 1 - at;
#pragma unroll 1
          for (uint32_t i = lane; i < 2 * Tile::COLUMNS; i += 32) {
            const uint32_t is_v = i / Tile::COLUMNS, column = i % Tile::COLUMNS;
            *reinterpret_cast<uint4*>(tile + is_v * Tile::K_BYTES + row * Tile::ROW + column * 16) =
                reinterpret_cast<const uint4*>(shared.fresh)[i];
          }
          __syncwarp();
        }

        // Score, and find each query's highest score.
        float p[Tile::TOKENS8][4];
        Tile::score(p, queries, tile);
        const uint32_t limit = s.end - at;
        // Before the window; a tile has a token of it at least.
        const uint32_t seen = first_seen<WINDOW>(s.len, a.window), hidden = seen > at ? seen - at : 0;
        float high[2] = {most[0], most[1]};
#pragma unroll
        for (int i = 0; i < Tile::TOKENS8; i++) {
#pragma unroll
          for (int j = 0; j < 4; j++) {
            const uint32_t token = lane % 4 * 2 + i * 8 + j % 2;
            p[i][j] = token < limit && (!WINDOW || token >= hidden) ? p[i][j] * scale : -INFINITY;
            high[j / 2] = fmaxf(high[j / 2], p[i][j]);
          }
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
          high[half] = fmaxf(high[half], __shfl_xor_sync(~0u, high[half], 1));
          high[half] = fmaxf(high[half], __shfl_xor_sync(~0u, high[half], 2));
        }

        // What came before is worth less by as much as the maximum has grown.
        if (__any_sync(~0u, high[0] > most[0] || high[1] > most[1])) {
#pragma unroll
          for (int half = 0; half < 2; half++) {
            const float kept = exp2_fast(most[half] - high[half]);
            most[half] = high[half];
            sum[half] *= kept;
#pragma unroll
            for (int i = 0; i < Tile::D8; i++) out[i][2 * half] *= kept, out[i][2 * half + 1] *= kept;
          }
        }

        // Weigh the tokens.
#pragma unroll
        for (int i = 0; i < Tile::TOKENS8; i++) {
#pragma unroll
          for (int j = 0; j < 4; j++) {
            p[i][j] = exp2_fast(p[i][j] - most[j / 2]);
            sum[j / 2] += p[i][j];
          }
        }
        Tile::add_values(out, p, tile + Tile::K_BYTES);
        output = reinterpret_cast<float*>(tile);
      }

      // The place of the last tile is free until this warp's next tile but one is loaded, in the next segment.
#pragma unroll
      for (int half = 0; half < 2; half++) {
        sum[half] += __shfl_xor_sync(~0u, sum[half], 1);
        sum[half] += __shfl_xor_sync(~0u, sum[half], 2);
      }
      __syncwarp();
      if (lane == 0) shared.outputs[warp] = output;
      if (output != nullptr) Tile::put_output(output, out, most, sum);
      __syncthreads();
      finish(a, s, shared);
    }
  }
};

}  // namespace minisgl

#define DECODE(KV, NAME)                                                                              \
  KERNEL __launch_bounds__(128, 2) NAME(const __grid_constant__ minisgl_decode_args a) {               \
    minisgl::Decode<HEAD_DIM, minisgl::KV>::run(a);                                                    \
  }
#define DECODE_WINDOW(KV, NAME)                                                                       \
  KERNEL __launch_bounds__(128, 2) NAME(const __grid_constant__ minisgl_decode_args a) {               \
    minisgl::Decode<HEAD_DIM, minisgl::KV, true>::run(a);                                              \
  }
