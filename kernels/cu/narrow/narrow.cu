// Product of some rows of e4m3 with a weight of e4m3, at the speed of reading the weight once.
//
//   out[m, n] = (x_scale * x[m, k]) * (scale * weight[n, k])^T        then: + bias, or out += , or silu(gate) * up
//
// Shapes: x and weight e4m3; scales for 128 columns of a token and 128 x 128 of the weight, or for a token and a row; m up to
// 64, sums of 128 columns as the tensor cores add them, multiplied by their scales and added in f32. With scales for blocks
// a gated weight's halves have whole blocks of rows, and what is gated may be left as e4m3 with scales, as quantise.cu
// would make it: then out_scales[c / 128, r] belongs to out[r, c].
// Bytes moved: n k (and k m once for each cluster, out of the cache); FLOPs 2 m n k. Bound: read bandwidth.
//
// As medium.cu, whose tiles and cluster sums these are; but nothing is widened, so that a warp of a block only copies, x too,
// and both operands go from shared memory to the tensor cores.

#include "../medium/tiles.cuh"
#include "../narrow.h"
#include "../quantise/e4m3.cuh"
#include "../wgmma_e4m3.cuh"

using namespace minisgl;

// Threads of a block.
constexpr uint32_t THREADS = CONSUMERS + 32;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Shared memory; `narrow.rs` counts the same bytes. From a multiple of 1024 on:
//   ring     [stages]: the weight, [2][128] rows of 128 bytes; x, [N] tokens of 128 columns
//   partial  [N][TOKEN_STRIDE] floats
// and static: factors [STAGES_MAX][N], the scales of a stage's tokens
template <int N>
struct Layout {
  static constexpr uint32_t WEIGHT = ROWS * BLOCK, X = N * BLOCK, STAGE = WEIGHT + X;
};

// 128 columns of all tokens. What is not there becomes zeros.
__device__ __forceinline__ void copy_tokens(uint32_t to, const minisgl_narrow_args& a, uint32_t column, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
      "l"(&a.x_map), "r"(column), "r"(0), "r"(barrier)
      : "memory");
}

// Scales of tokens, a multiple of 16 bytes.
__device__ __forceinline__ void copy_factors(uint32_t to, const float* from, uint32_t bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(from), "r"(bytes), "r"(barrier)
               : "memory");
}

// Fills the ring: weights at once, x when the kernel before has left it.
template <int N>
__device__ __forceinline__ void produce(const minisgl_narrow_args& a, const Work& work, uint32_t ring, float (*factors)[N],
                                        uint32_t full, uint32_t empty) {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  const uint32_t rounds = work.rounds(), early = min(rounds, a.stages);
  const bool scaled = a.scale_form == MINISGL_SCALE_BLOCK;
  const auto column = [&](uint32_t round) { return (work.first + round % work.count) * BLOCK; };
  const auto place = [&](uint32_t round) { return ring + round % a.stages * Layout<N>::STAGE; };
  const auto weights = [&](uint32_t round) {
    const uint32_t barrier = full + 8 * (round % a.stages), tile = work.tile + round / work.count * work.step;
    barrier_expect(barrier, Layout<N>::STAGE + a.m * 4);
    for (uint32_t half = 0; half < 2; half++) {
      copy_tile(place(round) + half * HALF * BLOCK, a, work.row(a, tile, half), column(round), barrier, policy);
    }
  };
  const auto tokens = [&](uint32_t round) {
    const uint32_t stage = round % a.stages, barrier = full + 8 * stage;
    copy_tokens(place(round) + Layout<N>::WEIGHT, a, column(round), barrier);
    const uint32_t block = scaled ? work.first + round % work.count : 0;
    copy_factors(shared_address(factors[stage]), a.x_scales + size_t(block) * a.m, a.m * 4, barrier);
  };
  for (uint32_t round = 0; round < early; round++) weights(round);
  wait_for_inputs();
  for (uint32_t round = 0; round < early; round++) tokens(round);
  for (uint32_t round = early; round < rounds; round++) {
    barrier_wait(empty + 8 * (round % a.stages), round / a.stages % 2 ^ 1);
    weights(round);
    tokens(round);
  }
}

