//! Memory of a GPU as the driver's virtual memory management takes it (CUDA driver API, section "Virtual Memory
//! Management").
//!
//! Owns: what such memory is. Must never: reserve, map or free any.

use cudarc::driver::{DriverError, sys};

/// Where GPU `ordinal`'s memory is.
pub fn location(ordinal: usize) -> sys::CUmemLocation {
    sys::CUmemLocation {
        type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE,
        id: ordinal as i32,
    }
}

/// Plain memory of GPU `ordinal`.
pub fn properties(ordinal: usize) -> sys::CUmemAllocationProp {
    sys::CUmemAllocationProp {
        type_: sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED,
        requestedHandleTypes: sys::CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_NONE,
        location: location(ordinal),
        win32HandleMetaData: std::ptr::null_mut(),
        allocFlags: sys::CUmemAllocationProp_st__bindgen_ty_1 {
            compressionType: 0,
            gpuDirectRDMACapable: 0,
            usage: 0,
            reserved: [0; 4],
        },
    }
}

/// Bytes that pieces of such memory are a multiple of.
///
/// # Errors
/// The driver's.
pub fn unit_bytes(properties: &sys::CUmemAllocationProp) -> Result<usize, DriverError> {
    let mut unit = 0;
    // SAFETY: both point to what the driver reads and writes.
    unsafe {
        sys::cuMemGetAllocationGranularity(
            &mut unit,
            properties,
            sys::CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_MINIMUM,
        )
    }
    .result()?;
    Ok(unit)
}
