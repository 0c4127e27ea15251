//! NVIDIA GPUs: every op in bf16 with f32 inside, enqueued on one stream.
//!
//! Owns: one GPU's memory for weights, activations and KV pages, and what a step carries there and back.
//! Must never: wait for a step, or allocate on the GPU after [`Ops::commit_kv`].
//!
//! ```text
//!   step    inputs (one pinned copy, or one launch) + attention's plan, then what the model enqueues
//!   sample  head, sampler -> tokens, which the next step's embedding reads on the GPU,
//!           and results (pinned, on a stream of their own), which whoever waits for the step reads
//! ```
//!
//! A decode step is padded to one of few numbers of rows, recorded as a graph when that number comes for the
//! second time, and replayed from then on; see `cuda/step.rs` and `cuda/graphs.rs`.

#![allow(unsafe_code, reason = "the GPU's memory; each use says why it is sound")]

mod attend;
mod create;
mod elementwise;
mod experts;
mod fp8;
mod gpu;
mod graphs;
mod inputs;
mod kv;
mod linear;
mod masks;
mod matrix;
mod memory;
mod prepare;
mod quantised;
mod requests;
mod results;
mod sample;
mod scales;
mod step;
mod tables;
mod team;
#[cfg(test)]
mod tests;
mod tuned;
mod upload;

pub use create::CudaSpec;
pub use experts::Stack;
pub use gpu::{Gpu, GpuMemory};
pub use kv::KV_UNIT_BYTES;
pub use linear::decode_rows;
pub use memory::{Buffer, Matrix};
pub use team::Team;
pub use tuned::tuned_folder;

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cudarc::driver::{CudaSlice, CudaStream, CudaViewMut, DriverError};
use half::bf16;
use minisgl_kernels::Device;
use minisgl_kernels::attention::{AttentionLimits, Backend, Backends, Heads, KvType};
use minisgl_kernels::fp8::ScaleForm;
use minisgl_kernels::gemm::Gemm;
use minisgl_kernels::ops::{Embedding, Fp8Product, Gate, sample_scratch_len};
use minisgl_kernels::peers::{Peers, Sum};
use minisgl_proto::{Attn, AttnBackend, KvDtype};
use minisgl_sched::Late;

use self::attend::{Attention, AttentionShape, no_kv};
use self::experts::ExpertRoom;
use self::graphs::{Graphs, Mode};
use self::inputs::{Inputs, Room};
use self::kv::{KvShape, KvSpace};
use self::linear::{Input, Into};
use self::masks::Masks;
use self::matrix::{coded_parts, plain_parts};
use self::memory::{Data, GRAPH_ROWS, LOGIT_ROWS, ROW_UNIT, padded_tokens};
pub use self::prepare::check;
use self::quantised::Quantised;
use self::requests::Requests;
use self::results::Outputs;
use self::tables::Tables;
use self::tuned::TunedFile;
use self::upload::{Element, Uploader};
use super::{
    Around, Attention as LayerAttention, Experts, Linear, Norm, OpResult, Ops, Pass, Pending,
    Scratch, StackShape, Storage, Stream,
};
use crate::batch::Batch;
use crate::config::{Activation, AttentionBias, ModelConfig};
use crate::error::OpError;
use crate::kv_groups::KvGroups;
use crate::shard::Shard;
use crate::weights::{MatrixPart, TensorPart};

/// One GPU rank.
pub struct CudaOps {
    device: Device,
    gemm: Gemm,
    /// What `gemm` has measured.
    tuned: TunedFile,
    attention: Attention,
    uploader: RefCell<Option<Uploader>>,
    weight_bytes: AtomicU64,
    /// Rows and inputs of each matrix, and how its scales are laid out if it has some, once.
    shapes: RefCell<BTreeSet<(usize, usize, Option<ScaleForm>)>>,
    /// Where activations are made e4m3, if there is a matrix of it.
    quantised: Option<Quantised>,
    /// For how many tokens products of e4m3 are run instead; see [`CudaOps::coded_tokens`].
    coded_rows: HashMap<usize, usize>,
    bias: AttentionBias,
    /// Weights of norms are stored less 1.
    plus_one: bool,
    /// Of every feed-forward block.
    gate: Gate,
    /// What a block gives, where a norm of it comes before the sum: `[chunk_tokens, hidden]`.
    block: Option<Buffer>,
    chunk_tokens: usize,
    /// Width of the residual stream.
    hidden: usize,
    groups: KvGroups,
    heads: Heads,
    kv_type: KvType,
    eps: f32,
    vocab: usize,
    /// The part of the vocabulary that this rank's embedding and head have.
    vocab_part: Range<usize>,
    team: Option<Team>,
    /// If a layer has experts.
    experts: Option<ExpertRoom>,
    inputs: Inputs,
    tables: Tables,
    requests: Requests,
    masks: Masks,
    outputs: Outputs,
    graphs: Graphs,
    mode: Mode,
    /// Keys and values of each layer, `[pages, page_size, kv_heads, head_dim]`.
    kv: Option<KvSpace>,
    kv_pages: usize,
    /// `[logit_rows, logit_stride]`: those held at once, and the sampler's scratch. GPUs that draw together keep their logits in their
    /// windows, and need no more of it than [`Peers::whole_rows_len`].
    logits: CudaSlice<f32>,
    logit_rows: usize,
    logit_stride: usize,
    scratch: CudaSlice<f32>,
}

