// Products of the tensor cores of Hopper as wgmma.cuh has them, with 64 rows of the weights in registers: lane 4 g + t of a
// warp brings rows g and g + 8 of its 16, columns 2 t, 2 t + 1, and 2 t + 8, 2 t + 9, as mma has them.
#pragma once

#include "wgmma.cuh"

namespace minisgl {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// d += a * b, or d = a * b, over SUMS sums a thread. A, B and ADD are which operands of the instruction they are.
#define PRODUCT_OF_REGISTERS(SUMS, N, A, B, ADD)                                                                        \
  __device__ __forceinline__ void product(float (&d)[SUMS], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,         \
                                          uint64_t b, uint32_t add) {                                                   \
    asm volatile("{ .reg .pred p; setp.ne.b32 p, " ADD ", 0; wgmma.mma_async.sync.aligned.m64n" #N                      \
                 "k16.f32.bf16.bf16 {" SUMS_##SUMS "}, {" A "}, " B ", p, 1, 1, 0; }"                                   \
                 : F_##SUMS(d)                                                                                          \
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(add));                                               \
  }

PRODUCT_OF_REGISTERS(16, 32, "%16, %17, %18, %19", "%20", "%21")
PRODUCT_OF_REGISTERS(32, 64, "%32, %33, %34, %35", "%36", "%37")
PRODUCT_OF_REGISTERS(64, 128, "%64, %65, %66, %67", "%68", "%69")

#endif

}  // namespace minisgl
