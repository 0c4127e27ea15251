//! Arrays in GPU memory as launchers take them: an address and a length, borrowed.

use std::marker::PhantomData;

use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut};

use crate::abi::Address;

/// A borrowed array on the GPU that an op reads.
pub struct Array<'a, T> {
    address: Address,
    len: usize,
    stream: &'a CudaStream,
    of: PhantomData<&'a [T]>,
}

/// A borrowed array on the GPU that an op writes.
pub struct ArrayMut<'a, T> {
    address: Address,
    len: usize,
    stream: &'a CudaStream,
    of: PhantomData<&'a mut [T]>,
}

impl<'a, T, S: DevicePtr<T>> From<&'a S> for Array<'a, T> {
    fn from(slice: &'a S) -> Self {
        let stream = slice.stream();
        // Dropping the guard records an event for other streams; this crate knows one stream only.
        let (address, _guard) = slice.device_ptr(stream);
        Array { address, len: slice.len(), stream, of: PhantomData }
    }
}

impl<'a, T, S: DevicePtrMut<T>> From<&'a mut S> for ArrayMut<'a, T> {
    fn from(slice: &'a mut S) -> Self {
        let len = slice.len();
        // The stream outlives the borrow of the slice that holds it, but the compiler cannot see that
        // through `&mut`: a clone of the handle gives the address, the slice itself the stream.
        let stream = slice.stream().clone();
        let (address, _) = slice.device_ptr_mut(&stream);
        let slice: &'a S = slice;
        ArrayMut { address, len, stream: slice.stream(), of: PhantomData }
    }
}

impl<T> Clone for Array<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Array<'_, T> {}

impl<T> ArrayMut<'_, T> {
    /// The same array, for one op; this one can be used again after it.
    pub fn reborrow(&mut self) -> ArrayMut<'_, T> {
        ArrayMut { address: self.address, len: self.len, stream: self.stream, of: PhantomData }
    }

    /// Its first `len` elements, or all if there are fewer.
    pub fn first(self, len: usize) -> Self {
        ArrayMut { len: len.min(self.len), ..self }
    }
}

/// What an argument check needs of either kind.
pub(crate) trait DeviceArray {
    /// Of one element, in bytes.
    const ELEMENT_ALIGNMENT: u64;

    fn address(&self) -> Address;
    fn len(&self) -> usize;
    fn stream(&self) -> &CudaStream;
}

impl<T> DeviceArray for Array<'_, T> {
    const ELEMENT_ALIGNMENT: u64 = align_of::<T>() as u64;

    fn address(&self) -> Address {
        self.address
    }
    fn len(&self) -> usize {
        self.len
    }
    fn stream(&self) -> &CudaStream {
        self.stream
    }
}

impl<T> DeviceArray for ArrayMut<'_, T> {
    const ELEMENT_ALIGNMENT: u64 = align_of::<T>() as u64;

    fn address(&self) -> Address {
        self.address
    }
    fn len(&self) -> usize {
        self.len
    }
    fn stream(&self) -> &CudaStream {
        self.stream
    }
}
