// Attention backend `fi`: causal attention over a paged cache by FlashInfer's FA2-style template (Ye et
// al., "FlashInfer", MLSys 2025; Apache-2.0, used through its headers).
//
//   out[r, h] = softmax(scale * q[r, h] . K^T) V     over all tokens of r's request up to r's own
//
// In the form of `fi_window.cuh` over the last of them alone, and with one more logit a head, a sink, in the softmax.
// Shapes: q, out bf16 [rows, q_heads, D], pages bf16, fp16 or fp8 (e4m3) [pages, page_size, kv_heads, D] or with
// heads less than D apart; f32 inside. The template multiplies in the type of q, and converts pages of one
// byte, so pages of fp16 want q in fp16. Rows of one request are its last ones. Decode and prefill share the template: a tile of 16, 64 or 128 rows
// holds the queries of a group, and long contexts are split over blocks and merged.
// Bytes moved: every live K and V once. Decode is held to read bandwidth, prefill to matrix units.
// Measured (H100 80GB HBM3, 2026-11-21, `gpu --bench`), D = 128, page_size 16, mixed lengths: 94 % of copy
// bandwidth (2.82 TB/s) at 256 requests, 71 % at 32, 12 % at one of 1,000 tokens.
#pragma once

#include "../attention.h"

#include <flashinfer/attention/default_prefill_params.cuh>
#include <flashinfer/attention/prefill.cuh>
#include <flashinfer/attention/scheduler.cuh>
#include <flashinfer/attention/variants.cuh>

#include <vector>

namespace minisgl {

// Every token up to a row's own.
template <typename Q, typename Kv>
struct FiAll {
  using Params = flashinfer::BatchPrefillPagedParams<Q, Kv, __nv_bfloat16, int32_t>;
  using Variant = flashinfer::DefaultAttention</*custom_mask=*/false, /*window=*/false, /*soft_cap=*/false, /*alibi=*/false>;

  static void set(Params&, const minisgl_fi_args*) {}
};

template <uint32_t D, typename Q, typename Kv, typename Form = FiAll<Q, Kv>>
int fi_run(const minisgl_fi_args* a, const int64_t* plan, void* stream) try {
  using namespace flashinfer;
  using bf16 = __nv_bfloat16;
  using Params = typename Form::Params;
  using Variant = typename Form::Variant;

  PrefillPlanInfo info;
  info.FromVector(std::vector<int64_t>(plan, plan + MINISGL_FI_PLAN_WORDS));
  const auto elements = [](const void* p) { return static_cast<Kv*>(const_cast<void*>(p)); };
  const int64_t of_token = int64_t(a->kv_heads) * a->kv_stride;
  const int64_t strides[] = {of_token * a->page_size, of_token, a->kv_stride};
  paged_kv_t<Kv, int32_t> cache(a->kv_heads, a->page_size, D, a->requests, QKVLayout::kNHD,
                                elements(a->k_pages), elements(a->v_pages), strides,
                                const_cast<int32_t*>(a->pages), const_cast<int32_t*>(a->page_starts),
                                const_cast<int32_t*>(a->last_page_len));
  Params params(static_cast<Q*>(const_cast<void*>(a->q)), cache, /*custom_mask=*/nullptr, const_cast<int32_t*>(a->q_starts),
                nullptr, nullptr, a->out, /*lse=*/nullptr, nullptr, a->q_heads, a->q_heads * D, D,
                /*window_left=*/-1, /*soft_cap=*/0.0f, a->scale, 1.0f, 1e4f);
  Form::set(params, a);

  // What the plan put into the workspaces.
  const auto ints = [&](int64_t at) { return GetPtrFromBaseOffset<int32_t>(a->int_workspace, at); };
  params.request_indices = ints(info.request_indices_offset);
  params.qo_tile_indices = ints(info.qo_tile_indices_offset);
  params.kv_tile_indices = ints(info.kv_tile_indices_offset);
  params.o_indptr = ints(info.o_indptr_offset);
  params.kv_chunk_size_ptr = ints(info.kv_chunk_size_ptr_offset);
  params.padded_batch_size = info.padded_batch_size;
  params.max_total_num_rows = info.total_num_rows;
  bf16* partial = nullptr;
  float* partial_lse = nullptr;
  if (info.split_kv) {
    params.merge_indptr = ints(info.merge_indptr_offset);
    partial = GetPtrFromBaseOffset<bf16>(a->float_workspace, info.v_offset);
    partial_lse = GetPtrFromBaseOffset<float>(a->float_workspace, info.s_offset);
  }
  if (info.enable_cuda_graph) {
    params.total_num_rows = GetPtrFromBaseOffset<uint32_t>(a->int_workspace, info.total_num_rows_offset);
    params.block_valid_mask = GetPtrFromBaseOffset<bool>(a->int_workspace, info.block_valid_mask_offset);
  }

  const auto run = [&](auto tile) -> int {
    return BatchPrefillWithPagedKVCacheDispatched</*same_kv_strides=*/true, decltype(tile)::value, D, D,
                                                  PosEncodingMode::kNone, /*fp16_qk=*/false,
                                                  MaskMode::kCausal, Variant, Params>(
        params, partial, partial_lse, a->dependent != 0, static_cast<cudaStream_t>(stream));
  };
  switch (info.cta_tile_q) {
    case 16: return run(std::integral_constant<uint32_t, 16>{});
    case 64: return run(std::integral_constant<uint32_t, 64>{});
    case 128:
      if constexpr (D < 256) return run(std::integral_constant<uint32_t, 128>{});
      [[fallthrough]];
    default: return -1;
  }
} catch (...) {
  return -1;  // No exception crosses the fence.
}

}  // namespace minisgl

#define FI_RUN(NAME, D, Q, KV)                                                                       \
  extern "C" int NAME(const minisgl_fi_args* args, const int64_t* plan, void* stream) {             \
    return minisgl::fi_run<D, Q, KV>(args, plan, stream);                                            \
  }
