//! The readable reference: every op in f32, on the threads of one rank.
//!
//! Owns: the CPU's memory for weights, activations and KV pages, and its thread pool. Must never: let
//! a row's result depend on the rest of the batch: every op computes a row by the same additions in the
//! same order, whatever runs beside it, whatever the page size, and however a prompt was chunked.

mod attention;
mod coded;
mod elementwise;
mod experts;
mod kv;
mod linear;
mod simd;
#[cfg(test)]
mod tests;

pub use kv::KvElement;
pub use linear::{Matrix, linear};

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use minisgl_proto::Sampled;
use minisgl_sched::Late;
use minisgl_sched::guide::mask_words;
use pulp::Arch;

use self::attention::Heads;
use self::kv::KvPages;
use self::linear::widen;
use super::{
    Around, Attention, Experts, HeadNorms, Linear, Norm, OpResult, Ops, Pass, Pending, Scratch,
    StackShape, Storage, Stream,
};
use crate::batch::Batch;
use crate::collective::Member;
use crate::config::{Activation, ModelConfig, RopeConfig};
use crate::error::OpError;
use crate::kv_groups::KvGroups;
use crate::rope::{self, Pair};
use crate::sampler::Sampler;
use crate::shard::{Shard, vocab_share};
use crate::weights::{MatrixPart, TensorPart};

/// Rows whose logits are held at once: whole vocabularies are long.
const LOGIT_ROWS: usize = 32;

/// What a rank of CPU ops is made for.
pub struct CpuSpec<'a> {
    /// The model.
    pub config: &'a ModelConfig,
    /// This rank's share of it.
    pub shard: &'a Shard,
    /// Seat among the ranks.
    pub member: Member,
    /// Threads of this rank.
    pub threads: usize,
    /// Requests running at once.
    pub slots: usize,
    /// Of those, requests with penalties.
    pub penalised: usize,
    /// Tokens of a step.
    pub chunk_tokens: usize,
    /// Tokens of a step after which logits can be wanted.
    pub logit_rows: usize,
    /// Tokens a KV page.
    pub page_size: usize,
    /// Which layers share pages.
    pub groups: KvGroups,
    /// Element type of the KV pages.
    pub kv_element: KvElement,
}

/// One CPU rank.
pub struct CpuOps {
    arch: Arch,
    pool: Arc<rayon::ThreadPool>,
    member: Member,
    weight_bytes: AtomicU64,
    groups: KvGroups,
    heads: Heads,
    eps: f32,
    page_size: usize,
    kv_element: KvElement,
    kv: Option<KvPages>,
    /// One for each rotation that layers name.
    ropes: Vec<Rotation>,
    attention_scale: f32,
    activation: Activation,
    vocab_size: usize,
    vocab: Range<usize>,
    sampler: Sampler,
    /// What each slot sampled last.
    last_sampled: Vec<u32>,
    /// What the step in hand sampled and scored.
    sampled: Vec<Sampled>,
    /// Its masks, concatenated.
    masks: Vec<u32>,
    /// Products on their way from columns to rows. This and what follows is as long as the largest step needs it from
    /// the start: the system gives the memory when it is first written.
    scratch: Vec<f32>,
    /// What a block adds to the residual stream, `[chunk_tokens, hidden]`.
    delta: Vec<f32>,
    /// `[LOGIT_ROWS, vocab]`, and this rank's columns of it.
    logits: Vec<f32>,
    logits_part: Vec<f32>,
}

/// A rotation, and its angles for the current batch.
struct Rotation {
    pairs: Vec<Pair>,
    /// `[tokens, head_dim / 2]`
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rotation {
    /// With room for `angles`.
    fn new(rope: &RopeConfig, head_dim: usize, angles: usize) -> Rotation {
        let (cos, sin) = (Vec::with_capacity(angles), Vec::with_capacity(angles));
        Rotation { pairs: rope::pairs(rope, head_dim), cos, sin }
    }

    fn prepare(&mut self, positions: &[u32]) {
        self.cos.clear();
        self.sin.clear();
        for &position in positions {
            for pair in &self.pairs {
                let (cos, sin) = pair.at(position as usize);
                self.cos.push(cos);
                self.sin.push(sin);
            }
        }
    }
}

/// Activations `[rows, width]`.
pub struct Buffer {
    pub(super) data: Vec<f32>,
    pub(super) width: usize,
}

impl Buffer {
    fn rows(&self, rows: usize) -> &[f32] {
        &self.data[..rows * self.width]
    }

