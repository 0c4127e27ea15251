//! Attention: rotation, KV pages, and the attention over them.
//!
//! Owns: which kernels serve which rows of a step. Must never: write a page that the plan does not name.
//!
//! ```text
//!   rows of a step    decode (one token each)          prefill (chunks of prompts)
//!   `fa`              one kernel: norm, rotation,      norm, rotation, pages (QkRopePage),
//!                     page write, attention            then FlashAttention-3 style
//!   `fi`              QkRopePage, then FlashInfer      QkRopePage, then FlashInfer
//! ```

use cudarc::driver::{CudaSlice, DriverError};
use half::{bf16, f16};
use minisgl_kernels::attention::{
    AttentionBatch, AttentionError, AttentionLimits, Backend, Backends, DECODE_GROUP_MAX,
    DecodeArgs, DecodeAttention, DecodeInput, DecodePlanner, Heads, KvArray, KvArrayMut, KvType,
    PagedAttention, PagedAttentionArgs, Prefill,
};
use minisgl_kernels::ops::{QkNorm, QkRopePage};
use minisgl_kernels::{Array, ArrayMut, Device};

use super::inputs::{Inputs, Starts};
use super::kv::KvSpace;
use super::{Buffer, CudaOps, failed};
use crate::error::OpError;
use crate::ops::{HeadNorms, OpResult};

/// The attention of every layer, and the plan of the step in hand.
pub(super) struct Attention {
    heads: Heads,
    kv: KvType,
    eps: f32,
    /// What products of queries and keys are multiplied by.
    scale: f32,
    decode: Decode,
    prefill: Prefill,
    /// For each position `head_dim / 2` cosines, then as many sines.
    cos_sin: CudaSlice<f32>,
    /// Rotated queries of one layer, `[tokens, q_heads, head_dim]`: bf16, or fp16 where the pages are.
    queries: CudaSlice<u16>,
    /// Requests of the step that decode, padding included; they come first.
    decoding: usize,
    /// Requests of the step.
    requests: usize,
}

enum Decode {
    Fa(Box<DecodeAttention>),
    Fi(Box<PagedAttention>),
}

impl Attention {
    /// Kernels and workspaces for steps within `limits`, of requests with as many positions as `cos_sin`
    /// has rows.
    ///
    /// # Errors
    /// A backend that was asked for cannot serve this model or cache; or no memory.
    pub(super) fn new(
        device: &Device,
        (heads, kv, eps, scale): (Heads, KvType, f32, f32),
        limits: AttentionLimits,
        wanted: Backends,
        cos_sin: &[f32],
    ) -> Result<Attention, AttentionError> {
        let memory =
            |source: DriverError| AttentionError::Driver { what: "allocating workspaces", source };
        // Our own kernel is the faster one for every batch, where there is one.
        let own = heads.q_heads <= heads.kv_heads * DECODE_GROUP_MAX;
        let decode = match wanted.decode.unwrap_or(if own { Backend::Fa } else { Backend::Fi }) {
            Backend::Fa => Decode::Fa(Box::new(DecodeAttention::new(device, heads, kv)?)),
            Backend::Fi => {
                let limits = AttentionLimits { rows: limits.requests, ..limits };
                Decode::Fi(Box::new(PagedAttention::new(device, heads, kv, limits)?))
            }
        };
        let stream = device.stream();
        let queries = limits.rows * heads.q_heads * heads.head_dim;
        Ok(Attention {
            heads,
            kv,
            eps,
            scale,
            decode,
            prefill: Prefill::new(device, heads, kv, limits, wanted.prefill)?,
            cos_sin: stream.clone_htod(cos_sin).map_err(memory)?,
            queries: stream.alloc_zeros(queries).map_err(memory)?,
            decoding: 0,
            requests: 0,
        })
    }

