// The experts of a layer in MXFP4 for few rows, at the speed of reading every chosen expert once; few.cuh has the formula.
//
// Shapes: see experts.h, weights as in mxfp4.cuh; bf16, f32 sums: a block of 32 columns is multiplied exactly and its sum
// by the scale. act is rounded, out once. Experts of a row are added in the order of experts: its result does not depend
// on what else is in the batch.
// Bytes moved: 3 * hidden * width * 17 / 32 for each expert that has a row, and little else. Bound: read bandwidth, if
// widening keeps up: about 72 instructions of a warp for 1,024 codes, of which half take two cycles.
//
// One launch for both products. One warp copies the slabs into a ring, in the order in which the block multiplies them.
// For gate and up a block has neighbouring slabs of the list of all, and keeps the rows that they are multiplied by, which
// three warps bring; groups of warps take the slabs by turns and share their columns. For `down` a block has the same
// slabs and part of the columns of every expert; the groups share them out, their warps take a piece each, and keep the sums
// of it for all rows, without meeting another. The parts of a column's sum come together through memory, added by the block
// that is last. All blocks must be on the GPU at once: one for each multiprocessor at most.

#include "mxfp4.cuh"

using namespace minisgl;

// A slot of the ring is always the same group's: `stages` is a multiple of MX_GROUPS. Else a warp might take a round for the next.
[[maybe_unused]] constexpr uint32_t MX_WARPS = 16, MX_THREADS = MX_WARPS * 32, MX_GROUP = 8, MX_GROUPS = MX_WARPS / MX_GROUP;
[[maybe_unused]] constexpr uint32_t MX_LOADERS = 96, MX_STAGES_MAX = 16, MX_UNITS_MAX = 64, MX_BATCH = 8;

#if __CUDA_ARCH__ >= 900

struct MxBarriers {
  uint64_t full[MX_STAGES_MAX], up_empty[MX_STAGES_MAX], down_empty[MX_STAGES_MAX], x_full[2], x_empty[2];
};

// How shared memory is laid out; `mxfp4_few.rs` counts the same bytes.
//   ring      [stages] of `stage_bytes`: a slab of gate and up; or a group's pieces of down, then rows of act
//   room      of x: [x_buffers][min(8, rows)] rows; then of sums: [warps + units][rows][16] floats
//   partial   [2][warps][min(8, rows)][STRIDE] floats
//   batches   [batches_max] of 16 bytes
//   tokens    [rows * top]: the row at a place, then its weight
struct MxFew {
  static constexpr uint32_t STRIDE = TOKEN_STRIDE<1>;

  const minisgl_mxfp4_few_args& a;
  MxBarriers& bars;
  const MxMatrix up, down;
  char *ring, *room;
  float *partial, *weights;
  int4* batches;
  int32_t* tokens;
  uint32_t batches_len, batch_rows, x_pitch;
  uint32_t first, turns;  // Which slabs of gate and up are this block's.
  // Of down a block has slabs `slab` .. `slab + units` over one part of the columns: `each` steps of every slab.
  uint32_t part, slab, units, each;

  __device__ __forceinline__ MxFew(const minisgl_mxfp4_few_args& a, char* shared, MxBarriers& bars)
      : a(a), bars(bars), up(2 * a.width, a.hidden, false), down(a.hidden, a.width, true) {
    batch_rows = min(MX_BATCH, a.rows);
    ring = shared;
    room = ring + a.stages * a.stage_bytes;
    partial = reinterpret_cast<float*>(room + a.room_bytes);
    batches = reinterpret_cast<int4*>(partial + 2 * MX_WARPS * batch_rows * STRIDE);
    tokens = reinterpret_cast<int32_t*>(batches + a.batches_max);
    weights = reinterpret_cast<float*>(tokens + a.rows * a.top);
    x_pitch = up.steps * STEP_COLUMNS * 2 + 16;
    // The blocks of a part.
    part = blockIdx.x * down.parts / gridDim.x;
    while (gridDim.x * (part + 1) / down.parts <= blockIdx.x) part++;
    const uint32_t from = gridDim.x * part / down.parts, blocks = gridDim.x * (part + 1) / down.parts - from;
    slab = down.slabs * (blockIdx.x - from) / blocks;
    units = down.slabs * (blockIdx.x - from + 1) / blocks - slab;
    each = down.steps_of(part);
    // Groups share out slabs, and their warps the steps of those.
  }

