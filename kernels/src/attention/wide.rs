//! Heads of 96 for templates that are 128 wide.
//!
//! Queries are copied with zeros behind each head, so that what stands behind a key does not count; what the
//! template writes beyond a head is left out when its output is copied back. Keys and values stay as they
//! are: their template reads each head and the start of the next, which behind a token's last head is the next token's
//! place or the next page, whoever's that is. 0 * NaN is NaN: so keys of 96 are numbers wherever they are, which the kernels
//! see to that write them (`keep_numbers`).
//!
//! Owns: the copies. Moves `4 * rows * q_heads * (96 + 128)` bytes a layer, bound by copy bandwidth.

use std::ops::Range;

use cudarc::driver::CudaSlice;

use super::{AttentionError, AttentionLimits, Heads};
use crate::Device;
use crate::abi::{Address, WidenHeadsArgs};
use crate::array::DeviceArray;
use crate::check::Check;
use crate::grid::Grid;
use crate::kernel::Kernel;

/// Elements of 2 bytes that a thread copies.
const VECTOR: usize = 8;

/// Room for the queries and the output of a step.
pub(super) struct Wide {
    heads: Heads,
    q: CudaSlice<u16>,
    out: CudaSlice<u16>,
}

impl Wide {
    /// For heads that need it.
    pub(super) fn new(
        device: &Device,
        heads: Heads,
        limits: AttentionLimits,
    ) -> Result<Option<Wide>, AttentionError> {
        if heads.width() == heads.head_dim {
            return Ok(None);
        }
        let failed = |source| AttentionError::Driver { what: "allocating wide heads", source };
        let array = || device.stream().alloc_zeros(limits.rows * heads.q_heads * heads.width());
        Ok(Some(Wide { heads, q: array().map_err(failed)?, out: array().map_err(failed)? }))
    }

    /// Enqueues the copy of these rows of the queries at `q`. Where the wide queries and the wide output are.
    ///
    /// # Safety
    /// `q` has these rows.
    pub(super) unsafe fn widen(
        &self,
        check: &Check<'_>,
        q: Address,
        rows: Range<usize>,
    ) -> Result<(Address, Address), AttentionError> {
        let (wide, out) =
            (crate::Array::from(&self.q).address(), crate::Array::from(&self.out).address());
        // SAFETY: the caller's promise; the plan's rows are within the limits that `new` allocated for.
        unsafe { self.copy(check, (q, self.heads.head_dim), (wide, self.heads.width()), rows)? };
        Ok((wide, out))
    }

    /// Enqueues the copy of these rows of the wide output to the output at `out`.
    ///
    /// # Safety
    /// `out` has these rows.
    pub(super) unsafe fn narrow(
        &self,
        check: &Check<'_>,
        out: Address,
        rows: Range<usize>,
    ) -> Result<(), AttentionError> {
        let wide = crate::Array::from(&self.out).address();
        // SAFETY: as in `widen`.
        unsafe { self.copy(check, (wide, self.heads.width()), (out, self.heads.head_dim), rows) }
    }

    /// # Safety
    /// Both arrays have these rows, in heads of their width.
    unsafe fn copy(
        &self,
        check: &Check<'_>,
        (x, from): (Address, usize),
        (out, to): (Address, usize),
        rows: Range<usize>,
    ) -> Result<(), AttentionError> {
        let at = |address: Address, width: usize| {
            address + (rows.start * self.heads.q_heads * width * size_of::<u16>()) as u64
        };
        let heads = rows.len() * self.heads.q_heads;
        let args = WidenHeadsArgs {
            x: at(x, from),
            out: at(out, to),
            heads: check.count("rows * q_heads", heads)?,
            from: from as u32,
            to: to as u32,
            reserved: 0,
        };
        check.count("rows * q_heads * vectors", heads * to / VECTOR)?;
        // SAFETY: the struct is the kernel's, its arrays the caller's promise.
        unsafe { check.launch(Kernel::WidenHeads, Grid::of_threads(heads * to / VECTOR), &args)? };
        Ok(())
    }
}
