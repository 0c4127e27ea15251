// The experts of a layer for many rows, weights and rows of e4m3: products grouped by expert, one launch each for `up` and
// for `down`.
//
//   up:    out[p, i] = gate(x[p, :] . Wg[e, i, :] + bg[e, i]) * (x[p, :] . Wu[e, i, :] + bu[e, i])   for a pair p = (r, e)
//   down:  out[p, :] = x[p, :] . Wd[e, :, :] + bd[e, :]
//
// Shapes: see experts.h and fp8.cuh. fp8_gather.cu has brought rows of x together, with a scale for 128 columns; so many
// columns are summed by the tensor cores, and what they come to goes times both scales into a sum of f32, since the
// tensor cores keep 14 bits of a sum of e4m3.
// FLOPs: 2 * pairs * n * columns. Bytes moved: the weights of every expert that has a row, once for each batch (again
// from the cache), and pairs * (columns + 2 * n). Bound: tensor cores, or with few rows read bandwidth; before those, with
// tiles of this size, what the cache brings to the multiprocessors: 32 KB for every 4.2 MFLOP.
// Measured (H200, 2026-11-30, docs/benchmarks.md), Qwen3-30B-A3B, all that a layer launches: 193 us at 128 rows, where
// reading the weights takes 131; 1,452 us at 8,192 rows, 426 TFLOP/s.
//
// Cut up as experts_many.cu is: a block computes 128 rows of the weights times all rows of a batch at a time; one warp
// copies, two warpgroups multiply 64 rows of the weights each.

#include "../wgmma_e4m3.cuh"
#include "fp8.cuh"
#include "many.cuh"

using namespace minisgl;

[[maybe_unused]] constexpr uint32_t FP8_SCALES_BYTES = 1024;  // Of a batch's rows in a stage, at most 132 floats.
[[maybe_unused]] constexpr uint32_t FP8_WARPS = MULTIPLIERS / 32;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Shared memory, from a multiple of 1024 bytes on; `fp8_many.rs` counts the same bytes.
//   ring      [stages]: eight slabs' steps, then [batch] rows of 128 bytes, then their scales
//   turned    [max(batch, 64)] rows of 128 bytes
struct Fp8Many {
  const minisgl_fp8_many_args& a;
  char *ring, *turned;
  uint32_t stage_bytes, steps, slabs, tiles, items;
  const int4* batches;
  uint64_t *full, *empty;

  __device__ __forceinline__ Fp8Many(const minisgl_fp8_many_args& a, char* shared, uint64_t* full, uint64_t* empty)
      : a(a), full(full), empty(empty) {
    ring = shared + (1024 - shared_address(shared) % 1024) % 1024;
    stage_bytes = MANY_A_BYTES + a.batch * 128 + FP8_SCALES_BYTES;
    turned = ring + a.stages * stage_bytes;
    steps = (a.columns + FP8_COLUMNS - 1) / FP8_COLUMNS;
    slabs = a.n / SLAB;
    tiles = (slabs + MANY_SLABS - 1) / MANY_SLABS;
  }

  __device__ __forceinline__ void load_plan() {
    const PlanAt<const int32_t> plan(a.plan, a.batches_max, a.rows * a.top);
    batches = reinterpret_cast<const int4*>(plan.batches);
    items = min(uint32_t(__ldcg(plan.head)), a.batches_max) * tiles;
  }

  // The batch of an item; of one past the last, anything.
  __device__ __forceinline__ int4 batch_of(uint32_t item) const {
    return __ldcg(batches + (item < items ? item / tiles : 0));
  }
};

