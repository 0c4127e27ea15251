//! One launcher an op: a struct of its arguments with `launch`.
//!
//! Every array is dense and row-major; shapes are in the docs of the fields. What the arrays hold need
//! not be trusted: the kernels treat an index outside its table as padding.

mod dummy;
mod embedding;
mod experts;
mod medium;
mod narrow;
mod qk_rope_page;
mod quantise;
mod rmsnorm;
mod sample;
mod silu_mul;
mod skinny;

pub use dummy::{DummyCodes, DummyFill};
pub use embedding::Embedding;
pub use experts::{
    Choice, EXPERTS_MAX, ExpertRows, ExpertWeights, ExpertsFew, ExpertsMany, ExpertsShape, Gate,
    PackExpert, Routed, Router, RouterInput, RouterNorm, Score, TOP_MAX, expert_slabs_len,
};
pub use medium::{Fp8Product, MediumGemm};
pub use narrow::NarrowGemm;
pub use qk_rope_page::{HEAD_DIMS, QkNorm, QkRopePage};
pub use quantise::{Quantise, QuantiseInput};
pub use rmsnorm::{HIDDEN_MAX, RmsNorm};
pub(crate) use sample::{Cut, CutLimits, FEW_ROWS};
pub use sample::{HistoryReset, Sample, VOCAB_MAX, sample_scratch_len};
pub use silu_mul::SiluMul;
pub use skinny::{Inboxes, SkinnyGemm, SkinnyInput, SkinnyOut, SkinnyWeight, Stage};
