//! Who may do what: other users on the admin socket.
//!
//! Starts programs as other users, for which it has to be root, as CI is; everybody else is told what was not tried.

#![allow(clippy::unwrap_used)] // Helpers outside of #[test] functions are tests too.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use minisgl_proto::LoadOptions;
use minisgl_tests::{Daemon, model_options, paths};
use nix::unistd::{Gid, Uid};

/// A user without a name.
const STRANGER: u32 = 4_242_424;

/// `minisglctl` as another user; its exit code and its words.
fn ctl_as(daemon: &Daemon, uid: u32, gid: u32, args: &[&str]) -> (i32, String) {
    // Where everybody may run it.
    let program = daemon.dir().join("minisglctl");
    if !program.exists() {
        std::fs::copy(paths::binary("minisglctl"), &program).unwrap();
    }
    let Output { status, stdout, stderr } = Command::new(program)
        .arg("--socket")
        .arg(daemon.dir().join("admin.sock"))
        .args(args)
        .current_dir("/")
        .uid(uid)
        .gid(gid)
        .output()
        .unwrap();
    let said = [stdout, stderr].concat();
    (status.code().unwrap(), String::from_utf8_lossy(&said).into_owned())
}

/// Whoever runs these tests runs the daemon, and is one who may change things.
#[test]
fn the_daemons_own_user_may_load_and_the_log_says_who_did() {
    let daemon = Daemon::start();
    let options = LoadOptions { dummy_weights: true, ..model_options() };
    daemon.load("dummy", &paths::fixture("dummy").join("qwen3"), options);
    assert_eq!(daemon.ctl(&["flush", "dummy"]).status.code(), Some(0));
    let log = daemon.log();
    assert!(log.contains(&format!("uid={}", Uid::effective())), "{log}");
    assert!(log.contains("action=\"flush\" model=\"dummy\""), "{log}");
}

#[test]
fn the_group_reads_listed_users_load_and_strangers_are_refused() {
    if !Uid::effective().is_root() {
        eprintln!("not root: nobody else can be, so other users were not tried");
        return;
    }
    let group = Gid::effective().as_raw();
    let daemon = Daemon::start_configured("[admin]\nadmin_users = [\"4242425\"]\n");
    let dir = daemon.dir();
    std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o755)).unwrap();
    let options = LoadOptions { dummy_weights: true, ..model_options() };
    daemon.load("dummy", &paths::fixture("dummy").join("qwen3"), options);

    // A member of the daemon's group.
    let (code, said) = ctl_as(&daemon, STRANGER, group, &["ps"]);
    assert!(code == 0 && said.contains("dummy"), "{said}");
    assert_eq!(ctl_as(&daemon, STRANGER, group, &["metrics"]).0, 0);
    for args in [&["unload", "dummy"][..], &["flush", "dummy"], &["load", "/no/such/folder"]] {
        let (code, said) = ctl_as(&daemon, STRANGER, group, args);
        assert!(code == 5 && said.contains("user 4242424 may not"), "{args:?}: {code} {said}");
        assert!(said.contains("admin_users"), "{said}");
    }
    // One of the list.
    let (code, said) = ctl_as(&daemon, STRANGER + 1, group, &["flush", "dummy"]);
    assert_eq!(code, 0, "{said}");

    // The kernel keeps all others out, and the daemon does too when somebody opens the file to them.
    let (code, said) = ctl_as(&daemon, STRANGER, STRANGER, &["ps"]);
    assert!(code != 0 && said.contains("admin.sock"), "{code} {said}");
    std::fs::set_permissions(dir.join("admin.sock"), PermissionsExt::from_mode(0o666)).unwrap();
    for args in [&["ps"][..], &["health"], &["metrics"], &["unload", "dummy"]] {
        let (code, said) = ctl_as(&daemon, STRANGER, STRANGER, args);
        assert!(code != 0 && said.contains("4242424 may not"), "{args:?}: {code} {said}");
    }

    let log = daemon.log();
    assert!(log.contains("admin user=\"4242425\" uid=4242425"), "{log}");
    assert!(log.contains("action=\"flush\" model=\"dummy\""), "{log}");
    assert!(log.contains("refused: not allowed user=\"4242424\""), "{log}");
}
