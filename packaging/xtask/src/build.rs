//! The binaries that operators, the demo and the end-to-end tests run.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::{paths, sh, toolchain};

/// What the binaries can compute on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// NVIDIA GPUs, and the CPU where there is none.
    Cuda,
    /// The CPU alone: needs no CUDA compiler.
    Cpu,
}

/// Builds daemon and client optimised; for GPUs the CUDA compiler is fetched first if there is none.
///
/// # Errors
/// What is missing to build.
pub fn release(backend: Backend) -> Result<()> {
    let build =
        ["build", "--release", "--locked", "--package", "minisgld", "--package", "minisglctl"];
    let mut command = sh::cargo();
    command.args(build);
    match backend {
        Backend::Cuda => prepare()?,
        Backend::Cpu => {
            command.arg("--no-default-features");
        }
    }
    let remedy = "a C and C++ compiler are needed (Debian: apt install build-essential)";
    sh::run(&mut command, remedy)
}

/// Fetches what compiling the kernels needs, unless the environment names all of it.
///
/// # Errors
/// It cannot be fetched.
pub fn prepare() -> Result<()> {
    let named = |variable: &str| std::env::var_os(variable).is_some_and(|value| !value.is_empty());
    if named("FLASHINFER_DATA") && (named("NVCC") || named("CUDA_HOME") || has_nvcc()) {
        return Ok(());
    }
    println!("{}", toolchain::fetch()?.display());
    Ok(())
}

fn has_nvcc() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir: PathBuf| dir.join(Path::new("nvcc")).is_file())
}

/// A release binary.
pub fn binary(name: &str) -> PathBuf {
    paths::target().join("release").join(name)
}