__device__ __forceinline__ float largest_of_warp(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
  return x;
}

// Multiplies 64 rows of a stage, from `row` on.
template <int N>
__device__ __forceinline__ void multiply(float (&part)[N / 2], uint32_t weight, uint32_t row, uint32_t x) {
  products_begin();
#pragma unroll
  for (int step = 0; step < 4; step++) {
    const uint32_t rows = weight + row * BLOCK + step * 32, tokens = x + step * 32;
    product8(part, operand(rows), operand(tokens), step > 0);
  }
  products_commit();
}

// sum += part * scale * factor: a thread has tokens 2 t and 2 t + 1 of each eight. Tokens that are not there have any
// factor, and nothing reads what comes of them.
template <int N>
__device__ __forceinline__ void add_scaled(float (&sum)[N / 2], const float (&part)[N / 2], float scale,
                                           const float* factors) {
#pragma unroll
  for (int eight = 0; eight < N / 8; eight++) {
    const float2 two = *reinterpret_cast<const float2*>(factors + eight * 8 + threadIdx.x % 4 * 2);
    const float even = two.x * scale, odd = two.y * scale;
    sum[4 * eight] += part[4 * eight] * even;
    sum[4 * eight + 1] += part[4 * eight + 1] * odd;
    sum[4 * eight + 2] += part[4 * eight + 2] * even;
    sum[4 * eight + 3] += part[4 * eight + 3] * odd;
  }
}

// What sums of a block of columns of the weight's rows are multiplied by. Fetched a block ahead: a stage would wait for them.
template <int N>
struct Scales {
  static constexpr int PARTS = 4 / GROUPS;  // Of 64 rows, for a group of warps.
  float weight[PARTS];

  // The parts of a group of warps are as far apart as they can be: with two groups, one in each half.
  __device__ static __forceinline__ uint32_t first_row(int part) { return (part * GROUPS + threadIdx.x / 128) * 64; }

  __device__ __forceinline__ void fetch(const minisgl_narrow_args& a, const Work& work, uint32_t tile, uint32_t block) {
    const bool scaled = a.scale_form == MINISGL_SCALE_BLOCK;
    const uint32_t units = ((a.k + BLOCK - 1) / BLOCK + MINISGL_SCALE_UNIT - 1) / MINISGL_SCALE_UNIT;
    block += work.first;
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
      // Rows that are not there have the last ones'.
      const uint32_t row = min(work.row(a, tile, first_row(part) / HALF), a.n - 1);
      weight[part] = scaled ? __ldg(a.scales + size_t(row / BLOCK) * units * MINISGL_SCALE_UNIT + block) : 1.0f;
    }
  }
};

// Gated outputs as e4m3, as quantise.cu makes them: a warp has the 128 columns that share a scale.
__device__ __forceinline__ void put_codes(const minisgl_narrow_args& a, uint32_t of, size_t to, uint2 four) {
  const float4 y = widen4(four);
  const float largest = largest_of_warp(fmaxf(fmaxf(fabsf(y.x), fabsf(y.y)), fmaxf(fabsf(y.z), fabsf(y.w))));
  const float scale = largest / LARGEST;
  *reinterpret_cast<uint32_t*>(static_cast<uint8_t*>(a.out) + to) = narrow4(y, inverse_of(scale));
  if (threadIdx.x % 32 == 0) a.out_scales[of] = scale;
}

