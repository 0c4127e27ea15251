//! Which tensors a model has.

/// A tensor as a checkpoint must have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// By Hugging Face's naming.
    pub name: String,
    /// `[out, in]` for a projection, `[n]` for a norm or bias.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// Elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&size| size as u64).product()
    }
}
