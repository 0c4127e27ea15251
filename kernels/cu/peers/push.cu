// The sum of `all_reduce.cu` for few rows, in the time of one way over the link.
//
// Every rank writes its delta into an inbox of each peer, unless the product that made it has done so already, and
// takes what came into its own: what has arrived tells so itself, by not being EMPTY any more. (The idea is NCCL's "LL" protocol's and TensorRT-LLM's "Lamport" sums'.)
//
// Shapes: bf16 [rows, hidden]; inboxes [ranks, inbox_rows, hidden], one for each of the three deltas. Whoever takes
// a value leaves EMPTY in its place. A peer writes there again two sums later at the earliest: it has then
// taken what this rank sent for the sum between, which this rank sent after it had emptied the place.
// Bound: the latency of the link.

#include "row.cuh"

using namespace minisgl;

namespace {

__device__ __forceinline__ void send8(minisgl_bf16* to, const Vec8& v) {
  uint4 bits = *reinterpret_cast<const uint4*>(&v);
  bits = make_uint4(not_empty(bits.x), not_empty(bits.y), not_empty(bits.z), not_empty(bits.w));
  asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(bits.x), "r"(bits.y), "r"(bits.z),
               "r"(bits.w)
               : "memory");
}

__device__ __forceinline__ uint4 look(const minisgl_bf16* at) {
  uint4 bits;
  asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w)
               : "l"(at)
               : "memory");
  return bits;
}

__device__ __forceinline__ bool is_whole(const uint4& bits) {
  // Halves may come one by one, from a product.
  return (__vcmpeq2(bits.x, EMPTY) | __vcmpeq2(bits.y, EMPTY) | __vcmpeq2(bits.z, EMPTY) | __vcmpeq2(bits.w, EMPTY)) == 0;
}

// Waits for a peer's vector, and empties its place.
__device__ __forceinline__ Vec8 take(minisgl_bf16* at, const Meeting& meeting, uint32_t peer) {
  uint4 bits = look(at);
  const uint64_t begin = nanoseconds();
  for (uint32_t tries = 1; !is_whole(bits); tries++) {
    if (tries % 1024 == 0 && nanoseconds() - begin > meeting.peers.patience_ns) meeting.give_up(peer);
    bits = look(at);
  }
  asm volatile("st.volatile.global.v4.u32 [%0], {%1, %1, %1, %1};" ::"l"(at), "r"(EMPTY) : "memory");
  return *reinterpret_cast<const Vec8*>(&bits);
}

template <int VECTORS>
__device__ __forceinline__ void push(const minisgl_push_args& a) {
  __shared__ float shared[2][32];
  const minisgl_all_reduce_args& sum = a.sum;
  Norm<VECTORS> norm(sum, shared);
  let_next_start();
  wait_for_inputs();
  const Meeting meeting(sum.peers, 0);
  const uint32_t ranks = sum.peers.ranks, rank = sum.peers.rank, hidden = sum.hidden;
  const size_t of_rank = size_t(a.inbox_rows) * hidden;
  for (uint32_t row = blockIdx.x; row < sum.rows; row += gridDim.x) {
    const size_t first = size_t(row) * hidden;
    Row<VECTORS> own, residual;
    own.load(sum.delta[rank] + first, hidden);
    for (uint32_t i = 1; i < ranks && !a.sent; i++) {
      minisgl_bf16* inbox = a.inbox[(rank + i) % ranks] + rank * of_rank + first;
      Row<VECTORS>::each(hidden, [&](int v, uint32_t at) { send8(inbox + at, own.of[v]); });
    }
    if (sum.add) residual.load(sum.residual + first, hidden);
    Row<VECTORS>::each(hidden, [&](int v, uint32_t at) {
      float all[VEC] = {}, one[VEC];
      if (sum.add) unpack(residual.of[v], all);
      for (uint32_t peer = 0; peer < ranks; peer++) {
        const bool is_own = peer == rank;
        const Vec8 part = is_own ? own.of[v] : take(a.inbox[rank] + peer * of_rank + first + at, meeting, peer);
        unpack(part, one);
#pragma unroll
        for (uint32_t i = 0; i < VEC; i++) all[i] += one[i];
      }
      residual.of[v] = pack(all);
    });
    residual.store(sum.residual + first, hidden);
    norm(residual, first);
  }
}

}  // namespace

KERNEL __launch_bounds__(1024) minisgl_push_1(const __grid_constant__ minisgl_push_args a) { push<1>(a); }
KERNEL __launch_bounds__(1024) minisgl_push_2(const __grid_constant__ minisgl_push_args a) { push<2>(a); }
