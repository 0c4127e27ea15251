// The experts of a layer in MXFP4 for many rows: the grouped products of experts_many.cu, with weights as in mxfp4.cuh.
//
// Shapes and arguments are those of experts_many.cu. Weights are multiplied by their scales and rounded to nothing: a code
// times a power of two is a bf16. FLOPs: 2 * pairs * n * columns. Bytes moved: the weights of every expert that has a row,
// once for each batch (again from the cache), and 2 * pairs * (columns + n). Bound: tensor cores, or with few rows read
// bandwidth; before those, what the cache brings of x to the multiprocessors.
//
// A block computes 256 rows of the weights (sixteen slabs) times all rows of a batch at a time, and goes on with the next
// such item. Two warps fill two rings by bulk copies alone: codes, four steps of 64 columns at a time, and rows of x, one at
// a time. Others, in teams of eight, widen a slab each into registers, which wgmma takes as they are. With few rows to
// a batch to widen is most of the work, and there are two teams, so that one widens while the other's products are
// computed; with more a team has the registers of both, and two slabs a warp, of which one is widened meanwhile.
// Results are turned around in shared memory, so that whole lines go out.
// Measured (H200, 2026-11-30, docs/benchmarks.md), gpt-oss-20b, with what comes before and after: 250 us at 128 rows, 37 % of
// reading; 3,350 us at 8,192.

#include "mxfp4.cuh"
#include "mxfp4_wgmma.cuh"

using namespace minisgl;

[[maybe_unused]] constexpr uint32_t MANY_SLABS = 8, STAGES_MAX = 8, TEAM = MANY_SLABS * 32, COPIERS = 128;

// Teams of a block, for batches of up to so many rows.
__host__ __device__ constexpr uint32_t teams_of(uint32_t rows) { return rows > 64 ? 1 : 2; }

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

struct Barriers {
  uint64_t codes_full[STAGES_MAX], codes_empty[STAGES_MAX], x_full[STAGES_MAX], x_empty[STAGES_MAX];
};

// Shared memory, from a multiple of 1024 bytes on; `mxfp4_many.rs` counts the same bytes.
//   codes     [CODES_STAGES]: four steps of each of sixteen slabs
//   x         [X_STAGES][N] rows of 128 bytes
//   turned    [TEAMS][max(N, 64)] rows of 128 bytes
template <bool DOWN, uint32_t N>
struct Many {
  static constexpr uint32_t TEAMS = teams_of(N), TILES = 2 / TEAMS, MULTIPLIERS = TEAMS * TEAM;
  static constexpr uint32_t SLABS = TEAMS * TILES * MANY_SLABS, CODES = SLABS * MX_QUAD_BYTES, X = N * 128;
  static constexpr uint32_t TURNED = (N > 64 ? N : 64) * 128;
  static constexpr uint32_t CODES_STAGES = N > 64 ? 3 : N > 32 ? 4 : 5, X_STAGES = N > 64 ? 6 : 8;

  const minisgl_experts_many_args& a;
  const MxMatrix matrix;
  Barriers& bars;
  char *codes, *x, *turned;
  uint32_t tiles, items;
  const int4* batches;

