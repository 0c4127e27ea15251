//! The compiled kernels, loaded: each by its name in the header.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaFunction, DriverError, sys};
use cudarc::nvrtc::Ptx;

use crate::grid::Grid;

include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

macro_rules! kernels {
    ($($variant:ident = $source:literal $name:literal,)*) => {
        /// A kernel of this crate.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Kernel { $($variant),* }

        impl Kernel {
            /// In the order of the variants: the source file's stem and the kernel's name.
            const ALL: &[(Kernel, &str, &str)] = &[$((Kernel::$variant, $source, $name)),*];
        }
    };
}

kernels! {
    Embedding = "embedding" "minisgl_embedding",
    EmbeddingScaled = "embedding" "minisgl_embedding_scaled",
    CopyRuns = "copy_runs" "minisgl_copy_runs",
    Bring = "bring" "minisgl_bring",
    SiluMul = "silu_mul" "minisgl_silu_mul",
    GateMul = "gate_mul" "minisgl_gate_mul",
    RmsNorm1 = "rmsnorm" "minisgl_rmsnorm_1",
    RmsNorm2 = "rmsnorm" "minisgl_rmsnorm_2",
    RmsNorm1PlusOne = "rmsnorm" "minisgl_rmsnorm_1_plus_one",
    RmsNorm2PlusOne = "rmsnorm" "minisgl_rmsnorm_2_plus_one",
    AddNorm1 = "add_norm" "minisgl_add_norm_1",
    AddNorm2 = "add_norm" "minisgl_add_norm_2",
    QkRopePage64 = "qk_rope_page" "minisgl_qk_rope_page_64",
    QkRopePage64Fp16 = "qk_rope_page" "minisgl_qk_rope_page_64_fp16",
    QkRopePage64Fp8 = "qk_rope_page" "minisgl_qk_rope_page_64_fp8",
    QkRopePage96 = "qk_rope_page" "minisgl_qk_rope_page_96",
    QkRopePage96Fp16 = "qk_rope_page" "minisgl_qk_rope_page_96_fp16",
    QkRopePage96Fp8 = "qk_rope_page" "minisgl_qk_rope_page_96_fp8",
    QkRopePage128 = "qk_rope_page" "minisgl_qk_rope_page_128",
    QkRopePage128Fp16 = "qk_rope_page" "minisgl_qk_rope_page_128_fp16",
    QkRopePage128Fp8 = "qk_rope_page" "minisgl_qk_rope_page_128_fp8",
    QkRopePage256 = "qk_rope_page" "minisgl_qk_rope_page_256",
    QkRopePage256Fp16 = "qk_rope_page" "minisgl_qk_rope_page_256_fp16",
    QkRopePage256Fp8 = "qk_rope_page" "minisgl_qk_rope_page_256_fp8",
    QkRopePage64PlusOne = "qk_rope_page" "minisgl_qk_rope_page_64_plus_one",
    QkRopePage64Fp16PlusOne = "qk_rope_page" "minisgl_qk_rope_page_64_fp16_plus_one",
    QkRopePage64Fp8PlusOne = "qk_rope_page" "minisgl_qk_rope_page_64_fp8_plus_one",
    QkRopePage96PlusOne = "qk_rope_page" "minisgl_qk_rope_page_96_plus_one",
    QkRopePage96Fp16PlusOne = "qk_rope_page" "minisgl_qk_rope_page_96_fp16_plus_one",
    QkRopePage96Fp8PlusOne = "qk_rope_page" "minisgl_qk_rope_page_96_fp8_plus_one",
    QkRopePage128PlusOne = "qk_rope_page" "minisgl_qk_rope_page_128_plus_one",
    QkRopePage128Fp16PlusOne = "qk_rope_page" "minisgl_qk_rope_page_128_fp16_plus_one",
    QkRopePage128Fp8PlusOne = "qk_rope_page" "minisgl_qk_rope_page_128_fp8_plus_one",
    QkRopePage256PlusOne = "qk_rope_page" "minisgl_qk_rope_page_256_plus_one",
    QkRopePage256Fp16PlusOne = "qk_rope_page" "minisgl_qk_rope_page_256_fp16_plus_one",
    QkRopePage256Fp8PlusOne = "qk_rope_page" "minisgl_qk_rope_page_256_fp8_plus_one",
    SkinnyStream1x1 = "skinny_stream" "minisgl_skinny_stream_1_1",
    SkinnyStream2x1 = "skinny_stream" "minisgl_skinny_stream_2_1",
    SkinnyStream2x2 = "skinny_stream" "minisgl_skinny_stream_2_2",
    SkinnyHeld1x4 = "skinny_held" "minisgl_skinny_held_1_4",
    SkinnyHeld1x8 = "skinny_held" "minisgl_skinny_held_1_8",
    SkinnyHeld1x12 = "skinny_held" "minisgl_skinny_held_1_12",
    SkinnyHeld2x4 = "skinny_held" "minisgl_skinny_held_2_4",
    SkinnyHeld2x8 = "skinny_held" "minisgl_skinny_held_2_8",
    SkinnyHeld3x4 = "skinny_held" "minisgl_skinny_held_3_4",
    SkinnyHeld4x4 = "skinny_held" "minisgl_skinny_held_4_4",
    SkinnyStream1x1E4m3 = "skinny_stream_e4m3" "minisgl_skinny_stream_1_1_e4m3",
    SkinnyStream1x2E4m3 = "skinny_stream_e4m3" "minisgl_skinny_stream_1_2_e4m3",
    SkinnyStream2x1E4m3 = "skinny_stream_e4m3" "minisgl_skinny_stream_2_1_e4m3",
    SkinnyStream2x2E4m3 = "skinny_stream_e4m3" "minisgl_skinny_stream_2_2_e4m3",
    SkinnyHeld1x2E4m3 = "skinny_held_e4m3" "minisgl_skinny_held_1_2_e4m3",
    SkinnyHeld1x4E4m3 = "skinny_held_e4m3" "minisgl_skinny_held_1_4_e4m3",
    SkinnyHeld2x2E4m3 = "skinny_held_e4m3" "minisgl_skinny_held_2_2_e4m3",
    SkinnyHeld2x4E4m3 = "skinny_held_e4m3" "minisgl_skinny_held_2_4_e4m3",
    SkinnyHeld3x2E4m3 = "skinny_held_e4m3" "minisgl_skinny_held_3_2_e4m3",
    SkinnyHeld4x2E4m3 = "skinny_held_e4m3" "minisgl_skinny_held_4_2_e4m3",
    Gemv1 = "gemv" "minisgl_gemv_1",
    Gemv2 = "gemv" "minisgl_gemv_2",
    Gemv3 = "gemv" "minisgl_gemv_3",
    Gemv5 = "gemv" "minisgl_gemv_5",
    Medium8 = "medium" "minisgl_medium_8",
    Medium16 = "medium" "minisgl_medium_16",
    Medium32 = "medium" "minisgl_medium_32",
    Medium64 = "medium" "minisgl_medium_64",
    Narrow8 = "narrow" "minisgl_narrow_8",
    Narrow16 = "narrow" "minisgl_narrow_16",
    Narrow32 = "narrow" "minisgl_narrow_32",
    Narrow64 = "narrow" "minisgl_narrow_64",
    Broad64x1 = "broad" "minisgl_broad_64_1",
    Broad96x1 = "broad" "minisgl_broad_96_1",
    Broad128x1 = "broad" "minisgl_broad_128_1",
    Broad192x1 = "broad" "minisgl_broad_192_1",
    Broad64x2 = "broad" "minisgl_broad_64_2",
    Broad96x2 = "broad" "minisgl_broad_96_2",
    Broad128x2 = "broad" "minisgl_broad_128_2",
    Broad192x2 = "broad" "minisgl_broad_192_2",
    QuantiseBlocks = "quantise" "minisgl_quantise_blocks",
    Quantise1 = "quantise" "minisgl_quantise_1",
    Quantise2 = "quantise" "minisgl_quantise_2",
    Quantise4 = "quantise" "minisgl_quantise_4",
    WidenHeads = "widen_heads" "minisgl_widen_heads",
    Dummy = "dummy" "minisgl_dummy",
    DummyE4m3 = "dummy" "minisgl_dummy_e4m3",
    DummyE2m1 = "dummy" "minisgl_dummy_e2m1",
    SampleShared = "sample" "minisgl_sample_shared",
    SampleScratch = "sample" "minisgl_sample_scratch",
    SampleRanksShared = "sample" "minisgl_sample_ranks_shared",
    SampleRanksScratch = "sample" "minisgl_sample_ranks_scratch",
    DecodeBf16D64 = "decode_64" "minisgl_decode_bf16_64",
    DecodeFp16D64 = "decode_64" "minisgl_decode_fp16_64",
    DecodeFp8D64 = "decode_64" "minisgl_decode_fp8_64",
    DecodeBf16D96 = "decode_96" "minisgl_decode_bf16_96",
    DecodeFp16D96 = "decode_96" "minisgl_decode_fp16_96",
    DecodeFp8D96 = "decode_96" "minisgl_decode_fp8_96",
    DecodeBf16D128 = "decode_128" "minisgl_decode_bf16_128",
    DecodeFp16D128 = "decode_128" "minisgl_decode_fp16_128",
    DecodeFp8D128 = "decode_128" "minisgl_decode_fp8_128",
    DecodeBf16D256 = "decode_256" "minisgl_decode_bf16_256",
    DecodeFp16D256 = "decode_256" "minisgl_decode_fp16_256",
    DecodeFp8D256 = "decode_256" "minisgl_decode_fp8_256",
    DecodeWindowBf16D64 = "decode_window_64" "minisgl_decode_window_bf16_64",
    DecodeWindowFp16D64 = "decode_window_64" "minisgl_decode_window_fp16_64",
    DecodeWindowFp8D64 = "decode_window_64" "minisgl_decode_window_fp8_64",
    DecodeWindowBf16D96 = "decode_window_96" "minisgl_decode_window_bf16_96",
    DecodeWindowFp16D96 = "decode_window_96" "minisgl_decode_window_fp16_96",
    DecodeWindowFp8D96 = "decode_window_96" "minisgl_decode_window_fp8_96",
    DecodeWindowBf16D128 = "decode_window_128" "minisgl_decode_window_bf16_128",
    DecodeWindowFp16D128 = "decode_window_128" "minisgl_decode_window_fp16_128",
    DecodeWindowFp8D128 = "decode_window_128" "minisgl_decode_window_fp8_128",
    DecodeWindowBf16D256 = "decode_window_256" "minisgl_decode_window_bf16_256",
    DecodeWindowFp16D256 = "decode_window_256" "minisgl_decode_window_fp16_256",
    DecodeWindowFp8D256 = "decode_window_256" "minisgl_decode_window_fp8_256",
    AllReduce1 = "all_reduce" "minisgl_all_reduce_1",
    AllReduce2 = "all_reduce" "minisgl_all_reduce_2",
    AllReduceTwice1 = "all_reduce" "minisgl_all_reduce_twice_1",
    AllReduceTwice2 = "all_reduce" "minisgl_all_reduce_twice_2",
    Push1 = "push" "minisgl_push_1",
    Push2 = "push" "minisgl_push_2",
    Meet = "meet" "minisgl_meet",
    GatherColumns = "gather_columns" "minisgl_gather_columns",
    HistoryReset = "history" "minisgl_history_reset",
    ExpertsPack = "experts_pack" "minisgl_pack",
    Router = "experts_router" "minisgl_router",
    ExpertsChoose = "experts_place" "minisgl_choose",
    ExpertsPlace = "experts_place" "minisgl_place",
    ExpertsFew = "experts_few" "minisgl_experts_few",
    ExpertsManyUp = "experts_many" "minisgl_experts_many_up",
    ExpertsManyDown = "experts_many" "minisgl_experts_many_down",
    ExpertsGather = "experts_gather" "minisgl_gather",
    ExpertsCombine = "experts_combine" "minisgl_combine",
    AddShared = "experts_shared" "minisgl_add_shared",
    Fp8Few = "fp8_few" "minisgl_fp8_few",
    Fp8Gather = "fp8_gather" "minisgl_fp8_gather",
    Fp8ManyUpBlock = "fp8_many" "minisgl_fp8_many_up_block",
    Fp8ManyUpRow = "fp8_many" "minisgl_fp8_many_up_row",
    Fp8ManyDownBlock = "fp8_many" "minisgl_fp8_many_down_block",
    Fp8ManyDownRow = "fp8_many" "minisgl_fp8_many_down_row",
    Mxfp4Pack = "mxfp4_pack" "minisgl_mxfp4_pack",
    Mxfp4Few = "mxfp4_few" "minisgl_mxfp4_few",
    Mxfp4ManyUp32 = "mxfp4_many" "minisgl_mxfp4_many_up_32",
    Mxfp4ManyUp64 = "mxfp4_many" "minisgl_mxfp4_many_up_64",
    Mxfp4ManyUp128 = "mxfp4_many" "minisgl_mxfp4_many_up_128",
    Mxfp4ManyDown32 = "mxfp4_many" "minisgl_mxfp4_many_down_32",
    Mxfp4ManyDown64 = "mxfp4_many" "minisgl_mxfp4_many_down_64",
    Mxfp4ManyDown128 = "mxfp4_many" "minisgl_mxfp4_many_down_128",
}

