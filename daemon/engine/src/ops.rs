//! The operations that models are written in.
//!
//! Owns: the [`Ops`] trait, the seam between models and devices. A device is one implementation.
//! Must never: know a model. An op is as large as the fusion that a GPU wants; where that is more than
//! one step, the default is composed of smaller ops, and a device overrides what it does better.
//!
//! Shapes: `tokens` is the number of tokens of the batch; activations are `[tokens, width]`, row-major,
//! in buffers that were allocated at load for the largest batch. Widths are those of this rank's shard.
//! Nothing allocates device memory after [`Ops::commit_kv`].

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;

use std::time::Duration;

use minisgl_proto::Sampled;
use minisgl_sched::Install;

use crate::batch::Batch;
use crate::error::OpError;
use crate::weights::TensorPart;

/// What an op returns: on a GPU, that it was enqueued.
pub type OpResult<T = ()> = Result<T, OpError>;

/// Tokens on their way to the host. Redeemed by whoever waits for the step, on any thread, while the
/// rank already runs the next one.
pub trait Pending: Send {
    /// Whether the step has ended, or its device has failed, which `wait` then says. Does not wait.
    fn is_over(&self) -> bool {
        true
    }

    /// Why the step has not ended within `patience`, as far as that is known.
    fn overdue(&self, patience: Duration) -> OpError {
        let reason = format!("the step did not end within {:.1} s", patience.as_secs_f64());
        OpError { operation: "run the step", reason }
    }

    /// Seconds from the step's first kernel to the end of its last, where the device measures them. Of a step that is
    /// over.
    fn device_s(&self) -> Option<f32> {
        None
    }

    /// The step's tokens, once it is over, one for each of [`Batch::logit_rows`].
    ///
    /// # Errors
    /// The device failed.
    fn wait(self: Box<Self>) -> OpResult<Vec<Sampled>>;
}

/// RMSNorm weights for each head of queries and keys (Qwen 3).
pub struct HeadNorms<O: Ops> {
    /// `[head_dim]`
    pub query: O::Vector,
    /// `[head_dim]`
    pub key: O::Vector,
}

/// A projection.
pub struct Linear<O: Ops> {
    /// `[outputs, inputs]`
    pub weight: O::Matrix,
    /// `[outputs]`
    pub bias: Option<O::Vector>,
}

/// Where a device that does not fuse a block's operations puts what lies between them.
pub struct Scratch<O: Ops> {
    /// `[tokens, hidden]`
    pub normed: O::Buffer,
    /// `[tokens, 2 * intermediate]`
    pub gate_up: O::Buffer,
}

/// One rank of a device.
pub trait Ops: Sized + Send {
    /// A weight matrix `[outputs, inputs]`.
    type Matrix: Send + Sync;
    /// A norm's or bias's weights.
    type Vector: Send + Sync;
    /// Activations `[rows, width]`, room for the largest batch.
    type Buffer: Send;

    // Loading.

