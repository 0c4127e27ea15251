// From the QKV projection to attention: QK-norm, rotary embedding and the KV page write in one pass.
//
//   q, k, v = qkv[r]
//   q, k = x * rsqrt(mean(x^2) + eps) * weight          per head         norm optional (Qwen3); _plus_one: * (1 + weight)
//   q, k = [lo * cos - hi * sin, hi * cos + lo * sin]                    halves lo, hi of a head
//   q_out[r] = q,  k_pages[slots[r]] = k,  v_pages[slots[r]] = v
//
// Rotary embedding: Su et al., "RoFormer", arXiv 2104.09864, section 3.4.2, in the half-split layout of
// Llama and Qwen. cos and sin come from a table, so that any scaling of frequencies is the host's.
// Shapes: qkv bf16 [rows, q_heads + 2 * kv_heads, D], pages bf16, fp16 or fp8 (e4m3) [pages, page_size,
// kv_heads, D] seen as [slots_len, kv_heads, D] with slot = page * page_size + offset, cos_sin f32
// [positions_len, D]; f32 inside, rounded once to nearest, clipped to what fp16 and fp8 can hold. A row whose
// slot or position is outside its table is padding: nothing of it is written. Keys of heads of 96 are numbers whatever comes:
// what is behind a key of that width is read along with it (src/attention/wide.rs). Values stay NaN where they are.
// Bytes moved: 4 * rows * (q_heads + 2 * kv_heads) * D (with 2-byte pages), and 4 * rows * D of the table.
// Bound: copy bandwidth.
// Measured (H100 80GB HBM3, 2026-11-21, `gpu --bench`), 32 and 8 heads of 128, norm: 83 % at 4,096 rows;
// 1.8 us at 1 row.

#include "fp16.cuh"
#include "numbers.cuh"

#include <cuda_fp8.h>

using namespace minisgl;

// Eight values, rounded, at element `at` of an array of the type that the kernel's name says.
struct Bf16 {
  static __device__ __forceinline__ void store(void* to, size_t at, const float (&f)[VEC]) {
    store8(static_cast<minisgl_bf16*>(to) + at, pack(f));
  }
};

struct Fp16 {
  static __device__ __forceinline__ void store(void* to, size_t at, const float (&f)[VEC]) {
    store8_fp16(static_cast<__half*>(to) + at, f);
  }
};

struct Fp8 {
  static __device__ __forceinline__ void store(void* to, size_t at, const float (&f)[VEC]) {
    alignas(8) __nv_fp8x2_storage_t pair[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      pair[i] = __nv_cvt_float2_to_fp8x2(make_float2(f[2 * i], f[2 * i + 1]), __NV_SATFINITE, __NV_E4M3);
    }
    *reinterpret_cast<uint2*>(static_cast<uint8_t*>(to) + at) = *reinterpret_cast<const uint2*>(pair);
  }
};

