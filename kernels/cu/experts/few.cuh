// The experts of a layer for few rows, at the speed of reading every chosen expert once.
//
//   act[p, i] = gate(x[r, :] . Wg[e, i, :] + bg[e, i]) * (x[r, :] . Wu[e, i, :] + bu[e, i])    for a pair p = (r, e)
//   out[r, :] += sum over the row's choices of weight[r, e] * (act[p, :] . Wd[e, :, :] + bd[e, :])
//
// Shapes: see experts.h; bf16, f32 sums; act is rounded, out once after all experts are added, in the order of choices: a
// row's result does not depend on what else is in the batch.
// Bytes moved: 6 * hidden * width for each expert that has a row, and little else. Bound: read bandwidth.
// Measured (H200, 2026-11-29, docs/benchmarks.md), Qwen3-30B-A3B, of 4.6 TB/s: 66 % at 1 row (24.7 us), 82 % at 4, 90 %
// at 8, 94 % at 32 (249 us for 114 experts), 90 % at 64.
//
// One launch for both products, so that the stream of weights never stops. Work is cut into slabs of 16 rows of the
// weights. A producer warp copies them into a ring of shared memory, together with the rows they are multiplied
// by. First every block has neighbouring slabs of gate and up, as many as every other; eight consumer warps share
// their columns. Then a block owns columns of the output and goes from expert to expert, each consumer warp with an
// expert of its own: no two blocks add to one value. The blocks meet in between, while the ring fills with the
// weights that come next. So all blocks must be on the GPU at once: one for each multiprocessor at most.
// An expert with more rows than a batch has is read again for each batch, from the cache.
#pragma once

#include "experts.cuh"

namespace minisgl {

// Pairs of a batch are eight, the narrow side of mma. Slabs of bf16 of gate and up are read one by one: two at a time leave the
// ring fewer stages, and sixteen pairs even fewer, and both were slower.
constexpr uint32_t FEW_STAGES_MAX = 16, FEW_ROWS_MAX = 64, FEW_BATCH = 8;

#if __CUDA_ARCH__ >= 900

// Bytes of the scales of so many steps of a slab, of its upper and of its lower rows, for which a stage has room.
template <class Slabs>
__device__ __forceinline__ constexpr uint32_t scale_bytes(uint32_t steps) {
  return Slabs::SCALED ? (steps + 1) / 2 * 16 : 0;
}

// How shared memory is laid out; `few.rs` counts the same bytes.
//   ring      [stages] of `stage_bytes`: a part of a slab, or of TOGETHER of gate and up, as many parts' scales by blocks, then
//             [min(8, rows)] rows of `pitch` bytes
//   partial   [2][TOGETHER][WARPS][8][STRIDE] floats
//   values    [rows * top][16] floats
//   batches   [batches_max] of 16 bytes
//   tokens    [rows * top]: the row at a place
//   places    [rows * top], then the pairs' weights
template <class Slabs>
struct Few {
  static constexpr uint32_t STEP_COLUMNS = Slabs::COLUMNS;
  static constexpr uint32_t UNITS = STEP_COLUMNS / 32;  // What a warp takes at a time.
  static constexpr uint32_t TOGETHER = Slabs::TOGETHER;
  static constexpr uint32_t STRIDE = TOKEN_STRIDE<1>, PART = FEW_BATCH * STRIDE;

  const minisgl_experts_few_args& a;
  char* ring;
  float *partial, *values, *weights;
  int4* batches;
  int32_t *tokens, *places;
  uint64_t *full, *empty;
  uint32_t batches_len;
  // Of gate and up, then of down: steps, slabs of an expert.
  uint32_t up_steps, up_slabs, down_steps, down_slabs;
  // How many slabs of gate and up are taken together, in how many groups; which of those are this block's.
  uint32_t groups, first, turns;

