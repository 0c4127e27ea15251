// `fi_run.cuh` for layers whose rows see a window, or whose heads have a sink: FlashInfer's template with a variant of
// its own, so that layers without either run what they would without this.
//
//   out[r, h] = softmax(scale * q[r, h] . K^T, sink[h]) V     over the last `window` tokens up to r's own
//
// The sink's probability belongs to no value. It is a natural logarithm, the template's are to base 2.
#pragma once

#include "fi_run.cuh"

namespace minisgl {

// Where a context is cut, the first of its pieces has the sink.
struct FiWindowAttention : flashinfer::DefaultAttention</*custom_mask=*/false, /*window=*/true, /*soft_cap=*/false,
                                                        /*alibi=*/false> {
  using Base = flashinfer::DefaultAttention<false, true, false, false>;
  using Base::Base;

  template <typename Params, typename M>
  __device__ __forceinline__ void update_m_d(const Params& params, uint32_t kv_tile_idx, uint32_t qo_head_idx, M& m,
                                             float& d, float& scale) {
    scale = 1.0f;
    // Rows of a tile that are no rows of the batch have heads that are none.
    if (params.sinks == nullptr || kv_tile_idx != 0 || qo_head_idx >= params.num_qo_heads) return;
    const float sink = __bfloat162float(params.sinks[qo_head_idx]) * flashinfer::math::log2e;
    const float most = fmaxf(m, sink);
    scale = flashinfer::math::ptx_exp2(m - most);
    d = d * scale + flashinfer::math::ptx_exp2(sink - most);
    m = most;
  }

  template <typename Params, typename T, typename M>
  __device__ __forceinline__ T OutputTransform(const Params&, T output, uint32_t, uint32_t, uint32_t, M& m, float& d,
                                               float scale) {
    return output * (m != -flashinfer::math::inf ? scale * flashinfer::math::ptx_rcp(d) : 0.0f);
  }
};

template <typename Q, typename Kv>
struct FiWindow {
  struct Params : flashinfer::BatchPrefillPagedParams<Q, Kv, __nv_bfloat16, int32_t> {
    using flashinfer::BatchPrefillPagedParams<Q, Kv, __nv_bfloat16, int32_t>::BatchPrefillPagedParams;
    const __nv_bfloat16* sinks = nullptr;  // [q_heads], or null
  };
  using Variant = FiWindowAttention;

  static void set(Params& params, const minisgl_fi_args* a) {
    params.window_left = a->window_left;
    params.sinks = a->sinks;
  }
};

}  // namespace minisgl

#define FI_WINDOW(NAME, D, Q, KV)                                                                    \
  extern "C" int NAME(const minisgl_fi_args* args, const int64_t* plan, void* stream) {             \
    return minisgl::fi_run<D, Q, KV, minisgl::FiWindow<Q, KV>>(args, plan, stream);                  \
  }
