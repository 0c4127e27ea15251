//! Causal attention over a paged KV cache.
//!
//! `out[r, h] = softmax(scale * q[r, h] . K^T) V` over the tokens of r's request up to r's own, or the last of them;
//! a head may have a sink ([`View`]).
//!
//! Owns: what the backends share: the shapes, the batch as the host knows it, the arrays of a layer. Must
//! never: choose for a model, or allocate after creation.
//!
//! | backend | rows | KV cache | GPUs |
//! |---|---|---|---|
//! | [`PagedAttention`] (`fi`) | decode, prefill, any mix | bf16, fp16, fp8 | Ampere and later |
//! | [`PagedPrefill`] (`fa`) | prefill, 128 rows a request and more, no narrow window | bf16 | Hopper |
//! | [`DecodeAttention`] (`fa`) | decode | bf16, fp16, fp8 | Ampere and later |
//!
//! The first two are FlashInfer's templates; pages are the same for all. Each step is planned on the host and
//! then every layer launched. A plan serves all layers, for each of the windows that they have; a range of the step's requests, so that decode rows and prefill
//! rows can go to different backends: the range's part of `q_starts`, `page_starts` and `last_page_len`, and
//! the rows, queries and pages of the whole step.

mod backend;
mod decode;
mod decode_plan;
mod fa;
mod fi;
mod view;
mod wide;
mod work;

use half::bf16;

pub use backend::{Backend, Backends, Prefill};
pub use decode::{
    DECODE_CODES_DIM, DECODE_GROUP_MAX, DecodeArgs, DecodeAttention, DecodeInput, DecodeOut,
};
pub use decode_plan::{DecodePlanner, DecodeTuning};
pub use fa::PagedPrefill;
pub use fi::PagedAttention;
pub use view::View;

use crate::array::DeviceArray;
use crate::check::Check;
pub use crate::kv::{KvArray, KvArrayMut, KvType};
use crate::{Array, ArrayMut, LaunchError};
use cudarc::driver::DriverError;

/// Head dimensions there are kernels for.
pub const ATTENTION_HEAD_DIMS: [usize; 4] = [64, 96, 128, 256];

/// Attention that cannot be prepared, planned or run.
#[derive(Debug, thiserror::Error)]
pub enum AttentionError {
    /// The arguments do not fit together.
    #[error(transparent)]
    Argument(#[from] LaunchError),
    /// The driver refused.
    #[error("the driver failed while {what}: {source}")]
    Driver {
        /// What was going on.
        what: &'static str,
        /// Its answer.
        source: DriverError,
    },
    /// The backend refused.
    #[error(
        "attention failed to {what} (CUDA error {code}; -1: no room in the workspace, or no kernel for it)"
    )]
    Backend {
        /// What it was asked to do, with its shapes.
        what: String,
        /// CUDA's error code, or -1.
        code: i32,
    },
}

/// The heads of one rank, the same for every layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub q_heads: usize,
    /// Key and value heads, which divide the query heads.
    pub kv_heads: usize,
    /// One of [`ATTENTION_HEAD_DIMS`].
    pub head_dim: usize,
    /// Tokens of a page.
    pub page_size: usize,
}

impl Heads {
    /// Elements that must follow the pages in their arrays, when they are handed to [`PagedAttention`] or
    /// [`PagedPrefill`]: these read heads of 96 as if they were 128 wide.
    pub fn pages_slack(&self) -> usize {
        self.width() - self.head_dim
    }

    /// Of the template that serves these heads.
    fn width(&self) -> usize {
        if self.head_dim == 96 { 128 } else { self.head_dim }
    }

    fn check(&self, check: &Check<'_>) -> Result<(), LaunchError> {
        let Heads { q_heads, kv_heads, head_dim, page_size } = *self;
        check.that(ATTENTION_HEAD_DIMS.contains(&head_dim), || {
            format!("head_dim is {head_dim}, there are kernels for {ATTENTION_HEAD_DIMS:?}")
        })?;
        check.that(kv_heads > 0 && q_heads > 0 && q_heads.is_multiple_of(kv_heads), || {
            format!("{q_heads} query heads do not share {kv_heads} key heads evenly")
        })?;
        check.multiple("page_size", page_size, 1)?;
        Ok(())
    }
}

/// The most that a step may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionLimits {
    /// Rows.
    pub rows: usize,
    /// Requests.
    pub requests: usize,
}

