//! Causal attention over a paged KV cache: the backend `fi`, FlashInfer's FA2-style template.
//!
//! `out[r, h] = softmax(scale * q[r, h] . K^T) V` over the tokens of r's request up to r's own. One kernel
//! serves decode, prefill and any mix of them; long contexts are split over the GPU. Every step is
//! planned on the host ([`PagedAttention::plan`]), then each layer is launched.
//!
//! bf16, f32 inside. Moves every live K and V once; decode is bound by read bandwidth, prefill by the
//! matrix units.

use std::ffi::c_void;

use cudarc::driver::{CudaEvent, CudaSlice, DriverError, PinnedHostSlice};
use half::bf16;

use crate::abi::{FI_PLAN_WORDS, FiArgs, FiPlanArgs};
use crate::array::DeviceArray;
use crate::ops::Check;
use crate::{Array, ArrayMut, Device, LaunchError};

mod decode;
mod decode_plan;
mod kv;

pub use decode::{DECODE_GROUP_MAX, DecodeArgs, DecodeAttention, DecodeInput};
pub use decode_plan::{DecodePlanner, DecodeTuning};
pub use kv::{KvArray, KvArrayMut, KvType};

unsafe extern "C" {
    fn minisgl_fi_plan(args: *const FiPlanArgs, plan: *mut i64, stream: *mut c_void) -> i32;
    fn minisgl_fi_run_64(args: *const FiArgs, plan: *const i64, stream: *mut c_void) -> i32;
    fn minisgl_fi_run_128(args: *const FiArgs, plan: *const i64, stream: *mut c_void) -> i32;
    fn minisgl_fi_run_256(args: *const FiArgs, plan: *const i64, stream: *mut c_void) -> i32;
}

/// Head dimensions there are kernels for.
pub const ATTENTION_HEAD_DIMS: [usize; 3] = [64, 128, 256];

/// Device memory for partial results of split contexts, as FlashInfer advises.
const FLOAT_BYTES: usize = 128 << 20;

/// Memory for work lists, on the device and pinned on the host.
const INT_BYTES: usize = 8 << 20;

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

/// A batch, as the host knows it.
#[derive(Clone, Copy, Debug)]
pub struct AttentionBatch<'a> {
    /// First row of each request, and the number of rows: `[requests + 1]`, from 0, not descending.
    pub q_starts: &'a [i32],
    /// First page of each request in the list of pages, and their number: `[requests + 1]`, likewise.
    pub page_starts: &'a [i32],
    /// Whether the launch is captured in a graph, to be replayed after other plans of as many requests and
    /// rows.
    pub graph: bool,
}

/// The arrays of one layer.
pub struct PagedAttentionArgs<'a> {
    /// `[rows, q_heads, head_dim]`.
    pub q: Array<'a, bf16>,
    /// `[pages, page_size, kv_heads, head_dim]`.
    pub k_pages: Array<'a, bf16>,
    /// As `k_pages`.
    pub v_pages: Array<'a, bf16>,
    /// `[rows, q_heads, head_dim]`.
    pub out: ArrayMut<'a, bf16>,
    /// As planned, `[requests + 1]`.
    pub q_starts: Array<'a, i32>,
    /// As planned, `[requests + 1]`.
    pub page_starts: Array<'a, i32>,
    /// Page ids of all requests, in the order of positions.
    pub pages: Array<'a, i32>,
    /// Tokens in the last page of each request, its own rows included, `[requests]`.
    pub last_page_len: Array<'a, i32>,
    /// Of the scores before softmax, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
}

/// Workspaces, and the plan of one step in them. Two of them let a step be planned while another runs.
pub struct PagedAttention {
    heads: Heads,
    float_workspace: CudaSlice<u8>,
    int_workspace: CudaSlice<u8>,
    pinned: PinnedHostSlice<u8>,
    /// After the last copy out of `pinned`.
    copied: Option<CudaEvent>,
    plan: [i64; FI_PLAN_WORDS],
    rows: usize,
    requests: usize,
}

impl PagedAttention {
    /// Allocates the workspaces: 136 MiB on the device.
    ///
    /// # Errors
    /// There is no kernel for these heads, or no memory.
    pub fn new(device: &Device, heads: Heads) -> Result<PagedAttention, AttentionError> {
        let check = Check::new("attention", device);
        let Heads { q_heads, kv_heads, head_dim, page_size } = heads;
        check.that(ATTENTION_HEAD_DIMS.contains(&head_dim), || {
            format!("head_dim is {head_dim}, there are kernels for {ATTENTION_HEAD_DIMS:?}")
        })?;
        check.that(kv_heads > 0 && q_heads > 0 && q_heads.is_multiple_of(kv_heads), || {
            format!("{q_heads} query heads do not share {kv_heads} key heads evenly")
        })?;
        check.multiple("page_size", page_size, 1)?;
        let failed = |source| AttentionError::Driver { what: "allocating workspaces", source };
        let stream = device.stream();
        // SAFETY: plain bytes, which the plan writes before anything reads them.
        let pinned = unsafe { stream.context().alloc_pinned_with_flags::<u8>(INT_BYTES, 0) };
        Ok(PagedAttention {
            heads,
            float_workspace: stream.alloc_zeros(FLOAT_BYTES).map_err(failed)?,
            int_workspace: stream.alloc_zeros(INT_BYTES).map_err(failed)?,
            pinned: pinned.map_err(failed)?,
            copied: None,
            plan: [0; FI_PLAN_WORDS],
            rows: 0,
            requests: 0,
        })
    }

