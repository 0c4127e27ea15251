// What the kernels of experts for many rows share: the two groups of warps that multiply, and how results leave them.
#pragma once

#include "experts.cuh"

namespace minisgl {

[[maybe_unused]] constexpr uint32_t MANY_SLABS = 8, MANY_A_BYTES = MANY_SLABS * SLAB_STEP_BYTES, MANY_STAGES_MAX = 12;
[[maybe_unused]] constexpr uint32_t MULTIPLIERS = 256, MANY_THREADS = MULTIPLIERS + 128;

// Batches of up to so many rows are most experts' only ones.
[[maybe_unused]] constexpr uint32_t READ_ONCE_BATCH = 64;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ __forceinline__ void multipliers_meet() { asm volatile("bar.sync 1, %0;" ::"n"(MULTIPLIERS) : "memory"); }

__device__ __forceinline__ void store_turned(uint32_t to, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(a), "r"(b), "r"(c),
               "r"(d)
               : "memory");
}

__device__ __forceinline__ uint32_t two(minisgl_bf16 low, minisgl_bf16 high) {
  return uint32_t(__bfloat16_as_ushort(low)) | uint32_t(__bfloat16_as_ushort(high)) << 16;
}

// Rounds what an item has come to, of `count` rows, and puts it in whole lines: `put(row, unit, values)` for each eight columns.
// N is the number of rows up to whole 32. Lane 4 g + t has rows g and g + 8 of its warp's slab, which are eight columns of
// the gate and of `up`, or sixteen, and tokens 8 i + 2 t and the next.
// `turned` is [max(N, 64)] rows of 128 bytes of shared memory.
template <bool DOWN, int N, class Put>
__device__ __forceinline__ void turn_around(const char* turned_at, const float (&sum)[N / 2], const float (&bias)[2],
                                            uint32_t gate, int32_t count, Put put) {
  const uint32_t thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
  // A row of `turned` has the results of all eight warps for a token: 8 columns of each for up, 16 for down, where a
  // token takes two rows, and those of half the tokens fit.
  constexpr uint32_t AT_ONCE = DOWN ? (N / 2 + 31) / 32 * 32 : N;
  const uint32_t turned = shared_address(turned_at);
#pragma unroll
  for (uint32_t begin = 0; begin < N; begin += AT_ONCE) {
    multipliers_meet();
#pragma unroll
    for (uint32_t i = begin; i < begin + AT_ONCE && i < N; i += 32) {
      const uint32_t token = i - begin + lane;  // Whose row this lane gives the address of.
      uint32_t low[4], high[4];
#pragma unroll
      for (uint32_t j = 0; j < 4; j++) {
        const float* d = sum + (i + 8 * j) / 2;
        if (DOWN) {
          low[j] = two(__float2bfloat16_rn(d[0] + bias[0]), __float2bfloat16_rn(d[1] + bias[0]));
          high[j] = two(__float2bfloat16_rn(d[2] + bias[1]), __float2bfloat16_rn(d[3] + bias[1]));
        } else {
          low[j] = two(gated(d[0] + bias[0], d[2] + bias[1], gate), gated(d[1] + bias[0], d[3] + bias[1], gate));
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
    const uint32_t tokens = min(max(count, int32_t(begin)) - begin, AT_ONCE);
    for (uint32_t i = thread; i < tokens * UNITS; i += MULTIPLIERS) {
      const uint32_t token = i / UNITS, unit = i % UNITS;
      const char* row = turned_at + (DOWN ? token * 2 + unit / 8 : token) * 128;
      put(begin + token, unit, *reinterpret_cast<const uint4*>(row + (unit % 8 ^ token % 8) * 16));
    }
  }
}

// The biases of a lane's two rows.
template <bool DOWN>
__device__ __forceinline__ void load_bias(float (&bias)[2], const minisgl_bf16* all, uint32_t expert, uint32_t n,
                                          uint32_t slab) {
  if (!all) return;
  const minisgl_bf16* from = all + size_t(expert) * n + slab * (DOWN ? SLAB : SLAB / 2) + threadIdx.x % 32 / 4;
  bias[0] = __bfloat162float(from[0]), bias[1] = __bfloat162float(from[DOWN ? SLAB / 2 : n / 2]);
}

#endif

}  // namespace minisgl
