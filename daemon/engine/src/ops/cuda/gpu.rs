//! A GPU that was opened, before a model is on it.

use std::sync::Arc;

use cudarc::driver::{CudaStream, DriverError};
use minisgl_kernels::gemm::Gemm;
use minisgl_kernels::{Device, library};

use super::tuned::TunedFile;

/// Set to anything but `0`, every op is waited for, so that a fault is told by the op that made it; no graphs
/// are recorded. To find a fault: it is very slow.
const SYNC_EVERY_OP: &str = "MINISGL_SYNC_EVERY_OP";

/// A GPU, with its libraries and what was measured on it before.
pub struct Gpu {
    device: Device,
    gemm: Gemm,
    tuned: TunedFile,
}

/// Has the C library give back what it keeps of freed memory. Loading its code, the driver frees some hundred
/// megabytes, which nothing would ask for again.
pub(super) fn trim_host_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: has no preconditions; it locks each arena for itself.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// How much memory a GPU has left.
#[derive(Clone)]
pub struct GpuMemory(Arc<CudaStream>);

impl Gpu {
    /// Opens GPU `ordinal`, its kernels and cuBLASLt.
    ///
    /// # Errors
    /// What was looked for and is not there.
    pub fn open(ordinal: usize) -> Result<Gpu, String> {
        let mut device = Device::open(ordinal).map_err(|error| error.to_string())?;
        if std::env::var_os(SYNC_EVERY_OP).is_some_and(|value| value != "0") {
            tracing::warn!("{SYNC_EVERY_OP} is set: every op is waited for");
            device = device.settling();
        }
        let libraries = library::configured();
        let opened = Gemm::open(&device, libraries.as_deref());
        let mut gemm = opened.map_err(|error| error.to_string())?;
        let mut tuned = TunedFile::of(device.name());
        if gemm.restore(&device, tuned.read()) == 0 {
            tuned.refused();
        }
        Ok(Gpu { device, gemm, tuned })
    }

    /// Its number.
    pub fn ordinal(&self) -> usize {
        self.device.stream().context().ordinal()
    }

    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    /// What the driver calls it.
    pub fn name(&self) -> &str {
        self.device.name()
    }

    /// Compute capability, major and minor.
    pub fn capability(&self) -> (i32, i32) {
        self.device.capability()
    }

    /// Its memory, to be watched.
    pub fn memory(&self) -> GpuMemory {
        GpuMemory(self.device.stream().clone())
    }

    pub(super) fn into_parts(self) -> (Device, Gemm, TunedFile) {
        (self.device, self.gemm, self.tuned)
    }
}

impl GpuMemory {
    /// Bytes that nobody has, once all that was enqueued has run.
    ///
    /// # Errors
    /// The driver's.
    pub fn free_bytes(&self) -> Result<u64, DriverError> {
        let context = self.0.context();
        context.bind_to_thread()?;
        self.0.synchronize()?;
        Ok(context.mem_get_info()?.0 as u64)
    }
}