    /// Cuts a batch up and copies the work lists to the device, on its stream. Waits if the copy of the plan
    /// before has not been made yet.
    ///
    /// # Errors
    /// The batch does not add up, or is too large for the workspaces.
    pub fn plan(
        &mut self,
        device: &Device,
        batch: AttentionBatch<'_>,
    ) -> Result<(), AttentionError> {
        let check = Check::new("attention", device);
        let AttentionBatch { q_starts, page_starts, graph } = batch;
        check.that(q_starts.len() >= 2 && q_starts.len() == page_starts.len(), || {
            format!("{} starts of rows and {} of pages", q_starts.len(), page_starts.len())
        })?;
        for starts in [q_starts, page_starts] {
            check.that(starts[0] == 0 && starts.is_sorted(), || {
                "starts of rows and of pages begin at 0 and do not descend".into()
            })?;
        }
        let failed = |source| AttentionError::Driver { what: "planning attention", source };
        let stream = device.stream();
        stream.context().bind_to_thread().map_err(failed)?;
        if let Some(copied) = self.copied.take() {
            copied.synchronize().map_err(failed)?;
        }
        let (requests, rows) = (q_starts.len() - 1, q_starts[q_starts.len() - 1] as usize);
        let args = FiPlanArgs {
            q_starts: q_starts.as_ptr(),
            page_starts: page_starts.as_ptr(),
            float_workspace: Array::from(&self.float_workspace).address(),
            int_workspace: Array::from(&self.int_workspace).address(),
            pinned: self.pinned.as_mut_ptr().map_err(failed)?,
            float_bytes: FLOAT_BYTES as u64,
            int_bytes: INT_BYTES as u64,
            rows: rows as u32,
            requests: check.count("requests", requests)?,
            q_heads: check.count("q_heads", self.heads.q_heads)?,
            kv_heads: check.count("kv_heads", self.heads.kv_heads)?,
            head_dim: self.heads.head_dim as u32,
            page_size: check.count("page_size", self.heads.page_size)?,
            graph: u32::from(graph),
            reserved: 0,
        };
        // SAFETY: the host arrays have `requests + 1` elements, the workspaces their sizes; the copy out
        // of `pinned` before has been made, and the next waits for the event below.
        let code =
            unsafe { minisgl_fi_plan(&args, self.plan.as_mut_ptr(), stream.cu_stream().cast()) };
        if code != 0 {
            let what = format!("plan {requests} requests of {rows} rows for {:?}", self.heads);
            return Err(AttentionError::Backend { what, code });
        }
        self.copied = Some(stream.record_event(None).map_err(failed)?);
        (self.rows, self.requests) = (rows, requests);
        Ok(())
    }

    /// Puts attention of one layer over the planned batch onto the device's stream.
    ///
    /// # Errors
    /// The arrays do not have the planned shape, or the launch failed.
    ///
    /// # Safety
    /// `q_starts` and `page_starts` hold what was planned, every page id is below the number of pages, every
    /// `last_page_len` is in `1..=page_size`, and a request has at least as many tokens as rows.
    pub unsafe fn launch(
        &self,
        device: &Device,
        args: PagedAttentionArgs<'_>,
    ) -> Result<(), AttentionError> {
        let check = Check::new("attention", device);
        let Heads { q_heads, kv_heads, head_dim, page_size } = self.heads;
        let of_q = [self.rows, q_heads, head_dim];
        let pages_len = args.k_pages.len() / (page_size * kv_heads * head_dim);
        let of_pages = [pages_len, page_size, kv_heads, head_dim];
        let starts = [self.requests + 1];
        let call = FiArgs {
            q: check.array("q", &args.q, &of_q)?,
            k_pages: check.array("k_pages", &args.k_pages, &of_pages)?,
            v_pages: check.array("v_pages", &args.v_pages, &of_pages)?,
            out: check.array("out", &args.out, &of_q)?,
            q_starts: check.scalars("q_starts", &args.q_starts, &starts)?,
            page_starts: check.scalars("page_starts", &args.page_starts, &starts)?,
            pages: check.scalars("pages", &args.pages, &[args.pages.len()])?,
            last_page_len: check.scalars("last_page_len", &args.last_page_len, &[self.requests])?,
            float_workspace: Array::from(&self.float_workspace).address(),
            int_workspace: Array::from(&self.int_workspace).address(),
            requests: self.requests as u32,
            q_heads: q_heads as u32,
            kv_heads: kv_heads as u32,
            page_size: page_size as u32,
            scale: args.scale,
            dependent: u32::from(device.capability().0 >= 9),
        };
        let run = match head_dim {
            64 => minisgl_fi_run_64,
            128 => minisgl_fi_run_128,
            _ => minisgl_fi_run_256,
        };
        let context = device.stream().context();
        context
            .bind_to_thread()
            .map_err(|source| AttentionError::Driver { what: "binding the context", source })?;
        // SAFETY: the arrays were checked above, what they hold is the caller's promise, and the
        // plan is the one in the workspaces.
        let code = unsafe { run(&call, self.plan.as_ptr(), device.stream().cu_stream().cast()) };
        if code != 0 {
            let what = format!(
                "run {} requests of {} rows for {:?}",
                self.requests, self.rows, self.heads
            );
            return Err(AttentionError::Backend { what, code });
        }
        Ok(())
    }
}
