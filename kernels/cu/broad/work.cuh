// How the products of broad.cuh are shared out, and what fills their rings.
#pragma once

#include "../broad.h"
#include "../gate.cuh"
#include "../medium/instructions.cuh"
#include "../wgmma_e4m3.cuh"

namespace minisgl {

// Threads: two groups of four warps that multiply, and one of which a thread copies; the others leave it their registers.
constexpr uint32_t BROAD_CONSUMERS = 256, BROAD_THREADS = BROAD_CONSUMERS + 128;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr uint32_t BROAD_STAGES_MAX = 12, BROAD_BLOCK = 128;

// A tile lies in shared memory as four quarters: a gated one's are gate, up, gate, up, so that what a group of warps has
// of them belongs together.
//
// TEAMS: with 2 each group of warps multiplies 64 tokens of its own with all of the tile, with 1 the same 64 with half of it.
// Shared memory; `broad.rs` counts the same bytes. From a multiple of 1024 on:
//   ring      [stages]: the weight, [WIDE] rows of 128 bytes; x, [TOKENS] of 128 columns
//   factors   [stages][TOKENS] floats, the scales of a stage's tokens
// and when all has been multiplied, in the ring's place: partial [TOKENS][STRIDE] floats
template <int WIDE, int TEAMS>
struct Broad {
  static constexpr uint32_t HALF = WIDE / 2, QUARTER = WIDE / 4, TOKENS = 64 * TEAMS;
  static constexpr uint32_t MINE = TEAMS * HALF;  // Rows of the weight that a group of warps multiplies.
  static constexpr uint32_t WEIGHT = WIDE * BROAD_BLOCK, STAGE = WEIGHT + TOKENS * BROAD_BLOCK;
  static constexpr uint32_t STRIDE = WIDE + 8;
  // Whether a half of a tile may have rows of two blocks; such a border is at a multiple of UNIT rows.
  static constexpr bool CROSSES = BROAD_BLOCK % HALF != 0;
  static constexpr uint32_t UNIT = !CROSSES ? QUARTER : QUARTER % 16 ? 8 : 16;

  const minisgl_broad_args& a;
  // Of blocks that share a tile's columns: which this is, and how many.
  uint32_t rank, size;
  uint32_t first, count, begin, items, step, token_tiles;
  bool gated;

  __device__ __forceinline__ explicit Broad(const minisgl_broad_args& a) : a(a) {
    rank = cluster_rank(), size = cluster_size();
    const uint32_t blocks = (a.k + BROAD_BLOCK - 1) / BROAD_BLOCK;
    first = blocks * rank / size, count = blocks * (rank + 1) / size - first;
    gated = a.epilogue == MINISGL_SKINNY_GATED;
    token_tiles = (a.m + TOKENS - 1) / TOKENS;
    items = (gated ? (a.n / 2 + HALF - 1) / HALF : (a.n + WIDE - 1) / WIDE) * token_tiles;
    begin = blockIdx.x / size, step = gridDim.x / size;
  }
  // Neighbours have the same rows of the weight, so that it comes once.
  __device__ __forceinline__ uint32_t token(uint32_t item) const { return item % token_tiles * TOKENS; }
  __device__ __forceinline__ uint32_t tokens(uint32_t item) const {
    return min(TOKENS, a.m - token(item));
  }
  // The first row of the weight in a half of an item's tile.
  __device__ __forceinline__ uint32_t row(uint32_t item, uint32_t half) const {
    const uint32_t tile = item / token_tiles;
    return gated ? tile * HALF + (half ? a.n / 2 : 0) : tile * WIDE + half * HALF;
  }
};

__device__ __forceinline__ void copy_box(uint32_t to, const uint64_t* map, uint32_t column, uint32_t row, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void copy_box_once(uint32_t to, const uint64_t* map, uint32_t column, uint32_t row,
                                              uint32_t barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, %3}], "
      "[%4], %5;" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(barrier), "l"(policy)
      : "memory");
}
__device__ __forceinline__ void copy_floats(uint32_t to, const float* from, uint32_t bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(from), "r"(bytes), "r"(barrier)
               : "memory");
}

