//! Products of a few rows with a weight, and what stands before and after them; the kernels are
//! `cu/skinny/`.
//!
//! Owns: how such a product is cut up. Must never: allocate, or depend on anything but the shape.

mod cut;

use cudarc::driver::DevicePtr;
use half::bf16;

use super::Gate;
use crate::abi::{Address, RANKS_MAX, SkinnyArgs};
use crate::check::Check;
use crate::device::Device;
use crate::error::LaunchError;
use crate::fp8::Fp8Weight;
use crate::grid::Grid;
use crate::kernel::Kernel;
use crate::{Array, ArrayMut};
pub use cut::Stage;
use cut::{Cut, Element, Limits, Shape, Way};

/// Where a rank's part of one sum is to be written, besides its own [`Peers::delta`](crate::peers::Peers::delta).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inboxes {
    pub(crate) inbox: [Address; RANKS_MAX - 1],
    pub(crate) peers: u32,
    /// Elements.
    pub(crate) room: usize,
}

/// `out = x * weight^T` for few rows, fused with what comes before and after it in a layer.
///
/// bf16 with f32 sums; the weight may be e4m3, which is widened exactly. Moves the weight, `2 * n * k` or `n * k`
/// bytes, and little else; bound by reading it. The same call gives the same bits each time.
pub struct SkinnyGemm<'a> {
    /// The rows.
    pub input: SkinnyInput<'a>,
    /// `[n, k]`; for [`SkinnyOut::Gated`] the gate's rows, then as many of `up`.
    pub weight: SkinnyWeight<'a>,
    /// Where the result goes.
    pub out: SkinnyOut<'a>,
    /// Tokens, at most [`SkinnyGemm::ROWS_MAX`].
    pub m: usize,
    /// Rows of the weight, a multiple of 8; of 16 for [`SkinnyOut::Gated`].
    pub n: usize,
    /// Columns of the weight, a multiple of 8; of 16 for [`SkinnyWeight::Fp8`].
    pub k: usize,
}

/// The weight of a [`SkinnyGemm`].
#[derive(Clone, Copy)]
pub enum SkinnyWeight<'a> {
    /// As it is.
    Bf16(Array<'a, bf16>),
    /// Half the bytes, and scales.
    Fp8(Fp8Weight<'a>),
}

impl<'a, S: DevicePtr<bf16>> From<&'a S> for SkinnyWeight<'a> {
    fn from(slice: &'a S) -> Self {
        SkinnyWeight::Bf16(slice.into())
    }
}

/// The rows of a [`SkinnyGemm`].
pub enum SkinnyInput<'a> {
    /// `[m, k]`, as they are.
    Plain(Array<'a, bf16>),
    /// `bf16(rms_norm(residual) * weight)`, as [`super::RmsNorm`] computes it.
    Normed {
        /// `[m, k]`.
        residual: Array<'a, bf16>,
        /// `[k]`.
        weight: Array<'a, bf16>,
        /// Added to the mean square.
        eps: f32,
    },
}

