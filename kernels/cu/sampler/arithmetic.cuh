// The arithmetic of a draw, the same to the bit on every device: f32 operations in a fixed order and
// never fused (but where that changes no bit), sums of integers, a counter-based generator.
#pragma once

#include "../common.cuh"

namespace minisgl {

constexpr uint64_t ONE = 1ull << 40;  // The weight of the most likely token.
constexpr uint32_t TOKEN_BITS = 19, TOKEN_MASK = (1u << TOKEN_BITS) - 1, RANK_BITS = 32 + TOKEN_BITS;
// Beside the best rank of a row whose logits are not all numbers: above every rank, so that it is the highest of all.
constexpr uint64_t NOT_A_NUMBER = 1ull << RANK_BITS;

// A weight before its floor, over 2^40: exp(x) for x <= 0; under 2^-40 below -27.5 and for NaN. The scheme
// of `expf` in Moshier's Cephes library: x = n ln 2 + r, exp(r) by a polynomial.
__device__ __forceinline__ float unfloored(float x) {
  x = x >= -27.5f ? x : -30.0f;
  constexpr float ROUNDING = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer.
  const float rounded = __fadd_rn(__fmul_rn(x, 1.44269504f), ROUNDING);
  const float n = __fsub_rn(rounded, ROUNDING);
  // The first product is exact (6 bits by 9), so fusing it changes nothing.
  const float r = __fsub_rn(__fmaf_rn(n, -0.693359375f, x), __fmul_rn(n, -2.1219444e-4f));
  float p = 1.9875692e-4f;
  p = __fadd_rn(__fmul_rn(p, r), 1.3981999e-3f);
  p = __fadd_rn(__fmul_rn(p, r), 8.333452e-3f);
  p = __fadd_rn(__fmul_rn(p, r), 4.1665796e-2f);
  p = __fadd_rn(__fmul_rn(p, r), 1.6666665e-1f);
  p = __fadd_rn(__fmul_rn(p, r), 0.5f);
  const float exp_r = __fadd_rn(__fadd_rn(__fmul_rn(p, __fmul_rn(r, r)), r), 1.0f);
  // Times 2^n: the low bits of `rounded` are n, and the rest of them leaves at the top.
  return __uint_as_float(__float_as_uint(exp_r) + (__float_as_uint(rounded) << 23));
}

// The sum of up to 4,095 weights. Adding 8, rounded towards zero, leaves the 20 bits of a value above 2^-20
// in the significand, and adding 2^-17 to what that cut off leaves the next 20: two integers
// without a conversion. The bits of the 8 and of the 2^-17 are taken off at the end. (What is added the
// second time, 2^-17 less what was kept, has 21 bits at most: exact.)
struct Sum {
  uint32_t high = 0, low = 0, count = 0;

  __device__ __forceinline__ void add(float unfloored) {
    const float upper = __fadd_rz(unfloored, 8.0f);
    const float lower = __fadd_rz(unfloored, __fsub_rn(8.0f + 0x1p-17f, upper));
    high += __float_as_uint(upper);
    low += __float_as_uint(lower);
    count++;
  }
  __device__ __forceinline__ uint64_t whole() const {
    const uint64_t upper = high - count * 0x41000000u;
    return (upper << 20) + (low - count * 0x37000000u);
  }
};

// floor(2^40 * exp(x)) for x <= 0, 0 below -27.5 and for NaN.
__device__ __forceinline__ uint64_t weight(float x) {
  Sum sum;
  sum.add(unfloored(x));
  return sum.whole();
}

// Divides by a temperature, correctly rounded, without a division for those that occur: a product with the
// reciprocal in two parts is within a unit in the last place (Brisebarre, Muller and Raina, "Accelerating
// correctly rounded floating-point division when the divisor is known in advance", 2004), and from
// there Markstein's correction gives the rounded quotient, while nothing can over- or underflow
// ("Computation of elementary functions on the IBM RISC System/6000", 1990).
struct Divisor {
  float by, reciprocal, rest;
  bool ordinary;

  __device__ explicit Divisor(float by)
      : by(by), reciprocal(__frcp_rn(by)), ordinary(by > 0x1p-30f && by < 0x1p60f) {
    rest = __fmul_rn(__fmaf_rn(-by, reciprocal, 1.0f), reciprocal);
  }

  // For x <= 0 and an ordinary divisor; where x is so close to 0 that this underflows, no weight can tell.
  __device__ __forceinline__ float quotient(float x) const {
    const float q = __fmaf_rn(x, reciprocal, __fmul_rn(x, rest));
    return __fmaf_rn(__fmaf_rn(-q, by, x), reciprocal, q);
  }
  // For x <= 0 and any divisor.
  __device__ __forceinline__ float divide(float x) const {
    return ordinary ? quotient(x) : __fdiv_rn(x, by);
  }
};

// A logit and its token as one integer of RANK_BITS: the larger logit is larger, then the lower token.
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
