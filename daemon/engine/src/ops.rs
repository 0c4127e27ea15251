//! The operations that models are written in.
//!
//! Owns: the [`Ops`] trait, the seam between models and devices. A device is one implementation.
//! Must never: know a model. An op is as large as the fusion that a GPU wants: blocks begin with a norm and end in
//! a sum.
//!
//! Shapes: `tokens` is the number of tokens of the batch; activations are `[tokens, width]`, row-major,
//! in buffers that were allocated at load for the largest batch. Widths are those of this rank's shard.
//! Nothing allocates device memory after [`Ops::commit_kv`].

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;

use std::time::Duration;

use minisgl_proto::Sampled;
use minisgl_sched::Late;

use crate::batch::Batch;
use crate::config::{AttentionSpec, ExpertsSpec};
use crate::error::OpError;
use crate::weights::{MatrixPart, TensorPart};

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

/// How a device keeps a model's weights.
pub trait Storage: Sized {
    /// A weight matrix `[outputs, inputs]`.
    type Matrix: Send + Sync;
    /// A norm's or bias's weights.
    type Vector: Send + Sync;
    /// One matrix of each expert of a layer: [`StackShape`].
    type Stack: Send + Sync;
}

/// Which of an expert's matrices a stack has, and in which parts they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StackOf {
    /// Two parts of each expert: the gate's rows, then those of the up projection.
    GateUp,
    /// One part of each expert.
    Down,
}

/// What a stack of experts' matrices is: `[count, rows, inputs]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackShape {
    /// Which matrix of each expert.
    pub of: StackOf,
    /// Experts.
    pub count: usize,
    /// Rows of one expert's matrix, gate and up together.
    pub rows: usize,
    /// Columns of one expert's matrix.
    pub inputs: usize,
}

/// A projection of every expert of a layer.
pub struct Stacked<S: Storage> {
    /// `[count, rows, inputs]`
    pub weight: S::Stack,
    /// `[count * rows]`. Of a row-parallel projection, whose outputs are summed over ranks, rank 0 alone has it.
    pub bias: Option<S::Vector>,
}

/// RMSNorm weights for each head of queries and keys.
pub struct HeadNorms<S: Storage> {
    /// `[head_dim]`
    pub query: S::Vector,
    /// `[head_dim]`
    pub key: S::Vector,
}

/// An RMSNorm over the residual stream.
pub struct Norm<S: Storage> {
    /// Which of the model's norms it is.
    pub id: NormId,
    /// `[hidden]`, what values are multiplied by.
    pub weight: S::Vector,
}

/// A model's norms, counted in the order of the forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NormId(pub u32);

/// A projection.
pub struct Linear<S: Storage> {
    /// `[outputs, inputs]`
    pub weight: S::Matrix,
    /// `[outputs]`. Of a row-parallel projection, whose outputs are summed over ranks, rank 0 alone has it.
    pub bias: Option<S::Vector>,
}

/// A layer's attention.
pub struct Attention<S: Storage> {
    /// Which layer, as KV pages count them.
    pub layer: usize,
    /// How its tokens see each other.
    pub spec: AttentionSpec,
    /// RMSNorm on each head before rotation.
    pub norms: Option<HeadNorms<S>>,
    /// `[heads]`: one more logit for each query head's softmax.
    pub sinks: Option<S::Vector>,
}

/// A rank's share of a block of experts: all experts, each as wide as the rank's part of its width.
pub struct Experts<S: Storage> {
    /// What the block is; widths are those of the whole model.
    pub spec: ExpertsSpec,
    /// Columns of each expert that this rank has.
    pub width: usize,
    /// `[count, hidden]`, the same on every rank.
    pub router: Linear<S>,
    /// `[count, 2 * width, hidden]`: of each expert the gate's rows, then the up projection's.
    pub gate_up: Stacked<S>,
    /// `[count, hidden, width]`
    pub down: Stacked<S>,
    /// The block that every token goes through as well.
    pub shared: Option<Shared<S>>,
}

/// A rank's share of the block beside the experts.
pub struct Shared<S: Storage> {
    /// Columns that this rank has.
    pub width: usize,
    /// `[2 * width, hidden]`
    pub gate_up: Linear<S>,
    /// `[hidden, width]`
    pub down: Linear<S>,
    /// `[1, hidden]`, the same on every rank: the sigmoid of its product multiplies what the block gives.
    pub gate: Option<Linear<S>>,
}

