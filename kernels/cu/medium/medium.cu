// Product of some rows with a weight of e4m3, at the speed of reading the weight once.
//
//   out[m, n] = x[m, k] * (scale * weight[n, k])^T        then: + bias, or out += , or silu(gate) * up
//
// Shapes: x bf16, weight e4m3 with a scale for 128 x 128 or for a row, f32 sums; m up to 64. The weight is widened to fp16,
// exactly; so is x, each 128 columns of a token under a power of two of their own, by which bf16 loses nothing that counts.
// With scales for blocks a gated weight's halves have whole blocks of rows.
// Bytes moved: n k (and 2 k m once for each block that multiplies it, out of the cache); FLOPs 2 m n k. Bound: read
// bandwidth.
// Measured (one H200, 2026-11-29, chains of dependent launches, cold weights) at one row: 24576 x 4096 33.1 us (66 % of the
// read bandwidth) by 96 blocks, 6144 x 4096 11.8 by clusters of four. A stage takes a block 1.03 us and a launch 3.5 beside
// them; clusters that have no room at once double the time, which is why the launcher asks how many have.
//
// A cluster owns 256 rows of the weight at a time; its blocks share the columns, 128 at a time, and add their sums up in
// a fixed order. In each block one warp copies the weight through a ring in shared memory, without waiting for the kernel
// before; three bring x beside it; two groups of four warps widen the weight in registers and multiply it from there with
// the tensor cores (wgmma), tokens from shared memory as the other operand.

#include "tiles.cuh"

using namespace minisgl;

// Threads of a block.
constexpr uint32_t THREADS = CONSUMERS + 128;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr uint32_t LOADERS = 96;

// Shared memory; `medium.rs` counts the same bytes. From a multiple of 1024 on:
//   ring     [stages]: the weight, [2][128] rows of 128 bytes; x, [2][N] tokens of 64 columns, 128 bytes
//   partial  [N][TOKEN_STRIDE] floats
template <int N>
struct Layout {
  static constexpr uint32_t WEIGHT = ROWS * BLOCK, X = N * BLOCK * 2, STAGE = WEIGHT + X;
};

template <int N>
__device__ __forceinline__ void copy_weight(const minisgl_medium_args& a, const Work& work, uint32_t ring,
                                            uint32_t full, uint32_t empty) {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  const uint32_t rounds = work.rounds();
  for (uint32_t round = 0; round < rounds; round++) {
    const uint32_t stage = round % a.stages;
    if (round >= a.stages) barrier_wait(empty + 8 * stage, round / a.stages % 2 ^ 1);
    barrier_expect(full + 8 * stage, Layout<N>::WEIGHT);
    const uint32_t tile = work.tile + round / work.count * work.step;
    const uint32_t column = (work.first + round % work.count) * BLOCK;
    for (uint32_t half = 0; half < 2; half++) {
      copy_tile(ring + stage * Layout<N>::STAGE + half * HALF * BLOCK, a, work.row(a, tile, half), column,
                full + 8 * stage, policy);
    }
  }
}

