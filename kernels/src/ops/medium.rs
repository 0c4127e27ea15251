//! Products of some rows with a weight of e4m3; the kernel is `cu/medium/medium.cu`.
//!
//! Owns: how such a product is cut up. Must never: allocate, or depend on anything but the shape and the GPU.

use std::ffi::c_void;

use cudarc::driver::sys;
use half::bf16;

use super::gemv::Fp8Gemv;
use super::skinny::{SkinnyGemm, SkinnyInput, SkinnyOut, SkinnyWeight, Stage};
use crate::Array;
use crate::abi::MediumArgs;
use crate::check::Check;
use crate::device::Device;
use crate::error::LaunchError;
use crate::fp8::{BLOCK, Fp8Weight, ScaleForm};
use crate::grid::Grid;
use crate::kernel::Kernel;

/// `out = x * weight^T` for some rows, with a weight of e4m3.
///
/// x is bf16 and not rounded, the weight is widened exactly, sums are f32. Moves the weight, `n * k` bytes, and little
/// else; bound by reading it. The same call gives the same bits each time.
pub struct MediumGemm<'a> {
    /// `[m, k]`.
    pub x: Array<'a, bf16>,
    /// `[n, k]`; for [`SkinnyOut::Gated`] the gate's rows, then as many of `up`.
    pub weight: Fp8Weight<'a>,
    /// Where the result goes; not [`SkinnyOut::Sent`], nor [`SkinnyOut::GatedCodes`].
    pub out: SkinnyOut<'a>,
    /// Tokens, at most [`MediumGemm::ROWS_MAX`].
    pub m: usize,
    /// Rows of the weight, a multiple of 8. For [`SkinnyOut::Gated`] of 16; of 256 with scales for blocks.
    pub n: usize,
    /// Columns of the weight, a multiple of 16.
    pub k: usize,
}

/// Our own products of few rows with a weight of e4m3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fp8Product {
    /// [`SkinnyGemm`], through such stages.
    Skinny(Stage),
    /// [`Fp8Gemv`], of one row.
    Gemv,
    /// [`MediumGemm`].
    Medium,
}

impl Default for Fp8Product {
    fn default() -> Self {
        Fp8Product::Skinny(Stage::default())
    }
}

impl Fp8Product {
    /// Every one that there is.
    const ALL: [Fp8Product; 5] = [
        Fp8Product::Skinny(Stage::Wide),
        Fp8Product::Skinny(Stage::Slim),
        Fp8Product::Skinny(Stage::Short),
        Fp8Product::Gemv,
        Fp8Product::Medium,
    ];

    /// For `m` rows of `k` columns, where nothing was measured; None if they are for cuBLASLt.
    pub fn of(device: &Device, m: usize, k: usize) -> Option<Fp8Product> {
        if (1..=SkinnyGemm::fp8_rows_worth(device, k)).contains(&m) {
            return Some(Fp8Product::Skinny(Stage::Wide));
        }
        Fp8Product::Medium.can(device, m, k).then_some(Fp8Product::Medium)
    }

    /// All that can compute a product of `m` rows of `k` columns.
    pub fn all_of(device: &Device, m: usize, k: usize) -> impl Iterator<Item = Fp8Product> {
        Self::ALL.into_iter().filter(move |product| product.can(device, m, k))
    }

    /// Whether it computes a product of `m` rows of `k` columns here.
    pub fn can(self, device: &Device, m: usize, k: usize) -> bool {
        match self {
            Fp8Product::Skinny(stage) => {
                m <= SkinnyGemm::fp8_rows_worth(device, k)
                    && SkinnyGemm::fp8_fits(device, m, k, stage)
            }
            Fp8Product::Gemv => m == 1 && Fp8Gemv::takes(device, k),
            Fp8Product::Medium => {
                MediumGemm::is_there(device) && (1..=MediumGemm::ROWS_MAX).contains(&m)
            }
        }
    }

    /// Its name on disk.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Fp8Product::Skinny(Stage::Wide) => "skinny-wide",
            Fp8Product::Skinny(Stage::Slim) => "skinny-slim",
            Fp8Product::Skinny(Stage::Short) => "skinny-short",
            Fp8Product::Gemv => "gemv",
            Fp8Product::Medium => "medium",
        }
    }

    /// The one of this name.
    pub(crate) fn named(name: &str) -> Option<Fp8Product> {
        Self::ALL.into_iter().find(|product| product.name() == name)
    }

    /// Puts `out = x * weight^T` onto the device's stream; `m`, `n` and `k` are x's rows, the weight's, and both's columns.
    ///
    /// # Errors
    /// As [`SkinnyGemm::launch`], [`Fp8Gemv::launch`] and [`MediumGemm::launch`].
    pub fn launch(
        self,
        device: &Device,
        x: Array<'_, bf16>,
        weight: Fp8Weight<'_>,
        out: SkinnyOut<'_>,
        [m, n, k]: [usize; 3],
    ) -> Result<(), LaunchError> {
        match self {
            Fp8Product::Skinny(stage) => {
                let (input, weight) = (SkinnyInput::Plain(x), SkinnyWeight::Fp8(weight));
                SkinnyGemm { input, weight, out, m, n, k }.launch_by(device, stage)
            }
            Fp8Product::Gemv => {
                let check = Check::new("fp8_gemv", device);
                check.that(m == 1, || format!("m is {m}, it is for one row"))?;
                Fp8Gemv { input: SkinnyInput::Plain(x), weight, out, n, k }.launch(device)
            }
            Fp8Product::Medium => MediumGemm { x, weight, out, m, n, k }.launch(device),
        }
    }
}

