// What the kernels of a mixture of experts share: the plan, and slabs of weights as the tensor cores take them.
#pragma once

#include "../experts.h"
#include "../gate.cuh"
#include "../skinny/skinny.cuh"

namespace minisgl {

constexpr uint32_t PLAN_HEAD = 4;
constexpr uint32_t SLAB = 16, SLAB_STEP_BYTES = 2048, STEP_COLUMNS = 64;

struct Batch {
  uint32_t expert, first, count;
};

// Where the parts of a plan are; `of` may be const.
template <class T>
struct PlanAt {
  T *head, *batches, *pairs, *places;
  __device__ __forceinline__ PlanAt(T* of, uint32_t batches_max, uint32_t pairs_max)
      : head(of), batches(of + PLAN_HEAD), pairs(batches + 4 * batches_max), places(pairs + pairs_max) {}
};

// The first place of the batch that has this one: of the last that begins there or before.
__device__ __forceinline__ uint32_t first_of_batch(const PlanAt<const int32_t>& plan, uint32_t batches, uint32_t batches_max,
                                                   uint32_t place) {
  uint32_t low = 0, high = min(batches, batches_max);
  while (high - low > 1) {
    const uint32_t middle = (low + high) / 2;
    if (uint32_t(plan.batches[4 * middle + 1]) <= place) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return plan.batches[4 * low + 1];
}

// Adds one to a count of blocks, and tells what it was. What this thread knows of comes before, for whoever sees it.
__device__ __forceinline__ uint32_t count_one(uint32_t* count) {
  uint32_t before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(count) : "memory");
  return before;
}

__device__ __forceinline__ uint32_t count_of(const uint32_t* count) {
  uint32_t now;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(count) : "memory");
  return now;
}

#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared_address(row))
               : "memory");
}
#endif

// Weights as they are stored. Another type has other steps, and another way into the fragments; columns may come in any
// order, if x comes in the same.
struct SlabsBf16 {
  static constexpr uint32_t COLUMNS = STEP_COLUMNS;  // Of a step.
  static constexpr uint32_t PAD = 16;                // Bytes between rows of x, so that their banks differ.
  static constexpr bool SCALED = false;
  static constexpr uint32_t TOGETHER = 1;  // Slabs of gate and up that are multiplied by the same x at once.
  static constexpr float UP = 1.0f;        // What sums are yet to be multiplied by.

  // The 16 rows of a slab over columns 32 s .. 32 s + 32, as two operands of mma.
  __device__ __forceinline__ static void load(uint32_t (&a)[2][4], const char* slab, uint32_t s) {
#if __CUDA_ARCH__ >= 900
    const uint32_t lane = threadIdx.x % 32, row = lane % 16;
    const char* at = slab + s / 2 * SLAB_STEP_BYTES + row * 128;
#pragma unroll
    for (uint32_t half = 0; half < 2; half++) {
      load_matrices(a[half], at + ((s % 2 * 4 + half * 2 + lane / 16) ^ (row % 8)) * 16);
    }
#endif
  }

  // Where in rows of x a lane reads.
  __device__ __forceinline__ static uint32_t row(uint32_t rows, uint32_t pitch) {
    const uint32_t lane = threadIdx.x % 32;
    return min(lane % 8, rows - 1) * pitch + lane / 8 * 16;
  }

  // x[.., 32 s .. 32 s + 32] of a stage as the second operand of mma: what lies behind the last column is anything, even
  // NaN.
  __device__ __forceinline__ static void load_x(uint32_t (&x)[4], const char* row, uint32_t s, uint32_t columns) {
#if __CUDA_ARCH__ >= 900
    load_matrices(x, row + s * 64);
#pragma unroll
    for (uint32_t unit = 0; unit < 4; unit++) {
      if (s * 32 + unit * 8 >= columns) x[unit] = 0;
    }
#endif
  }
};

}  // namespace minisgl
