//! `cargo xtask toolchain`: NVIDIA's CUDA compiler from PyPI, for machines without a CUDA toolkit.
//!
//! Owns: `target/toolchain/cuda`, which `kernels/build.rs` looks into after `NVCC`, `CUDA_HOME` and
//! `PATH`. Must never: touch the system, or be needed where nvcc is installed already.

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

/// Where the compiler is, inside the folder that pip filled.
const NVCC: &str = "nvidia/cu13/bin/nvcc";

const REMEDY: &str = "Python 3 with pip and access to PyPI are needed to fetch nvcc (Debian: apt \
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
        folder::publish(&dir, &wheels, install)?;
    }
    Ok(dir.join(NVCC))
}

fn install(dir: &Path) -> Result<()> {
    let pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"];
    let more = ["--disable-pip-version-check", "--root-user-action=ignore", "--no-compile"];
    let mut command = Command::new("python3");
    command.args(pip).args(more).arg("--target").arg(dir).args(WHEELS);
    sh::run(&mut command, REMEDY)?;
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
