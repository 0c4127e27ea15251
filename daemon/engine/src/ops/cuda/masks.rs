//! Masks of the tokens that rows may sample, which come while the forward pass runs.
//!
//! Owns: the masks of the step in hand on the GPU, and the pinned memory they come from. Must never: hold up a forward
//! pass that is enqueued.

use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaSlice, CudaStream, CudaView, DriverError, PinnedHostSlice};
use cudarc::driver::{DevicePtrMut, result};
use minisgl_sched::guide::mask_words;

use crate::batch::IN_FLIGHT_MAX;

/// Masks that are sent at a time. A step with more takes several copies, and from the third on waits for the first.
const SENT_MAX: usize = 256;

struct Staging {
    words: PinnedHostSlice<u32>,
    /// After the last copy out of `words`.
    copied: CudaEvent,
}

/// The masks of one rank.
pub(super) struct Masks {
    /// `[rows, vocab / 32]`, in the order of the plan.
    device: CudaSlice<u32>,
    /// Words of one mask.
    words: usize,
    staging: Vec<Staging>,
    turn: usize,
}

impl Masks {
    /// Room for the masks of `rows` rows over a vocabulary of `vocab`.
    ///
    /// # Errors
    /// No memory.
    pub(super) fn new(
        stream: &Arc<CudaStream>,
        rows: usize,
        vocab: usize,
    ) -> Result<Masks, DriverError> {
        let words = mask_words(vocab);
        let staging = || -> Result<Staging, DriverError> {
            let len = rows.min(SENT_MAX) * words;
            // SAFETY: plain integers, which are written before they are read.
            let words = unsafe { stream.context().alloc_pinned_with_flags(len, 0) }?;
            Ok(Staging { words, copied: stream.context().new_event(None)? })
        };
        let staging = (0..IN_FLIGHT_MAX).map(|_| staging()).collect::<Result<_, _>>()?;
        Ok(Masks { device: stream.alloc_zeros(rows * words)?, words, staging, turn: 0 })
    }

    /// All of them; those past the step's are another's.
    pub(super) fn all(&self) -> CudaView<'_, u32> {
        self.device.slice(..)
    }

    /// Enqueues the copy of a step's masks, concatenated.
    ///
    /// # Errors
    /// The driver's; more masks than there is room for.
    pub(super) fn send(
        &mut self,
        stream: &Arc<CudaStream>,
        masks: &[u32],
    ) -> Result<(), DriverError> {
        let mut at = 0;
        for masks in masks.chunks(SENT_MAX * self.words) {
            self.turn = (self.turn + 1) % self.staging.len();
            let Staging { words, copied } = &mut self.staging[self.turn];
            copied.synchronize()?;
            words.as_mut_slice()?[..masks.len()].copy_from_slice(masks);
            let mut to = self.device.slice_mut(at..at + masks.len());
            at += masks.len();
            let (to, _synced) = to.device_ptr_mut(stream);
            let from = &words.as_slice()?[..masks.len()];
            // SAFETY: `to` has as many words as `from`; both live as long as `self`, and the host's are not written
            // before `copied` has passed.
            unsafe { result::memcpy_htod_async(to, from, stream.cu_stream()) }?;
            copied.record(stream)?;
        }
        Ok(())
    }
}
