// The instructions that medium.cu is made of: barriers within a block and over a cluster, copies, and products of warp groups.
#pragma once

#include <cuda_fp16.h>

#include "../wgmma.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace minisgl {

constexpr uint32_t CLUSTER_MAX = 8;

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ void barrier_init(uint32_t barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t phase) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(barrier),
      "r"(phase)
      : "memory");
}

__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ uint32_t cluster_size() {
  uint32_t size;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}
// Four floats of a block of the cluster. It must have been met since they were written.
__device__ __forceinline__ float4 load_of(uint32_t block, uint32_t address) {
  float4 four;
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %4, %5;\n"
      "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [there];\n"
      "}\n"
      : "=f"(four.x), "=f"(four.y), "=f"(four.z), "=f"(four.w)
      : "r"(address), "r"(block));
  return four;
}

// The sum over all blocks of the cluster, in their order. All are asked before the first answers.
__device__ __forceinline__ float4 sum_of_all(uint32_t blocks, uint32_t address) {
  float4 of[CLUSTER_MAX], sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
  for (uint32_t block = 0; block < CLUSTER_MAX; block++) {
    if (block < blocks) of[block] = load_of(block, address);
  }
#pragma unroll
  for (uint32_t block = 0; block < CLUSTER_MAX; block++) {
    if (block < blocks) sum.x += of[block].x, sum.y += of[block].y, sum.z += of[block].z, sum.w += of[block].w;
  }
  return sum;
}

// A 128 x 128 tile of the weight, 16-byte pieces of row r at place (piece ^ r % 8). What is not there becomes zeros.
template <class Args>
__device__ __forceinline__ void copy_tile(uint32_t to, const Args& a, uint32_t row, uint32_t column,
                                          uint32_t barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, %3}], "
      "[%4], %5;" ::"r"(to),
      "l"(&a.map), "r"(column), "r"(row), "r"(barrier), "l"(policy)
      : "memory");
}

__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from)
               : "memory");
}

// Four neighbouring e4m3 values as two pairs of fp16.
__device__ __forceinline__ uint2 widen(uint32_t four) {
  uint2 pairs;
  asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %2;\ncvt.rn.f16x2.e4m3x2 %0, low;\ncvt.rn.f16x2.e4m3x2 %1, high;\n}"
      : "=r"(pairs.x), "=r"(pairs.y)
      : "r"(four));
  return pairs;
}

// x as fp16: a block of columns of a token is multiplied by a power of two that brings its largest value to 2^14 at
// least. What is smaller by 2^29 loses digits, which then are 2^-39 of the largest. Returns the factor that undoes it.
__device__ __forceinline__ float half_factor(float largest) {
  const int exponent = max(int(__float_as_uint(largest) >> 23) - 127, -100);
  return __uint_as_float(uint32_t(127 + exponent - 14) << 23);
}

__device__ __forceinline__ float2 unpack2(uint32_t two) {
  return make_float2(__uint_as_float(two << 16), __uint_as_float(two & 0xffff0000u));
}

__device__ __forceinline__ uint32_t to_half(uint32_t two, float up) {
  const float2 f = unpack2(two);
  const __half2 pair = __floats2half2_rn(f.x * up, f.y * up);
  return reinterpret_cast<const uint32_t&>(pair);
}

// d (+)= 64 rows of the weight over 16 columns * N tokens.
template <int N>
struct Product;

template <>
struct Product<8> {
  __device__ static __forceinline__ void add(float (&d)[4], const uint32_t (&w)[4], uint64_t x, int more) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %9, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%0,%1,%2,%3}, {%4,%5,%6,%7}, %8, p, 1, 1, 0;\n}\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "l"(x), "r"(more));
  }
};
template <>
struct Product<16> {
  __device__ static __forceinline__ void add(float (&d)[8], const uint32_t (&w)[4], uint64_t x, int more) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %13, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 {%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9,%10,%11}, %12, p, 1, 1, "
        "0;\n}\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
        : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "l"(x), "r"(more));
  }
};
template <>
struct Product<32> {
  __device__ static __forceinline__ void add(float (&d)[16], const uint32_t (&w)[4], uint64_t x, int more) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %21, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, "
        "{%16,%17,%18,%19}, %20, p, 1, 1, 0;\n}\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
          "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
        : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "l"(x), "r"(more));
  }
};
template <>
struct Product<64> {
  __device__ static __forceinline__ void add(float (&d)[32], const uint32_t (&w)[4], uint64_t x, int more) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, {%32,%33,%34,%35}, %36, p, 1, 1, 0;\n}\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
          "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),
          "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
          "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
        : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "l"(x), "r"(more));
  }
};

// What products wrote may be read from here on.
template <int LEN>
__device__ __forceinline__ void settle(float (&sums)[LEN]) {
#pragma unroll
  for (int i = 0; i < LEN; i++) asm volatile("" : "+f"(sums[i])::"memory");
}

// Arrives at a barrier of every block of the cluster, for a warp.
__device__ __forceinline__ void arrive_everywhere(uint32_t barrier, uint32_t blocks) {
  __syncwarp();
  const uint32_t lane = threadIdx.x % 32;
  if (lane < blocks) {
    asm volatile(
        "{\n"
        ".reg .b32 there;\n"
        "mapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [there];\n"
        "}\n" ::"r"(barrier),
        "r"(lane)
        : "memory");
  }
}

__device__ __forceinline__ void barrier_wait_cluster(uint32_t barrier, uint32_t phase) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(barrier),
      "r"(phase)
      : "memory");
}

}  // namespace minisgl

#endif