  __device__ __forceinline__ Few(const minisgl_experts_few_args& a, char* shared, uint64_t* full, uint64_t* empty)
      : a(a), full(full), empty(empty) {
    ring = shared;
    partial = reinterpret_cast<float*>(ring + a.stage_bytes * a.stages);
    values = partial + 2 * TOGETHER * WARPS * PART;
    batches = reinterpret_cast<int4*>(values + a.rows * a.top * SLAB);
    tokens = reinterpret_cast<int32_t*>(batches + a.batches_max);
    places = tokens + a.rows * a.top;
    weights = reinterpret_cast<float*>(places + a.rows * a.top);
    up_steps = (a.hidden + STEP_COLUMNS - 1) / STEP_COLUMNS, down_steps = (a.width + STEP_COLUMNS - 1) / STEP_COLUMNS;
    up_slabs = a.width * 2 / SLAB, down_slabs = a.hidden / SLAB;
    groups = (up_slabs + TOGETHER - 1) / TOGETHER;
  }

  // The plan, brought into shared memory by all threads.
  __device__ __forceinline__ void load_plan() {
    const PlanAt<const int32_t> plan(a.plan, a.batches_max, a.rows * a.top);
    batches_len = min(uint32_t(__ldcg(plan.head)), a.batches_max);
    for (uint32_t i = threadIdx.x; i < a.batches_max; i += CONSUMERS + 32) {
      batches[i] = __ldcg(reinterpret_cast<const int4*>(plan.batches) + i);
    }
    for (uint32_t i = threadIdx.x; i < a.rows * a.top; i += CONSUMERS + 32) {
      // With padding rows not all places are taken.
      tokens[i] = min(uint32_t(__ldcg(plan.pairs + i)) / a.top, a.rows - 1);
      places[i] = __ldcg(plan.places + i);
      weights[i] = __ldcg(a.weights + i);
    }
    const uint32_t all = batches_len * groups;
    first = uint32_t(uint64_t(all) * blockIdx.x / gridDim.x);
    turns = uint32_t(uint64_t(all) * (blockIdx.x + 1) / gridDim.x) - first;
  }

  // Where in the ring a warp stands.
  struct At {
    uint32_t stage, phase;
    __device__ __forceinline__ void next(uint32_t stages) {
      if (++stage == stages) stage = 0, phase ^= 1;
    }
  };

  __device__ __forceinline__ static void all_meet() { asm volatile("bar.sync 2, %0;" ::"n"(CONSUMERS + 32) : "memory"); }
  __device__ __forceinline__ static void consumers_meet() { asm volatile("bar.sync 1, %0;" ::"n"(CONSUMERS) : "memory"); }