/// Every kernel, ready to launch.
pub(crate) struct Kernels(Vec<CudaFunction>);

impl Kernel {
    /// Every kernel of one source.
    pub(crate) fn of_source(source: &str) -> impl Iterator<Item = Kernel> {
        Self::ALL.iter().filter(move |(_, from, _)| *from == source).map(|(kernel, ..)| *kernel)
    }
}

impl Kernels {
    /// Loads every fatbin. Compiles PTX where there is no machine code for this GPU.
    pub(crate) fn load(context: &Arc<CudaContext>) -> Result<Kernels, DriverError> {
        let mut modules = Vec::with_capacity(FATBINS.len());
        for (source, fatbin) in FATBINS {
            modules.push((*source, context.load_module(Ptx::from_binary(fatbin.to_vec()))?));
        }
        let load = |&(_, from, name): &(Kernel, &str, &str)| {
            let (_, module) = modules
                .iter()
                .find(|(source, _)| *source == from)
                .expect("build.rs embeds every source that a kernel names");
            module.load_function(name)
        };
        Ok(Kernels(Kernel::ALL.iter().map(load).collect::<Result<_, _>>()?))
    }

    pub(crate) fn get(&self, kernel: Kernel) -> &CudaFunction {
        &self.0[kernel as usize]
    }

