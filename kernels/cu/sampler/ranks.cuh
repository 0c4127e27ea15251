// The GPUs that share one row of logits, each with some of the columns: what they tell each other is one number a
// rank, lists that are short, and the token.
//
// A message carries its turn, so that its arrival is its own signal. (The idea is NCCL's "LL" protocol's.) The
// clusters of one index work on the same rows in the same order on all ranks, and so count the same turns. A
// place is written again two turns of its kind later at the earliest: the sender has then been told something by
// a block all of whose threads had read it.
#pragma once

#include "../peers/meet.cuh"
#include "list.cuh"

namespace minisgl {

static_assert(LIST_MAX == MINISGL_MAIL_LIST && CLUSTER_MAX == MINISGL_MAIL_BLOCKS);

// A rank that has all columns.
struct Alone {
  const minisgl_sample_args& a;

  static constexpr bool JOINED = false;

  __device__ Alone(const minisgl_sample_args& a, const void*) : a(a) {}
  __device__ void begin() {}
  __device__ void end() const {}
  __device__ uint32_t first() const { return 0; }
  __device__ uint32_t columns() const { return a.vocab; }
  __device__ uint64_t max(uint64_t of_rank) { return of_rank; }
  __device__ uint64_t sum(uint64_t of_rank, uint64_t&) { return of_rank; }
  __device__ float bound(List& list, uint32_t count) { return list.bound(count); }
  __device__ float bound_of_many(List& list) { return list.bound(Exchange::len() / 2); }
  __device__ void join(List&, uint32_t) const {}
  __device__ bool is_mine(uint64_t) const { return true; }
  __device__ void send_token(uint32_t) const {}
  __device__ uint32_t receive_token(uint64_t) const { return 0; }
  __device__ float raw_logit(uint32_t row, uint32_t token) const { return a.logits[size_t(row) * a.stride + token]; }
};

// One among several.
struct Ranks {
  const minisgl_sample_ranks_args& a;
  uint32_t cluster;
  uint32_t turn;
  uint64_t told;   // By the rank of this lane's number; 0 past the last.

  static constexpr bool JOINED = true;

  __device__ Ranks(const minisgl_sample_args&, const minisgl_sample_ranks_args* ranks)
      : a(*ranks), cluster(blockIdx.x / Cluster::size()), turn(0), told(0) {}

  // The turns go on from launch to launch. Before blocks of the cluster meet, and after their last meeting.
  __device__ void begin() { turn = a.turns[cluster]; }
  __device__ void end() const {
    if (Cluster::rank() == 0 && threadIdx.x == 0) a.turns[cluster] = turn;
  }

  __device__ uint32_t rank() const { return a.peers.rank; }
  __device__ uint32_t ranks() const { return a.peers.ranks; }
  __device__ uint32_t first() const { return a.start[rank()]; }
  __device__ uint32_t columns() const { return a.start[rank() + 1] - a.start[rank()]; }