// x, 16 columns of a token at a time, eight lanes a block of columns. A lane brings four neighbouring columns of the weight
// where the product wants 2 t, 2 t + 1, 2 t + 8, 2 t + 9: so do the columns of x, in 16 the first pair of each four and
// then the second.
template <int N>
__device__ __forceinline__ void load_x(const minisgl_medium_args& a, const Work& work, uint32_t ring, uint32_t full,
                                       uint32_t empty, float (*factors)[N], uint32_t thread) {
  constexpr int UNITS = (N * 8 + LOADERS - 1) / LOADERS;
  const uint32_t rounds = work.rounds();
  uint4 ahead[UNITS][2];
  const auto fetch = [&](uint32_t round) {
    const uint32_t column = (work.first + round % work.count) * BLOCK;
#pragma unroll
    for (int i = 0; i < UNITS; i++) {
      const uint32_t unit = thread + i * LOADERS, token = unit / 8, at = column + unit % 8 * 16;
      ahead[i][0] = ahead[i][1] = make_uint4(0, 0, 0, 0);
      if (token < a.m && at < a.k) {
        const uint4* from = reinterpret_cast<const uint4*>(a.x + size_t(token) * a.k + at);
        ahead[i][0] = from[0], ahead[i][1] = from[1];
      }
    }
  };
  if (rounds > 0) fetch(0);
  for (uint32_t round = 0; round < rounds; round++) {
    const uint32_t stage = round % a.stages;
    if (round >= a.stages) barrier_wait(empty + 8 * stage, round / a.stages % 2 ^ 1);
    const uint32_t to = ring + stage * Layout<N>::STAGE + Layout<N>::WEIGHT;
#pragma unroll
    for (int i = 0; i < UNITS; i++) {
      const uint32_t unit = thread + i * LOADERS, token = unit / 8, sixteen = unit % 8;
      if (token >= N) break;  // All lanes of a warp, or none.
      const uint32_t words[8] = {ahead[i][0].x, ahead[i][0].y, ahead[i][0].z, ahead[i][0].w,
                                 ahead[i][1].x, ahead[i][1].y, ahead[i][1].z, ahead[i][1].w};
      float largest = 0.0f;
#pragma unroll
      for (int word = 0; word < 8; word++) {
        const float2 f = unpack2(words[word]);
        largest = fmaxf(largest, fmaxf(fabsf(f.x), fabsf(f.y)));
      }
#pragma unroll
      for (int step = 4; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
      const float factor = half_factor(largest), up = __uint_as_float((254u << 23) - __float_as_uint(factor));
      uint32_t first[4], second[4];
#pragma unroll
      for (int pair = 0; pair < 4; pair++) {
        first[pair] = to_half(words[2 * pair], up), second[pair] = to_half(words[2 * pair + 1], up);
      }
      const uint32_t row = to + sixteen / 4 * (N * 128) + token * 128, piece = sixteen % 4 * 2;
      asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(row + ((piece ^ token % 8) << 4)), "r"(first[0]),
                   "r"(first[1]), "r"(first[2]), "r"(first[3])
                   : "memory");
      asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(row + ((piece + 1 ^ token % 8) << 4)),
                   "r"(second[0]), "r"(second[1]), "r"(second[2]), "r"(second[3])
                   : "memory");
      if (sixteen == 0) factors[stage][token] = factor;
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncwarp();
    if (thread % 32 == 0) barrier_arrive(full + 8 * stage);
    if (round + 1 < rounds) fetch(round + 1);
  }
}

// Widens and multiplies 64 rows of a stage, from `row` on; a warp has 16 of them.
template <int N>
__device__ __forceinline__ void multiply(float (&part)[N / 2], uint32_t weight, uint32_t first_row, uint32_t x) {
  const uint32_t lane = threadIdx.x % 32, row = first_row + threadIdx.x / 32 % 4 * 16 + lane % 16;
  uint32_t wide[8][4];
#pragma unroll
  for (int pair = 0; pair < 4; pair++) {
    uint32_t raw[4];
    load_matrices(raw, weight + row * BLOCK + ((2 * pair + lane / 16 ^ row % 8) << 4));
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const uint2 low = widen(raw[2 * i]), high = widen(raw[2 * i + 1]);
      uint32_t(&to)[4] = wide[2 * pair + i];
      to[0] = low.x, to[1] = high.x, to[2] = low.y, to[3] = high.y;
    }
  }
  // The tokens: 128-byte swizzle, eight of them 1024 bytes.
  constexpr uint64_t FORM = uint64_t(1) << 62 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 16;
  products_begin();
#pragma unroll
  for (int step = 0; step < 8; step++) {
    const uint32_t at = x + step / 4 * (N * 128) + step % 4 * 32;
    Product<N>::add(part, wide[step], FORM | (at >> 4 & 0x3fff), step > 0);
  }
  products_commit();
}

// sum += part * scale * factor: a thread has tokens 2 t and 2 t + 1 of each eight.
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

