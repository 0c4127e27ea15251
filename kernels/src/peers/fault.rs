//! What a collective that waited in vain leaves in the host's memory, to be read after the GPU has failed.

use std::sync::Arc;

use cudarc::driver::{CudaContext, DriverError, PinnedHostSlice};

use crate::abi::{Address, PeerFault};

/// Why a rank's GPU gave up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The rank that did not come.
    pub rank: usize,
    /// Meetings of that block before.
    pub turn: u32,
}

/// One rank's record, written by its GPU once at most. Clones read the same.
#[derive(Clone)]
pub struct FaultRecord(Arc<Memory>);

struct Memory {
    words: PinnedHostSlice<u32>,
    at: *const PeerFault,
}

// SAFETY: the record is read with volatile loads; the GPU alone writes it.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl FaultRecord {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<FaultRecord, DriverError> {
        // SAFETY: plain integers, which are written right below, before anything reads them.
        let mut words = unsafe {
            context.alloc_pinned_with_flags::<u32>(size_of::<PeerFault>() / size_of::<u32>(), 0)
        }?;
        words.as_mut_slice()?.fill(0);
        let at = words.as_ptr()?.cast();
        Ok(FaultRecord(Arc::new(Memory { words, at })))
    }

    /// On the GPU: pinned memory has one address everywhere.
    pub(super) fn address(&self) -> Address {
        debug_assert!(!self.0.words.is_empty());
        self.0.at as Address
    }

    /// Who was waited for in vain, if anybody was.
    pub fn read(&self) -> Option<Missing> {
        // SAFETY: the memory lives as long as `self`, is aligned for its words, and any bits are a record.
        let fault = unsafe { self.0.at.read_volatile() };
        let written = fault.failed == 1;
        written.then_some(Missing { rank: fault.missing as usize, turn: fault.turn })
    }
}