  // One warp copies; every lane has one row of x at most.
  __device__ __forceinline__ void produce() {
    const uint32_t lane = threadIdx.x % 32;
    const uint64_t policy = read_once();
    At at = {0, 0};

    uint32_t index = first / groups, group = first % groups;
    for (uint32_t turn = 0; turn < turns; turn++) {
      const int4 batch = batches[index];
      const minisgl_bf16* x = a.x + size_t(lane < batch.z ? tokens[batch.y + lane] : 0) * a.hidden;
      const uint32_t count = min(TOGETHER, up_slabs - group * TOGETHER);
      const size_t slab = size_t(batch.x) * up_slabs + group * TOGETHER + min(lane, count - 1);
      const char* from = static_cast<const char*>(a.gate_up) + slab * up_steps * SLAB_STEP_BYTES;
      const float* scales_from = a.up_scales + slab * round_up(up_steps, 2) * 2;
      for (uint32_t step = 0; step < up_steps; step += a.up_steps, at.next(a.stages)) {
        const uint32_t steps = min(a.up_steps, up_steps - step), bytes = steps * SLAB_STEP_BYTES;
        const uint32_t row_bytes = 2 * min(a.up_steps * STEP_COLUMNS, a.hidden - step * STEP_COLUMNS);
        const uint32_t scales = a.up_form == MINISGL_SCALE_BLOCK ? scale_bytes<Slabs>(steps) : 0;
        char* to = ring + at.stage * a.stage_bytes;
        barrier_wait(&empty[at.stage], at.phase ^ 1);
        if (lane == 0) barrier_expect(&full[at.stage], count * (bytes + scales) + batch.z * row_bytes);
        __syncwarp();
        if (lane < count) {
          copy_once(to + lane * a.up_steps * SLAB_STEP_BYTES, from + step * SLAB_STEP_BYTES, bytes, &full[at.stage],
                    policy);
          if (scales) {
            copy(to + TOGETHER * a.up_steps * SLAB_STEP_BYTES + lane * scale_bytes<Slabs>(a.up_steps),
                 scales_from + step * 2, scales, &full[at.stage]);
          }
        }
        if (lane < batch.z) {
          const uint32_t pitch = a.up_steps * STEP_COLUMNS * 2 + Slabs::PAD;
          copy(to + TOGETHER * (a.up_steps * SLAB_STEP_BYTES + scale_bytes<Slabs>(a.up_steps)) + lane * pitch,
               x + step * STEP_COLUMNS, row_bytes, &full[at.stage]);
        }
      }
      if (++group == groups) group = 0, index++;
    }

    // A stage of down: which columns of the output, which batch, which step.
    struct Turn {
      uint32_t slab, index, step;
      At at;
    };
    const auto next = [&](Turn& turn) {
      turn.at.next(a.stages);
      if ((turn.step += a.down_steps) < down_steps) return;
      turn.step = 0;
      if (++turn.index == batches_len) turn.index = 0, turn.slab += gridDim.x;
    };
    const auto weights_of = [&](Turn& turn) {
      const int4 batch = batches[turn.index];
      const uint32_t steps = min(a.down_steps, down_steps - turn.step), bytes = steps * SLAB_STEP_BYTES;
      const uint32_t row_bytes = 2 * min(a.down_steps * STEP_COLUMNS, a.width - turn.step * STEP_COLUMNS);
      const uint32_t scales = a.down_form == MINISGL_SCALE_BLOCK ? scale_bytes<Slabs>(steps) : 0;
      barrier_wait(&empty[turn.at.stage], turn.at.phase ^ 1);
      if (lane == 0) {
        barrier_expect(&full[turn.at.stage], bytes + scales + batch.z * row_bytes);
        copy_once(ring + turn.at.stage * a.stage_bytes,
                  static_cast<const char*>(a.down) +
                      ((size_t(batch.x) * down_slabs + turn.slab) * down_steps + turn.step) * SLAB_STEP_BYTES,
                  bytes, &full[turn.at.stage], policy);
        if (scales) {
          const size_t first = (size_t(batch.x) * down_slabs + turn.slab) * round_up(down_steps, 2) + turn.step;
          copy(ring + turn.at.stage * a.stage_bytes + a.down_steps * SLAB_STEP_BYTES, a.down_scales + 2 * first, scales,
               &full[turn.at.stage]);
        }
      }
      __syncwarp();
      next(turn);
    };
    const auto inputs_of = [&](Turn& turn) {
      const int4 batch = batches[turn.index];
      const uint32_t row_bytes = 2 * min(a.down_steps * STEP_COLUMNS, a.width - turn.step * STEP_COLUMNS);
      if (lane < batch.z) {
        const uint32_t pitch = a.down_steps * STEP_COLUMNS * 2 + Slabs::PAD;
        copy(ring + turn.at.stage * a.stage_bytes + a.down_steps * SLAB_STEP_BYTES + scale_bytes<Slabs>(a.down_steps) +
                 lane * pitch,
             a.act + size_t(batch.y + lane) * a.width + turn.step * STEP_COLUMNS, row_bytes, &full[turn.at.stage]);
      }
      next(turn);
    };
    const uint32_t end = batches_len == 0 ? 0 : down_slabs;
    Turn weights = {blockIdx.x, 0, 0, at}, inputs = weights;
    uint32_t ahead = 0;
    for (; ahead < a.stages && weights.slab < end; ahead++) weights_of(weights);
    if (lane == 0) others_arrived();
    __syncwarp();
    for (; ahead > 0; ahead--) inputs_of(inputs);
    while (weights.slab < end) {
      weights_of(weights);
      inputs_of(inputs);
    }
  }

