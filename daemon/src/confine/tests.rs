use std::fs::File;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::{UnixDatagram, UnixStream};

use landlock::{AccessFs, Ruleset, RulesetAttr, RulesetStatus};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getppid, setpgid, setsid};

use super::*;

fn refused<T>(result: io::Result<T>) -> bool {
    result.map(drop).map_err(|error| error.kind()) == Err(ErrorKind::PermissionDenied)
}

fn is_refused<T>(result: nix::Result<T>) -> bool {
    refused(result.map_err(io::Error::from))
}

/// Runs `inside` where `confine` was called: a thread's rules are its own and its children's.
fn confined(confine: impl FnOnce() + Send, inside: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            confine();
            std::thread::scope(|scope| scope.spawn(inside).join()).unwrap();
        });
        thread.join().unwrap();
    });
}

fn listeners() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Whether a thread can give up anything by Landlock.
fn has_landlock() -> bool {
    let give_up = || {
        let rules = Ruleset::default().handle_access(AccessFs::Execute).unwrap().create().unwrap();
        rules.restrict_self().unwrap().ruleset
    };
    std::thread::spawn(give_up).join().unwrap() != RulesetStatus::NotEnforced
}

#[test]
fn a_confined_thread_reads_its_model_and_finds_no_secrets() {
    let has_landlock = has_landlock();
    if !has_landlock {
        eprintln!(
            "no Landlock here: what a thread reads and writes beside its model was not tried"
        );
    }
    let dir = tempfile::tempdir().unwrap();
    let (model, blobs) = (dir.path().join("model"), dir.path().join("blobs"));
    std::fs::create_dir(&model).unwrap();
    std::fs::create_dir(&blobs).unwrap();
    let files = [
        model.join("config.json"),
        blobs.join("weights"),
        blobs.join("template"),
        blobs.join("other"),
    ];
    for file in files {
        std::fs::write(file, "x").unwrap();
    }
    std::os::unix::fs::symlink("../blobs/weights", model.join("model.safetensors")).unwrap();
    let templates = model.join("additional_chat_templates");
    std::fs::create_dir(&templates).unwrap();
    let template = templates.join("tool_use.jinja");
    std::os::unix::fs::symlink("../../blobs/template", &template).unwrap();
    assert!(File::open("/etc/passwd").is_ok());
    for kind in [cpu, text, |dir: &Path| gpus(dir, 1)] {
        confined(
            || kind(&model),
            || {
                assert!(File::open(model.join("config.json")).is_ok());
                assert!(File::open(model.join("model.safetensors")).is_ok(), "where a link leads");
                assert!(File::open(&template).is_ok(), "in a folder, too");
                assert!(std::fs::read_to_string("/proc/meminfo").is_ok());
                assert!(std::fs::write("/dev/null", "x").is_ok());
                if !has_landlock {
                    return;
                }
                assert!(refused(File::open("/etc/passwd")));
                assert!(refused(File::open(blobs.join("other"))));
                assert!(refused(std::fs::write(model.join("config.json"), "y")));
                assert!(refused(std::fs::write(model.join("new"), "y")));
                assert!(refused(File::options().write(true).open("/proc/self/oom_score_adj")));
            },
        );
    }
    assert!(File::open("/etc/passwd").is_ok(), "the others are as they were");
}

#[test]
fn without_landlock_there_are_no_sockets_programs_and_signals_either() {
    let (_listener, address) = listeners();
    let none = || calls::restrict(Sockets::None).unwrap();
    confined(none, || {
        assert!(refused(TcpStream::connect(address)));
        assert!(refused(UdpSocket::bind("127.0.0.1:0")));
        assert!(refused(UnixStream::pair()));
        assert!(refused(UnixDatagram::unbound()));
        assert!(refused(std::process::Command::new("/bin/true").status()));
        assert!(is_refused(kill(getppid(), None)));
        assert!(is_refused(kill(Pid::from_raw(0), None)), "its group");
        assert!(is_refused(kill(Pid::from_raw(-1), None)), "everybody");
        assert!(is_refused(setpgid(Pid::from_raw(0), Pid::from_raw(0))));
        assert!(is_refused(setsid()));
        assert!(kill(Pid::this(), None).is_ok());
        // The process may end itself, and have threads with names.
        nix::sys::signal::raise(Signal::SIGCONT).unwrap();
        std::thread::Builder::new().name("x".into()).spawn(|| ()).unwrap().join().unwrap();
    });
}

#[test]
fn a_driver_has_its_own_sockets_and_reaches_none() {
    let dir = tempfile::tempdir().unwrap();
    let (_listener, address) = listeners();
    let path = dir.path().join("journal");
    let journal = UnixDatagram::bind(&path).unwrap();
    journal.set_nonblocking(true).unwrap();
    let driver = |connect| move || calls::restrict(Sockets::Driver { connect }).unwrap();
    for mps in [false, true] {
        confined(driver(mps), || {
            assert!(refused(TcpStream::connect(address)));
            assert!(refused(UnixDatagram::unbound()));
            assert!(refused(UnixDatagram::pair()), "each end may send to anybody");
            assert!(refused(UnixStream::connect(&path)));
            assert!(UnixStream::pair().is_ok());
            assert!(refused(std::process::Command::new("/bin/true").status()));
            assert!(is_refused(kill(getppid(), None)));
        });
    }
    confined(
        || calls::restrict(Sockets::Ranks).unwrap(),
        || {
            let mut stream = TcpStream::connect(address).unwrap();
            assert!(io::Write::write_all(&mut stream, b"x").is_ok());
            let datagrams = UnixDatagram::unbound().unwrap();
            assert!(refused(datagrams.send_to(b"MESSAGE=x", &path)));
            assert!(refused(datagrams.connect(&path)));
            assert!(refused(UnixStream::connect(&path)), "no stream, as the admin socket is");
            assert!(refused(std::process::Command::new("/bin/true").status()));
            assert!(is_refused(kill(getppid(), None)));
            assert!(is_refused(setsid()));
        },
    );
}

#[test]
fn whether_files_are_confined_is_said() {
    let has_landlock = has_landlock();
    let dir = tempfile::tempdir().unwrap();
    let restricted = std::thread::scope(|scope| {
        scope.spawn(|| Files::of_model(dir.path()).restrict()).join().unwrap()
    });
    match restricted {
        Ok(()) => assert!(has_landlock),
        Err(why) => assert!(!has_landlock && why.contains("there is no Landlock"), "{why}"),
    }
}
