// Weights of e4m3 as the kernels of experts read them, and how codes become bf16.
//
// A matrix [n, columns] of codes is kept in slabs of 16 rows as experts.h has them in bf16, where a step of a row's 128
// bytes is 128 columns. What codes are multiplied by lies beside them, in one of two forms, MINISGL_SCALE_:
//   block   [experts][n / 16 slabs][steps, a multiple of 2][2] floats: of a step's first eight rows, and of the others.
//           Gate and up share a slab, and so the two of `down` are mostly the same
//   row     [experts][n] floats, in the order of the slabs' rows
#pragma once

#include "experts.cuh"

namespace minisgl {

constexpr uint32_t FP8_COLUMNS = 128;

struct SlabsE4m3 {
  static constexpr uint32_t COLUMNS = FP8_COLUMNS;
  static constexpr uint32_t PAD = 64;
  static constexpr bool SCALED = true;
  static constexpr uint32_t TOGETHER = 2;
  static constexpr float UP = 72057594037927936.0f;  // 2^56: of 2^120, what x does not bring.

  // Four e4m3 values as two pairs of bf16, the first and the third and the others: sign, exponent and fraction go to where
  // bf16 has them, which is 2^-120 of the value, subnormals too. NaN, which no checkpoint has, becomes 480.
  __device__ __forceinline__ static uint2 widen(uint32_t four) {
    constexpr uint32_t SIGN = 0x80008000u, MAGNITUDE = 0x07f007f0u;
    return make_uint2((four << 8 & SIGN) | (four << 4 & MAGNITUDE), (four & SIGN) | (four >> 4 & MAGNITUDE));
  }

  // Lane 4 g + t brings columns 8 t .. 8 t + 8 of rows g and g + 8, and of x: 8 t and 8 t + 2 stand where the instruction wants
  // 2 t and 2 t + 1, 8 t + 1 and 8 t + 3 where it wants 2 t + 8 and 2 t + 9.
  __device__ __forceinline__ static void load(uint32_t (&a)[2][4], const char* slab, uint32_t s) {
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const char* at = slab + s / 4 * SLAB_STEP_BYTES + g * 128 + (s % 4 * 2 + t / 2 ^ g) * 16 + t % 2 * 8;
    const uint2 high = *reinterpret_cast<const uint2*>(at), low = *reinterpret_cast<const uint2*>(at + 8 * 128);
#pragma unroll
    for (uint32_t half = 0; half < 2; half++) {
      const uint2 first = widen(half ? high.y : high.x), second = widen(half ? low.y : low.x);
      a[half][0] = first.x, a[half][1] = second.x, a[half][2] = first.y, a[half][3] = second.y;
    }
  }

  __device__ __forceinline__ static uint32_t row(uint32_t rows, uint32_t pitch) {
    const uint32_t lane = threadIdx.x % 32;
    return min(lane / 4, rows - 1) * pitch + lane % 4 * 16;
  }

  __device__ __forceinline__ static void load_x(uint32_t (&x)[4], const char* row, uint32_t s, uint32_t columns) {
    uint4 four = *reinterpret_cast<const uint4*>(row + s * 64);
    if (s * 32 + 32 > columns && s * 32 + threadIdx.x % 4 * 8 >= columns) four = make_uint4(0, 0, 0, 0);
    x[0] = __byte_perm(four.x, four.y, 0x5410), x[1] = __byte_perm(four.x, four.y, 0x7632);
    x[2] = __byte_perm(four.z, four.w, 0x5410), x[3] = __byte_perm(four.z, four.w, 0x7632);
    // Times 2^64, so that products with 2^-120 do not vanish.
    const __nv_bfloat162 up = __halves2bfloat162(__ushort_as_bfloat16(0x5f80), __ushort_as_bfloat16(0x5f80));
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
      const __nv_bfloat162 more = __hmul2(reinterpret_cast<const __nv_bfloat162&>(x[i]), up);
      x[i] = reinterpret_cast<const uint32_t&>(more);
    }
  }
};

}  // namespace minisgl
