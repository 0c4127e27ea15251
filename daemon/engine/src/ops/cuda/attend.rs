//! Attention: rotation, KV pages, and the attention over them.
//!
//! Owns: which kernels serve which rows of a step, and the tables that layers differ in. Must never: write a page that
//! the plan does not name.
//!
//! ```text
//!   rows of a step    decode (one token each)          prefill (chunks of prompts)
//!   `fa`              one kernel: norm, rotation,      norm, rotation, pages (QkRopePage),
//!                     page write, attention; e4m3      then FlashAttention-3 style
//!                     where the next product takes it
//!   `fi`              QkRopePage, then FlashInfer      QkRopePage, then FlashInfer
//! ```
//!
//! Layers may differ in their window. A step is planned for each window of the model once, and all of its layers take
//! the same plan.

use std::collections::BTreeSet;

use cudarc::driver::{CudaSlice, DriverError};
use half::{bf16, f16};
use minisgl_kernels::attention::{
    AttentionBatch, AttentionError, AttentionLimits, Backend, Backends, DECODE_CODES_DIM,
    DECODE_GROUP_MAX, DecodeArgs, DecodeAttention, DecodeInput, DecodeOut, DecodePlanner, Heads,
    KvArray, KvArrayMut, KvType, PagedAttention, PagedAttentionArgs, Prefill, View,
};
use minisgl_kernels::fp8::ScaleForm;
use minisgl_kernels::ops::{QkNorm, QkRopePage};
use minisgl_kernels::{Array, ArrayMut, Device};

use super::inputs::{Inputs, Starts};
use super::kv::KvSpace;
use super::linear::Into;
use super::memory::CodesAt;
use super::prepare::cos_sin;
use super::quantised::{Codes, no_room};
use super::tables::Tables;
use super::{Buffer, CudaOps, LayerAttention, failed};
use crate::config::{AttentionSpec, ModelConfig};
use crate::error::OpError;
use crate::kv_groups::KvPlace;
use crate::ops::{Linear, OpResult};

/// The attention of every layer, and the plan of the step in hand.
pub(super) struct Attention {
    heads: Heads,
    kv: KvType,
    eps: f32,
    /// Weights of norms are stored less 1.
    plus_one: bool,
    /// What products of queries and keys are multiplied by.
    scale: f32,
    /// Those of the model's layers, each once; `None` is a layer whose tokens see all before them.
    windows: Vec<Option<u32>>,
    decode: Decode,
    prefill: Prefill,
    /// Of each rotation, for each position `head_dim / 2` cosines, then as many sines.
    cos_sin: Vec<CudaSlice<f32>>,
    /// Rotated queries of one layer, `[tokens, q_heads, head_dim]`: bf16, or fp16 where the pages are.
    queries: CudaSlice<u16>,
    /// Requests of the step that decode, padding included; they come first.
    decoding: usize,
    /// Requests of the step.
    requests: usize,
}

/// What attention depends on, the step aside.
pub(super) struct AttentionShape<'a> {
    pub(super) heads: Heads,
    pub(super) kv: KvType,
    pub(super) config: &'a ModelConfig,
    /// Positions of a request.
    pub(super) max_len: usize,
}

enum Decode {
    Fa(Box<DecodeAttention>),
    Fi(Box<PagedAttention>),
}

