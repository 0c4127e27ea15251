//! Products of some rows of e4m3 with a weight of e4m3; the kernel is `cu/narrow/narrow.cu`.
//!
//! Owns: how such a product is cut up. Must never: allocate, or depend on anything but the shape and the GPU.

use super::medium::{self, Cut, ROWS, SHARED_ALIGNMENT, SHARED_STATIC, STAGES_MAX, tensor_map};
use super::skinny::SkinnyOut;
use crate::abi::NarrowArgs;
use crate::check::Check;
use crate::device::Device;
use crate::error::LaunchError;
use crate::fp8::{BLOCK, Fp8Rows, Fp8Weight, ScaleForm};
use crate::grid::Grid;
use crate::kernel::Kernel;

/// `out = x * weight^T` for some rows, with x and the weight of e4m3.
///
/// Sums are the tensor cores' over 128 columns, f32 beyond. Moves the weight, `n * k` bytes, and little else; bound by reading it.
/// The same call gives the same bits each time.
pub struct NarrowGemm<'a> {
    /// `[m, k]`, with scales in the form of the weight's.
    pub x: Fp8Rows<'a>,
    /// `[n, k]`; for [`SkinnyOut::Gated`] the gate's rows, then as many of `up`.
    pub weight: Fp8Weight<'a>,
    /// Where the result goes; not [`SkinnyOut::Sent`]. [`SkinnyOut::GatedCodes`] with scales for blocks only.
    pub out: SkinnyOut<'a>,
    /// Tokens, a multiple of 4, at most [`NarrowGemm::ROWS_MAX`].
    pub m: usize,
    /// Rows of the weight, a multiple of 8. For [`SkinnyOut::Gated`] of 16; of 256 with scales for blocks.
    pub n: usize,
    /// Columns of the weight, a multiple of 16.
    pub k: usize,
}

/// Threads of a block: two groups of four warps that multiply, a warp that copies.
const THREADS: u32 = 288;
/// Tokens come in so many: scales of a block of columns start at multiples of 16 bytes.
const TOKENS_UNIT: usize = 4;

impl NarrowGemm<'_> {
    /// Rows of x at most.
    pub const ROWS_MAX: usize = 64;

    /// Whether it is for so many rows.
    pub fn takes(m: usize) -> bool {
        (1..=Self::ROWS_MAX).contains(&m) && m.is_multiple_of(TOKENS_UNIT)
    }

    /// Puts the op onto the device's stream.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub fn launch(self, device: &Device) -> Result<(), LaunchError> {
        let check = Check::new("narrow_gemm", device);
        let (m, n, k) = (self.m, self.n, self.k);
        medium::check_hopper(&check, device)?;
        check.that(m <= Self::ROWS_MAX, || format!("m is {m}, the limit is {}", Self::ROWS_MAX))?;
        check.that(!matches!(self.out, SkinnyOut::Sent { .. }), || {
            "it does not send to other GPUs; use SkinnyGemm".into()
        })?;
        let coded = matches!(self.out, SkinnyOut::GatedCodes { .. });
        check.that(!coded || self.weight.form() == ScaleForm::Block, || {
            "it makes codes of what it gates with scales for blocks only; use Quantise".into()
        })?;
        let gated = coded || matches!(self.out, SkinnyOut::Gated(..));
        let n_unit = medium::rows_unit(gated, self.weight.form());
        let (epilogue, out, bias) = self.out.check(&check, m, n)?;
        let (weight, scales) = self.weight.check(&check, n, k)?;
        let x = check.array("x", &self.x.data, &[m, k])?;
        let x_scales = match self.weight.form() {
            ScaleForm::Block => {
                check.array("scales of x", &self.x.scales, &[k.div_ceil(BLOCK), m])?
            }
            ScaleForm::Row => check.array("scales of x", &self.x.scales, &[m])?,
        };
        if m == 0 {
            return Ok(());
        }
        let mut args = NarrowArgs {
            map: [0; 16],
            x_map: [0; 16],
            x_scales,
            scales,
            bias,
            out,
            out_scales: match &self.out {
                SkinnyOut::GatedCodes { scales, .. } => {
                    check.array("scales of out", scales, &[n / 2 / BLOCK, m])?
                }
                _ => 0,
            },
            m: check.multiple("m", m, TOKENS_UNIT)?,
            n: check.multiple("n", n, n_unit)?,
            k: check.multiple("k", k, 16)?,
            epilogue,
            scale_form: self.weight.form().code(),
            stages: 0,
            gate: self.out.gate(),
        };
        let (tokens, kernel) = kernel(m);
        let shared_max = device.shared_bytes_block() as usize - SHARED_STATIC;
        let (stages, shared_bytes) = ring(tokens, shared_max);
        args.stages = stages as u32;
        let tiles = if gated { (n / 2).div_ceil(BLOCK) } else { n.div_ceil(ROWS) };
        let grid = |blocks: usize, cluster: usize| Grid {
            blocks: (blocks as u32, 1),
            threads: THREADS,
            shared_bytes: shared_bytes as u32,
            cluster: cluster as u32,
        };
        let driver = |source| LaunchError::Driver {
            op: "narrow_gemm",
            shape: format!("[{m}, {k}] x [{n}, {k}]"),
            source,
        };
        let at_once = device
            .medium_clusters(|cluster| device.clusters_at_once(kernel, grid(cluster, cluster)));
        let cut = Cut::new(tiles, k.div_ceil(BLOCK), &at_once.map_err(driver)?);
        args.map = tensor_map(weight, n, k, BLOCK).map_err(driver)?;
        args.x_map = tensor_map(x, m, k, tokens).map_err(driver)?;
        let grid = grid(cut.clusters * cut.size, cut.size);
        // SAFETY: the struct is the kernel's, its arrays were checked above, and the cut covers every row and column
        // with the shared memory that the kernel counts on.
        unsafe { check.launch(kernel, grid, &args) }
    }
}

/// Tokens that a kernel multiplies, and which.
fn kernel(m: usize) -> (usize, Kernel) {
    match m {
        0..=8 => (8, Kernel::Narrow8),
        9..=16 => (16, Kernel::Narrow16),
        17..=32 => (32, Kernel::Narrow32),
        _ => (64, Kernel::Narrow64),
    }
}

/// Stages of the ring, and the bytes of shared memory with it; counts as the kernel does.
fn ring(tokens: usize, shared_max: usize) -> (usize, usize) {
    let stage = ROWS * BLOCK + tokens * BLOCK;
    let fixed = SHARED_ALIGNMENT + 4 * tokens * (ROWS + 4);
    let stages = (shared_max.saturating_sub(fixed) / stage).clamp(1, STAGES_MAX);
    (stages, fixed + stages * stage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_fits_and_has_room_to_overlap() {
        let shared_max = 232_448 - SHARED_STATIC;
        for (m, stages) in [(4, 6), (16, 6), (32, 5), (36, 3), (64, 3)] {
            let (tokens, _) = kernel(m);
            let (got, bytes) = ring(tokens, shared_max);
            assert!(got >= stages, "{m}: {got}");
            assert!(m <= tokens && bytes <= shared_max, "{m}: {bytes}");
        }
    }
}