/// Rows of the weight that a cluster multiplies at a time, in halves.
pub(super) const ROWS: usize = 2 * BLOCK;
/// Threads of a block: two groups of four warps that multiply, one that copies.
const THREADS: u32 = 384;
/// Blocks of a cluster, and stages of the ring, at most.
const CLUSTER_MAX: usize = 8;
pub(super) const STAGES_MAX: usize = 8;
/// Static shared memory of the kernels at most, and what the driver takes of each block's.
pub(super) const SHARED_STATIC: usize = 4 << 10;
/// The ring starts at a multiple of this.
pub(super) const SHARED_ALIGNMENT: usize = 1024;
/// What a pass over the columns costs beside its stages, in stages.
const PASS_STAGES: usize = 2;

impl MediumGemm<'_> {
    /// Rows of x at most.
    pub const ROWS_MAX: usize = 64;

    /// Whether this GPU has what it takes: Hopper's products of warp groups.
    pub fn is_there(device: &Device) -> bool {
        device.capability() == (9, 0) && device.has_clusters()
    }

    /// Puts the op onto the device's stream.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub fn launch(self, device: &Device) -> Result<(), LaunchError> {
        let check = Check::new("medium_gemm", device);
        let (m, n, k) = (self.m, self.n, self.k);
        check_hopper(&check, device)?;
        check.that(m <= Self::ROWS_MAX, || format!("m is {m}, the limit is {}", Self::ROWS_MAX))?;
        check.that(!matches!(self.out, SkinnyOut::Sent { .. }), || {
            "it does not send to other GPUs; use SkinnyGemm".into()
        })?;
        self.out.check_plain(&check)?;
        let gated = matches!(self.out, SkinnyOut::Gated(..));
        let n_unit = rows_unit(gated, self.weight.form());
        let (epilogue, out, bias) = self.out.check(&check, m, n)?;
        let (weight, scales) = self.weight.check(&check, n, k)?;
        let mut args = MediumArgs {
            map: [0; 16],
            x: check.array("x", &self.x, &[m, k])?,
            scales,
            bias,
            out,
            m: check.count("m", m)?,
            n: check.multiple("n", n, n_unit)?,
            k: check.multiple("k", k, 16)?,
            epilogue,
            scale_form: self.weight.form().code(),
            stages: 0,
            gate: self.out.gate(),
        };
        if m == 0 {
            return Ok(());
        }
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
            op: "medium_gemm",
            shape: format!("[{m}, {k}] x [{n}, {k}]"),
            source,
        };
        let at_once = device
            .medium_clusters(|cluster| device.clusters_at_once(kernel, grid(cluster, cluster)));
        let cut = Cut::new(tiles, k.div_ceil(BLOCK), &at_once.map_err(driver)?);
        args.map = tensor_map(weight, n, k, BLOCK).map_err(driver)?;
        let grid = grid(cut.clusters * cut.size, cut.size);
        // SAFETY: the struct is the kernel's, its arrays were checked above, and the cut covers every row and column
        // with the shared memory that the kernel counts on.
        unsafe { check.launch(kernel, grid, &args) }
    }
}

/// Refuses where there are no products of warp groups.
pub(super) fn check_hopper(check: &Check<'_>, device: &Device) -> Result<(), LaunchError> {
    check.that(MediumGemm::is_there(device), || {
        let (major, minor) = device.capability();
        format!("compute capability is {major}.{minor}, it must be 9.0 (Hopper)")
    })
}

/// Rows of a weight come in so many: a block of rows must not have some of the gate and some of `up`.
pub(super) fn rows_unit(gated: bool, form: ScaleForm) -> usize {
    match (gated, form) {
        (true, ScaleForm::Block) => ROWS,
        (true, ScaleForm::Row) => 16,
        (false, _) => 8,
    }
}

/// Tokens that a kernel multiplies, and which.
fn kernel(m: usize) -> (usize, Kernel) {
    match m {
        0..=8 => (8, Kernel::Medium8),
        9..=16 => (16, Kernel::Medium16),
        17..=32 => (32, Kernel::Medium32),
        _ => (64, Kernel::Medium64),
    }
}

