//! The files in systemd/, by systemd's own judgement, and against each other.
//!
//! Needs systemd-analyze, systemd-sysusers and systemd-tmpfiles of systemd 250 or newer; no running systemd.

#![allow(clippy::unwrap_used)] // Helpers outside of #[test] functions are tests too.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use minisgl_tests::paths;

/// Of 10; what systemd-analyze calls "OK" begins below 2.
const EXPOSURE_MAX: f64 = 2.0;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd").join(name).canonicalize().unwrap()
}

fn text(name: &str) -> String {
    std::fs::read_to_string(file(name)).unwrap()
}

/// Runs a tool of systemd; its exit and all it said.
fn run(tool: &str, args: &[&str]) -> (bool, String) {
    let output = Command::new(tool).args(args).output();
    let output = output.unwrap_or_else(|error| {
        panic!("{tool}: {error}; install systemd 250 or newer: apt-get install systemd")
    });
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

/// The unit as installed, but for where the daemon is.
fn installed(dir: &Path, change: impl Fn(String) -> String) -> String {
    let daemon = paths::binary("minisgld").canonicalize().unwrap();
    let unit = text("minisgld.service").replace("/usr/bin/minisgld", daemon.to_str().unwrap());
    let path = dir.join("minisgld.service");
    std::fs::write(&path, change(unit)).unwrap();
    std::fs::copy(file("minisgld.socket"), dir.join("minisgld.socket")).unwrap();
    path.to_str().unwrap().to_owned()
}

fn verify(change: impl Fn(String) -> String) -> (bool, String) {
    let dir = tempfile::tempdir().unwrap();
    let unit = installed(dir.path(), change);
    let socket = unit.replace(".service", ".socket");
    run("systemd-analyze", &["verify", "--man=no", "--recursive-errors=no", &unit, &socket])
}

fn exposure(change: impl Fn(String) -> String) -> f64 {
    let dir = tempfile::tempdir().unwrap();
    let unit = installed(dir.path(), change);
    let (_, said) = run("systemd-analyze", &["security", "--offline=true", "--no-pager", &unit]);
    let overall = said.lines().find(|line| line.contains("Overall exposure level"));
    let number = overall.and_then(|line| line.rsplit(": ").next()?.split(' ').next()?.parse().ok());
    number.unwrap_or_else(|| panic!("no exposure in {said}"))
}

/// The value of a key of the unit that is there once.
fn value(key: &str) -> String {
    let unit = text("minisgld.service");
    let mut values = unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let found = values.next().unwrap_or_else(|| panic!("no {key}= in the unit")).to_owned();
    assert_eq!(values.next(), None, "{key}= is there twice");
    found
}

#[test]
fn systemd_finds_no_fault_in_the_unit() {
    assert_eq!(verify(|unit| unit), (true, String::new()));
    // It does look: a misspelt key is named.
    let (_, said) = verify(|unit| unit.replace("KillMode=", "KillMood="));
    assert!(said.contains("KillMood"), "{said}");
}

#[test]
fn the_unit_is_shut_as_far_as_a_gpu_allows() {
    let level = exposure(|unit| unit);
    assert!(level <= EXPOSURE_MAX, "the exposure is {level}, above {EXPOSURE_MAX}");
    let open = exposure(|unit| unit.replace("CapabilityBoundingSet=\n", ""));
    assert!(open > EXPOSURE_MAX, "{open} with every capability: nothing was measured");
    // What would shut out the GPUs, or half of /proc; the unit says why beside each.
    let unit = text("minisgld.service");
    for key in ["PrivateDevices", "ProcSubset", "MemoryDenyWriteExecute"] {
        assert!(!unit.lines().any(|line| line.starts_with(key)), "{key}= forbids CUDA");
        assert!(unit.contains(&format!("# Not set: {key}=")), "{key}=: no word on why not");
    }
}

#[test]
fn the_user_and_the_folders_are_those_of_the_unit() {
    let (user, group) = (value("User"), value("Group"));
    let root = tempfile::tempdir().unwrap();
    let root_arg = format!("--root={}", root.path().to_str().unwrap());
    let sysusers = file("minisgld.sysusers");
    let (done, said) =
        run("systemd-sysusers", &["--dry-run", &root_arg, sysusers.to_str().unwrap()]);
    assert!(done, "{said}");
    for created in [format!("group '{group}'"), format!("user '{user}'")] {
        assert!(said.contains(&created), "no {created} in {said}");
    }
    assert!(text("minisgld.sysusers").contains(&format!("u {user} -:{group} ")));

    // Made for good under `root`, where both names are ours, so that nobody needs to be root.
    let data = std::fs::metadata(root.path()).unwrap();
    let (uid, gid) = (data.uid(), data.gid());
    let etc = root.path().join("etc");
    std::fs::create_dir(&etc).unwrap();
    std::fs::write(etc.join("passwd"), format!("{user}:x:{uid}:{gid}::/:/bin/false\n")).unwrap();
    std::fs::write(etc.join("group"), format!("{group}:x:{gid}:\n")).unwrap();
    let tmpfiles = file("minisgld.tmpfiles");
    let args = ["--create", &root_arg, tmpfiles.to_str().unwrap()];
    assert_eq!(run("systemd-tmpfiles", &args), (true, String::new()));
    for (place, key, mode) in [
        ("etc", "ConfigurationDirectory", "0755".to_owned()),
        ("run", "RuntimeDirectory", "0755".to_owned()),
        ("var/lib", "StateDirectory", value("StateDirectoryMode")),
        ("var/cache", "CacheDirectory", value("CacheDirectoryMode")),
    ] {
        let data = std::fs::metadata(root.path().join(place).join(value(key))).unwrap();
        assert_eq!(format!("{:04o}", data.mode() & 0o7777), mode, "{key}");
    }
}

#[test]
fn the_socket_unit_makes_the_daemons_own_socket() {
    let unit = text("minisgld.socket");
    for line in [
        format!("ListenStream=/run/{}/admin.sock", value("RuntimeDirectory")),
        format!("SocketUser={}", value("User")),
        format!("SocketGroup={}", value("Group")),
        "SocketMode=0660".to_owned(),
    ] {
        assert!(unit.lines().any(|there| there == line), "no {line} in minisgld.socket");
    }
    // Else a stop of the service would remove the socket's folder.
    assert_eq!(value("RuntimeDirectoryPreserve"), "yes");
    assert!(value("FileDescriptorStoreMax").parse::<u32>().unwrap() >= 1);
}

#[test]
fn the_socket_is_in_the_folder_that_systemd_makes() {
    let folder = format!("/run/{}", value("RuntimeDirectory"));
    let output = Command::new(paths::binary("minisgld"))
        .args(["check-config", "--config", "/dev/null"])
        .env("RUNTIME_DIRECTORY", &folder)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains(&format!("admin socket {folder}/admin.sock")), "{said}");
}

/// The default of a key, from the configuration that is shipped.
fn default(key: &str) -> f64 {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/minisgld.toml");
    let shipped = std::fs::read_to_string(path).unwrap();
    let line = format!("#{key} = ");
    let found = shipped.lines().find_map(|text| text.strip_prefix(&line)?.parse().ok());
    found.unwrap_or_else(|| panic!("no {key} in the shipped configuration"))
}

#[test]
fn the_limits_of_the_unit_are_above_those_of_the_daemon() {
    let number = |key| value(key).parse::<f64>().unwrap();
    // Drain, SIGTERM's grace of a worker, last bytes; docs/operations.md says 6 s.
    assert!(number("TimeoutStopSec") > default("drain_s") + 6.0);
    // The admin socket has two times 2048.
    assert!(number("LimitNOFILE") > default("connections_max") + 4096.0);
    // A worker is 3 s from SIGTERM to SIGKILL, and a look at the registry 1 s from the next.
    assert!(number("WatchdogSec") >= 10.0);
}
