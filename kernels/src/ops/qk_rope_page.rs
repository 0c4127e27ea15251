//! QK-norm, rotary embedding and KV page write; the kernel is `cu/rope/qk_rope_page.cu`.

use half::bf16;

use crate::Array;
use crate::abi::QkRopePageArgs;
use crate::array::DeviceArray;
use crate::check::Check;
use crate::device::Device;
use crate::error::LaunchError;
use crate::grid::Grid;
use crate::kernel::Kernel;
use crate::kv::{KvArrayMut, KvType};

/// Head dimensions there are kernels for.
pub const HEAD_DIMS: [usize; 4] = [64, 96, 128, 256];

/// RMSNorm of each query and key head, before the rotation.
pub struct QkNorm<'a> {
    /// `[head_dim]`.
    pub q_weight: Array<'a, bf16>,
    /// `[head_dim]`.
    pub k_weight: Array<'a, bf16>,
    /// Added to the mean square.
    pub eps: f32,
    /// Weights are stored less 1.
    pub plus_one: bool,
}

/// Takes the QKV projection apart: normalises and rotates queries and keys (halves of a
/// head as the planes), stores queries densely and keys and values in their pages.
///
/// bf16, f32 inside; what goes to attention is rounded once to the type of its array, and clipped to what fp16
/// and fp8 can hold. Moves `4 * rows * (q_heads + 2 * kv_heads) * head_dim` bytes (with 2-byte pages) and
/// `4 * rows * head_dim` of the table; bound by copy bandwidth. A row whose slot or position is negative or outside its
/// table is padding: nothing of it is written.
pub struct QkRopePage<'a> {
    /// Queries, keys, values: `[rows, q_heads + 2 * kv_heads, head_dim]`.
    pub qkv: Array<'a, bf16>,
    /// Norm of queries and keys.
    pub norm: Option<QkNorm<'a>>,
    /// For each position `head_dim / 2` cosines, then as many sines: `[positions, head_dim]`.
    pub cos_sin: Array<'a, f32>,
    /// Position of each token, `[rows]`.
    pub positions: Array<'a, i32>,
    /// `page * page_size + offset` of each token, `[rows]`.
    pub slots: Array<'a, i32>,
    /// `[rows, q_heads, head_dim]`, bf16 or fp16.
    pub q_out: KvArrayMut<'a>,
    /// `[pages, page_size, kv_heads, head_dim]`.
    pub k_pages: KvArrayMut<'a>,
    /// As `k_pages`, of the same type.
    pub v_pages: KvArrayMut<'a>,
    /// Tokens.
    pub rows: usize,
    /// Query heads on this rank.
    pub q_heads: usize,
    /// Key and value heads on this rank.
    pub kv_heads: usize,
    /// One of [`HEAD_DIMS`].
    pub head_dim: usize,
}