// One warp: a lane copies a slab's step, another the rows of x, a third their scales.
__device__ __forceinline__ void fp8_produce(const Fp8Many& work) {
  const minisgl_fp8_many_args& a = work.a;
  const uint32_t lane = threadIdx.x % 32, places = a.rows * a.top;
  const uint64_t once = read_once();
  uint32_t stage = 0, phase = 0;
  int4 batch = work.batch_of(blockIdx.x);
  for (uint32_t item = blockIdx.x; item < work.items; item += gridDim.x) {
    const int4 next = work.batch_of(item + gridDim.x);
    const uint32_t slab = item % work.tiles * MANY_SLABS, slabs = min(MANY_SLABS, work.slabs - slab);
    const char* weight = static_cast<const char*>(a.weight) +
                         (size_t(batch.x) * work.slabs + slab + lane) * work.steps * SLAB_STEP_BYTES;
    const uint8_t* x = a.x + size_t(batch.y) * 128;
    const uint32_t x_bytes = batch.z * 128;
    // Of the copy in which the batch begins with an even number, from a multiple of four on.
    const uint32_t odd = batch.y % 2, begin = (batch.y + odd) / 4 * 4, end = round_up(batch.y + odd + batch.z, 4);
    const float* scales = a.x_scales + size_t(odd * work.steps) * a.scale_stride + begin;
    const uint32_t scales_bytes = (end - begin) * 4;
    for (uint32_t step = 0; step < work.steps; step++) {
      barrier_wait(&work.empty[stage], phase ^ 1);
      char* to = work.ring + stage * work.stage_bytes;
      if (lane == 0) barrier_expect(&work.full[stage], slabs * SLAB_STEP_BYTES + x_bytes + scales_bytes);
      __syncwarp();
      if (lane < slabs) {
        // With few rows no other item needs them again.
        if (a.batch <= READ_ONCE_BATCH) {
          copy_once(to + lane * SLAB_STEP_BYTES, weight + step * SLAB_STEP_BYTES, SLAB_STEP_BYTES, &work.full[stage], once);
        } else {
          copy(to + lane * SLAB_STEP_BYTES, weight + step * SLAB_STEP_BYTES, SLAB_STEP_BYTES, &work.full[stage]);
        }
      }
      if (lane == MANY_SLABS) copy(to + MANY_A_BYTES, x + size_t(step) * places * 128, x_bytes, &work.full[stage]);
      if (lane == MANY_SLABS + 1) {
        copy(to + MANY_A_BYTES + a.batch * 128, scales + size_t(step) * a.scale_stride, scales_bytes, &work.full[stage]);
      }
      if (++stage == a.stages) stage = 0, phase ^= 1;
    }
    batch = next;
  }
}

// The products of an item, for up to N rows of x.
template <int N, bool BY_BLOCK>
__device__ __forceinline__ void fp8_multiply(const Fp8Many& work, const int4& batch, uint32_t slab, float (&sum)[N / 2],
                                             uint32_t& stage, uint32_t& phase) {
  const uint32_t thread = threadIdx.x % 128, group = threadIdx.x / 128, lane = thread % 32, t = lane % 4;
  const uint32_t mine = slab + threadIdx.x / 32;
  const size_t slab_at = size_t(batch.x) * work.slabs + min(mine, work.slabs - 1);
  const float2* by_step = reinterpret_cast<const float2*>(work.a.scales) + slab_at * round_up(work.steps, 2);
  const uint32_t offset = (batch.y + batch.y % 2) % 4 + 2 * t;
  float2 ahead = make_float2(1.0f, 1.0f);
  float part[N / 2] = {};
#pragma unroll 1
  for (uint32_t step = 0; step < work.steps; step++) {
    // A lane fetches the scales of a step, of 32 at a time.
    if (BY_BLOCK && step % 32 == 0 && step + lane < work.steps) ahead = __ldg(by_step + step + lane);
    barrier_wait(&work.full[stage], phase);
    const char* here = work.ring + stage * work.stage_bytes;
    const uint32_t at = shared_address(here);
    const uint64_t weight = operand(at + group * (MANY_A_BYTES / 2)), x = operand(at + MANY_A_BYTES);
    products_begin();
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) product8(part, weight + 2 * i, x + 2 * i, i > 0);
    products_commit();
    float2 by = make_float2(1.0f, 1.0f);
    if (BY_BLOCK) by.x = __shfl_sync(~0u, ahead.x, step % 32), by.y = __shfl_sync(~0u, ahead.y, step % 32);
    const float* scales = reinterpret_cast<const float*>(here + MANY_A_BYTES + work.a.batch * 128) + offset;
    products_wait<0>();
#pragma unroll
    for (uint32_t i = 0; i < N / 8; i++) {
      const float2 of = *reinterpret_cast<const float2*>(scales + 8 * i);
      const float* from = part + 4 * i;
      float* to = sum + 4 * i;
      to[0] += from[0] * (BY_BLOCK ? of.x * by.x : of.x), to[1] += from[1] * (BY_BLOCK ? of.y * by.x : of.y);
      to[2] += from[2] * (BY_BLOCK ? of.x * by.y : of.x), to[3] += from[3] * (BY_BLOCK ? of.y * by.y : of.y);
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(&work.empty[stage]);
    if (++stage == work.a.stages) stage = 0, phase ^= 1;
  }
}

