//! `minisglctl doctor` against a scripted daemon, and against scripts that stand for `minisgld`.

#![allow(clippy::unwrap_used)] // a test's way to fail

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{Call, Daemon, Reply, Run, ctl};
use minisgl_proto::admin::{AdminError, AdminErrorCode, VersionInfo};
use minisgl_proto::doctor::{DoctorReport, DriverReport, HubReport, MachineReport, Verdict};
use serde_json::{Value, to_value};

fn report(verdict: Verdict) -> DoctorReport {
    let problem = (verdict != Verdict::Ready).then(|| "this and that; install it".to_string());
    DoctorReport {
        version: "9.9.9".into(),
        machine: MachineReport {
            verdict,
            problem,
            driver: DriverReport { version: Some("580.1".into()), ..DriverReport::default() },
            gpus: Vec::new(),
            links: Vec::new(),
            libraries: Vec::new(),
            libraries_folder: None,
        },
        config: None,
        config_error: None,
        hub: HubReport {
            cache: Some("/hub".into()),
            models: 0,
            free_bytes: None,
            endpoint: "https://hub".into(),
            offline: true,
            token: None,
            error: None,
        },
    }
}

fn version() -> Reply {
    let (version, listen) = ("9.9.9".into(), "127.0.0.1:8000".into());
    Reply::json(200, &to_value(VersionInfo { version, pid: 42, uptime_s: 60.0, listen }).unwrap())
}

fn refuse(status: u16, code: AdminErrorCode, message: &str) -> Reply {
    Reply::json(status, &to_value(AdminError { code, message: message.into() }).unwrap())
}

/// `doctor` where no daemon answers, with this script as the only `minisgld` in `PATH`.
fn with_script(script: Option<&str>, args: &[&str]) -> Run {
    let dir = tempfile::tempdir().unwrap();
    if let Some(script) = script {
        put(&dir.path().join("minisgld"), script);
    }
    // A copy of its own: the built program lies beside the built minisgld.
    let own = tempfile::tempdir().unwrap();
    let program = own.path().join("minisglctl");
    std::fs::copy(ctl(&[]).get_program(), &program).unwrap();
    let mut command = std::process::Command::new(program);
    command.arg("doctor").args(args).env("MINISGL_SOCKET", "/no/such/admin.sock");
    command.env("PATH", format!("{}:/usr/bin:/bin", dir.path().display()));
    command.stdin(std::process::Stdio::null());
    Run::of(command.output().unwrap())
}

fn put(path: &Path, script: &str) {
    std::fs::write(path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn the_daemon_is_asked_and_each_verdict_has_its_exit_code() {
    let verdicts = [
        (Verdict::Ready, 0),
        (Verdict::NoBackend, 10),
        (Verdict::NoDriver, 11),
        (Verdict::NoGpu, 12),
        (Verdict::NoLibrary, 13),
    ];
    for (verdict, code) in verdicts {
        let daemon = Daemon::start(move |call: &Call| match call.path.as_str() {
            "/admin/v1/version" => version(),
            "/admin/v1/doctor" => Reply::json(200, &to_value(report(verdict)).unwrap()),
            other => panic!("{other}"),
        });
        let run = daemon.run(&["doctor"]);
        assert_eq!(run.code, code, "{run:?}");
        assert!(run.out.contains("the daemon, minisgld 9.9.9"), "{run:?}");
        assert!(run.out.contains("580.1"), "{run:?}");
        let problem = "minisglctl: no GPU: this and that; install it";
        assert_eq!(run.err.contains(problem), code != 0, "{run:?}");

        let run = daemon.run(&["doctor", "-o", "json"]);
        let value: Value = serde_json::from_str(&run.out).unwrap();
        assert_eq!((run.code, value["daemon"]["pid"].as_u64()), (code, Some(42)));
        assert_eq!(value["report"], to_value(report(verdict)).unwrap());
        assert_eq!(value["asked"], "the daemon");
    }
}

#[test]
fn a_daemon_that_could_not_find_out_has_the_last_word() {
    let daemon = Daemon::start(|call: &Call| match call.path.as_str() {
        "/admin/v1/version" => version(),
        _ => refuse(500, AdminErrorCode::Failed, "the driver may hang"),
    });
    let run = daemon.run(&["doctor"]);
    assert_eq!(run.code, 6, "{run:?}");
    assert!(run.out.contains("9.9.9 on") && run.err.contains("the driver may hang"), "{run:?}");
}

#[test]
fn where_no_daemon_answers_minisgld_is_run() {
    let ready = serde_json::to_string(&report(Verdict::Ready)).unwrap();
    let script = format!("[ \"$1\" = probe ] && echo '{ready}'");
    let run = with_script(Some(&script), &[]);
    assert_eq!(run.code, 0, "{run:?}");
    assert!(run.out.contains("no daemon answers on /no/such/admin.sock"), "{run:?}");
    assert!(run.out.contains("/minisgld, minisgld 9.9.9"), "{run:?}");
    let run = with_script(Some(&script), &["-o", "json"]);
    let value: Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!(value["daemon"], Value::Null);
    assert!(value["daemon_error"].as_str().unwrap().contains("no such socket"));
    assert_eq!(value["report"]["machine"]["verdict"], "ready");
}

#[test]
fn a_minisgld_that_breaks_is_told_with_its_words() {
    let broken = [
        ("echo oh no >&2; exit 3", "oh no"),
        ("kill -SEGV $$", "signal"),
        ("echo hello", "made no report"),
        ("echo '{}'", "is it of version"),
    ];
    for (script, word) in broken {
        let run = with_script(Some(script), &[]);
        assert_eq!(run.code, 6, "{script}: {run:?}");
        assert!(run.err.contains(word), "{script}: {run:?}");
    }
    let run = with_script(None, &[]);
    assert_eq!(run.code, 6, "{run:?}");
    assert!(run.err.contains("no `minisgld` beside this program or in PATH"), "{run:?}");
}

#[test]
fn a_minisgld_that_hangs_is_given_up() {
    let began = Instant::now();
    let run = with_script(Some("exec sleep 600"), &["--timeout", "1"]);
    assert_eq!(run.code, 6, "{run:?}");
    assert!(run.err.contains("no answer in 1 s"), "{run:?}");
    assert!(began.elapsed() < Duration::from_secs(120), "it slept on");
}
