//! The backend `fa` for prefill: FlashInfer's template for Hopper in the style of FlashAttention-3.
//!
//! Much faster than `fi` where requests bring whole tiles of rows, and slower where they do not: a tile is
//! 128 or 192 rows of one query head, and contexts are not split. bf16, f32 inside; bound by the matrix
//! units. Measured (H100 80GB HBM3, 2026-11-22, `gpu --bench`, 32/8 heads of 128, pages of 16), TFLOP/s of `fa`
//! and of `fi`: 16 x 1,024 rows 363 and 292, 1 x 8,192 552 and 327, 8 x 256 over 4,096 512 and 347,
//! 64 x 128 90 and 101, 16 x 64 29 and 42.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaSlice, CudaStream, DriverError, PinnedHostSlice, result};

use super::view::{WINDOW_LEFT_MAX, check_windows, window_left};
use super::wide::Wide;
use super::work::{Group, LISTS, Shape, Tiles, Work, pieces_max};
use super::{AttentionBatch, AttentionError, AttentionLimits, Heads, KvType, PagedAttentionArgs};
use crate::abi::FaArgs;
use crate::array::DeviceArray;
use crate::check::Check;
use crate::{Array, Device};

type Run = unsafe extern "C" fn(*const FaArgs, *mut c_void) -> i32;

unsafe extern "C" {
    fn minisgl_fa_run_64(args: *const FaArgs, stream: *mut c_void) -> i32;
    fn minisgl_fa_run_128(args: *const FaArgs, stream: *mut c_void) -> i32;
    fn minisgl_fa_run_256(args: *const FaArgs, stream: *mut c_void) -> i32;
    fn minisgl_fa_window_64(args: *const FaArgs, stream: *mut c_void) -> i32;
    fn minisgl_fa_window_128(args: *const FaArgs, stream: *mut c_void) -> i32;
    fn minisgl_fa_window_256(args: *const FaArgs, stream: *mut c_void) -> i32;
}

/// The kernels for heads of a width, the second for windows and sinks, and their tiles as `cu/fa` has them.
fn kernels(width: usize) -> ([Run; 2], Tiles) {
    match width {
        64 => ([minisgl_fa_run_64, minisgl_fa_window_64], Tiles { rows: 192, keys: 96 }),
        128 => ([minisgl_fa_run_128, minisgl_fa_window_128], Tiles { rows: 128, keys: 96 }),
        _ => ([minisgl_fa_run_256, minisgl_fa_window_256], Tiles { rows: 128, keys: 64 }),
    }
}

/// Tokens that a window must have for this backend to be faster than `fi`. Measured on an H200, prompts of 8,192 with heads
/// of 64 and 128, us of `fi` and of `fa`: 176 and 239, 119 and 155 at 128; 344 and 350, 251 and 239 at 512; 566 and 479,
/// 423 and 340 at 1,024.
const WINDOW_MIN: u32 = 512;

/// Room for work lists, and the plan of one step in it. Two of them let a step be planned while another runs.
pub struct PagedPrefill {
    heads: Heads,
    limits: AttentionLimits,
    /// Blocks of the kernel, one a multiprocessor.
    blocks: usize,
    work: Work,
    /// One for each window.
    plans: Vec<Plan>,
    wide: Option<Wide>,
    rows: [usize; 2],
    requests: usize,
}

/// How a step is dealt out for the layers of one window.
struct Plan {
    window: Option<u32>,
    /// Starts of each block's pieces, then the lists.
    words: CudaSlice<i32>,
    pinned: PinnedHostSlice<i32>,
    /// After the last copy out of `pinned`.
    copied: Option<CudaEvent>,
    pieces: usize,
}

impl Plan {
    fn new(
        stream: &Arc<CudaStream>,
        window: Option<u32>,
        words: usize,
    ) -> Result<Plan, DriverError> {
        // SAFETY: plain integers, which the plan writes before anything reads them.
        let pinned = unsafe { stream.context().alloc_pinned_with_flags::<i32>(words, 0) }?;
        let words = stream.alloc_zeros(words)?;
        Ok(Plan { window, words, pinned, copied: None, pieces: 0 })
    }
}

