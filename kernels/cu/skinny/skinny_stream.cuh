// Product of a few rows with a weight, at the speed of reading the weight once.
//
//   out[m, n] = x[m, k] * weight[n, k]^T                  x = rms_norm(residual) * norm_weight, if asked for
//   then: + bias, or as f32, or out += , or silu(gate) * up
//
// Shapes: bf16, f32 sums; m up to 64. The weight may be e4m3 with a scale for a row or for 128 x 128: it is widened in
// registers, exactly, and the f32 sums of each block of columns are multiplied by its scale, so x is not rounded.
// Bytes moved: 2 n k, n k with e4m3 (and 2 k + 2 n for each row of x); FLOPs 2 m n k.
// Bound: read bandwidth.
//
// A block owns TILES * 16 rows of the weight at a time. One producer warp copies them into a ring in shared
// memory, without waiting for the kernel before: weights depend on nothing. Eight consumer warps multiply
// with the tensor cores, rows of the weight as the tall operand, tokens as the narrow one; each takes its
// share of the columns, and the shares are added in a fixed order.

#pragma once

#include "skinny.cuh"

namespace minisgl {

[[maybe_unused]] constexpr uint32_t STAGES_MAX = 16;
// Blocks of columns that a warp multiplies of a stage at most: a chunk has up to 2048 columns of e4m3.
[[maybe_unused]] constexpr int BLOCKS_MAX = 2;

#if __CUDA_ARCH__ >= 900

// The producer too: each kind of warp is at its own place in the code.
__device__ __forceinline__ void all_meet() {
  asm volatile("bar.sync 2, %0;" ::"n"(CONSUMERS + 32) : "memory");
}

__device__ __forceinline__ void consumers_meet() {
  asm volatile("bar.sync 1, %0;" ::"n"(CONSUMERS) : "memory");
}

// How shared memory is laid out; `skinny.rs` counts the same bytes.
//   ring     [stages][16 * TILES] rows of `pitch` bytes, then, if x is not resident, [m] of `x_pitch`
//   x        [m] rows of `x_pitch` bytes, if resident
//   norm     [k] bf16, if there is a norm
//   partial  [WARPS][GROUPS * 8][TOKEN_STRIDE] floats
template <class W>
struct Layout {
  uint32_t pitch, x_pitch, stage_bytes;
  char *ring, *x, *norm;
  float* partial;

  __device__ __forceinline__ Layout(const minisgl_skinny_args& a, uint32_t tiles, char* shared) {
    pitch = pitch_of<W>(a.chunk);
    x_pitch = x_pitch_of<W>(a.resident ? a.k : a.chunk);
    stage_bytes = pitch * 16 * tiles + (a.resident ? 0 : x_pitch * a.m);
    ring = shared;
    x = ring + stage_bytes * a.stages;
    norm = x + (a.resident ? x_pitch * a.m : 0);
    partial = reinterpret_cast<float*>(norm + (a.norm_weight ? round_up(a.k * 2, 16) : 0));
  }
};

// Where the block stands: which tiles, TILES at a time.
struct Work {
  uint32_t chunks, group, group_step, groups;

