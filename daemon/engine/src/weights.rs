//! Weights of a model, slice by slice, out of mapped files.
//!
//! Owns: finding, mapping and verifying safetensors files, and seeded dummy weights that need none.
//! Must never: know a device, a layer or how many ranks there are. A rank names a tensor and the
//! part of it that it wants, and is lent exactly that.
//!
//! ```text
//!   open(dir, tensors) --- every tensor checked against what the model wants, then ---> WeightSource
//!   rank r: part("model.layers.0.mlp.up_proj.weight", [mlp, hidden], Rows(r * n .. (r + 1) * n))
//!           -> TensorPart: any range of it, read by any thread straight to where it is needed
//! ```

mod checkpoint;
mod coded;
mod dummy;
mod e4m3;
mod error;
mod file;
mod made;
mod part;
mod quantised;
mod tensor;
#[cfg(test)]
mod tests;
mod window;

use std::path::Path;

use minisgl_proto::LoadOptions;

use checkpoint::Checkpoint;

pub use crate::scheme::TensorSpec;
pub use coded::{CodedMatrix, CodedPart, MatrixPart};
pub use dummy::DummyWeights;
pub use error::{PROBLEMS_MAX, Problem, WeightError};
pub use made::DummyTensor;
pub use part::Part;
pub use quantised::QuantisedWeights;
pub use tensor::{DummyCodePart, DummyPart, HostTensor, TensorPart};

/// Where ranks get their weights from; they share one and load at the same time.
pub trait WeightSource: Send + Sync {
    /// Lends one part of one tensor, which is read when its methods are called. `shape` is the full
    /// tensor's.
    ///
    /// # Errors
    /// `UnknownTensor`, `WrongShape` and `BadPart`: the caller asks for what the model has not.
    fn part(&self, name: &str, shape: &[usize], part: &Part)
    -> Result<TensorPart<'_>, WeightError>;

    /// Bytes of all tensors of the model, as stored.
    fn bytes_total(&self) -> u64;

    /// Element type as stored, for people: the scheme, if some matrices have one (`fp8`, `mxfp4`), else `bf16`,
    /// `fp16`, `fp32`, or `mixed`.
    fn dtype(&self) -> &'static str;
}

/// Whether a model folder has weights, whole or not.
pub fn are_in(dir: &Path) -> bool {
    Checkpoint::is_in(dir)
}

/// Opens a model folder's weights, or dummy ones if `options` say so, and verifies that they are `tensors`.
///
/// # Errors
/// Files that are missing, truncated or not safetensors; tensors that are missing, unexpected,
/// misshapen or of an unsupported type: all of them are listed, up to [`PROBLEMS_MAX`].
pub fn open(
    dir: &Path,
    tensors: &[TensorSpec],
    options: &LoadOptions,
) -> Result<Box<dyn WeightSource>, WeightError> {
    if options.dummy_weights {
        return Ok(Box::new(DummyWeights::new(tensors, 0)));
    }
    Ok(Box::new(Checkpoint::open(dir, tensors)?))
}

/// [`open`] of weights that are stored as numbers and wanted as codes: `stored`, handed on as `wanted`. Dummies are
/// made as they are wanted.
///
/// # Errors
/// As [`open`].
pub fn open_quantised(
    dir: &Path,
    stored: &[TensorSpec],
    wanted: &[TensorSpec],
    options: &LoadOptions,
) -> Result<Box<dyn WeightSource>, WeightError> {
    if options.dummy_weights {
        return open(dir, wanted, options);
    }
    Ok(Box::new(QuantisedWeights::new(open(dir, stored, options)?, wanted)))
}