impl Attention {
    /// Kernels and workspaces for steps within `limits`.
    ///
    /// # Errors
    /// A backend that was asked for cannot serve this model or cache; or no memory.
    pub(super) fn new(
        device: &Device,
        shape: AttentionShape<'_>,
        limits: AttentionLimits,
        wanted: Backends,
    ) -> Result<Attention, AttentionError> {
        let AttentionShape { heads, kv, config, max_len } = shape;
        let windows = windows(config);
        let memory =
            |source: DriverError| AttentionError::Driver { what: "allocating workspaces", source };
        // Our own kernel is the faster one for every batch, where there is one.
        let own = heads.q_heads <= heads.kv_heads * DECODE_GROUP_MAX;
        let decode = match wanted.decode.unwrap_or(if own { Backend::Fa } else { Backend::Fi }) {
            Backend::Fa => Decode::Fa(Box::new(DecodeAttention::new(device, heads, kv)?)),
            Backend::Fi => {
                let limits = AttentionLimits { rows: limits.requests, ..limits };
                Decode::Fi(Box::new(PagedAttention::new(device, heads, kv, limits, &windows)?))
            }
        };
        let stream = device.stream();
        let queries = limits.rows * heads.q_heads * heads.head_dim;
        let table = |rope| stream.clone_htod(&cos_sin(rope, heads.head_dim, max_len));
        Ok(Attention {
            heads,
            kv,
            eps: config.rms_norm_eps,
            plus_one: config.norms.plus_one,
            scale: config.attention_scale,
            decode,
            prefill: Prefill::new(device, heads, kv, limits, &windows, wanted.prefill)?,
            windows,
            cos_sin: config.ropes.iter().map(table).collect::<Result<_, _>>().map_err(memory)?,
            queries: stream.alloc_zeros(queries).map_err(memory)?,
            decoding: 0,
            requests: 0,
        })
    }

    /// What cuts the decode rows of a step up, if that goes along with the step's inputs, and for which windows.
    pub(super) fn decode_planner(&self) -> Option<(DecodePlanner, &[Option<u32>])> {
        match &self.decode {
            Decode::Fa(decode) => Some((decode.planner(), &self.windows)),
            Decode::Fi(_) => None,
        }
    }

    /// Plans a step whose first `decoding` requests decode; `graph` if it is recorded or replayed.
    ///
    /// # Errors
    /// The step exceeds the limits.
    pub(super) fn plan(
        &mut self,
        device: &Device,
        starts: &Starts<'_>,
        decoding: usize,
        graph: bool,
    ) -> Result<(), AttentionError> {
        let requests = starts.last_page_len.len();
        (self.decoding, self.requests) = (decoding, requests);
        let of = |from: usize, to: usize| AttentionBatch {
            q_starts: &starts.q_starts[from..=to],
            page_starts: &starts.page_starts[from..=to],
            last_page_len: &starts.last_page_len[from..to],
            graph,
        };
        if let Decode::Fi(fi) = &mut self.decode
            && decoding > 0
        {
            fi.plan(device, of(0, decoding))?;
        }
        if decoding < requests {
            self.prefill.plan(device, of(decoding, requests))?;
        }
        Ok(())
    }

    /// Whether outputs of a step of `tokens` tokens can be left as e4m3: those of prompts cannot.
    fn leaves_codes(&self, tokens: usize) -> bool {
        let decode = matches!(self.decode, Decode::Fa(_)) && self.decoding == tokens;
        decode && self.heads.head_dim == DECODE_CODES_DIM
    }

