//! NVIDIA GPUs: every op in bf16 with f32 inside, enqueued on one stream.
//!
//! Owns: one GPU's memory for weights, activations and KV pages, and what a step carries there and back.
//! Must never: wait for a step, or allocate on the GPU after [`Ops::allocate_kv`].
//!
//! ```text
//!   step    inputs (one pinned copy) + attention's plan, then what the model enqueues
//!   sample  head, sampler -> tokens, which the next step's embedding reads on the GPU,
//!           and results (pinned), which whoever waits for the step reads
//! ```
//!
//! A decode step is padded to one of few numbers of rows, recorded as a graph when that number comes for the
//! second time, and replayed from then on; see `cuda/graphs.rs`.

#![allow(unsafe_code, reason = "the GPU's memory; each use says why it is sound")]

mod gpu;
mod graphs;
mod inputs;
mod prepare;
mod requests;
mod results;
#[cfg(test)]
mod tests;
mod upload;

pub use gpu::{Gpu, GpuMemory};

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cudarc::driver::{CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, DriverError};
use half::bf16;
use minisgl_kernels::attention::{
    AttentionBatch, AttentionLimits, Heads, KvType, PagedAttention, PagedAttentionArgs,
};
use minisgl_kernels::gemm::{Gemm, GemmArgs, GemmOut};
use minisgl_kernels::ops::{
    Embedding, Gather, QkNorm, QkRopePage, RmsNorm, Sample, SiluMul, sample_scratch_len,
};
use minisgl_kernels::{Array, ArrayMut, Device};
use minisgl_sched::Install;

use self::graphs::{Graphs, Mode};
use self::inputs::{Inputs, Room};
use self::prepare::{check, cos_sin};
use self::requests::Requests;
use self::results::{Outgoing, Outputs, TOP_MAX, Wanted};
use self::upload::Uploader;
use super::{HeadNorms, OpResult, Ops, Pending};
use crate::batch::Batch;
use crate::config::ModelConfig;
use crate::error::OpError;
use crate::rank::shard::Shard;
use crate::weights::HostTensor;

/// Rows whose logits are held at once: whole vocabularies are long.
const LOGIT_ROWS: usize = 256;

/// The library for matrix products wants rows that start at multiples of 16 bytes.
const ROW_UNIT: usize = 8;

/// What a GPU rank is made for.
pub struct CudaSpec<'a> {
    /// The model.
    pub config: &'a ModelConfig,
    /// This rank's share of it.
    pub shard: &'a Shard,
    /// The GPU.
    pub gpu: Gpu,
    /// Requests running at once.
    pub slots: usize,
    /// Tokens of a step.
    pub chunk_tokens: usize,
    /// Tokens a KV page.
    pub page_size: usize,
    /// Positions of a request.
    pub max_len: usize,
}

/// One GPU rank.
pub struct CudaOps {
    device: Device,
    gemm: Gemm,
    attention: PagedAttention,
    uploader: RefCell<Option<Uploader>>,
    weight_bytes: AtomicU64,
    /// Rows and inputs of each matrix, once.
    shapes: RefCell<BTreeSet<(usize, usize)>>,
    qkv_bias: bool,
    chunk_tokens: usize,
    layers: usize,
    heads: Heads,
    eps: f32,
    vocab: usize,
    inputs: Inputs,
    requests: Requests,
    outputs: Outputs,
    /// What the step in hand sends back.
    outgoing: Option<Outgoing>,
    graphs: Graphs,
    mode: Mode,
    /// For each position `head_dim / 2` cosines, then as many sines.
    cos_sin: CudaSlice<f32>,
    /// Rotated queries of one layer, `[tokens, q_heads, head_dim]`.
    queries: CudaSlice<bf16>,
    /// Keys and values of each layer, `[pages, page_size, kv_heads, head_dim]`.
    kv: Vec<(CudaSlice<bf16>, CudaSlice<bf16>)>,
    kv_pages: usize,
    /// `[LOGIT_ROWS, logit_stride]`, and the sampler's scratch.
    logits: CudaSlice<f32>,
    logit_stride: usize,
    scratch: CudaSlice<f32>,
}

