// What every kernel here shares: 16-byte bf16 vectors, reductions, dependent launch.
#pragma once

#include "minisgl.h"

#define KERNEL extern "C" __global__ void

namespace minisgl {

// Programmatic dependent launch (sm_90 and later; nothing elsewhere). A kernel may start while the one
// before it drains: it waits before it reads or writes anything that another kernel touches, and
// lets the next one start at once. Every kernel waits, so finishing is transitive.
__device__ __forceinline__ void wait_for_inputs() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Eight bf16 values: one 16-byte access.
struct alignas(16) Vec8 {
  __nv_bfloat162 pair[4];
};
constexpr uint32_t VEC = 8;

__device__ __forceinline__ Vec8 load8(const minisgl_bf16* p) {
  return *reinterpret_cast<const Vec8*>(p);
}

__device__ __forceinline__ void store8(minisgl_bf16* p, const Vec8& v) {
  *reinterpret_cast<Vec8*>(p) = v;
}

__device__ __forceinline__ void unpack(const Vec8& v, float (&f)[VEC]) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    float2 two = __bfloat1622float2(v.pair[i]);
    f[2 * i] = two.x;
    f[2 * i + 1] = two.y;
  }
}

__device__ __forceinline__ Vec8 pack(const float (&f)[VEC]) {
  Vec8 v;
#pragma unroll
  for (int i = 0; i < 4; i++) v.pair[i] = __floats2bfloat162_rn(f[2 * i], f[2 * i + 1]);
  return v;
}

// Sum over `LANES` neighbouring lanes, a power of two; every lane gets it.
template <int LANES>
__device__ __forceinline__ float sum_lanes(float x) {
#pragma unroll
  for (int step = LANES / 2; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  return x;
}

// Sum over a block of whole warps, at most 32; every thread gets it. `shared` is for one use.
__device__ __forceinline__ float sum_block(float x, float (&shared)[32]) {
  const uint32_t warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  x = sum_lanes<32>(x);
  if (lane == 0) shared[warp] = x;
  __syncthreads();
  return sum_lanes<32>(lane < warps ? shared[lane] : 0.0f);
}

// Floats as integers of the same order, for finite values and infinities without -0.
__device__ __forceinline__ uint32_t order_key(float x) {
  const uint32_t bits = __float_as_uint(x);
  return bits >> 31 ? ~bits : bits | 1u << 31;
}

// NaN becomes -inf, +inf the largest finite float, -0 becomes +0.
__device__ __forceinline__ float clean(float x) {
  if (isnan(x)) return -INFINITY;
  return __fadd_rn(fminf(x, 3.402823466e38f), 0.0f);
}

// What is sent to another GPU says itself that it has arrived: by not being EMPTY, NaN with a payload that no rounding
// gives. See cu/peers/push.cu.
constexpr uint32_t EMPTY = 0xffffffffu, SIGNS = 0x80008000u;

// Two bf16, neither of them EMPTY.
__device__ __forceinline__ uint32_t not_empty(uint32_t two) { return two ^ (__vcmpeq2(two, EMPTY) & SIGNS); }

__device__ __forceinline__ void send(minisgl_bf16* to, minisgl_bf16 value) {
  const uint16_t bits = __bfloat16_as_ushort(value);
  asm volatile("st.volatile.global.u16 [%0], %1;" ::"l"(to), "h"(uint16_t(bits == 0xffff ? 0x7fff : bits)) : "memory");
}

// Which 16-byte vector of [rows, len] is this thread's, in kernels of one thread a vector; `row` may be past
// the last one.
struct VectorAt {
  uint32_t row, column;

  __device__ __forceinline__ explicit VectorAt(uint32_t len) {
    const uint32_t at = blockIdx.x * blockDim.x + threadIdx.x;
    row = at / (len / VEC);
    column = at % (len / VEC) * VEC;
  }

  // Where it is in an array of rows of `len`; `of_row` if that is another than its own.
  __device__ __forceinline__ size_t in(uint32_t len) const { return in(len, row); }
  __device__ __forceinline__ size_t in(uint32_t len, uint32_t of_row) const {
    return size_t(of_row) * len + column;
  }
};

}  // namespace minisgl
