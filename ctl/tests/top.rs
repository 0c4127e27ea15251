//! `top` on a real terminal: what it draws, and that it gives the terminal back.

#![allow(clippy::unwrap_used)] // a test's way to fail

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use common::{Call, Daemon, Reply};
use nix::pty::Winsize;
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;
use serde_json::json;

const MODELS: &str = include_str!("data/top/models.json");
const METRICS: &str = include_str!("data/top/now.txt");
const PATIENCE: Duration = Duration::from_secs(120);
const LEAVE_ALTERNATE_SCREEN: &str = "\x1b[?1049l";

fn answer(call: &Call) -> Reply {
    match call.path.as_str() {
        "/admin/v1/version" => Reply::json(
            200,
            &json!({"version": "9.9.9", "pid": 42, "uptime_s": 10.0, "listen": "127.0.0.1:8000"}),
        ),
        "/admin/v1/models" => Reply::text(MODELS),
        "/metrics" => Reply::text(METRICS),
        other => panic!("{other}"),
    }
}

/// `top` on a terminal of 80 by 24.
struct Terminal {
    child: Child,
    keys: File,
    /// Kept open, and to look at the terminal's state.
    own_end: std::os::fd::OwnedFd,
    drawn: Receiver<Vec<u8>>,
    seen: String,
}

impl Terminal {
    fn start(daemon: &Daemon) -> Terminal {
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = nix::pty::openpty(&size, None).unwrap();
        let end = || Stdio::from(pty.slave.try_clone().unwrap());
        let mut command = daemon.command(&["top"]);
        let child = command.env("TERM", "xterm").stdin(end()).stdout(end()).stderr(end());
        let child = child.spawn().unwrap();
        let keys = File::from(pty.master);
        let mut output = keys.try_clone().unwrap();
        let (sender, drawn) = mpsc::channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count) = output.read(&mut bytes) {
                if count == 0 || sender.send(bytes[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Terminal { child, keys, own_end: pty.slave, drawn, seen: String::new() }
    }

    /// Reads until this was drawn.
    fn until(&mut self, words: &str) {
        let began = Instant::now();
        while !self.seen.contains(words) {
            let left = PATIENCE.saturating_sub(began.elapsed());
            let bytes = self.drawn.recv_timeout(left);
            let bytes = bytes.unwrap_or_else(|_| panic!("{words:?} is not in {:?}", self.seen));
            self.seen.push_str(&String::from_utf8_lossy(&bytes));
        }
    }

    fn is_raw(&self) -> bool {
        let state = tcgetattr(&self.own_end).unwrap();
        !state.local_flags.contains(LocalFlags::ICANON | LocalFlags::ECHO)
    }

    /// How it ended, and that it left the terminal as it was.
    fn end(mut self) -> ExitStatus {
        self.until(LEAVE_ALTERNATE_SCREEN);
        let status = self.child.wait().unwrap();
        assert!(!self.is_raw(), "the terminal is still raw");
        status
    }
}

#[test]
fn q_quits_and_the_terminal_is_as_before() {
    let daemon = Daemon::start(answer);
    let mut terminal = Terminal::start(&daemon);
    terminal.until("smollm2");
    terminal.until("Stand-in");
    assert!(terminal.is_raw());
    terminal.keys.write_all(b"j\x1b[B").unwrap(); // scrolls
    terminal.keys.write_all(b"q").unwrap();
    assert_eq!(terminal.end().code(), Some(0));
}

#[test]
fn signals_and_control_c_give_the_terminal_back() {
    let daemon = Daemon::start(answer);
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let mut terminal = Terminal::start(&daemon);
        terminal.until("smollm2");
        kill(Pid::from_raw(terminal.child.id() as i32), signal).unwrap();
        let status = terminal.end();
        assert_eq!((status.code(), status.signal()), (Some(0), None), "{signal}");
    }
    let mut terminal = Terminal::start(&daemon);
    terminal.until("smollm2");
    terminal.keys.write_all(b"\x03").unwrap();
    assert_eq!(terminal.end().code(), Some(0));
}

#[test]
fn a_daemon_that_goes_away_is_told_of_and_waited_for() {
    let daemon = Daemon::start(answer);
    let mut terminal = Terminal::start(&daemon);
    terminal.until("smollm2");
    let (socket, away) = (daemon.socket.clone(), daemon.folder.path().join("away"));
    std::fs::rename(&socket, &away).unwrap();
    terminal.until("no daemon answers");
    std::fs::rename(&away, &socket).unwrap();
    terminal.seen.clear();
    terminal.until("quits");
    terminal.keys.write_all(b"q").unwrap();
    assert_eq!(terminal.end().code(), Some(0));
}

#[test]
fn without_a_terminal_it_says_what_to_do() {
    let daemon = Daemon::start(answer);
    let run = daemon.run(&["top"]);
    assert_eq!(run.code, 2, "{run:?}");
    assert!(run.err.contains("--once"), "{run:?}");
    let run = daemon.run(&["top", "--once"]);
    assert_eq!(run.code, 0, "{run:?}");
    assert!(run.out.starts_with("minisgld 9.9.9  up 10s"), "{run:?}");
    assert!(run.out.contains("\nsmollm2 "), "{run:?}");
    assert!(run.out.lines().all(|line| line.chars().count() <= 80), "{run:?}");
    assert_eq!(daemon.run(&["top", "--once", "--width", "7"]).code, 2);
    assert_eq!(
        common::ctl(&["top", "--once", "--socket", "/nonexistent"]).output().unwrap().status.code(),
        Some(3)
    );
}