/// A weight matrix `[rows, inputs]`, its rows padded with zeros to a multiple of [`ROW_UNIT`].
pub struct Matrix {
    data: CudaSlice<bf16>,
    rows: usize,
    inputs: usize,
}

impl Matrix {
    fn padded_rows(&self) -> usize {
        self.rows.next_multiple_of(ROW_UNIT)
    }
}

/// Activations `[rows, width]`.
pub struct Buffer {
    data: CudaSlice<bf16>,
    rows: usize,
    width: usize,
}

impl Buffer {
    fn rows(&self, rows: usize) -> CudaView<'_, bf16> {
        self.data.slice(..rows * self.width)
    }

    fn rows_mut(&mut self, rows: usize) -> CudaViewMut<'_, bf16> {
        self.data.slice_mut(..rows * self.width)
    }
}

/// Where an array is.
fn address<T>(array: &CudaSlice<T>) -> u64 {
    array.device_ptr(array.stream()).0
}

/// An op's failure, in the words of what failed.
fn failed<E: ToString>(operation: &'static str) -> impl Fn(E) -> OpError {
    move |error| OpError { operation, reason: error.to_string() }
}

/// As many rows as a product is run for: few enough different numbers that each is prepared at load.
/// Rows past the batch hold what earlier steps left there, and nothing reads what comes of them.
fn gemm_rows(rows: usize, room: usize) -> usize {
    let rounded = match rows {
        0..=16 => rows.next_power_of_two(),
        17..=256 => rows.next_multiple_of(16),
        _ => rows.next_multiple_of(64),
    };
    rounded.min(room)
}

/// Decode steps after which every graph of up to `rows_max` rows is recorded, by their rows.
pub fn decode_rows(rows_max: usize) -> Vec<usize> {
    let rows_max = rows_max.min(LOGIT_ROWS);
    let all: BTreeSet<usize> = (1..=rows_max).map(|rows| gemm_rows(rows, rows_max)).collect();
    all.into_iter().flat_map(|rows| [rows, rows]).collect()
}

impl CudaOps {
    /// A rank without weights or KV pages.
    ///
    /// # Errors
    /// There are no kernels for this model, or no memory.
    pub fn new(spec: CudaSpec<'_>) -> OpResult<CudaOps> {
        let CudaSpec { config, shard, gpu, slots, chunk_tokens, page_size, max_len } = spec;
        check(config, shard)?;
        let heads = Heads {
            q_heads: shard.heads.len(),
            kv_heads: shard.kv_heads.len(),
            head_dim: config.head_dim,
            page_size,
        };
        let (device, gemm) = gpu.into_parts();
        let memory = |error: DriverError| failed("allocate workspaces")(error);
        let stream = device.stream().clone();
        let rows = slots.min(chunk_tokens);
        let limits = AttentionLimits { rows: chunk_tokens, requests: rows };
        let attention = PagedAttention::new(&device, heads, KvType::Bf16, limits)
            .map_err(failed("prepare attention"))?;
        let room = Room { tokens: chunk_tokens, rows, pages: rows * max_len.div_ceil(page_size) };
        let logit_rows = rows.min(LOGIT_ROWS);
        let logit_stride = config.vocab_size.next_multiple_of(ROW_UNIT);
        let scratch = sample_scratch_len(&device, logit_rows, config.vocab_size, logit_stride);
        let table = stream.clone_htod(&cos_sin(config, max_len)).map_err(memory)?;
        let queries = chunk_tokens * heads.q_heads * heads.head_dim;
        Ok(CudaOps {
            attention,
            uploader: RefCell::new(Some(Uploader::new(&stream).map_err(memory)?)),
            weight_bytes: 0.into(),
            shapes: RefCell::default(),
            qkv_bias: config.qkv_bias,
            chunk_tokens,
            layers: config.layers,
            heads,
            eps: config.rms_norm_eps,
            vocab: config.vocab_size,
            inputs: Inputs::new(&stream, room).map_err(memory)?,
            requests: Requests::new(&stream, slots, config.vocab_size, max_len).map_err(memory)?,
            outputs: Outputs::new(&stream, rows).map_err(memory)?,
            outgoing: None,
            graphs: Graphs::new(logit_rows),
            mode: Mode::Eager,
            cos_sin: table,
            queries: stream.alloc_zeros(queries).map_err(memory)?,
            kv: Vec::new(),
            kv_pages: 0,
            logits: stream.alloc_zeros(logit_rows * logit_stride).map_err(memory)?,
            logit_stride,
            scratch: stream.alloc_zeros(scratch.max(1)).map_err(memory)?,
            gemm,
            device,
        })
    }