  // Tells all blocks that what this one had to write of `act` is there. All consumers call it.
  __device__ __forceinline__ void arrive() {
    // Written as usual, read by bulk copies.
    asm volatile("fence.proxy.async;" ::: "memory");
    consumers_meet();
    if (threadIdx.x == 0) count_one(a.arrived);
  }

  // Waits for all blocks; the last that has waited puts both counts back to 0.
  __device__ __forceinline__ void others_arrived() {
    while (count_of(a.arrived) < gridDim.x) {
    }
    asm volatile("fence.proxy.async;" ::: "memory");
    if (count_one(a.arrived + 1) == gridDim.x - 1) a.arrived[0] = a.arrived[1] = 0;
  }

  // Adds what the columns of a step have come to, times its scales, of rows g and of rows g + 8.
  __device__ __forceinline__ static void add_scaled(float (&sum)[4], const float (&part)[4], const char* scales,
                                                    uint32_t step) {
    const float2 by = *reinterpret_cast<const float2*>(scales + step * 8);
#pragma unroll
    for (int i = 0; i < 4; i++) sum[i] += part[i] * (i < 2 ? by.x : by.y);
  }

  // FORM: of the scales, if there are some.
  template <uint32_t FORM>
  __device__ __forceinline__ void consume_up(At& at) {
    constexpr bool BY_BLOCK = Slabs::SCALED && FORM == MINISGL_SCALE_BLOCK;
    constexpr bool BY_ROW = Slabs::SCALED && FORM == MINISGL_SCALE_ROW;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t pitch = a.up_steps * STEP_COLUMNS * 2 + Slabs::PAD;
    // Which sum a thread finishes: of a token and eight columns each of a slab.
    const uint32_t own = threadIdx.x / 64, token = threadIdx.x / 8 % FEW_BATCH;
    uint32_t index = first / groups, group = first % groups;
    for (uint32_t turn = 0; turn < turns; turn++) {
      const int4 batch = batches[index];
      const uint32_t row = Slabs::row(batch.z, pitch), slab = group * TOGETHER + own;
      const bool finishes = own < TOGETHER && slab < up_slabs && token < batch.z;
      float sum[TOGETHER][1][1][4] = {};
      float2 by = make_float2(Slabs::UP, Slabs::UP);
      if (BY_ROW && finishes) {
        // Fetched long before they are multiplied by.
        const float* scales = a.up_scales + (size_t(batch.x) * up_slabs + slab) * SLAB + threadIdx.x % 8;
        by.x *= __ldg(scales), by.y *= __ldg(scales + 8);
      }
      for (uint32_t step = 0; step < up_steps; step += a.up_steps, at.next(a.stages)) {
        const uint32_t count = UNITS * min(a.up_steps, up_steps - step), columns = a.hidden - step * STEP_COLUMNS;
        const char* weights = ring + at.stage * a.stage_bytes;
        const char* scales = weights + TOGETHER * a.up_steps * SLAB_STEP_BYTES;
        const char* rows = scales + TOGETHER * scale_bytes<Slabs>(a.up_steps);
        barrier_wait(&full[at.stage], at.phase);
#pragma unroll 2
        for (uint32_t s = warp; s < count; s += WARPS) {
          uint32_t x[4];
          Slabs::load_x(x, rows + row, s, columns);
#pragma unroll
          for (uint32_t i = 0; i < TOGETHER; i++) {
            uint32_t weight[2][4];
            Slabs::load(weight, weights + i * a.up_steps * SLAB_STEP_BYTES, s);
            float part[4] = {};
            float(&to)[4] = BY_BLOCK ? part : sum[i][0][0];
#pragma unroll
            for (int half = 0; half < 2; half++) {
              const uint32_t(&w)[4] = weight[half];
              mma(to, w[0], w[1], w[2], w[3], x[2 * half], x[2 * half + 1]);
            }
            if (BY_BLOCK) add_scaled(sum[i][0][0], part, scales + i * scale_bytes<Slabs>(a.up_steps), s / UNITS);
          }
        }
        __syncwarp();
        if (lane == 0) barrier_arrive(&empty[at.stage]);
      }

      // Add up what the warps have; by turns in two places, so that one barrier is enough.
      float* shares = partial + turn % 2 * TOGETHER * WARPS * PART;
#pragma unroll
      for (uint32_t i = 0; i < TOGETHER; i++) {
        float* mine = shares + (i * WARPS + warp) * PART;
        each_sum<1, 1>(batch.z, sum[i], [&](uint32_t to, float value) { mine[to] = value; });
      }
      consumers_meet();
      if (finishes) {
        const uint32_t column = slab * 8 + threadIdx.x % 8;
        const float* from = shares + own * WARPS * PART + token * STRIDE + threadIdx.x % 8;
        float gate = 0.0f, up = 0.0f;
#pragma unroll
        for (uint32_t part = 0; part < WARPS; part++) gate += from[part * PART], up += from[part * PART + 8];
        if (Slabs::SCALED) gate *= by.x, up *= by.y;
        if (a.up_bias) {
          const minisgl_bf16* bias = a.up_bias + size_t(batch.x) * 2 * a.width + column;
          gate += __bfloat162float(bias[0]), up += __bfloat162float(bias[a.width]);
        }
        a.act[size_t(batch.y + token) * a.width + column] = gated(gate, up, a.gate);
      }
      if (++group == groups) group = 0, index++;
    }
  }