    /// Uploads a matrix: `parts`, each whole rows of `inputs`, stacked.
    ///
    /// # Errors
    /// No memory on the device.
    fn matrix(&self, parts: &[TensorPart<'_>], inputs: usize) -> OpResult<Self::Matrix>;

    /// Uploads a vector: `parts`, one after the other.
    ///
    /// # Errors
    /// No memory on the device.
    fn vector(&self, parts: &[TensorPart<'_>]) -> OpResult<Self::Vector>;

    /// Activations of `width` for `rows` rows.
    ///
    /// # Errors
    /// No memory on the device.
    fn buffer(&self, rows: usize, width: usize) -> OpResult<Self::Buffer>;

    /// Bytes that all uploaded weights take on the device.
    fn weight_bytes(&self) -> u64;

    /// No more weights come: waits until all are on the device, and lets go of what carried them.
    ///
    /// # Errors
    /// The device failed.
    fn finish_loading(&mut self) -> OpResult {
        Ok(())
    }

    /// All weights and activations are there: prepares what depends on their shapes.
    ///
    /// # Errors
    /// The device failed.
    fn prepare(&mut self) -> OpResult {
        Ok(())
    }

    /// Makes room for `pages` KV pages at most, once. The first of them can be used, so that the first steps
    /// can run, and show how much memory they take.
    ///
    /// # Errors
    /// No memory on the device.
    fn reserve_kv(&mut self, pages: usize) -> OpResult;

    /// Makes the first `pages` of the reserved KV pages usable, after the first steps. A device that has
    /// allocated all that was reserved has nothing to do.
    ///
    /// # Errors
    /// No memory on the device.
    fn commit_kv(&mut self, _pages: usize) -> OpResult {
        Ok(())
    }

    // A step.

    /// Starts a step: replaces the state of (re)started requests and takes what the batch needs to the
    /// device, then issues `forward`. A device may record what `forward` issues and replay it.
    ///
    /// # Errors
    /// Those of `forward` and of the device.
    fn step<T: Send>(
        &mut self,
        batch: &Batch,
        installs: &[Install],
        forward: impl FnOnce(&mut Self) -> OpResult<T> + Send,
    ) -> OpResult<T>;

    /// `out[t] = table[tokens[t]]` for all tokens, those sampled in the step before included. `table` is
    /// this rank's part of the vocabulary; `out` is complete on every rank.
    ///
    /// # Errors
    /// A peer is gone.
    fn embed(&mut self, batch: &Batch, table: &Self::Matrix, out: &mut Self::Buffer) -> OpResult;

    /// `out = rms_norm(x) * weight` on the first `rows` rows.
    ///
    /// # Errors
    /// The device failed.
    fn rms_norm(
        &mut self,
        rows: usize,
        x: &Self::Buffer,
        weight: &Self::Vector,
        out: &mut Self::Buffer,
    ) -> OpResult;

    /// The norm after each token whose logits are wanted: `out[i] = rms_norm(x[logit_rows[i].token]) * weight`.
    ///
    /// # Errors
    /// The device failed.
    fn norm_wanted(
        &mut self,
        batch: &Batch,
        x: &Self::Buffer,
        weight: &Self::Vector,
        out: &mut Self::Buffer,
    ) -> OpResult;

    /// `out = x weight^T (+ bias)`.
    ///
    /// # Errors
    /// The device failed.
    fn linear(
        &mut self,
        rows: usize,
        linear: &Linear<Self>,
        x: &Self::Buffer,
        out: &mut Self::Buffer,
    ) -> OpResult;

    /// `out = silu(gate) * up`, with `gate_up` of `[rows, 2 * width]` and `out` of `[rows, width]`.
    ///
    /// # Errors
    /// The device failed.
    fn silu_mul(&mut self, rows: usize, gate_up: &Self::Buffer, out: &mut Self::Buffer)
    -> OpResult;

    /// How a block begins: [`Ops::linear`] of [`Ops::rms_norm`] of `x`.
    ///
    /// # Errors
    /// The device failed.
    fn norm_linear(
        &mut self,
        rows: usize,
        x: &Self::Buffer,
        norm: &Self::Vector,
        linear: &Linear<Self>,
        scratch: &mut Scratch<Self>,
        out: &mut Self::Buffer,
    ) -> OpResult {
        self.rms_norm(rows, x, norm, &mut scratch.normed)?;
        self.linear(rows, linear, &scratch.normed, out)
    }

    /// The first half of a gated MLP: [`Ops::silu_mul`] of [`Ops::norm_linear`], where `linear` is the gate's
    /// rows, then the up projection's.
    ///
    /// # Errors
    /// The device failed.
    fn norm_gated(
        &mut self,
        rows: usize,
        x: &Self::Buffer,
        norm: &Self::Vector,
        linear: &Linear<Self>,
        scratch: &mut Scratch<Self>,
        out: &mut Self::Buffer,
    ) -> OpResult {
        self.rms_norm(rows, x, norm, &mut scratch.normed)?;
        self.linear(rows, linear, &scratch.normed, &mut scratch.gate_up)?;
        self.silu_mul(rows, &scratch.gate_up, out)
    }

    /// How a block ends, a row-parallel projection: `residual += x weight^T`, summed over all ranks, in the
    /// order of ranks, so that all hold the same bits. `next` is the norm that the block after this one begins
    /// with, if it begins with [`Ops::norm_linear`] or [`Ops::norm_gated`]: a device may have it done with the
    /// sum, in `scratch`, where that op finds it.
    ///
    /// # Errors
    /// A peer is gone.
    fn linear_add(
        &mut self,
        rows: usize,
        linear: &Linear<Self>,
        x: &Self::Buffer,
        next: Option<&Self::Vector>,
        scratch: &mut Scratch<Self>,
        residual: &mut Self::Buffer,
    ) -> OpResult;

    /// All that happens between the qkv projection and the output projection: norm of each query and key head
    /// of `qkv` (`[tokens, (heads + 2 kv_heads) * head_dim]`), where the model has one, rotation by the
    /// tokens' positions, the write of keys and values into their pages, and causal attention of every
    /// token over its request's pages. `out` is `[tokens, heads * head_dim]`; `qkv` is garbage
    /// afterwards.
    ///
    /// # Errors
    /// The device failed.
    fn attention(
        &mut self,
        batch: &Batch,
        layer: usize,
        norms: Option<&HeadNorms<Self>>,
        qkv: &mut Self::Buffer,
        out: &mut Self::Buffer,
    ) -> OpResult;

    /// Logits over this rank's part of the vocabulary (`hidden head^T`) for each of [`Batch::logit_rows`], then,
    /// over those of all ranks, the request's own sampling, or the log-probability of the token that is given.
    /// Every rank draws the same tokens and keeps them for the next step's [`Ops::embed`].
    ///
    /// # Errors
    /// A peer is gone.
    fn sample(
        &mut self,
        batch: &Batch,
        head: &Self::Matrix,
        hidden: &Self::Buffer,
    ) -> OpResult<Box<dyn Pending>>;
}