    /// As many rows as an op issues of `rows`: those of the graph, and none while one is replayed.
    fn issued(&self, rows: usize) -> usize {
        match self.mode {
            Mode::Eager => rows,
            Mode::Padded(padded) => padded,
            Mode::Replay(_) => 0,
        }
    }

    fn stream(&self) -> &Arc<CudaStream> {
        self.device.stream()
    }

    fn upload(&self, parts: &[HostTensor], len: usize) -> OpResult<CudaSlice<bf16>> {
        let mut uploader = self.uploader.borrow_mut();
        let uploader = uploader
            .as_mut()
            .ok_or_else(|| failed("upload weights")("loading was over: KV pages are allocated"))?;
        let array = uploader.upload(self.stream(), parts, len).map_err(failed("upload weights"))?;
        self.weight_bytes.fetch_add(array.num_bytes() as u64, Ordering::Relaxed);
        Ok(array)
    }

    /// Samples `rows` of the sampled rows: their logits, then their tokens.
    fn sample_rows(&mut self, rows: Range<usize>, head: &Matrix, hidden: &Buffer) -> OpResult {
        let (count, width) = (rows.len(), hidden.width);
        let m =
            gemm_rows(count, self.logits.len() / self.logit_stride).min(hidden.rows - rows.start);
        let x = hidden.data.slice(rows.start * width..(rows.start + m) * width);
        let mut out = self.logits.slice_mut(..m * self.logit_stride);
        let product = GemmArgs {
            x: (&x).into(),
            weight: (&head.data).into(),
            bias: None,
            out: GemmOut::F32((&mut out).into()),
            m,
            n: head.padded_rows(),
            k: head.inputs,
        };
        self.gemm.launch(&self.device, product).map_err(failed("logits"))?;

        let CudaOps { device, inputs, requests, outputs, .. } = self;
        let logits = self.logits.slice(..count * self.logit_stride);
        let scratch_len = sample_scratch_len(device, count, self.vocab, self.logit_stride);
        let tops = rows.start * TOP_MAX..rows.end * TOP_MAX;
        let sample = |params: &CudaView<'_, _>| {
            Sample {
                logits: (&logits).into(),
                params: params.into(),
                bias_tokens: (&requests.bias_tokens).into(),
                bias_values: (&requests.bias_values).into(),
                banned: (&requests.banned).into(),
                marks: (&mut requests.marks).into(),
                scratch: (&mut self.scratch.slice_mut(..scratch_len)).into(),
                tokens: (&mut outputs.tokens).into(),
                logprob: (&mut outputs.logprob.slice_mut(rows.clone())).into(),
                top_tokens: (&mut outputs.top_tokens.slice_mut(tops.clone())).into(),
                top_logprobs: (&mut outputs.top_logprobs.slice_mut(tops)).into(),
                rows: count,
                vocab: self.vocab,
                stride: self.logit_stride,
                top_max: TOP_MAX,
            }
            .launch(device)
        };
        inputs.with_samples(rows.clone(), sample).map_err(failed("sample"))
    }

    /// One RMSNorm, with or without the sum before it.
    fn norm(
        &self,
        rows: usize,
        x: &Buffer,
        residual: Option<&mut Buffer>,
        weight: &CudaSlice<bf16>,
        out: &mut Buffer,
    ) -> OpResult {
        let (rows, hidden) = (self.issued(rows), x.width);
        if rows == 0 {
            return Ok(());
        }
        let mut residual = residual.map(|residual| residual.rows_mut(rows));
        RmsNorm {
            x: (&x.rows(rows)).into(),
            residual: residual.as_mut().map(Into::into),
            weight: weight.into(),
            out: (&mut out.rows_mut(rows)).into(),
            rows,
            hidden,
            eps: self.eps,
        }
        .launch(&self.device)
        .map_err(failed("rms_norm"))
    }
}