impl PagedPrefill {
    /// Whether the GPU is one that there are kernels for.
    pub fn available(device: &Device) -> bool {
        device.capability() == (9, 0)
    }

    /// Allocates room for the work lists of every step within `limits`, for layers of these windows.
    ///
    /// # Errors
    /// There is no kernel for these heads or this GPU, or no memory.
    pub fn new(
        device: &Device,
        heads: Heads,
        limits: AttentionLimits,
        windows: &[Option<u32>],
    ) -> Result<PagedPrefill, AttentionError> {
        let check = Check::new("attention", device);
        heads.check(&check)?;
        check_windows(&check, windows)?;
        check.that(PagedPrefill::available(device), || {
            let (major, minor) = device.capability();
            format!("fa is for prefill on sm_90, the GPU is sm_{major}{minor}; use fi")
        })?;
        let failed = |source| AttentionError::Driver { what: "allocating work lists", source };
        let (stream, blocks) = (device.stream(), device.multiprocessors() as usize);
        let (_, tiles) = kernels(heads.width());
        let pieces = pieces_max(limits.rows, limits.requests, tiles) * heads.q_heads;
        let words = starts_len(blocks) + pieces * LISTS;
        check.count("words of the work lists", words)?;
        let plans = windows.iter().map(|&window| Plan::new(stream, window, words));
        Ok(PagedPrefill {
            heads,
            limits,
            blocks,
            work: Work::default(),
            plans: plans.collect::<Result<_, _>>().map_err(failed)?,
            wide: Wide::new(device, heads, limits)?,
            rows: [0; 2],
            requests: 0,
        })
    }

    /// Whether this backend is faster than `fi` for a window: its tiles are many rows of one head, so that much of what
    /// a tile multiplies is outside a narrow window; those of `fi` are few rows of several heads.
    pub(super) fn suits_window(window: Option<u32>) -> bool {
        window.is_none_or(|window| window >= WINDOW_MIN)
    }

    /// Whether it plans for this window.
    pub(super) fn has(&self, window: Option<u32>) -> bool {
        self.plans.iter().any(|plan| plan.window == window)
    }

    /// Whether this backend is faster than `fi` for a batch. As measured on an H100, it is where three quarters of
    /// its tiles are rows of the batch, or half of them where they are few enough to run all at once.
    pub fn suits(&self, batch: AttentionBatch<'_>) -> bool {
        let (_, tiles) = kernels(self.heads.width());
        let of_each = batch.q_starts.windows(2).map(|ends| (ends[1] - ends[0]).max(0) as usize);
        let (rows, pieces) = of_each.fold((0, 0), |(rows, pieces), of_this| {
            (rows + of_this, pieces + of_this.div_ceil(tiles.rows))
        });
        let at_once = pieces * self.heads.q_heads <= self.blocks;
        rows * 4 >= pieces * tiles.rows * if at_once { 2 } else { 3 }
    }

