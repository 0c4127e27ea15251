//! A GPU that was opened, before a model is on it.

use std::sync::Arc;

use cudarc::driver::{CudaContext, DriverError};
use minisgl_kernels::gemm::Gemm;
use minisgl_kernels::{Device, library};

/// The first GPU, with its libraries.
pub struct Gpu {
    device: Device,
    gemm: Gemm,
}

/// How much memory a GPU has left.
#[derive(Clone)]
pub struct GpuMemory(Arc<CudaContext>);

impl Gpu {
    /// Opens the first GPU, its kernels and cuBLASLt.
    ///
    /// # Errors
    /// What was looked for and is not there.
    pub fn open() -> Result<Gpu, String> {
        let device = Device::open(0).map_err(|error| error.to_string())?;
        let libraries = library::configured();
        let gemm = Gemm::open(&device, libraries.as_deref()).map_err(|error| error.to_string())?;
        Ok(Gpu { device, gemm })
    }

    /// What the driver calls it.
    pub fn name(&self) -> &str {
        self.device.name()
    }

    /// Its memory, to be watched.
    pub fn memory(&self) -> GpuMemory {
        GpuMemory(self.device.stream().context().clone())
    }

    pub(super) fn into_parts(self) -> (Device, Gemm) {
        (self.device, self.gemm)
    }
}

impl GpuMemory {
    /// Bytes that nobody has, once all that was enqueued has run.
    ///
    /// # Errors
    /// The driver's.
    pub fn free_bytes(&self) -> Result<u64, DriverError> {
        self.0.synchronize()?;
        Ok(self.0.mem_get_info()?.0 as u64)
    }
}
