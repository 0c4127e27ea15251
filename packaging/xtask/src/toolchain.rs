//! `cargo xtask toolchain`: what compiling the kernels needs, from PyPI: NVIDIA's CUDA compiler, for
//! machines without a CUDA toolkit, and FlashInfer's headers.
//!
//! Owns: `target/toolchain/cuda`, which `kernels/build.rs` looks into after `NVCC`, `CUDA_HOME` and
//! `PATH`, and `target/toolchain/flashinfer`, unless `FLASHINFER_DATA` names another. Must never: touch
//! the system.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::model::folder;
use crate::{paths, sh};

/// Compiler, optimiser, headers and runtime of one CUDA release, as wheels: 104 MB in all.
const WHEELS: [&str; 5] = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
];

/// Headers of the attention backends (Apache-2.0), and the CCCL and CUTLASS (BSD-3) they were written for: 62 MB.
const FLASHINFER: &str = "flashinfer-python==0.7.2.post1";

/// What is kept of that wheel, 54 of its several hundred megabytes.
const FLASHINFER_KEPT: [&str; 5] =
    ["include", "cccl/libcudacxx/include", "cccl/cub", "cccl/thrust", "cutlass/include"];

/// Where the compiler is, inside the folder that pip filled.
const NVCC: &str = "nvidia/cu13/bin/nvcc";

/// For whoever has neither compiler nor network.
pub const REMEDY: &str = "Python 3 with pip and access to PyPI are needed to fetch nvcc (Debian: apt \
    install python3-pip); or install a CUDA toolkit and set CUDA_HOME";

/// The path of nvcc, fetched if need be.
pub fn fetch() -> Result<PathBuf> {
    let dir = paths::target().join("toolchain/cuda");
    let wheels = WHEELS.join(" ");
    if !folder::is_whole(&dir, &wheels) {
        if !cfg!(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))) {
            bail!("nvcc's wheels are for Linux on x86-64 and AArch64; install a CUDA toolkit");
        }
        eprintln!("downloading nvcc from PyPI (5 wheels, 104 MB)");
        folder::publish(&dir, &wheels, install_cuda)?;
    }
    let headers = paths::target().join("toolchain/flashinfer");
    let headers_from = format!("{FLASHINFER}: {}", FLASHINFER_KEPT.join(" "));
    if !folder::is_whole(&headers, &headers_from) {
        eprintln!("downloading FlashInfer's headers from PyPI (62 MB)");
        folder::publish(&headers, &headers_from, install_flashinfer)?;
    }
    Ok(dir.join(NVCC))
}

/// Installs wheels, and nothing that they depend on.
fn pip_install(dir: &Path, wheels: &[&str]) -> Result<()> {
    let pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"];
    let more = ["--disable-pip-version-check", "--root-user-action=ignore", "--no-compile"];
    let mut command = Command::new("python3");
    command.args(pip).args(more).arg("--target").arg(dir).args(wheels);
    sh::run(&mut command, REMEDY)
}

fn install_flashinfer(dir: &Path) -> Result<()> {
    let scratch = folder::Scratch::beside(&dir.join("wheel"))?;
    pip_install(&scratch.0, &[FLASHINFER])?;
    for kept in FLASHINFER_KEPT {
        let to = dir.join(kept);
        fs::create_dir_all(to.parent().unwrap_or(dir))?;
        fs::rename(scratch.0.join("flashinfer/data").join(kept), &to)
            .with_context(|| format!("{FLASHINFER} lacks {kept}"))?;
    }
    Ok(())
}

fn install_cuda(dir: &Path) -> Result<()> {
    pip_install(dir, &WHEELS)?;
    // Some versions of pip drop the permission bits of a wheel's files.
    make_runnable(&dir.join("nvidia/cu13"))?;
    let mut nvcc = Command::new(dir.join(NVCC));
    sh::capture(nvcc.arg("--version"), "install a CUDA toolkit instead")?;
    Ok(())
}

/// Sets the execute bits in `bin` and `nvvm/bin`.
fn make_runnable(root: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    for dir in ["bin", "nvvm/bin"] {
        let dir = root.join(dir);
        for entry in fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))? {
            let path = entry?.path();
            if path.is_file() {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
            }
        }
    }
    Ok(())
}
