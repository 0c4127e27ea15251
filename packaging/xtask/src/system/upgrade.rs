//! A higher version over a changed configuration; then out with all of it.

use anyhow::{Result, ensure};

use super::World;
use super::serving::{CONFIG, wait_for_model};

/// Stands for a downloaded model.
const DOWNLOADED: &str = "/var/cache/minisgld/hub/models--org--name/refs/main";

/// `apt install` of a higher version. Operator and package have both changed the configuration; the answer to
/// dpkg's question is its default.
pub fn upgrade(world: &World) -> Result<()> {
    let machine = &world.machine;
    let write = format!("mkdir -p $(dirname {DOWNLOADED}) && echo abc > {DOWNLOADED}");
    machine.run(&["runuser", "-u", "minisgld", "--", "sh", "-c", &write])?;
    let config = machine.run(&["cat", CONFIG])?;
    let main = machine.show("MainPID")?;

    let options = ["--yes", "--no-install-recommends", "-o", "Dpkg::Options::=--force-confdef"];
    machine.run(&[&["apt-get", "install"], &options[..], &[&world.upgrade]].concat())?;
    let version = machine.run(&["dpkg-query", "--show", "--showformat=${Version}", "minisgld"])?;
    ensure!(version == world.upgrade_version, "version {version} is installed");
    ensure!(machine.run(&["cat", CONFIG])? == config, "the configuration is another");
    let offered = machine.run(&["cat", &format!("{CONFIG}.dpkg-dist")])?;
    ensure!(offered != config, "dpkg was not asked about the configuration");
    machine.run(&["cat", DOWNLOADED])?;

    wait_for_model(world)?;
    let new = machine.show("MainPID")?;
    ensure!(new != main, "the daemon was not restarted");
    let file = |path: &str| machine.run(&["stat", "--dereference", "--format=%d:%i", path]);
    let (runs, installed) = (file(&format!("/proc/{new}/exe"))?, file("/usr/bin/minisgld")?);
    ensure!(runs == installed, "it runs a program that is no longer installed");
    machine.run(&["systemctl", "is-enabled", "minisgld"])?;
    Ok(())
}

/// `apt remove`, then `apt purge`.
pub fn purge(world: &World) -> Result<()> {
    let machine = &world.machine;
    machine.run(&["apt-get", "remove", "--yes", "minisgld"])?;
    for kept in [CONFIG, DOWNLOADED] {
        machine.run(&["cat", kept])?;
    }
    let gone = machine.outcome(None, &["systemctl", "is-active", "minisgld"])?;
    ensure!(!gone.status.success(), "the service runs without its package");

    machine.run(&["apt-get", "purge", "--yes", "minisgld"])?;
    // /srv is lent from outside; the rest is the machine's.
    let script = "find / -xdev \\( -path /srv -o -path /proc -o -path /sys \\) -prune -o -iname '*minisgl*' -print";
    let left = machine.run(&["sh", "-c", script])?;
    ensure!(left.is_empty(), "left behind:\n{left}");
    let left = machine.run(&["find", "/run", "-xdev", "-iname", "*minisgl*"])?;
    ensure!(left.is_empty(), "left behind:\n{left}");
    for (database, name) in [("passwd", "minisgld"), ("group", "minisgl")] {
        let found = machine.outcome(None, &["getent", database, name])?;
        ensure!(!found.status.success(), "{name} is still in {database}");
    }
    let units = machine.run(&["systemctl", "list-units", "--all", "--no-legend", "minisgld*"])?;
    ensure!(units.trim().is_empty(), "systemd still knows {units}");
    Ok(())
}