/// The residual stream, and the norm of it where an op left one behind.
pub struct Stream<O: Ops> {
    /// `[tokens, hidden]`
    pub residual: O::Buffer,
    /// `[tokens, hidden]`
    pub normed: O::Buffer,
    /// Whose norm of `residual` is in `normed`.
    ready: Option<NormId>,
}

impl<O: Ops> Stream<O> {
    /// A stream of what two buffers of the same shape hold.
    pub fn new(residual: O::Buffer, normed: O::Buffer) -> Stream<O> {
        Stream { residual, normed, ready: None }
    }

    /// `residual` has changed. `normed` holds its norm by `norm`, if that was made along with the change.
    pub fn changed(&mut self, norm: Option<&Norm<O>>) {
        self.ready = norm.map(|norm| norm.id);
    }

    /// Whether `normed` holds the norm of `residual` by `norm`.
    pub fn has(&self, norm: &Norm<O>) -> bool {
        self.ready == Some(norm.id)
    }
}

/// Where a device that does not fuse a block's operations puts what lies between them.
pub struct Scratch<O: Ops> {
    /// `[tokens, 2 * width]`, of the widest block of one piece.
    pub gate_up: O::Buffer,
}

/// What a device runs of a model in a step, in two parts. It may record what a part issues, and replay it another time
/// instead of calling it.
pub trait Pass<O: Ops>: Send {
    /// From tokens to the residual stream after the last layer.
    ///
    /// # Errors
    /// An op failed.
    fn forward(&mut self, ops: &mut O, batch: &Batch) -> OpResult;

    /// From there to tokens; ends with [`Ops::sample`].
    ///
    /// # Errors
    /// An op failed.
    fn read(&mut self, ops: &mut O, batch: &Batch) -> OpResult;
}

/// One rank of a device.
pub trait Ops: Storage + Send {
    /// Activations `[rows, width]`, room for the largest batch.
    type Buffer: Send;

    // Loading.

