// The experts of a layer for many rows: products grouped by expert, one launch each for `up` and for `down`.
//
//   up:    out[p, i] = gate(x[r, :] . Wg[e, i, :] + bg[e, i]) * (x[r, :] . Wu[e, i, :] + bu[e, i])   for a pair p = (r, e)
//   down:  out[p, :] = x[p, :] . Wd[e, :, :] + bd[e, :]
//
// Shapes: see experts.h; bf16, f32 sums. Rows of a batch go to one expert and lie side by side: experts_gather.cu has
// brought those of x there, in the form that the tensor cores read, and `up` leaves its results in it.
// FLOPs: 2 * pairs * n * columns. Bytes moved: the weights of every expert that has a row, once for each batch
// (again from the cache), and 2 * pairs * (columns + n). Bound: tensor cores, or with few rows read bandwidth; before
// those, with tiles of this size, what the cache brings to the multiprocessors: 40 KB for every 3 MFLOP.
//
// A block computes 128 rows of the weights (eight slabs) times all rows of a batch at a time, and goes on with the next
// such item. One warp, whose group has given its registers away, fills a ring of stages of 64 columns, by bulk copies alone:
// what other instructions write, the tensor cores see only after a fence of every thread. Two warpgroups multiply 64 rows of
// the weights each. Results are turned around in shared memory, so that whole lines go out.
// Measured (H200, 2026-11-30, docs/benchmarks.md), Qwen3-30B-A3B: up 185 us and down 98 at 256 rows, 95 and 90 % of
// 4.6 TB/s; 776 and 389 us at 8,192 rows, 530 TFLOP/s.

#include "many.cuh"
#include "wgmma.cuh"

using namespace minisgl;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Shared memory, from a multiple of 1024 bytes on; `many.rs` counts the same bytes.
//   ring      [stages]: eight slabs' steps, then [batch] rows of 128 bytes
//   turned    [max(batch, 64)] rows of 128 bytes
struct Many {
  const minisgl_experts_many_args& a;
  char *ring, *turned;
  uint32_t stage_bytes, steps, slabs, tiles, items;
  const int4* batches;
  uint64_t *full, *empty;

