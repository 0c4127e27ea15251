// Product of many rows of e4m3 with a weight of e4m3: from as many as fill a tensor core's tile to where cuBLASLt is as fast.
//
//   out[m, n] = (x_scale * x[m, k]) * (scale * weight[n, k])^T        then: + bias, or out += , or silu(gate) * up
//
// Shapes: as narrow.cu, but any m, and what is gated stays bf16. Sums of 128 columns as the tensor cores add them,
// multiplied by their scales and added in f32.
// Bytes moved: n k, and out of the cache m k for each tile of the weight's rows; FLOPs 2 m n k. Bound: read bandwidth up to
// some 150 rows, tensor cores beyond.
//
// A block computes WIDE rows of the weight times 64 or 128 tokens at a time. Where a weight has fewer tiles than the GPU
// multiprocessors, the blocks of a cluster share a tile's columns, and add up what they have through each other's shared memory
// in the order of columns. Tokens are the rows of the tensor cores' products here: a thread has two of them, so that
// scales cost a few multiplications a stage, where narrow.cu looks up two for every four sums.
// Measured (one H200, 2026-11-30, docs/benchmarks.md): Qwen3-8B's four products 68 us at 32 rows, 82 at 128.

#pragma once

#include "ends.cuh"

namespace minisgl {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// What a stage's sums are multiplied by: of the block of rows in which a half of a tile begins, and of the next. Fetched a
// stage ahead.
template <int WIDE, int TEAMS>
struct BroadScales {
  const float* first;     // Of the first half's block; null if tokens and rows have scales.
  int32_t from_first[3];  // Where the next block's are, those of the second half's block, and of the next.
  float low[2], high[2];