  __device__ __forceinline__ uint32_t first_of(uint32_t group) const { return units * group / MX_GROUPS; }
  __device__ __forceinline__ uint32_t units_of(uint32_t group) const { return first_of(group + 1) - first_of(group); }
  __device__ __forceinline__ uint32_t piece_of(uint32_t group) const {
    return max((units_of(group) * each + MX_GROUP - 1) / MX_GROUP, 1u);
  }
  __device__ __forceinline__ uint32_t group_of(uint32_t unit) const {
    uint32_t group = 0;
    while (first_of(group + 1) <= unit) group++;
    return group;
  }

  // Columns of act that the block's part has, and where they are in a stage.
  __device__ __forceinline__ uint32_t act_column() const { return part * down.part * STEP_COLUMNS; }
  __device__ __forceinline__ uint32_t act_columns() const { return min(each * STEP_COLUMNS, a.width - act_column()); }
  __device__ __forceinline__ uint32_t act_pitch() const { return each * STEP_COLUMNS * 2 + 16; }
  __device__ __forceinline__ uint32_t act_at() const { return (units + MX_GROUPS - 1) / MX_GROUPS * mx_run_bytes(each); }

  // The plan, brought into shared memory by all threads.
  __device__ __forceinline__ void load_plan() {
    const PlanAt<const int32_t> plan(a.plan, a.batches_max, a.rows * a.top);
    batches_len = min(uint32_t(__ldcg(plan.head)), a.batches_max);
    for (uint32_t i = threadIdx.x; i < a.batches_max; i += blockDim.x) {
      batches[i] = __ldcg(reinterpret_cast<const int4*>(plan.batches) + i);
    }
    for (uint32_t i = threadIdx.x; i < a.rows * a.top; i += blockDim.x) {
      // With padding rows not all places are taken.
      const uint32_t pair = min(uint32_t(__ldcg(plan.pairs + i)), a.rows * a.top - 1);
      tokens[i] = pair / a.top;
      weights[i] = __ldcg(a.weights + pair);
    }
    const uint32_t all = batches_len * up.slabs;
    first = uint32_t(uint64_t(all) * blockIdx.x / gridDim.x);
    turns = uint32_t(uint64_t(all) * (blockIdx.x + 1) / gridDim.x) - first;
  }

  __device__ __forceinline__ static void consumers_meet() { asm volatile("bar.sync 1, %0;" ::"n"(MX_THREADS) : "memory"); }
  __device__ __forceinline__ static void group_meets(uint32_t group) {
    asm volatile("bar.sync %0, %1;" ::"r"(2 + group), "n"(MX_GROUP * 32) : "memory");
  }

