// Orders between the warps of FlashInfer's Hopper template that it lacks (flashinfer-python 0.7.2.post1), added through
// its traits. Its numbers and the rest of its schedule stay its own.
#pragma once

#include "cutlass_utils.cuh"

#include <flashinfer/attention/hopper/prefill_sm90.cuh>

namespace minisgl {

// The template copies K and V into shared memory by cp.async, which writes through the generic proxy, and
// multiplies from there by wgmma, which reads through the async proxy. PTX asks for a fence between the two
// (PTX ISA 9.0, "Proxies"); the template has none (hopper/mainloop_mma.cuh).
// Here it stands where a consumer has seen that a stage is full.
template <int STAGES>
struct FencedPipeline : cutlass::PipelineAsync<STAGES> {
  using Base = cutlass::PipelineAsync<STAGES>;
  using Base::Base;

  template <typename... Args>
  CUTLASS_DEVICE void consumer_wait(Args... args) {
    Base::consumer_wait(args...);
    cutlass::arch::fence_view_async_shared();
  }
};

// Where a block walks several tiles, the values of the next one take the place of the output in shared memory. The
// template has one lane say that the output was read, for all warps: where its warpgroups do not take turns, the others
// may be reading yet. Here every thread says so for itself, and the lane's word is one more.
template <int THREADS>
struct OutputRead : cutlass::arch::ClusterBarrier {
  CUTLASS_DEVICE void init(uint32_t) const { ClusterBarrier::init(THREADS + 1); }
};

template <typename Base>
struct OrderedTraits : Base {
  using MainloopPipeline = FencedPipeline<Base::NUM_STAGES>;
  struct SharedStorage : Base::SharedStorage {
    OutputRead<Base::NUM_MMA_THREADS> barrier_O;  // In the place of the template's.
  };
};

}  // namespace minisgl

namespace flashinfer {

// Each warp puts its rows of the output into shared memory, and all warps carry them from there to `out`, whoever's rows
// they are. In the template (hopper/epilogue.cuh) every thread arrives at a barrier in between and then waits at the same
// one, whose count is that of the threads: it opens once half of them have done both, and what they read may not have
// been written yet. Here each thread arrives once.
template <typename Base>
struct CollectiveEpilogue<minisgl::OrderedTraits<Base>> : CollectiveEpilogue<Base> {
  using Template = CollectiveEpilogue<Base>;

  // Nobody asks for `lse`.
  template <typename BlockCoord, typename SharedStorage, typename FrgTensorO, typename FrgTensorLSE, typename TiledMma>
  CUTLASS_DEVICE void store(typename Template::Params const& params, FrgTensorO const& sums, FrgTensorLSE const& lse,
                            SharedStorage& shared, TiledMma tiled_mma, int thread, BlockCoord const& coord) {
    using cutlass::arch::NamedBarrier;
    constexpr int THREADS = Template::NUM_MMA_THREADS;
    auto [tile, head, kv_head, first_row, first_page, rows, tokens, request] = coord;

    Tensor tile_shared = make_tensor(make_smem_ptr(shared.smem_o.data()), typename Template::SmemLayoutO{});
    auto copy_to_shared = make_tiled_copy_C(typename Template::SmemCopyAtomO{}, tiled_mma);
    auto share = copy_to_shared.get_thread_slice(thread);
    Tensor rounded = convert_type<typename Template::DTypeO>(sums);

    // All have multiplied with the values that the output takes the place of.
    NamedBarrier::sync(THREADS, static_cast<int>(NamedBarriers::kValueEmpty));
    cute::copy(copy_to_shared, share.retile_S(rounded), share.partition_D(tile_shared));
    NamedBarrier::sync(THREADS, cutlass::arch::ReservedNamedBarriers::EpilogueBarrier);
    write_tiled<Template::NUM_COPY_THREADS>(params.O_ptr, typename Template::TiledCopyO{}, params.layout_O,
                                            select<0, 1>(typename Template::TileShape_PDV{}), tile_shared, thread, tile,
                                            head, first_row, rows);
    shared.barrier_O.arrive();
  }
};

}  // namespace flashinfer
