// Attention backend `fa`, for prefill on Hopper: causal attention over a paged cache by FlashInfer's
// template in the style of FlashAttention-3 (Shah et al., arXiv 2407.08608; Ye et al., "FlashInfer", MLSys
// 2025; Apache-2.0, used through its headers).
//
//   out[r, h] = softmax(scale * q[r, h] . K^T) V     over all tokens of r's request up to r's own
//
// Shapes: q, out bf16 [rows, q_heads, D], pages bf16 [pages, page_size, kv_heads, D] or with heads less than D
// apart; f32 inside. One warpgroup copies K and V page by page, the others multiply (wgmma). A block
// walks its share of (tile of rows, head) pairs, which the host has dealt out: src/attention/work.rs.
// Bound: matrix units.
#pragma once

#include "../attention.h"
#include "fa_order.cuh"

#include <flashinfer/attention/hopper/default_params.cuh>
#include <flashinfer/attention/hopper/variants.cuh>

namespace minisgl {

// Every token up to a row's own.
struct FaAll {
  static constexpr bool WINDOW = false;
  using Params = flashinfer::BatchPrefillPagedParams<cutlass::bfloat16_t, cutlass::bfloat16_t, cutlass::bfloat16_t, int32_t>;
  using Variant = flashinfer::StandardAttention;

  static void set(Params& p, const minisgl_fa_args*) { p.window_left = -1; }
};

template <int D, int TILE_Q, int TILE_KV, typename Form = FaAll>
int fa_run(const minisgl_fa_args* a, void* stream) try {
  using namespace flashinfer;
  using bf16 = cutlass::bfloat16_t;
  using Params = typename Form::Params;
  using Traits = OrderedTraits<AttentionKernelTraits</*tma_for_kv=*/false, D, D, TILE_Q, TILE_KV, /*stages=*/2,
                                                     bf16, bf16, bf16, int32_t, typename Form::Variant>>;

  if (a->tile != TILE_Q) return -1;
  const auto elements = [](const void* p) { return static_cast<bf16*>(const_cast<void*>(p)); };
  Params p{};
  p.q_ptr = elements(a->q);
  p.k_ptr = elements(a->k_pages);
  p.v_ptr = elements(a->v_pages);
  p.o_ptr = elements(a->out);
  p.q_stride_n = p.o_stride_n = int64_t(a->q_heads) * D;
  p.q_stride_h = p.o_stride_h = D;
  p.k_stride_h = p.v_stride_h = a->kv_stride;
  p.k_stride_n = p.v_stride_n = int64_t(a->kv_heads) * a->kv_stride;
  p.k_page_stride = p.v_page_stride = p.k_stride_n * a->page_size;
  p.nnz_qo = a->rows;
  p.num_qo_heads = a->q_heads;
  p.num_kv_heads = a->kv_heads;
  p.group_size = a->q_heads / a->kv_heads;
  p.page_size = a->page_size;
  Form::set(p, a);
  p.causal = true;
  p.additional_params.sm_scale = a->scale;
  p.kv_indices = const_cast<int32_t*>(a->pages);

  // The work lists, one after the other.
  int32_t* list = const_cast<int32_t*>(a->work);
  p.work_indptr = const_cast<int32_t*>(a->work_starts);
  p.qo_tile_indices = list;
  p.head_indices = list += a->work_len;
  p.qo_indptr = list += a->work_len;
  p.qo_lens = list += a->work_len;
  p.kv_indptr = list += a->work_len;
  p.kv_lens = list += a->work_len;
  p.batch_indices = p.head_indices;  // Read, and used for nothing here.

  return BatchPrefillWithPagedKVCacheKernelTraitsDispatched<Traits, Form::WINDOW, /*causal=*/true,
                                                            /*same_schedule_for_all_heads=*/false, Params>(
      p, static_cast<cudaStream_t>(stream));
} catch (...) {
  return -1;  // No exception crosses the fence.
}

}  // namespace minisgl