  __device__ __forceinline__ Work(const minisgl_skinny_args& a, uint32_t tiles) {
    chunks = (a.k + a.chunk - 1) / a.chunk;
    group = blockIdx.x;
    group_step = gridDim.x;
    groups = ((a.n + 15) / 16 + tiles - 1) / tiles;
  }
};

// Copies the rows of TILES tiles for one chunk after the other, as long as the ring has room.
template <class W, int TILES>
__device__ __forceinline__ void produce(const minisgl_skinny_args& a, const Layout<W>& layout, const Work& work,
                                        uint64_t* full, uint64_t* empty) {
  const uint32_t lane = threadIdx.x % 32;
  const uint64_t policy = read_once();
  const uint32_t passes = work.group < work.groups ? (work.groups - 1 - work.group) / work.group_step + 1 : 0;
  const uint32_t rounds = passes * work.chunks;

  const auto weights = [&](uint32_t round) {
    const uint32_t stage = round % a.stages, first = (work.group + round / work.chunks * work.group_step) * TILES;
    const uint32_t column = round % work.chunks * a.chunk, columns = min(a.chunk, a.k - column);
    // Only the last tile of all may be cut, after 8 rows.
    const uint32_t tiles = (a.n + 15) / 16, whole = min(uint32_t(TILES), tiles - first);
    const uint32_t rows = whole * 16 - (a.n % 16 != 0 && first + whole == tiles ? 8 : 0);
    if (lane == 0) barrier_expect(&full[stage], (rows * W::BYTES + (a.resident ? 0 : a.m * 2)) * columns);
    __syncwarp();
    for (uint32_t row = lane; row < rows; row += 32) {
      const char* from = weight_at<W>(a, weight_row(a, first + row / 16, row % 16), column);
      copy_once(layout.ring + stage * layout.stage_bytes + row * layout.pitch, from, columns * W::BYTES, &full[stage],
                policy);
    }
  };
  const auto inputs = [&](uint32_t round) {
    if (a.resident) return;
    const uint32_t stage = round % a.stages;
    const uint32_t column = round % work.chunks * a.chunk, bytes = 2 * min(a.chunk, a.k - column);
    for (uint32_t row = lane; row < a.m; row += 32) {
      const size_t from = size_t(row) * a.k + column;
      copy(layout.ring + stage * layout.stage_bytes + 16 * TILES * layout.pitch + row * layout.x_pitch, a.x + from,
           bytes, &full[stage]);
    }
  };

  const uint32_t early = min(rounds, a.stages);
  for (uint32_t round = 0; round < early; round++) weights(round);
  let_next_start();
  all_meet();
  wait_for_inputs();
  for (uint32_t round = 0; round < early; round++) inputs(round);
  for (uint32_t round = early; round < rounds; round++) {
    const uint32_t stage = round % a.stages;
    barrier_wait(&empty[stage], round / a.stages % 2 ^ 1);
    weights(round);
    inputs(round);
  }
}

// Brings x into shared memory, normalised if asked for. Where there are fewer rows than warps, warps share them.
template <class W>
__device__ __forceinline__ void keep_x(const minisgl_skinny_args& a, const Layout<W>& layout, const Work& work,
                                       float (*squares)[WARPS]) {
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t parts = a.m <= 1 ? WARPS : a.m <= 2 ? WARPS / 2 : a.m <= 4 ? WARPS / 4 : WARPS / 8, part = warp % parts;
  const uint32_t vectors = a.k / VEC, at_once = parts * 32;
  constexpr uint32_t BATCH = 8;
  for (uint32_t row = warp / parts; row < a.m; row += WARPS / parts) {
    const minisgl_bf16* from = a.x + size_t(row) * a.k;
    minisgl_bf16* to = reinterpret_cast<minisgl_bf16*>(layout.x + row * layout.x_pitch);
    float sum = 0.0f;
    for (uint32_t first = part * 32 + lane; first < vectors; first += BATCH * at_once) {
      Vec8 batch[BATCH];
#pragma unroll
      for (uint32_t i = 0; i < BATCH; i++) {
        if (first + i * at_once < vectors) batch[i] = load8(from + (first + i * at_once) * VEC);
      }
#pragma unroll
      for (uint32_t i = 0; i < BATCH; i++) {
        if (first + i * at_once >= vectors) break;
        store8(to + (first + i * at_once) * VEC, batch[i]);
        if (a.norm_weight) sum += sum_squares(batch[i]);
      }
    }
    if (!a.norm_weight) continue;
    sum = sum_lanes<32>(sum);
    if (lane == 0) squares[row][part] = sum;
  }
  consumers_meet();
  if (!a.norm_weight) return;
  const minisgl_bf16* weight = reinterpret_cast<const minisgl_bf16*>(layout.norm);
  for (uint32_t row = warp / parts; row < a.m; row += WARPS / parts) {
    minisgl_bf16* x = reinterpret_cast<minisgl_bf16*>(layout.x + row * layout.x_pitch);
    float sum = 0.0f;
    for (uint32_t i = 0; i < parts; i++) sum += squares[row][i];
    const float scale = norm_scale(a, sum);
    for (uint32_t at = part * 32 + lane; at < vectors; at += at_once) {
      store8(x + at * VEC, normalise(load8(x + at * VEC), load8(weight + at * VEC), scale));
    }
  }
  consumers_meet();
}

template <class W, int GROUPS, int TILES>
__device__ __forceinline__ void consume(const minisgl_skinny_args& a, const Layout<W>& layout, const Work& work,
                                        uint64_t* full, uint64_t* empty, float (*squares)[WARPS]) {
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  if (a.norm_weight) {
    for (uint32_t at = threadIdx.x; at < a.k / VEC; at += CONSUMERS) {
      store8(reinterpret_cast<minisgl_bf16*>(layout.norm) + at * VEC, load8(a.norm_weight + at * VEC));
    }
  }
  all_meet();
  wait_for_inputs();
  if (a.resident) keep_x<W>(a, layout, work, squares);

  constexpr int VECTORS = W::LANE / VEC;
  uint32_t round = 0;
  for (uint32_t group = work.group; group < work.groups; group += work.group_step) {
    const Ahead<W, GROUPS, TILES> ahead(a, group * TILES, 0);
    float sum[TILES][GROUPS][4] = {};
    [[maybe_unused]] BlockScales scales[TILES];
    if constexpr (W::BYTES == 1) {
#pragma unroll
      for (int tile = 0; tile < TILES; tile++) scales[tile] = BlockScales(a, group * TILES + tile);
    }
    for (uint32_t chunk = 0; chunk < work.chunks; chunk++, round++) {
      const uint32_t stage = round % a.stages, columns = min(a.chunk, a.k - chunk * a.chunk);
      const char* rows = layout.ring + stage * layout.stage_bytes + g * layout.pitch + t * 16;
      const char* x = a.resident ? layout.x + chunk * a.chunk * 2
                                 : layout.ring + stage * layout.stage_bytes + 16 * TILES * layout.pitch;
      const char* tokens[GROUPS];
#pragma unroll
      for (int i = 0; i < GROUPS; i++) {
        tokens[i] = x + min(i * 8 + g, a.m - 1) * layout.x_pitch + t * (W::LANE / VEC) * 16;
      }
      // What one step multiplies: 16 bytes of each row of the weight.
      const auto fetch = [&](uint4(&low)[TILES], uint4(&high)[TILES], uint4(&token)[GROUPS][VECTORS], uint32_t column) {
        // What lies behind the last column is anything, even NaN.
        const bool there = column + t * W::LANE < columns;
#pragma unroll
        for (int i = 0; i < GROUPS; i++) {
#pragma unroll
          for (int v = 0; v < VECTORS; v++) {
            token[i][v] = make_uint4(0, 0, 0, 0);
            if (there) token[i][v] = *reinterpret_cast<const uint4*>(tokens[i] + column * 2 + v * 16);
          }
        }
#pragma unroll
        for (int i = 0; i < TILES; i++) {
          low[i] = high[i] = make_uint4(0, 0, 0, 0);
          if (there) low[i] = *reinterpret_cast<const uint4*>(rows + i * 16 * layout.pitch + column * W::BYTES);
          if (there) high[i] = *reinterpret_cast<const uint4*>(rows + (i * 16 + 8) * layout.pitch + column * W::BYTES);
        }
      };
      if constexpr (W::BYTES == 2) {
        barrier_wait(&full[stage], round / a.stages % 2);
#pragma unroll 2
        for (uint32_t column = warp * W::STEP; column < columns; column += WARPS * W::STEP) {
          uint4 low[TILES], high[TILES], token[GROUPS][VECTORS];
          fetch(low, high, token, column);
          multiply<GROUPS, TILES>(sum, low, high, token);
        }
      } else {
        // Scales come while the weights do.
        const auto block_at = [&](int i) { return (i * WARPS + warp) * BLOCK; };
        float2 scale[BLOCKS_MAX][TILES];
#pragma unroll
        for (int i = 0; i < BLOCKS_MAX; i++) {
#pragma unroll
          for (int tile = 0; tile < TILES; tile++) scale[i][tile] = scales[tile].at(chunk * a.chunk + block_at(i));
        }
        barrier_wait(&full[stage], round / a.stages % 2);
        // Two steps are a block of columns. Several at once, each with sums of its own, so that none waits for another.
        constexpr int AT_ONCE = GROUPS * TILES == 1 ? BLOCKS_MAX : 1, STEPS = 2 * AT_ONCE;
#pragma unroll
        for (int first = 0; first < BLOCKS_MAX; first += AT_ONCE) {
          if (block_at(first) >= columns) break;
          uint4 low[STEPS][TILES], high[STEPS][TILES], token[STEPS][GROUPS][VECTORS];
#pragma unroll
          for (int i = 0; i < STEPS; i++) {
            fetch(low[i], high[i], token[i], block_at(first + i / 2) + i % 2 * W::STEP);
          }
          float part[STEPS][TILES][GROUPS][4] = {};
          multiply_all<GROUPS, TILES, STEPS>(part, low, high, token);
#pragma unroll
          for (int i = 0; i < AT_ONCE; i++) {
            add_scaled<GROUPS, TILES>(sum, part[2 * i], part[2 * i + 1], scale[first + i]);
          }
        }
      }
      __syncwarp();
      if (lane == 0) barrier_arrive(&empty[stage]);
    }

    // Add up what the warps have.
    float* mine = layout.partial + warp * GROUPS * 8 * TOKEN_STRIDE<TILES>;
    if (group != work.group) consumers_meet();
    each_sum<GROUPS, TILES>(a.m, sum, [&](uint32_t at, float value) { mine[at] = value; });
    consumers_meet();
    finish<W, GROUPS, TILES>(a, layout.partial, group * TILES, 0, ahead);
  }
}

template <class W, int GROUPS, int TILES>
__device__ __forceinline__ void skinny(const minisgl_skinny_args& a) {
  extern __shared__ __align__(128) char shared[];
  __shared__ uint64_t full[STAGES_MAX], empty[STAGES_MAX];
  __shared__ float squares[GROUPS * 8][WARPS];
  const Layout<W> layout(a, TILES, shared);
  const Work work(a, TILES);

  if (threadIdx.x >= CONSUMERS) {
    if (threadIdx.x == CONSUMERS) {
      for (uint32_t i = 0; i < a.stages; i++) {
        barrier_init(&full[i], 1);
        barrier_init(&empty[i], WARPS);
      }
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncwarp();
    produce<W, TILES>(a, layout, work, full, empty);
  } else {
    consume<W, GROUPS, TILES>(a, layout, work, full, empty, squares);
  }
}

#else  // Older GPUs use skinny_direct.

template <class W, int GROUPS, int TILES>
__device__ __forceinline__ void skinny(const minisgl_skinny_args&) {
  __trap();
}

#endif

}  // namespace minisgl

#define SKINNY_STREAM(GROUPS, TILES, W, NAME)                                              \
  KERNEL __launch_bounds__(CONSUMERS + 32) minisgl_skinny_stream_##GROUPS##_##TILES##NAME( \
      const __grid_constant__ minisgl_skinny_args a) {                                     \
    skinny<W, GROUPS, TILES>(a);                                                           \
  }
