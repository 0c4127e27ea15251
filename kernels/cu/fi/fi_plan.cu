// Attention backend `fi`: how FlashInfer cuts a batch up. Runs on the host, copies its work lists to the
// device on the stream.

#include "../attention.h"

#include <flashinfer/attention/scheduler.cuh>

#include <algorithm>
#include <vector>

extern "C" int minisgl_fi_plan(const minisgl_fi_plan_args* a, int64_t* plan, void* stream) try {
  // Rows of the range alone; pages are only counted.
  std::vector<int32_t> q_starts(a->q_starts, a->q_starts + a->requests + 1);
  for (int32_t& start : q_starts) start -= a->q_starts[0];
  flashinfer::PrefillPlanInfo info;
  const cudaError_t status = flashinfer::PrefillPlan<int32_t>(
      a->float_workspace, a->float_bytes, a->int_workspace, a->pinned, a->int_bytes, info,
      q_starts.data(), const_cast<int32_t*>(a->page_starts), a->rows, a->requests,
      a->q_heads, a->kv_heads, a->head_dim, a->head_dim, a->page_size, a->graph != 0,
      /*sizeof_dtype_o=*/2, /*window_left=*/a->window_left, /*fixed_split_size=*/-1, /*disable_split_kv=*/false,
      /*num_colocated_ctas=*/0, /*uniform_q_len=*/0, static_cast<cudaStream_t>(stream), a->kv_bytes);
  const auto words = info.ToVector();
  if (words.size() != MINISGL_FI_PLAN_WORDS) return -1;
  std::copy(words.begin(), words.end(), plan);
  return status;
} catch (...) {
  return -1;  // No exception crosses the fence.
}
