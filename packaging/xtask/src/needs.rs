//! What the tests need of the machine, looked for before anything compiles.
//!
//! Owns: the programs of others that tests start, and the ways to one: Debian's package where this is root, else into
//! `target/` without a trace elsewhere, else one line that says what to install. Must never: ask for a
//! password, or start a service.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::model::{folder, npm};
use crate::{node, paths, python, sh};

/// A program that is not the project's own.
pub struct Need {
    /// For people.
    name: &'static str,
    is_there: fn() -> bool,
    /// Debian's packages, words with spaces between.
    debian: &'static str,
    /// Brings it into `target/`, before Debian's packages are thought of.
    fetch: Option<fn() -> Result<()>>,
}

const fn installed(name: &'static str, is_there: fn() -> bool, debian: &'static str) -> Need {
    Need { name, is_there, debian, fetch: None }
}

const fn fetched(
    name: &'static str,
    is_there: fn() -> bool,
    debian: &'static str,
    fetch: fn() -> Result<()>,
) -> Need {
    Need { name, is_there, debian, fetch: Some(fetch) }
}

/// Of `cargo xtask test`. Of what can be fetched, what it is fetched with comes first.
pub const TEST: [Need; 7] = [
    fetched("rustfmt and clippy", has_lints, "rustfmt rust-clippy", fetch_lints),
    installed("a C and C++ compiler", || runs(&["cc", "c++"]), "build-essential"),
    installed("Python 3 with pip", python::has_pip, "python3 python3-pip"),
    fetched("Python's venv", python::can_make_venvs, "python3-venv", python::fetch_virtualenv),
    fetched("npm", npm::is_there, "npm", npm::fetch_npm),
    fetched("Prometheus", has_prometheus, "prometheus", fetch_prometheus),
    installed(
        "systemd's tools",
        || runs(&["systemd-analyze", "systemd-sysusers", "systemd-tmpfiles"]),
        "systemd",
    ),
];

/// Of `cargo xtask test --system`, besides.
pub const SYSTEM: [Need; 5] = [
    installed("debootstrap", || runs(&["debootstrap"]), "debootstrap"),
    installed("systemd-nspawn", || runs(&["systemd-nspawn"]), "systemd-container"),
    installed("nsenter", || runs(&["nsenter"]), "util-linux"),
    installed("dpkg's tools", || runs(&["dpkg-deb", "dpkg-shlibdeps"]), "dpkg dpkg-dev"),
    installed("xz", || runs(&["xz"]), "xz-utils"),
];

fn runs(programs: &[&str]) -> bool {
    programs.iter().all(|program| sh::has(program))
}

/// Sees to it that all of `needs` are there.
///
/// # Errors
/// One line of what is missing and what to install.
pub fn provide(needs: &[Need]) -> Result<()> {
    provide_with(needs, nix::unistd::geteuid().is_root() && sh::has("apt-get"))
}

fn provide_with(needs: &[Need], may_install: bool) -> Result<()> {
    let mut missing: Vec<&Need> = needs.iter().filter(|need| !(need.is_there)()).collect();
    if may_install {
        let installed = missing.iter().filter(|need| need.fetch.is_none());
        let packages: Vec<&str> = installed.flat_map(|need| need.debian.split(' ')).collect();
        install(&packages)?;
    }
    for need in &missing {
        let Some(fetch) = need.fetch else { continue };
        println!("fetching {} into {}", need.name, paths::tools().display());
        if let Err(error) = fetch() {
            eprintln!("{} cannot be fetched: {error:#}", need.name);
        }
    }
    missing.retain(|need| !(need.is_there)());
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|need| need.name).collect();
    let packages: Vec<&str> = missing.iter().map(|need| need.debian).collect();
    bail!("missing: {}; Debian: apt install {}", names.join(", "), packages.join(" "))
}

/// As root, on a Debian.
fn install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    println!("installing {}", packages.join(" "));
    let apt = || {
        let mut apt = Command::new("apt-get");
        apt.arg("-qq").env("DEBIAN_FRONTEND", "noninteractive");
        apt
    };
    let remedy = "access to Debian's packages is needed";
    sh::run(apt().arg("update"), remedy)?;
    sh::run(apt().args(["install", "-y", "--no-install-recommends"]).args(packages), remedy)
}

