//! KV pages at addresses that never change, of which more are backed by memory as they are needed.
//!
//! Owns: a range of addresses for as many pages as there could be, and the memory behind its beginning.
//! Must never: unmap a page before it is dropped.
//!
//! Graphs of decode steps hold the addresses of KV pages, and take memory themselves; how much is known
//! once they are recorded. So addresses come first, with memory for the first pages alone; then the
//! graphs; and what is left after them backs the rest (the driver's virtual memory management: CUDA
//! driver API, section "Virtual Memory Management").
//!
//! ```text
//!   addresses   | layer 0 keys        | layer 0 values      | layer 1 keys        | ...
//!   memory      |#########            |#########            |#########            |
//!               0         pages       stride                2 stride
//! ```

use std::mem::ManuallyDrop;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, CudaView, CudaViewMut, DeviceRepr, DriverError};
use cudarc::driver::{result, sys};
use half::{bf16, f16};
use minisgl_kernels::attention::{KvArray, KvArrayMut, KvType};
use minisgl_kernels::{Array, ArrayMut, vmm};

use super::failed;
use crate::kv_groups::{KvGroups, KvPlace};
use crate::ops::OpResult;

/// Memory comes in multiples of this many bytes, on every GPU that this runs on.
pub const KV_UNIT_BYTES: usize = 2 << 20;

/// What the pages are made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct KvShape {
    /// Of one page of one layer's keys, or of its values.
    pub(super) page_bytes: usize,
    /// Its elements.
    pub(super) element: KvType,
    /// Elements behind the last page that some kernels read along.
    pub(super) slack: usize,
}

impl KvShape {
    /// Bytes of one array of `pages` pages, in whole pieces of memory.
    fn array_bytes(self, pages: usize) -> usize {
        self.used_bytes(pages).next_multiple_of(KV_UNIT_BYTES)
    }

    fn used_bytes(self, pages: usize) -> usize {
        pages * self.page_bytes + self.slack * self.element.bytes()
    }
}

/// Keys and values of all layers.
pub(super) struct KvSpace {
    stream: Arc<CudaStream>,
    shape: KvShape,
    groups: KvGroups,
    /// All addresses: where they begin, and how many bytes.
    range: (sys::CUdeviceptr, usize),
    /// From one array to the next.
    stride: usize,
    /// Bytes at the beginning of each array that have memory.
    backed: usize,
    /// Where memory was mapped: address and bytes.
    mapped: Vec<(sys::CUdeviceptr, usize)>,
    /// Keys and values, where `groups` says, of every page that there are addresses for. Never freed as slices:
    /// nobody allocated them as such.
    arrays: Vec<[ManuallyDrop<CudaSlice<u8>>; 2]>,
}

impl KvSpace {
    /// Addresses for `pages` pages, and memory for the first of them.
    pub(super) fn new(
        stream: &Arc<CudaStream>,
        shape: KvShape,
        groups: KvGroups,
        pages: usize,
    ) -> OpResult<KvSpace> {
        let fault = || failed::<DriverError>("reserve KV pages");
        stream.context().bind_to_thread().map_err(fault())?;
        let unit = vmm::unit_bytes(&properties(stream)).map_err(fault())?;
        if unit == 0 || !KV_UNIT_BYTES.is_multiple_of(unit) {
            let reason = format!("this GPU's memory comes in pieces of {unit} bytes");
            return Err(failed("reserve KV pages")(reason));
        }
        let pages = pages.max(1);
        let stride = shape.array_bytes(pages);
        let bytes = 2 * groups.arrays() * stride;
        let mut base = 0;
        // SAFETY: takes addresses only, which the driver chooses.
        unsafe { sys::cuMemAddressReserve(&mut base, bytes, KV_UNIT_BYTES, 0, 0) }
            .result()
            .map_err(fault())?;
        let array = |index: usize| {
            let at = base + (index * stride) as u64;
            // SAFETY: the addresses are this struct's until it is dropped. Only pages that `grow` has
            // backed are touched: plans are held to their number.
            ManuallyDrop::new(unsafe { stream.upgrade_device_ptr(at, shape.used_bytes(pages)) })
        };
        let arrays = (0..groups.arrays()).map(|index| [array(2 * index), array(2 * index + 1)]);
        let mut space = KvSpace {
            stream: stream.clone(),
            shape,
            groups,
            range: (base, bytes),
            stride,
            backed: 0,
            mapped: Vec::new(),
            arrays: arrays.collect(),
        };
        space.grow(1)?;
        Ok(space)
    }

