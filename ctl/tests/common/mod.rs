//! A scripted daemon on a Unix socket, and the built `minisglctl` run against it.

#![allow(dead_code)] // each test binary uses its part of this

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::Value;

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Call {
    pub method: String,
    pub path: String,
    pub body: Value,
}

/// What the daemon says to it.
pub struct Reply {
    pub status: u16,
    pub headers: String,
    pub body: String,
    pub end: End,
}

/// How an answer ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    Whole,
    /// The connection closes before the body's end.
    Cut,
    /// Nothing more comes; the daemon logs a call `gone` when the client leaves.
    Hang,
}

impl Reply {
    pub fn json(status: u16, body: &Value) -> Reply {
        Reply { status, headers: String::new(), body: body.to_string(), end: End::Whole }
    }

    pub fn text(body: impl Into<String>) -> Reply {
        Reply { status: 200, headers: String::new(), body: body.into(), end: End::Whole }
    }
}

pub struct Daemon {
    pub socket: PathBuf,
    pub folder: tempfile::TempDir,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl Daemon {
    pub fn start(answer: impl Fn(&Call) -> Reply + Send + Sync + 'static) -> Daemon {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("admin.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (Arc::clone(&calls), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                std::thread::spawn(move || serve(&stream.unwrap(), &log, answer.as_ref()));
            }
        });
        Daemon { socket, folder, calls }
    }

    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    /// `minisglctl` with this daemon's socket, and no trace of the user's own settings.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = ctl(args);
        command.env("MINISGL_SOCKET", &self.socket).env("XDG_STATE_HOME", self.folder.path());
        command
    }

    pub fn run(&self, args: &[&str]) -> Run {
        Run::of(self.command(args).output().unwrap())
    }

    pub fn run_with_input(&self, args: &[&str], input: &str) -> Run {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        Run::of(child.wait_with_output().unwrap())
    }
}

/// The built binary.
pub fn ctl(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_minisglctl"));
    command.args(args).env_remove("MINISGL_SOCKET").env_remove("XDG_RUNTIME_DIR");
    command.stdin(Stdio::null());
    command
}

#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Run {
    pub fn of(output: Output) -> Run {
        Run {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

pub fn serve(stream: &UnixStream, log: &Mutex<Vec<Call>>, answer: &dyn Fn(&Call) -> Reply) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let mut words = line.split(' ').map(str::to_string);
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return };
    let mut bytes = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).unwrap();
        if let Some(length) = header.to_lowercase().strip_prefix("content-length:") {
            bytes = length.trim().parse().unwrap();
        }
        if header.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; bytes];
    reader.read_exact(&mut body).unwrap();
    let body = serde_json::from_slice(&body).unwrap_or_default();
    let call = Call { method, path, body };
    log.lock().unwrap().push(call.clone());
    let Reply { status, headers, body, end } = answer(&call);
    let length = body.len() + usize::from(end != End::Whole);
    // A client may have seen enough and be gone.
    let mut stream = stream;
    let _ = write!(
        stream,
        "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n{headers}Connection: close\r\n\r\n{body}"
    );
    if end == End::Hang {
        let _ = reader.read(&mut [0]);
        log.lock().unwrap().push(Call { method: "gone".to_string(), ..call });
    }
}
