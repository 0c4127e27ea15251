// `fa_run.cuh` for layers whose rows see a window, or whose heads have a sink: FlashInfer's template with its window and
// a softmax of its own, so that layers without either run what they would without this.
//
//   out[r, h] = softmax(scale * q[r, h] . K^T, sink[h]) V     over the last `window` tokens up to r's own
//
// The sink's probability belongs to no value. It is a natural logarithm, the template's are to base 2. Pages before the
// window of a tile's first row are not in the piece of work (src/attention/work.rs), and so not read. They must not be: as the
// values of the first tile of keys that it takes, which may be a tile before the window, the template reads those of tile 0
// (flashinfer-python 0.7.2.post1, hopper/sparse_mainloop.cuh, "load first v tile"), and 0 * NaN is NaN.
#include "fa_run.cuh"

namespace minisgl {

// All rows of a tile are of one head.
template <int ROWS>
struct SinkSoftmax : flashinfer::OnlineSoftmax<ROWS, /*WITH_SCALE=*/true> {
  using Base = flashinfer::OnlineSoftmax<ROWS, true>;
  float sink;  // To base 2; -inf for none.

  CUTLASS_DEVICE SinkSoftmax(float scale, float sink) : Base(scale), sink(sink) {}

  template <typename Scores>
  __forceinline__ __device__ void finalize(Scores& scores, float pv_scale = 1.0f) {
    Base::finalize(scores, pv_scale);  // Leaves log2 of the sum of weights in row_sum.
#pragma unroll
    for (int row = 0; row < ROWS; row++) {
      this->scores_scale(row) /= 1.0f + exp2f(sink - this->row_sum(row));
    }
  }
};

struct FaWindowAttention : flashinfer::StandardAttention {
  float sink;

  template <typename MainloopParams, typename BlockCoord>
  __device__ FaWindowAttention(const MainloopParams& params, const BlockCoord& coord)
      : flashinfer::StandardAttention(params, coord) {
    const auto head = cute::get<1>(coord);
    const cutlass::bfloat16_t* sinks = params.additional_params.sinks;
    sink = sinks == nullptr ? -INFINITY : float(sinks[head]) * flashinfer::math::log2e;
  }

  template <int ROWS>
  __device__ auto GetAttentionUpdater() {
    return SinkSoftmax<ROWS>(sm_scale_log2, sink);
  }
};

struct FaWindow {
  static constexpr bool WINDOW = true;
  using Variant = FaWindowAttention;

  struct Params : FaAll::Params {
    struct AdditionalParams : FaAll::Params::AdditionalParams {
      const cutlass::bfloat16_t* sinks;  // [q_heads], or null
    } additional_params;
  };

  static void set(Params& p, const minisgl_fa_args* a) {
    p.window_left = a->window_left;
    p.additional_params.sinks = reinterpret_cast<const cutlass::bfloat16_t*>(a->sinks);
  }
};

}  // namespace minisgl

extern "C" int minisgl_fa_window_64(const minisgl_fa_args* args, void* stream) {
  return minisgl::fa_run<64, 192, 96, minisgl::FaWindow>(args, stream);
}

extern "C" int minisgl_fa_window_128(const minisgl_fa_args* args, void* stream) {
  return minisgl::fa_run<128, 128, 96, minisgl::FaWindow>(args, stream);
}

extern "C" int minisgl_fa_window_256(const minisgl_fa_args* args, void* stream) {
  return minisgl::fa_run<256, 128, 64, minisgl::FaWindow>(args, stream);
}
