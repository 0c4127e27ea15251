//! The backend `fi`: FlashInfer's FA2-style template.
//!
//! One kernel serves decode, prefill and any mix of them; long contexts are split over the GPU and merged.
//! f32 inside. Moves every live K and V once; decode is bound by read bandwidth, prefill by the matrix
//! units.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaSlice, CudaStream, DriverError, PinnedHostSlice};

use super::view::{check_windows, window_left};
use super::wide::Wide;
use super::{AttentionBatch, AttentionError, AttentionLimits, Heads, KvType, PagedAttentionArgs};
use crate::abi::{FI_PLAN_WORDS, FiArgs, FiPlanArgs};
use crate::array::DeviceArray;
use crate::check::Check;
use crate::{Array, Device};

type Run = unsafe extern "C" fn(*const FiArgs, *const i64, *mut c_void) -> i32;

unsafe extern "C" {
    fn minisgl_fi_plan(args: *const FiPlanArgs, plan: *mut i64, stream: *mut c_void) -> i32;
    fn minisgl_fi_run_64(args: *const FiArgs, plan: *const i64, stream: *mut c_void) -> i32;
    fn minisgl_fi_run_128(args: *const FiArgs, plan: *const i64, stream: *mut c_void) -> i32;
    fn minisgl_fi_run_256(args: *const FiArgs, plan: *const i64, stream: *mut c_void) -> i32;
    fn minisgl_fi_run_64_fp16(args: *const FiArgs, plan: *const i64, stream: *mut c_void) -> i32;
    fn minisgl_fi_run_128_fp16(args: *const FiArgs, plan: *const i64, stream: *mut c_void) -> i32;
    fn minisgl_fi_run_256_fp16(args: *const FiArgs, plan: *const i64, stream: *mut c_void) -> i32;
    fn minisgl_fi_run_64_fp8(args: *const FiArgs, plan: *const i64, stream: *mut c_void) -> i32;
    fn minisgl_fi_run_128_fp8(args: *const FiArgs, plan: *const i64, stream: *mut c_void) -> i32;
    fn minisgl_fi_run_256_fp8(args: *const FiArgs, plan: *const i64, stream: *mut c_void) -> i32;
    fn minisgl_fi_window_64(args: *const FiArgs, plan: *const i64, stream: *mut c_void) -> i32;
    fn minisgl_fi_window_128(args: *const FiArgs, plan: *const i64, stream: *mut c_void) -> i32;
    fn minisgl_fi_window_256(args: *const FiArgs, plan: *const i64, stream: *mut c_void) -> i32;
    fn minisgl_fi_window_64_fp16(args: *const FiArgs, plan: *const i64, stream: *mut c_void)
    -> i32;
    fn minisgl_fi_window_128_fp16(
        args: *const FiArgs,
        plan: *const i64,
        stream: *mut c_void,
    ) -> i32;
    fn minisgl_fi_window_256_fp16(
        args: *const FiArgs,
        plan: *const i64,
        stream: *mut c_void,
    ) -> i32;
    fn minisgl_fi_window_64_fp8(args: *const FiArgs, plan: *const i64, stream: *mut c_void) -> i32;
    fn minisgl_fi_window_128_fp8(args: *const FiArgs, plan: *const i64, stream: *mut c_void)
    -> i32;
    fn minisgl_fi_window_256_fp8(args: *const FiArgs, plan: *const i64, stream: *mut c_void)
    -> i32;
}

/// Rows of the smallest and the largest tile; a row of a tile is a query head of a group.
const TILES: [usize; 2] = [16, 128];

/// Blocks a multiprocessor over which long contexts are split.
const BLOCKS: usize = 2;

/// Workspaces, and the plan of one step in them. Two of them let a step be planned while another runs.
pub struct PagedAttention {
    heads: Heads,
    kv: KvType,
    limits: AttentionLimits,
    /// Of one launch at a time.
    float_workspace: CudaSlice<u8>,
    /// One for each window.
    plans: Vec<Plan>,
    wide: Option<Wide>,
    rows: [usize; 2],
    requests: usize,
}

/// How a step is cut up for the layers of one window.
struct Plan {
    window: Option<u32>,
    int_workspace: CudaSlice<u8>,
    pinned: PinnedHostSlice<u8>,
    /// After the last copy out of `pinned`.
    copied: Option<CudaEvent>,
    words: [i64; FI_PLAN_WORDS],
}

impl Plan {
    fn new(
        stream: &Arc<CudaStream>,
        window: Option<u32>,
        bytes: usize,
    ) -> Result<Plan, DriverError> {
        // SAFETY: plain bytes, which the plan writes before anything reads them.
        let pinned = unsafe { stream.context().alloc_pinned_with_flags::<u8>(bytes, 0) }?;
        let int_workspace = stream.alloc_zeros(bytes)?;
        Ok(Plan { window, int_workspace, pinned, copied: None, words: [0; FI_PLAN_WORDS] })
    }
}

