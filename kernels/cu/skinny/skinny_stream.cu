// Product of a few rows with a weight, at the speed of reading the weight once.
//
//   out[m, n] = x[m, k] * weight[n, k]^T                  x = rms_norm(residual) * norm_weight, if asked for
//   then: + bias, or as f32, or out += , or silu(gate) * up
//
// Shapes: bf16, f32 sums; m up to 16. Bytes moved: 2 n k (and 2 k + 2 n for each row of x); FLOPs 2 m n k.
// Bound: read bandwidth.
//
// A block owns TILES * 16 rows of the weight at a time. One producer warp copies them into a ring in shared
// memory, without waiting for the kernel before: weights depend on nothing. Eight consumer warps multiply
// with the tensor cores, rows of the weight as the tall operand, tokens as the narrow one; each takes its
// share of the columns, and the shares are added in a fixed order.

#include "skinny.cuh"

using namespace minisgl;

[[maybe_unused]] constexpr uint32_t STAGES_MAX = 16;

#if __CUDA_ARCH__ >= 900

// The producer too: each kind of warp is at its own place in the code.
__device__ __forceinline__ void all_meet() {
  asm volatile("bar.sync 2, %0;" ::"n"(CONSUMERS + 32) : "memory");
}

__device__ __forceinline__ void consumers_meet() {
  asm volatile("bar.sync 1, %0;" ::"n"(CONSUMERS) : "memory");
}

// How shared memory is laid out; src/ops/skinny/cut.rs counts the same bytes.
//   ring     [stages][16 * TILES (+ m)] rows of `pitch` bytes
//   x        [m] rows of `x_pitch` bytes, if resident
//   norm     [k] bf16, if there is a norm
//   partial  [WARPS][GROUPS * 8][TOKEN_STRIDE] floats
struct Layout {
  uint32_t pitch, x_pitch, stage_bytes;
  char *ring, *x, *norm;
  float* partial;

