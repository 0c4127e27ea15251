//! Attention: rotation, KV pages, and the attention over them.
//!
//! Owns: which kernels a layer's attention takes. Must never: write a page that the plan does not name.

use half::bf16;
use minisgl_kernels::attention::{Heads, PagedAttentionArgs};
use minisgl_kernels::ops::{QkNorm, QkRopePage};

use super::{Buffer, CudaOps, failed};
use crate::error::OpError;
use crate::ops::{HeadNorms, OpResult};

impl CudaOps {
    /// Norm and rotation of `rows` rows of `qkv`; keys and values go to their pages, queries to where
    /// [`CudaOps::attend`] reads them.
    pub(super) fn write_kv(
        &mut self,
        rows: usize,
        layer: usize,
        norms: Option<&HeadNorms<CudaOps>>,
        qkv: &Buffer,
    ) -> OpResult {
        let Heads { q_heads, kv_heads, head_dim, .. } = self.heads;
        let kv = self.kv.as_mut().and_then(|kv| kv.layer_mut::<bf16>(layer));
        let (mut keys, mut values) = kv.ok_or_else(no_kv)?;
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
            q_out: (&mut self.queries.slice_mut(..rows * q_heads * head_dim)).into(),
            k_pages: (&mut keys).into(),
            v_pages: (&mut values).into(),
            rows,
            q_heads,
            kv_heads,
            head_dim,
        }
        .launch(&self.device)
        .map_err(failed("norm_rope_write_kv"))
    }

    /// Attention of `rows` rows over the pages, as planned for the step.
    pub(super) fn attend(&mut self, rows: usize, layer: usize, out: &mut Buffer) -> OpResult {
        let Heads { q_heads, head_dim, .. } = self.heads;
        let kv = self.kv.as_ref().and_then(|kv| kv.layer::<bf16>(layer));
        let (keys, values) = kv.ok_or_else(no_kv)?;
        let (queries, mut out) =
            (self.queries.slice(..rows * q_heads * head_dim), out.rows_mut(rows));
        let inputs = &self.inputs;
        let (q_starts, page_starts) = (inputs.q_starts(), inputs.page_starts());
        let (pages, last_page_len) = (inputs.pages(), inputs.last_page_len());
        let args = PagedAttentionArgs {
            q: (&queries).into(),
            k_pages: (&keys).into(),
            v_pages: (&values).into(),
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
}

pub(super) fn no_kv() -> OpError {
    OpError { operation: "attention", reason: "KV pages were never reserved".to_owned() }
}