/// Bytes for partial results of split contexts and for work lists, whatever a step within the limits asks for.
///
/// A context is split only while all pieces of work fit on the GPU at once. A plan for a graph reserves
/// for as many pieces as the requests could ever be cut into; every row of such a batch is a request, so its
/// tiles are the smallest.
fn workspace_bytes(
    heads: Heads,
    limits: AttentionLimits,
    multiprocessors: usize,
) -> (usize, usize) {
    let Heads { q_heads, kv_heads, .. } = heads;
    let tiles = |rows: usize| (rows * (q_heads / kv_heads)).div_ceil(TILES[0]) + limits.requests;
    let split = BLOCKS * multiprocessors / kv_heads + 1;
    let partial_rows = (split * TILES[1]).max(tiles(limits.requests) * TILES[0]) * kv_heads;
    let float_bytes = partial_rows * (heads.width() + 1) * size_of::<f32>();
    // Three lists and a mask over pieces, two over requests and rows, and alignment.
    let pieces = tiles(limits.rows).max(split);
    let int_bytes = pieces * 13 + (limits.requests + limits.rows + 2) * 4 + 1024;
    (float_bytes + 1024, int_bytes)
}

impl PagedAttention {
    /// Allocates the workspaces for layers of these windows: at most tens of MiB on the device.
    ///
    /// # Errors
    /// There is no kernel for these heads, or no memory.
    pub fn new(
        device: &Device,
        heads: Heads,
        kv: KvType,
        limits: AttentionLimits,
        windows: &[Option<u32>],
    ) -> Result<PagedAttention, AttentionError> {
        let check = Check::new("attention", device);
        heads.check(&check)?;
        check_windows(&check, windows)?;
        let failed = |source| AttentionError::Driver { what: "allocating workspaces", source };
        let stream = device.stream();
        let (float_bytes, int_bytes) =
            workspace_bytes(heads, limits, device.multiprocessors() as usize);
        let plans = windows.iter().map(|&window| Plan::new(stream, window, int_bytes));
        Ok(PagedAttention {
            heads,
            kv,
            limits,
            float_workspace: stream.alloc_zeros(float_bytes).map_err(failed)?,
            plans: plans.collect::<Result<_, _>>().map_err(failed)?,
            wide: Wide::new(device, heads, limits)?,
            rows: [0; 2],
            requests: 0,
        })
    }

    /// Cuts a batch up, for each window, and copies the work lists to the device, on its stream. Waits if the copy of
    /// the plan before has not been made yet.
    ///
    /// # Errors
    /// The batch does not add up, or exceeds the limits.
    pub fn plan(
        &mut self,
        device: &Device,
        batch: AttentionBatch<'_>,
    ) -> Result<(), AttentionError> {
        self.plan_some(device, batch, |_| true)
    }

    /// [`PagedAttention::plan`] for those of the windows that will be launched.
    pub(super) fn plan_some(
        &mut self,
        device: &Device,
        batch: AttentionBatch<'_>,
        wanted: impl Fn(Option<u32>) -> bool,
    ) -> Result<(), AttentionError> {
        let check = Check::new("attention", device);
        let (requests, rows) = batch.check(&check, self.limits)?;
        check.that(!batch.graph || rows[1] - rows[0] <= self.limits.requests, || {
            "a plan for a graph has one row a request".into()
        })?;
        (self.rows, self.requests) = (rows, requests);
        if rows[0] == rows[1] {
            return Ok(());
        }
        let failed = |source| AttentionError::Driver { what: "planning attention", source };
        let stream = device.stream();
        stream.context().bind_to_thread().map_err(failed)?;
        for plan in self.plans.iter_mut().filter(|plan| wanted(plan.window)) {
            if let Some(copied) = plan.copied.take() {
                copied.synchronize().map_err(failed)?;
            }
            let args = FiPlanArgs {
                q_starts: batch.q_starts.as_ptr(),
                page_starts: batch.page_starts.as_ptr(),
                float_workspace: Array::from(&self.float_workspace).address(),
                int_workspace: Array::from(&plan.int_workspace).address(),
                pinned: plan.pinned.as_mut_ptr().map_err(failed)?,
                float_bytes: self.float_workspace.len() as u64,
                int_bytes: plan.int_workspace.len() as u64,
                rows: check.count("rows", rows[1] - rows[0])?,
                requests: check.count("requests", requests)?,
                q_heads: check.count("q_heads", self.heads.q_heads)?,
                kv_heads: check.count("kv_heads", self.heads.kv_heads)?,
                head_dim: self.heads.width() as u32,
                page_size: check.count("page_size", self.heads.page_size)?,
                kv_bytes: self.kv.bytes() as u32,
                graph: u32::from(batch.graph),
                window_left: window_left(plan.window),
                reserved: 0,
            };
            let words = plan.words.as_mut_ptr();
            // SAFETY: the host arrays have `requests + 1` elements, the workspaces their sizes; the copy out
            // of `pinned` before has been made, and the next waits for the event below.
            let code = unsafe { minisgl_fi_plan(&args, words, stream.cu_stream().cast()) };
            if code != 0 {
                let (heads, window) = (self.heads, plan.window);
                let what = format!(
                    "plan {requests} requests of rows {rows:?} for {heads:?}, window {window:?}"
                );
                return Err(AttentionError::Backend { what, code });
            }
            plan.copied = Some(stream.record_event(None).map_err(failed)?);
        }
        Ok(())
    }

