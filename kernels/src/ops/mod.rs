//! One launcher an op: a struct of its arguments with `launch`.
//!
//! Every array is dense and row-major; shapes are in the docs of the fields. What the arrays hold need
//! not be trusted: the kernels treat an index outside its table as padding.

mod add_norm;
mod bring;
mod broad;
mod copy_runs;
mod dummy;
mod embedding;
mod experts;
mod gate_mul;
mod gemv;
mod medium;
mod narrow;
mod qk_rope_page;
mod quantise;
mod rmsnorm;
mod sample;
mod skinny;

pub use add_norm::AddNorm;
pub use bring::Bring;
pub use broad::{BroadCut, BroadGemm};
pub use copy_runs::CopyRuns;
pub use dummy::{DummyCode, DummyCodes, DummyFill};
pub use embedding::Embedding;
pub use experts::{
    AddShared, Choice, EXPERTS_MAX, ExpertMatrixFp8, ExpertRows, ExpertWeights, ExpertWeightsFp8,
    ExpertWeightsMxfp4, ExpertsFew, ExpertsFewFp8, ExpertsFewMxfp4, ExpertsMany, ExpertsManyFp8,
    ExpertsManyMxfp4, ExpertsShape, Gate, PackExpert, PackExpertFp8, PackExpertMxfp4, Routed,
    Router, RouterInput, RouterNorm, Score, TOP_MAX, expert_down_mxfp4_len,
    expert_gate_up_mxfp4_len, expert_scales_len, expert_slabs_fp8_len, expert_slabs_len,
};
pub use gate_mul::GateMul;
pub use gemv::Fp8Gemv;
pub use medium::{Fp8Product, MediumGemm};
pub use narrow::NarrowGemm;
pub use qk_rope_page::{HEAD_DIMS, QkNorm, QkRopePage};
pub use quantise::{Quantise, QuantiseInput};
pub use rmsnorm::{HIDDEN_MAX, RmsNorm};
pub(crate) use sample::{Cut, CutLimits, FEW_ROWS};
pub use sample::{HistoryReset, Sample, VOCAB_MAX, sample_scratch_len};
pub use skinny::{Inboxes, SkinnyGemm, SkinnyInput, SkinnyOut, SkinnyWeight, Stage};
