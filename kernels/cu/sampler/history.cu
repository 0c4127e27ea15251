// Starts a request's token counts, which penalties look at.
//
//   marks[t] = 2 * (times t is in tokens[prompt_len..]) + (t is in tokens[..prompt_len])
//
// Shapes: tokens u32 [len], marks u32 [vocab], zeros before. Ids outside the vocabulary are ignored. Bytes
// moved: 4 * len read and up to 8 * len in atomics; runs once a request, not once a step.

#include "../common.cuh"

using namespace minisgl;

KERNEL minisgl_history_reset(const __grid_constant__ minisgl_history_reset_args a) {
  wait_for_inputs();
  let_next_start();
  const uint32_t at = blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= a.len) return;
  const uint32_t token = a.tokens[at];
  if (token >= a.vocab) return;
  if (at < a.prompt_len) {
    atomicOr(a.marks + token, 1);
  } else {
    atomicAdd(a.marks + token, 2);
  }
}
