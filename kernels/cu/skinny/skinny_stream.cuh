// Product of a few rows with a weight, at the speed of reading the weight once.
//
//   out[m, n] = x[m, k] * weight[n, k]^T                  x = rms_norm(residual) * norm_weight, if asked for
//   then: + bias, or as f32, or out += , or silu(gate) * up
//
// Shapes: bf16, f32 sums; m up to 16. The weight may be e4m3 with a scale for a row or for 128 x 128, m up to 16: it is
// widened to fp16 in registers, exactly, and the f32 sums of each block of columns are multiplied by its scale. x is fp16
// then too, each 128 columns of a token under a power of two of their own, by which bf16 loses nothing that counts.
// Bytes moved: 2 n k, n k with e4m3 (and 2 k + 2 n for each row of x); FLOPs 2 m n k.
// Bound: read bandwidth.
// Measured for e4m3 (one H200, 4.6 TB/s, 2026-11-29, chains of dependent launches, cold weights), at 1, 2, 4 and 8 rows, us:
// 24576 x 4096 29.3, 29.5, 29.5, 32.3 (75 % of the read bandwidth at one row); 6144 x 4096 10.3, 10.9, 11.8, 14.1;
// 4096 x 4096 8.0, 8.5, 9.3, 11.6; 4096 x 12288 17.5, 19.4, 22.6, -. About 3.7 us of each are the chain's: a block takes all
// shared memory, so that the next kernel's weights start when it has gone.
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
//   factors  [blocks of columns][GROUPS * 8] floats, of x as fp16, for e4m3
//   partial  [WARPS][GROUPS * 8][TOKEN_STRIDE] floats
template <class W>
struct Layout {
  uint32_t pitch, x_pitch, stage_bytes;
  char *ring, *x, *norm;
  float *factors, *partial;

  __device__ __forceinline__ Layout(const minisgl_skinny_args& a, uint32_t groups, uint32_t tiles, char* shared) {
    pitch = pitch_of<W>(a.chunk);
    x_pitch = x_pitch_of<W>(a.resident ? a.k : a.chunk);
    stage_bytes = pitch * 16 * tiles + (a.resident ? 0 : x_pitch * a.m);
    ring = shared;
    x = ring + stage_bytes * a.stages;
    norm = x + (a.resident ? x_pitch * a.m : 0);
    factors = reinterpret_cast<float*>(norm + (a.norm_weight ? round_up(a.k * 2, 16) : 0));
    partial = factors + (W::BYTES == 1 ? (a.k + BLOCK - 1) / BLOCK * groups * 8 : 0);
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

// Brings x into shared memory, normalised if asked for, and as fp16 for e4m3. Where there are fewer rows than warps, warps
// share them.
template <class W, int GROUPS>
__device__ __forceinline__ void keep_x(const minisgl_skinny_args& a, const Layout<W>& layout, const Work& work,
                                       float (*squares)[WARPS]) {
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t parts = a.m <= 1 ? WARPS : a.m <= 2 ? WARPS / 2 : a.m <= 4 ? WARPS / 4 : WARPS / 8, part = warp % parts;
  const uint32_t vectors = a.k / VEC, at_once = parts * 32;
  constexpr uint32_t BATCH = 8;
  // Sixteen lanes hold a block of columns. All lanes of a warp must come here.
  const auto store = [&](uint32_t row, uint32_t at, const Vec8& x) {
    char* to = layout.x + row * layout.x_pitch + at * 16;
    if constexpr (W::BYTES == 2) {
      if (at < vectors) store8(reinterpret_cast<minisgl_bf16*>(to), x);
    } else {
      const float factor = half_factor(largest_of_lanes<BLOCK / VEC>(at < vectors ? largest_of(x) : 0.0f));
      if (at >= vectors) return;
      *reinterpret_cast<uint4*>(to) = to_half(x, factor);
      if (at % (BLOCK / VEC) == 0) layout.factors[at / (BLOCK / VEC) * GROUPS * 8 + row] = factor;
    }
  };
  for (uint32_t row = warp / parts; row < a.m; row += WARPS / parts) {
    const minisgl_bf16* from = a.x + size_t(row) * a.k;
    float sum = 0.0f;
    for (uint32_t first = part * 32; first < vectors; first += BATCH * at_once) {
      Vec8 batch[BATCH];
#pragma unroll
      for (uint32_t i = 0; i < BATCH; i++) {
        const uint32_t at = first + lane + i * at_once;
        if (at < vectors) batch[i] = load8(from + at * VEC);
      }
#pragma unroll
      for (uint32_t i = 0; i < BATCH; i++) {
        const uint32_t at = first + lane + i * at_once;
        if (first + i * at_once >= vectors) break;
        if (!a.norm_weight) {
          store(row, at, batch[i]);
        } else if (at < vectors) {
          store8(reinterpret_cast<minisgl_bf16*>(layout.x + row * layout.x_pitch) + at * VEC, batch[i]);
          sum += sum_squares(batch[i]);
        }
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
    const minisgl_bf16* x = reinterpret_cast<const minisgl_bf16*>(layout.x + row * layout.x_pitch);
    float sum = 0.0f;
    for (uint32_t i = 0; i < parts; i++) sum += squares[row][i];
    const float scale = norm_scale(a, sum);
    for (uint32_t first = part * 32; first < vectors; first += at_once) {
      const uint32_t at = min(first + lane, vectors - 1);
      const Vec8 normed = normalise(load8(x + at * VEC), load8(weight + at * VEC), scale);
      __syncwarp();
      store(row, first + lane, normed);
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
  if (a.resident) keep_x<W, GROUPS>(a, layout, work, squares);

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
          multiply_all<true, GROUPS, TILES, STEPS>(part, low, high, token);
#pragma unroll
          for (int i = 0; i < AT_ONCE; i++) {
            // Behind the last block of columns are sums of zeros.
            const uint32_t block = min((chunk * a.chunk + block_at(first + i)) / BLOCK, (a.k - 1) / BLOCK);
            float2 factor[GROUPS];
#pragma unroll
            for (int of = 0; of < GROUPS; of++) {
              factor[of] = *reinterpret_cast<const float2*>(layout.factors + (block * GROUPS + of) * 8 + 2 * t);
            }
            add_scaled<GROUPS, TILES>(sum, part[2 * i], part[2 * i + 1], scale[first + i], factor);
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
  const Layout<W> layout(a, GROUPS, TILES, shared);
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

#else  // No older GPU is given this.

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
