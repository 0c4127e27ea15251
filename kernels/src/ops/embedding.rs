//! Embedding lookup; the kernel is `cu/embedding/embedding.cu`.

use half::bf16;

use crate::abi::EmbeddingArgs;
use crate::array::DeviceArray;
use crate::check::Check;
use crate::device::Device;
use crate::error::LaunchError;
use crate::grid::Grid;
use crate::kernel::Kernel;
use crate::{Array, ArrayMut};

/// `out[r] = scale * table[id - vocab_start]`, where a token `-(i + 1)` stands for the id `fed[i]`, and zeros for
/// ids outside this shard of the table.
///
/// bf16. Moves `4 * rows * hidden` bytes; bound by copy bandwidth.
pub struct Embedding<'a> {
    /// Token ids, or negative references into `fed`, `[rows]`.
    pub tokens: Array<'a, i32>,
    /// What the step before sampled.
    pub fed: Array<'a, i32>,
    /// This rank's shard, `[vocab_len, hidden]`.
    pub table: Array<'a, bf16>,
    /// `[rows, hidden]`.
    pub out: ArrayMut<'a, bf16>,
    /// Tokens looked up.
    pub rows: usize,
    /// Width of the model, a multiple of 8.
    pub hidden: usize,
    /// First id of the shard.
    pub vocab_start: usize,
    /// Ids in the shard.
    pub vocab_len: usize,
    /// What the table's rows are multiplied by; with 1 they are copied.
    pub scale: f32,
}

impl Embedding<'_> {
    /// Puts the op onto the device's stream.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub fn launch(self, device: &Device) -> Result<(), LaunchError> {
        let check = Check::new("embedding", device);
        check.count("rows * hidden / 8", self.rows * self.hidden / 8)?;
        let args = EmbeddingArgs {
            tokens: check.scalars("tokens", &self.tokens, &[self.rows])?,
            fed: check.scalars("fed", &self.fed, &[self.fed.len()])?,
            table: check.array("table", &self.table, &[self.vocab_len, self.hidden])?,
            out: check.array("out", &self.out, &[self.rows, self.hidden])?,
            rows: check.count("rows", self.rows)?,
            hidden: check.multiple("hidden", self.hidden, 8)?,
            fed_len: check.count("the length of fed", self.fed.len())?,
            vocab_start: check.count("vocab_start", self.vocab_start)?,
            vocab_len: check.count("vocab_len", self.vocab_len)?,
            scale: self.scale,
        };
        let grid = Grid::of_threads(self.rows * self.hidden / 8);
        let kernel = if self.scale == 1.0 { Kernel::Embedding } else { Kernel::EmbeddingScaled };
        // SAFETY: the struct is the kernel's, and its arrays were checked above.
        unsafe { check.launch(kernel, grid, &args) }
    }
}
