//! `cargo xtask bundle`: one folder to try this build on a GPU machine that has neither Rust nor a network.
//!
//! ```text
//!   run.sh, README.md, LICENSE    from packaging/bundle
//!   files.tar.xz                  which run.sh unpacks beside itself:
//!     bin/                        minisgld, minisglctl: release, stripped
//!     tests/                      what needs a GPU: test programs (dev profile, stripped), and scripts
//!     python/                     references that tests are held to
//! ```
//!
//! Every program has the kernels in it, for every GPU. Packed by a compressor that looks back over all of them,
//! they are in there once.
//!
//! Owns: what goes in, and its size. Must never: run any of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::{build, paths, sh, toolchain};

/// The whole folder: what a slow link carries in minutes.
const BYTES_MAX: u64 = 60 << 20;

/// Tests that are for a GPU without saying so in their manifest.
const ALSO: [&str; 1] = ["hf"];

/// The crate whose unit tests hold the CUDA backend to the CPU's, op by op, and their name in the folder.
const UNIT_TESTS: (&str, &str) = ("minisgl_engine", "engine-ops");

/// Makes the folder; what was there is replaced.
///
/// # Errors
/// Something does not build, or the folder is too large.
pub fn make(to: Option<PathBuf>) -> Result<PathBuf> {
    let to = to.unwrap_or_else(|| paths::target().join("bundle"));
    if to.exists() {
        let ours = to.join("run.sh").exists() || fs::read_dir(&to)?.next().is_none();
        ensure!(ours, "{} is there and is no bundle; name another folder", to.display());
        fs::remove_dir_all(&to).with_context(|| format!("removing {}", to.display()))?;
    }
    build::release(build::Backend::Cuda)?;
    let tests = test_programs()?;

    copy_tree(&paths::root().join("packaging/bundle"), &to)?;
    fs::copy(paths::root().join("LICENSE"), to.join("LICENSE"))?;
    for name in ["minisgld", "minisglctl"] {
        strip(&build::binary(name), &to.join("bin").join(name))?;
    }
    for (name, program) in tests {
        strip(&program, &to.join("tests").join(name))?;
    }
    let python = paths::root().join("tests/python");
    for entry in fs::read_dir(&python)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default();
        if name.to_string_lossy().ends_with("_reference.py") {
            fs::create_dir_all(to.join("python"))?;
            fs::copy(&path, to.join("python").join(name))?;
        }
    }
    report(&to)?;
    pack(&to)?;
    println!("packed:");
    let bytes = report(&to)?;
    ensure!(
        bytes <= BYTES_MAX,
        "{} has {:.1} MiB; at most {} are allowed",
        to.display(),
        mib(bytes),
        BYTES_MAX >> 20
    );
    Ok(to)
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
    #[serde(default, rename = "required-features")]
    required_features: Vec<String>,
}

impl Target {
    fn needs_gpu(&self) -> bool {
        let is_test = self.kind.iter().any(|kind| kind == "test");
        let says_so = self.required_features.iter().any(|feature| feature == "cuda");
        is_test && (says_so || ALSO.contains(&self.name.as_str()))
    }
}

/// A line of cargo's messages.
#[derive(Deserialize)]
struct Message {
    target: Option<Target>,
    executable: Option<PathBuf>,
}

/// Builds the tests that need a GPU: names and programs.
fn test_programs() -> Result<Vec<(String, PathBuf)>> {
    let metadata = ["metadata", "--locked", "--no-deps", "--format-version", "1"];
    let text = sh::capture(sh::cargo().args(metadata), "the workspace's manifests are broken")?;
    let metadata: Metadata = serde_json::from_str(&text)?;
    let targets = metadata.packages.into_iter().flat_map(|package| package.targets);
    let names: Vec<String> = targets.filter(Target::needs_gpu).map(|target| target.name).collect();
    ensure!(!names.is_empty(), "no test has required-features = [\"cuda\"]");

    let mut command = sh::cargo();
    command.args(["test", "--no-run", "--locked", "-p", "minisgl-kernels", "-p", "minisgl-engine"]);
    command.args(["--features", "minisgl-kernels/cuda,minisgl-engine/cuda", "--lib"]);
    command.arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
    command.args(names.iter().flat_map(|name| ["--test", name]));
    let said = sh::capture(&mut command, toolchain::REMEDY)?;
    let mut programs: Vec<(String, PathBuf)> = said
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok())
        .filter_map(|message| Some((message.target?.name, message.executable?)))
        .filter_map(|(name, program)| match name {
            name if name == UNIT_TESTS.0 => Some((UNIT_TESTS.1.to_owned(), program)),
            name if names.contains(&name) => Some((name, program)),
            _ => None,
        })
        .collect();
    programs.sort();
    ensure!(programs.len() == names.len() + 1, "cargo built {programs:?}, not {names:?}");
    Ok(programs)
}

fn strip(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().unwrap_or(to))?;
    let remedy = "`strip` comes with the C compiler (Debian: apt install binutils)";
    sh::run(Command::new("strip").arg("-o").arg(to).arg(from), remedy)
}

/// The folders that are packed.
const PACKED: [&str; 3] = ["bin", "tests", "python"];

/// Replaces them by one archive.
fn pack(dir: &Path) -> Result<()> {
    let remedy = "GNU tar and xz are needed (Debian: apt install tar xz-utils)";
    let there = PACKED.iter().filter(|name| dir.join(name).is_dir());
    let mut command = Command::new("tar");
    // One thread, and a window over the whole: threads would each see a part.
    command.arg("-C").arg(dir).arg("-I").arg("xz -T1 --lzma2=preset=4,dict=256MiB");
    command.args(["--sort=name", "-cf"]).arg(dir.join("files.tar.xz")).args(there.clone());
    sh::run(&mut command, remedy)?;
    for name in there {
        fs::remove_dir_all(dir.join(name))?;
    }
    Ok(())
}

/// Copies a folder with its permissions.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

/// Prints every file's size, and their sum, which it returns.
fn report(dir: &Path) -> Result<u64> {
    let mut files = Vec::new();
    list(dir, &mut files)?;
    files.sort();
    for (path, bytes) in &files {
        println!("{:>8.1} MiB  {}", mib(*bytes), path.strip_prefix(dir).unwrap_or(path).display());
    }
    let bytes = files.iter().map(|(_, bytes)| bytes).sum();
    println!("{:>8.1} MiB  in all", mib(bytes));
    Ok(bytes)
}

fn list(dir: &Path, files: &mut Vec<(PathBuf, u64)>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            list(&entry.path(), files)?;
        } else {
            files.push((entry.path(), entry.metadata()?.len()));
        }
    }
    Ok(())
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_programs_share_is_packed_once() {
        let dir = tempfile::tempdir().unwrap();
        // Bytes that do not compress, in two files.
        let mut state = 1u64;
        let noise: Vec<u8> = (0..4 << 20)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state as u8
            })
            .collect();
        for name in ["bin/minisgld", "tests/gpu"] {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, &noise).unwrap();
        }
        fs::write(dir.path().join("run.sh"), "x").unwrap();
        pack(dir.path()).unwrap();
        let bytes = report(dir.path()).unwrap();
        assert!((4 << 20..5 << 20).contains(&bytes), "{bytes}");
        assert!(!dir.path().join("bin").exists() && dir.path().join("run.sh").exists());
        let unpack = ["-xf", "files.tar.xz"];
        let status = Command::new("tar").args(unpack).current_dir(dir.path()).status().unwrap();
        assert!(status.success());
        assert_eq!(fs::read(dir.path().join("tests/gpu")).unwrap(), noise);
    }
}