  __device__ __forceinline__ Many(const minisgl_experts_many_args& a, char* shared, uint64_t* full, uint64_t* empty)
      : a(a), full(full), empty(empty) {
    ring = shared + (1024 - shared_address(shared) % 1024) % 1024;
    stage_bytes = MANY_A_BYTES + a.batch * 128;
    turned = ring + a.stages * stage_bytes;
    steps = (a.columns + STEP_COLUMNS - 1) / STEP_COLUMNS;
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

// One warp: a lane copies a slab's step, another the rows of x.
__device__ __forceinline__ void many_produce(const Many& work) {
  const minisgl_experts_many_args& a = work.a;
  const uint32_t lane = threadIdx.x % 32, places = a.rows * a.top;
  const uint64_t once = read_once();
  uint32_t stage = 0, phase = 0;
  int4 batch = work.batch_of(blockIdx.x);
  for (uint32_t item = blockIdx.x; item < work.items; item += gridDim.x) {
    const int4 next = work.batch_of(item + gridDim.x);
    const uint32_t slab = item % work.tiles * MANY_SLABS, slabs = min(MANY_SLABS, work.slabs - slab);
    const char* weight = static_cast<const char*>(a.weight) +
                         (size_t(batch.x) * work.slabs + slab + lane) * work.steps * SLAB_STEP_BYTES;
    const char* x = reinterpret_cast<const char*>(a.x) + size_t(batch.y) * 128;
    const uint32_t x_bytes = batch.z * 128;
    for (uint32_t step = 0; step < work.steps; step++) {
      barrier_wait(&work.empty[stage], phase ^ 1);
      char* to = work.ring + stage * work.stage_bytes;
      if (lane == 0) barrier_expect(&work.full[stage], slabs * SLAB_STEP_BYTES + x_bytes);
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
      if (++stage == a.stages) stage = 0, phase ^= 1;
    }
    batch = next;
  }
}

// The products of an item, for up to N rows of x.
template <int N>
__device__ __forceinline__ void multiply_all(const Many& work, float (&sum)[N / 2], uint32_t& stage, uint32_t& phase) {
  const uint32_t thread = threadIdx.x % 128, group = threadIdx.x / 128;
  uint32_t before = 0;
#pragma unroll 1
  for (uint32_t step = 0; step < work.steps; step++) {
    barrier_wait(&work.full[stage], phase);
    const uint32_t at = shared_address(work.ring) + stage * work.stage_bytes;
    const uint64_t weight = operand(at + group * (MANY_A_BYTES / 2)), x = operand(at + MANY_A_BYTES);
    products_begin();
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) product(sum, weight + 2 * i, x + 2 * i, step > 0 || i > 0);
    products_commit();
    // What the stage before holds has been read.
    products_wait<1>();
    if (step > 0 && thread == 0) barrier_arrive(&work.empty[before]);
    before = stage;
    if (++stage == work.a.stages) stage = 0, phase ^= 1;
  }
  products_wait<0>();
  if (thread == 0) barrier_arrive(&work.empty[before]);
}

// Rounds and stores what an item has come to. N is the number of rows up to whole 32.
template <bool DOWN, int N>
__device__ __forceinline__ void store_all(const Many& work, const int4& batch, uint32_t slab, const float (&sum)[N / 2]) {
  const minisgl_experts_many_args& a = work.a;
  const uint32_t mine = slab + threadIdx.x / 32, width = DOWN ? a.n : a.n / 2;
  float bias[2] = {};
  if (mine < work.slabs) load_bias<DOWN>(bias, a.bias, batch.x, a.n, mine);
  turn_around<DOWN, N>(work.turned, sum, bias, a.gate, batch.z, [&](uint32_t token, uint32_t unit, const uint4& values) {
    const uint32_t column = slab * (DOWN ? SLAB : SLAB / 2) + unit * VEC;
    if (DOWN) {
      if (column < width) *reinterpret_cast<uint4*>(a.out + size_t(batch.y + token) * width + column) = values;
    } else {
      // A tile has the columns of one step of down; those past the last are zeros.
      const size_t at = size_t(column / STEP_COLUMNS) * a.rows * a.top + batch.y + token;
      *reinterpret_cast<uint4*>(a.out + at * STEP_COLUMNS + (unit ^ token % 8) * VEC) =
          column < width ? values : make_uint4(0, 0, 0, 0);
    }
  });
}

// An item with up to N rows. What an N needs is compiled for it alone: work for more rows than there are, even hoisted out of
// a branch, would cost as much as the products of few.
template <bool DOWN, int N>
__device__ __forceinline__ void run(const Many& work, const int4& batch, uint32_t slab, uint32_t& stage, uint32_t& phase) {
  // Not left as it is, though the first product does not read it: else it would be kept from item to item, for every N.
  float sum[N / 2] = {};
  multiply_all<N>(work, sum, stage, phase);
  store_all<DOWN, N>(work, batch, slab, sum);
}

template <bool DOWN>
__device__ __forceinline__ void many(const minisgl_experts_many_args& a) {
  extern __shared__ __align__(128) char shared[];
  __shared__ uint64_t full[MANY_STAGES_MAX], empty[MANY_STAGES_MAX];
  if (threadIdx.x == 0) {
    for (uint32_t i = 0; i < a.stages; i++) {
      barrier_init(&full[i], 1);
      barrier_init(&empty[i], 2);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  Many work(a, shared, full, empty);
  wait_for_inputs();
  let_next_start();
  __syncthreads();
  work.load_plan();
  if (threadIdx.x >= MULTIPLIERS) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x < MULTIPLIERS + 32) many_produce(work);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    uint32_t stage = 0, phase = 0;
    int4 batch = work.batch_of(blockIdx.x);
    for (uint32_t item = blockIdx.x; item < work.items; item += gridDim.x) {
      const int4 next = work.batch_of(item + gridDim.x);
      const uint32_t slab = item % work.tiles * MANY_SLABS;
      switch ((batch.z + 31) / 32) {
        case 1: run<DOWN, 32>(work, batch, slab, stage, phase); break;
        case 2: run<DOWN, 64>(work, batch, slab, stage, phase); break;
        case 3: run<DOWN, 96>(work, batch, slab, stage, phase); break;
        case 4: run<DOWN, 128>(work, batch, slab, stage, phase); break;
        case 5: run<DOWN, 160>(work, batch, slab, stage, phase); break;
        case 6: run<DOWN, 192>(work, batch, slab, stage, phase); break;
        case 7: run<DOWN, 224>(work, batch, slab, stage, phase); break;
        default: run<DOWN, 256>(work, batch, slab, stage, phase); break;
      }
      batch = next;
    }
  }
}

#else  // Only Hopper has these instructions.

template <bool DOWN>
__device__ __forceinline__ void many(const minisgl_experts_many_args&) {
  __trap();
}

#endif

KERNEL __launch_bounds__(MANY_THREADS, 1) minisgl_experts_many_up(const __grid_constant__ minisgl_experts_many_args a) {
  many<false>(a);
}
KERNEL __launch_bounds__(MANY_THREADS, 1) minisgl_experts_many_down(const __grid_constant__ minisgl_experts_many_args a) {
  many<true>(a);
}