  template <uint32_t FORM>
  __device__ __forceinline__ void consume_down(At& at) {
    constexpr bool BY_BLOCK = Slabs::SCALED && FORM == MINISGL_SCALE_BLOCK;
    constexpr bool BY_ROW = Slabs::SCALED && FORM == MINISGL_SCALE_ROW;
    constexpr uint32_t EACH = FEW_ROWS_MAX * SLAB / CONSUMERS;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const uint32_t pitch = a.down_steps * STEP_COLUMNS * 2 + Slabs::PAD;
    for (uint32_t slab = blockIdx.x; slab < down_slabs; slab += gridDim.x) {
      // Fetched long before they are added to.
      minisgl_bf16 residual[EACH];
#pragma unroll
      for (uint32_t i = 0; i < EACH; i++) {
        const uint32_t n = threadIdx.x + i * CONSUMERS;
        residual[i] = __float2bfloat16_rn(0.0f);
        if (a.adds && n < a.rows * SLAB) residual[i] = a.out[size_t(n / SLAB) * a.hidden + slab * SLAB + n % SLAB];
      }

      // Every warp waits for every stage and lets go of it, so that none is ever a round ahead of a barrier; one
      // multiplies.
      for (uint32_t index = 0; index < batches_len; index++) {
        if (index % WARPS != warp) {
          for (uint32_t step = 0; step < down_steps; step += a.down_steps, at.next(a.stages)) {
            barrier_wait(&full[at.stage], at.phase);
            __syncwarp();
            if (lane == 0) barrier_arrive(&empty[at.stage]);
          }
          continue;
        }
        const int4 batch = batches[index];
        const uint32_t row = Slabs::row(batch.z, pitch);
        float sum[2][4] = {};
        float2 by = make_float2(Slabs::UP, Slabs::UP);
        if (BY_ROW) {
          const float* scales = a.down_scales + (size_t(batch.x) * down_slabs + slab) * SLAB + g;
          by.x *= __ldg(scales), by.y *= __ldg(scales + 8);
        }
        for (uint32_t step = 0; step < down_steps; step += a.down_steps, at.next(a.stages)) {
          const uint32_t count = UNITS * min(a.down_steps, down_steps - step), columns = a.width - step * STEP_COLUMNS;
          const char* weights = ring + at.stage * a.stage_bytes;
          const char* scales = weights + a.down_steps * SLAB_STEP_BYTES;
          const char* rows = scales + scale_bytes<Slabs>(a.down_steps);
          barrier_wait(&full[at.stage], at.phase);
          float part[2][4] = {};
          float(&to)[2][4] = BY_BLOCK ? part : sum;
#pragma unroll 4
          for (uint32_t s = 0; s < count; s++) {
            uint32_t weight[2][4], x[4];
            Slabs::load(weight, weights, s);
            Slabs::load_x(x, rows + row, s, columns);
#pragma unroll
            for (int half = 0; half < 2; half++) {
              const uint32_t(&w)[4] = weight[half];
              mma(to[half], w[0], w[1], w[2], w[3], x[2 * half], x[2 * half + 1]);
            }
            if (BY_BLOCK && s % UNITS == UNITS - 1) {
#pragma unroll
              for (int half = 0; half < 2; half++) {
                add_scaled(sum[half], part[half], scales, s / UNITS);
#pragma unroll
                for (int i = 0; i < 4; i++) part[half][i] = 0.0f;
              }
            }
          }
          __syncwarp();
          if (lane == 0) barrier_arrive(&empty[at.stage]);
        }
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) {
          const uint32_t token = 2 * t + j % 2;
          float value = sum[0][j] + sum[1][j];
          if (Slabs::SCALED) value *= j < 2 ? by.x : by.y;
          if (token < batch.z) values[(batch.y + token) * SLAB + g + j / 2 * 8] = value;
        }
      }

      consumers_meet();
#pragma unroll
      for (uint32_t i = 0; i < EACH; i++) {
        const uint32_t n = threadIdx.x + i * CONSUMERS, token = n / SLAB, column = slab * SLAB + n % SLAB;
        if (n >= a.rows * SLAB) break;
        float sum = __bfloat162float(residual[i]);
        for (uint32_t j = 0; j < a.top; j++) {
          const int32_t place = places[token * a.top + j];
          if (place < 0) continue;
          float value = values[place * SLAB + n % SLAB];
          if (a.down_bias) {
            value += __bfloat162float(a.down_bias[size_t(a.ids[token * a.top + j]) * a.hidden + column]);
          }
          sum += weights[token * a.top + j] * value;
        }
        a.out[size_t(token) * a.hidden + column] = __float2bfloat16_rn(sum);
      }
      consumers_meet();
    }
  }
};

