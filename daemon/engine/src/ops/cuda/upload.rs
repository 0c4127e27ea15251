//! Weights on their way to the GPU, through pinned memory.
//!
//! Owns: two stagings that take turns, so that one is filled while the other is copied. Must never: hold
//! a whole tensor, or outlive loading.

use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaSlice, CudaStream, DriverError, PinnedHostSlice, result};
use half::bf16;
use half::slice::HalfFloatSliceExt;

use crate::weights::HostTensor;

/// Elements of a staging: 16 MiB.
const STAGING_LEN: usize = 8 << 20;

struct Staging {
    values: PinnedHostSlice<u16>,
    /// After the last copy out of `values`.
    copied: CudaEvent,
}

/// Uploads tensors as bf16.
pub(super) struct Uploader {
    stagings: [Staging; 2],
    turn: usize,
}

impl Uploader {
    pub(super) fn new(stream: &CudaStream) -> Result<Uploader, DriverError> {
        let staging = || {
            // SAFETY: plain integers, which are written before they are read.
            let values = unsafe { stream.context().alloc_pinned_with_flags(STAGING_LEN, 0) }?;
            Ok(Staging { values, copied: stream.context().new_event(None)? })
        };
        Ok(Uploader { stagings: [staging()?, staging()?], turn: 0 })
    }

    /// All parts, one after the other, in an array of `len` elements at least theirs; the rest is 0.
    pub(super) fn upload(
        &mut self,
        stream: &Arc<CudaStream>,
        parts: &[HostTensor],
        len: usize,
    ) -> Result<CudaSlice<bf16>, DriverError> {
        let array = stream.alloc_zeros::<bf16>(len)?;
        let mut at = super::memory::address(&array);
        for part in parts {
            let mut from = 0;
            while from < part.len() {
                let count = (part.len() - from).min(STAGING_LEN);
                self.turn = 1 - self.turn;
                let staging = &mut self.stagings[self.turn];
                staging.copied.synchronize()?;
                let pinned = staging.values.as_mut_ptr()?;
                // SAFETY: `count` elements of pinned memory that only this borrow reaches; the copy
                // that read them last is over. Any bits are a bf16.
                let pinned =
                    unsafe { std::slice::from_raw_parts_mut(pinned.cast::<bf16>(), count) };
                match part {
                    HostTensor::Bf16(values) => pinned.copy_from_slice(&values[from..][..count]),
                    HostTensor::F32(values) => {
                        pinned.convert_from_f32_slice(&values[from..][..count])
                    }
                    HostTensor::F16(values) => {
                        let values = &values[from..][..count];
                        for (to, value) in pinned.iter_mut().zip(values) {
                            *to = bf16::from_f32(value.to_f32());
                        }
                    }
                }
                // SAFETY: the array has room for all parts, and the pinned memory is not written
                // again before `copied` has passed.
                unsafe { result::memcpy_htod_async(at, pinned, stream.cu_stream()) }?;
                staging.copied.record(stream)?;
                at += 2 * count as u64;
                from += count;
            }
        }
        Ok(array)
    }
}