  __device__ __forceinline__ Many(const minisgl_experts_many_args& a, char* shared, Barriers& bars)
      : a(a), matrix(a.n, a.columns, DOWN), bars(bars) {
    codes = shared + (1024 - shared_address(shared) % 1024) % 1024;
    x = codes + CODES_STAGES * CODES;
    turned = x + X_STAGES * X;
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
};

__device__ __forceinline__ void team_meets(uint32_t team) {
  asm volatile("bar.sync %0, %1;" ::"r"(1 + team), "n"(TEAM) : "memory");
}

// Where a warp stands in a ring.
struct Ring {
  uint32_t stage = 0, phase = 0;
  __device__ __forceinline__ void next(uint32_t stages) {
    if (++stage == stages) stage = 0, phase ^= 1;
  }
};

// One warp copies codes: a lane four steps of a slab.
template <bool DOWN, uint32_t N>
__device__ __forceinline__ void copy_codes(const Many<DOWN, N>& work) {
  const uint32_t lane = threadIdx.x % 32;
  const MxMatrix& matrix = work.matrix;
  Ring at;
  int4 batch = work.batch_of(blockIdx.x);
  for (uint32_t item = blockIdx.x; item < work.items; item += gridDim.x) {
    const int4 next = work.batch_of(item + gridDim.x);
    const uint32_t slab = item % work.tiles * work.SLABS, slabs = min(work.SLABS, matrix.slabs - slab);
    const char* expert = static_cast<const char*>(work.a.weight) + batch.x * matrix.bytes();
    for (uint32_t part = 0; part < matrix.parts; part++) {
      const uint32_t steps = matrix.steps_of(part);
      const char* from = expert + matrix.at(slab + lane, part);
      for (uint32_t step = 0; step < steps; step += MX_QUAD, from += MX_QUAD_BYTES) {
        const uint32_t bytes = mx_run_bytes(min(MX_QUAD, steps - step));
        barrier_wait(&work.bars.codes_empty[at.stage], at.phase ^ 1);
        if (lane == 0) barrier_expect(&work.bars.codes_full[at.stage], slabs * bytes);
        __syncwarp();
        if (lane < slabs) {
          copy(work.codes + at.stage * work.CODES + lane * MX_QUAD_BYTES, from, bytes, &work.bars.codes_full[at.stage]);
        }
        at.next(work.CODES_STAGES);
      }
    }
    batch = next;
  }
}

// One thread copies rows of x, a step at a time.
template <bool DOWN, uint32_t N>
__device__ __forceinline__ void copy_rows(const Many<DOWN, N>& work) {
  const size_t places = work.a.rows * work.a.top;
  Ring at;
  int4 batch = work.batch_of(blockIdx.x);
  for (uint32_t item = blockIdx.x; item < work.items; item += gridDim.x) {
    const int4 next = work.batch_of(item + gridDim.x);
    const char* from = reinterpret_cast<const char*>(work.a.x) + size_t(batch.y) * 128;
    const uint32_t bytes = batch.z * 128;
    for (uint32_t step = 0; step < work.matrix.steps; step++, from += places * 128) {
      barrier_wait(&work.bars.x_empty[at.stage], at.phase ^ 1);
      barrier_expect(&work.bars.x_full[at.stage], bytes);
      copy(work.x + at.stage * work.X, from, bytes, &work.bars.x_full[at.stage]);
      at.next(work.X_STAGES);
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
__device__ __forceinline__ void widen_slab(uint32_t (&a)[16], const char* run, const MxStep& step) {
  const uint32_t lane = threadIdx.x % 32;
  const uint4 codes = *reinterpret_cast<const uint4*>(run + step.codes + lane * 16);
  const uint32_t scales = *reinterpret_cast<const uint32_t*>(run + step.scales + lane / 4 * 4);
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

// Where a warp is: in the rings, in a part, and in the four steps of a stage.
struct Position {
  Ring codes, x;
  uint32_t part, left, step, steps;
};

// The products of an item. While those with one tile are computed, the other's operands are widened, or other teams' are.
template <bool DOWN, uint32_t N, uint32_t TILES>
__device__ __forceinline__ void multiply_all(const Many<DOWN, N>& work, float (&sums)[TILES][N / 2], Position& at) {
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, steps = work.matrix.steps;
  const uint32_t rows = shared_address(work.x);
  uint32_t weights[TILES][16];
  // Every warp says for itself that it has done with a stage.
  const auto release = [&](uint64_t* empty) {
    __syncwarp();
    if (lane == 0) barrier_arrive(empty);
  };
  // The next four steps of a part, or what is left of it.
  const auto enter_codes = [&] {
    if (at.left == 0) at.left = work.matrix.steps_of(at.part++);
    at.step = 0, at.steps = min(MX_QUAD, at.left);
    at.left -= at.steps;
    barrier_wait(&work.bars.codes_full[at.codes.stage], at.codes.phase);
  };
  const auto widen = [&](uint32_t tile) {
    const uint32_t slab = tile * MANY_SLABS + warp;
    widen_slab(weights[tile], work.codes + at.codes.stage * work.CODES + slab * MX_QUAD_BYTES, MxStep(at.step, at.steps));
  };
  const auto multiply = [&](uint32_t tile, bool add) {
    const uint64_t x = operand(rows + at.x.stage * work.X);
    const uint32_t(&w)[16] = weights[tile];
    products_begin();
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
      product(sums[tile], w[4 * i], w[4 * i + 1], w[4 * i + 2], w[4 * i + 3], x + 2 * i, add || i > 0);
    }
    products_commit();
    // What came before these has been computed.
    products_wait<TILES - 1>();
  };
  uint32_t before = 0;
  at.part = 0, at.left = 0;
  enter_codes();
  if constexpr (TILES == 1) {
#pragma unroll 1
    for (uint32_t step = 0; step < steps; step++) {
      widen(0);
      if (++at.step == at.steps) {
        release(&work.bars.codes_empty[at.codes.stage]);
        at.codes.next(work.CODES_STAGES);
        if (step + 1 < steps) enter_codes();
      }
      barrier_wait(&work.bars.x_full[at.x.stage], at.x.phase);
      multiply(0, step > 0);
      release(&work.bars.x_empty[at.x.stage]);
      at.x.next(work.X_STAGES);
    }
    return;
  }
  widen(0);
#pragma unroll 1
  for (uint32_t step = 0; step < steps; step++) {
    barrier_wait(&work.bars.x_full[at.x.stage], at.x.phase);
    multiply(0, step > 0);
    if (step > 0) release(&work.bars.x_empty[before]);
    widen(TILES - 1);
    // All that this warp wants of a stage of codes is in registers now.
    const bool done = ++at.step == at.steps;
    if (done) {
      release(&work.bars.codes_empty[at.codes.stage]);
      at.codes.next(work.CODES_STAGES);
    }
    multiply(TILES - 1, step > 0);
    before = at.x.stage;
    at.x.next(work.X_STAGES);
    if (step + 1 < steps) {
      if (done) enter_codes();
      widen(0);
    }
  }
  products_wait<0>();
  release(&work.bars.x_empty[before]);
}

// Rounds and stores what the products with the eight slabs from `slab` on have come to.
template <bool DOWN, uint32_t N>
__device__ __forceinline__ void store_all(const Many<DOWN, N>& work, const int4& batch, uint32_t slab,
                                          const float (&sum)[N / 2]) {
  const minisgl_experts_many_args& a = work.a;
  const uint32_t team = work.TEAMS > 1 ? threadIdx.x / TEAM : 0, thread = threadIdx.x - team * TEAM;
  const uint32_t warp = thread / 32, lane = thread % 32;
  const char* const room_of_team = work.turned + team * work.TURNED;

  // Lane 4 g + t has rows g and g + 8 of its warp's slab, tokens 8 i + 2 t and the next.
  const uint32_t g = lane / 4, mine = slab + warp, width = DOWN ? a.n : a.n / 2;
  float bias[2] = {};
  if (a.bias && mine < work.matrix.slabs) {
    const minisgl_bf16* from = a.bias + size_t(batch.x) * a.n + mine * (DOWN ? SLAB : SLAB / 2) + g;
    bias[0] = __bfloat162float(from[0]), bias[1] = __bfloat162float(from[DOWN ? SLAB / 2 : width]);
  }
  // A row of `turned` has the results of all eight warps for a token: 8 columns of each for up, 16 for down, where a
  // token takes two rows. Where it has less room than there are tokens, it is filled several times.
  const uint32_t turned = shared_address(room_of_team), room = work.TURNED / 128 / (DOWN ? 2 : 1);
  for (uint32_t from = 0; from < batch.z; from += room) {
    team_meets(team);
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
    team_meets(team);
    constexpr uint32_t UNITS = DOWN ? 16 : 8;
    const uint32_t tokens = min(uint32_t(batch.z) - from, room);
    for (uint32_t i = thread; i < tokens * UNITS; i += TEAM) {
      const uint32_t token = i / UNITS, unit = i % UNITS;
      const uint32_t column = slab * (DOWN ? SLAB : SLAB / 2) + unit * VEC;
      if (DOWN && column >= width) continue;
      const char* row = room_of_team + (DOWN ? token * 2 + unit / 8 : token) * 128;
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
__device__ __forceinline__ void item_of(const Many<DOWN, N>& work, const int4& batch, uint32_t slab, Position& at) {
  constexpr uint32_t TILES = Many<DOWN, N>::TILES;
  float sums[TILES][N / 2];
  multiply_all(work, sums, at);
#pragma unroll
  for (uint32_t tile = 0; tile < TILES; tile++) {
    const uint32_t first = slab + (TILES > 1 ? tile : threadIdx.x / TEAM) * MANY_SLABS;
    if (first < work.matrix.slabs) store_all(work, batch, first, sums[tile]);
  }
}

template <bool DOWN, uint32_t N>
__device__ __forceinline__ void many(const minisgl_experts_many_args& a) {
  extern __shared__ __align__(128) char shared[];
  __shared__ Barriers bars;
  constexpr uint32_t MULTIPLIERS = Many<DOWN, N>::MULTIPLIERS;
  constexpr bool MOVES_REGISTERS = Many<DOWN, N>::TEAMS == 1;
  if (threadIdx.x == 0) {
    for (uint32_t i = 0; i < STAGES_MAX; i++) {
      barrier_init(&bars.codes_full[i], 1), barrier_init(&bars.codes_empty[i], MULTIPLIERS / 32);
      barrier_init(&bars.x_full[i], 1), barrier_init(&bars.x_empty[i], MULTIPLIERS / 32);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  Many<DOWN, N> work(a, shared, bars);
  wait_for_inputs();
  let_next_start();
  __syncthreads();
  work.load_plan();
  if (threadIdx.x >= MULTIPLIERS) {
    if constexpr (MOVES_REGISTERS) asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x < MULTIPLIERS + 32) {
      copy_codes(work);
    } else if (threadIdx.x == MULTIPLIERS + 32) {
      copy_rows(work);
    }
  } else {
    if constexpr (MOVES_REGISTERS) asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    Position at;
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
  KERNEL __launch_bounds__(teams_of(n) * TEAM + COPIERS, 1) minisgl_mxfp4_many_up_##n(const __grid_constant__ minisgl_experts_many_args a) {   \
    many<false, n>(a);                                                                                                   \
  }                                                                                                                      \
  KERNEL __launch_bounds__(teams_of(n) * TEAM + COPIERS, 1) minisgl_mxfp4_many_down_##n(const __grid_constant__ minisgl_experts_many_args a) { \
    many<true, n>(a);                                                                                                    \
  }

// One for each size of a batch: with several in one kernel, the compiler runs short of registers.
MANY(32)
MANY(64)
MANY(128)
