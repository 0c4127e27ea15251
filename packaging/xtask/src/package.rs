//! `cargo xtask package`: the `.deb` and the `.rpm`.
//!
//! ```text
//!   target/release/minisgld, minisglctl       built first
//!   target/release/package/                   made here, by the programs themselves:
//!     man/*.1.gz  completions/*               manual pages, completions for bash, zsh and fish
//!     THIRD-PARTY-NOTICES.gz                  see notices.rs
//!   target/packages/*.deb, *.rpm              made by cargo-deb and cargo-generate-rpm
//! ```
//!
//! Owns: what is made before the tools are called. What is in a package, and where, is in daemon/Cargo.toml;
//! what runs at installation is in packaging/deb and packaging/rpm. Must never: install anything.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{build, notices, paths, sh, tools};

/// What programs have in a package.
const PROGRAMS: [&str; 2] = ["minisgld", "minisglctl"];

/// Shells with completions, and what is before and after the program in the file's name.
const SHELLS: [(&str, &str, &str); 3] =
    [("bash", "", ".bash"), ("zsh", "_", ""), ("fish", "", ".fish")];

/// Which packages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Debian, Ubuntu
    Deb,
    /// Fedora, RHEL, SUSE
    Rpm,
    /// Both
    All,
}

/// Builds the programs and packs them; the packages' paths.
///
/// # Errors
/// Something does not build, or a tool is missing.
pub fn run(format: Format, backend: build::Backend) -> Result<Vec<PathBuf>> {
    build::release(backend)?;
    stage()?;
    let mut packages = Vec::new();
    if format != Format::Rpm {
        packages.push(deb(&[])?);
    }
    if format != Format::Deb {
        packages.push(rpm()?);
    }
    Ok(packages)
}

/// Packs the release binaries that are there into a `.deb`, fast and larger than need be.
///
/// # Errors
/// They were not built, or cargo-deb or what it needs is missing.
pub fn deb_of_built() -> Result<PathBuf> {
    stage()?;
    deb(&["--fast"])
}

fn deb(flags: &[&str]) -> Result<PathBuf> {
    let tool = tools::CARGO_DEB.fetch()?;
    let dir = emptied("packages/deb")?;
    let mut command = Command::new(tool);
    command.current_dir(paths::root());
    command.args(["deb", "--no-build", "--locked", "--package", "minisgld", "--compress-system"]);
    command.args(flags);
    command.arg("--output").arg(&dir);
    sh::capture(&mut command, "Debian: apt install xz-utils dpkg-dev")?;
    only_file(&dir)
}

fn rpm() -> Result<PathBuf> {
    let tool = tools::CARGO_GENERATE_RPM.fetch()?;
    let dir = emptied("packages/rpm")?;
    let mut command = Command::new(tool);
    command.current_dir(paths::root());
    command.args(["generate-rpm", "--package", "daemon", "--auto-req", "builtin"]);
    command.arg("--target-dir").arg(paths::target()).arg("--output").arg(&dir);
    sh::run(&mut command, "daemon/Cargo.toml says what is in the package")?;
    only_file(&dir)
}

/// Makes what the programs say about themselves, and the notices.
fn stage() -> Result<()> {
    let dir = emptied("release/package")?;
    let (man, completions) = (dir.join("man"), dir.join("completions"));
    fs::create_dir(&man)?;
    fs::create_dir(&completions)?;
    for program in PROGRAMS {
        let path = build::binary(program);
        sh::run(Command::new(&path).arg("man").arg(&man), "`cargo xtask build` builds it")?;
        for (shell, before, after) in SHELLS {
            let script = sh::capture(Command::new(&path).args(["completions", shell]), "")?;
            ensure!(script.contains(program), "{program}: no completions for {shell}");
            fs::write(completions.join(format!("{before}{program}{after}")), script)?;
        }
    }
    let notices = dir.join("THIRD-PARTY-NOTICES");
    fs::write(&notices, notices::text()?)?;
    // Both kinds of package want such files compressed, and the tools leave that to us.
    let mut gzip = Command::new("gzip");
    gzip.args(["--best", "--no-name", "--recursive"]).arg(&man).arg(&notices);
    sh::run(&mut gzip, "install gzip")
}

/// An empty folder under the build folder.
fn emptied(name: &str) -> Result<PathBuf> {
    let dir = paths::target().join(name);
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("emptying {}", dir.display()))?;
    }
    fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    Ok(dir)
}

fn only_file(dir: &Path) -> Result<PathBuf> {
    let mut files = fs::read_dir(dir)?.map(|entry| Ok(entry?.path()));
    let file: Result<PathBuf> = files.next().context("no package was made")?;
    ensure!(files.next().is_none(), "several packages in {}", dir.display());
    file
}