    /// Backs the first `pages` pages with memory, all zeros where there was none: what no request wrote
    /// must not be NaN.
    pub(super) fn grow(&mut self, pages: usize) -> OpResult {
        let wanted = self.shape.array_bytes(pages).min(self.stride);
        let bytes = wanted.saturating_sub(self.backed);
        let arrays = 2 * self.groups.arrays();
        if bytes == 0 {
            return Ok(());
        }
        for array in 0..arrays {
            let at = self.range.0 + (array * self.stride + self.backed) as u64;
            self.map(at, bytes).map_err(|error| {
                let what = format!("{bytes} bytes for each of {arrays} arrays: {error}");
                failed("allocate KV pages")(what)
            })?;
        }
        self.backed = wanted;
        Ok(())
    }

    /// Puts `bytes` of zeros at an address that nothing is mapped at.
    fn map(&mut self, at: sys::CUdeviceptr, bytes: usize) -> Result<(), DriverError> {
        let stream = &self.stream;
        stream.context().bind_to_thread()?;
        let mut memory = 0;
        // SAFETY: both point to what the driver reads and writes.
        unsafe { sys::cuMemCreate(&mut memory, bytes, &properties(stream), 0) }.result()?;
        // SAFETY: the addresses are reserved, nothing is mapped there, and the memory is as large.
        let mapped = unsafe { sys::cuMemMap(at, bytes, 0, memory, 0) }.result();
        // SAFETY: the handle is used no more; the mapping, if there is one, keeps the memory.
        let released = unsafe { sys::cuMemRelease(memory) }.result();
        mapped?;
        self.mapped.push((at, bytes));
        released?;
        let access = sys::CUmemAccessDesc {
            location: properties(stream).location,
            flags: sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        };
        // SAFETY: the range was mapped just now; the descriptor is read during the call.
        unsafe { sys::cuMemSetAccess(at, bytes, &access, 1) }.result()?;
        // SAFETY: as above, and nothing uses the range yet.
        unsafe { result::memset_d8_async(at, 0, bytes, stream.cu_stream()) }
    }

    /// Where the keys and values of a layer are.
    pub(super) fn place(&self, layer: usize) -> KvPlace {
        self.groups.place(layer)
    }

    /// Hands the keys and values in an array, of every page that there are addresses for, to `with`, to be
    /// read and written. `None` if there is no such array.
    pub(super) fn pages<R>(
        &mut self,
        index: usize,
        with: impl FnOnce(KvArrayMut<'_>, KvArrayMut<'_>) -> R,
    ) -> Option<R> {
        match self.shape.element {
            KvType::Bf16 => {
                let (mut keys, mut values) = self.array_mut::<bf16>(index)?;
                Some(with(ArrayMut::from(&mut keys).into(), ArrayMut::from(&mut values).into()))
            }
            KvType::Fp16 => {
                let (mut keys, mut values) = self.array_mut::<f16>(index)?;
                Some(with(ArrayMut::from(&mut keys).into(), ArrayMut::from(&mut values).into()))
            }
            KvType::Fp8 => {
                let (mut keys, mut values) = self.array_mut::<u8>(index)?;
                Some(with(ArrayMut::from(&mut keys).into(), ArrayMut::from(&mut values).into()))
            }
        }
    }

    /// As [`KvSpace::pages`], to be read, with the slack behind them.
    pub(super) fn pages_and_slack<R>(
        &self,
        index: usize,
        with: impl FnOnce(KvArray<'_>, KvArray<'_>) -> R,
    ) -> Option<R> {
        match self.shape.element {
            KvType::Bf16 => {
                let (keys, values) = self.array::<bf16>(index)?;
                Some(with(Array::from(&keys).into(), Array::from(&values).into()))
            }
            KvType::Fp16 => {
                let (keys, values) = self.array::<f16>(index)?;
                Some(with(Array::from(&keys).into(), Array::from(&values).into()))
            }
            KvType::Fp8 => {
                let (keys, values) = self.array::<u8>(index)?;
                Some(with(Array::from(&keys).into(), Array::from(&values).into()))
            }
        }
    }

    /// Keys and values in an array, and what is behind them; `T` is the KV element.
    fn array<T: DeviceRepr>(&self, index: usize) -> Option<(CudaView<'_, T>, CudaView<'_, T>)> {
        let [keys, values] = self.arrays.get(index)?;
        let len = keys.len() / size_of::<T>();
        // SAFETY: any bits are a KV element, and arrays begin at multiples of `KV_UNIT_BYTES`.
        unsafe { Some((keys.transmute(len)?, values.transmute(len)?)) }
    }

