//! Activations as e4m3; the kernel is `cu/quantise/quantise.cu`.

use half::bf16;

use super::Gate;
use super::rmsnorm::HIDDEN_MAX;
use crate::abi::QuantiseArgs;
use crate::check::Check;
use crate::device::Device;
use crate::error::LaunchError;
use crate::fp8::{BLOCK, ScaleForm};
use crate::grid::Grid;
use crate::kernel::Kernel;
use crate::{Array, ArrayMut};

/// `out = e4m3(y / scale)`, where `scale` is the largest `|y|` over 448, of each 128 columns of a token or of a whole
/// token, and `y` is what [`QuantiseInput`] says.
///
/// f32 inside; `y` is rounded to bf16 first, as if it had been stored. Moves `3 * rows * hidden` bytes, 5 with a gate;
/// bound by copy bandwidth.
pub struct Quantise<'a> {
    /// What is quantised.
    pub input: QuantiseInput<'a>,
    /// `[rows, hidden]`.
    pub out: ArrayMut<'a, u8>,
    /// [`ScaleForm::Block`]: `[ceil(hidden / 128), rows]`; [`ScaleForm::Row`]: `[rows]`.
    pub scales: ArrayMut<'a, f32>,
    /// How the scales are laid out.
    pub form: ScaleForm,
    /// Tokens.
    pub rows: usize,
    /// Columns, a multiple of 8, at most [`Quantise::HIDDEN_MAX`]; [`HIDDEN_MAX`] with a norm.
    pub hidden: usize,
}

/// What a [`Quantise`] takes.
pub enum QuantiseInput<'a> {
    /// `[rows, hidden]`, as it is.
    Plain(Array<'a, bf16>),
    /// `rms_norm(x) * weight`, as [`super::RmsNorm`] computes it.
    Normed {
        /// `[rows, hidden]`.
        x: Array<'a, bf16>,
        /// `[hidden]`.
        weight: Array<'a, bf16>,
        /// Added to the mean square.
        eps: f32,
        /// The weight is stored less 1.
        plus_one: bool,
    },
    /// What [`super::GateMul`] computes of `[rows, 2, hidden]`.
    Gated(Array<'a, bf16>, Gate),
}

/// From so many rows on there are more than the GPU has room for at a time, and blocks of fewer threads, which hold more each,
/// have more of them under way.
const MANY_ROWS: usize = 2048;
/// Blocks in y at most.
const GRID_Y_MAX: u32 = 65_535;

impl Quantise<'_> {
    /// A row is held in the registers of one block: four vectors of 8 for each of 1,024 threads.
    pub const HIDDEN_MAX: usize = 32_768;

    /// Puts the op onto the device's stream.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub fn launch(self, device: &Device) -> Result<(), LaunchError> {
        let check = Check::new("quantise", device);
        check.count("rows * hidden / 8", self.rows * self.hidden / 8)?;
        let (rows, hidden) = (self.rows, self.hidden);
        let (x, norm_weight, eps, gated, limit) = match &self.input {
            QuantiseInput::Plain(x) => {
                (check.array("x", x, &[rows, hidden])?, 0, 0.0, 0, Self::HIDDEN_MAX)
            }
            QuantiseInput::Normed { x, weight, eps, .. } => {
                let weight = check.array("norm weight", weight, &[hidden])?;
                (check.array("x", x, &[rows, hidden])?, weight, *eps, 0, HIDDEN_MAX)
            }
            QuantiseInput::Gated(x, _) => {
                (check.array("gate_up", x, &[rows, 2, hidden])?, 0, 0.0, 1, Self::HIDDEN_MAX)
            }
        };
        check.that(hidden <= limit, || format!("hidden is {hidden}, the limit is {limit}"))?;
        let scales = match self.form {
            ScaleForm::Block => {
                check.array("scales", &self.scales, &[hidden.div_ceil(BLOCK), rows])?
            }
            ScaleForm::Row => check.scalars("scales", &self.scales, &[rows])?,
        };
        let args = QuantiseArgs {
            x,
            norm_weight,
            out: check.array("out", &self.out, &[rows, hidden])?,
            scales,
            rows: check.count("rows", rows)?,
            hidden: check.multiple("hidden", hidden, 8)?,
            scale_stride: check.count("rows", rows)?,
            scale_form: self.form.code(),
            gated,
            eps,
            gate: match &self.input {
                QuantiseInput::Gated(_, gate) => gate.number(),
                _ => 0,
            },
            plus_one: match &self.input {
                QuantiseInput::Normed { plus_one, .. } => u32::from(*plus_one),
                _ => 0,
            },
        };
        let normed = matches!(self.input, QuantiseInput::Normed { .. });
        if self.form == ScaleForm::Block && !normed && hidden.is_multiple_of(BLOCK) {
            let blocks = ((hidden / 8).div_ceil(256) as u32, args.rows.clamp(1, GRID_Y_MAX));
            let grid = Grid { blocks, threads: 256, shared_bytes: 0, cluster: 1 };
            // SAFETY: the struct is the kernel's, its arrays were checked above, and there is a thread for every vector of a row.
            return unsafe { check.launch(Kernel::QuantiseBlocks, grid, &args) };
        }
        let vectors = args.hidden / 8;
        let (kernel, per_thread) = match vectors {
            0..=4096 if normed && rows >= MANY_ROWS => (Kernel::Quantise4, 4),
            0..=1024 => (Kernel::Quantise1, 1),
            1025..=2048 => (Kernel::Quantise2, 2),
            _ => (Kernel::Quantise4, 4),
        };
        let threads = vectors.div_ceil(per_thread).next_multiple_of(32);
        let grid = Grid { blocks: (args.rows, 1), threads, shared_bytes: 0, cluster: 1 };
        // SAFETY: the struct is the kernel's, its arrays were checked above, and the threads of a block hold a whole row.
        unsafe { check.launch(kernel, grid, &args) }
    }
}