impl Drop for CudaOps {
    /// What is in flight must not outlive the pinned memory that it copies from and to.
    fn drop(&mut self) {
        // A GPU that has failed reads and writes nothing any more.
        let _ = self.device.synchronize();
    }
}

impl Ops for CudaOps {
    type Matrix = Matrix;
    type Vector = CudaSlice<bf16>;
    type Buffer = Buffer;

    fn matrix(&self, parts: Vec<HostTensor>, inputs: usize) -> OpResult<Matrix> {
        let rows = parts.iter().map(HostTensor::len).sum::<usize>() / inputs;
        let data = self.upload(&parts, rows.next_multiple_of(ROW_UNIT) * inputs)?;
        let matrix = Matrix { data, rows, inputs };
        self.shapes.borrow_mut().insert((matrix.padded_rows(), inputs));
        Ok(matrix)
    }

    fn vector(&self, parts: Vec<HostTensor>) -> OpResult<CudaSlice<bf16>> {
        let len = parts.iter().map(HostTensor::len).sum();
        self.upload(&parts, len)
    }

    fn buffer(&self, rows: usize, width: usize) -> OpResult<Buffer> {
        let data = self.stream().alloc_zeros(rows * width);
        Ok(Buffer { data: data.map_err(failed("allocate activations"))?, rows, width })
    }

    fn weight_bytes(&self) -> u64 {
        self.weight_bytes.load(Ordering::Relaxed)
    }

    fn finish_loading(&mut self) -> OpResult {
        self.device.synchronize().map_err(failed("upload weights"))?;
        *self.uploader.borrow_mut() = None;
        self.prepare_products()
    }

    fn allocate_kv(&mut self, pages: usize) -> OpResult {
        let Heads { kv_heads, head_dim, page_size, .. } = self.heads;
        let len = pages * page_size * kv_heads * head_dim + self.heads.pages_slack();
        // Zeros: what no request wrote must not be NaN.
        let array = || self.stream().alloc_zeros(len).map_err(failed("allocate KV pages"));
        self.kv = (0..self.layers).map(|_| Ok((array()?, array()?))).collect::<OpResult<_>>()?;
        self.kv_pages = pages;
        Ok(())
    }

    fn step<T: Send>(
        &mut self,
        batch: &Batch,
        installs: &[Install],
        forward: impl FnOnce(&mut Self) -> OpResult<T> + Send,
    ) -> OpResult<T> {
        for install in installs {
            self.requests.install(&self.device, install)?;
        }
        let (mode, record) = self.graphs.mode(batch);
        self.mode = mode;
        let padded = match mode {
            Mode::Eager => None,
            Mode::Padded(rows) | Mode::Replay(rows) => Some(rows),
        };
        let CudaOps { device, inputs, requests, attention, .. } = self;
        let samples = batch.sampled().iter().map(|sampled| {
            let row = &batch.rows()[sampled.row as usize];
            requests.sample_row(row.slot, row.sample_position(), sampled.row as usize)
        });
        let of_pages = (self.heads.page_size, self.kv_pages);
        let [q_starts, page_starts, last_page_len] = inputs
            .upload(device.stream(), batch, samples, of_pages, padded)
            .map_err(failed("upload the step"))?;
        let graph = padded.is_some();
        let plan = AttentionBatch { q_starts, page_starts, last_page_len, graph };
        attention.plan(device, plan).map_err(failed("plan attention"))?;

        let stream = self.stream().clone();
        if record {
            graphs::begin(&stream).map_err(failed("record a step"))?;
        }
        let done = forward(self);
        let recorded = if record { Some(graphs::end(&stream)) } else { None };
        let done = done?;
        if let Some(rows) = padded {
            if let Some(recorded) = recorded {
                self.graphs.keep(rows, recorded.map_err(failed("record a step"))?);
            }
            if record || matches!(mode, Mode::Replay(_)) {
                self.graphs.replay(rows).map_err(failed("run a recorded step"))?;
            } else {
                self.graphs.ran(rows);
            }
        }
        if let Some(outgoing) = self.outgoing.take() {
            self.outputs.send(&stream, &outgoing).map_err(failed("send tokens"))?;
        }
        Ok(done)
    }

