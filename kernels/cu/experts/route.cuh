// Which experts a row goes to, how much each counts, and which rows go to an expert together.
#pragma once

#include "experts.cuh"

namespace minisgl {

constexpr uint32_t ROUTE_THREADS = 512, ROUTE_WARPS = ROUTE_THREADS / 32;

// What a block knows of its rows, 64 at most.
struct Chosen {
  uint32_t mask[MINISGL_EXPERTS_MAX][2];  // The rows of an expert.
  int16_t ids[MINISGL_ROUTE_ROWS][MINISGL_TOP_MAX];
  uint32_t start[MINISGL_EXPERTS_MAX];  // The first place of an expert's rows here.
  uint2 part[ROUTE_WARPS];
};

__device__ __forceinline__ float from_order_key(uint32_t key) {
  return __uint_as_float(key >> 31 ? key ^ 1u << 31 : ~key);
}

__device__ __forceinline__ uint32_t max_of_warp(uint32_t x) {
#if __CUDA_ARCH__ >= 800
  return __reduce_max_sync(~0u, x);
#else
  return x;
#endif
}

__device__ __forceinline__ uint32_t min_of_warp(uint32_t x) {
#if __CUDA_ARCH__ >= 800
  return __reduce_min_sync(~0u, x);
#else
  return x;
#endif
}

__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

// One warp, one row. Expert e is with lane e % 32. Of equals the lower index comes first. Lane j is told choice j.
template <int EACH>
__device__ __forceinline__ int32_t choose_row(const minisgl_router_args& a, uint32_t row) {
  const uint32_t lane = threadIdx.x % 32;
  const bool by_sigmoid = a.score == MINISGL_SCORE_SIGMOID;
  // Everything is on its way before the first use.
  float logit[EACH], correction[EACH];
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const uint32_t expert = min(i * 32 + lane, a.experts - 1);
    logit[i] = __ldcg(a.logits + size_t(row) * a.logits_stride + expert);
    correction[i] = a.correction ? a.correction[expert] : 0.0f;
    // Where logits come from another product, the bias is still to be added.
    if (!a.x && a.bias) logit[i] += __bfloat162float(a.bias[expert]);
  }
  uint32_t key[EACH];  // 0: not there, or chosen; no value has it.
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const bool there = i * 32 + lane < a.experts;
    logit[i] = there ? clean(logit[i]) : -INFINITY;
    const float by = by_sigmoid ? clean(sigmoid(logit[i]) + correction[i]) : logit[i];
    key[i] = there ? order_key(by) : 0;
  }

  uint32_t mine = 0;
  float value = -INFINITY;
#pragma unroll 1
  for (uint32_t j = 0; j < a.top; j++) {
    uint32_t best = 0;
#pragma unroll
    for (int i = 0; i < EACH; i++) best = max(best, key[i]);
    best = max_of_warp(best);
    uint32_t lowest = ~0u;
#pragma unroll
    for (int i = EACH - 1; i >= 0; i--) lowest = key[i] == best ? i * 32 + lane : lowest;
    lowest = min_of_warp(lowest);
    float its = 0.0f;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      const bool is_it = i * 32 + lane == lowest;
      its = is_it ? logit[i] : its;
      key[i] = is_it ? 0 : key[i];
    }
    its = __shfl_sync(~0u, its, lowest % 32);
    mine = lane == j ? lowest : mine;
    value = lane == j ? its : value;
  }

  // Weights; equal infinities count alike.
  const bool chose = lane < a.top;
  float weight, sum = 1.0f;
  if (by_sigmoid) {
    weight = chose ? sigmoid(value) : 0.0f;
    if (a.renormalise) sum = sum_lanes<32>(weight) + 1e-20f;
  } else {
    const float highest = __shfl_sync(~0u, value, 0);
    weight = chose ? (value == highest ? 1.0f : __expf(value - highest)) : 0.0f;
    sum = weight;
    if (!a.renormalise) {
      sum = 0.0f;
#pragma unroll
      for (int i = 0; i < EACH; i++) {
        const float share = logit[i] == highest ? 1.0f : __expf(logit[i] - highest);
        sum += i * 32 + lane < a.experts ? share : 0.0f;
      }
    }
    sum = sum_lanes<32>(sum);
  }
  if (chose) {
    a.ids[row * a.top + lane] = mine;
    a.weights[row * a.top + lane] = weight / sum * a.scale;
  }
  return mine;
}

// The same for any number of experts and for padding rows, which choose -1.
__device__ __forceinline__ int32_t choose_row(const minisgl_router_args& a, uint32_t row) {
  const uint32_t lane = threadIdx.x % 32;
  if (a.there && a.there[row] < 0) {
    if (lane < a.top) a.ids[row * a.top + lane] = -1, a.weights[row * a.top + lane] = 0.0f;
    return -1;
  }
  if (a.experts <= 128) return choose_row<4>(a, row);
  if (a.experts <= 256) return choose_row<8>(a, row);
  return choose_row<16>(a, row);
}

__device__ __forceinline__ void forget(const minisgl_router_args& a, Chosen& chosen) {
  for (uint32_t e = threadIdx.x; e < a.experts; e += blockDim.x) chosen.mask[e][0] = chosen.mask[e][1] = 0;
  __syncthreads();
}

