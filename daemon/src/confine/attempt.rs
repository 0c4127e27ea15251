//! `minisgld confined`: confines itself as a child of the daemon is, tries what such a child must not be able to do,
//! and says what came of it, a line each. For tests, and for whoever wants to know it of their kernel.
//!
//! Owns: the attempts. Must never: harm anybody where one of them succeeds.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use clap::{Args, ValueEnum};
use nix::sys::signal::kill;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::unistd::{Pid, setpgid, setsid};

/// Time that an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Which child.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Kind {
    /// Not confined at all.
    None,
    /// Reads tokenizers and templates.
    Text,
    /// A worker on the CPU.
    Cpu,
    /// A worker on one GPU.
    Gpu,
    /// A worker on several GPUs.
    Gpus,
}

/// What is tried on what.
#[derive(Debug, Args)]
pub struct AttemptArgs {
    /// As which child of the daemon it confines itself
    #[arg(long = "as", value_name = "KIND")]
    kind: Kind,
    /// The model's folder
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Process id of the daemon
    #[arg(long)]
    pid: i32,
    /// The daemon's admin socket
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// A datagram socket, such as the journal's
    #[arg(long, value_name = "PATH")]
    journal: PathBuf,
    /// Name of an abstract SOCK_SEQPACKET socket
    #[arg(long, value_name = "NAME")]
    abstract_socket: String,
    /// An address of the network that is listened on
    #[arg(long, value_name = "ADDR:PORT")]
    address: SocketAddr,
}

/// Confines this process and prints `NAME: done` or `NAME: refused: WHY` for each attempt.
///
/// # Errors
/// Nothing can be printed.
pub fn attempt(args: &AttemptArgs) -> anyhow::Result<()> {
    match args.kind {
        Kind::None => {}
        Kind::Text => super::text(&args.dir),
        Kind::Cpu => {
            super::say("volunteer", super::process::volunteer());
            super::cpu(&args.dir);
        }
        Kind::Gpu => super::gpus(&args.dir, 1),
        Kind::Gpus => super::gpus(&args.dir, 2),
    }
    let daemon = Pid::from_raw(args.pid);
    let of_daemon = |file: &str| format!("/proc/{}/{file}", args.pid);
    let attempts: [(&str, &dyn Fn() -> io::Result<String>); 14] = [
        ("read the model", &|| read(&args.dir.join("config.json"))),
        ("start a thread", &|| {
            let thread = std::thread::Builder::new().name("attempt".into()).spawn(|| {})?;
            thread.join().map(|()| String::new()).map_err(|_| io::Error::other("it panicked"))
        }),
        ("read its own badness", &|| std::fs::read_to_string("/proc/self/oom_score_adj")),
        ("use the admin socket", &|| ask(&args.socket)),
        ("connect to an abstract socket", &|| connect_to(&args.abstract_socket)),
        ("write to the journal", &|| {
            let sent = UnixDatagram::unbound()?.send_to(b"MESSAGE=an attempt", &args.journal);
            sent.map(|_| String::new())
        }),
        ("connect to the network", &|| {
            TcpStream::connect_timeout(&args.address, ANSWER_MAX).map(|_| String::new())
        }),
        ("signal the daemon", &|| done(kill(daemon, None))),
        ("read the daemon's environment", &|| read(&of_daemon("environ").into())),
        ("change the daemon's badness", &|| {
            OpenOptions::new().write(true).open(of_daemon("oom_score_adj")).map(|_| String::new())
        }),
        ("start a program", &|| Command::new("/bin/true").status().map(|end| end.to_string())),
        ("read /etc/passwd", &|| read(&"/etc/passwd".into())),
        ("leave its group", &|| done(setpgid(Pid::from_raw(0), Pid::from_raw(0)))),
        ("leave its session", &|| done(setsid().map(drop))),
    ];
    let mut out = io::stdout();
    for (name, attempt) in attempts {
        match attempt() {
            Ok(said) => writeln!(out, "{name}: done {}", said.trim())?,
            Err(error) => writeln!(out, "{name}: refused: {error}")?,
        }
    }
    Ok(())
}

fn done(result: nix::Result<()>) -> io::Result<String> {
    Ok(result.map(|()| String::new())?)
}

/// Whether it can be read; not what is in it.
fn read(path: &PathBuf) -> io::Result<String> {
    File::open(path)?.read(&mut [0; 16]).map(|_| String::new())
}

/// The status line that the admin socket answers with.
fn ask(path: &PathBuf) -> io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    stream.write_all(b"GET /admin/v1/version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.lines().next() {
        Some(line) => Ok(line.to_owned()),
        None => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "closed without an answer")),
    }
}

fn connect_to(name: &str) -> io::Result<String> {
    let address = UnixAddr::new_abstract(name.as_bytes())?;
    let kind = SockType::SeqPacket;
    let socket = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None)?;
    done(connect(socket.as_raw_fd(), &address))
}