// Where in its work a block is that fills the ring: counted on, since a division here would keep the ring empty.
template <int WIDE, int TEAMS>
struct BroadCursor {
  const Broad<WIDE, TEAMS>& work;
  uint32_t item, block, stage, phase;
  uint32_t row[2], token, tokens;

  __device__ __forceinline__ explicit BroadCursor(const Broad<WIDE, TEAMS>& work)
      : work(work), item(work.begin), block(0), stage(0), phase(0) {
    enter();
  }
  __device__ __forceinline__ void enter() {
    row[0] = work.row(item, 0), row[1] = work.row(item, 1), token = work.token(item), tokens = work.tokens(item);
  }
  __device__ __forceinline__ void advance() {
    if (++stage == work.a.stages) stage = 0, phase ^= 1;
    if (++block == work.count) block = 0, item += work.step, enter();
  }
};

// Fills the ring: weights at once, x when the kernel before has left it.
template <int WIDE, int TEAMS>
__device__ __forceinline__ void broad_produce(const Broad<WIDE, TEAMS>& work, uint32_t ring, uint32_t factors, uint32_t full,
                                              uint32_t empty) {
  using Form = Broad<WIDE, TEAMS>;
  using Cursor = BroadCursor<WIDE, TEAMS>;
  const minisgl_broad_args& a = work.a;
  const uint32_t rounds = work.begin < work.items ? ((work.items - 1 - work.begin) / work.step + 1) * work.count : 0;
  const uint32_t early = min(rounds, a.stages);
  const bool once = work.token_tiles == 1;
  const size_t scales_step = a.scale_form == MINISGL_SCALE_BLOCK ? a.m : 0;
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  const auto weights = [&](const Cursor& at) {
    const uint32_t barrier = full + 8 * at.stage, column = (work.first + at.block) * BROAD_BLOCK;
    const uint32_t to = ring + at.stage * Form::STAGE;
    barrier_expect(barrier, Form::STAGE + at.tokens * 4);
#pragma unroll
    for (uint32_t quarter = 0; quarter < 4; quarter++) {
      const uint32_t row = at.row[quarter % 2] + quarter / 2 * Form::QUARTER, there = to + quarter * Form::QUARTER * BROAD_BLOCK;
      if (once) {
        copy_box_once(there, a.map, column, row, barrier, policy);
      } else {
        copy_box(there, a.map, column, row, barrier);
      }
    }
  };
  const auto tokens = [&](const Cursor& at) {
    const uint32_t barrier = full + 8 * at.stage, block = work.first + at.block;
    const uint32_t to = ring + at.stage * Form::STAGE + Form::WEIGHT;
    copy_box(to, a.x_map, block * BROAD_BLOCK, at.token, barrier);
    copy_floats(factors + at.stage * Form::TOKENS * 4, a.x_scales + block * scales_step + at.token, at.tokens * 4, barrier);
  };
  Cursor weight(work), x(work);
  for (uint32_t round = 0; round < early; round++, weight.advance()) weights(weight);
  wait_for_inputs();
  for (uint32_t round = 0; round < early; round++, x.advance()) tokens(x);
  for (uint32_t round = early; round < rounds; round++, x.advance()) {
    barrier_wait(empty + 8 * x.stage, x.phase ^ 1);
    weights(x);
    tokens(x);
  }
}

// Which rows of the weight, or outputs, a thread's sums belong to: of eight sums' worth `eight`, counted from its half's first.
template <int WIDE, int TEAMS>
__device__ __forceinline__ uint32_t broad_offset(uint32_t eight) {
  constexpr uint32_t QUARTER = Broad<WIDE, TEAMS>::QUARTER;
  const uint32_t part = TEAMS == 2 ? eight * 8 / QUARTER / 2 : threadIdx.x / 128;
  return part * QUARTER + eight * 8 % QUARTER;
}
template <int WIDE, int TEAMS>
__device__ __forceinline__ uint32_t broad_half(uint32_t eight) {
  return eight * 8 / Broad<WIDE, TEAMS>::QUARTER % 2;
}

#endif

}  // namespace minisgl
