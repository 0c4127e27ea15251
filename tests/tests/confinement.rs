//! A worker as the kernel sees it: what it gave up once it knew its model.

#![allow(clippy::unwrap_used)] // Helpers outside of #[test] functions are tests too.

use minisgl_proto::{Device, LoadOptions};
use minisgl_tests::{Daemon, model_options, paths};

#[test]
fn a_worker_on_the_cpu_is_confined_and_the_daemon_is_not() {
    let daemon = Daemon::start_configured("[log]\nlevel = \"debug\"\n");
    let device = Device::Cpu;
    let options = LoadOptions { dummy_weights: true, device, tp: 1, ..model_options() };
    let model = paths::fixture("dummy").join("qwen3");
    let pid = daemon.load("dummy", &model, options).pid.unwrap();
    let of = |pid: u32, key: &str| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(key).map(str::to_owned));
        line.unwrap_or_else(|| panic!("no {key} in {status}")).trim().to_owned()
    };
    // 2 is a filter, see proc_pid_status(5).
    assert_eq!((of(pid, "Seccomp:"), of(pid, "NoNewPrivs:")), ("2".into(), "1".into()));
    assert_eq!(of(daemon.pid(), "Seccomp:"), of(std::process::id(), "Seccomp:"));
    // The file system's part is not in /proc; the worker says whether the kernel took it.
    let log = daemon.log();
    assert!(log.contains("confined: files (Landlock)") && !log.contains("not confined"), "{log}");
}
