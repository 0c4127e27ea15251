// The experts of a layer in MXFP4 for many rows: the grouped products of experts_many.cu, with weights as in mxfp4.cuh.
//
// Shapes and arguments are those of experts_many.cu. Weights are multiplied by their scales and rounded to nothing: a code
// times a power of two is a bf16. FLOPs: 2 * pairs * n * columns. Bytes moved: the weights of every expert that has a row,
// once for each batch (again from the cache), and 2 * pairs * (columns + n). Bound: tensor cores, or with few rows read
// bandwidth; before those, what the cache brings of x to the multiprocessors.
//
// A block computes 256 rows of the weights (sixteen slabs) times all rows of a batch at a time, and goes on with the next
// such item. One warp, whose group has given its registers away, fills a ring of stages of 128 columns by bulk copies
// alone. Each warp of two warpgroups widens its own slab into registers, which wgmma takes as they are, while the products
// before are being computed. Results are turned around in shared memory, so that whole lines go out.

#include "mxfp4.cuh"
#include "mxfp4_wgmma.cuh"

using namespace minisgl;

[[maybe_unused]] constexpr uint32_t TILES = 2, MANY_SLABS = 8, MANY_STAGES_MAX = 12, MANY_STEPS = 2;
[[maybe_unused]] constexpr uint32_t MULTIPLIERS = 256, THREADS = MULTIPLIERS + 128;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Shared memory, from a multiple of 1024 bytes on; `mxfp4_many.rs` counts the same bytes.
//   ring      [stages]: of each slab MANY_STEPS steps, then MANY_STEPS times N rows of x of 128 bytes
//   turned    [max(N, 64)] rows of 128 bytes
template <bool DOWN, uint32_t N>
struct Many {
  static constexpr uint32_t SLABS = TILES * MANY_SLABS, PITCH = MANY_STEPS * MX_STEP_BYTES;
  static constexpr uint32_t CODES = (SLABS * PITCH + 1023) / 1024 * 1024, STAGE = CODES + MANY_STEPS * N * 128;

  const minisgl_experts_many_args& a;
  const MxMatrix matrix;
  char *ring, *turned;
  uint32_t tiles, items;
  const int4* batches;
  uint64_t *full, *empty;

  __device__ __forceinline__ Many(const minisgl_experts_many_args& a, char* shared, uint64_t* full, uint64_t* empty)
      : a(a), matrix(a.n, a.columns, DOWN), full(full), empty(empty) {
    ring = shared + (1024 - shared_address(shared) % 1024) % 1024;
    turned = ring + a.stages * STAGE;
    tiles = (matrix.slabs + SLABS - 1) / SLABS;
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

  // Steps that a stage has from this one on: those of a slab are neighbours within a part.
  __device__ __forceinline__ uint32_t together(uint32_t step) const {
    return min(MANY_STEPS, min(matrix.part - step % matrix.part, matrix.steps - step));
  }
};

__device__ __forceinline__ void multipliers_meet() { asm volatile("bar.sync 1, %0;" ::"n"(MULTIPLIERS) : "memory"); }

// One warp copies: a lane the steps of a slab, another the rows of x of one step.
template <bool DOWN, uint32_t N>
__device__ __forceinline__ void many_produce(const Many<DOWN, N>& work) {
  const uint32_t lane = threadIdx.x % 32, places = work.a.rows * work.a.top;
  uint32_t stage = 0, phase = 0;
  int4 batch = work.batch_of(blockIdx.x);
  for (uint32_t item = blockIdx.x; item < work.items; item += gridDim.x) {
    const int4 next = work.batch_of(item + gridDim.x);
    const uint32_t slab = item % work.tiles * work.SLABS, slabs = min(work.SLABS, work.matrix.slabs - slab);
    const char* weight = static_cast<const char*>(work.a.weight) + batch.x * work.matrix.bytes();
    const char* x = reinterpret_cast<const char*>(work.a.x) + size_t(batch.y) * 128;
    const uint32_t x_bytes = batch.z * 128;
    for (uint32_t step = 0, count; step < work.matrix.steps; step += count) {
      count = work.together(step);
      barrier_wait(&work.empty[stage], phase ^ 1);
      char* to = work.ring + stage * work.STAGE;
      if (lane == 0) barrier_expect(&work.full[stage], slabs * count * MX_STEP_BYTES + count * x_bytes);
      __syncwarp();
      if (lane < slabs) {
        copy(to + lane * work.PITCH, weight + size_t(work.matrix.at(slab + lane, step)) * MX_STEP_BYTES,
             count * MX_STEP_BYTES, &work.full[stage]);
      } else if (lane >= work.SLABS && lane < work.SLABS + count) {
        const uint32_t i = lane - work.SLABS;
        copy(to + work.CODES + i * N * 128, x + size_t(step + i) * places * 128, x_bytes, &work.full[stage]);
      }
      if (++stage == work.a.stages) stage = 0, phase ^= 1;
    }
    batch = next;
  }
}

__device__ __forceinline__ void store_turned(uint32_t to, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(a), "r"(b), "r"(c),
               "r"(d)
               : "memory");
}