/// What becomes of the result of a [`SkinnyGemm`].
pub enum SkinnyOut<'a> {
    /// Rounded, after `bias` is added.
    Bf16 {
        /// `[m, n]`.
        out: ArrayMut<'a, bf16>,
        /// `[n]`.
        bias: Option<Array<'a, bf16>>,
    },
    /// Logits, `[m, n]`.
    F32(ArrayMut<'a, f32>),
    /// `residual = bf16(result + bias + residual)`.
    AddTo {
        /// `[m, n]`.
        residual: ArrayMut<'a, bf16>,
        /// `[n]`.
        bias: Option<Array<'a, bf16>>,
    },
    /// Of the rounded halves, `[m, n / 2]`.
    Gated(ArrayMut<'a, bf16>, Gate),
    /// The same as e4m3, as [`super::Quantise`] makes it, with a scale for 128 columns of a token; by
    /// [`super::NarrowGemm`] alone.
    GatedCodes {
        /// `[m, n / 2]`.
        out: ArrayMut<'a, u8>,
        /// `[n / 2 / 128, m]`.
        scales: ArrayMut<'a, f32>,
        /// Which gate.
        gate: Gate,
    },
    /// Rounded, after `bias` is added, and written into the inboxes of other GPUs as well.
    Sent {
        /// `[m, n]`.
        out: ArrayMut<'a, bf16>,
        /// `[n]`.
        bias: Option<Array<'a, bf16>>,
        /// Where else it goes.
        inboxes: Inboxes,
    },
}

impl SkinnyGemm<'_> {
    /// Rows of x at most.
    pub const ROWS_MAX: usize = 16;

    /// Rows up to which it is faster than cuBLASLt on this GPU, or as fast, with what it saves other ops. Measured on an
    /// H100; elsewhere without bulk copies none.
    pub fn rows_worth(device: &Device) -> usize {
        if device.has_clusters() { Self::ROWS_MAX } else { 0 }
    }

    /// The same for a weight of e4m3 of `k` columns, which is streamed as long as x has room beside it; more rows are for
    /// [`MediumGemm`](super::MediumGemm). Measured on an H200.
    pub fn fp8_rows_worth(device: &Device, k: usize) -> usize {
        (1..=8).rev().find(|&m| Self::fp8_fits(device, m, k, Stage::Wide)).unwrap_or(0)
    }

    /// Whether a weight of e4m3 can be streamed through such stages.
    pub fn fp8_fits(device: &Device, m: usize, k: usize, stage: Stage) -> bool {
        device.has_clusters() && Cut::new(Shape::of_fp8(m, k), limits(device), stage).is_some()
    }

    /// Whether [`SkinnyInput::Normed`] is faster than [`super::RmsNorm`] before it: each block computes the norm for
    /// itself.
    pub fn norm_is_worth(m: usize, k: usize) -> bool {
        m * k <= 1 << 14
    }

    /// Puts the op onto the device's stream.
    ///
    /// # Errors
    /// See [`LaunchError`]; more than [`SkinnyGemm::rows_worth`] rows, or a norm over rows that no block can keep.
    pub fn launch(self, device: &Device) -> Result<(), LaunchError> {
        self.launch_by(device, Stage::default())
    }

    /// [`SkinnyGemm::launch`] through given stages, which change the time and, in the last bits, the order of sums.
    ///
    /// # Errors
    /// As [`SkinnyGemm::launch`].
    pub fn launch_by(self, device: &Device, stage: Stage) -> Result<(), LaunchError> {
        let check = Check::new("skinny_gemm", device);
        let (m, n, k) = (self.m, self.n, self.k);
        check.that(m <= Self::ROWS_MAX, || format!("m is {m}, the limit is {}", Self::ROWS_MAX))?;
        self.out.check_plain(&check)?;
        let element = match &self.weight {
            SkinnyWeight::Bf16(_) => Element::Bf16,
            SkinnyWeight::Fp8(_) => Element::E4m3,
        };
        let mut args = arguments(&check, &self.input, &self.weight, &self.out, [m, n, k])?;
        if m == 0 {
            return Ok(());
        }
        let shape = Shape { m, n, k, normed: args.norm_weight != 0, element };
        let cut = device.has_clusters().then(|| Cut::new(shape, limits(device), stage)).flatten();
        let kernel = match cut {
            Some(Cut { way: Way::Held { steps }, tiles, .. }) => held(element, tiles, steps),
            Some(Cut { way: Way::Stream { groups, chunk, stages, resident }, tiles, .. }) => {
                args.chunk = chunk as u32;
                args.stages = stages as u32;
                args.resident = u32::from(resident);
                stream(element, groups, tiles)
            }
            None => None,
        };
        let (Some(kernel), Some(cut)) = (kernel, cut) else {
            let what = format!(
                "there is no kernel for {m} x {k} by {n} on {}: see SkinnyGemm::rows_worth",
                device.name()
            );
            return Err(LaunchError::Argument { op: "skinny_gemm", what });
        };
        let copier = if matches!(cut.way, Way::Stream { .. }) { 32 } else { 0 };
        let grid = Grid {
            blocks: (cut.blocks as u32, 1),
            threads: THREADS + copier,
            shared_bytes: cut.shared_bytes as u32,
            cluster: 1,
        };
        // SAFETY: the struct is the kernel's, its arrays were checked above, and the cut covers every row
        // and column with the shared memory that the kernel counts on.
        unsafe { check.launch(kernel, grid, &args) }
    }
}

/// What a kernel is told of a product of `m` rows, but for how it is cut up.
pub(super) fn arguments(
    check: &Check<'_>,
    input: &SkinnyInput<'_>,
    weight: &SkinnyWeight<'_>,
    out: &SkinnyOut<'_>,
    [m, n, k]: [usize; 3],
) -> Result<SkinnyArgs, LaunchError> {
    let (x, norm_weight, eps) = match input {
        SkinnyInput::Plain(x) => (check.array("x", x, &[m, k])?, 0, 0.0),
        SkinnyInput::Normed { residual, weight, eps } => {
            let weight = check.array("norm weight", weight, &[k])?;
            (check.array("residual", residual, &[m, k])?, weight, *eps)
        }
    };
    let n_unit = if matches!(out, SkinnyOut::Gated(..)) { 16 } else { 8 };
    let gate = out.gate();
    let peers = match out {
        SkinnyOut::Sent { inboxes, .. } => Some(*inboxes),
        _ => None,
    };
    let (epilogue, out, bias) = out.check(check, m, n)?;
    let ((weight, scales), scale_form) = match weight {
        SkinnyWeight::Bf16(weight) => ((check.array("weight", weight, &[n, k])?, 0), 0),
        SkinnyWeight::Fp8(weight) => (weight.check(check, n, k)?, weight.form().code()),
    };
    let mut args = SkinnyArgs {
        x,
        norm_weight,
        weight,
        scales,
        bias,
        out,
        m: check.count("m", m)?,
        n: check.multiple("n", n, n_unit)?,
        k: check.multiple("k", k, 8)?,
        eps,
        epilogue,
        chunk: 0,
        stages: 0,
        resident: 0,
        inbox: [0; RANKS_MAX - 1],
        peers: 0,
        scale_form,
        gate,
        reserved: 0,
    };
    if let Some(inboxes) = peers {
        check.that(inboxes.room >= m * n, || {
            format!("an inbox has room for {} elements, not for {m} x {n}", inboxes.room)
        })?;
        (args.inbox, args.peers) = (inboxes.inbox, inboxes.peers);
    }
    Ok(args)
}