    /// What cuts the decode rows of a step up, if that goes along with the step's inputs.
    pub(super) fn decode_planner(&self) -> Option<DecodePlanner> {
        match &self.decode {
            Decode::Fa(decode) => Some(decode.planner()),
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

    /// One layer of `tokens` tokens: from `qkv` to `out`, through the pages.
    fn run(
        &mut self,
        device: &Device,
        (inputs, kv): (&Inputs, &mut KvSpace),
        (layer, tokens): (usize, usize),
        norms: Option<&HeadNorms<CudaOps>>,
        (qkv, out): (&Buffer, &mut Buffer),
    ) -> OpResult {
        let Heads { q_heads, kv_heads, head_dim, .. } = self.heads;
        let norm = || {
            norms.map(|norms| QkNorm {
                q_weight: (&norms.query).into(),
                k_weight: (&norms.key).into(),
                eps: self.eps,
            })
        };
        let decoding = self.decoding;
        let scale = self.scale;
        let rotated_from = match &self.decode {
            Decode::Fi(_) => 0,
            Decode::Fa(_) if decoding == 0 => 0,
            Decode::Fa(decode) => {
                let (qkv, mut out) = (qkv.rows(decoding), out.rows_mut(decoding));
                let (work, pages) = (inputs.work(), inputs.pages());
                let launched = kv.pages(layer, |k_pages, v_pages| {
                    let args = DecodeArgs {
                        input: DecodeInput::Qkv {
                            qkv: (&qkv).into(),
                            bias: None,
                            norm: norm(),
                            cos_sin: (&self.cos_sin).into(),
                        },
                        k_pages,
                        v_pages,
                        out: (&mut out).into(),
                        work: (&work).into(),
                        pages: (&pages).into(),
                        rows: decoding,
                        scale,
                    };
                    // SAFETY: packing planned the work of the same rows, checked that pages are below
                    // their number, and that lengths are at most `max_len`, which is the number of
                    // positions. Work and pages come by a copy before the step's first kernel. Older
                    // tokens' pages were written by a step before, which several kernels lie between.
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
        let (positions, slots) = (inputs.positions(), inputs.kv_slots());
        let queries = rotated_from * q_heads * head_dim..tokens * q_heads * head_dim;
        let mut queries = self.queries.slice_mut(queries);
        let len = queries.len();
        let mut rotate = |q_out: KvArrayMut<'_>| {
            kv.pages(layer, |k_pages, v_pages| {
                QkRopePage {
                    qkv: (&rest).into(),
                    bias: None,
                    norm: norm(),
                    cos_sin: (&self.cos_sin).into(),
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
        let at = (layer, tokens);
        let attended = match self.kv {
            // SAFETY: any two bytes are an fp16.
            KvType::Fp16 => unsafe { queries.transmute::<f16>(len) }
                .map(|q| self.attend(device, (inputs, kv), at, || Array::from(&q).into(), out)),
            // SAFETY: any two bytes are a bf16.
            _ => unsafe { queries.transmute::<bf16>(len) }
                .map(|q| self.attend(device, (inputs, kv), at, || Array::from(&q).into(), out)),
        };
        attended.ok_or_else(no_kv)?
    }

    /// Attention of the rows whose queries are ready.
    fn attend<'q>(
        &self,
        device: &Device,
        (inputs, kv): (&Inputs, &KvSpace),
        (layer, tokens): (usize, usize),
        q: impl Fn() -> KvArray<'q>,
        out: &mut Buffer,
    ) -> OpResult {
        let (q_starts, page_starts) = (inputs.q_starts(), inputs.page_starts());
        let (pages, last_page_len) = (inputs.pages(), inputs.last_page_len());
        let mut launch = |from: usize, to: usize, of: Rows<'_>| {
            let mut out = out.rows_mut(tokens);
            let (q_starts, page_starts) =
                (q_starts.slice(from..to + 1), page_starts.slice(from..to + 1));
            let last_page_len = last_page_len.slice(from..to);
            let launched = kv.pages_and_slack(layer, |k_pages, v_pages| {
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
                };
                // `plan` was given the same starts that were uploaded, and packing checked that pages are
                // below their number, that last pages have 1 to `page_size` tokens, and that a request
                // has its row's tokens at least.
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

/// Rows, and what serves them.
enum Rows<'a> {
    Decode(&'a PagedAttention),
    Prefill(&'a Prefill),
}

impl CudaOps {
    /// Attention of a layer over `tokens` tokens, as planned for the step.
    pub(super) fn attend(
        &mut self,
        tokens: usize,
        layer: usize,
        norms: Option<&HeadNorms<CudaOps>>,
        qkv: &Buffer,
        out: &mut Buffer,
    ) -> OpResult {
        let CudaOps { device, attention, inputs, kv, .. } = self;
        let kv = kv.as_mut().ok_or_else(no_kv)?;
        attention.run(device, (inputs, kv), (layer, tokens), norms, (qkv, out))
    }
}

pub(super) fn no_kv() -> OpError {
    OpError { operation: "attention", reason: "KV pages were never reserved".to_owned() }
}