  __device__ __forceinline__ Layout(const minisgl_skinny_args& a, uint32_t tiles, char* shared) {
    pitch = pitch_of(a.chunk);
    x_pitch = a.resident ? pitch_of(a.k) : pitch;
    stage_bytes = pitch * (16 * tiles + (a.resident ? 0 : a.m));
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
template <int TILES>
__device__ __forceinline__ void produce(const minisgl_skinny_args& a, const Layout& layout, const Work& work,
                                        uint64_t* full, uint64_t* empty) {
  const uint32_t lane = threadIdx.x % 32;
  const uint64_t policy = read_once();
  const uint32_t passes = work.group < work.groups ? (work.groups - 1 - work.group) / work.group_step + 1 : 0;
  const uint32_t rounds = passes * work.chunks;

  const auto weights = [&](uint32_t round) {
    const uint32_t stage = round % a.stages, first = (work.group + round / work.chunks * work.group_step) * TILES;
    const uint32_t column = round % work.chunks * a.chunk, bytes = 2 * min(a.chunk, a.k - column);
    // Only the last tile of all may be cut, after 8 rows.
    const uint32_t tiles = (a.n + 15) / 16, whole = min(uint32_t(TILES), tiles - first);
    const uint32_t rows = whole * 16 - (a.n % 16 != 0 && first + whole == tiles ? 8 : 0);
    if (lane == 0) barrier_expect(&full[stage], (rows + (a.resident ? 0 : a.m)) * bytes);
    __syncwarp();
    for (uint32_t row = lane; row < rows; row += 32) {
      const size_t from = size_t(weight_row(a, first + row / 16, row % 16)) * a.k + column;
      copy_once(layout.ring + stage * layout.stage_bytes + row * layout.pitch, a.weight + from, bytes, &full[stage],
                policy);
    }
  };
  const auto inputs = [&](uint32_t round) {
    if (a.resident) return;
    const uint32_t stage = round % a.stages;
    const uint32_t column = round % work.chunks * a.chunk, bytes = 2 * min(a.chunk, a.k - column);
    for (uint32_t row = lane; row < a.m; row += 32) {
      const size_t from = size_t(row) * a.k + column;
      copy(layout.ring + stage * layout.stage_bytes + (16 * TILES + row) * layout.pitch, a.x + from, bytes,
           &full[stage]);
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
__device__ __forceinline__ void keep_x(const minisgl_skinny_args& a, const Layout& layout, const Work& work,
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

template <int GROUPS, int TILES>
__device__ __forceinline__ void consume(const minisgl_skinny_args& a, const Layout& layout, const Work& work,
                                        uint64_t* full, uint64_t* empty, float (*squares)[WARPS]) {
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  if (a.norm_weight) {
    for (uint32_t at = threadIdx.x; at < a.k / VEC; at += CONSUMERS) {
      store8(reinterpret_cast<minisgl_bf16*>(layout.norm) + at * VEC, load8(a.norm_weight + at * VEC));
    }
  }
  all_meet();
  wait_for_inputs();
  if (a.resident) keep_x(a, layout, work, squares);

  uint32_t round = 0;
  for (uint32_t group = work.group; group < work.groups; group += work.group_step) {
    const Ahead<GROUPS, TILES> ahead(a, group * TILES, 0);
    float sum[TILES][GROUPS][4] = {};
    for (uint32_t chunk = 0; chunk < work.chunks; chunk++, round++) {
      const uint32_t stage = round % a.stages, columns = min(a.chunk, a.k - chunk * a.chunk);
      const char* rows = layout.ring + stage * layout.stage_bytes + g * layout.pitch + t * 16;
      const char* x = a.resident ? layout.x + chunk * a.chunk * 2
                                 : layout.ring + stage * layout.stage_bytes + 16 * TILES * layout.pitch;
      const char* tokens[GROUPS];
#pragma unroll
      for (int i = 0; i < GROUPS; i++) tokens[i] = x + min(i * 8 + g, a.m - 1) * layout.x_pitch + t * 16;
      barrier_wait(&full[stage], round / a.stages % 2);
#pragma unroll 2
      for (uint32_t column = warp * STEP; column < columns; column += WARPS * STEP) {
        uint4 low[TILES], high[TILES], token[GROUPS];
#pragma unroll
        for (int i = 0; i < GROUPS; i++) token[i] = *reinterpret_cast<const uint4*>(tokens[i] + column * 2);
#pragma unroll
        for (int i = 0; i < TILES; i++) {
          low[i] = *reinterpret_cast<const uint4*>(rows + i * 16 * layout.pitch + column * 2);
          high[i] = *reinterpret_cast<const uint4*>(rows + (i * 16 + 8) * layout.pitch + column * 2);
        }
        // What lies behind the last column is anything, even NaN.
        if (column + t * VEC >= columns) {
#pragma unroll
          for (int i = 0; i < GROUPS; i++) token[i] = make_uint4(0, 0, 0, 0);
#pragma unroll
          for (int i = 0; i < TILES; i++) low[i] = high[i] = make_uint4(0, 0, 0, 0);
        }
        multiply<GROUPS, TILES>(sum, low, high, token);
      }
      barrier_arrive(&empty[stage]);
    }

    // Add up what the warps have.
    float* mine = layout.partial + warp * GROUPS * 8 * TOKEN_STRIDE<TILES>;
    if (group != work.group) consumers_meet();
    each_sum<GROUPS, TILES>(a.m, sum, [&](uint32_t at, float value) { mine[at] = value; });
    consumers_meet();
    finish<GROUPS, TILES>(a, layout.partial, group * TILES, 0, ahead);
  }
}

template <int GROUPS, int TILES>
__device__ __forceinline__ void skinny(const minisgl_skinny_args& a) {
  extern __shared__ __align__(128) char shared[];
  __shared__ uint64_t full[STAGES_MAX], empty[STAGES_MAX];
  __shared__ float squares[GROUPS * 8][WARPS];
  const Layout layout(a, TILES, shared);
  const Work work(a, TILES);

  if (threadIdx.x >= CONSUMERS) {
    if (threadIdx.x == CONSUMERS) {
      for (uint32_t i = 0; i < a.stages; i++) {
        barrier_init(&full[i], 1);
        barrier_init(&empty[i], CONSUMERS);
      }
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncwarp();
    produce<TILES>(a, layout, work, full, empty);
  } else {
    consume<GROUPS, TILES>(a, layout, work, full, empty, squares);
  }
}

#else  // No older GPU is given this.

template <int GROUPS, int TILES>
__device__ __forceinline__ void skinny(const minisgl_skinny_args&) {
  __trap();
}

#endif

#define SKINNY(GROUPS, TILES)                                                             \
  KERNEL __launch_bounds__(CONSUMERS + 32) minisgl_skinny_stream_##GROUPS##_##TILES(      \
      const __grid_constant__ minisgl_skinny_args a) {                                    \
    skinny<GROUPS, TILES>(a);                                                             \
  }

SKINNY(1, 1)
SKINNY(2, 1)
SKINNY(2, 2)