/// Stages of the ring, and the bytes of shared memory with it; counts as the kernel does.
fn ring(tokens: usize, shared_max: usize) -> (usize, usize) {
    let stage = ROWS * BLOCK + 2 * tokens * BLOCK;
    let fixed = SHARED_ALIGNMENT + 4 * tokens * (ROWS + 4);
    let stages = (shared_max.saturating_sub(fixed) / stage).clamp(1, STAGES_MAX);
    (stages, fixed + stages * stage)
}

/// How tiles and columns are shared out: clusters of so many blocks, each over its tiles one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) size: usize,
    pub(super) clusters: usize,
}

impl Cut {
    /// For `tiles` of rows and `blocks` of columns; `at_once` says how many clusters of 1, 2, .. blocks the GPU has room for.
    pub(super) fn new(tiles: usize, blocks: usize, at_once: &[u32; CLUSTER_MAX]) -> Cut {
        let cost = |size: usize| {
            let clusters = tiles.min(at_once[size - 1] as usize);
            (clusters > 0 && size <= blocks).then(|| {
                let passes = tiles.div_ceil(clusters);
                (passes * (blocks.div_ceil(size) + PASS_STAGES), size, tiles.div_ceil(passes))
            })
        };
        // Of equals the smaller cluster; one block always fits.
        let best = (1..=CLUSTER_MAX).filter_map(cost).min();
        best.map_or(Cut { size: 1, clusters: 1 }, |(_, size, clusters)| Cut { size, clusters })
    }
}

/// A driver's description of bytes `[n, k]`, copied in tiles of `rows` x 128, 16-byte pieces of a row permuted so
/// that eight rows lie in different banks.
pub(super) fn tensor_map(
    weight: u64,
    n: usize,
    k: usize,
    rows: usize,
) -> Result<[u64; 16], cudarc::driver::DriverError> {
    #[repr(C, align(64))]
    struct Map([u64; 16]);
    const { assert!(size_of::<sys::CUtensorMap>() == size_of::<Map>()) };
    let mut map = Map([0; 16]);
    let (lengths, strides) = ([k as u64, n as u64], [k as u64]);
    let (tile, steps) = ([BLOCK as u32, rows as u32], [1_u32; 2]);
    // SAFETY: the driver reads two lengths, one stride, and two sides and steps of the tile, and writes a map of the
    // size checked above, aligned as it wants; it does not look at the bytes.
    unsafe {
        sys::cuTensorMapEncodeTiled(
            std::ptr::from_mut(&mut map).cast(),
            sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT8,
            2,
            weight as *mut c_void,
            lengths.as_ptr(),
            strides.as_ptr(),
            tile.as_ptr(),
            steps.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    }
    .result()?;
    Ok(map.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clusters of 1 to 8 blocks: an H200 of which one group of multiprocessors has fewer.
    const AT_ONCE: [u32; CLUSTER_MAX] = [132, 66, 42, 32, 23, 20, 16, 15];

    #[test]
    fn every_tile_has_a_cluster_and_every_cluster_has_room() {
        for tiles in [1, 2, 15, 16, 24, 32, 96, 132, 133, 594] {
            for blocks in [1, 2, 7, 8, 32, 96] {
                let Cut { size, clusters } = Cut::new(tiles, blocks, &AT_ONCE);
                assert!((1..=CLUSTER_MAX).contains(&size) && size <= blocks, "{tiles} {blocks}");
                assert!(
                    clusters >= 1 && clusters <= AT_ONCE[size - 1] as usize,
                    "{tiles} {blocks}"
                );
                assert!(clusters <= tiles, "{tiles} {blocks}");
            }
        }
    }

    #[test]
    fn no_cluster_waits_for_another_to_end() {
        for (tiles, blocks, size, clusters) in [
            (96, 32, 4, 32), // 24,576 x 4,096, gated: three tiles for each cluster; 33 have no room at once.
            (24, 32, 4, 24), // 6,144 x 4,096
            (16, 32, 7, 16), // 4,096 x 4,096
            (16, 96, 7, 16), // 4,096 x 12,288
            (1, 1, 1, 1),
        ] {
            assert_eq!(
                Cut::new(tiles, blocks, &AT_ONCE),
                Cut { size, clusters },
                "{tiles} {blocks}"
            );
        }
    }

    #[test]
    fn the_ring_fits_and_has_room_to_overlap() {
        let shared_max = 232_448 - SHARED_STATIC;
        for (m, stages) in [(1, 6), (8, 6), (9, 5), (32, 4), (33, 3), (64, 3)] {
            let (tokens, _) = kernel(m);
            let (got, bytes) = ring(tokens, shared_max);
            assert_eq!(got, stages, "{m}");
            assert!(m <= tokens && bytes <= shared_max, "{m}: {bytes}");
        }
    }
}
