//! Where the build's tools are: the CUDA compiler and FlashInfer's headers.

use std::env;
use std::path::{Path, PathBuf};

use crate::Result;

/// In `NVCC`, `CUDA_HOME`, `PATH`, then where `cargo xtask toolchain` puts it.
pub fn nvcc(target: &Path) -> Result<PathBuf> {
    for variable in ["NVCC", "CUDA_HOME", "PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    if let Some(nvcc) = env::var_os("NVCC") {
        let nvcc = PathBuf::from(nvcc);
        return match nvcc.is_file() {
            true => Ok(nvcc),
            false => Err(format!("NVCC is {}, which is no file", nvcc.display()).into()),
        };
    }
    let home = env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let wheels = target.join("toolchain/cuda/nvidia/cu13/bin");
    home.into_iter()
        .chain(env::split_paths(&path))
        .chain([wheels])
        .map(|dir| dir.join("nvcc"))
        .find(|nvcc| nvcc.is_file())
        .ok_or_else(|| {
            "no CUDA compiler: nvcc is neither in NVCC, CUDA_HOME nor PATH. Run `cargo xtask \
             toolchain` to fetch it from PyPI into target/ (no root), or build for the CPU alone with \
             `--no-default-features`"
                .into()
        })
}

/// FlashInfer's data folder: in `FLASHINFER_DATA`, then where `cargo xtask toolchain` puts it.
pub fn flashinfer(target: &Path) -> Result<PathBuf> {
    println!("cargo::rerun-if-env-changed=FLASHINFER_DATA");
    let named = env::var_os("FLASHINFER_DATA").map(PathBuf::from);
    let data = named.unwrap_or_else(|| target.join("toolchain/flashinfer"));
    let whole = ["include/flashinfer", "cutlass/include/cute"];
    match whole.iter().all(|part| data.join(part).is_dir()) {
        true => Ok(data),
        false => {
            Err("no FlashInfer headers: run `cargo xtask toolchain` to fetch them from PyPI into \
             target/ (62 MB), or set FLASHINFER_DATA to the folder flashinfer/data of its wheel"
                .into())
        }
    }
}
