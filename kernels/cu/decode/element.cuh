// What differs between the element types of the pages: how values are stored, and how 16-byte columns
// of them in shared memory become operands of the tensor cores' 16 x 8 x 16 product.
//
// A column of bf16 or fp16 has 8 elements of a head, one of fp8 has 16. In the product of queries and keys the
// order of a head's elements is free as long as both sides agree; fp8 uses that.
#pragma once

#include "../common.cuh"

#include <cuda_fp16.h>
#include <cuda_fp8.h>

namespace minisgl {

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Four 8 x 8 matrices of 2-byte elements; lane i points to row i % 8 of matrix i / 8.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ void load_transposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// c += a * b, f32 sums: a 16 x 16, b 16 x 8.
template <bool HALF>
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (HALF) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

template <typename Pair>
__device__ __forceinline__ uint32_t bits(const Pair& pair) {
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// Values beyond fp16's largest become it, and NaN stays NaN.
__device__ __forceinline__ __half2 to_half2(float x, float y) {
  constexpr float MOST = 65504.0f;
  const auto clipped = [](float z) { return z > MOST ? MOST : z < -MOST ? -MOST : z; };
  return __floats2half2_rn(clipped(x), clipped(y));
}

struct Bf16 {
  using Stored = minisgl_bf16;
  static constexpr bool HALF = false;

  static __device__ __forceinline__ uint32_t pair(float x, float y) { return bits(__floats2bfloat162_rn(x, y)); }

  static __device__ __forceinline__ void store(Stored* to, const float (&f)[VEC]) { store8(to, pack(f)); }

  // Queries as the products take them: made here, or as they come.
  static __device__ __forceinline__ Vec8 query(const float (&f)[VEC]) { return pack(f); }
  static __device__ __forceinline__ Vec8 query(const Vec8& q) { return q; }
};

struct Fp16 {
  using Stored = __half;
  static constexpr bool HALF = true;

  static __device__ __forceinline__ uint32_t pair(float x, float y) { return bits(__floats2half2_rn(x, y)); }

  static __device__ __forceinline__ void store(Stored* to, const float (&f)[VEC]) {
    *reinterpret_cast<uint4*>(to) = make_uint4(bits(to_half2(f[0], f[1])), bits(to_half2(f[2], f[3])),
                                               bits(to_half2(f[4], f[5])), bits(to_half2(f[6], f[7])));
  }

  static __device__ __forceinline__ Vec8 query(const float (&f)[VEC]) {
    Vec8 v;
    store(reinterpret_cast<Stored*>(&v), f);
    return v;
  }
  static __device__ __forceinline__ Vec8 query(const Vec8& q) { return q; }
};

struct Fp8 : Fp16 {
  using Stored = uint8_t;

  // Queries are bf16 outside.
  static __device__ __forceinline__ Vec8 query(const Vec8& q) {
    float f[VEC];
    unpack(q, f);
    return Fp16::query(f);
  }
  static __device__ __forceinline__ Vec8 query(const float (&f)[VEC]) { return query(pack(f)); }

  static __device__ __forceinline__ void store(Stored* to, const float (&f)[VEC]) {
    uint32_t word[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const uint32_t low =
          __nv_cvt_float2_to_fp8x2(make_float2(f[4 * i], f[4 * i + 1]), __NV_SATFINITE, __NV_E4M3);
      const uint32_t high =
          __nv_cvt_float2_to_fp8x2(make_float2(f[4 * i + 2], f[4 * i + 3]), __NV_SATFINITE, __NV_E4M3);
      word[i] = low | high << 16;
    }
    *reinterpret_cast<uint2*>(to) = make_uint2(word[0], word[1]);
  }

  // Two values as fp16, which holds every e4m3.
  static __device__ __forceinline__ uint32_t widen(uint32_t two) {
    const __half2_raw raw = __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(two), __NV_E4M3);
    return raw.x | static_cast<uint32_t>(raw.y) << 16;
  }
};

}  // namespace minisgl
