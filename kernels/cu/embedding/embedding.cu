// Embedding lookup.
//
//   out[r, :] = table[id(r) - vocab_start, :]          id(r) = tokens[r], or fed[-tokens[r] - 1] if < 0
//
// In minisgl_embedding_scaled times a scale, in f32, rounded once.
//
// Shapes: tokens i32 [rows], fed i32 [fed_len], table bf16 [vocab_len, hidden], out bf16 [rows, hidden].
// A negative token stands for one that the step before sampled, so it never visits the host. Ids that
// this shard of the table does not hold give zeros, which the all-reduce of a vocabulary-parallel
// embedding adds up.
// Bytes moved: 4 * rows * hidden (half read, half written). Bound: copy bandwidth.
// Measured (H100 80GB HBM3, 2026-11-21, `gpu --bench`), hidden 4096: 85 % at 4,096 rows; 1.2 us at 1 row.

#include "../common.cuh"

using namespace minisgl;

template <bool SCALED>
__device__ __forceinline__ void embedding(const minisgl_embedding_args& a) {
  wait_for_inputs();
  let_next_start();

  const VectorAt at(a.hidden);
  if (at.row >= a.rows) return;

  int32_t id = a.tokens[at.row];
  if (id < 0) {
    const uint32_t from = -(id + 1);
    id = from < a.fed_len ? a.fed[from] : -1;
  }

  const uint32_t local = static_cast<uint32_t>(id) - a.vocab_start;
  Vec8 v = {};
  if (id >= 0 && local < a.vocab_len) v = load8(a.table + at.in(a.hidden, local));
  if constexpr (SCALED) {
    float f[VEC];
    unpack(v, f);
#pragma unroll
    for (int i = 0; i < VEC; i++) f[i] *= a.scale;
    v = pack(f);
  }
  store8(a.out + at.in(a.hidden), v);
}

KERNEL minisgl_embedding(const __grid_constant__ minisgl_embedding_args a) { embedding<false>(a); }
KERNEL minisgl_embedding_scaled(const __grid_constant__ minisgl_embedding_args a) { embedding<true>(a); }