    /// Puts attention of one layer over the planned batch onto the device's stream.
    ///
    /// # Errors
    /// The arrays do not have the planned shape, or the launch failed.
    ///
    /// # Safety
    /// `q_starts`, `page_starts` and `last_page_len` hold what was planned, every page id is below the number
    /// of pages, every `last_page_len` is in `1..=page_size`, and a request has at least as many tokens as
    /// rows.
    pub unsafe fn launch(
        &self,
        device: &Device,
        args: PagedAttentionArgs<'_>,
    ) -> Result<(), AttentionError> {
        let check = Check::new("attention", device);
        let Heads { q_heads, kv_heads, head_dim, page_size } = self.heads;
        let [first, end] = self.rows;
        args.check(&check, self.heads, self.kv, (self.requests, end))?;
        if first == end {
            return Ok(());
        }
        let (mut q, mut out) = (args.q.address(), args.out.address());
        if let Some(wide) = &self.wide {
            // SAFETY: `q` was checked to have the planned rows.
            (q, out) = unsafe { wide.widen(&check, q, first..end)? };
        }
        let plan = args.view.find(&self.plans, |plan| plan.window)?;
        let (sinks, plain) = (args.view.check(&check, q_heads)?, args.view.is_plain());
        let call = FiArgs {
            q,
            k_pages: args.k_pages.address(),
            v_pages: args.v_pages.address(),
            out: out + (first * q_heads * self.heads.width() * 2) as u64,
            q_starts: args.q_starts.address(),
            page_starts: args.page_starts.address(),
            pages: args.pages.address(),
            last_page_len: args.last_page_len.address(),
            float_workspace: Array::from(&self.float_workspace).address(),
            int_workspace: Array::from(&plan.int_workspace).address(),
            requests: self.requests as u32,
            q_heads: q_heads as u32,
            kv_heads: kv_heads as u32,
            kv_stride: head_dim as u32,
            page_size: page_size as u32,
            scale: args.scale,
            dependent: u32::from(device.capability().0 >= 9),
            window_left: window_left(plan.window),
            sinks,
        };
        // Models that have neither windows nor sinks run what knows nothing of them.
        let run: Run = match (self.heads.width(), self.kv) {
            (64, KvType::Bf16) if !plain => minisgl_fi_window_64,
            (128, KvType::Bf16) if !plain => minisgl_fi_window_128,
            (_, KvType::Bf16) if !plain => minisgl_fi_window_256,
            (64, KvType::Fp16) if !plain => minisgl_fi_window_64_fp16,
            (128, KvType::Fp16) if !plain => minisgl_fi_window_128_fp16,
            (_, KvType::Fp16) if !plain => minisgl_fi_window_256_fp16,
            (64, KvType::Fp8) if !plain => minisgl_fi_window_64_fp8,
            (128, KvType::Fp8) if !plain => minisgl_fi_window_128_fp8,
            (_, KvType::Fp8) if !plain => minisgl_fi_window_256_fp8,
            (64, KvType::Bf16) => minisgl_fi_run_64,
            (128, KvType::Bf16) => minisgl_fi_run_128,
            (_, KvType::Bf16) => minisgl_fi_run_256,
            (64, KvType::Fp16) => minisgl_fi_run_64_fp16,
            (128, KvType::Fp16) => minisgl_fi_run_128_fp16,
            (_, KvType::Fp16) => minisgl_fi_run_256_fp16,
            (64, KvType::Fp8) => minisgl_fi_run_64_fp8,
            (128, KvType::Fp8) => minisgl_fi_run_128_fp8,
            (_, KvType::Fp8) => minisgl_fi_run_256_fp8,
        };
        let failed = |source| AttentionError::Driver { what: "binding the context", source };
        device.stream().context().bind_to_thread().map_err(failed)?;
        // SAFETY: the arrays were checked above, what they hold is the caller's promise, and the
        // plan is the one in the workspaces.
        let code = unsafe { run(&call, plan.words.as_ptr(), device.stream().cu_stream().cast()) };
        let settled = device.settle().map_err(|error| error.0 as i32);
        let code = if code == 0 { settled.err().unwrap_or(0) } else { code };
        if code != 0 {
            let (requests, rows) = (self.requests, self.rows);
            let what = format!("run {requests} requests of rows {rows:?} for {:?}", self.heads);
            return Err(AttentionError::Backend { what, code });
        }
        if let Some(wide) = &self.wide {
            // SAFETY: `out` was checked to have the planned rows.
            unsafe { wide.narrow(&check, args.out.address(), first..end)? };
        }
        Ok(())
    }
}
