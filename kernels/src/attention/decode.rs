//! Attention of one new token a request over a paged KV cache; the kernel is `cu/decode/decode.cuh`.
//!
//! `out[r, h] = softmax(scale * q[r, h] . K^T) V` over all tokens of request r, or the last of them. A fixed grid of blocks
//! shares the batch out as the host planned it ([`DecodePlanner`]), so a launch captured in a graph serves
//! any mix of lengths: only the work list changes. Contexts that are cut are merged in the same launch, in
//! a fixed order: the same plan gives the same bits.
//!
//! Softmax and sums in f32; queries and outputs bf16. Scores and outputs go through the tensor cores in
//! bf16 for bf16 pages, and in fp16 for fp16 and fp8 pages. Moves every live K and V once; bound by read
//! bandwidth.

use cudarc::driver::CudaSlice;
use cudarc::driver::sys::CUdevice_attribute;
use half::bf16;

use super::decode_plan::DecodeTuning;
use super::{AttentionError, DecodePlanner, Heads, KvArray, KvArrayMut, KvType, View};
use crate::abi;
use crate::array::DeviceArray;
use crate::check::Check;
use crate::grid::Grid;
use crate::kernel::Kernel;
use crate::ops::{HEAD_DIMS, QkNorm};
use crate::{Array, ArrayMut, Device};

/// Query heads that may share a key head.
pub const DECODE_GROUP_MAX: usize = 16;

/// The `head_dim` with which outputs can be left as e4m3.
pub const DECODE_CODES_DIM: usize = 128;

const THREADS: u32 = 128;

/// What decode attention starts from.
pub enum DecodeInput<'a> {
    /// Queries that are normalised and rotated, `[rows, q_heads, head_dim]`: fp16 for pages of fp16, bf16
    /// otherwise. The new tokens' K and V are in their pages already.
    Queries(KvArray<'a>),
    /// Rows of the QKV projection: does what [`crate::ops::QkRopePage`] does, to the same bits, and then
    /// attends. The position of a request's new token is its number of tokens less one, its slot the one
    /// that its pages have for that position.
    Qkv {
        /// Queries, keys, values: `[rows, q_heads + 2 * kv_heads, head_dim]`.
        qkv: Array<'a, bf16>,
        /// Norm of queries and keys.
        norm: Option<QkNorm<'a>>,
        /// For each position `head_dim / 2` cosines, then as many sines: `[positions, head_dim]`.
        cos_sin: Array<'a, f32>,
    },
}

/// Where outputs of decode attention go.
pub enum DecodeOut<'a> {
    /// `[rows, q_heads, head_dim]`.
    Bf16(ArrayMut<'a, bf16>),
    /// As [`crate::ops::Quantise`] makes them of these, to the same bits; for a `head_dim` of [`DECODE_CODES_DIM`], so that a
    /// block of columns that share a scale is a head.
    Codes {
        /// `[tokens, q_heads * head_dim]`.
        data: ArrayMut<'a, u8>,
        /// `[q_heads, tokens]`.
        scales: ArrayMut<'a, f32>,
        /// Room; at least as many as there are rows.
        tokens: usize,
    },
}

/// The arrays of one layer.
pub struct DecodeArgs<'a> {
    /// Queries, or the projection they are made from.
    pub input: DecodeInput<'a>,
    /// `[pages, page_size, kv_heads, head_dim]`; written only for [`DecodeInput::Qkv`].
    pub k_pages: KvArrayMut<'a>,
    /// As `k_pages`.
    pub v_pages: KvArrayMut<'a>,
    /// Where the result goes. Rows of padding are left as they are.
    pub out: DecodeOut<'a>,
    /// What [`DecodePlanner::plan`] wrote, [`DecodePlanner::words`] of `rows`.
    pub work: Array<'a, i32>,
    /// Page ids of all requests, in the order of positions.
    pub pages: Array<'a, i32>,
    /// Requests, padding included.
    pub rows: usize,
    /// Of the scores before softmax, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// What is seen: `work` was planned for the same window.
    pub view: View<'a>,
}

