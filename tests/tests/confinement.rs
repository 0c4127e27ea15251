//! A worker as the kernel sees it: what it gave up once it knew its model, and what it tries in vain.
//!
//! A kernel without Landlock leaves files to nobody; the tests then hold that to what is promised for it, and say so.

#![allow(clippy::unwrap_used)] // Helpers outside of #[test] functions are tests too.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::process::Command;

use landlock::{AccessFs, Ruleset, RulesetAttr, RulesetError, RulesetStatus};
use minisgl_proto::{Device, LoadOptions};
use minisgl_tests::http::Server;
use minisgl_tests::{Daemon, dummy_folder, model_options, paths};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};

/// A daemon with a model on the CPU; the worker's process id.
fn with_worker() -> (Daemon, u32) {
    let daemon = Daemon::start_configured("[log]\nlevel = \"debug\"\n");
    let device = Device::Cpu;
    let options = LoadOptions { dummy_weights: true, device, tp: 1, ..model_options() };
    let pid = daemon.load("dummy", &model(), options).pid.unwrap();
    (daemon, pid)
}

fn model() -> std::path::PathBuf {
    paths::fixture("dummy").join("qwen3")
}

fn status(pid: u32, key: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key).map(str::to_owned));
    line.unwrap_or_else(|| panic!("no {key} in {status}")).trim().to_owned()
}

fn badness(pid: u32) -> i32 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    text.trim().parse().unwrap()
}

/// Whether every thread has a filter, and none of root's powers but one at most.
fn assert_confined(pid: u32) {
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let thread = thread.unwrap().file_name().into_string().unwrap().parse().unwrap();
        let held = (status(thread, "Seccomp:"), status(thread, "NoNewPrivs:"));
        // 2 is a filter, see proc_pid_status(5).
        assert_eq!(held, ("2".into(), "1".into()), "thread {thread}");
        // CAP_DAC_READ_SEARCH is bit 2.
        let held = u64::from_str_radix(&status(thread, "CapEff:"), 16).unwrap();
        assert_eq!(held & !0b100, 0, "thread {thread}");
    }
}

#[test]
fn the_process_that_reads_tokenizer_and_templates_is_confined() {
    let daemon = Daemon::start_configured("[log]\nlevel = \"debug\"\n");
    let device = Device::Cpu;
    let options = LoadOptions { dummy_weights: true, device, tp: 1, ..model_options() };
    daemon.load("m", &dummy_folder("qwen3", &daemon.dir()), options);
    let parent = format!("PPid:\t{}\n", daemon.pid());
    let is_it = |pid: &u32| {
        let of = |file| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        of("cmdline").split('\0').nth(1) == Some("text") && of("status").contains(&parent)
    };
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let mut processes = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let pid = processes.find(is_it).expect("a text process");
    assert_confined(pid);
    assert!(badness(pid) > badness(daemon.pid()));
}

#[test]
fn a_worker_on_the_cpu_is_confined_and_the_daemon_is_not() {
    let (daemon, pid) = with_worker();
    assert_confined(pid);
    assert_eq!(status(daemon.pid(), "Seccomp:"), status(std::process::id(), "Seccomp:"));
    assert!(badness(pid) > badness(daemon.pid()), "the kernel takes it first");
    // The file system's part is not in /proc; the worker says whether the kernel took it.
    let log = daemon.log();
    assert!(log.contains("confined: sockets, signals (seccomp)"), "{log}");
    if has_landlock() {
        assert!(log.contains("confined: files (Landlock)") && !log.contains("not conf"), "{log}");
    } else {
        assert!(log.contains("not confined: files (Landlock): there is no Landlock"), "{log}");
    }
}

/// Whether a thread of this test can give up anything by Landlock: a kernel may have it and not use it, and a container
/// may forbid it.
fn has_landlock() -> bool {
    let give_up = || -> Result<RulesetStatus, RulesetError> {
        let rules = Ruleset::default().handle_access(AccessFs::Execute)?.create()?;
        Ok(rules.restrict_self()?.ruleset)
    };
    let status = std::thread::spawn(give_up).join().unwrap().unwrap();
    let has = status != RulesetStatus::NotEnforced;
    if !has {
        eprintln!("no Landlock here: that workers reach no files but their own was not tried");
    }
    has
}