__device__ __forceinline__ uint32_t two(minisgl_bf16 low, minisgl_bf16 high) {
  return uint32_t(__bfloat16_as_ushort(low)) | uint32_t(__bfloat16_as_ushort(high)) << 16;
}

// A warp's slab over 64 columns as four operands, times 2^-60.
__device__ __forceinline__ void widen_slab(uint32_t (&a)[16], const char* at) {
  const uint32_t lane = threadIdx.x % 32;
  const uint4 codes = *reinterpret_cast<const uint4*>(at + lane * 16);
  const uint32_t scales = *reinterpret_cast<const uint32_t*>(at + MX_CODE_BYTES + lane / 4 * 4);
  const uint32_t word[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
  for (uint32_t i = 0; i < 4; i++) {
    uint32_t pair[4];
    mx_widen(pair, word[i]);
    const uint32_t scale = (scales >> 8 * i & 0xff) * 0x00800080u;
#pragma unroll
    for (uint32_t j = 0; j < 4; j++) {
      const __nv_bfloat162 value = __hmul2(reinterpret_cast<const __nv_bfloat162&>(pair[j]),
                                           reinterpret_cast<const __nv_bfloat162&>(scale));
      // Columns 32 (i / 2) + 8 j; rows g and g + 8 by turns.
      a[i / 2 * 8 + 2 * j + i % 2] = reinterpret_cast<const uint32_t&>(value);
    }
  }
}

// Where a warp stands in the ring.
struct Ring {
  uint32_t stage, phase;
  __device__ __forceinline__ void next(uint32_t stages) {
    if (++stage == stages) stage = 0, phase ^= 1;
  }
};

// The products of an item. While those with one tile are computed, the other's operands are widened.
template <bool DOWN, uint32_t N>
__device__ __forceinline__ void multiply_all(const Many<DOWN, N>& work, float (&sums)[TILES][N / 2], Ring& at) {
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, steps = work.matrix.steps;
  const uint32_t ring = shared_address(work.ring);
  uint32_t weights[TILES][16];
  uint32_t sub = 0, count = work.together(0), before = 0;
  bool done = false;  // With the stage before.
  const auto widen = [&](uint32_t tile) {
    const uint32_t slab = tile * MANY_SLABS + warp;
    widen_slab(weights[tile], work.ring + at.stage * work.STAGE + slab * work.PITCH + sub * MX_STEP_BYTES);
  };
  const auto multiply = [&](uint32_t tile, bool add) {
    const uint64_t x = operand(ring + at.stage * work.STAGE + work.CODES + sub * N * 128);
    const uint32_t(&w)[16] = weights[tile];
    products_begin();
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
      product(sums[tile], w[4 * i], w[4 * i + 1], w[4 * i + 2], w[4 * i + 3], x + 2 * i, add || i > 0);
    }
    products_commit();
    // What came before these has been computed.
    products_wait<1>();
  };
  // Every warp says for itself that it has done with a stage.
  const auto release = [&] {
    __syncwarp();
    if (lane == 0) barrier_arrive(&work.empty[before]);
  };
  barrier_wait(&work.full[at.stage], at.phase);
  widen(0);
#pragma unroll 1
  for (uint32_t step = 0; step < steps; step++) {
    multiply(0, step > 0);
    if (done) release();
    widen(1);
    multiply(1, step > 0);
    done = ++sub == count;
    if (done) {
      before = at.stage, sub = 0;
      at.next(work.a.stages);
      if (step + 1 < steps) {
        count = work.together(step + 1);
        barrier_wait(&work.full[at.stage], at.phase);
      }
    }
    if (step + 1 < steps) widen(0);
  }
  products_wait<0>();
  release();
}

