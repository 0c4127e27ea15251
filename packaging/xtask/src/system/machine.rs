//! A machine in a folder, booted by systemd-nspawn, and commands in it.
//!
//! Commands enter its namespaces by the process id of its init: neither a systemd on this side nor a bus is
//! needed, so it works where this system was started by something else.
//!
//! Owns: boot, commands, power off. Must never: outlive this process.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::wait_until;

const BOOT_MAX: Duration = Duration::from_secs(90);
const POWER_OFF_MAX: Duration = Duration::from_secs(60);

/// What commands find programs by.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A booted machine; powered off when dropped.
pub struct Machine {
    nspawn: Child,
    /// Its init, as this side counts processes.
    leader: String,
    /// Its files, from this side.
    root: PathBuf,
}

impl Machine {
    /// Boots the system in `root`, with folders of this side at places of its own, read-only.
    ///
    /// # Errors
    /// It does not come up; what it wrote to its console.
    pub fn boot(root: PathBuf, binds: &[(PathBuf, &str)]) -> Result<Self> {
        let console = root.with_extension("console");
        let output = File::create(&console).context("the console's file")?;
        let name = format!("minisgld-test-{}", std::process::id());
        // The signal of the parent's death powers it off.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "systemd-nspawn", "--boot", "--console=pipe"]);
        command.args(["--register=no", "--keep-unit", "--private-network"]);
        command.arg(format!("--machine={name}")).arg("--directory").arg(&root);
        for (from, to) in binds {
            command.arg(format!("--bind-ro={}:{to}", from.display()));
        }
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let nspawn = command.spawn().context("setpriv does not start; apt install util-linux")?;
        let mut machine = Machine { nspawn, leader: String::new(), root };
        machine.wait_for_boot().with_context(|| {
            let said = std::fs::read_to_string(&console).unwrap_or_default();
            format!("systemd-nspawn boots nothing here; it said:\n{said}")
        })?;
        Ok(machine)
    }

    fn wait_for_boot(&mut self) -> Result<()> {
        let id = self.nspawn.id();
        let children = format!("/proc/{id}/task/{id}/children");
        let deadline = Instant::now() + BOOT_MAX;
        loop {
            if let Some(status) = self.nspawn.try_wait()? {
                bail!("it ended ({status})");
            }
            ensure!(Instant::now() < deadline, "not up within {} s", BOOT_MAX.as_secs());
            std::thread::sleep(Duration::from_millis(200));
            let children = std::fs::read_to_string(&children).unwrap_or_default();
            let Some(leader) = children.split_whitespace().find(|pid| is_init(pid)) else {
                continue;
            };
            self.leader = leader.to_owned();
            let up = self.outcome(None, &["systemctl", "is-system-running", "--wait"])?;
            match String::from_utf8_lossy(&up.stdout).trim() {
                "running" => return Ok(()),
                "degraded" => bail!("degraded: {}", self.run(&["systemctl", "--failed"])?),
                _ => {} // its bus is not there yet
            }
        }
    }

    /// A command in the machine, as root or as one of its users.
    pub fn command(&self, user: Option<&str>, args: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.env_clear().env("PATH", PATH).env("LANG", "C.UTF-8").env("HOME", "/root");
        command.env("DEBIAN_FRONTEND", "noninteractive").env("PAGER", "cat");
        command.env("PYTHONPATH", "/srv/python").env("PYTHONDONTWRITEBYTECODE", "1");
        command.args(["--target", &self.leader, "--mount", "--uts", "--ipc", "--net", "--pid"]);
        command.args(["--cgroup", "--"]);
        if let Some(user) = user {
            command.args(["runuser", "-u", user, "--"]);
        }
        command.args(args).stdin(Stdio::null());
        command
    }

    /// Runs it, however it ends.
    pub fn outcome(&self, user: Option<&str>, args: &[&str]) -> Result<Output> {
        self.command(user, args).output().with_context(|| args.join(" "))
    }

    /// Runs it as root; what it wrote on standard output.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        self.run_as(None, args)
    }

    /// Runs it; what it wrote on standard output.
    pub fn run_as(&self, user: Option<&str>, args: &[&str]) -> Result<String> {
        let Output { status, stdout, stderr } = self.outcome(user, args)?;
        let (out, err) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        let who = user.unwrap_or("root");
        ensure!(status.success(), "{who}: `{}` failed ({status}):\n{out}{err}", args.join(" "));
        Ok(out.into_owned())
    }

    /// A property of the service, as `systemctl show` writes it.
    pub fn show(&self, property: &str) -> Result<String> {
        let args = ["systemctl", "show", "minisgld.service", "--value", "--property", property];
        Ok(self.run(&args)?.trim().to_owned())
    }

    /// Waits until the service's line in `systemctl status` is so.
    pub fn wait_for_status(&self, limit: Duration, is_so: impl Fn(&str) -> bool) -> Result<String> {
        let mut last = String::new();
        let waited = wait_until("the status", limit, || {
            last = self.show("StatusText")?;
            Ok(is_so(&last))
        });
        waited.with_context(|| format!("the status is {last:?}"))?;
        Ok(last)
    }

    /// The service's journal.
    pub fn journal(&self) -> String {
        let args = ["journalctl", "--unit=minisgld.service", "--no-pager", "--lines=80"];
        self.run(&args).unwrap_or_else(|error| format!("{error:#}"))
    }

    /// A file of the machine, from this side.
    pub fn path(&self, inside: &str) -> PathBuf {
        self.root.join(inside.trim_start_matches('/'))
    }

    /// Ends it, and says where its files are.
    pub fn keep(&self) -> PathBuf {
        self.root.clone()
    }

    /// Powers it off, and removes its files.
    ///
    /// # Errors
    /// It does not end in order.
    pub fn power_off(mut self) -> Result<()> {
        self.end()?;
        super::remove(&self.root)
    }

    fn end(&mut self) -> Result<()> {
        kill(Pid::from_raw(self.nspawn.id().cast_signed()), Signal::SIGTERM)?;
        let deadline = Instant::now() + POWER_OFF_MAX;
        while self.nspawn.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "the machine does not power off");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

/// Whether this is the first process of a namespace of its own, and an init already: what systemd-nspawn starts
/// on the way there is still on this side, where no command of a test must run.
fn is_init(pid: &str) -> bool {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}"));
    let status = read("status").unwrap_or_default();
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    let is_first = ids.split_whitespace().count() > 1 && ids.split_whitespace().last() == Some("1");
    is_first && read("comm").is_ok_and(|name| name.trim() == "systemd")
}

impl Drop for Machine {
    fn drop(&mut self) {
        if matches!(self.nspawn.try_wait(), Ok(None)) && self.end().is_err() {
            let _ = self.nspawn.kill();
            let _ = self.nspawn.wait();
        }
    }
}