/// What a worker may do with files where there is no Landlock: read what is everybody's. What of the daemon's is in
/// `/proc` is root's, so only a worker of root's may open it to write.
fn is_open_without_landlock(attempt: &str) -> bool {
    let is_root = nix::unistd::Uid::effective().is_root();
    attempt == "read /etc/passwd" || (is_root && attempt == "change the daemon's badness")
}

/// What came of each attempt of a process of this kind in the worker's process group: whether it was done.
fn attempts(daemon: &Daemon, group: u32, kind: &str) -> BTreeMap<String, Result<String, String>> {
    let Server::Unix(admin) = &daemon.admin else { panic!("the admin API is on a Unix socket") };
    let dir = tempfile::tempdir().unwrap();
    let journal = dir.path().join("journal");
    let _journal = UnixDatagram::bind(&journal).unwrap();
    let name = format!("minisgl-test-{}-{kind}", std::process::id());
    let flags = SockFlag::SOCK_CLOEXEC;
    let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap();
    bind(listener.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes()).unwrap()).unwrap();
    listen(&listener, Backlog::new(8).unwrap()).unwrap();
    let network = TcpListener::bind("127.0.0.1:0").unwrap();
    let output = Command::new(paths::binary("minisgld"))
        .args(["confined", "--as", kind, "--dir"])
        .arg(model())
        .args(["--pid", &daemon.pid().to_string(), "--socket"])
        .arg(admin)
        .arg("--journal")
        .arg(&journal)
        .args(["--abstract-socket", &name])
        .args(["--address", &network.local_addr().unwrap().to_string()])
        .process_group(i32::try_from(group).unwrap())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let attempt = |line: &str| {
        let (name, what) = line.split_once(": ").unwrap();
        let refused = what.strip_prefix("refused: ").map(str::to_owned);
        (name.to_owned(), refused.map_or_else(|| Ok(what.to_owned()), Err))
    };
    said.lines().map(attempt).collect()
}

const FOR_ALL: [&str; 3] = ["read the model", "start a thread", "read its own badness"];

#[test]
fn a_worker_is_no_administrator_and_reaches_nobody() {
    let (daemon, pid) = with_worker();
    let has_landlock = has_landlock();
    for kind in ["cpu", "text"] {
        for (attempt, result) in attempts(&daemon, pid, kind) {
            let is_for_all = FOR_ALL.contains(&attempt.as_str());
            let is_open = !has_landlock && is_open_without_landlock(&attempt);
            assert_eq!(result.is_ok(), is_for_all || is_open, "{kind}: {attempt}: {result:?}");
        }
    }
    let log = daemon.log();
    assert!(!log.contains("opened the admin socket"), "it did not come that far: {log}");
}

#[test]
fn a_worker_on_gpus_keeps_what_its_libraries_need() {
    let (daemon, pid) = with_worker();
    let refused = |kind| -> Vec<String> {
        let all = attempts(&daemon, pid, kind).into_iter();
        all.filter(|(_, result)| result.is_err()).map(|(attempt, _)| attempt).collect()
    };
    for kind in ["gpu", "gpus"] {
        let refused = refused(kind);
        for attempt in [
            "use the admin socket",
            "write to the journal",
            "signal the daemon",
            "start a program",
            "leave its group",
            "leave its session",
        ] {
            assert!(refused.contains(&attempt.to_owned()), "{kind}: {attempt}: {refused:?}");
        }
        let network = refused.contains(&"connect to the network".to_owned());
        assert_eq!(network, kind == "gpu", "NCCL needs it: {refused:?}");
    }
}

#[test]
fn the_daemon_refuses_a_worker_that_nothing_confines() {
    let (daemon, pid) = with_worker();
    let of = |group| attempts(&daemon, group, "none").remove("use the admin socket").unwrap();
    let own = nix::unistd::getpgrp().as_raw();
    let answer = of(u32::try_from(own).unwrap());
    assert_eq!(answer.as_deref(), Ok("done HTTP/1.1 200 OK"), "any other process of this user");
    assert!(of(pid).is_err());
    assert!(daemon.log().contains("opened the admin socket; closed it"));
}