// `summed`: all blocks' partial sums of a tile are there; `taken`: all blocks have taken theirs of them.
template <int N>
__device__ __forceinline__ void consume(const minisgl_narrow_args& a, const Work& work, uint32_t ring, float* partial,
                                        uint32_t full, uint32_t empty, const float (*factors)[N], uint32_t summed,
                                        uint32_t taken) {
  constexpr int PARTS = Scales<N>::PARTS;
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const auto first_row = [](int part) { return Scales<N>::first_row(part); };
  Scales<N> next;
  next.fetch(a, work, work.tile, 0);
  uint32_t round = 0, turn = 0;
  for (uint32_t tile = work.tile; tile < work.tiles; tile += work.step, turn++) {
    float sum[PARTS][N / 2] = {};
    for (uint32_t block = 0; block < work.count; block++, round++) {
      const uint32_t stage = round % a.stages;
      barrier_wait(full + 8 * stage, round / a.stages % 2);
      const uint32_t weight = ring + stage * Layout<N>::STAGE, x = weight + Layout<N>::WEIGHT;
      float product[PARTS][N / 2];
#pragma unroll
      for (int part = 0; part < PARTS; part++) multiply<N>(product[part], weight, first_row(part), x);
      const Scales<N> now = next;
      const bool last = block + 1 == work.count;
      next.fetch(a, work, last ? tile + work.step : tile, last ? 0 : block + 1);
      if constexpr (PARTS == 2) {
        products_wait<1>();
        settle(product[0]);
        add_scaled<N>(sum[0], product[0], now.weight[0], factors[stage]);
      }
      products_wait<0>();
      settle(product[PARTS - 1]);
      add_scaled<N>(sum[PARTS - 1], product[PARTS - 1], now.weight[PARTS - 1], factors[stage]);
      __syncwarp();
      if (lane == 0) barrier_arrive(empty + 8 * stage);
    }
    const Share<minisgl_narrow_args> share(a, work, tile);
    const Ahead<minisgl_narrow_args> ahead(a, share);
    if (turn > 0) barrier_wait_cluster(taken, turn % 2 ^ 1);
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
#pragma unroll
      for (int i = 0; i < N / 2; i++) {
        const uint32_t token = i / 4 * 8 + 2 * t + i % 2, row = first_row(part) + warp % 4 * 16 + g + i % 4 / 2 * 8;
        partial[token * TOKEN_STRIDE + row] = sum[part][i];
      }
    }
    arrive_everywhere(summed, work.size);
    barrier_wait_cluster(summed, turn % 2);
    finish(a, work, shared_address(partial), share, ahead, [&](uint32_t token, size_t to, uint2 four) {
      if (a.out_scales) {
        put_codes(a, tile * a.m + token, to, four);
      } else {
        put(a, to, four);
      }
    });
    arrive_everywhere(taken, work.size);
  }
  // A block must be there as long as others read its sums.
  if (turn > 0) barrier_wait_cluster(taken, turn % 2 ^ 1);
}

template <int N>
__device__ __forceinline__ void narrow(const minisgl_narrow_args& a) {
  extern __shared__ char shared[];
  __shared__ uint64_t barriers[2 * STAGES_MAX + 2];
  __shared__ __align__(16) float factors[STAGES_MAX][N];
  const uint32_t ring = (shared_address(shared) + 1023) / 1024 * 1024;
  float* partial = reinterpret_cast<float*>(shared + (ring - shared_address(shared)) + a.stages * Layout<N>::STAGE);
  const uint32_t full = shared_address(barriers), empty = full + 8 * STAGES_MAX;
  const uint32_t summed = empty + 8 * STAGES_MAX, taken = summed + 8;
  const Work work(a);
  if (threadIdx.x == CONSUMERS) {
    for (uint32_t i = 0; i < a.stages; i++) {
      barrier_init(full + 8 * i, 1);
      barrier_init(empty + 8 * i, CONSUMERS / 32);
    }
    barrier_init(summed, CONSUMERS / 32 * work.size);
    barrier_init(taken, CONSUMERS / 32 * work.size);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  if (work.size > 1) {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
  } else {
    __syncthreads();
  }
  if (threadIdx.x < CONSUMERS) {
    let_next_start();
    wait_for_inputs();
    consume<N>(a, work, ring, partial, full, empty, factors, summed, taken);
  } else if (threadIdx.x == CONSUMERS) {
    produce<N>(a, work, ring, factors, full, empty);
  }
}

#else  // wgmma is Hopper's.

template <int N>
__device__ __forceinline__ void narrow(const minisgl_narrow_args&) {
  __trap();
}

#endif

#define NARROW(N)                                                                                        \
  KERNEL __launch_bounds__(THREADS, 1) minisgl_narrow_##N(const __grid_constant__ minisgl_narrow_args a) { \
    narrow<N>(a);                                                                                        \
  }

NARROW(8)
NARROW(16)
NARROW(32)
NARROW(64)