    /// One layer of `tokens` tokens: from `qkv` to `out`, through the pages; or to `codes`, of so many tokens, where
    /// [`Attention::leaves_codes`].
    fn run(
        &mut self,
        device: &Device,
        (inputs, tables, kv): (&Inputs, &Tables, &mut KvSpace),
        (of, tokens): (&LayerAttention<CudaOps>, usize),
        (qkv, out): (&Buffer, &mut Buffer),
        codes: Option<(&mut Codes, usize)>,
    ) -> OpResult {
        let Heads { q_heads, kv_heads, head_dim, .. } = self.heads;
        let KvPlace { group, array } = kv.place(of.layer);
        let norm = || {
            of.norms.as_ref().map(|norms| QkNorm {
                q_weight: (&norms.query).into(),
                k_weight: (&norms.key).into(),
                eps: self.eps,
                plus_one: self.plus_one,
            })
        };
        let window = window(&of.spec);
        let view = View { window, sinks: of.sinks.as_ref().map(Array::from) };
        let kind = self.windows.iter().position(|one| *one == window);
        let kind = kind.ok_or_else(|| failed("attention")("a layer's window was not planned"))?;
        let cos_sin = &self.cos_sin[of.spec.rope];
        let decoding = self.decoding;
        let scale = self.scale;
        let rotated_from = match &self.decode {
            Decode::Fi(_) => 0,
            Decode::Fa(_) if decoding == 0 => 0,
            Decode::Fa(decode) => {
                let (qkv, mut out) = (qkv.rows(decoding), out.rows_mut(decoding));
                let (work, pages) = (inputs.work(kind), tables.tables(group));
                let mut codes = codes.map(|(codes, tokens)| {
                    (codes.rows(tokens, q_heads * head_dim, ScaleForm::Block), tokens)
                });
                let launched = kv.pages(array, |k_pages, v_pages| {
                    let args = DecodeArgs {
                        input: DecodeInput::Qkv {
                            qkv: (&qkv).into(),
                            norm: norm(),
                            cos_sin: cos_sin.into(),
                        },
                        k_pages,
                        v_pages,
                        out: match &mut codes {
                            None => DecodeOut::Bf16((&mut out).into()),
                            Some(((data, scales), tokens)) => DecodeOut::Codes {
                                data: data.into(),
                                scales: scales.into(),
                                tokens: *tokens,
                            },
                        },
                        work: (&work).into(),
                        pages: (&pages).into(),
                        rows: decoding,
                        scale,
                        view,
                    };
                    // SAFETY: packing planned the work of the same rows and window; pages of tables were checked
                    // to be there, entries before a window name any page and are not read; lengths are at most
                    // `max_len`, the number of positions. Tables change before the copy that brings the work
                    // (`TablesChanged`), or in the launch that does (`Inputs::bring`), and the step's kernels
                    // begin after it.
                    // Older tokens' pages were written by a step before, which several kernels lie between.
                    // All launches are on one stream.
                    unsafe { decode.launch(device, args) }
                });
                launched.ok_or_else(no_kv)?.map_err(failed("decode attention"))?;
                decoding
            }
        };
        if rotated_from == tokens {
            return Ok(());
        }

        // Queries of the other rows, and their keys and values.
        let width = (q_heads + 2 * kv_heads) * head_dim;
        let rest = qkv.data.slice(rotated_from * width..tokens * width);
        let (positions, slots) = (inputs.positions(), inputs.kv_slots(group));
        let queries = rotated_from * q_heads * head_dim..tokens * q_heads * head_dim;
        let mut queries = self.queries.slice_mut(queries);
        let len = queries.len();
        let mut rotate = |q_out: KvArrayMut<'_>| {
            kv.pages(array, |k_pages, v_pages| {
                QkRopePage {
                    qkv: (&rest).into(),
                    norm: norm(),
                    cos_sin: cos_sin.into(),
                    positions: (&positions.slice(rotated_from..)).into(),
                    slots: (&slots.slice(rotated_from..)).into(),
                    q_out,
                    k_pages,
                    v_pages,
                    rows: tokens - rotated_from,
                    q_heads,
                    kv_heads,
                    head_dim,
                }
                .launch(device)
            })
        };
        let rotated = match self.kv {
            // SAFETY: any two bytes are an fp16.
            KvType::Fp16 => unsafe { queries.transmute_mut::<f16>(len) }
                .map(|mut queries| rotate(ArrayMut::from(&mut queries).into())),
            // SAFETY: any two bytes are a bf16.
            _ => unsafe { queries.transmute_mut::<bf16>(len) }
                .map(|mut queries| rotate(ArrayMut::from(&mut queries).into())),
        };
        rotated.flatten().ok_or_else(no_kv)?.map_err(failed("norm_rope_write_kv"))?;