  // One warp copies. Of stage i, counted from the first slab on, a slot of the ring is the remainder, and a round the quotient.
  __device__ __forceinline__ void produce() {
    const uint32_t lane = threadIdx.x % 32;
    const uint64_t policy = read_once();
    if (lane == 0) {
      uint32_t slot = 0, round = 0, index = first / up.slabs, slab = first % up.slabs;
      const uint32_t bytes = mx_run_bytes(up.steps);
      for (uint32_t turn = 0; turn < turns; turn++) {
        const uint32_t expert = batches[index].x;
        barrier_wait(&bars.up_empty[slot], (round & 1) ^ 1);
        barrier_expect(&bars.full[slot], bytes);
        copy_once(ring + slot * a.stage_bytes,
                  static_cast<const char*>(a.gate_up) + expert * up.bytes() + size_t(slab) * bytes, bytes,
                  &bars.full[slot], policy);
        if (++slab == up.slabs) slab = 0, index++;
        if (++slot == a.stages) slot = 0, round++;
      }
    }
    __syncwarp();

    // A stage for every batch and group.
    const uint32_t all = batches_len * MX_GROUPS, columns = act_columns();
    const auto weights_of = [&](uint32_t stage) {
      const uint32_t slot = (turns + stage) % a.stages, group = stage % MX_GROUPS;
      const int4 batch = batches[stage / MX_GROUPS];
      const uint32_t bytes = units_of(group) * mx_run_bytes(each);
      // What gate and up had there, and what down had there.
      const uint32_t uses = turns / a.stages + (slot < turns % a.stages);
      barrier_wait(&bars.up_empty[slot], (uses & 1) ^ 1);
      barrier_wait(&bars.down_empty[slot], (stage / a.stages & 1) ^ 1);
      if (lane == 0) {
        barrier_expect(&bars.full[slot], bytes + batch.z * columns * 2);
        if (bytes > 0) {
          copy_once(ring + slot * a.stage_bytes,
                    static_cast<const char*>(a.down) + batch.x * down.bytes() + down.at(slab + first_of(group), part),
                    bytes, &bars.full[slot], policy);
        }
      }
      __syncwarp();
    };
    const auto inputs_of = [&](uint32_t stage) {
      const uint32_t slot = (turns + stage) % a.stages;
      const int4 batch = batches[stage / MX_GROUPS];
      if (lane < batch.z) {
        copy(ring + slot * a.stage_bytes + act_at() + lane * act_pitch(),
             a.act + size_t(batch.y + lane) * a.width + act_column(), columns * 2, &bars.full[slot]);
      }
    };
    const uint32_t ahead = min(a.stages, all);
    for (uint32_t stage = 0; stage < ahead; stage++) weights_of(stage);
    if (lane == 0) others_arrived();
    __syncwarp();
    for (uint32_t stage = 0; stage < ahead; stage++) inputs_of(stage);
    for (uint32_t stage = ahead; stage < all; stage++) {
      weights_of(stage);
      inputs_of(stage);
    }
  }

  // Three warps bring the rows of x of the batches that the block has slabs of, times 2^60.
  __device__ __forceinline__ void load_rows() {
    if (turns == 0) return;
    const uint32_t thread = threadIdx.x - MX_THREADS - 32, units_of_row = up.steps * 8;
    const uint32_t begin = first / up.slabs, count = (first + turns - 1) / up.slabs - begin + 1;
    for (uint32_t i = 0; i < count; i++) {
      const uint32_t buffer = i & (a.x_buffers - 1);
      const int4 batch = batches[begin + i];
      barrier_wait(&bars.x_empty[buffer], (i >> (a.x_buffers - 1) & 1) ^ 1);
      char* to = room + buffer * batch_rows * x_pitch;
#pragma unroll 4
      for (uint32_t at = thread; at < batch.z * units_of_row; at += MX_LOADERS) {
        const uint32_t token = at / units_of_row, unit = at % units_of_row;
        Vec8 values = {};
        if (unit * VEC < a.hidden) values = load8(a.x + size_t(tokens[batch.y + token]) * a.hidden + unit * VEC);
#pragma unroll
        for (int j = 0; j < 4; j++) values.pair[j] = __hmul2(values.pair[j], mx_up2());
        *reinterpret_cast<Vec8*>(to + token * x_pitch + unit * 16) = values;
      }
      barrier_arrive(&bars.x_full[buffer]);
    }
  }

  // Tells all blocks that what this one had to write of `act` is there. All consumers call it.
  __device__ __forceinline__ void arrive() {
    // Written as usual, read by bulk copies.
    asm volatile("fence.proxy.async;" ::: "memory");
    consumers_meet();
    if (threadIdx.x == 0) count_one(a.counts);
  }

  // Waits for all blocks; the last that has waited puts both counts back to 0.
  __device__ __forceinline__ void others_arrived() {
    while (count_of(a.counts) < gridDim.x) {
    }
    asm volatile("fence.proxy.async;" ::: "memory");
    if (count_one(a.counts + 1) == gridDim.x - 1) a.counts[0] = a.counts[1] = 0;
  }