  __device__ __forceinline__ void enter(const Broad<WIDE, TEAMS>& work, uint32_t item) {
    const minisgl_broad_args& a = work.a;
    first = nullptr;
    if (a.scale_form != MINISGL_SCALE_BLOCK) return;
    const uint32_t units = ((a.k + BROAD_BLOCK - 1) / BROAD_BLOCK + MINISGL_SCALE_UNIT - 1) / MINISGL_SCALE_UNIT;
    const uint32_t last = (a.n - 1) / BROAD_BLOCK, stride = units * MINISGL_SCALE_UNIT;
    // Rows that are not there have the last ones'.
    const uint32_t of[2] = {min(work.row(item, 0) / BROAD_BLOCK, last), min(work.row(item, 1) / BROAD_BLOCK, last)};
    first = a.scales + size_t(of[0]) * stride + work.first;
    from_first[0] = (min(of[0] + 1, last) - of[0]) * stride;
    from_first[1] = (of[1] - of[0]) * stride, from_first[2] = (min(of[1] + 1, last) - of[0]) * stride;
  }
  __device__ __forceinline__ void fetch(uint32_t block) {
    low[0] = low[1] = high[0] = high[1] = 1.0f;
    if (!first) return;
    const float* at = first + block;
    low[0] = __ldg(at), low[1] = __ldg(at + from_first[1]);
    if (Broad<WIDE, TEAMS>::CROSSES) high[0] = __ldg(at + from_first[0]), high[1] = __ldg(at + from_first[2]);
  }
};

template <int WIDE, int TEAMS>
__device__ __forceinline__ void broad_consume(const Broad<WIDE, TEAMS>& work, uint32_t ring, char* ring_at, uint32_t full,
                                              uint32_t empty, const float* factors) {
  using Form = Broad<WIDE, TEAMS>;
  const minisgl_broad_args& a = work.a;
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t here = (TEAMS == 2 ? warp * 16 : warp % 4 * 16) + lane / 4;
  const uint32_t begin = work.begin;
  BroadScales<WIDE, TEAMS> next;
  next.enter(work, begin);
  next.fetch(0);
  uint32_t stage = 0, phase = 0;
  for (uint32_t item = begin; item < work.items; item += work.step) {
    const uint32_t border[2] = {BROAD_BLOCK - work.row(item, 0) % BROAD_BLOCK, BROAD_BLOCK - work.row(item, 1) % BROAD_BLOCK};
    float sum[Form::MINE / 2] = {};
#pragma unroll 1
    for (uint32_t block = 0; block < work.count; block++) {
      barrier_wait(full + 8 * stage, phase);
      const uint32_t at = ring + stage * Form::STAGE;
      const uint64_t x = operand(at + Form::WEIGHT + (TEAMS == 2 ? threadIdx.x / 128 * 64 * BROAD_BLOCK : 0));
      const uint64_t weight = operand(at + (TEAMS == 1 ? threadIdx.x / 128 * Form::MINE * BROAD_BLOCK : 0));
      float product[Form::MINE / 2];
      products_begin();
#pragma unroll
      for (uint32_t i = 0; i < 4; i++) product8(product, x + 2 * i, weight + 2 * i, i > 0);
      products_commit();
      const float upper = factors[stage * Form::TOKENS + here], lower = factors[stage * Form::TOKENS + here + 8];
      const float low[2] = {next.low[0], next.low[1]}, high[2] = {next.high[0], next.high[1]};
      if (block + 1 < work.count) next.fetch(block + 1);
      products_wait<0>();
      settle(product);
      __syncwarp();
      if (lane == 0) barrier_arrive(empty + 8 * stage);
      if (++stage == a.stages) stage = 0, phase ^= 1;
#pragma unroll
      for (uint32_t eight = 0; eight < Form::MINE / 8; eight += Form::UNIT / 8) {
        const uint32_t half = broad_half<WIDE, TEAMS>(eight);
        float scale = low[half];
        if (Form::CROSSES && broad_offset<WIDE, TEAMS>(eight) >= border[half]) scale = high[half];
        const float up = upper * scale, down = lower * scale;
#pragma unroll
        for (uint32_t i = 4 * eight; i < 4 * eight + Form::UNIT / 2; i += 4) {
          sum[i] += product[i] * up, sum[i + 1] += product[i + 1] * up;
          sum[i + 2] += product[i + 2] * down, sum[i + 3] += product[i + 3] * down;
        }
      }
    }
    next.enter(work, item + work.step);
    next.fetch(0);
    if (work.size == 1) {
      broad_put(work, item, sum);
    } else {
      broad_share(work, item, ring, reinterpret_cast<float*>(ring_at), sum);
    }
  }
  // A block must be there as long as others read its sums.
  if (work.size > 1) meet_cluster();
}

template <int WIDE, int TEAMS>
__device__ __forceinline__ void broad(const minisgl_broad_args& a) {
  using Form = Broad<WIDE, TEAMS>;
  extern __shared__ char shared[];
  __shared__ uint64_t barriers[2 * BROAD_STAGES_MAX];
  const uint32_t ring = (shared_address(shared) + 1023) / 1024 * 1024;
  char* ring_at = shared + (ring - shared_address(shared));
  const uint32_t full = shared_address(barriers), empty = full + 8 * BROAD_STAGES_MAX;
  const Form work(a);
  if (threadIdx.x == BROAD_CONSUMERS) {
    for (uint32_t i = 0; i < a.stages; i++) {
      barrier_init(full + 8 * i, 1);
      barrier_init(empty + 8 * i, BROAD_CONSUMERS / 32);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  if (threadIdx.x < BROAD_CONSUMERS) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    let_next_start();
    wait_for_inputs();
    broad_consume(work, ring, ring_at, full, empty, reinterpret_cast<const float*>(ring_at + a.stages * Form::STAGE));
  } else {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x == BROAD_CONSUMERS) broad_produce(work, ring, ring + a.stages * Form::STAGE, full, empty);
  }
}

#else  // wgmma is Hopper's.

template <int WIDE, int TEAMS>
__device__ __forceinline__ void broad(const minisgl_broad_args&) {
  __trap();
}

#endif

}  // namespace minisgl
