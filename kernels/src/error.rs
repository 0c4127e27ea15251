//! What can go wrong: opening a GPU, and launching an op.

use cudarc::driver::DriverError;

use crate::library::LibraryError;

/// The CUDA version that a driver must support, major and minor: that of the compiler and of cuBLASLt.
/// Machine code is compatible within a major version only.
pub const CUDA_MIN: (u32, u32) = (13, 0);

/// No GPU to work with.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The driver's library is not on this machine.
    #[error("no NVIDIA driver: {0}")]
    NoDriver(#[from] LibraryError),
    /// The driver is older than the kernels and libraries, which need CUDA 13.
    #[error(
        "the driver supports CUDA {major}.{minor}, and this build needs {}.{}: install NVIDIA's driver \
         580 or newer",
        CUDA_MIN.0, CUDA_MIN.1
    )]
    OldDriver {
        /// CUDA version.
        major: u32,
        /// CUDA version.
        minor: u32,
    },
    /// There is a driver, and fewer GPUs than asked for.
    #[error(
        "there is no GPU {ordinal}: the driver shows {count}; see `nvidia-smi` and CUDA_VISIBLE_DEVICES"
    )]
    NoDevice {
        /// Which was asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// The GPU is older than the kernels.
    #[error(
        "GPU {ordinal} ({name}) has compute capability {major}.{minor}; 8.0 (Ampere) is the least"
    )]
    TooOld {
        /// Which.
        ordinal: usize,
        /// What the driver calls it.
        name: String,
        /// Compute capability.
        major: i32,
        /// Compute capability.
        minor: i32,
    },
    /// The driver refused.
    #[error("the driver failed to {what}: {source}")]
    Driver {
        /// What it was asked to do.
        what: String,
        /// Its answer.
        source: DriverError,
    },
}

/// An op that did not start. Nothing of it reached the GPU.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The arguments do not fit together, or not the kernel.
    #[error("{op}: {what}")]
    Argument {
        /// Which op.
        op: &'static str,
        /// What is wrong with what.
        what: String,
    },
    /// The driver refused. An earlier kernel's fault may show here.
    #[error("{op} ({shape}): the driver failed: {source}")]
    Driver {
        /// Which op.
        op: &'static str,
        /// Its shapes.
        shape: String,
        /// The driver's answer.
        source: DriverError,
    },
}
