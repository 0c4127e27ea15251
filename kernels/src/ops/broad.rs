//! Products of many rows of e4m3 with a weight of e4m3; the kernel is `cu/broad/broad.cuh`.
//!
//! Owns: how such a product may be cut up. Must never: allocate, or choose between cuts: that takes a clock (see
//! [`Gemm::tune_fp8`](crate::gemm::Gemm::tune_fp8)).

use super::medium::{self, MediumGemm, SHARED_ALIGNMENT, SHARED_STATIC, tensor_map};
use super::skinny::SkinnyOut;
use crate::abi::BroadArgs;
use crate::check::Check;
use crate::device::Device;
use crate::error::LaunchError;
use crate::fp8::{BLOCK, Fp8Rows, Fp8Weight, ScaleForm};
use crate::grid::Grid;
use crate::kernel::Kernel;

/// `out = x * weight^T` for many rows, with x and the weight of e4m3.
///
/// Sums are the tensor cores' over 128 columns, f32 beyond. Moves the weight, `n * k` bytes, and x from the cache once for
/// each tile; bound by reading up to some 150 rows, by the tensor cores beyond. The same call gives the same bits each time.
pub struct BroadGemm<'a> {
    /// `[m, k]`, with scales in the form of the weight's.
    pub x: Fp8Rows<'a>,
    /// `[n, k]`; for [`SkinnyOut::Gated`] the gate's rows, then as many of `up`.
    pub weight: Fp8Weight<'a>,
    /// Where the result goes; not [`SkinnyOut::Sent`], nor [`SkinnyOut::GatedCodes`].
    pub out: SkinnyOut<'a>,
    /// Tokens, a multiple of 4.
    pub m: usize,
    /// Rows of the weight, a multiple of 8. For [`SkinnyOut::Gated`] of 16; of 256 with scales for blocks.
    pub n: usize,
    /// Columns of the weight, a multiple of 16.
    pub k: usize,
}

/// How a product is cut up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BroadCut {
    /// Rows of the weight that a block computes, one of [`WIDTHS`].
    wide: usize,
    /// Tokens that a block computes, in 64s: 1 or 2.
    teams: usize,
    /// Blocks that share a tile's columns, up to [`CLUSTER_MAX`].
    blocks: usize,
}

const WIDTHS: [usize; 4] = [64, 96, 128, 192];
/// What one group of warps multiplies.
const TEAM: usize = 64;
const CLUSTER_MAX: usize = 8;
/// Stages of columns that a block has at least, where it shares a tile's.
const STAGES_MIN: usize = 4;
/// Stages of the ring at most.
const RING_MAX: usize = 12;
/// Threads of a block: two groups of four warps that multiply, and one that copies.
const THREADS: u32 = 384;
/// Tokens come in so many: scales of a block of columns start at multiples of 16 bytes.
const TOKENS_UNIT: usize = 4;

impl BroadCut {
    /// The cuts that are worth timing for a weight of `n` rows and `m` tokens: for each width as many blocks to a tile as find a
    /// multiprocessor of their own. `at_once` says how many clusters of 1, 2, .. blocks the GPU has room for.
    fn all([m, n, k]: [usize; 3], at_once: &[u32; CLUSTER_MAX]) -> impl Iterator<Item = BroadCut> {
        let teams = m.div_ceil(TEAM).min(2);
        WIDTHS.into_iter().map(move |wide| {
            let items = n.div_ceil(wide) * m.div_ceil(TEAM * teams);
            let fits = |&blocks: &usize| {
                items <= at_once[blocks - 1] as usize && blocks * STAGES_MIN <= k.div_ceil(BLOCK)
            };
            let blocks = (2..=CLUSTER_MAX).rev().find(fits).unwrap_or(1);
            BroadCut { wide, teams, blocks }
        })
    }

    /// Its name on disk.
    pub(crate) fn name(self) -> String {
        format!("broad-{}-{}-{}", self.wide, self.teams, self.blocks)
    }