/// The kernel for one model's heads, with its grid and the memory for chunks of contexts that are cut.
/// One of it serves all layers and batches of a stream.
pub struct DecodeAttention {
    heads: Heads,
    kv: KvType,
    kernel: Kernel,
    /// The same for windows, sinks, and norms whose weights are stored less 1.
    window_kernel: Kernel,
    grid: Grid,
    stages: u32,
    tuning: DecodeTuning,
    partials: CudaSlice<f32>,
    /// How many chunks of a pair are done; the kernel leaves zeros.
    arrived: CudaSlice<u32>,
}

impl DecodeAttention {
    /// Sizes the grid to the GPU and allocates memory for chunks: 4.3 MB for 16 queries a key head and a
    /// `head_dim` of 128 on an H100.
    ///
    /// # Errors
    /// There is no kernel for these heads, or no memory.
    pub fn new(
        device: &Device,
        heads: Heads,
        kv: KvType,
    ) -> Result<DecodeAttention, AttentionError> {
        DecodeAttention::with_tuning(device, heads, kv, DecodeTuning::default())
    }

    /// As [`DecodeAttention::new`], with other settings: for measuring them.
    ///
    /// # Errors
    /// As [`DecodeAttention::new`]; or the shape does not fit the GPU.
    pub fn with_tuning(
        device: &Device,
        heads: Heads,
        kv: KvType,
        tuning: DecodeTuning,
    ) -> Result<DecodeAttention, AttentionError> {
        let check = Check::new("decode", device);
        let Heads { q_heads, kv_heads, head_dim, page_size } = heads;
        let kernel = kernel(head_dim, kv);
        check.that(kernel.is_some(), || {
            format!("head_dim is {head_dim}, there are kernels for {HEAD_DIMS:?}")
        })?;
        let shares = kv_heads > 0 && q_heads > 0 && q_heads.is_multiple_of(kv_heads);
        check.that(shares && q_heads / kv_heads <= DECODE_GROUP_MAX, || {
            format!(
                "{q_heads} query heads and {kv_heads} key heads, the limit is {DECODE_GROUP_MAX} for each"
            )
        })?;
        check.multiple("page_size", page_size, 1)?;
        check.count("q_heads", q_heads)?;

        let failed = |source| AttentionError::Driver { what: "preparing decode attention", source };
        let stream = device.stream();
        let attribute = |attribute| stream.context().attribute(attribute).map_err(failed);
        let block_max =
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let all = attribute(
            CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR,
        )?;
        let bytes = |stages| shared_bytes(head_dim, kv, stages);
        // Two blocks of a multiprocessor hide each other's pauses.
        let fitting = SHAPES.into_iter().find(|&(blocks, stages)| {
            tuning.blocks.is_none_or(|wanted| wanted == blocks)
                && tuning.stages.is_none_or(|wanted| wanted == stages)
                && bytes(stages) <= block_max as usize
                && blocks as usize * (bytes(stages) + DRIVER_BYTES) <= all as usize
        });
        let Some((blocks, stages)) = fitting else {
            let what = format!("run {heads:?}: {block_max} bytes of shared memory are too few");
            return Err(AttentionError::Backend { what, code: -1 });
        };
        let [kernel, window_kernel] =
            kernel.unwrap_or([Kernel::DecodeBf16D128, Kernel::DecodeWindowBf16D128]);
        // Whole teams; what is left over of the grid is less than one.
        let teams = blocks * device.multiprocessors() / kv_heads as u32;
        check.that(teams > 0, || format!("{kv_heads} key heads are more than the GPU's blocks"))?;
        let blocks = teams * kv_heads as u32;
        let shared_bytes = bytes(stages) as u32;
        for kernel in [kernel, window_kernel] {
            device.allow_shared(kernel, shared_bytes).map_err(failed)?;
        }
        let floats = 2 * blocks as usize * (q_heads / kv_heads) * (head_dim + 2);
        Ok(DecodeAttention {
            heads,
            kv,
            kernel,
            window_kernel,
            grid: Grid { blocks: (blocks, 1), threads: THREADS, shared_bytes, cluster: 1 },
            stages,
            tuning,
            partials: stream.alloc_zeros(floats).map_err(failed)?,
            arrived: stream.alloc_zeros(blocks as usize).map_err(failed)?,
        })
    }