/// Tells the end-to-end tests where the release binaries, the models and other people's clients are.
pub fn with_environment(command: &mut Command) -> Result<&mut Command> {
    Ok(command
        .env("MINISGL_NODE_DIR", node::programs()?)
        .env("MINISGL_NPM_DIR", node::dir())
        .env("MINISGL_VENVS_DIR", paths::target())
        .env("MINISGL_BIN_DIR", paths::target().join("release"))
        .env("MINISGL_MODELS_DIR", paths::models())
        .env("PATH", path())
        .env("MINISGL_PYTHON", python::CLIENT.python().context("the Python client")?)
        .env("MINISGL_CLIENTS_PYTHON", python::CLIENTS.python().context("Python's other clients")?)
        .env("MINISGL_LM_EVAL_PYTHON", python::LM_EVAL.python().context("lm-eval")?))
}

fn has_lints() -> bool {
    sh::has_cargo("fmt") && sh::has_cargo("clippy")
}

fn fetch_lints() -> Result<()> {
    let mut rustup = Command::new("rustup");
    sh::run(rustup.args(["component", "add", "rustfmt", "clippy"]), "rustup has them")
}

fn prometheus() -> PathBuf {
    paths::tools().join("prometheus")
}

/// What children find programs by: those that were fetched, then the machine's.
pub fn path() -> OsString {
    let machine = std::env::var_os("PATH").unwrap_or_default();
    let own = prometheus().join("bin");
    let all = std::iter::once(own).chain(std::env::split_paths(&machine));
    // A folder's name with a colon cannot be in a PATH.
    std::env::join_paths(all).unwrap_or(machine)
}

fn has_prometheus() -> bool {
    ["prometheus", "promtool"].iter().all(|program| {
        let found = Command::new(program).env("PATH", path()).arg("--version").output();
        found.is_ok_and(|output| output.status.success())
    })
}

/// Debian's package, unpacked and not installed: that would start a service. Nobody needs to be root.
fn fetch_prometheus() -> Result<()> {
    let remedy = "Debian's packages can be had on a Debian or Ubuntu";
    folder::publish(&prometheus(), "prometheus", |dir| {
        let apt = folder::Scratch::beside(&dir.join("apt"))?;
        let place = |name: &str| -> Result<PathBuf> {
            let place = apt.0.join(name);
            fs::create_dir_all(place.join("partial"))
                .with_context(|| place.display().to_string())?;
            Ok(place)
        };
        // Lists of packages of its own: the machine's may not be there, and are root's.
        let option = |key: &str, value: &std::path::Path| format!("{key}={}", value.display());
        let lists = option("Dir::State::Lists", &place("lists")?);
        let cache = option("Dir::Cache", &place("cache")?);
        let run = |command: &str, what: &[&str]| {
            let mut apt_get = Command::new("apt-get");
            apt_get.current_dir(&apt.0).args(["-qq", "-o", &lists, "-o", &cache]);
            apt_get.args(["-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User="]);
            sh::capture(apt_get.arg(command).args(what), remedy)
        };
        run("update", &[])?;
        run("download", &["prometheus"])?;
        let files = fs::read_dir(&apt.0)?.map(|entry| Ok(entry?.path()));
        let files: Vec<PathBuf> = files.collect::<Result<_>>()?;
        let package = files.iter().find(|path| path.extension().is_some_and(|end| end == "deb"));
        let package = package.context("apt-get downloaded nothing")?;
        let tree = apt.0.join("tree");
        sh::capture(Command::new("dpkg-deb").arg("-x").arg(package).arg(&tree), remedy)?;
        // Both programs, without the pages that they serve.
        fs::rename(tree.join("usr/bin"), dir.join("bin"))
            .context("Debian's package has other folders")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_one_line_and_what_fails_to_be_fetched_is_missing() {
        let needs = [
            installed("this", || true, "this"),
            installed("a harp", || false, "harp"),
            fetched("a lyre", || false, "lyre", || bail!("no network")),
        ];
        let told = provide_with(&needs, false).unwrap_err().to_string();
        assert_eq!(told, "missing: a harp, a lyre; Debian: apt install harp lyre");
        assert!(provide_with(&needs[..1], false).is_ok());
    }

    #[test]
    fn what_was_fetched_comes_before_the_machines() {
        let first = std::env::split_paths(&path()).next().unwrap();
        assert_eq!(first, prometheus().join("bin"));
    }
}