// `summed`: all blocks' partial sums of a tile are there; `taken`: all blocks have taken theirs of them.
template <int N>
__device__ __forceinline__ void consume(const minisgl_medium_args& a, const Work& work, uint32_t ring, float* partial,
                                        uint32_t full, uint32_t empty, const float (*factors)[N], uint32_t summed,
                                        uint32_t taken) {
  constexpr int PARTS = 4 / GROUPS;  // Of 64 rows, for a group of warps.
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const uint32_t units = ((a.k + BLOCK - 1) / BLOCK + MINISGL_SCALE_UNIT - 1) / MINISGL_SCALE_UNIT;
  const bool scaled = a.scale_form == MINISGL_SCALE_BLOCK;
  // The parts of a group of warps are as far apart as they can be: with two groups, one in each half.
  const auto first_row = [&](int part) { return (part * GROUPS + warp / 4) * 64; };
  uint32_t round = 0, turn = 0;
  for (uint32_t tile = work.tile; tile < work.tiles; tile += work.step, turn++) {
    // The scales of each part's block of rows, one for each block of columns. Rows that are not there have the last ones.
    const float* scales[PARTS];
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
      const uint32_t row = min(work.row(a, tile, first_row(part) / HALF), a.n - 1);
      scales[part] = a.scales + size_t(row / BLOCK) * units * MINISGL_SCALE_UNIT + work.first;
    }
    float sum[PARTS][N / 2] = {};
    for (uint32_t block = 0; block < work.count; block++, round++) {
      const uint32_t stage = round % a.stages;
      float scale[PARTS];
#pragma unroll
      for (int part = 0; part < PARTS; part++) scale[part] = scaled ? __ldg(scales[part] + block) : 1.0f;
      barrier_wait(full + 8 * stage, round / a.stages % 2);
      const uint32_t weight = ring + stage * Layout<N>::STAGE, x = weight + Layout<N>::WEIGHT;
      float product[PARTS][N / 2];
#pragma unroll
      for (int part = 0; part < PARTS; part++) multiply<N>(product[part], weight, first_row(part), x);
      if constexpr (PARTS == 2) {
        products_wait<1>();
        settle(product[0]);
        add_scaled<N>(sum[0], product[0], scale[0], factors[stage]);
      }
      products_wait<0>();
      settle(product[PARTS - 1]);
      add_scaled<N>(sum[PARTS - 1], product[PARTS - 1], scale[PARTS - 1], factors[stage]);
      __syncwarp();
      if (lane == 0) barrier_arrive(empty + 8 * stage);
    }
    const Share<minisgl_medium_args> share(a, work, tile);
    const Ahead<minisgl_medium_args> ahead(a, share);
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
    finish(a, work, shared_address(partial), share, ahead, [&](uint32_t, size_t to, uint2 four) { put(a, to, four); });
    arrive_everywhere(taken, work.size);
  }
  // A block must be there as long as others read its sums.
  if (turn > 0) barrier_wait_cluster(taken, turn % 2 ^ 1);
}

template <int N>
__device__ __forceinline__ void medium(const minisgl_medium_args& a) {
  extern __shared__ char shared[];
  __shared__ uint64_t barriers[2 * STAGES_MAX + 2];
  __shared__ float factors[STAGES_MAX][N];
  const uint32_t ring = (shared_address(shared) + 1023) / 1024 * 1024;
  float* partial = reinterpret_cast<float*>(shared + (ring - shared_address(shared)) + a.stages * Layout<N>::STAGE);
  const uint32_t full = shared_address(barriers), empty = full + 8 * STAGES_MAX;
  const uint32_t summed = empty + 8 * STAGES_MAX, taken = summed + 8;
  const Work work(a);
  if (threadIdx.x == CONSUMERS) {
    for (uint32_t i = 0; i < a.stages; i++) {
      barrier_init(full + 8 * i, 1 + LOADERS / 32);
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
  // 65,536 registers are 168 for each of 384 threads: those who multiply take some of the others'.
  if (threadIdx.x < CONSUMERS) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 200;");
    let_next_start();
    wait_for_inputs();
    consume<N>(a, work, ring, partial, full, empty, factors, summed, taken);
  } else {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 104;");
    if (threadIdx.x < CONSUMERS + 32) {
      if (threadIdx.x == CONSUMERS) copy_weight<N>(a, work, ring, full, empty);
    } else {
      wait_for_inputs();
      load_x<N>(a, work, ring, full, empty, factors, threadIdx.x - CONSUMERS - 32);
    }
  }
}

#else  // wgmma is Hopper's.

template <int N>
__device__ __forceinline__ void medium(const minisgl_medium_args&) {
  __trap();
}

#endif

#define MEDIUM(N)                                                                                        \
  KERNEL __launch_bounds__(THREADS, 1) minisgl_medium_##N(const __grid_constant__ minisgl_medium_args a) { \
    medium<N>(a);                                                                                        \
  }

MEDIUM(8)
MEDIUM(16)
MEDIUM(32)
MEDIUM(64)