    /// What plans batches for this grid. It needs no GPU and may go to another thread.
    pub fn planner(&self) -> DecodePlanner {
        DecodePlanner::new(self.grid.blocks.0 / self.heads.kv_heads as u32, self.tuning)
    }

    /// Puts attention of one layer over the planned batch onto the device's stream.
    ///
    /// # Errors
    /// The arrays do not fit together, or the launch failed.
    ///
    /// # Safety
    /// When the kernel runs, `work` holds what [`DecodeAttention::planner`] wrote for at most `rows` requests and the
    /// view's window;
    /// `pages` has at least the pages that it says, each id below the number of pages; no request's new
    /// token is in a page slot that another request reads; and with [`DecodeInput::Qkv`] every
    /// length is at most the number of positions. `work` and `pages` were not written by a kernel that
    /// may still run when this one starts, and with [`DecodeInput::Qkv`] neither were the pages' older
    /// tokens: of the kernels between that one and this, at least one other called `wait_for_inputs()`
    /// before `let_next_start()`. No two launches of one `DecodeAttention` run at a time.
    pub unsafe fn launch(
        &self,
        device: &Device,
        args: DecodeArgs<'_>,
    ) -> Result<(), AttentionError> {
        let check = Check::new("decode", device);
        let Heads { q_heads, kv_heads, head_dim, page_size } = self.heads;
        let rows = args.rows;
        check
            .that(args.k_pages.kv_type() == self.kv && args.v_pages.kv_type() == self.kv, || {
                format!("the pages are not of {:?}", self.kv)
            })?;
        let pages_len = args.k_pages.len() / (page_size * kv_heads * head_dim);
        let of_pages = [pages_len, page_size, kv_heads, head_dim];
        check.count("pages * page_size", pages_len * page_size)?;
        check.count("rows", rows)?;
        let words = self.planner().words(rows);
        let mut call = abi::DecodeArgs {
            q: 0,
            q_weight: 0,
            k_weight: 0,
            cos_sin: 0,
            k_pages: check.array("k_pages", &args.k_pages, &of_pages)?,
            v_pages: check.array("v_pages", &args.v_pages, &of_pages)?,
            out: 0,
            work: check.array("work", &args.work, &[words])?,
            pages: check.scalars("pages", &args.pages, &[args.pages.len()])?,
            partials: Array::from(&self.partials).address(),
            arrived: Array::from(&self.arrived).address(),
            q_heads: q_heads as u32,
            kv_heads: kv_heads as u32,
            page_size: page_size as u32,
            positions_len: 0,
            stages: self.stages,
            fused: 0,
            eps: 0.0,
            scale: args.scale,
            sinks: args.view.check(&check, q_heads)?,
            window: args.view.window.unwrap_or(u32::MAX),
            plus_one: 0,
            codes: 0,
            scales: 0,
            scale_stride: 0,
            reserved: 0,
        };
        match &args.out {
            DecodeOut::Bf16(out) => {
                call.out = check.array("out", out, &[rows, q_heads, head_dim])?;
            }
            DecodeOut::Codes { data, scales, tokens } => {
                check.that(head_dim == DECODE_CODES_DIM, || {
                    format!(
                        "head_dim is {head_dim}; outputs are left as e4m3 with {DECODE_CODES_DIM}"
                    )
                })?;
                check.that(*tokens >= rows, || {
                    format!("there is room for {tokens} tokens as e4m3, and there are {rows}")
                })?;
                call.codes = check.array("codes", data, &[*tokens, q_heads * head_dim])?;
                call.scales = check.array("scales", scales, &[q_heads, *tokens])?;
                call.scale_stride = check.count("tokens", *tokens)?;
            }
        }
        match &args.input {
            DecodeInput::Queries(q) => {
                let wanted = if self.kv == KvType::Fp16 { KvType::Fp16 } else { KvType::Bf16 };
                check.that(q.kv_type() == wanted, || {
                    format!("queries are {:?}, for pages of {:?}", q.kv_type(), self.kv)
                })?;
                call.q = check.array("q", q, &[rows, q_heads, head_dim])?;
            }
            DecodeInput::Qkv { qkv, norm, cos_sin } => {
                let heads = q_heads + 2 * kv_heads;
                let positions = cos_sin.len() / head_dim;
                call.fused = 1;
                call.q = check.array("qkv", qkv, &[rows, heads, head_dim])?;
                call.cos_sin = check.array("cos_sin", cos_sin, &[positions, head_dim])?;
                call.positions_len = check.multiple("the number of positions", positions, 1)?;
                if let Some(norm) = norm {
                    call.q_weight = check.array("q_weight", &norm.q_weight, &[head_dim])?;
                    call.k_weight = check.array("k_weight", &norm.k_weight, &[head_dim])?;
                    call.eps = norm.eps;
                    call.plus_one = u32::from(norm.plus_one);
                }
            }
        }
        if rows == 0 {
            return Ok(());
        }
        // Models that have none of this run the kernel that knows nothing of it.
        let plain = args.view.is_plain() && call.plus_one == 0;
        let kernel = if plain { self.kernel } else { self.window_kernel };
        // SAFETY: the struct is the kernel's for this head_dim and type of pages, and its arrays were checked
        // above; what they hold is the caller's promise.
        Ok(unsafe { check.launch(kernel, self.grid, &call) }?)
    }
}