impl SkinnyOut<'_> {
    /// The epilogue's number in the header, the output's address and the bias's.
    pub(super) fn check(
        &self,
        check: &Check<'_>,
        m: usize,
        n: usize,
    ) -> Result<(u32, Address, Address), LaunchError> {
        let of = |bias: &Option<Array<'_, bf16>>| match bias {
            Some(bias) => check.array("bias", bias, &[n]),
            None => Ok(0),
        };
        Ok(match self {
            SkinnyOut::Bf16 { out, bias } => (0, check.array("out", out, &[m, n])?, of(bias)?),
            SkinnyOut::F32(out) => (1, check.array("out", out, &[m, n])?, 0),
            SkinnyOut::AddTo { residual, bias } => {
                (2, check.array("residual", residual, &[m, n])?, of(bias)?)
            }
            SkinnyOut::Sent { out, bias, .. } => (0, check.array("out", out, &[m, n])?, of(bias)?),
            SkinnyOut::Gated(out, _) => (3, check.array("out", out, &[m, n / 2])?, 0),
            SkinnyOut::GatedCodes { out, .. } => (3, check.array("out", out, &[m, n / 2])?, 0),
        })
    }

    /// The gate's number in the header.
    pub(super) fn gate(&self) -> u32 {
        match self {
            SkinnyOut::Gated(_, gate) | SkinnyOut::GatedCodes { gate, .. } => gate.number(),
            _ => 0,
        }
    }

    /// Refuses codes.
    pub(super) fn check_plain(&self, check: &Check<'_>) -> Result<(), LaunchError> {
        check.that(!matches!(self, SkinnyOut::GatedCodes { .. }), || {
            "it makes no codes of what it gates; use NarrowGemm".into()
        })
    }
}

/// Threads of a block that multiply: eight warps.
const THREADS: u32 = 256;

/// Static shared memory of the kernels at most, and what the driver takes of each block's.
const SHARED_STATIC: usize = 4 << 10;

fn limits(device: &Device) -> Limits {
    Limits {
        multiprocessors: device.multiprocessors() as usize,
        shared_max: device.shared_bytes_block() as usize - SHARED_STATIC,
    }
}

/// By groups of x and tiles of the weight.
fn stream(element: Element, groups: usize, tiles: usize) -> Option<Kernel> {
    Some(match (element, groups, tiles) {
        (Element::Bf16, 1, 1) => Kernel::SkinnyStream1x1,
        (Element::Bf16, 2, 1) => Kernel::SkinnyStream2x1,
        (Element::Bf16, 2, 2) => Kernel::SkinnyStream2x2,
        (Element::E4m3, 1, 1) => Kernel::SkinnyStream1x1E4m3,
        (Element::E4m3, 1, 2) => Kernel::SkinnyStream1x2E4m3,
        (Element::E4m3, 2, 1) => Kernel::SkinnyStream2x1E4m3,
        (Element::E4m3, 2, 2) => Kernel::SkinnyStream2x2E4m3,
        _ => return None,
    })
}

/// By tiles of the weight and steps of a warp.
fn held(element: Element, tiles: usize, steps: usize) -> Option<Kernel> {
    Some(match (element, tiles, steps) {
        (Element::Bf16, 1, 4) => Kernel::SkinnyHeld1x4,
        (Element::Bf16, 1, 8) => Kernel::SkinnyHeld1x8,
        (Element::Bf16, 1, 12) => Kernel::SkinnyHeld1x12,
        (Element::Bf16, 2, 4) => Kernel::SkinnyHeld2x4,
        (Element::Bf16, 2, 8) => Kernel::SkinnyHeld2x8,
        (Element::Bf16, 3, 4) => Kernel::SkinnyHeld3x4,
        (Element::Bf16, 4, 4) => Kernel::SkinnyHeld4x4,
        (Element::E4m3, 1, 2) => Kernel::SkinnyHeld1x2E4m3,
        (Element::E4m3, 1, 4) => Kernel::SkinnyHeld1x4E4m3,
        (Element::E4m3, 2, 2) => Kernel::SkinnyHeld2x2E4m3,
        (Element::E4m3, 2, 4) => Kernel::SkinnyHeld2x4E4m3,
        (Element::E4m3, 3, 2) => Kernel::SkinnyHeld3x2E4m3,
        (Element::E4m3, 4, 2) => Kernel::SkinnyHeld4x2E4m3,
        _ => return None,
    })
}
