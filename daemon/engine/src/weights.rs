//! Weights of a model, slice by slice, in host memory.
//!
//! Owns: finding, mapping and verifying safetensors files, and seeded dummy weights that need none.
//! Must never: know a device, a layer or how many ranks there are. A rank names a tensor and the
//! part of it that it wants, and gets exactly that, in the element type it is stored in.
//!
//! ```text
//!   open(dir, config) --- every tensor checked against config.json, then ---> WeightSource
//!   rank r: load("model.layers.0.mlp.up_proj.weight", [mlp, hidden], Rows(r * n .. (r + 1) * n))
//! ```

mod checkpoint;
mod dummy;
mod error;
mod file;
mod part;
#[cfg(test)]
mod tests;

use std::path::Path;

use half::{bf16, f16};
use minisgl_proto::LoadOptions;

use crate::config::ModelConfig;
use checkpoint::Checkpoint;

pub use dummy::DummyWeights;
pub use error::{PROBLEMS_MAX, Problem, WeightError};
pub use part::Part;

/// A contiguous, row-major tensor, or part of one, in the element type it is stored in.
#[derive(Clone, Debug, PartialEq)]
pub enum HostTensor {
    /// bfloat16.
    Bf16(Vec<bf16>),
    /// IEEE half precision.
    F16(Vec<f16>),
    /// 32-bit IEEE floats.
    F32(Vec<f32>),
}

impl HostTensor {
    /// Elements.
    pub fn len(&self) -> usize {
        match self {
            HostTensor::Bf16(values) => values.len(),
            HostTensor::F16(values) => values.len(),
            HostTensor::F32(values) => values.len(),
        }
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every element as f32, exactly.
    pub fn into_f32(self) -> Vec<f32> {
        match self {
            HostTensor::Bf16(values) => values.into_iter().map(bf16::to_f32).collect(),
            HostTensor::F16(values) => values.into_iter().map(f16::to_f32).collect(),
            HostTensor::F32(values) => values,
        }
    }

    /// Every element as bfloat16, rounded to nearest, ties to even.
    pub fn into_bf16(self) -> Vec<bf16> {
        match self {
            HostTensor::Bf16(values) => values,
            HostTensor::F16(values) => {
                values.into_iter().map(|value| bf16::from_f32(value.to_f32())).collect()
            }
            HostTensor::F32(values) => values.into_iter().map(bf16::from_f32).collect(),
        }
    }
}

/// Where ranks get their weights from; they share one and load at the same time.
pub trait WeightSource: Send + Sync {
    /// Copies one part of one tensor. `shape` is the full tensor's, as in
    /// [`ModelConfig::tensors`].
    ///
    /// # Errors
    /// `UnknownTensor`, `WrongShape` and `BadPart`: the caller asks for what the model has not.
    fn load(&self, name: &str, shape: &[usize], part: &Part) -> Result<HostTensor, WeightError>;

    /// Bytes of all tensors of the model, as stored: what `load` reads when all is asked for once.
    fn bytes_total(&self) -> u64;

    /// Element type as stored, for people: `bf16`, `fp16`, `fp32`, or `mixed`.
    fn dtype(&self) -> &'static str;
}

/// Opens a model folder's weights, or dummy ones if `options` say so, and verifies every tensor
/// against `config`.
///
/// # Errors
/// Files that are missing, truncated or not safetensors; tensors that are missing, unexpected,
/// misshapen or of an unsupported type: all of them are listed, up to [`PROBLEMS_MAX`].
pub fn open(
    dir: &Path,
    config: &ModelConfig,
    options: &LoadOptions,
) -> Result<Box<dyn WeightSource>, WeightError> {
    if options.dummy_weights {
        return Ok(Box::new(DummyWeights::new(config, 0)));
    }
    Ok(Box::new(Checkpoint::open(dir, config)?))
}
