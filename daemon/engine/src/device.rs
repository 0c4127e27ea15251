//! Which devices a model is loaded on.
//!
//! Owns: the choice among a machine's GPUs. Must never: take a GPU that another model has.

use minisgl_proto::{Device, LoadOptions};

use crate::error::EngineError;
#[cfg(feature = "cuda")]
use crate::ops::cuda::Gpu;

/// Devices that can be used.
pub(crate) enum Chosen {
    Cpu,
    /// One a rank.
    #[cfg(feature = "cuda")]
    Cuda(Vec<Gpu>),
}

/// Opens the device that was asked for; by default GPUs, and the CPU where none can be used, which is
/// said in one line.
///
/// # Errors
/// GPUs were asked for and cannot be used; or there are some, and fewer than ranks.
pub(crate) fn choose(options: &LoadOptions) -> Result<Chosen, EngineError> {
    let wanted = options.device;
    if wanted == Device::Cpu {
        return Ok(Chosen::Cpu);
    }
    let fixed = wanted == Device::Cuda || !options.gpus.is_empty();
    match open(options) {
        Ok(chosen) => Ok(chosen),
        Err(Unusable { reason, by_choice }) if fixed || by_choice => {
            Err(EngineError::Device { device: "cuda", reason })
        }
        Err(Unusable { reason, .. }) => {
            // Where there is a driver somebody expects the GPU to be used.
            if has_driver() {
                tracing::warn!("running on the CPU, not on a GPU: {reason}");
            } else {
                tracing::info!("running on the CPU: {reason}");
            }
            Ok(Chosen::Cpu)
        }
    }
}

/// Why no GPU is used.
struct Unusable {
    reason: String,
    /// There are GPUs, and what was asked for does not fit them: the CPU is no answer to that.
    by_choice: bool,
}

#[cfg(feature = "cuda")]
fn open(options: &LoadOptions) -> Result<Chosen, Unusable> {
    let count = minisgl_kernels::Device::count();
    let ordinals = match count {
        0 => vec![0], // opening it says what is missing
        _ => place::gpus(options, count).map_err(|reason| Unusable { reason, by_choice: true })?,
    };
    let gpus = ordinals.into_iter().map(Gpu::open).collect::<Result<_, _>>();
    gpus.map(Chosen::Cuda).map_err(|reason| Unusable { reason, by_choice: false })
}

#[cfg(feature = "cuda")]
fn has_driver() -> bool {
    minisgl_kernels::Device::count() > 0
}

#[cfg(not(feature = "cuda"))]
fn open(_options: &LoadOptions) -> Result<Chosen, Unusable> {
    let reason = "this build has no CUDA backend".to_owned();
    Err(Unusable { reason, by_choice: false })
}

#[cfg(not(feature = "cuda"))]
fn has_driver() -> bool {
    false
}

#[cfg(feature = "cuda")]
mod place;
