// Weights in MXFP4 as the kernels of experts read them, and how codes become bf16.
//
// A matrix [n, columns] of E2M1 codes with a scale of E8M0 for every 32 columns of a row is kept in slabs of 16 rows and
// steps of 64 columns, as experts.h has them in bf16. Four steps of a slab lie together, 2,176 bytes, or what is left:
//   [steps][32 lanes][4] words   lane 4 g + t, word 2 b + h: row g + 8 h, columns 32 b + 8 i + 2 t and the next for i = 0 .. 3,
//                                which are the operands of mma and wgmma that the lane holds
//   [4][8][4] bytes              scales of row g + 8 h and block b of a step, at 4 g + 2 b + h: the exponent of 2^-61 * scale,
//                                biased as in f32
// so that all copies begin and end at multiples of 128 bytes.
// Slabs come one after the other, each with all its steps; of `down` with those of a part of the columns, and then those
// of the next part, so that blocks can share out a slab and read from end to end nevertheless.
// In a word, codes of even columns are in the lower half, those of odd ones in the upper. In each: signs of i = 0, 2, 3, 1
// from the top, then magnitudes of i = 3, 0, 1, 2: two operands take a shift and a mask.
#pragma once

#include "experts.cuh"

namespace minisgl {

constexpr uint32_t MX_CODE_BYTES = 512, MX_SCALE_BYTES = 32, MX_QUAD = 4, MX_PART_STEPS = 9;
constexpr uint32_t MX_QUAD_BYTES = MX_QUAD * (MX_CODE_BYTES + MX_SCALE_BYTES);

// Bytes of so many steps of a slab that lie together.
__device__ __forceinline__ uint32_t mx_run_bytes(uint32_t steps) {
  return steps * MX_CODE_BYTES + (steps + MX_QUAD - 1) / MX_QUAD * MX_QUAD * MX_SCALE_BYTES;
}

// Where one of them has its codes and its scales.
struct MxStep {
  uint32_t codes, scales;
  __device__ __forceinline__ MxStep(uint32_t step, uint32_t steps) {
    const uint32_t quad = step / MX_QUAD, in_quad = step % MX_QUAD;
    codes = quad * MX_QUAD_BYTES + in_quad * MX_CODE_BYTES;
    scales = quad * MX_QUAD_BYTES + min(MX_QUAD, steps - quad * MX_QUAD) * MX_CODE_BYTES + in_quad * MX_SCALE_BYTES;
  }
};

struct MxMatrix {
  uint32_t slabs, steps, part, parts;  // `part`: steps of a part but the last.

  __device__ __forceinline__ MxMatrix(uint32_t n, uint32_t columns, bool in_parts) {
    slabs = n / SLAB, steps = (columns + STEP_COLUMNS - 1) / STEP_COLUMNS;
    parts = in_parts ? (steps + MX_PART_STEPS - 1) / MX_PART_STEPS : 1;
    part = (steps + parts - 1) / parts;
    parts = (steps + part - 1) / part;
  }
  __device__ __forceinline__ uint32_t steps_of(uint32_t of_part) const { return min(part, steps - of_part * part); }
  // Where a slab's steps of a part begin.
  __device__ __forceinline__ size_t at(uint32_t slab, uint32_t of_part) const {
    return size_t(of_part) * slabs * mx_run_bytes(part) + size_t(slab) * mx_run_bytes(steps_of(of_part));
  }
  __device__ __forceinline__ size_t bytes() const { return at(slabs, parts - 1); }
};

// Eight codes as four pairs of bf16, 2^-126 of their values: sign, exponent and fraction go to where bf16 has them.
__device__ __forceinline__ void mx_widen(uint32_t (&pair)[4], uint32_t word) {
  constexpr uint32_t SIGN = 0x80008000u, MAGNITUDE = 0x01c001c0u;
  pair[0] = word & (SIGN | MAGNITUDE);
  pair[1] = word << 3 & (SIGN | MAGNITUDE);
  pair[2] = (word << 6 & MAGNITUDE) | (word << 1 & SIGN);
  pair[3] = (word >> 3 & MAGNITUDE) | (word << 2 & SIGN);
}

// 2^60, which makes up for what scales lack, and keeps products with 2^-126 from vanishing.
constexpr float MX_UP = 1152921504606846976.0f;
__device__ __forceinline__ __nv_bfloat162 mx_up2() { return __float2bfloat162_rn(MX_UP); }

}  // namespace minisgl