/// An op's failure, in the words of what failed.
fn failed<E: ToString>(operation: &'static str) -> impl Fn(E) -> OpError {
    move |error| OpError { operation, reason: error.to_string() }
}

impl CudaOps {
    /// Why a step failed: a GPU that waited in vain refuses whatever comes next.
    fn explain(&self, error: OpError) -> OpError {
        let words = self.team.as_ref().map(Team::words);
        words.map_or(error.clone(), |words| words.explain(error))
    }

    /// As many rows as an op issues of `rows`: those of the graph, if the step becomes one.
    fn issued(&self, rows: usize) -> usize {
        match self.mode {
            Mode::Eager => rows,
            Mode::Padded(padded) | Mode::Replay(padded) => padded,
        }
    }

    /// Settles how sums over ranks are made.
    fn prepare_sums(&mut self) -> OpResult {
        let Some(team) = &mut self.team else { return Ok(()) };
        let residual =
            self.device.stream().alloc_zeros(padded_tokens(self.chunk_tokens) * self.hidden);
        let mut residual = residual.map_err(failed("time sums over ranks"))?;
        team.measure(&self.device, &mut residual)
    }

    /// Lends where a block leaves what it gives.
    fn with_block<R>(
        &mut self,
        with: impl FnOnce(&mut Self, &mut Buffer) -> OpResult<R>,
    ) -> OpResult<R> {
        let Some(mut block) = self.block.take() else {
            return Err(failed("linear")("the model has no norms after blocks"));
        };
        let done = with(self, &mut block);
        self.block = Some(block);
        done
    }

    fn stream(&self) -> &Arc<CudaStream> {
        self.device.stream()
    }

