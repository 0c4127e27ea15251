// The arithmetic of a draw, the same to the bit on every device: f32 operations in a fixed order and
// never fused, sums of integers, a counter-based generator.
#pragma once

#include "../common.cuh"

namespace minisgl {

constexpr uint64_t ONE = 1ull << 40;  // The weight of the most likely token.
constexpr uint32_t TOKEN_BITS = 18, TOKEN_MASK = (1u << TOKEN_BITS) - 1, RANK_BITS = 32 + TOKEN_BITS;

// floor(2^40 * exp(x)) for x <= 0, 0 below -27.5 and for NaN; the scheme of `expf` in Moshier's Cephes
// library: x = n ln 2 + r, exp(r) by a polynomial.
__device__ __forceinline__ uint64_t weight(float x) {
  if (!(x >= -27.5f)) return 0;
  constexpr float ROUNDING = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer.
  const float rounded = __fadd_rn(__fmul_rn(x, 1.44269504f), ROUNDING);
  const float n = __fsub_rn(rounded, ROUNDING);
  const float r = __fsub_rn(__fsub_rn(x, __fmul_rn(n, 0.693359375f)), __fmul_rn(n, -2.1219444e-4f));
  float p = 1.9875692e-4f;
  p = __fadd_rn(__fmul_rn(p, r), 1.3981999e-3f);
  p = __fadd_rn(__fmul_rn(p, r), 8.333452e-3f);
  p = __fadd_rn(__fmul_rn(p, r), 4.1665796e-2f);
  p = __fadd_rn(__fmul_rn(p, r), 1.6666665e-1f);
  p = __fadd_rn(__fmul_rn(p, r), 0.5f);
  const float exp_r = __fadd_rn(__fadd_rn(__fmul_rn(p, __fmul_rn(r, r)), r), 1.0f);
  // floor(exp_r * 2^(n + 40)), by shifting the 24 bits of exp_r's significand.
  const uint32_t bits = __float_as_uint(exp_r);
  const int shift = static_cast<int>(bits >> 23) + static_cast<int>(__float_as_uint(rounded) -
                    __float_as_uint(ROUNDING)) + 40 - 127 - 23;
  const uint64_t significand = (bits & 0x7fffffu) | 0x800000u;
  return shift >= 0 ? significand << shift : significand >> -shift;
}

// Divides by a temperature, correctly rounded, without a division for those that occur: with a rounded
// reciprocal, two steps of Markstein's correction give the rounded quotient while nothing can
// over- or underflow ("Computation of elementary functions on the IBM RISC System/6000", 1990).
struct Divisor {
  float by, reciprocal;
  bool ordinary;

  __device__ explicit Divisor(float by)
      : by(by), reciprocal(__frcp_rn(by)), ordinary(by > 0x1p-30f && by < 0x1p60f) {}

  // For x <= 0 and not below -27.6 * by.
  __device__ __forceinline__ float divide(float x) const {
    if (!ordinary) return __fdiv_rn(x, by);
    if (x > -0x1p-60f) return 0.0f;  // Closer to 0 than any weight can tell.
    float q = __fmul_rn(x, reciprocal);
    q = __fmaf_rn(__fmaf_rn(-q, by, x), reciprocal, q);
    return __fmaf_rn(__fmaf_rn(-q, by, x), reciprocal, q);
  }
};

// A logit and its token as one integer of 50 bits: the larger logit is larger, then the lower token.
__device__ __forceinline__ uint64_t rank_of_token(float logit, uint32_t token) {
  return static_cast<uint64_t>(order_key(logit)) << TOKEN_BITS | (TOKEN_MASK - token);
}
__device__ __forceinline__ uint32_t token_of(uint64_t rank) {
  return TOKEN_MASK - (static_cast<uint32_t>(rank) & TOKEN_MASK);
}
__device__ __forceinline__ float logit_of(uint64_t rank) {
  const uint32_t key = static_cast<uint32_t>(rank >> TOKEN_BITS);
  return __uint_as_float(key >> 31 ? key ^ 1u << 31 : ~key);
}

// The 64 random bits for the token at `position`: the first two words of Philox4x32-10 (Salmon et al.,
// "Parallel random numbers: as easy as 1, 2, 3", SC 2011) under key `seed` and counter `position`.
__device__ __forceinline__ uint64_t uniform(uint64_t seed, uint32_t position) {
  uint32_t c0 = position, c1 = 0, c2 = 0, c3 = 0;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const uint64_t p0 = uint64_t(c0) * 0xd2511f53u, p1 = uint64_t(c2) * 0xcd9e8d57u;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9e3779b9u;
    k1 += 0xbb67ae85u;
  }
  return uint64_t(c1) << 32 | c0;
}

}  // namespace minisgl
