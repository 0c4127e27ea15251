// Products of the tensor cores of Hopper with both operands in shared memory, in rows of 128 bytes, swizzled (PTX ISA,
// "Asynchronous Warpgroup Level Matrix Multiply-Accumulate"): what every kernel that has some says alike.
#pragma once

#include "common.cuh"

namespace minisgl {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Eight rows of 128 bytes lie together; 1024 bytes on come the next eight.
__device__ __forceinline__ uint64_t operand(uint32_t shared) {
  return uint64_t(shared >> 4 & 0x3fff) | uint64_t(1) << 16 | uint64_t(1024 >> 4) << 32 | uint64_t(1) << 62;
}

__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int LEFT>
__device__ __forceinline__ void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}

// The sums of a product as its operands, sixteen at a time: as assembler text, and as what stands for it.
#define SUMS_4 "%0, %1, %2, %3"
#define SUMS_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define SUMS_12 SUMS_8 ", %8, %9, %10, %11"
#define SUMS_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define SUMS_24 SUMS_16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define SUMS_32 SUMS_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define SUMS_48 SUMS_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define SUMS_64 SUMS_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define SUMS_80 SUMS_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define SUMS_96 SUMS_80 ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define SUMS_112 SUMS_96 ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define SUMS_128 SUMS_112 ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define F4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define F16(d, i) F4(d, i), F4(d, i + 4), F4(d, i + 8), F4(d, i + 12)
#define F_4(d) F4(d, 0)
#define F_8(d) F4(d, 0), F4(d, 4)
#define F_12(d) F_8(d), F4(d, 8)
#define F_16(d) F16(d, 0)
#define F_24(d) F_16(d), F4(d, 16), F4(d, 20)
#define F_32(d) F_16(d), F16(d, 16)
#define F_48(d) F_32(d), F16(d, 32)
#define F_64(d) F_48(d), F16(d, 48)
#define F_80(d) F_64(d), F16(d, 64)
#define F_96(d) F_80(d), F16(d, 80)
#define F_112(d) F_96(d), F16(d, 96)
#define F_128(d) F_112(d), F16(d, 112)

// d += a * b, or d = a * b, over SUMS sums a thread; both operands are in shared memory. A, B and ADD are which operands of the
// instruction they are: the ones behind the sums.
#define PRODUCT_OF_SHARED(NAME, SUMS, INSTRUCTION, A, B, ADD, LAYOUT)                                                   \
  __device__ __forceinline__ void NAME(float (&d)[SUMS], uint64_t a, uint64_t b, uint32_t add) {                        \
    asm volatile("{ .reg .pred p; setp.ne.b32 p, " ADD ", 0; wgmma.mma_async.sync.aligned." INSTRUCTION " {" SUMS_##SUMS \
                 "}, " A ", " B ", p, 1, 1" LAYOUT "; }"                                                                \
                 : F_##SUMS(d)                                                                                          \
                 : "l"(a), "l"(b), "r"(add));                                                                           \
  }

#endif

}  // namespace minisgl