// A group of lanes has one head; a lane has 8 values of its lower half and the matching 8 of the upper.
template <int D, typename Kv, bool PLUS_ONE>
__device__ __forceinline__ void qk_rope_page(const minisgl_qk_rope_page_args& a) {
  constexpr uint32_t HALF = D / 2, USED = HALF / VEC;
  constexpr uint32_t LANES = USED <= 4 ? 4 : USED <= 8 ? 8 : 16;
  wait_for_inputs();
  let_next_start();

  // Which head: queries, then keys, then values.
  const uint32_t heads = a.q_heads + 2 * a.kv_heads;
  const uint32_t group = (blockIdx.x * blockDim.x + threadIdx.x) / LANES;
  const uint32_t row = group / heads, head = group % heads;
  const bool in_grid = row < a.rows;
  const uint32_t slot = in_grid ? a.slots[row] : ~0u, position = in_grid ? a.positions[row] : ~0u;
  const uint32_t lane = threadIdx.x % LANES;
  // No early return: a warp reduces together.
  const bool live = slot < a.slots_len && position < a.positions_len && lane < USED;
  const bool is_q = head < a.q_heads, is_v = head >= a.q_heads + a.kv_heads;

  // Load both halves.
  const uint32_t at = lane * VEC;
  float lo[VEC] = {}, hi[VEC] = {};
  if (live) {
    const minisgl_bf16* from = a.qkv + size_t(group) * D + at;
    const Vec8 lo_raw = load8(from), hi_raw = load8(from + HALF);
    unpack(lo_raw, lo);
    unpack(hi_raw, hi);
  }

  // Normalise queries and keys.
  if (a.q_weight) {
    float squares = 0.0f;
#pragma unroll
    for (int i = 0; i < VEC; i++) squares += lo[i] * lo[i] + hi[i] * hi[i];
    const float scale = rsqrtf(sum_lanes<LANES>(squares) / D + a.eps);
    if (live && !is_v) {
      const minisgl_bf16* weight = (is_q ? a.q_weight : a.k_weight) + at;
      float w[VEC];
      unpack(load8(weight), w);
#pragma unroll
      for (int i = 0; i < VEC; i++) lo[i] *= scale * (PLUS_ONE ? 1.0f + w[i] : w[i]);
      unpack(load8(weight + HALF), w);
#pragma unroll
      for (int i = 0; i < VEC; i++) hi[i] *= scale * (PLUS_ONE ? 1.0f + w[i] : w[i]);
    }
  }
  if (!live) return;

  // Rotate queries and keys.
  if (!is_v) {
    const float* table = a.cos_sin + size_t(position) * D + at;
    float cos[VEC], sin[VEC];
#pragma unroll
    for (int i = 0; i < VEC; i += 4) {
      *reinterpret_cast<float4*>(cos + i) = *reinterpret_cast<const float4*>(table + i);
      *reinterpret_cast<float4*>(sin + i) = *reinterpret_cast<const float4*>(table + HALF + i);
    }
#pragma unroll
    for (int i = 0; i < VEC; i++) {
      const float l = lo[i], h = hi[i];
      lo[i] = l * cos[i] - h * sin[i];
      hi[i] = h * cos[i] + l * sin[i];
    }
    if (D == 96 && !is_q) keep_numbers(lo), keep_numbers(hi);
  }

  // Store where attention reads.
  if (is_q) {
    const size_t to = (size_t(row) * a.q_heads + head) * D + at;
    if (a.q_fp16) {
      Fp16::store(a.q_out, to, lo);
      Fp16::store(a.q_out, to + HALF, hi);
    } else {
      Bf16::store(a.q_out, to, lo);
      Bf16::store(a.q_out, to + HALF, hi);
    }
  } else {
    const uint32_t kv_head = (head - a.q_heads) % a.kv_heads;
    const size_t to = (size_t(slot) * a.kv_heads + kv_head) * D + at;
    void* pages = is_v ? a.v_pages : a.k_pages;
    Kv::store(pages, to, lo);
    Kv::store(pages, to + HALF, hi);
  }
}

#define QK_ROPE_PAGE(NAME, D, KV)                                                                    \
  KERNEL minisgl_qk_rope_page_##NAME(const __grid_constant__ minisgl_qk_rope_page_args a) {         \
    qk_rope_page<D, KV, false>(a);                                                                   \
  }                                                                                                  \
  KERNEL minisgl_qk_rope_page_##NAME##_plus_one(const __grid_constant__ minisgl_qk_rope_page_args a) { \
    qk_rope_page<D, KV, true>(a);                                                                    \
  }
#define QK_ROPE_PAGES(D)            \
  QK_ROPE_PAGE(D, D, Bf16)          \
  QK_ROPE_PAGE(D##_fp16, D, Fp16)   \
  QK_ROPE_PAGE(D##_fp8, D, Fp8)
QK_ROPE_PAGES(64)
QK_ROPE_PAGES(96)
QK_ROPE_PAGES(128)
QK_ROPE_PAGES(256)