    fn embed(&mut self, batch: &Batch, table: &Matrix, out: &mut Buffer) -> OpResult {
        let (rows, hidden) = (self.issued(batch.tokens().len()), out.width);
        if rows == 0 {
            return Ok(());
        }
        Embedding {
            tokens: (&self.inputs.tokens()).into(),
            fed: (&self.outputs.tokens).into(),
            table: (&table.data.slice(..table.rows * hidden)).into(),
            out: (&mut out.rows_mut(rows)).into(),
            rows,
            hidden,
            vocab_start: 0,
            vocab_len: table.rows,
        }
        .launch(&self.device)
        .map_err(failed("embed"))
    }

    fn rms_norm(
        &mut self,
        rows: usize,
        x: &Buffer,
        weight: &CudaSlice<bf16>,
        out: &mut Buffer,
    ) -> OpResult {
        self.norm(rows, x, None, weight, out)
    }

    fn add_rms_norm(
        &mut self,
        rows: usize,
        delta: &Buffer,
        residual: &mut Buffer,
        weight: &CudaSlice<bf16>,
        out: &mut Buffer,
    ) -> OpResult {
        self.norm(rows, delta, Some(residual), weight, out)
    }

    /// There is one rank.
    fn all_reduce(&mut self, _rows: usize, _x: &mut Buffer) -> OpResult {
        Ok(())
    }

    fn linear(
        &mut self,
        rows: usize,
        weight: &Matrix,
        bias: Option<&CudaSlice<bf16>>,
        x: &Buffer,
        out: &mut Buffer,
    ) -> OpResult {
        let rows = self.issued(rows);
        if rows == 0 {
            return Ok(());
        }
        let m = gemm_rows(rows, x.rows.min(out.rows));
        let (x, mut out) = (x.rows(m), out.rows_mut(m));
        let product = GemmArgs {
            x: (&x).into(),
            weight: (&weight.data).into(),
            bias: bias.map(Array::from),
            out: GemmOut::Bf16((&mut out).into()),
            m,
            n: weight.padded_rows(),
            k: weight.inputs,
        };
        self.gemm.launch(&self.device, product).map_err(failed("linear"))
    }

    fn norm_rope_write_kv(
        &mut self,
        batch: &Batch,
        layer: usize,
        norms: Option<&HeadNorms<Self>>,
        qkv: &mut Buffer,
    ) -> OpResult {
        let rows = self.issued(batch.tokens().len());
        if rows == 0 {
            return Ok(());
        }
        let Heads { q_heads, kv_heads, head_dim, .. } = self.heads;
        let (keys, values) = self.kv.get_mut(layer).ok_or_else(no_kv)?;
        let len = keys.len() - self.heads.pages_slack();
        QkRopePage {
            qkv: (&qkv.rows(rows)).into(),
            bias: None,
            norm: norms.map(|norms| QkNorm {
                q_weight: (&norms.query).into(),
                k_weight: (&norms.key).into(),
                eps: self.eps,
            }),
            cos_sin: (&self.cos_sin).into(),
            positions: (&self.inputs.positions()).into(),
            slots: (&self.inputs.kv_slots()).into(),
            q_out: ArrayMut::from(&mut self.queries.slice_mut(..rows * q_heads * head_dim)).into(),
            k_pages: ArrayMut::from(&mut keys.slice_mut(..len)).into(),
            v_pages: ArrayMut::from(&mut values.slice_mut(..len)).into(),
            rows,
            q_heads,
            kv_heads,
            head_dim,
        }
        .launch(&self.device)
        .map_err(failed("norm_rope_write_kv"))
    }