template <class Slabs>
__device__ __forceinline__ void few(const minisgl_experts_few_args& a) {
  extern __shared__ __align__(128) char shared[];
  __shared__ uint64_t full[FEW_STAGES_MAX], empty[FEW_STAGES_MAX];
  if (threadIdx.x == CONSUMERS) {
    for (uint32_t i = 0; i < a.stages; i++) {
      barrier_init(&full[i], 1);
      barrier_init(&empty[i], WARPS);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  Few<Slabs> work(a, shared, full, empty);
  wait_for_inputs();
  let_next_start();
  work.load_plan();
  Few<Slabs>::all_meet();
  if (threadIdx.x >= CONSUMERS) {
    work.produce();
  } else {
    typename Few<Slabs>::At at = {0, 0};
    constexpr uint32_t BLOCK_FORM = MINISGL_SCALE_BLOCK, ROW_FORM = MINISGL_SCALE_ROW;
    if (Slabs::SCALED && a.up_form == ROW_FORM) {
      work.template consume_up<ROW_FORM>(at);
    } else {
      work.template consume_up<BLOCK_FORM>(at);
    }
    work.arrive();
    if (Slabs::SCALED && a.down_form == ROW_FORM) {
      work.template consume_down<ROW_FORM>(at);
    } else {
      work.template consume_down<BLOCK_FORM>(at);
    }
  }
}

#else  // Older GPUs have no bulk copies.

template <class Slabs>
__device__ __forceinline__ void few(const minisgl_experts_few_args&) {
  __trap();
}

#endif

}  // namespace minisgl