  // 16 rows over 64 columns of a slab's run. `row` is where this lane's part of x begins; what lies behind the last of `columns` is anything,
  // even NaN.
  template <bool CUT>
  __device__ __forceinline__ static void multiply(float (&sum)[4], const char* run, const MxStep& step, const char* row,
                                                  uint32_t columns) {
    const uint32_t lane = threadIdx.x % 32;
    const uint4 codes = *reinterpret_cast<const uint4*>(run + step.codes + lane * 16);
    const uint32_t scales = *reinterpret_cast<const uint32_t*>(run + step.scales + lane / 4 * 4);
    const uint32_t word[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
    for (uint32_t b = 0; b < 2; b++) {
      uint32_t x[4], low[4], high[4];
      load_matrices(x, row + b * 64);
      if (CUT) {
#pragma unroll
        for (uint32_t unit = 0; unit < 4; unit++) {
          if (b * 32 + unit * 8 >= columns) x[unit] = 0;
        }
      }
      mx_widen(low, word[2 * b]);
      mx_widen(high, word[2 * b + 1]);
      float part[4] = {};
      mma(part, low[0], high[0], low[1], high[1], x[0], x[1]);
      mma(part, low[2], high[2], low[3], high[3], x[2], x[3]);
      const float scale_low = __uint_as_float(scales >> 16 * b << 23 & 0x7f800000u);
      const float scale_high = __uint_as_float(scales >> 16 * b >> 8 << 23 & 0x7f800000u);
      sum[0] += part[0] * scale_low, sum[1] += part[1] * scale_low;
      sum[2] += part[2] * scale_high, sum[3] += part[3] * scale_high;
    }
  }

  __device__ __forceinline__ void consume_up() {
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = warp / MX_GROUP;
    const uint32_t begin = first / up.slabs;
    // What this thread finishes of a slab.
    const uint32_t thread = threadIdx.x % (MX_GROUP * 32), token = thread / 8;
    uint32_t index = begin, slab = first % up.slabs + group, slot = group, round = 0, entered = 0, parity = 0;
    for (uint32_t turn = group; turn < turns; turn += MX_GROUPS) {
      for (; slab >= up.slabs; slab -= up.slabs) index++;
      while (entered <= index - begin) enter(entered);
      const int4 batch = batches[index];
      const uint32_t column = slab * 8 + thread % 8;
      // Fetched long before it is added.
      float gate = 0.0f, up_sum = 0.0f;
      if (a.up_bias && token < batch.z) {
        const minisgl_bf16* bias = a.up_bias + size_t(batch.x) * 2 * a.width + column;
        gate = __bfloat162float(bias[0]), up_sum = __bfloat162float(bias[a.width]);
      }
      const char* row = room + ((index - begin) & (a.x_buffers - 1)) * batch_rows * x_pitch +
                        min(lane % 8, uint32_t(batch.z) - 1) * x_pitch + lane / 8 * 16;
      const char* at = ring + slot * a.stage_bytes;
      float sum[1][1][4] = {};
      barrier_wait(&bars.full[slot], round);
#pragma unroll 2
      for (uint32_t s = warp % MX_GROUP; s < up.steps; s += MX_GROUP) {
        multiply<false>(sum[0][0], at, MxStep(s, up.steps), row + s * (STEP_COLUMNS * 2), 0);
      }
      __syncwarp();
      if (lane == 0) barrier_arrive(&bars.up_empty[slot]);
      // Add up what the group's warps have; by turns in two places, so that one barrier is enough.
      float* shares = partial + (parity * MX_WARPS + group * MX_GROUP) * batch_rows * STRIDE;
      float* mine = shares + warp % MX_GROUP * batch_rows * STRIDE;
      each_sum<1, 1>(batch.z, sum, [&](uint32_t to, float value) { mine[to] = value; });
      group_meets(group);
      if (token < batch.z) {
        const float* from = shares + token * STRIDE + thread % 8;
#pragma unroll
        for (uint32_t part = 0; part < MX_GROUP; part++) {
          gate += from[part * batch_rows * STRIDE], up_sum += from[part * batch_rows * STRIDE + 8];
        }
        const float act = __bfloat162float(gated(gate, up_sum, a.gate));
        a.act[size_t(batch.y + token) * a.width + column] = __float2bfloat16_rn(act * MX_UP);
      }
      slab += MX_GROUPS, parity ^= 1;
      if ((slot += MX_GROUPS) == a.stages + group) slot = group, round ^= 1;
    }
    // Others may have slabs of batches of which this warp has none.
    if (turns == 0) return;
    const uint32_t count = (first + turns - 1) / up.slabs - begin + 1;
    while (entered < count) enter(entered);
    leave(entered - 1);
  }

  // Lets go of one batch's rows, and waits for those of the next.
  __device__ __forceinline__ void enter(uint32_t& entered) {
    if (entered > 0) leave(entered - 1);
    barrier_wait(&bars.x_full[entered & (a.x_buffers - 1)], entered >> (a.x_buffers - 1) & 1);
    entered++;
  }
  __device__ __forceinline__ void leave(uint32_t batch) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(&bars.x_empty[batch & (a.x_buffers - 1)]);
  }