        let queries = self.queries.slice(..tokens * q_heads * head_dim);
        let len = queries.len();
        let at = (of.layer, tokens, view);
        let attended = match self.kv {
            // SAFETY: any two bytes are an fp16.
            KvType::Fp16 => unsafe { queries.transmute::<f16>(len) }.map(|q| {
                self.attend(device, (inputs, tables, kv), at, || Array::from(&q).into(), out)
            }),
            // SAFETY: any two bytes are a bf16.
            _ => unsafe { queries.transmute::<bf16>(len) }.map(|q| {
                self.attend(device, (inputs, tables, kv), at, || Array::from(&q).into(), out)
            }),
        };
        attended.ok_or_else(no_kv)?
    }

    /// Attention of the rows whose queries are ready.
    fn attend<'q>(
        &self,
        device: &Device,
        (inputs, tables, kv): (&Inputs, &Tables, &KvSpace),
        (layer, tokens, view): (usize, usize, View<'_>),
        q: impl Fn() -> KvArray<'q>,
        out: &mut Buffer,
    ) -> OpResult {
        let (q_starts, page_starts) = (inputs.q_starts(), inputs.page_starts());
        let KvPlace { group, array } = kv.place(layer);
        let (pages, last_page_len) = (tables.listed(group), inputs.last_page_len());
        let mut launch = |from: usize, to: usize, of: Rows<'_>| {
            let mut out = out.rows_mut(tokens);
            let (q_starts, page_starts) =
                (q_starts.slice(from..to + 1), page_starts.slice(from..to + 1));
            let last_page_len = last_page_len.slice(from..to);
            let launched = kv.pages_and_slack(array, |k_pages, v_pages| {
                let args = PagedAttentionArgs {
                    q: q(),
                    k_pages,
                    v_pages,
                    out: (&mut out).into(),
                    q_starts: (&q_starts).into(),
                    page_starts: (&page_starts).into(),
                    pages: (&pages).into(),
                    last_page_len: (&last_page_len).into(),
                    scale: self.scale,
                    view,
                };
                // `plan` was given the same starts that were uploaded and that pages are listed at, each of which
                // was checked to be below their number; packing sees to it that last pages have 1 to
                // `page_size` tokens, and that a request has its row's tokens at least.
                match of {
                    // SAFETY: as above.
                    Rows::Decode(fi) => unsafe { fi.launch(device, args) },
                    // SAFETY: as above.
                    Rows::Prefill(prefill) => unsafe { prefill.launch(device, args) },
                }
            });
            launched.ok_or_else(no_kv)?.map_err(failed("attention"))
        };
        if let Decode::Fi(fi) = &self.decode
            && self.decoding > 0
        {
            launch(0, self.decoding, Rows::Decode(fi))?;
        }
        if self.decoding < self.requests {
            launch(self.decoding, self.requests, Rows::Prefill(&self.prefill))?;
        }
        Ok(())
    }
}

/// Tokens that a layer's tokens see, if not all. More than any request has are as many.
fn window(spec: &AttentionSpec) -> Option<u32> {
    spec.window.map(|window| u32::try_from(window).unwrap_or(u32::MAX))
}

/// The windows of a model's layers, each once.
fn windows(config: &ModelConfig) -> Vec<Option<u32>> {
    let all = config.layers.iter().map(|layer| window(&layer.attention));
    all.collect::<BTreeSet<_>>().into_iter().collect()
}

/// Rows, and what serves them.
enum Rows<'a> {
    Decode(&'a PagedAttention),
    Prefill(&'a Prefill),
}

impl CudaOps {
    /// Attention of a layer over `tokens` tokens, as planned for the step. `next` is the product that takes `out`, and what
    /// becomes of that: where it wants e4m3, `out` is left as such.
    pub(super) fn attend(
        &mut self,
        tokens: usize,
        layer: &LayerAttention<CudaOps>,
        qkv: &Buffer,
        out: &mut Buffer,
        next: Option<(&Linear<CudaOps>, Into)>,
    ) -> OpResult {
        let room = out.rows.min(self.chunk_tokens);
        let coded = self.attention.leaves_codes(tokens)
            && next.is_some_and(|(next, into)| self.wants_codes(tokens, room, next, into));
        out.codes = coded.then_some(CodesAt::All);
        let m = self.coded_tokens(tokens, room);
        let CudaOps { device, attention, inputs, tables, kv, quantised, .. } = self;
        let kv = kv.as_mut().ok_or_else(no_kv)?;
        let codes = match coded {
            true => {
                let codes = quantised.as_mut().ok_or_else(no_room)?.at(CodesAt::All);
                Some((codes, m))
            }
            false => None,
        };
        attention.run(device, (inputs, tables, kv), (layer, tokens), (qkv, out), codes)
    }
}

pub(super) fn no_kv() -> OpError {
    OpError { operation: "attention", reason: "KV pages were never reserved".to_owned() }
}