    /// Keys and values in an array, to be written.
    fn array_mut<T: DeviceRepr>(
        &mut self,
        index: usize,
    ) -> Option<(CudaViewMut<'_, T>, CudaViewMut<'_, T>)> {
        let slack = self.shape.slack;
        let [keys, values] = self.arrays.get_mut(index)?;
        let len = keys.len() / size_of::<T>() - slack;
        // SAFETY: as in `array`.
        unsafe { Some((keys.transmute_mut(len)?, values.transmute_mut(len)?)) }
    }
}

impl Drop for KvSpace {
    /// What is in flight may still read pages.
    fn drop(&mut self) {
        // Nothing can be done about a GPU that has failed, and nothing runs on it any more.
        let _ = self.stream.context().bind_to_thread();
        let _ = self.stream.synchronize();
        for &(at, bytes) in &self.mapped {
            // SAFETY: it was mapped so, once, and nothing that is enqueued uses it.
            let _ = unsafe { sys::cuMemUnmap(at, bytes) };
        }
        // SAFETY: it was reserved so, and nothing is mapped there any more.
        let _ = unsafe { sys::cuMemAddressFree(self.range.0, self.range.1) };
    }
}

/// Plain memory of the stream's GPU.
fn properties(stream: &CudaStream) -> sys::CUmemAllocationProp {
    vmm::properties(stream.context().ordinal())
}

#[cfg(test)]
mod tests {
    use minisgl_kernels::Device;

    use super::*;

    /// Grown in steps, pages keep their addresses and what is in them, new ones are zeros, and all memory
    /// comes back.
    #[test]
    fn pages_stay_where_they_are() {
        if !minisgl_kernels::testing::has_gpu() {
            return;
        }
        let device = Device::open(0).unwrap();
        let stream = device.stream();
        let free = || {
            device.synchronize().unwrap();
            stream.context().mem_get_info().unwrap().0
        };
        let before = free();
        // The driver's own tables take a little.
        let taken = |space: &KvSpace| {
            let (all, pages) = (before - free(), 6 * space.backed);
            assert!((pages..pages + (32 << 20)).contains(&all), "{all} bytes for {pages} of pages");
        };
        // 96 KiB a page: pieces of memory end in the middle of a page.
        let shape = KvShape { page_bytes: 96 << 10, element: KvType::Bf16, slack: 0 };
        let pages = 1 << 20;
        let mut space = KvSpace::new(stream, shape, KvGroups::one(3), pages).unwrap();
        assert_eq!(space.backed, KV_UNIT_BYTES, "addresses for 288 GiB take no memory");
        taken(&space);
        let page_len = shape.page_bytes / 2;
        let place = |space: &KvSpace| super::super::memory::address(&space.arrays[2][1]);
        let address = place(&space);
        for layer in 0..3 {
            let (mut keys, mut values) = space.array_mut::<u16>(layer).unwrap();
            assert_eq!(keys.len(), pages * page_len);
            let written = vec![layer as u16 + 1; 21 * page_len];
            stream.memcpy_htod(&written, &mut keys.slice_mut(..21 * page_len)).unwrap();
            stream.memcpy_htod(&written, &mut values.slice_mut(..21 * page_len)).unwrap();
        }
        for (grown, bytes) in [(21, KV_UNIT_BYTES), (22, 2 * KV_UNIT_BYTES), (500, 48 << 20)] {
            space.grow(grown).unwrap();
            assert_eq!(space.backed, bytes, "{grown} pages");
            taken(&space);
        }
        assert_eq!(place(&space), address);
        for layer in 0..3 {
            let (keys, values) = space.array::<u16>(layer).unwrap();
            for array in [keys, values] {
                let read = stream.clone_dtoh(&array.slice(..500 * page_len)).unwrap();
                let (old, new) = read.split_at(21 * page_len);
                assert!(old.iter().all(|&value| value == layer as u16 + 1), "layer {layer}");
                assert!(new.iter().all(|&value| value == 0), "layer {layer}");
            }
        }
        assert!(space.array::<u16>(3).is_none());
        let refused = space.grow(pages).unwrap_err().to_string();
        assert!(refused.contains("allocate KV pages: "), "{refused}");
        drop(space);
        assert!(free() + (32 << 20) > before);
    }
}