    fn upload<T: Element>(&self, parts: &[TensorPart<'_>], len: usize) -> OpResult<CudaSlice<T>> {
        let array = self.arrive(parts, len)?;
        self.count_weights(array.num_bytes());
        Ok(array)
    }

    /// [`CudaOps::upload`] of what does not stay.
    fn arrive<T: Element>(&self, parts: &[TensorPart<'_>], len: usize) -> OpResult<CudaSlice<T>> {
        let mut uploader = self.uploader.borrow_mut();
        let uploader =
            uploader.as_mut().ok_or_else(|| failed("upload weights")("loading was over"))?;
        uploader.upload(&self.device, parts, len)
    }

    fn count_weights(&self, bytes: usize) {
        self.weight_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl Drop for CudaOps {
    /// What is in flight must not outlive the pinned memory that it copies from and to.
    fn drop(&mut self) {
        // A GPU that has failed reads and writes nothing any more.
        let _ = self.device.synchronize();
    }
}

impl Storage for CudaOps {
    type Matrix = Matrix;
    type Vector = CudaSlice<bf16>;
    type Stack = Stack;
}

impl Ops for CudaOps {
    type Buffer = Buffer;

    fn matrix(&self, parts: &[MatrixPart<'_>], inputs: usize) -> OpResult<Matrix> {
        if let Some(parts) = coded_parts(parts) {
            return self.coded_matrix(&parts, inputs);
        }
        let parts = plain_parts(parts)?;
        let rows = parts.iter().map(TensorPart::len).sum::<usize>() / inputs;
        let data = self.upload(&parts, rows.next_multiple_of(ROW_UNIT) * inputs)?;
        let matrix = Matrix { data: Data::Plain(data), rows, inputs };
        self.shapes.borrow_mut().insert((matrix.padded_rows(), inputs, None));
        Ok(matrix)
    }

    fn stack(&self, parts: &[MatrixPart<'_>], shape: StackShape) -> OpResult<Stack> {
        self.upload_stack(parts, shape)
    }

    fn vector(&self, parts: &[TensorPart<'_>]) -> OpResult<CudaSlice<bf16>> {
        let len = parts.iter().map(TensorPart::len).sum();
        self.upload(parts, len)
    }

    /// As they are stored: the kernels add the 1 in f32, of which bf16 would keep too few digits.
    fn vector_plus_one(&self, part: TensorPart<'_>) -> OpResult<CudaSlice<bf16>> {
        self.vector(&[part])
    }

    fn buffer(&self, rows: usize, width: usize) -> OpResult<Buffer> {
        // A model without dense blocks has buffers of none.
        let data = self.stream().alloc_zeros((padded_tokens(rows) * width).max(1));
        Ok(Buffer::new(data.map_err(failed("allocate activations"))?, rows, width))
    }

    fn weight_bytes(&self) -> u64 {
        self.weight_bytes.load(Ordering::Relaxed)
    }

    fn finish_loading(&mut self) -> OpResult {
        self.device.synchronize().map_err(failed("upload weights"))?;
        *self.uploader.borrow_mut() = None;
        Ok(())
    }

    fn prepare(&mut self) -> OpResult {
        self.prepare_products()?;
        // Before anything that waits for peers: what took long to measure is not measured again after a load that
        // fails there.
        let tuned = self.gemm.save(&self.device);
        // The first line says of what.
        if tuned.lines().count() > 1 {
            self.tuned.write(tuned);
        }
        self.prepare_sums()
    }

    fn reserve_kv(&mut self, pages: usize) -> OpResult {
        let Heads { kv_heads, head_dim, page_size, .. } = self.heads;
        let shape = KvShape {
            page_bytes: page_size * kv_heads * head_dim * self.kv_type.bytes(),
            element: self.kv_type,
            slack: self.heads.pages_slack(),
        };
        self.kv = Some(KvSpace::new(self.stream(), shape, self.groups.clone(), pages)?);
        self.kv_pages = 1;
        Ok(())
    }

    fn commit_kv(&mut self, pages: usize) -> OpResult {
        self.kv.as_mut().ok_or_else(no_kv)?.grow(pages)?;
        self.kv_pages = pages;
        gpu::trim_host_memory();
        self.device.synchronize().map_err(failed("allocate KV pages"))
    }

    fn step(
        &mut self,
        batch: &Batch,
        pass: &mut impl Pass<Self>,
    ) -> OpResult<Option<Box<dyn Pending>>> {
        let done = self.issue(batch, pass);
        done.map_err(|error| self.explain(error))
    }

    fn complete(
        &mut self,
        batch: &Batch,
        late: &Late,
        pass: &mut impl Pass<Self>,
    ) -> OpResult<Box<dyn Pending>> {
        let done = self.issue_rest(batch, late, pass);
        done.map_err(|error| self.explain(error))
    }

    fn embed(
        &mut self,
        batch: &Batch,
        table: &Matrix,
        scale: f32,
        stream: &mut Stream<Self>,
    ) -> OpResult {
        let numbers = table.plain()?;
        stream.changed(None);
        let out = &mut stream.residual;
        let (rows, hidden) = (self.issued(batch.tokens().len()), out.width);
        let CudaOps { inputs, outputs, team, device, .. } = self;
        let embedding = |mut out: CudaViewMut<'_, bf16>| {
            Embedding {
                tokens: (&inputs.tokens()).into(),
                fed: (&outputs.tokens).into(),
                table: (&numbers.slice(..table.rows * hidden)).into(),
                out: (&mut out).into(),
                rows,
                hidden,
                vocab_start: self.vocab_part.start,
                vocab_len: table.rows,
                scale,
            }
            .launch(device)
            .map_err(failed("embed"))
        };
        let Some(team) = team else { return embedding(out.rows_mut(rows)) };
        let peers = team.peers();
        embedding(peers.delta(Sum::Residual).slice_mut(..rows * hidden))?;
        let mut sum = out.rows_mut(rows);
        peers
            .all_reduce(device, rows, (Sum::Residual, false), (&mut sum).into(), None)
            .map_err(failed("all-reduce"))
    }

    fn norm_wanted(
        &mut self,
        batch: &Batch,
        stream: &Stream<Self>,
        norm: &Norm<Self>,
        out: &mut Buffer,
    ) -> OpResult {
        let x_rows = self.issued(batch.tokens().len());
        match self.issued(batch.logit_rows().len()) {
            0 => Ok(()),
            rows => {
                let sampled = self.inputs.sampled();
                let x = &stream.residual;
                self.launch_norm((rows, x_rows), Some(&sampled), x, &norm.weight, out)
            }
        }
    }

    fn norm_linear(
        &mut self,
        rows: usize,
        stream: &mut Stream<Self>,
        norm: &Norm<Self>,
        linear: &Linear<Self>,
        out: &mut Buffer,
    ) -> OpResult {
        let rows = self.issued(rows);
        if linear.weight.scale_form().is_some() {
            let input = Input::Normed(stream, norm);
            return self.product_fp8(rows, linear, input, out.into(), Into::Output);
        }
        if self.few(rows) {
            let out = (out.into(), Into::Output);
            return self.norm_skinny(rows, linear, (stream, norm), out, Fp8Product::default());
        }
        self.normalise(rows, stream, norm)?;
        self.product(rows, linear, &stream.normed, out, Into::Output)
    }

    fn norm_gated(
        &mut self,
        rows: usize,
        stream: &mut Stream<Self>,
        norm: &Norm<Self>,
        [linear, down]: [&Linear<Self>; 2],
        scratch: &mut Scratch<Self>,
        out: &mut Buffer,
    ) -> OpResult {
        let rows = self.issued(rows);
        if linear.weight.scale_form().is_some() {
            let into = if self.block.is_some() { Into::Output } else { Into::Sum };
            // What is summed over ranks may be sent by the product itself, which takes activations as they are.
            let down = self.team.is_none().then_some((down, into));
            return self.gated_fp8(rows, (linear, down), (stream, norm), scratch, out);
        }
        // The kernel takes gate and up eight rows at a time.
        if linear.weight.rows.is_multiple_of(2 * ROW_UNIT) && self.few(rows) {
            let out = (out.into(), Into::Gated);
            return self.norm_skinny(rows, linear, (stream, norm), out, Fp8Product::default());
        }
        self.normalise(rows, stream, norm)?;
        self.product(rows, linear, &stream.normed, &mut scratch.gate_up, Into::Output)?;
        self.gate_mul(rows, &scratch.gate_up, out)
    }

    /// One rank has nothing to sum over, and leaves the norm to the next block's product.
    fn linear_add(
        &mut self,
        rows: usize,
        linear: &Linear<Self>,
        x: &Buffer,
        norms: Around<'_, Self>,
        stream: &mut Stream<Self>,
    ) -> OpResult {
        let rows = self.issued(rows);
        if self.team.is_some() {
            return self.linear_sum(rows, linear, x, norms, stream);
        }
        stream.changed(None);
        let Some(after) = norms.after else {
            return self.product(rows, linear, x, &mut stream.residual, Into::Sum);
        };
        self.with_block(|ops, block| {
            ops.product(rows, linear, x, block, Into::Output)?;
            ops.add_norm(rows, block, (after, norms.next), stream)
        })
    }

    fn experts_add(
        &mut self,
        rows: usize,
        norm: &Norm<Self>,
        experts: &Experts<Self>,
        norms: Around<'_, Self>,
        stream: &mut Stream<Self>,
    ) -> OpResult {
        if norms.after.is_some() {
            return Err(failed("experts")("there is no kernel for a norm after a block"));
        }
        self.run_experts(self.issued(rows), norm, experts, norms.next, stream)
    }

    fn attention(
        &mut self,
        batch: &Batch,
        attention: &LayerAttention<Self>,
        qkv: &mut Buffer,
        out: &mut Buffer,
        next: Option<&Linear<Self>>,
    ) -> OpResult {
        let rows = self.issued(batch.tokens().len());
        // As in `norm_gated`.
        let into = if self.block.is_some() { Into::Output } else { Into::Sum };
        let next = next.filter(|_| self.team.is_none()).map(|next| (next, into));
        self.attend(rows, attention, qkv, out, next)
    }

    fn sample(&mut self, batch: &Batch, head: &Matrix, hidden: &Buffer) -> OpResult {
        self.sample_all(batch, head, hidden)
    }
}
