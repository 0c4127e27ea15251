//! Programs of other projects that make packages: built from crates.io, once, into `target/tools`.
//!
//! Owns: their versions. Must never: install anything for the user.

use std::path::PathBuf;

use anyhow::Result;

use crate::{paths, sh};

/// A program of crates.io, pinned: a new version is looked at, not stumbled over.
#[derive(Clone, Copy, Debug)]
pub struct Tool {
    /// Crate and program.
    pub name: &'static str,
    version: &'static str,
    /// Flags of `cargo install`.
    flags: &'static [&'static str],
}

/// Makes the `.deb`. Without its own compressor: `xz` is used.
pub const CARGO_DEB: Tool =
    Tool { name: "cargo-deb", version: "3.8.0", flags: &["--no-default-features"] };

/// Makes the `.rpm`.
pub const CARGO_GENERATE_RPM: Tool =
    Tool { name: "cargo-generate-rpm", version: "0.21.1", flags: &[] };

impl Tool {
    /// The program, built if need be.
    ///
    /// # Errors
    /// It cannot be fetched or built.
    pub fn fetch(self) -> Result<PathBuf> {
        let Tool { name, version, flags } = self;
        let dir = paths::tools().join(format!("{name}-{version}"));
        // `cargo install` puts the program there when all is done.
        let program = dir.join("bin").join(name);
        if program.exists() {
            return Ok(program);
        }
        eprintln!("building {name} {version} from crates.io");
        let mut command = sh::cargo();
        command.args(["install", "--locked", "--quiet", "--force", name, "--version", version]);
        command.arg("--root").arg(&dir).args(flags);
        // It runs for seconds: what optimising takes longer is never won back.
        command.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1").env("CARGO_PROFILE_RELEASE_LTO", "off");
        command.env_remove("CARGO_TARGET_DIR");
        sh::run(&mut command, "access to crates.io is needed to build it")?;
        Ok(program)
    }
}
