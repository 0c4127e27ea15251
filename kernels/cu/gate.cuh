// What stands between the two projections of a feed-forward block.
#pragma once

#include "common.cuh"

namespace minisgl {

// Of the gate and of `up`, by kind, MINISGL_GATE_:
//   silu      gate / (1 + exp(-gate)) * up                                       (SwiGLU: Shazeer, 2020)
//   clamped   g / (1 + exp(-1.702 g)) * (u + 1), g = min(gate, 7), u = up within 7 of 0            (gpt-oss)
//   gelu      gate / 2 * (1 + tanh(sqrt(2 / pi) (gate + 0.044715 gate^3))) * up  (Hendrycks and Gimpel, 2016)
// 1 + tanh(x) is 2 / (1 + exp(-2 x)). Divisions are to 2 ulp: outputs are rounded to bf16. Where 1 + exp(-x) is beyond 2^126 they
// are 0, as good as what they should be.
__device__ __forceinline__ float gate_of(float gate, float up, uint32_t kind) {
  if (kind == MINISGL_GATE_SILU) return __fdividef(gate, 1.0f + __expf(-gate)) * up;
  if (kind == MINISGL_GATE_CLAMPED) {
    gate = gate > 7.0f ? 7.0f : gate;
    up = up > 7.0f ? 7.0f : up < -7.0f ? -7.0f : up;
    return __fdividef(gate, 1.0f + __expf(-1.702f * gate)) * (up + 1.0f);
  }
  const float inner = 0.7978845608f * (gate + 0.044715f * gate * gate * gate);
  return __fdividef(gate, 1.0f + __expf(-2.0f * inner)) * up;
}

// The same of what was not stored yet, rounded as if it had been.
__device__ __forceinline__ minisgl_bf16 gated(float gate, float up, uint32_t kind) {
  gate = __bfloat162float(__float2bfloat16_rn(gate));
  up = __bfloat162float(__float2bfloat16_rn(up));
  return __float2bfloat16_rn(gate_of(gate, up, kind));
}

}  // namespace minisgl