    fn rows_mut(&mut self, rows: usize) -> &mut [f32] {
        &mut self.data[..rows * self.width]
    }
}

impl CpuOps {
    /// A rank without weights or KV pages.
    ///
    /// # Errors
    /// The system gives no threads.
    pub fn new(spec: CpuSpec<'_>) -> OpResult<CpuOps> {
        let CpuSpec { config, shard, mut member, threads, slots, chunk_tokens, .. } = spec;
        let CpuSpec { penalised, logit_rows, page_size, kv_element, .. } = spec;
        let rank = shard.rank;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(move |index| format!("rank{rank}-cpu{index}"))
            .build()
            .map_err(|error| OpError {
                operation: "start compute threads",
                reason: format!("{threads} threads: {error}"),
            })?;
        let (heads, kv_heads) = (shard.heads.len(), shard.kv_heads.len());
        let logits = LOGIT_ROWS.min(logit_rows);
        let delta = chunk_tokens * config.hidden_size;
        // Outputs of the widest product of all tokens, and those of the head.
        let qkv = (heads + 2 * kv_heads) * config.head_dim;
        let widest = qkv.max(shard.ffn_outputs(config)).max(config.hidden_size);
        let scratch = (chunk_tokens * widest).max(logits * shard.vocab.len());
        let is_alone = member.ranks() == 1;
        if !is_alone {
            member.reserve(delta.max(logits * shard.vocab.len()));
        }
        let angles = chunk_tokens * config.head_dim / 2;
        let rotation = |rope: &RopeConfig| Rotation::new(rope, config.head_dim, angles);
        Ok(CpuOps {
            arch: Arch::new(),
            pool: Arc::new(pool),
            member,
            weight_bytes: 0.into(),
            groups: spec.groups,
            heads: Heads { heads, kv_heads, head_dim: config.head_dim },
            eps: config.rms_norm_eps,
            page_size,
            kv_element,
            kv: None,
            ropes: config.ropes.iter().map(rotation).collect(),
            attention_scale: config.attention_scale,
            activation: config.activation,
            vocab_size: config.vocab_size,
            vocab: shard.vocab.clone(),
            sampler: Sampler::new(slots, penalised, config.vocab_size),
            last_sampled: vec![0; slots],
            sampled: Vec::new(),
            masks: Vec::new(),
            scratch: vec![0.0; scratch],
            delta: vec![0.0; delta],
            logits: vec![0.0; logits * config.vocab_size],
            logits_part: if is_alone { Vec::new() } else { vec![0.0; logits * shard.vocab.len()] },
        })
    }