/// A range of a step's requests, as the host knows it.
#[derive(Clone, Copy, Debug)]
pub struct AttentionBatch<'a> {
    /// First row of each request among the rows of the step, and where the last one's end:
    /// `[requests + 1]`, not descending.
    pub q_starts: &'a [i32],
    /// First page of each request in the list of pages, and where the last one's end: `[requests + 1]`,
    /// not descending.
    pub page_starts: &'a [i32],
    /// Tokens in the last page of each request, its own rows included, `[requests]`.
    pub last_page_len: &'a [i32],
    /// Whether the launch is captured in a graph, to be replayed after other plans of as many requests and
    /// rows.
    pub graph: bool,
}

impl AttentionBatch<'_> {
    /// The number of requests, and where their rows begin and end.
    fn check(
        &self,
        check: &Check<'_>,
        limits: AttentionLimits,
    ) -> Result<(usize, [usize; 2]), LaunchError> {
        let AttentionBatch { q_starts, page_starts, last_page_len, .. } = self;
        let requests = last_page_len.len();
        check.that(q_starts.len() == requests + 1 && page_starts.len() == requests + 1, || {
            let (rows, pages) = (q_starts.len(), page_starts.len());
            format!("{requests} requests have {rows} starts of rows and {pages} of pages")
        })?;
        for starts in [q_starts, page_starts] {
            check.that(starts[0] >= 0 && starts.is_sorted(), || {
                "starts of rows and of pages are not negative and do not descend".into()
            })?;
        }
        let rows = [q_starts[0] as usize, q_starts[requests] as usize];
        check.that(requests <= limits.requests && rows[1] <= limits.rows, || {
            format!("{requests} requests of rows up to {} exceed {limits:?}", rows[1])
        })?;
        Ok((requests, rows))
    }
}

/// The arrays of one layer.
pub struct PagedAttentionArgs<'a> {
    /// Of the whole step, `[rows, q_heads, head_dim]`: fp16 for pages of fp16, bf16 otherwise.
    pub q: KvArray<'a>,
    /// `[pages, page_size, kv_heads, head_dim]`, then [`Heads::pages_slack`] elements.
    pub k_pages: KvArray<'a>,
    /// As `k_pages`.
    pub v_pages: KvArray<'a>,
    /// Of the whole step, `[rows, q_heads, head_dim]`; the planned rows are written.
    pub out: ArrayMut<'a, bf16>,
    /// As planned, `[requests + 1]`.
    pub q_starts: Array<'a, i32>,
    /// As planned, `[requests + 1]`.
    pub page_starts: Array<'a, i32>,
    /// Page ids of all requests of the step, in the order of positions.
    pub pages: Array<'a, i32>,
    /// As planned, `[requests]`.
    pub last_page_len: Array<'a, i32>,
    /// Of the scores before softmax, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// What is seen; the window is one of those that were planned.
    pub view: View<'a>,
}

impl PagedAttentionArgs<'_> {
    /// Checks what a plan for `requests` requests with rows up to `rows_end` takes from these arrays.
    fn check(
        &self,
        check: &Check<'_>,
        heads: Heads,
        kv: KvType,
        (requests, rows_end): (usize, usize),
    ) -> Result<(), LaunchError> {
        let Heads { q_heads, kv_heads, head_dim, page_size } = heads;
        let of_q = if kv == KvType::Fp16 { KvType::Fp16 } else { KvType::Bf16 };
        for (name, array, of) in
            [("q", &self.q, of_q), ("k_pages", &self.k_pages, kv), ("v_pages", &self.v_pages, kv)]
        {
            check.that(array.kv_type() == of, || {
                format!("{name} is {:?}, it was announced as {of:?}", array.kv_type())
            })?;
        }
        let row = q_heads * head_dim;
        let rows = self.q.len() / row;
        check
            .that(rows >= rows_end, || format!("q has {rows} rows, the plan ends at {rows_end}"))?;
        check.array("q", &self.q, &[rows, q_heads, head_dim])?;
        check.array("out", &self.out, &[rows, q_heads, head_dim])?;
        let page = page_size * kv_heads * head_dim;
        let pages = self.k_pages.len().saturating_sub(heads.pages_slack()) / page;
        let whole = pages * page + heads.pages_slack();
        check.array("k_pages, with what must follow them,", &self.k_pages, &[whole])?;
        check.array("v_pages, with what must follow them,", &self.v_pages, &[whole])?;
        check.scalars("q_starts", &self.q_starts, &[requests + 1])?;
        check.scalars("page_starts", &self.page_starts, &[requests + 1])?;
        check.scalars("last_page_len", &self.last_page_len, &[requests])?;
        check.scalars("pages", &self.pages, &[self.pages.len()])?;
        Ok(())
    }
}