    /// The one of this name.
    pub(crate) fn named(name: &str) -> Option<BroadCut> {
        let parts: Vec<&str> = name.strip_prefix("broad-")?.split('-').collect();
        let [wide, teams, blocks] = parts[..] else { return None };
        let (wide, teams) = (wide.parse().ok()?, teams.parse().ok()?);
        let cut = BroadCut { wide, teams, blocks: blocks.parse().ok()? };
        let is_one = WIDTHS.contains(&wide) && (1..=2).contains(&teams);
        (is_one && (1..=CLUSTER_MAX).contains(&cut.blocks) && cut.name() == name).then_some(cut)
    }

    fn kernel(self) -> Kernel {
        match (self.wide, self.teams) {
            (64, 1) => Kernel::Broad64x1,
            (96, 1) => Kernel::Broad96x1,
            (128, 1) => Kernel::Broad128x1,
            (_, 1) => Kernel::Broad192x1,
            (64, _) => Kernel::Broad64x2,
            (96, _) => Kernel::Broad96x2,
            (128, _) => Kernel::Broad128x2,
            _ => Kernel::Broad192x2,
        }
    }

    fn tokens(self) -> usize {
        TEAM * self.teams
    }

    /// Stages of the ring, and the bytes of shared memory with it; counts as the kernel does.
    fn ring(self, shared_max: usize) -> (usize, usize) {
        let stage = (self.wide + self.tokens()) * BLOCK + 4 * self.tokens();
        let stages = (shared_max.saturating_sub(SHARED_ALIGNMENT) / stage).clamp(1, RING_MAX);
        // The sums of blocks that share a tile lie where the ring was.
        let partial = 4 * self.tokens() * (self.wide + 8);
        (stages, SHARED_ALIGNMENT + (stages * stage).max(partial))
    }

    fn grid(self, blocks: usize, shared_bytes: usize) -> Grid {
        Grid {
            blocks: (blocks as u32, 1),
            threads: THREADS,
            shared_bytes: shared_bytes as u32,
            cluster: self.blocks as u32,
        }
    }
}

/// Shared memory that a block's ring and sums may take.
fn shared_max(device: &Device) -> usize {
    device.shared_bytes_block() as usize - SHARED_STATIC
}

impl BroadGemm<'_> {
    /// From so many rows on cuBLASLt is at least as fast on the GPU that was measured.
    pub const ROWS_MAX: usize = 512;

    /// Whether it may be faster than others for so many rows here.
    pub fn takes(device: &Device, m: usize) -> bool {
        MediumGemm::is_there(device)
            && (1..=Self::ROWS_MAX).contains(&m)
            && m.is_multiple_of(TOKENS_UNIT)
    }

    /// How a product of x `[m, k]` with a weight `[n, k]` may be cut up. Which is the fastest, a clock tells.
    ///
    /// # Errors
    /// The driver's, which says how many clusters there is room for.
    pub fn cuts(device: &Device, [m, n, k]: [usize; 3]) -> Result<Vec<BroadCut>, LaunchError> {
        let at_once = device.medium_clusters(|cluster| {
            let cut = BroadCut { wide: 128, teams: 2, blocks: cluster };
            let grid = cut.grid(cluster, cut.ring(shared_max(device)).1);
            device.clusters_at_once(cut.kernel(), grid)
        });
        let at_once = at_once.map_err(|source| driver([m, n, k], source))?;
        Ok(BroadCut::all([m, n, k], &at_once).collect())
    }

    /// Puts the op onto the device's stream, cut up so.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub fn launch(self, device: &Device, cut: BroadCut) -> Result<(), LaunchError> {
        let check = Check::new("broad_gemm", device);
        let (m, n, k) = (self.m, self.n, self.k);
        medium::check_hopper(&check, device)?;
        check.that(!matches!(self.out, SkinnyOut::Sent { .. }), || {
            "it does not send to other GPUs; use SkinnyGemm".into()
        })?;
        self.out.check_plain(&check)?;
        let gated = matches!(self.out, SkinnyOut::Gated(..));
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
        // A block has at least one stage of columns.
        let cut = BroadCut { blocks: cut.blocks.min(k.div_ceil(BLOCK)).max(1), ..cut };
        let (stages, shared_bytes) = cut.ring(shared_max(device));
        let mut args = BroadArgs {
            map: [0; 16],
            x_map: [0; 16],
            x_scales,
            scales,
            bias,
            out,
            m: check.multiple("m", m, TOKENS_UNIT)?,
            n: check.multiple("n", n, n_unit)?,
            k: check.multiple("k", k, 16)?,
            epilogue,
            scale_form: self.weight.form().code(),
            stages: stages as u32,
            gate: self.out.gate(),
        };
        if m == 0 {
            return Ok(());
        }
        let shape = [m, n, k];
        args.map = tensor_map(weight, n, k, cut.wide / 4).map_err(|e| driver(shape, e))?;
        args.x_map = tensor_map(x, m, k, cut.tokens()).map_err(|e| driver(shape, e))?;
        // What is gated has half as many outputs, and two rows of the weight for each.
        let items = n.div_ceil(cut.wide) * m.div_ceil(cut.tokens());
        // Blocks alone take one item after the other; a cluster has one.
        let clusters =
            if cut.blocks == 1 { items.min(device.multiprocessors() as usize) } else { items };
        let grid = cut.grid(clusters * cut.blocks, shared_bytes);
        // SAFETY: the struct is the kernel's, its arrays were checked above, and the cut covers every row and column
        // with the shared memory that the kernel counts on.
        unsafe { check.launch(cut.kernel(), grid, &args) }
    }
}