    fn count(&self, bytes: usize) {
        self.weight_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Sums `x` over all ranks, in the order of ranks.
    fn all_reduce(&mut self, rows: usize, x: &mut Buffer) -> OpResult {
        if self.member.ranks() == 1 {
            return Ok(());
        }
        self.member.all_reduce(x.rows_mut(rows))
    }

    fn kv(&self) -> OpResult<&KvPages> {
        self.kv.as_ref().ok_or_else(no_kv)
    }

    /// RMSNorm on each query and key head.
    fn head_norm(&mut self, rows: usize, norms: &HeadNorms<Self>, qkv: &mut Buffer) {
        let Heads { heads, kv_heads, head_dim } = self.heads;
        let (stride, keys_at) = (qkv.width, heads * head_dim);
        let (arch, eps, x) = (self.arch, self.eps, qkv.rows_mut(rows));
        elementwise::head_norm(arch, x, stride, 0, heads, &norms.query, eps);
        elementwise::head_norm(arch, x, stride, keys_at, kv_heads, &norms.key, eps);
    }

    /// Rotates query and key heads by their tokens' positions.
    fn rope(&mut self, rows: usize, rope: usize, qkv: &mut Buffer) {
        let Heads { heads, kv_heads, head_dim } = self.heads;
        let stride = qkv.width;
        let (x, rotation) = (qkv.rows_mut(rows), &self.ropes[rope]);
        elementwise::rope(x, stride, heads + kv_heads, head_dim, &rotation.cos, &rotation.sin);
    }

    /// `out = x weight^T (+ bias)`.
    fn linear(&mut self, rows: usize, linear: &Linear<Self>, x: &Buffer, out: &mut Buffer) {
        let bias = linear.bias.as_deref();
        let (x, out) = (x.rows(rows), out.rows_mut(rows));
        linear::linear(self.arch, &linear.weight, bias, x, out, &mut self.scratch);
    }

    /// Leaves the norm of the stream in it.
    fn normalise(&mut self, rows: usize, stream: &mut Stream<Self>, norm: &Norm<Self>) {
        let Stream { residual, normed, .. } = stream;
        elementwise::rms_norm(
            self.arch,
            residual.rows(rows),
            &norm.weight,
            self.eps,
            normed.rows_mut(rows),
        );
        stream.changed(Some(norm));
    }

    /// The end of a block whose share of this rank is `delta`: summed over ranks, normalised if the model says so,
    /// and added to the residual stream.
    fn add(
        &mut self,
        rows: usize,
        delta: &mut Buffer,
        after: Option<&Norm<Self>>,
        stream: &mut Stream<Self>,
    ) -> OpResult {
        self.all_reduce(rows, delta)?;
        let delta = match after {
            None => delta.rows(rows),
            Some(norm) => {
                let out = stream.normed.rows_mut(rows);
                elementwise::rms_norm(self.arch, delta.rows(rows), &norm.weight, self.eps, out);
                stream.normed.rows(rows)
            }
        };
        elementwise::add(delta, stream.residual.rows_mut(rows));
        stream.changed(None);
        Ok(())
    }

    /// The second part of a step.
    fn read(&mut self, batch: &Batch, pass: &mut impl Pass<Self>) -> OpResult<Box<dyn Pending>> {
        let pool = self.pool.clone();
        pool.install(|| pass.read(self, batch))?;
        Ok(Box::new(Done(std::mem::take(&mut self.sampled))))
    }

    /// A buffer for what a block adds to the residual stream, which [`CpuOps::add`] takes.
    fn delta(&mut self, width: usize) -> Buffer {
        Buffer { data: std::mem::take(&mut self.delta), width }
    }

    /// Copies keys and values into their pages.
    fn write_kv(&mut self, batch: &Batch, layer: usize, qkv: &Buffer) -> OpResult {
        let keys_at = self.heads.heads * self.heads.head_dim;
        let rows = qkv.rows(batch.tokens().len());
        let kv = self.kv.as_mut().ok_or_else(no_kv)?;
        kv.write(batch, layer, rows, qkv.width, keys_at);
        Ok(())
    }
}

fn no_kv() -> OpError {
    OpError { operation: "attention", reason: "KV pages were never allocated".to_owned() }
}

/// A step that is over when it returns.
struct Done(Vec<Sampled>);

impl Pending for Done {
    fn wait(self: Box<Self>) -> OpResult<Vec<Sampled>> {
        Ok(self.0)
    }
}

impl Storage for CpuOps {
    type Matrix = Matrix;
    type Vector = Vec<f32>;
    type Stack = Matrix;
}

impl Ops for CpuOps {
    type Buffer = Buffer;

