// Bias, penalties, bans and the mask, in place.
#pragma once

#include "part.cuh"

namespace minisgl {

// A row of logits with its request's parameters.
struct Row : minisgl_sample_row, minisgl_sample_params {
  __device__ __forceinline__ bool is_banned() const { return banned_len > 0 && position < banned_below; }
};

// What a row refers to outside the arrays is as if it were not there.
__device__ __noinline__ void adjust(const minisgl_sample_args& a, const Row& row, Part part) {
  const auto at = [&](uint32_t token) { return token - part.first; };
  part.tidy();
  if (uint64_t(row.bias_at) + row.bias_len <= a.bias_len) {
    for (uint32_t i = threadIdx.x; i < row.bias_len; i += threads()) {
      const uint32_t token = at(a.bias_tokens[row.bias_at + i]);
      if (token < part.count) part.z[token] = clean(__fadd_rn(part.z[token], a.bias_values[row.bias_at + i]));
    }
    __syncthreads();
  }
  if (static_cast<uint32_t>(row.history) < a.tables) {
    const uint32_t* marks = a.marks + size_t(row.history) * a.vocab + part.first;
    for (uint32_t i = threadIdx.x; i < part.count; i += threads()) {
      const uint32_t mark = marks[i];
      if (mark == 0) continue;
      float z = part.z[i];
      const float repetition = row.repetition_penalty;
      z = clean(z > 0.0f ? __fdiv_rn(z, repetition) : __fmul_rn(z, repetition));
      if (mark > 1) {
        const float frequency = __fmul_rn(row.frequency_penalty, static_cast<float>(mark / 2));
        z = clean(__fsub_rn(__fsub_rn(z, row.presence_penalty), frequency));
      }
      part.z[i] = z;
    }
    __syncthreads();
  }
  if (row.is_banned() && uint64_t(row.banned_at) + row.banned_len <= a.banned_len) {
    for (uint32_t i = threadIdx.x; i < row.banned_len; i += threads()) {
      const uint32_t token = at(a.banned[row.banned_at + i]);
      if (token < part.count) part.z[token] = -INFINITY;
    }
    __syncthreads();
  }
  if (static_cast<uint32_t>(row.mask) < a.masks_len) {
    const uint32_t* mask = a.masks + size_t(row.mask) * ((a.vocab + 31) / 32);
    for (uint32_t i = threadIdx.x; i < part.count; i += threads()) {
      const uint32_t token = part.first + i;
      if (!(mask[token / 32] >> token % 32 & 1)) part.z[i] = -INFINITY;
    }
    __syncthreads();
  }
  part.written();
}

}  // namespace minisgl