/// Blocks of a multiprocessor and tiles of each warp: the first that fits is taken.
const SHAPES: [(u32, u32); 6] = [(2, 4), (2, 3), (1, 4), (2, 2), (1, 3), (1, 2)];

/// Shared memory that the driver takes of each block.
const DRIVER_BYTES: usize = 1 << 10;

/// Dynamic shared memory of a block, as `cu/decode/decode.cuh` lays it out.
fn shared_bytes(head_dim: usize, kv: KvType, stages: u32) -> usize {
    let warps = THREADS as usize / 32;
    let tokens = if kv == KvType::Fp8 { 32 } else { 16 };
    let tiles = warps * stages as usize * 2 * tokens * (head_dim * kv.bytes() + 16);
    let queries = 16 * (2 * head_dim + 16);
    let fresh = 2 * head_dim * kv.bytes();
    // Where outputs are, and a flag.
    tiles + queries + fresh + warps * 8 + 8
}

/// The kernel that knows neither windows nor sinks, and the one that knows both.
fn kernel(head_dim: usize, kv: KvType) -> Option<[Kernel; 2]> {
    Some(match (head_dim, kv) {
        (64, KvType::Bf16) => [Kernel::DecodeBf16D64, Kernel::DecodeWindowBf16D64],
        (64, KvType::Fp16) => [Kernel::DecodeFp16D64, Kernel::DecodeWindowFp16D64],
        (64, KvType::Fp8) => [Kernel::DecodeFp8D64, Kernel::DecodeWindowFp8D64],
        (96, KvType::Bf16) => [Kernel::DecodeBf16D96, Kernel::DecodeWindowBf16D96],
        (96, KvType::Fp16) => [Kernel::DecodeFp16D96, Kernel::DecodeWindowFp16D96],
        (96, KvType::Fp8) => [Kernel::DecodeFp8D96, Kernel::DecodeWindowFp8D96],
        (128, KvType::Bf16) => [Kernel::DecodeBf16D128, Kernel::DecodeWindowBf16D128],
        (128, KvType::Fp16) => [Kernel::DecodeFp16D128, Kernel::DecodeWindowFp16D128],
        (128, KvType::Fp8) => [Kernel::DecodeFp8D128, Kernel::DecodeWindowFp8D128],
        (256, KvType::Bf16) => [Kernel::DecodeBf16D256, Kernel::DecodeWindowBf16D256],
        (256, KvType::Fp16) => [Kernel::DecodeFp16D256, Kernel::DecodeWindowFp16D256],
        (256, KvType::Fp8) => [Kernel::DecodeFp8D256, Kernel::DecodeWindowFp8D256],
        _ => return None,
    })
}