    fn matrix(&self, parts: &[MatrixPart<'_>], inputs: usize) -> OpResult<Matrix> {
        let matrix = Matrix::of(parts, inputs, self.arch);
        self.count(matrix.bytes());
        Ok(matrix)
    }

    /// One matrix, as tall as all experts'.
    fn stack(&self, parts: &[MatrixPart<'_>], shape: StackShape) -> OpResult<Matrix> {
        self.matrix(parts, shape.inputs)
    }

    fn vector(&self, parts: &[TensorPart<'_>]) -> OpResult<Vec<f32>> {
        let vector = widen(parts.iter().map(TensorPart::load).collect());
        self.count(size_of_val(vector.as_slice()));
        Ok(vector)
    }

    fn vector_plus_one(&self, part: TensorPart<'_>) -> OpResult<Vec<f32>> {
        let mut vector = self.vector(&[part])?;
        vector.iter_mut().for_each(|value| *value += 1.0);
        Ok(vector)
    }

    fn buffer(&self, rows: usize, width: usize) -> OpResult<Buffer> {
        Ok(Buffer { data: vec![0.0; rows * width], width })
    }

    fn weight_bytes(&self) -> u64 {
        self.weight_bytes.load(Ordering::Relaxed)
    }

    fn reserve_kv(&mut self, pages: usize) -> OpResult {
        let Heads { kv_heads, head_dim, .. } = self.heads;
        let (element, groups, page_size) = (self.kv_element, self.groups.clone(), self.page_size);
        self.kv = Some(KvPages::new(element, groups, pages, kv_heads, page_size, head_dim)?);
        Ok(())
    }

    fn step(
        &mut self,
        batch: &Batch,
        pass: &mut impl Pass<Self>,
    ) -> OpResult<Option<Box<dyn Pending>>> {
        batch.plan().installs.iter().for_each(|install| self.sampler.install(install));
        self.ropes.iter_mut().for_each(|rope| rope.prepare(batch.positions()));
        let pool = self.pool.clone();
        pool.install(|| pass.forward(self, batch))?;
        match batch.plan().masked.is_empty() {
            true => self.read(batch, pass).map(Some),
            false => Ok(None),
        }
    }

    fn complete(
        &mut self,
        batch: &Batch,
        late: &Late,
        pass: &mut impl Pass<Self>,
    ) -> OpResult<Box<dyn Pending>> {
        self.masks.clone_from(&late.masks);
        self.read(batch, pass)
    }

    fn embed(
        &mut self,
        batch: &Batch,
        table: &Matrix,
        scale: f32,
        stream: &mut Stream<Self>,
    ) -> OpResult {
        let tokens = batch.tokens();
        let out = &mut stream.residual;
        let width = out.width;
        let mut fed_back = batch.fed_back().peekable();
        for (at, (token, out)) in tokens.iter().zip(out.data.chunks_exact_mut(width)).enumerate() {
            let id = match fed_back.next_if(|&(index, _)| index == at) {
                Some((_, slot)) => self.last_sampled[slot as usize] as usize,
                None => *token as usize,
            };
            if self.vocab.contains(&id) {
                table.row(self.arch, id - self.vocab.start, out);
            } else {
                out.fill(0.0);
            }
            if scale != 1.0 {
                out.iter_mut().for_each(|value| *value *= scale);
            }
        }
        self.all_reduce(tokens.len(), out)?;
        stream.changed(None);
        Ok(())
    }

    fn norm_wanted(
        &mut self,
        batch: &Batch,
        stream: &Stream<Self>,
        norm: &Norm<Self>,
        out: &mut Buffer,
    ) -> OpResult {
        let width = out.width;
        for (row, out) in batch.logit_rows().iter().zip(out.data.chunks_exact_mut(width)) {
            let x = &stream.residual.data[row.token as usize * width..][..width];
            elementwise::rms_norm(self.arch, x, &norm.weight, self.eps, out);
        }
        Ok(())
    }

    fn norm_linear(
        &mut self,
        rows: usize,
        stream: &mut Stream<Self>,
        norm: &Norm<Self>,
        linear: &Linear<Self>,
        out: &mut Buffer,
    ) -> OpResult {
        self.normalise(rows, stream, norm);
        self.linear(rows, linear, &stream.normed, out);
        Ok(())
    }

    fn norm_gated(
        &mut self,
        rows: usize,
        stream: &mut Stream<Self>,
        norm: &Norm<Self>,
        [linear, _]: [&Linear<Self>; 2],
        scratch: &mut Scratch<Self>,
        out: &mut Buffer,
    ) -> OpResult {
        // The scratch is as wide as the widest block, rows are as wide as this one.
        let width = linear.weight.outputs() / 2;
        self.normalise(rows, stream, norm);
        let mut gate_up =
            Buffer { data: std::mem::take(&mut scratch.gate_up.data), width: 2 * width };
        self.linear(rows, linear, &stream.normed, &mut gate_up);
        out.width = width;
        elementwise::activate(
            self.arch,
            self.activation,
            gate_up.rows(rows),
            out.rows_mut(rows),
            width,
        );
        scratch.gate_up.data = gate_up.data;
        Ok(())
    }

    fn linear_add(
        &mut self,
        rows: usize,
        linear: &Linear<Self>,
        x: &Buffer,
        norms: Around<'_, Self>,
        stream: &mut Stream<Self>,
    ) -> OpResult {
        let mut delta = self.delta(stream.residual.width);
        self.linear(rows, linear, x, &mut delta);
        let added = self.add(rows, &mut delta, norms.after, stream);
        self.delta = delta.data;
        added
    }

    fn experts_add(
        &mut self,
        rows: usize,
        norm: &Norm<Self>,
        experts: &Experts<Self>,
        norms: Around<'_, Self>,
        stream: &mut Stream<Self>,
    ) -> OpResult {
        self.normalise(rows, stream, norm);
        let mut delta = self.delta(stream.residual.width);
        let (x, out) = (stream.normed.rows(rows), delta.rows_mut(rows));
        experts::experts(self.arch, self.activation, experts, x, out, &mut self.scratch);
        let added = self.add(rows, &mut delta, norms.after, stream);
        self.delta = delta.data;
        added
    }

    fn attention(
        &mut self,
        batch: &Batch,
        attention: &Attention<Self>,
        qkv: &mut Buffer,
        out: &mut Buffer,
        _: Option<&Linear<Self>>,
    ) -> OpResult {
        let tokens = batch.tokens().len();
        if let Some(norms) = &attention.norms {
            self.head_norm(tokens, norms, qkv);
        }
        self.rope(tokens, attention.spec.rope, qkv);
        self.write_kv(batch, attention.layer, qkv)?;
        let view = attention::View {
            scale: self.attention_scale,
            window: attention.spec.window,
            sinks: attention.sinks.as_deref(),
        };
        let (qkv, out) = (qkv.rows(tokens), out.rows_mut(tokens));
        let layer = attention.layer;
        attention::attention(self.arch, self.heads, view, (self.kv()?, layer), batch, qkv, out);
        Ok(())
    }

    fn sample(&mut self, batch: &Batch, head: &Matrix, hidden: &Buffer) -> OpResult {
        let mut all = Vec::with_capacity(batch.logit_rows().len());
        let (ranks, vocab, part) = (self.member.ranks(), self.vocab_size, self.vocab.len());
        for (block, rows) in batch.logit_rows().chunks(LOGIT_ROWS).enumerate() {
            let x = &hidden.data[block * LOGIT_ROWS * hidden.width..][..rows.len() * hidden.width];
            let logits = &mut self.logits[..rows.len() * vocab];
            if ranks == 1 {
                linear(self.arch, head, None, x, logits, &mut self.scratch);
            } else {
                let own = &mut self.logits_part[..rows.len() * part];
                linear(self.arch, head, None, x, own, &mut self.scratch);
                let columns = |rank| vocab_share(vocab, ranks, rank);
                self.member.all_gather(own, vocab, columns, logits)?;
            }
            for (wanted, logits) in rows.iter().zip(self.logits.chunks_exact(vocab)) {
                let row = &batch.rows()[wanted.row as usize];
                all.push(match wanted.given {
                    Some(token) => self.sampler.score(row.slot, logits, token),
                    None => {
                        let words = mask_words(vocab);
                        let mask = batch.mask_of(wanted.row);
                        let mask = mask.map(|at| &self.masks[at * words..][..words]);
                        let position = row.next_position();
                        let sampled = self.sampler.sample(row.slot, logits, position, mask);
                        self.last_sampled[row.slot as usize] = sampled.token;
                        sampled
                    }
                });
            }
        }
        self.sampled = all;
        Ok(())
    }
}