fn driver([m, n, k]: [usize; 3], source: cudarc::driver::DriverError) -> LaunchError {
    LaunchError::Driver { op: "broad_gemm", shape: format!("[{m}, {k}] x [{n}, {k}]"), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An H200 of which one group of multiprocessors has fewer.
    const AT_ONCE: [u32; CLUSTER_MAX] = [132, 66, 42, 32, 23, 20, 16, 15];

    #[test]
    fn every_cut_has_room_and_a_name_that_reads_back() {
        for m in [4, 64, 68, 128, 132, 256, 512] {
            for (n, k) in [(4096, 4096), (24_576, 4096), (4096, 12_288), (24, 16), (51_200, 5120)] {
                let cuts: Vec<_> = BroadCut::all([m, n, k], &AT_ONCE).collect();
                assert_eq!(cuts.len(), WIDTHS.len());
                for cut in cuts {
                    let items = n.div_ceil(cut.wide) * m.div_ceil(cut.tokens());
                    let room = AT_ONCE[cut.blocks - 1] as usize;
                    assert!(cut.blocks == 1 || items <= room, "{cut:?} of {m} {n} {k}");
                    assert!(cut.blocks <= k.div_ceil(BLOCK), "{cut:?} of {k}");
                    assert_eq!(BroadCut::named(&cut.name()), Some(cut));
                }
            }
        }
        for name in ["broad", "broad-64-1", "broad-65-1-1", "broad-64-3-1", "broad-64-1-9"] {
            assert_eq!(BroadCut::named(name), None, "{name}");
        }
        assert_eq!(BroadCut::named("broad-064-1-1"), None);
    }

    #[test]
    fn few_tiles_are_shared_and_many_are_not() {
        let blocks = |m, n, k| -> Vec<usize> {
            BroadCut::all([m, n, k], &AT_ONCE).map(|cut| cut.blocks).collect()
        };
        // There is room for 42 clusters of three blocks, and tiles of 96 rows are 43.
        assert_eq!(blocks(128, 4096, 4096), [2, 2, 4, 5]);
        assert_eq!(blocks(128, 24_576, 4096), [1; 4]);
        assert_eq!(blocks(256, 4096, 12_288), [1, 1, 2, 2]);
        // Columns for no more than two blocks.
        assert_eq!(blocks(128, 1024, 1024), [2; 4]);
    }

    #[test]
    fn the_ring_and_the_sums_fit() {
        let shared_max = 232_448 - SHARED_STATIC;
        for (wide, teams, stages) in
            [(64, 1, 12), (128, 1, 9), (64, 2, 9), (128, 2, 6), (192, 2, 5)]
        {
            let (got, bytes) = BroadCut { wide, teams, blocks: 1 }.ring(shared_max);
            assert_eq!(got, stages, "{wide} {teams}");
            assert!(bytes <= shared_max, "{wide} {teams}: {bytes}");
        }
    }
}