  __device__ __forceinline__ void send(minisgl_mail_line& to, uint64_t x) const {
    asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %2};" ::"l"(&to), "r"(static_cast<uint32_t>(x)),
                 "r"(turn), "r"(static_cast<uint32_t>(x >> 32))
                 : "memory");
  }
  __device__ __forceinline__ uint64_t receive(const minisgl_mail_line& from, uint32_t peer) const {
    const uint64_t began = nanoseconds();
    for (uint32_t tries = 1;; tries++) {
      uint4 line;
      asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(line.x), "=r"(line.y), "=r"(line.z), "=r"(line.w)
                   : "l"(&from)
                   : "memory");
      if (line.y == turn && line.w == turn) return uint64_t(line.z) << 32 | line.x;
      if (tries % 1024 == 0 && nanoseconds() - began > a.peers.patience_ns) Meeting(a.peers, turn).give_up(peer);
    }
  }

  // By all threads of all blocks, which know the same of their rank: every warp gets what all ranks know. Between
  // two calls the threads of a block meet.
  __device__ __forceinline__ void tell(uint64_t of_rank) {
    turn++;
    const uint32_t lane = threadIdx.x % 32;
    const bool is_peer = lane < ranks() && lane != rank();
    const auto place = [&](uint32_t of, uint32_t from) -> minisgl_mail_line& {
      return a.mail[of][cluster].number[Cluster::rank()][turn % 2][from];
    };
    if (is_peer && threadIdx.x < 32) send(place(lane, rank()), of_rank);
    told = lane == rank() ? of_rank : 0;
    if (is_peer) told = receive(place(rank(), lane), lane);
    __syncwarp();
  }

  __device__ __forceinline__ uint64_t max(uint64_t of_rank) {
    tell(of_rank);
    return max_warp(told);
  }
  // Adds the sum of the ranks before this one to `before`.
  __device__ __forceinline__ uint64_t sum(uint64_t of_rank, uint64_t& before) {
    tell(of_rank);
    before += sum_warp(threadIdx.x % 32 < rank() ? told : 0);
    return sum_warp(told);
  }

  // A logit that at least `count` tokens of all ranks reach: that many of one rank, or as many of each as it takes.
  __device__ __forceinline__ float bound(List& list, uint32_t count) {
    const bool by_one = count <= Exchange::len();
    if (!by_one) count = (count + ranks() - 1) / ranks();
    if (count > Exchange::len()) return -INFINITY;
    const uint32_t key = order_key(list.bound(count));
    const uint32_t highest = max(by_one ? key : ~key);
    return logit_of(uint64_t(by_one ? highest : ~highest) << TOKEN_BITS);
  }
  // One that many tokens reach, and not too many for a list: one rank may have most of those that count.
  __device__ __forceinline__ float bound_of_many(List& list) {
    return bound(list, ::min(Exchange::len() / 8 * 7, LIST_MAX / 8));
  }

  // By the first block of every rank, when the last number told was the length of its list: adds the others'.
  __device__ __forceinline__ void join(List& list, uint32_t own) const {
    uint32_t end = own;
    for (uint32_t i = threadIdx.x; i < own * ranks(); i += threads()) {
      const uint32_t peer = i / own, at = i % own;
      if (peer != rank()) send(a.mail[peer][cluster].list[rank()][at], list.rank[at]);
    }
    for (uint32_t peer = 0; peer < ranks(); peer++) {
      const uint32_t theirs = __shfl_sync(~0u, static_cast<uint32_t>(told), peer);
      if (peer == rank()) continue;
      for (uint32_t i = threadIdx.x; i < theirs; i += threads()) {
        list.rank[end + i] = receive(a.mail[rank()][cluster].list[peer][i], peer);
      }
      end += theirs;
    }
    __syncthreads();
  }

  // The rank among whose tokens the target is found, where ranks told the sums over theirs.
  __device__ __forceinline__ uint32_t owner(uint64_t target) const {
    return __ffs(__ballot_sync(~0u, target < scan_warp(told))) - 1;
  }
  __device__ __forceinline__ bool is_mine(uint64_t target) const { return owner(target) == rank(); }
  // By the thread that found it.
  __device__ __forceinline__ void send_token(uint32_t token) const {
    for (uint32_t peer = 0; peer < ranks(); peer++) {
      if (peer != rank()) send(a.mail[peer][cluster].token[rank()], token);
    }
  }
  // By a warp of a rank that it is not found on.
  __device__ __forceinline__ uint32_t receive_token(uint64_t target) const {
    const uint32_t from = owner(target);
    return receive(a.mail[rank()][cluster].token[from], from);
  }

  __device__ const float* logits_of(uint32_t of, uint32_t row) const {
    return a.part[of] + size_t(row) * a.part_stride[of];
  }
  __device__ float raw_logit(uint32_t row, uint32_t token) const {
    uint32_t of = 0;
    while (token >= a.start[of + 1]) of++;
    return __ldcg(logits_of(of, row) + token - a.start[of]);
  }

  // This block's part of a row that this rank goes on with alone: all of its logits, clean. After all have told
  // something of this row.
  __device__ __forceinline__ Part whole(uint32_t row) const {
    __threadfence_system();
    const uint32_t vocab = a.sample.vocab;
    const uint32_t each = (vocab + Cluster::size() - 1) / Cluster::size();
    const uint32_t length = ((each + threads() - 1) / threads() | 1) * threads();
    const uint32_t begin = ::min(Cluster::rank() * length, vocab), end = ::min(begin + length, vocab);
    const uint32_t padded = (end - begin + 3) / 4 * 4;
    Part part(a.whole + size_t(cluster) * a.whole_stride + begin, begin, end - begin, padded, length / threads());
    for (uint32_t of = 0; of < ranks(); of++) {
      const float* logits = logits_of(of, row);
      const uint32_t last = ::min(a.start[of + 1], end);
#pragma unroll 8
      for (uint32_t token = ::max(a.start[of], begin) + threadIdx.x; token < last; token += threads()) {
        part.z[token - begin] = clean(__ldcg(logits + token - a.start[of]));
      }
    }
    for (uint32_t i = end - begin + threadIdx.x; i < padded; i += threads()) part.z[i] = -INFINITY;
    __syncthreads();
    return part;
  }
};

}  // namespace minisgl
