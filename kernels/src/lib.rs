//! CUDA kernels and their launchers.
//!
//! Owns: the CUDA sources (`cu/`), the structs that cross into them ([`abi`]), a GPU with the compiled
//! kernels loaded ([`Device`]), one launcher an op ([`ops`]) that checks every length, alignment and
//! limit before anything reaches the GPU, matrix products through cuBLASLt ([`gemm`]), weights of 8 bits
//! ([`fp8`]), what several GPUs do together ([`peers`]), and finding NVIDIA's
//! libraries and telling what there is ([`library`], [`probe`]). Must never: know about models, requests or plans, or
//! allocate memory in a launcher.
//!
//! Without the feature `cuda` only [`abi`] is here: no nvcc is needed and nothing is linked. With
//! it, the driver is loaded when a device is opened, so a binary starts on a machine without one.
//!
//! Machine code is built for sm_80, sm_89, sm_90a and sm_100a, and PTX for other GPUs since Ampere. Run
//! and measured: sm_90a (H100, and up to four H200). The others have been compiled, not run.

pub mod abi;
#[cfg(feature = "cuda")]
mod array;
#[cfg(feature = "cuda")]
pub mod attention;
#[cfg(feature = "cuda")]
mod check;
#[cfg(feature = "cuda")]
mod device;
#[cfg(feature = "cuda")]
mod error;
#[cfg(feature = "cuda")]
pub mod fp8;
#[cfg(feature = "cuda")]
pub mod gemm;
#[cfg(feature = "cuda")]
mod grid;
#[cfg(feature = "cuda")]
mod kernel;
#[cfg(feature = "cuda")]
mod kv;
#[cfg(feature = "cuda")]
pub mod library;
#[cfg(feature = "cuda")]
pub mod ops;
#[cfg(feature = "cuda")]
pub mod peers;
#[cfg(feature = "cuda")]
pub mod probe;
pub mod testing;
#[cfg(feature = "cuda")]
pub mod vmm;

#[cfg(feature = "cuda")]
pub use array::{Array, ArrayMut};
#[cfg(feature = "cuda")]
pub use device::Device;
#[cfg(feature = "cuda")]
pub use error::{LaunchError, OpenError};
