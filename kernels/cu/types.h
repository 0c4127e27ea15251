/* Types that every part of the fence knows. */
#ifndef MINISGL_TYPES_H
#define MINISGL_TYPES_H

#include <stdint.h>

#define MINISGL_ALIGN(bytes) __attribute__((aligned(bytes)))

#ifdef __CUDACC__
#include <cuda_bf16.h>
typedef __nv_bfloat16 minisgl_bf16;
#else
typedef uint16_t minisgl_bf16;
#endif

/* What stands between gate and up projection and the one back; see gate.cuh. */
#define MINISGL_GATE_SILU 0
#define MINISGL_GATE_CLAMPED 1
#define MINISGL_GATE_GELU 2

#endif