// Rounds and stores what the products with the eight slabs from `slab` on have come to.
template <bool DOWN, uint32_t N>
__device__ __forceinline__ void store_all(const Many<DOWN, N>& work, const int4& batch, uint32_t slab,
                                          const float (&sum)[N / 2]) {
  const minisgl_experts_many_args& a = work.a;
  const uint32_t thread = threadIdx.x, warp = thread / 32, lane = thread % 32;

  // Lane 4 g + t has rows g and g + 8 of its warp's slab, tokens 8 i + 2 t and the next.
  const uint32_t g = lane / 4, mine = slab + warp, width = DOWN ? a.n : a.n / 2;
  float bias[2] = {};
  if (a.bias && mine < work.matrix.slabs) {
    const minisgl_bf16* from = a.bias + size_t(batch.x) * a.n + mine * (DOWN ? SLAB : SLAB / 2) + g;
    bias[0] = __bfloat162float(from[0]), bias[1] = __bfloat162float(from[DOWN ? SLAB / 2 : width]);
  }
  // A row of `turned` has the results of all eight warps for a token: 8 columns of each for up, 16 for down, where a
  // token takes two rows. Where it has less room than there are tokens, it is filled several times.
  const uint32_t turned = shared_address(work.turned), room = max(N, 64u) / (DOWN ? 2 : 1);
  for (uint32_t from = 0; from < batch.z; from += room) {
    multipliers_meet();
#pragma unroll
    for (uint32_t i = 0; i < N; i += 32) {
      if (i < from || i >= from + room || i >= batch.z) continue;
      const uint32_t token = i - from + lane;  // Whose row this lane gives the address of.
      uint32_t low[4], high[4];
#pragma unroll
      for (uint32_t j = 0; j < 4; j++) {
        const float* d = sum + (i + 8 * j) / 2;
        const float low0 = d[0] * MX_UP + bias[0], low1 = d[1] * MX_UP + bias[0];
        const float high0 = d[2] * MX_UP + bias[1], high1 = d[3] * MX_UP + bias[1];
        if (DOWN) {
          low[j] = two(__float2bfloat16_rn(low0), __float2bfloat16_rn(low1));
          high[j] = two(__float2bfloat16_rn(high0), __float2bfloat16_rn(high1));
        } else {
          low[j] = two(gated(low0, high0, a.gate), gated(low1, high1, a.gate));
        }
      }
      if (DOWN) {
        const uint32_t unit = warp % 4 * 2, row = token * 2 + warp / 4;
        store_turned(turned + row * 128 + (unit ^ row / 2 % 8) * 16, low[0], low[1], low[2], low[3]);
        store_turned(turned + row * 128 + (unit + 1 ^ row / 2 % 8) * 16, high[0], high[1], high[2], high[3]);
      } else {
        store_turned(turned + token * 128 + (warp ^ token % 8) * 16, low[0], low[1], low[2], low[3]);
      }
    }
    multipliers_meet();
    constexpr uint32_t UNITS = DOWN ? 16 : 8;
    const uint32_t tokens = min(uint32_t(batch.z) - from, room);
    for (uint32_t i = thread; i < tokens * UNITS; i += MULTIPLIERS) {
      const uint32_t token = i / UNITS, unit = i % UNITS;
      const uint32_t column = slab * (DOWN ? SLAB : SLAB / 2) + unit * VEC;
      if (DOWN && column >= width) continue;
      const char* row = work.turned + (DOWN ? token * 2 + unit / 8 : token) * 128;
      const uint4 values = *reinterpret_cast<const uint4*>(row + (unit % 8 ^ token % 8) * 16);
      if (DOWN) {
        *reinterpret_cast<uint4*>(a.out + size_t(batch.y + from + token) * width + column) = values;
      } else {
        // A tile has the columns of one step of down; those past the last are zeros.
        const size_t at = size_t(column / STEP_COLUMNS) * a.rows * a.top + batch.y + from + token;
        *reinterpret_cast<uint4*>(a.out + at * STEP_COLUMNS + (unit ^ (from + token) % 8) * VEC) =
            column < width ? values : make_uint4(0, 0, 0, 0);
      }
    }
  }
}

// One item, whose batch has N rows at most.
template <bool DOWN, uint32_t N>
__device__ __forceinline__ void item_of(const Many<DOWN, N>& work, const int4& batch, uint32_t slab, Ring& at) {
  float sums[TILES][N / 2];
  multiply_all(work, sums, at);
#pragma unroll
  for (uint32_t tile = 0; tile < TILES; tile++) {
    if (slab + tile * MANY_SLABS < work.matrix.slabs) store_all(work, batch, slab + tile * MANY_SLABS, sums[tile]);
  }
}

template <bool DOWN, uint32_t N>
__device__ __forceinline__ void many(const minisgl_experts_many_args& a) {
  extern __shared__ __align__(128) char shared[];
  __shared__ uint64_t full[MANY_STAGES_MAX], empty[MANY_STAGES_MAX];
  if (threadIdx.x == 0) {
    for (uint32_t i = 0; i < a.stages; i++) {
      barrier_init(&full[i], 1);
      barrier_init(&empty[i], MULTIPLIERS / 32);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  Many<DOWN, N> work(a, shared, full, empty);
  wait_for_inputs();
  let_next_start();
  __syncthreads();
  work.load_plan();
  if (threadIdx.x >= MULTIPLIERS) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x < MULTIPLIERS + 32) many_produce(work);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    Ring at = {0, 0};
    int4 batch = work.batch_of(blockIdx.x);
    for (uint32_t item = blockIdx.x; item < work.items; item += gridDim.x) {
      const int4 next = work.batch_of(item + gridDim.x);
      item_of(work, batch, item % work.tiles * work.SLABS, at);
      batch = next;
    }
  }
}

#else  // Only Hopper has these instructions.

template <bool DOWN, uint32_t N>
__device__ __forceinline__ void many(const minisgl_experts_many_args&) {
  __trap();
}

#endif

#define MANY(n)                                                                                                          \
  KERNEL __launch_bounds__(THREADS, 1) minisgl_mxfp4_many_up_##n(const __grid_constant__ minisgl_experts_many_args a) {   \
    many<false, n>(a);                                                                                                   \
  }                                                                                                                      \
  KERNEL __launch_bounds__(THREADS, 1) minisgl_mxfp4_many_down_##n(const __grid_constant__ minisgl_experts_many_args a) { \
    many<true, n>(a);                                                                                                    \
  }

// One for each size of a batch: with several in one kernel, the compiler runs short of registers.
MANY(32)
MANY(64)
MANY(128)