    /// Uploads a matrix: `parts`, each whole rows of `inputs`, stacked.
    ///
    /// # Errors
    /// No memory on the device; or it does not compute with a part's scheme.
    fn matrix(&self, parts: &[MatrixPart<'_>], inputs: usize) -> OpResult<Self::Matrix>;

    /// Uploads the matrices of a layer's experts: `parts` in the order of experts, as many of each as [`StackOf`] says.
    ///
    /// # Errors
    /// No memory on the device; or it does not compute with a part's scheme.
    fn stack(&self, parts: &[MatrixPart<'_>], shape: StackShape) -> OpResult<Self::Stack>;

    /// Uploads a vector: `parts`, one after the other.
    ///
    /// # Errors
    /// No memory on the device.
    fn vector(&self, parts: &[TensorPart<'_>]) -> OpResult<Self::Vector>;

    /// Uploads a norm's weights, each 1 more than it is stored.
    ///
    /// # Errors
    /// As [`Ops::vector`]; or the device has no such norms.
    fn vector_plus_one(&self, part: TensorPart<'_>) -> OpResult<Self::Vector>;

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

    /// Runs a step: replaces the state of (re)started requests and takes what the batch needs to the device, then
    /// issues both parts of `pass`, and returns the tokens to come. Of a plan whose rows have masks it issues
    /// [`Pass::forward`] alone, and returns nothing: [`Ops::complete`] comes next.
    ///
    /// # Errors
    /// Those of `pass` and of the device.
    fn step(
        &mut self,
        batch: &Batch,
        pass: &mut impl Pass<Self>,
    ) -> OpResult<Option<Box<dyn Pending>>>;

    /// Takes the masks of the step in hand to the device and issues [`Pass::read`].
    ///
    /// # Errors
    /// Those of `pass` and of the device.
    fn complete(
        &mut self,
        batch: &Batch,
        late: &Late,
        pass: &mut impl Pass<Self>,
    ) -> OpResult<Box<dyn Pending>>;

    /// `residual[t] = scale * table[tokens[t]]` for all tokens, those sampled in the step before included. `table`
    /// is this rank's part of the vocabulary; the result is complete on every rank.
    ///
    /// # Errors
    /// A peer is gone.
    fn embed(
        &mut self,
        batch: &Batch,
        table: &Self::Matrix,
        scale: f32,
        stream: &mut Stream<Self>,
    ) -> OpResult;

    /// The norm after each token whose logits are wanted: `out[i] = norm(residual[logit_rows[i].token])`.
    ///
    /// # Errors
    /// The device failed.
    fn norm_wanted(
        &mut self,
        batch: &Batch,
        stream: &Stream<Self>,
        norm: &Norm<Self>,
        out: &mut Self::Buffer,
    ) -> OpResult;

    /// How a block begins: `out = norm(residual) weight^T (+ bias)`.
    ///
    /// # Errors
    /// The device failed.
    fn norm_linear(
        &mut self,
        rows: usize,
        stream: &mut Stream<Self>,
        norm: &Norm<Self>,
        linear: &Linear<Self>,
        out: &mut Self::Buffer,
    ) -> OpResult;

    /// The first half of a gated block: the model's activation of [`Ops::norm_linear`]. Of the two
    /// products the first is the gate's rows, then the up projection's; the second is the one that ends the block. `out` is
    /// `[rows, width]`, for that one and nothing else: a device may leave it as that product takes it.
    ///
    /// # Errors
    /// The device failed.
    fn norm_gated(
        &mut self,
        rows: usize,
        stream: &mut Stream<Self>,
        norm: &Norm<Self>,
        products: [&Linear<Self>; 2],
        scratch: &mut Scratch<Self>,
        out: &mut Self::Buffer,
    ) -> OpResult;

    /// How a block ends, a row-parallel projection: `residual += after(x weight^T (+ bias))`, summed over all ranks,
    /// in the order of ranks, so that all hold the same bits. `after` is a norm of the sum, where the model has one.
    /// `next` is the norm that the block after this one begins with: a device may make it along with the sum, and
    /// leave it in the stream.
    ///
    /// # Errors
    /// A peer is gone.
    fn linear_add(
        &mut self,
        rows: usize,
        linear: &Linear<Self>,
        x: &Self::Buffer,
        norms: Around<'_, Self>,
        stream: &mut Stream<Self>,
    ) -> OpResult;

    /// A whole block of experts: `residual += after(sum over chosen experts e of weight_e expert_e(norm(residual)))`,
    /// and what all tokens share, summed over all ranks. Of ties, the router chooses the expert that comes first.
    ///
    /// # Errors
    /// A peer is gone, or the device has no experts.
    fn experts_add(
        &mut self,
        rows: usize,
        norm: &Norm<Self>,
        experts: &Experts<Self>,
        norms: Around<'_, Self>,
        stream: &mut Stream<Self>,
    ) -> OpResult;

    /// All that happens between the qkv projection and the output projection: norm of each query and key head
    /// of `qkv` (`[tokens, (heads + 2 kv_heads) * head_dim]`), where the model has one, rotation by the
    /// tokens' positions, the write of keys and values into their pages, and causal attention of every
    /// token over its request's pages, or its window. `out` is `[tokens, heads * head_dim]`; `qkv` is garbage
    /// afterwards. `next` is the product that takes `out`, and nothing else does: a device may leave `out` as that
    /// wants it.
    ///
    /// # Errors
    /// The device failed.
    fn attention(
        &mut self,
        batch: &Batch,
        attention: &Attention<Self>,
        qkv: &mut Self::Buffer,
        out: &mut Self::Buffer,
        next: Option<&Linear<Self>>,
    ) -> OpResult;

    /// Logits over this rank's part of the vocabulary (`hidden head^T`) for each of [`Batch::logit_rows`], then,
    /// over those of all ranks, the request's own sampling, under the row's mask if it has one, or the log-probability of
    /// the token that is given.
    /// Every rank draws the same tokens and keeps them for the next step's [`Ops::embed`].
    ///
    /// # Errors
    /// A peer is gone.
    fn sample(&mut self, batch: &Batch, head: &Self::Matrix, hidden: &Self::Buffer) -> OpResult;
}

/// The norms around the end of a block.
pub struct Around<'a, S: Storage> {
    /// Of what the block gives.
    pub after: Option<&'a Norm<S>>,
    /// Of the residual stream, with which the next block begins.
    pub next: Option<&'a Norm<S>>,
}

/// A part of a test's own, in the place of a model.
#[cfg(test)]
pub(crate) struct Closure<F>(pub(crate) F);

#[cfg(test)]
impl<O: Ops, F: FnMut(&mut O) -> OpResult + Send> Pass<O> for Closure<F> {
    fn forward(&mut self, ops: &mut O, _batch: &Batch) -> OpResult {
        (self.0)(ops)
    }

    fn read(&mut self, _ops: &mut O, _batch: &Batch) -> OpResult {
        Ok(())
    }
}