  __device__ __forceinline__ void consume_down() {
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    float* sums = reinterpret_cast<float*>(room);
    for (uint32_t i = threadIdx.x; i < (MX_WARPS + units) * a.rows * SLAB; i += MX_THREADS) sums[i] = 0.0f;
    consumers_meet();
    // Biases are there before the products of the first columns.
    if (a.down_bias && part == 0) {
      for (uint32_t i = threadIdx.x; i < units * a.rows * SLAB; i += MX_THREADS) {
        const uint32_t unit = i / (a.rows * SLAB), row = i / SLAB % a.rows;
        const minisgl_bf16* bias = a.down_bias + (slab + unit) * SLAB + i % SLAB;
        float sum = 0.0f;
        for (uint32_t j = 0; j < a.top; j++) {
          const int32_t expert = a.ids[row * a.top + j];
          if (expert >= 0) sum += a.weights[row * a.top + j] * __bfloat162float(bias[size_t(expert) * a.hidden]);
        }
        sums[size_t(first_warp(unit) + unit) * a.rows * SLAB + i % (a.rows * SLAB)] = sum;
      }
      consumers_meet();
    }
    const uint32_t group = warp / MX_GROUP, steps = units_of(group) * each, piece = piece_of(group);
    const uint32_t begin = min(warp % MX_GROUP * piece, steps), count = min(piece, steps - begin);
    const uint32_t from_unit = first_of(group) + begin / each, from_step = begin % each, run_bytes = mx_run_bytes(each);
    const bool cut = act_column() + each * STEP_COLUMNS > a.width;
    uint32_t slot = (turns + group) % a.stages, round = (turns + group) / a.stages & 1;
    for (uint32_t index = 0; index < batches_len; index++) {
      const int4 batch = batches[index];
      const char* at = ring + slot * a.stage_bytes;
      const char* row = at + act_at() + min(lane % 8, uint32_t(batch.z) - 1) * act_pitch() + lane / 8 * 16;
      int32_t token[2];
      float weight[2];
#pragma unroll
      for (uint32_t i = 0; i < 2; i++) {
        const uint32_t place = batch.y + min(2 * t + i, uint32_t(batch.z) - 1);
        token[i] = tokens[place], weight[i] = weights[place];
      }
      uint32_t unit = from_unit, step = from_step;
      float sum[4] = {};
      const auto flush = [&] {
        float* to = sums + size_t(warp + unit) * a.rows * SLAB + g;
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
          if (2 * t + i % 2 < batch.z) to[token[i % 2] * SLAB + i / 2 * 8] += weight[i % 2] * sum[i];
          sum[i] = 0.0f;
        }
      };
      barrier_wait(&bars.full[slot], round);
#pragma unroll 2
      for (uint32_t i = 0; i < count; i++) {
        const char* run = at + (unit - first_of(group)) * run_bytes;
        const char* x = row + step * (STEP_COLUMNS * 2);
        if (cut && step == each - 1) {
          multiply<true>(sum, run, MxStep(step, each), x, a.width - act_column() - step * STEP_COLUMNS);
        } else {
          multiply<false>(sum, run, MxStep(step, each), x, 0);
        }
        if (++step == each) {
          flush();
          unit++, step = 0;
        }
      }
      __syncwarp();
      if (lane == 0) barrier_arrive(&bars.down_empty[slot]);
      if (count > 0 && step != 0) flush();
      __syncwarp();
      if ((slot += MX_GROUPS) >= a.stages) slot -= a.stages, round ^= 1;
    }
    consumers_meet();
  }

  // Which warps have steps of one of the block's slabs.
  __device__ __forceinline__ uint32_t first_warp(uint32_t unit) const {
    const uint32_t group = group_of(unit);
    return group * MX_GROUP + (unit - first_of(group)) * each / piece_of(group);
  }
  __device__ __forceinline__ uint32_t last_warp(uint32_t unit) const {
    const uint32_t group = group_of(unit);
    return group * MX_GROUP + ((unit - first_of(group) + 1) * each - 1) / piece_of(group);
  }

  // What the warps have of one of the block's slabs, in the order of columns.
  __device__ __forceinline__ float unit_sum(uint32_t unit, uint32_t row, uint32_t column) const {
    const float* sums = reinterpret_cast<const float*>(room) + row * SLAB + column;
    float sum = 0.0f;
    for (uint32_t warp = first_warp(unit); warp <= last_warp(unit); warp++) {
      sum += sums[size_t(warp + unit) * a.rows * SLAB];
    }
    return sum;
  }

  __device__ __forceinline__ void finish(uint32_t (&is_last)[MX_UNITS_MAX]) {
    const uint32_t all = units * a.rows * SLAB, counts_len = (4 + down.slabs + 3) / 4 * 4;
    float* parts = reinterpret_cast<float*>(a.counts + counts_len);
    const auto unit_of = [&](uint32_t i) { return i / (a.rows * SLAB); };
    const auto row_of = [&](uint32_t i) { return i / SLAB % a.rows; };
    const auto column_of = [&](uint32_t i) { return (slab + unit_of(i)) * SLAB + i % SLAB; };
    if (down.parts > 1) {
      for (uint32_t i = threadIdx.x; i < all; i += MX_THREADS) {
        __stcg(parts + (size_t(part) * a.rows + row_of(i)) * a.hidden + column_of(i),
               unit_sum(unit_of(i), row_of(i), i % SLAB));
      }
      consumers_meet();
      if (threadIdx.x < units) {
        uint32_t* count = a.counts + 4 + slab + threadIdx.x;
        const bool last = count_one(count) == down.parts - 1;
        if (last) *count = 0;
        is_last[threadIdx.x] = last;
      }
      consumers_meet();
    }
    for (uint32_t i = threadIdx.x; i < all; i += MX_THREADS) {
      if (down.parts > 1 && !is_last[unit_of(i)]) continue;
      const uint32_t row = row_of(i), column = column_of(i);
      minisgl_bf16* out = a.out + size_t(row) * a.hidden + column;
      float sum = a.adds ? __bfloat162float(*out) : 0.0f;
      if (down.parts > 1) {
        for (uint32_t other = 0; other < down.parts; other++) {
          sum += __ldcg(parts + (size_t(other) * a.rows + row) * a.hidden + column);
        }
      } else {
        sum += unit_sum(unit_of(i), row, i % SLAB);
      }
      bool any = false;
      for (uint32_t j = 0; j < a.top; j++) any |= a.ids[row * a.top + j] >= 0;
      // A padding row stays as it is, or is 0.
      if (any || !a.adds) *out = __float2bfloat16_rn(sum);
    }
  }
};