    /// How many clusters of such a launch are on the GPU at once. The context must be bound.
    pub(crate) fn clusters_at_once(&self, kernel: Kernel, grid: Grid) -> Result<u32, DriverError> {
        let mut attributes = [sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue {
                clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 {
                    x: grid.cluster,
                    y: 1,
                    z: 1,
                },
            },
        }];
        let config = sys::CUlaunchConfig {
            gridDimX: grid.cluster,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: grid.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: grid.shared_bytes,
            hStream: std::ptr::null_mut(),
            attrs: attributes.as_mut_ptr(),
            numAttrs: 1,
        };
        let mut clusters = 0;
        // SAFETY: the function lives as long as `self`; the driver reads the config and writes the number.
        unsafe {
            let function = self.get(kernel).cu_function();
            sys::cuOccupancyMaxActiveClusters(&mut clusters, function, &config)
        }
        .result()?;
        Ok(clusters.max(0) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of an ELF file each function's code is a section of its own, and the names of sections are not compressed.
    fn section(name: &str) -> Vec<u8> {
        format!("\0.text.{name}\0").into_bytes()
    }

    fn has(fatbin: &[u8], name: &str) -> bool {
        let section = section(name);
        fatbin.windows(section.len()).any(|bytes| bytes == section)
    }

    #[test]
    fn every_kernel_is_in_an_embedded_source() {
        for (index, (kernel, source, name)) in Kernel::ALL.iter().enumerate() {
            assert_eq!(*kernel as usize, index);
            let (_, fatbin) = FATBINS.iter().find(|(of, _)| of == source).expect(source);
            assert!(has(fatbin, name), "{source}.cu has no kernel {name}");
        }
        // A name that is the beginning of another, or misspelt, is none.
        let (_, fatbin) = FATBINS.iter().find(|(of, _)| *of == "rmsnorm").unwrap();
        for wrong in ["minisgl_rmsnorm", "minisgl_rmsnorm_", "minisgl_rmsnorm_3"] {
            assert!(!has(fatbin, wrong), "{wrong}");
        }
    }
}
