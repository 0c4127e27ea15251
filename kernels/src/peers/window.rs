//! Memory of one GPU that its peers may read and write too.
//!
//! Owns: that memory and who may touch it. Must never: let peers into anything else. Peer access to a whole
//! context would have every later allocation wait for what runs on the other GPUs, which may be waiting
//! for this one; the driver's virtual memory management opens these addresses alone.

use std::sync::Arc;

use cudarc::driver::{CudaStream, DriverError, result, sys};

use crate::abi::Address;
use crate::vmm::{location, properties, unit_bytes};

/// A range of one GPU's memory.
pub(super) struct Window {
    stream: Arc<CudaStream>,
    base: Address,
    bytes: usize,
    mapped: bool,
}

impl Window {
    /// At least `bytes` on the stream's GPU, open to the GPUs of `ordinals`: zeros, and ones in every bit from
    /// `ones` on.
    pub(super) fn new(
        stream: &Arc<CudaStream>,
        (ones, bytes): (usize, usize),
        ordinals: &[usize],
    ) -> Result<Window, DriverError> {
        stream.context().bind_to_thread()?;
        let properties = properties(stream.context().ordinal());
        let unit = unit_bytes(&properties)?;
        let bytes = bytes.next_multiple_of(unit.max(1));
        let mut base = 0;
        // SAFETY: takes addresses only, which the driver chooses.
        unsafe { sys::cuMemAddressReserve(&mut base, bytes, unit, 0, 0) }.result()?;
        let mut window = Window { stream: stream.clone(), base, bytes, mapped: false };
        let mut memory = 0;
        // SAFETY: both point to what the driver reads and writes.
        unsafe { sys::cuMemCreate(&mut memory, bytes, &properties, 0) }.result()?;
        // SAFETY: the addresses are reserved, nothing is mapped there, and the memory is as large.
        let mapped = unsafe { sys::cuMemMap(base, bytes, 0, memory, 0) }.result();
        // SAFETY: the handle is used no more; the mapping, if there is one, keeps the memory.
        let released = unsafe { sys::cuMemRelease(memory) }.result();
        mapped?;
        window.mapped = true;
        released?;
        let access: Vec<sys::CUmemAccessDesc> = ordinals
            .iter()
            .map(|&ordinal| sys::CUmemAccessDesc {
                location: location(ordinal),
                flags: sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
            })
            .collect();
        // SAFETY: the range was mapped just now; the descriptors are read during the call.
        unsafe { sys::cuMemSetAccess(base, bytes, access.as_ptr(), access.len()) }.result()?;
        // SAFETY: as above, and nothing uses the range yet.
        unsafe { result::memset_d8_async(base, 0, ones, stream.cu_stream()) }?;
        // SAFETY: as above; `ones` is within the range.
        unsafe {
            result::memset_d8_async(base + ones as Address, 0xff, bytes - ones, stream.cu_stream())
        }?;
        // SAFETY: the stream is alive. Peers may look as soon as this returns.
        unsafe { result::stream::synchronize(stream.cu_stream()) }?;
        Ok(window)
    }

    /// Where it begins, on every GPU that may touch it.
    pub(super) fn base(&self) -> Address {
        self.base
    }
}

impl Drop for Window {
    /// All ranks are gone by now: what they had enqueued has run, or never will.
    fn drop(&mut self) {
        // Nothing can be done about a GPU that has failed.
        let _ = self.stream.context().bind_to_thread();
        let _ = self.stream.synchronize();
        if self.mapped {
            // SAFETY: it was mapped so, once, and nothing that is enqueued uses it.
            let _ = unsafe { sys::cuMemUnmap(self.base, self.bytes) };
        }
        // SAFETY: it was reserved so, and nothing is mapped there any more.
        let _ = unsafe { sys::cuMemAddressFree(self.base, self.bytes) };
    }
}