// An item with up to N rows.
template <bool DOWN, bool BY_BLOCK, int N>
__device__ __forceinline__ void fp8_run(const Fp8Many& work, const int4& batch, uint32_t slab, uint32_t& stage,
                                        uint32_t& phase) {
  const minisgl_fp8_many_args& a = work.a;
  const uint32_t mine = slab + threadIdx.x / 32, width = DOWN ? a.n : a.n / 2;
  float sum[N / 2] = {}, bias[2] = {};
  fp8_multiply<N, BY_BLOCK>(work, batch, slab, sum, stage, phase);
  if (mine < work.slabs) {
    load_bias<DOWN>(bias, a.bias, batch.x, a.n, mine);
    if (!BY_BLOCK) {
      const float* of = a.scales + size_t(batch.x) * a.n + mine * SLAB + threadIdx.x % 32 / 4;
      const float high = __ldg(of), low = __ldg(of + 8);
#pragma unroll
      for (uint32_t i = 0; i < N / 2; i++) sum[i] *= i % 4 < 2 ? high : low;
    }
  }
  turn_around<DOWN, N>(work.turned, sum, bias, a.gate, batch.z, [&](uint32_t token, uint32_t unit, const uint4& values) {
    const uint32_t column = slab * (DOWN ? SLAB : SLAB / 2) + unit * VEC;
    if (column < width) *reinterpret_cast<uint4*>(a.out + size_t(batch.y + token) * width + column) = values;
  });
}

template <bool DOWN, bool BY_BLOCK>
__device__ __forceinline__ void fp8_many(const minisgl_fp8_many_args& a) {
  extern __shared__ __align__(128) char shared[];
  __shared__ uint64_t full[MANY_STAGES_MAX], empty[MANY_STAGES_MAX];
  if (threadIdx.x == 0) {
    for (uint32_t i = 0; i < a.stages; i++) {
      barrier_init(&full[i], 1);
      barrier_init(&empty[i], FP8_WARPS);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  Fp8Many work(a, shared, full, empty);
  wait_for_inputs();
  let_next_start();
  __syncthreads();
  work.load_plan();
  if (threadIdx.x >= MULTIPLIERS) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x < MULTIPLIERS + 32) fp8_produce(work);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    uint32_t stage = 0, phase = 0;
    int4 batch = work.batch_of(blockIdx.x);
    for (uint32_t item = blockIdx.x; item < work.items; item += gridDim.x) {
      const int4 next = work.batch_of(item + gridDim.x);
      const uint32_t slab = item % work.tiles * MANY_SLABS;
      switch ((batch.z + 31) / 32) {
        case 1: fp8_run<DOWN, BY_BLOCK, 32>(work, batch, slab, stage, phase); break;
        case 2: fp8_run<DOWN, BY_BLOCK, 64>(work, batch, slab, stage, phase); break;
        case 3: fp8_run<DOWN, BY_BLOCK, 96>(work, batch, slab, stage, phase); break;
        default: fp8_run<DOWN, BY_BLOCK, 128>(work, batch, slab, stage, phase); break;
      }
      batch = next;
    }
  }
}

#else  // Only Hopper has these instructions.

template <bool DOWN, bool BY_BLOCK>
__device__ __forceinline__ void fp8_many(const minisgl_fp8_many_args&) {
  __trap();
}

#endif

#define FP8_MANY(NAME, DOWN, BY_BLOCK)                                               \
  KERNEL __launch_bounds__(MANY_THREADS, 1)                                          \
      minisgl_fp8_many_##NAME(const __grid_constant__ minisgl_fp8_many_args a) {     \
    fp8_many<DOWN, BY_BLOCK>(a);                                                     \
  }

FP8_MANY(up_block, false, true)
FP8_MANY(up_row, false, false)
FP8_MANY(down_block, true, true)
FP8_MANY(down_row, true, false)