__device__ __forceinline__ void remember(Chosen& chosen, uint32_t local, uint32_t choice, int32_t expert) {
  chosen.ids[local][choice] = expert;
  if (expert >= 0) atomicOr(&chosen.mask[expert][local / 32], 1u << local % 32);
}

// Makes the choices of `count` rows from `first` on. Ends with a barrier.
__device__ __forceinline__ void choose(const minisgl_router_args& a, uint32_t first, uint32_t count, Chosen& chosen) {
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  forget(a, chosen);
  for (uint32_t local = warp; local < count; local += blockDim.x / 32) {
    const int32_t expert = choose_row(a, first + local);
    if (lane < a.top) remember(chosen, local, lane, expert);
  }
  __syncthreads();
}

// Takes over choices that other blocks made. Ends with a barrier.
__device__ __forceinline__ void recall(const minisgl_router_args& a, uint32_t first, uint32_t count, Chosen& chosen) {
  forget(a, chosen);
  for (uint32_t i = threadIdx.x; i < count * a.top; i += ROUTE_THREADS) {
    remember(chosen, i / a.top, i % a.top, __ldcg(a.ids + first * a.top + i));
  }
  __syncthreads();
}

__device__ __forceinline__ uint32_t rows_of(const Chosen& chosen, uint32_t expert) {
  return __popc(chosen.mask[expert][0]) + __popc(chosen.mask[expert][1]);
}

// Gives every expert its places and its batches. `count(e)` is how many pairs it has in all, `before(e)` how many
// of them in earlier blocks. One block writes head and batches. Ends with a barrier.
template <class Count, class Before>
__device__ __forceinline__ void arrange(const minisgl_router_args& a, Chosen& chosen, bool writes, Count count,
                                        Before before) {
  constexpr uint32_t EACH = MINISGL_EXPERTS_MAX / ROUTE_THREADS;
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const PlanAt<int32_t> plan(a.plan, a.batches_max, a.rows * a.top);

  // Pairs and batches of a thread's experts, then of all before it.
  uint32_t pairs[EACH], batches[EACH];
  uint2 own = make_uint2(0, 0);
#pragma unroll
  for (uint32_t i = 0; i < EACH; i++) {
    const uint32_t e = threadIdx.x * EACH + i;
    pairs[i] = e < a.experts ? count(e) : 0;
    batches[i] = (pairs[i] + a.batch - 1) / a.batch;
    own.x += pairs[i], own.y += batches[i];
  }
  uint2 upto = own;
#pragma unroll
  for (uint32_t step = 1; step < 32; step *= 2) {
    const uint32_t x = __shfl_up_sync(~0u, upto.x, step), y = __shfl_up_sync(~0u, upto.y, step);
    if (lane >= step) upto.x += x, upto.y += y;
  }
  if (lane == 31) chosen.part[warp] = upto;
  __syncthreads();
  uint2 at = make_uint2(upto.x - own.x, upto.y - own.y), all = make_uint2(0, 0);
#pragma unroll
  for (uint32_t i = 0; i < ROUTE_WARPS; i++) {
    const uint2 part = chosen.part[i];
    if (i < warp) at.x += part.x, at.y += part.y;
    all.x += part.x, all.y += part.y;
  }
  if (writes && threadIdx.x == 0) {
    *reinterpret_cast<int4*>(plan.head) = make_int4(min(all.y, a.batches_max), all.x, 0, 0);
  }

  for (uint32_t i = 0; i < EACH; i++) {
    const uint32_t e = threadIdx.x * EACH + i;
    if (e >= a.experts) break;
    chosen.start[e] = at.x + before(e);
    if (writes && batches[i] > 0) {
      // Of nearly equal size.
      const uint32_t size = (pairs[i] + batches[i] - 1) / batches[i];
      for (uint32_t j = 0; j < batches[i]; j++) {
        if (at.y + j >= a.batches_max) break;
        const uint32_t first = min(j * size, pairs[i]), rows = min(size, pairs[i] - first);
        reinterpret_cast<int4*>(plan.batches)[at.y + j] = make_int4(e, at.x + first, rows, 0);
      }
    }
    at.x += pairs[i], at.y += batches[i];
  }
  __syncthreads();
}

// Puts the pairs of a block's rows at their places.
__device__ __forceinline__ void place(const minisgl_router_args& a, uint32_t first, uint32_t count,
                                      const Chosen& chosen) {
  const PlanAt<int32_t> plan(a.plan, a.batches_max, a.rows * a.top);
  for (uint32_t i = threadIdx.x; i < count * a.top; i += ROUTE_THREADS) {
    const uint32_t local = i / a.top, pair = first * a.top + i;
    const int32_t e = chosen.ids[local][i % a.top];
    if (e < 0) {
      plan.places[pair] = -1;
      continue;
    }
    const uint32_t below = (1u << local % 32) - 1;
    uint32_t rank = __popc(chosen.mask[e][local / 32] & below);
    if (local >= 32) rank += __popc(chosen.mask[e][0]);
    plan.pairs[chosen.start[e] + rank] = pair;
    plan.places[pair] = chosen.start[e] + rank;
  }
}

}  // namespace minisgl
