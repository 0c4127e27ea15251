//! Dummy weights; the kernel is `cu/dummy/dummy.cu`.

use half::bf16;

use crate::ArrayMut;
use crate::abi::DummyArgs;
use crate::check::Check;
use crate::device::Device;
use crate::error::LaunchError;
use crate::grid::Grid;
use crate::kernel::Kernel;

/// Threads of a block.
const THREADS: usize = 256;

/// Blocks of a launch, for each multiprocessor: enough to fill it several times over.
const BLOCKS_EACH: usize = 64;

/// Rows of a grid at most.
const ROWS_MAX: usize = 65_535;

/// Fills a window of a dummy tensor: element `[row, col]` depends on `key` and on its index in the full
/// tensor, `first + row * width + col`, alone.
///
/// The sum of four 16-bit uniforms less its mean, times `scale`, plus `mean`, cut to bf16. Writes
/// `2 * rows * cols` bytes; bound by integer arithmetic.
pub struct DummyFill<'a> {
    /// `[rows, cols]`.
    pub out: ArrayMut<'a, bf16>,
    /// Of the tensor.
    pub key: u64,
    /// Index of the window's first element.
    pub first: usize,
    /// Rows of the window.
    pub rows: usize,
    /// Columns of the window.
    pub cols: usize,
    /// Columns of the full tensor, at least `cols`.
    pub width: usize,
    /// From the sum to a deviation.
    pub scale: f32,
    /// Of all elements.
    pub mean: f32,
}

/// What a byte of dummy codes is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DummyCode {
    /// One e4m3, no further from 0 than 448.
    E4m3,
    /// Two e2m1 (OCP Microscaling Formats 1.0, section 5.3.3), of the elements twice its index and the next, the first in the low
    /// bits.
    E2m1Pair,
}

/// [`DummyFill`] of codes: the sum less its mean, times `scale`, cut to the code.
pub struct DummyCodes<'a> {
    /// What they are. All that follows counts bytes.
    pub code: DummyCode,
    /// `[rows, cols]`.
    pub out: ArrayMut<'a, u8>,
    /// Of the tensor.
    pub key: u64,
    /// Index of the window's first element.
    pub first: usize,
    /// Rows of the window.
    pub rows: usize,
    /// Columns of the window.
    pub cols: usize,
    /// Columns of the full tensor, at least `cols`.
    pub width: usize,
    /// From the sum to a deviation.
    pub scale: f32,
}

/// What is filled, without where.
struct Fill {
    key: u64,
    first: usize,
    rows: usize,
    cols: usize,
    width: usize,
    scale: f32,
    mean: f32,
}

impl DummyFill<'_> {
    /// Puts the op onto the device's stream.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub fn launch(self, device: &Device) -> Result<(), LaunchError> {
        let DummyFill { out, key, first, rows, cols, width, scale, mean } = self;
        Fill { key, first, rows, cols, width, scale, mean }.launch(device, Kernel::Dummy, &out)
    }
}

impl DummyCodes<'_> {
    /// Puts the op onto the device's stream.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub fn launch(self, device: &Device) -> Result<(), LaunchError> {
        let DummyCodes { code, out, key, first, rows, cols, width, scale } = self;
        let fill = Fill { key, first, rows, cols, width, scale, mean: 0.0 };
        let kernel = match code {
            DummyCode::E4m3 => Kernel::DummyE4m3,
            DummyCode::E2m1Pair => Kernel::DummyE2m1,
        };
        fill.launch(device, kernel, &out)
    }
}

impl Fill {
    fn launch<T>(
        self,
        device: &Device,
        kernel: Kernel,
        out: &ArrayMut<'_, T>,
    ) -> Result<(), LaunchError> {
        let check = Check::new("dummy", device);
        let out = check.scalars("out", out, &[self.rows, self.cols])?;
        check.that(self.cols <= self.width, || {
            format!("{} columns are more than the tensor's {}", self.cols, self.width)
        })?;
        // A window as wide as the tensor is one long row.
        let (rows, cols) = match self.cols == self.width {
            true => (1, self.rows * self.cols),
            false => (self.rows, self.cols),
        };
        let args = DummyArgs {
            out,
            key: self.key,
            first: self.first as u64,
            rows: check.count("rows", rows)?,
            cols: check.count("columns", cols)?,
            width: check.count("width", self.width)?,
            scale: self.scale,
            mean: self.mean,
            reserved: 0,
        };
        let blocks_max = BLOCKS_EACH * device.multiprocessors() as usize;
        let across = cols.div_ceil(THREADS).min(blocks_max);
        let grid = Grid {
            blocks: (across as u32, rows.min(ROWS_MAX) as u32),
            threads: THREADS as u32,
            shared_bytes: 0,
            cluster: 1,
        };
        // SAFETY: the struct is the kernel's, and its array, of the kernel's element, was checked above.
        unsafe { check.launch(kernel, grid, &args) }
    }
}