impl QkRopePage<'_> {
    /// Puts the op onto the device's stream.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub fn launch(self, device: &Device) -> Result<(), LaunchError> {
        let check = Check::new("qk_rope_page", device);
        let (rows, head_dim) = (self.rows, self.head_dim);
        let heads = self.q_heads + 2 * self.kv_heads;
        // A head's lanes: 8 values of each half a lane, in a group that divides a warp.
        use KvType::{Bf16, Fp8, Fp16};
        let plus_one = self.norm.as_ref().is_some_and(|norm| norm.plus_one);
        let (kernel, lanes) = match (head_dim, self.k_pages.kv_type(), plus_one) {
            (64, Bf16, false) => (Kernel::QkRopePage64, 4),
            (64, Fp16, false) => (Kernel::QkRopePage64Fp16, 4),
            (64, Fp8, false) => (Kernel::QkRopePage64Fp8, 4),
            (96, Bf16, false) => (Kernel::QkRopePage96, 8),
            (96, Fp16, false) => (Kernel::QkRopePage96Fp16, 8),
            (96, Fp8, false) => (Kernel::QkRopePage96Fp8, 8),
            (128, Bf16, false) => (Kernel::QkRopePage128, 8),
            (128, Fp16, false) => (Kernel::QkRopePage128Fp16, 8),
            (128, Fp8, false) => (Kernel::QkRopePage128Fp8, 8),
            (256, Bf16, false) => (Kernel::QkRopePage256, 16),
            (256, Fp16, false) => (Kernel::QkRopePage256Fp16, 16),
            (256, Fp8, false) => (Kernel::QkRopePage256Fp8, 16),
            (64, Bf16, true) => (Kernel::QkRopePage64PlusOne, 4),
            (64, Fp16, true) => (Kernel::QkRopePage64Fp16PlusOne, 4),
            (64, Fp8, true) => (Kernel::QkRopePage64Fp8PlusOne, 4),
            (96, Bf16, true) => (Kernel::QkRopePage96PlusOne, 8),
            (96, Fp16, true) => (Kernel::QkRopePage96Fp16PlusOne, 8),
            (96, Fp8, true) => (Kernel::QkRopePage96Fp8PlusOne, 8),
            (128, Bf16, true) => (Kernel::QkRopePage128PlusOne, 8),
            (128, Fp16, true) => (Kernel::QkRopePage128Fp16PlusOne, 8),
            (128, Fp8, true) => (Kernel::QkRopePage128Fp8PlusOne, 8),
            (256, Bf16, true) => (Kernel::QkRopePage256PlusOne, 16),
            (256, Fp16, true) => (Kernel::QkRopePage256Fp16PlusOne, 16),
            (256, Fp8, true) => (Kernel::QkRopePage256Fp8PlusOne, 16),
            _ => {
                let what = format!("head_dim is {head_dim}, there are kernels for {HEAD_DIMS:?}");
                return Err(LaunchError::Argument { op: "qk_rope_page", what });
            }
        };
        check.that(self.k_pages.kv_type() == self.v_pages.kv_type(), || {
            format!("keys are {:?}, values {:?}", self.k_pages.kv_type(), self.v_pages.kv_type())
        })?;
        check.that(self.q_out.kv_type() != Fp8, || "queries are bf16 or fp16, not fp8".into())?;
        let positions_len = self.cos_sin.len() / head_dim;
        let slots_len = self.k_pages.len() / (self.kv_heads * head_dim).max(1);
        let pages = [slots_len, self.kv_heads, head_dim];
        let (q_weight, k_weight, eps) = match &self.norm {
            Some(norm) => (
                check.array("q_weight", &norm.q_weight, &[head_dim])?,
                check.array("k_weight", &norm.k_weight, &[head_dim])?,
                norm.eps,
            ),
            None => (0, 0, 0.0),
        };
        let args = QkRopePageArgs {
            qkv: check.array("qkv", &self.qkv, &[rows, heads, head_dim])?,
            q_weight,
            k_weight,
            cos_sin: check.array("cos_sin", &self.cos_sin, &[positions_len, head_dim])?,
            positions: check.scalars("positions", &self.positions, &[rows])?,
            slots: check.scalars("slots", &self.slots, &[rows])?,
            q_out: check.array("q_out", &self.q_out, &[rows, self.q_heads, head_dim])?,
            k_pages: check.array("k_pages", &self.k_pages, &pages)?,
            v_pages: check.array("v_pages", &self.v_pages, &pages)?,
            rows: check.count("rows", rows)?,
            q_heads: check.multiple("q_heads", self.q_heads, 1)?,
            kv_heads: check.multiple("kv_heads", self.kv_heads, 1)?,
            positions_len: check.count("the number of positions", positions_len)?,
            slots_len: check.count("pages * page_size", slots_len)?,
            eps,
            q_fp16: u32::from(self.q_out.kv_type() == Fp16),
            reserved: 0,
        };
        check.count("rows * heads * lanes", rows * heads * lanes)?;
        let grid = Grid::of_threads(rows * heads * lanes);
        // SAFETY: the struct is the kernel's for this head_dim, and its arrays were checked above.
        unsafe { check.launch(kernel, grid, &args) }
    }
}
