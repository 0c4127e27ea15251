//! Products of one row with a weight of e4m3; the kernel is `cu/gemv/gemv.cu`.
//!
//! Owns: how such a product is cut up. Must never: allocate, or depend on anything but the shape and the GPU.

use super::skinny::{SkinnyInput, SkinnyOut, SkinnyWeight, arguments};
use crate::check::Check;
use crate::device::Device;
use crate::error::LaunchError;
use crate::fp8::{BLOCK, Fp8Weight, ScaleForm};
use crate::grid::Grid;
use crate::kernel::Kernel;

/// `out = x * weight^T` for one row, with a weight of e4m3.
///
/// x is bf16 and not rounded, the weight is widened exactly, sums are f32. Moves the weight, `n * k` bytes, and little
/// else; bound by reading it. The same call gives the same bits each time.
pub struct Fp8Gemv<'a> {
    /// `[1, k]`; [`SkinnyInput::Normed`] where [`Fp8Gemv::norms`].
    pub input: SkinnyInput<'a>,
    /// `[n, k]`; for [`SkinnyOut::Gated`] the gate's rows, then as many of `up`.
    pub weight: Fp8Weight<'a>,
    /// Where the result goes; not [`SkinnyOut::GatedCodes`], and [`SkinnyOut::Gated`] where [`Fp8Gemv::gates`].
    pub out: SkinnyOut<'a>,
    /// Rows of the weight, a multiple of 8. For [`SkinnyOut::Gated`] of 16; of 256 with scales for blocks.
    pub n: usize,
    /// Columns of the weight, a multiple of 16, where [`Fp8Gemv::takes`].
    pub k: usize,
}

impl Fp8Gemv<'_> {
    /// Whether there is a kernel for a weight of `k` columns here.
    pub fn takes(device: &Device, k: usize) -> bool {
        device.has_clusters() && Form::of(k).is_some()
    }

    /// Whether it takes [`SkinnyInput::Normed`] of `k` columns.
    pub fn norms(k: usize) -> bool {
        Form::of(k).is_some_and(|form| form.steps <= 2)
    }

    /// Whether it makes [`SkinnyOut::Gated`] of `k` columns.
    pub fn gates(k: usize) -> bool {
        Form::of(k).is_some_and(|form| form.rows > 1)
    }

    /// Puts the op onto the device's stream.
    ///
    /// # Errors
    /// See [`LaunchError`]; a number of columns that there is no kernel for.
    pub fn launch(self, device: &Device) -> Result<(), LaunchError> {
        let check = Check::new("fp8_gemv", device);
        let (n, k) = (self.n, self.k);
        let gated = matches!(self.out, SkinnyOut::Gated(..));
        let block = self.weight.form() == ScaleForm::Block;
        self.out.check_plain(&check)?;
        let weight = SkinnyWeight::Fp8(self.weight);
        let mut args = arguments(&check, &self.input, &weight, &self.out, [1, n, k])?;
        if gated && block {
            check.multiple("n", n, 2 * BLOCK)?;
        }
        let form = Form::of(k).filter(|form| {
            device.has_clusters()
                && (form.steps <= 2 || args.norm_weight == 0)
                && (form.rows > 1 || !gated)
        });
        let Some(form) = form else {
            let what = format!(
                "there is no kernel for 1 x {k} by {n} on {}: see Fp8Gemv::takes, norms and gates",
                device.name()
            );
            return Err(LaunchError::Argument { op: "fp8_gemv", what });
        };
        let outputs = if gated { n / 2 } else { n };
        let cut = Cut::new(form, outputs, k, gated, Limits::of(device));
        args.stages = cut.stages as u32;
        let grid = Grid {
            blocks: (cut.blocks as u32, 1),
            threads: 32 * (form.warps as u32 + 1),
            shared_bytes: cut.shared_bytes as u32,
            cluster: 1,
        };
        // SAFETY: the struct is the kernel's, its arrays were checked above, and the cut covers every row and column
        // with the shared memory that the kernel counts on.
        unsafe { check.launch(form.kernel, grid, &args) }
    }
}

/// Columns that a warp multiplies in a step.
const STEP: usize = 512;
/// Rows of which a warp keeps what its lanes have, and floats for each of them.
const HELD: usize = 32 * 9;
const STAGES_MAX: usize = 16;
/// Blocks on a multiprocessor, static shared memory of a block at most, and what the driver takes of each.
const BLOCKS: usize = 2;
const SHARED_STATIC: usize = 512;
const SHARED_DRIVER: usize = 1024;

