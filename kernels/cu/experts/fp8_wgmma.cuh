// Products of the tensor cores of Hopper over e4m3: 64 rows of the weights times N rows of x over 32 columns, as wgmma.cuh
// has those of bf16 over 16.
#pragma once

#include "wgmma.cuh"

namespace minisgl {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

#define F4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define F16(d, i) F4(d, i), F4(d, i + 4), F4(d, i + 8), F4(d, i + 12)

// d += a * b, or d = a * b.
__device__ __forceinline__ void product8(float (&d)[16], uint64_t a, uint64_t b, uint32_t add) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %18, 0; wgmma.mma_async.sync.aligned.m64n32k32.f32.e4m3.e4m3 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
      "}, %16, %17, p, 1, 1; }"
      : F16(d, 0)
      : "l"(a), "l"(b), "r"(add));
}

// d += a * b, or d = a * b.
__device__ __forceinline__ void product8(float (&d)[32], uint64_t a, uint64_t b, uint32_t add) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %34, 0; wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "
      "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, %32, %33, p, 1, 1; }"
      : F16(d, 0), F16(d, 16)
      : "l"(a), "l"(b), "r"(add));
}

// d += a * b, or d = a * b.
__device__ __forceinline__ void product8(float (&d)[48], uint64_t a, uint64_t b, uint32_t add) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %50, 0; wgmma.mma_async.sync.aligned.m64n96k32.f32.e4m3.e4m3 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "
      "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "
      "%40, %41, %42, %43, %44, %45, %46, %47"
      "}, %48, %49, p, 1, 1; }"
      : F16(d, 0), F16(d, 16), F16(d, 32)
      : "l"(a), "l"(b), "r"(add));
}

// d += a * b, or d = a * b.
__device__ __forceinline__ void product8(float (&d)[64], uint64_t a, uint64_t b, uint32_t add) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %66, 0; wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "
      "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "
      "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, "
      "%60, %61, %62, %63"
      "}, %64, %65, p, 1, 1; }"
      : F16(d, 0), F16(d, 16), F16(d, 32), F16(d, 48)
      : "l"(a), "l"(b), "r"(add));
}

#undef F4
#undef F16

#endif

}  // namespace minisgl
