//! Which device a model is loaded on.

use minisgl_proto::Device;

use crate::error::EngineError;
#[cfg(feature = "cuda")]
use crate::ops::cuda::Gpu;

/// A device that can be used.
pub(crate) enum Chosen {
    Cpu,
    #[cfg(feature = "cuda")]
    Cuda(Box<Gpu>),
}

/// Opens the device that was asked for; by default a GPU, and the CPU where none can be used, which is
/// said in one line.
///
/// # Errors
/// A GPU was asked for and cannot be used.
pub(crate) fn choose(wanted: Device) -> Result<Chosen, EngineError> {
    match wanted {
        Device::Cpu => Ok(Chosen::Cpu),
        Device::Cuda => open().map_err(|reason| EngineError::Device { device: "cuda", reason }),
        Device::Auto => Ok(open().unwrap_or_else(|reason| {
            // Where there is a driver somebody expects the GPU to be used.
            if has_driver() {
                tracing::warn!("running on the CPU, not on a GPU: {reason}");
            } else {
                tracing::info!("running on the CPU: {reason}");
            }
            Chosen::Cpu
        })),
    }
}

#[cfg(feature = "cuda")]
fn open() -> Result<Chosen, String> {
    Ok(Chosen::Cuda(Box::new(Gpu::open()?)))
}

#[cfg(feature = "cuda")]
fn has_driver() -> bool {
    minisgl_kernels::Device::count() > 0
}

#[cfg(not(feature = "cuda"))]
fn open() -> Result<Chosen, String> {
    Err("this build has no CUDA backend".to_owned())
}

#[cfg(not(feature = "cuda"))]
fn has_driver() -> bool {
    false
}
