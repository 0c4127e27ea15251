//! Checks of a launcher's arguments.

use crate::array::DeviceArray;
use crate::device::Device;
use crate::error::LaunchError;
use crate::grid::Grid;
use crate::kernel::Kernel;

/// Elements a kernel counts in 32 bits at most.
const COUNT_MAX: usize = 1 << 31;

/// Kernels move 16 bytes at a time.
const ALIGNMENT: u64 = 16;

/// An op whose arguments are being checked.
pub(crate) struct Check<'d> {
    op: &'static str,
    device: &'d Device,
}

impl<'d> Check<'d> {
    pub(crate) fn new(op: &'static str, device: &'d Device) -> Check<'d> {
        Check { op, device }
    }

    /// Refuses unless `holds`.
    pub(crate) fn that(
        &self,
        holds: bool,
        what: impl FnOnce() -> String,
    ) -> Result<(), LaunchError> {
        match holds {
            true => Ok(()),
            false => Err(LaunchError::Argument { op: self.op, what: what() }),
        }
    }

    /// A count that the kernel keeps in 32 bits.
    pub(crate) fn count(&self, name: &str, count: usize) -> Result<u32, LaunchError> {
        self.that(count < COUNT_MAX, || format!("{name} is {count}, the limit is {COUNT_MAX}"))?;
        Ok(count as u32)
    }

    /// A positive count of elements that the kernel reads in whole vectors of `unit`.
    pub(crate) fn multiple(
        &self,
        name: &str,
        count: usize,
        unit: usize,
    ) -> Result<u32, LaunchError> {
        self.that(count > 0 && count.is_multiple_of(unit), || {
            format!("{name} is {count}, it must be a positive multiple of {unit}")
        })?;
        self.count(name, count)
    }

    /// An array that the kernel reads in vectors: exactly the product of `shape`, on the device's
    /// stream, 16-byte aligned.
    pub(crate) fn array(
        &self,
        name: &str,
        array: &impl DeviceArray,
        shape: &[usize],
    ) -> Result<u64, LaunchError> {
        self.aligned(name, array, shape, ALIGNMENT)
    }

    /// An array that the kernel reads one element at a time.
    pub(crate) fn scalars<A: DeviceArray>(
        &self,
        name: &str,
        array: &A,
        shape: &[usize],
    ) -> Result<u64, LaunchError> {
        self.aligned(name, array, shape, A::ELEMENT_ALIGNMENT)
    }

    fn aligned(
        &self,
        name: &str,
        array: &impl DeviceArray,
        shape: &[usize],
        alignment: u64,
    ) -> Result<u64, LaunchError> {
        let len = shape.iter().product::<usize>();
        self.that(array.len() == len, || {
            format!("{name} has {} elements, its shape {shape:?} has {len}", array.len())
        })?;
        self.that(len == 0 || array.address().is_multiple_of(alignment), || {
            format!("{name} is at {:#x}, it must be {alignment}-byte aligned", array.address())
        })?;
        self.that(array.stream().cu_stream() == self.device.stream().cu_stream(), || {
            format!("{name} belongs to another stream than the device's")
        })?;
        Ok(array.address())
    }

    /// Launches, unless there is nothing to do.
    ///
    /// # Safety
    /// As [`Device::launch`].
    pub(crate) unsafe fn launch<A: Copy + std::fmt::Debug>(
        &self,
        kernel: Kernel,
        grid: Grid,
        args: &A,
    ) -> Result<(), LaunchError> {
        if grid.blocks.0 == 0 || grid.blocks.1 == 0 {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { self.device.launch(kernel, grid, args) }.map_err(|source| LaunchError::Driver {
            op: self.op,
            shape: format!("{args:?}"),
            source,
        })
    }
}
