//! From `apt install` to a service that says it is ready.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::World;

/// A member of the group `minisgl`, and somebody who is not.
pub const MEMBER: &str = "member";
pub const STRANGER: &str = "stranger";

/// What a package has to bring beside programs and unit.
const FILES: [&str; 14] = [
    "/usr/lib/systemd/system/minisgld.socket",
    "/usr/share/minisgld/prometheus/minisgld.rules.yml",
    "/usr/share/minisgld/grafana/minisgld.json",
    "/usr/lib/sysusers.d/minisgld.conf",
    "/usr/lib/tmpfiles.d/minisgld.conf",
    "/usr/share/man/man1/minisgld-serve.1.gz",
    "/usr/share/man/man1/minisglctl.1.gz",
    "/usr/share/man/man1/minisglctl-load.1.gz",
    "/usr/share/bash-completion/completions/minisglctl.bash",
    "/usr/share/zsh/vendor-completions/_minisglctl",
    "/usr/share/fish/vendor_completions.d/minisglctl.fish",
    "/usr/share/doc/minisgld/copyright",
    "/usr/share/doc/minisgld/operations.md",
    "/usr/share/doc/minisgld/THIRD-PARTY-NOTICES.gz",
];

/// Installs the package, without a question and without a network.
pub fn package(world: &World) -> Result<()> {
    let machine = &world.machine;
    machine.run(&["apt-get", "install", "--yes", "--no-install-recommends", &world.package])?;
    let listed = machine.run(&["dpkg-query", "--listfiles", "minisgld"])?;
    for file in FILES {
        ensure!(listed.lines().any(|line| line == file), "no {file} in the package:\n{listed}");
    }
    let conffiles =
        machine.run(&["dpkg-query", "--show", "--showformat=${Conffiles}", "minisgld"])?;
    ensure!(conffiles.contains("/etc/minisgld/minisgld.toml"), "no conffile: {conffiles:?}");
    machine.run(&["minisgld", "check-config"])?;

    machine.run(&["systemctl", "is-enabled", "minisgld"])?;
    machine.run(&["systemctl", "is-active", "minisgld"])?;
    let main = machine.show("MainPID")?;
    let user = machine.run(&["stat", "--format=%U:%G", &format!("/proc/{main}")])?;
    ensure!(user.trim() == "minisgld:minisgl", "the daemon runs as {user}");
    for (folder, mode) in [
        ("/var/lib/minisgld", "750 minisgld:minisgl"),
        ("/var/cache/minisgld", "750 minisgld:minisgl"),
        ("/etc/minisgld", "755 root:root"),
    ] {
        let found = machine.run(&["stat", "--format=%a %U:%G", folder])?;
        ensure!(found.trim() == mode, "{folder} is {found}, not {mode}");
    }
    Ok(())
}

/// Stops and starts it, as an operator does.
pub fn start(world: &World) -> Result<()> {
    let machine = &world.machine;
    machine.run(&["systemctl", "stop", "minisgld"])?;
    ensure!(machine.show("Result")? == "success", "it did not stop in order");
    machine.run(&["systemctl", "start", "minisgld"])?;
    // `start` came back, so READY=1 was said, and both sockets listen.
    machine.run(&["minisglctl", "version"])?;
    machine.wait_for_status(Duration::from_secs(5), |status| status == "no model is loaded")?;
    let page = machine.run(&["systemctl", "status", "--no-pager", "minisgld"])?;
    ensure!(page.contains("Status: \"no model is loaded\""), "systemctl status:\n{page}");

    machine.run(&["useradd", "--create-home", "--groups", "minisgl", MEMBER])?;
    machine.run(&["useradd", "--create-home", STRANGER])?;
    Ok(())
}