    fn attention(
        &mut self,
        batch: &Batch,
        layer: usize,
        _qkv: &Buffer,
        out: &mut Buffer,
    ) -> OpResult {
        let rows = self.issued(batch.tokens().len());
        if rows == 0 {
            return Ok(());
        }
        let Heads { q_heads, head_dim, .. } = self.heads;
        let (keys, values) = self.kv.get(layer).ok_or_else(no_kv)?;
        let (queries, mut out) =
            (self.queries.slice(..rows * q_heads * head_dim), out.rows_mut(rows));
        let inputs = &self.inputs;
        let (q_starts, page_starts) = (inputs.q_starts(), inputs.page_starts());
        let (pages, last_page_len) = (inputs.pages(), inputs.last_page_len());
        let args = PagedAttentionArgs {
            q: Array::from(&queries).into(),
            k_pages: Array::from(keys).into(),
            v_pages: Array::from(values).into(),
            out: (&mut out).into(),
            q_starts: (&q_starts).into(),
            page_starts: (&page_starts).into(),
            pages: (&pages).into(),
            last_page_len: (&last_page_len).into(),
            scale: 1.0 / (head_dim as f32).sqrt(),
        };
        // SAFETY: `step` planned with the same starts that it uploaded, and packing checked that pages
        // are below their number, that last pages have 1 to `page_size` tokens, and that a request
        // has its row's tokens at least.
        unsafe { self.attention.launch(&self.device, args) }.map_err(failed("attention"))
    }

    fn silu_mul(&mut self, rows: usize, gate_up: &Buffer, out: &mut Buffer) -> OpResult {
        let (rows, width) = (self.issued(rows), out.width);
        if rows == 0 {
            return Ok(());
        }
        SiluMul {
            gate_up: (&gate_up.rows(rows)).into(),
            out: (&mut out.rows_mut(rows)).into(),
            rows,
            width,
        }
        .launch(&self.device)
        .map_err(failed("silu_mul"))
    }

    fn gather_sampled(&mut self, batch: &Batch, from: &Buffer, to: &mut Buffer) -> OpResult {
        let rows = self.issued(batch.sampled().len());
        let (x_rows, hidden) = (self.issued(batch.tokens().len()), from.width);
        if rows == 0 {
            return Ok(());
        }
        Gather {
            x: (&from.rows(x_rows)).into(),
            index: (&self.inputs.sampled()).into(),
            out: (&mut to.rows_mut(rows)).into(),
            rows,
            x_rows,
            hidden,
        }
        .launch(&self.device)
        .map_err(failed("gather_sampled"))
    }

    fn sample(
        &mut self,
        batch: &Batch,
        head: &Matrix,
        hidden: &Buffer,
    ) -> OpResult<Box<dyn Pending>> {
        let rows = self.issued(batch.sampled().len());
        for start in (0..rows).step_by(LOGIT_ROWS) {
            self.sample_rows(start..rows.min(start + LOGIT_ROWS), head, hidden)?;
        }
        let wanted = batch.sampled().iter().map(|sampled| Wanted {
            row: sampled.row as usize,
            logprobs: self.requests.logprobs(batch.rows()[sampled.row as usize].slot),
        });
        let (pending, outgoing) = self.outputs.expect(batch.rows().len(), wanted.collect())?;
        self.outgoing = Some(outgoing);
        Ok(pending)
    }
}

fn no_kv() -> OpError {
    OpError { operation: "attention", reason: "KV pages were never allocated".to_owned() }
}