/// Which kernel, and how many warps share the columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Form {
    kernel: Kernel,
    /// Steps of each warp.
    steps: usize,
    /// Rows of the weight in a stage.
    rows: usize,
    warps: usize,
}

impl Form {
    /// The fewest steps whose warps are not too many for two blocks' registers.
    fn of(k: usize) -> Option<Form> {
        [
            (Kernel::Gemv1, 1, 4, 12),
            (Kernel::Gemv2, 2, 2, 10),
            (Kernel::Gemv3, 3, 2, 10),
            (Kernel::Gemv5, 5, 1, 10),
        ]
        .into_iter()
        .map(|(kernel, steps, rows, warps_max)| {
            let warps = k.div_ceil(steps * STEP);
            (Form { kernel, steps, rows, warps }, warps_max)
        })
        .find(|(form, warps_max)| (1..=*warps_max).contains(&form.warps))
        .map(|(form, _)| form)
    }
}

/// What a GPU offers.
#[derive(Clone, Copy, Debug)]
struct Limits {
    multiprocessors: usize,
    /// Shared memory of a block at most, static and dynamic.
    shared_max: usize,
}

impl Limits {
    fn of(device: &Device) -> Limits {
        Limits {
            multiprocessors: device.multiprocessors() as usize,
            shared_max: device.shared_bytes_block() as usize,
        }
    }
}

/// A product, cut up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    blocks: usize,
    /// Of the ring.
    stages: usize,
    /// Dynamic shared memory of a block.
    shared_bytes: usize,
}

impl Cut {
    /// As many blocks as all multiprocessors hold at once, each with as long a ring as leaves the other room; more of it where a
    /// block has so many outputs that sums take the room.
    fn new(form: Form, outputs: usize, k: usize, gated: bool, limits: Limits) -> Cut {
        let Form { steps, rows, warps, .. } = form;
        let span = if gated { rows / 2 } else { rows };
        let blocks = outputs.div_ceil(span).min(BLOCKS * limits.multiprocessors);
        let rounds = outputs.div_ceil(blocks).div_ceil(span);
        let floats = warps * (HELD + 4 * steps + rounds * rows);
        let (stage, fixed) = (rows * k, 4 * floats);
        let share = (limits.shared_max + SHARED_DRIVER) / BLOCKS - SHARED_DRIVER - SHARED_STATIC;
        let stages = share.saturating_sub(fixed) / stage;
        let stages = stages.max(2).min(rounds).min(STAGES_MAX);
        Cut { blocks, stages, shared_bytes: stages * stage + fixed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const H100: Limits = Limits { multiprocessors: 132, shared_max: 232_448 };

    #[test]
    fn warps_have_every_column_and_registers_for_them() {
        for k in (16..=25_600).step_by(16) {
            let form = Form::of(k).unwrap();
            let Form { steps, rows, warps, .. } = form;
            assert!(steps * warps * STEP >= k, "{k} {form:?}");
            // As the launch bounds in the kernel say.
            assert!(warps <= if steps == 1 { 12 } else { 10 }, "{k} {form:?}");
            assert!(steps > 2 || rows > 1, "{k} {form:?}");
        }
        assert_eq!(Form::of(25_616), None);
    }

    #[test]
    fn two_blocks_have_room_and_each_a_ring() {
        for k in [16, 2048, 4096, 5120, 6144, 8192, 10_240, 12_288, 17_408, 25_600] {
            let form = Form::of(k).unwrap();
            for outputs in [8, 16, 1024, 5120, 10_240, 25_600] {
                for gated in [false, true].into_iter().filter(|gated| !gated || form.rows > 1) {
                    let cut = Cut::new(form, outputs, k, gated, H100);
                    let what = format!("{outputs} x {k}, {gated}: {cut:?}");
                    assert!((1..=264).contains(&cut.blocks) && cut.blocks <= outputs, "{what}");
                    assert!((1..=STAGES_MAX).contains(&cut.stages), "{what}");
                    let bytes = cut.shared_bytes + SHARED_STATIC + SHARED_DRIVER;
                    assert!(2 * bytes <= H100.shared_max + SHARED_DRIVER, "{what}");
                }
            }
        }
    }

    #[test]
    fn what_is_large_has_both_blocks_and_a_ring_of_three_stages() {
        for (outputs, k, gated) in
            [(10_240, 5120, false), (25_600, 5120, true), (5120, 25_600, false)]
        {
            let cut = Cut::new(Form::of(k).unwrap(), outputs, k, gated, H100);
            assert!(cut.blocks == 264 && cut.stages >= 3, "{cut:?}");
        }
    }
}