    /// Deals a batch out, for each window, and copies the work lists to the device, on its stream. Waits if the copy
    /// of the plan before has not been made yet.
    ///
    /// # Errors
    /// The batch does not add up, exceeds the limits, or is for a graph.
    pub fn plan(
        &mut self,
        device: &Device,
        batch: AttentionBatch<'_>,
    ) -> Result<(), AttentionError> {
        let check = Check::new("attention", device);
        let (requests, rows) = batch.check(&check, self.limits)?;
        check.that(!batch.graph, || "fa's prefill is not for graphs".into())?;
        for request in 0..requests {
            let rows = batch.q_starts[request + 1] - batch.q_starts[request];
            let pages = batch.page_starts[request + 1] - batch.page_starts[request];
            let page_size = self.heads.page_size as i64;
            let last = i64::from(batch.last_page_len[request]);
            let tokens = (i64::from(pages) - 1) * page_size + last;
            check.that((1..=page_size).contains(&last) && tokens >= i64::from(rows), || {
                format!("request {request} has {rows} rows and {tokens} tokens in {pages} pages")
            })?;
            check.count("tokens of a request", tokens.max(0) as usize)?;
        }
        let failed = |source| AttentionError::Driver { what: "planning attention", source };
        let stream = device.stream();
        stream.context().bind_to_thread().map_err(failed)?;
        let (_, tiles) = kernels(self.heads.width());
        let Heads { q_heads, kv_heads, page_size, .. } = self.heads;
        let group = Group { q_heads, size: q_heads / kv_heads };
        (self.rows, self.requests) = (rows, requests);
        for plan in &mut self.plans {
            if let Some(copied) = plan.copied.take() {
                copied.synchronize().map_err(failed)?;
            }
            let len = plan.pinned.len();
            let at = plan.pinned.as_mut_ptr().map_err(failed)?;
            // SAFETY: `len` pinned integers that only this borrow reaches; the copy out of them is over.
            let words = unsafe { std::slice::from_raw_parts_mut(at, len) };
            let (starts, lists) = words.split_at_mut(starts_len(self.blocks));
            let starts = &mut starts[..self.blocks + 1];
            let shape = Shape { page_size, group, tiles, window: plan.window };
            plan.pieces = self.work.deal(batch, shape, (starts, lists));
            let used = starts_len(self.blocks) + plan.pieces * LISTS;
            let to = Array::from(&plan.words).address();
            // SAFETY: both have `used` words and live as long as `self`; the host's are not written again
            // before the event below has passed.
            unsafe { result::memcpy_htod_async(to, &words[..used], stream.cu_stream()) }
                .map_err(failed)?;
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
    /// As [`super::PagedAttention::launch`].
    pub unsafe fn launch(
        &self,
        device: &Device,
        args: PagedAttentionArgs<'_>,
    ) -> Result<(), AttentionError> {
        let check = Check::new("attention", device);
        let Heads { q_heads, kv_heads, head_dim, page_size } = self.heads;
        let [first, end] = self.rows;
        args.check(&check, self.heads, KvType::Bf16, (self.requests, end))?;
        if first == end {
            return Ok(());
        }
        let (mut q, mut out) = (args.q.address(), args.out.address());
        if let Some(wide) = &self.wide {
            // SAFETY: `q` was checked to have the planned rows.
            (q, out) = unsafe { wide.widen(&check, q, first..end)? };
        }
        let plan = args.view.find(&self.plans, |plan| plan.window)?;
        let words = Array::from(&plan.words).address();
        let ([run, window_run], tiles) = kernels(self.heads.width());
        // Models that have neither windows nor sinks run what knows nothing of them.
        let run = if args.view.is_plain() { run } else { window_run };
        let window_left = match plan.window {
            None => WINDOW_LEFT_MAX as i32,
            window => window_left(window),
        };
        let call = FaArgs {
            q,
            k_pages: args.k_pages.address(),
            v_pages: args.v_pages.address(),
            out,
            pages: args.pages.address(),
            work_starts: words,
            work: words + (starts_len(self.blocks) * size_of::<i32>()) as u64,
            work_len: plan.pieces as u32,
            rows: end as u32,
            q_heads: q_heads as u32,
            kv_heads: kv_heads as u32,
            kv_stride: head_dim as u32,
            page_size: page_size as u32,
            scale: args.scale,
            tile: tiles.rows as u32,
            sinks: args.view.check(&check, q_heads)?,
            window_left,
            reserved: 0,
        };
        let failed = |source| AttentionError::Driver { what: "binding the context", source };
        device.stream().context().bind_to_thread().map_err(failed)?;
        // SAFETY: the arrays were checked above, what they hold is the caller's promise, and the
        // plan is the one in the work lists.
        let code = unsafe { run(&call, device.stream().cu_stream().cast()) };
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

/// Room for the starts, so that the lists begin at a multiple of 16 bytes.
fn starts_len(blocks: usize) -> usize {
    (blocks + 1).next_multiple_of(4)
}
