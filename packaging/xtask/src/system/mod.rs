//! `cargo xtask test --system`: the package, installed in a Debian that a real systemd has booted.
//!
//! ```text
//!   target/system/debian-NAME/   debootstrap's, kept, never booted
//!   target/system/machine/       a copy of it, booted by systemd-nspawn; kept when a step fails
//!   target/system/python/        the openai client, for that Debian's Python
//!   target/system/packages/      the .deb, and the same with a higher version
//! ```
//!
//! The machine has no network but its own loopback: whatever it needs is in the package or in debootstrap's list.
//!
//! Owns: what is made before the boot, and the order of the story's steps. Must never: skip a step, or change this
//! system; it needs root for namespaces and mounts.

mod endings;
mod install;
mod machine;
mod packages;
mod rootfs;
mod serving;
mod upgrade;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use self::machine::Machine;
use crate::{model, needs, package, paths, sh};

/// What a step may use.
struct World {
    machine: Machine,
    /// In the machine: the package, and one with a higher version.
    package: String,
    upgrade: String,
    upgrade_version: String,
    /// In the machine: SmolLM2-135M-Instruct.
    model: String,
}

type Step = fn(&World) -> Result<()>;

/// In this order: each begins where the one before ended.
const STORY: [(&str, Step); 14] = [
    ("the package is installed, and its service runs", install::package),
    ("the service starts and says so", install::start),
    ("strangers are refused, members of minisgl may look", serving::access),
    ("a reload changes who may load, and a bad file changes nothing", serving::reload),
    ("a model is loaded, and systemctl status shows how far it is", serving::load),
    ("the openai client gets answers", serving::client),
    ("requests are in the journal, with fields", serving::journal),
    ("configured models are loaded at start", serving::configured),
    ("a hung worker is replaced, and the service stays", endings::hung_worker),
    ("a hung daemon is restarted by the watchdog", endings::hung_daemon),
    ("a stop lets a running stream finish", endings::drain),
    ("a restart refuses no connection", endings::restart),
    ("an upgrade keeps configuration and models", upgrade::upgrade),
    ("removal keeps them, purge leaves nothing", upgrade::purge),
];

/// Tells the whole story of a package, by default one of the release binaries that are there.
///
/// # Errors
/// The step that failed, and what the journal said.
pub fn run(deb: Option<PathBuf>) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return as_root(deb);
    }
    needs::provide(&needs::SYSTEM)?;
    let world = timed("a Debian with the package beside it", || prepare(deb))?;
    for (at, (name, step)) in STORY.iter().enumerate() {
        let title = format!("[{}/{}] {name}", at + 1, STORY.len());
        if let Err(error) = timed(&title, || step(&world)) {
            let journal = world.machine.journal();
            let place = world.machine.keep();
            return Err(error.context(format!(
                "{name}: failed\n--- journal of minisgld.service ---\n{journal}\n---\nthe machine's files: {}",
                place.display()
            )));
        }
    }
    world.machine.power_off()?;
    println!("{} steps passed", STORY.len());
    Ok(())
}

/// The same as root, which then makes nothing that is not below `target/system`: packages and models are this
/// user's.
fn as_root(deb: Option<PathBuf>) -> Result<()> {
    let deb = deb.map_or_else(package::deb_of_built, Ok)?;
    model::fetch(model::Model::SmolLm2)?;
    let mut sudo = Command::new("sudo");
    sudo.args(["-n", "--preserve-env=PATH,CARGO,CARGO_TARGET_DIR"]).arg(std::env::current_exe()?);
    sudo.args(["test", "--system", "--deb"]).arg(deb);
    sh::run(&mut sudo, "booting a machine needs root: a sudo that does not ask, or a root's shell")
}

fn timed<T>(title: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("--> {title}");
    let start = Instant::now();
    let outcome = work();
    println!("    {:.1} s", start.elapsed().as_secs_f64());
    outcome
}

/// Where all of this is.
fn folder() -> PathBuf {
    paths::target().join("system")
}

fn prepare(deb: Option<PathBuf>) -> Result<World> {
    let deb = deb.map_or_else(package::deb_of_built, Ok)?;
    let debian = rootfs::fetch()?;
    let python = rootfs::python_packages(&debian)?;
    let model = model::fetch(model::Model::SmolLm2)?;
    let packages = folder().join("packages");
    let made = packages::prepare(&deb, &packages)?;
    let tests = paths::root().join("tests/python");

    let root = folder().join("machine");
    remove(&root)?;
    let mut copy = Command::new("cp");
    copy.args(["--archive", "--reflink=auto"]).arg(&debian).arg(&root);
    sh::run(&mut copy, "the disk may be full")?;
    let binds = [
        (packages, "/srv/packages"),
        (model, "/srv/models/smollm2"),
        (python, "/srv/python"),
        (tests, "/srv/tests"),
    ];
    let machine = Machine::boot(root, &binds)?;
    let inside = |name: &str| format!("/srv/packages/{name}");
    Ok(World {
        machine,
        package: inside(&made.package),
        upgrade: inside(&made.upgrade),
        upgrade_version: made.upgrade_version,
        model: "/srv/models/smollm2".to_owned(),
    })
}

fn remove(dir: &std::path::Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display()))?;
    }
    Ok(())
}

/// Asks again and again until it is so; after `limit` it never will be.
fn wait_until(what: &str, limit: Duration, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !is_so()? {
        ensure!(Instant::now() < deadline, "{what}: not within {} s", limit.as_secs());
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
