//! The binaries that the demo and the end-to-end tests run.

use std::path::PathBuf;

use anyhow::Result;

use crate::{paths, sh};

/// Builds daemon and client optimised.
pub fn release() -> Result<()> {
    let build =
        ["build", "--release", "--locked", "--package", "minisgld", "--package", "minisglctl"];
    let remedy = "a C and C++ compiler are needed (Debian: apt install build-essential)";
    sh::run(sh::cargo().args(build), remedy)
}

/// A release binary.
pub fn binary(name: &str) -> PathBuf {
    paths::target().join("release").join(name)
}