__device__ __forceinline__ void mxfp4_few(const minisgl_mxfp4_few_args& a) {
  extern __shared__ __align__(128) char shared[];
  __shared__ MxBarriers bars;
  __shared__ uint32_t is_last[MX_UNITS_MAX];
  if (threadIdx.x == 0) {
    for (uint32_t i = 0; i < a.stages; i++) {
      barrier_init(&bars.full[i], 1);
      barrier_init(&bars.up_empty[i], MX_GROUP);
      barrier_init(&bars.down_empty[i], MX_GROUP);
    }
    for (uint32_t i = 0; i < 2; i++) barrier_init(&bars.x_full[i], MX_LOADERS), barrier_init(&bars.x_empty[i], MX_WARPS);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  MxFew work(a, shared, bars);
  wait_for_inputs();
  let_next_start();
  work.load_plan();
  __syncthreads();
  if (threadIdx.x >= MX_THREADS + 32) {
    work.load_rows();
  } else if (threadIdx.x >= MX_THREADS) {
    work.produce();
  } else {
    work.consume_up();
    work.arrive();
    work.consume_down();
    work.finish(is_last);
  }
}

#else  // Older GPUs have no bulk copies.

__device__ __forceinline__ void mxfp4_few(const minisgl_mxfp4_few_args&) { __trap(); }

#endif

KERNEL __launch_bounds__(MX_THREADS + 32 + MX_LOADERS, 1)
    minisgl_mxfp4_few(const __grid_constant__ minisgl_mxfp4_few_args a) {
  mxfp4_few(a);
}
