//! `cargo xtask demo`: from a clone to a streamed answer.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{build, model, paths, sh};

const NAME: &str = "smollm2";
const QUESTION: &str = "What is the capital of France?";
/// Greedy and short: so small a model, left to chance, may never come to an end.
const CHAT: [&str; 6] = ["chat", NAME, "--temperature", "0", "--max-tokens", "64"];
const START_MAX: Duration = Duration::from_secs(20);
const STOP_MAX: Duration = Duration::from_secs(15);

/// Fetches the model, builds, serves, asks. Leaves the daemon running if `keep`.
///
/// # Errors
/// What is missing, or what the daemon said.
pub fn run(keep: bool, backend: build::Backend) -> Result<()> {
    println!("==> model");
    let model = model::fetch(model::Model::SmolLm2)?;
    println!("{}", model.display());
    println!("==> release build");
    build::release(backend)?;
    println!("==> daemon");
    let mut daemon = Daemon::start(keep)?;
    println!("minisgld on http://{}, admin socket {}", daemon.listen, daemon.socket().display());
    println!("==> load");
    daemon.ctl(|ctl| ctl.arg("load").arg(&model).args(["--name", NAME]))?;
    println!("==> chat: {QUESTION}");
    daemon.ctl(|ctl| ctl.args(CHAT).args(["--prompt", QUESTION]))?;
    println!();
    next_steps(&daemon, keep);
    daemon.kept = keep;
    Ok(())
}

fn next_steps(daemon: &Daemon, kept: bool) {
    let (listen, socket) = (&daemon.listen, daemon.socket());
    if !kept {
        println!("==> next: `cargo xtask demo --keep` leaves the daemon running, to try");
        println!("  minisglctl chat {NAME}          talk to it");
        println!("  minisglctl ps                  what is loaded, and how it is doing");
        println!("  curl http://127.0.0.1:PORT/v1/chat/completions ...");
        return;
    }
    println!("==> next");
    println!(
        "  export MINISGL_SOCKET={} PATH={}:$PATH",
        socket.display(),
        paths::target().join("release").display()
    );
    println!("  minisglctl chat {NAME}");
    println!("  minisglctl ps");
    println!(
        "  curl http://{listen}/v1/chat/completions -H 'Content-Type: application/json' -d '{{"
    );
    println!(
        "    \"model\": \"{NAME}\", \"messages\": [{{\"role\": \"user\", \"content\": \"Hello!\"}}]}}'"
    );
    println!("  kill {}                     stops it", daemon.child.id());
}

/// A daemon with a folder of its own for socket and log; stopped when dropped.
struct Daemon {
    child: Child,
    listen: String,
    /// Removed with the daemon.
    dir: PathBuf,
    kept: bool,
}

impl Daemon {
    fn start(keep: bool) -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("minisgld-demo-{}", std::process::id()));
        std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let log = File::create(dir.join("log"))?;
        let binary = build::binary("minisgld");
        let mut command = Command::new(&binary);
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--socket"])
            .arg(dir.join("admin.sock"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        if keep {
            // Out of this terminal's process group; otherwise Ctrl-C ends both of us.
            command.process_group(0);
        }
        let child =
            command.spawn().with_context(|| format!("{} does not start", binary.display()))?;
        let mut daemon = Daemon { child, listen: String::new(), dir, kept: false };
        daemon.wait_until_up()?;
        daemon.listen = daemon.address()?;
        Ok(daemon)
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("admin.sock")
    }

    fn wait_until_up(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_MAX;
        while UnixStream::connect(self.socket()).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("minisgld ended ({status}) instead of serving:\n{}", self.log());
            }
            if Instant::now() > deadline {
                bail!("minisgld does not answer on its socket:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// The port that the kernel chose.
    fn address(&self) -> Result<String> {
        let mut ctl = Command::new(build::binary("minisglctl"));
        ctl.arg("version").args(["-o", "json", "--socket"]).arg(self.socket());
        let said: serde_json::Value = serde_json::from_str(&sh::capture(&mut ctl, "")?)?;
        let listen = said["daemon"]["listen"].as_str();
        listen.map(str::to_owned).with_context(|| format!("no address in {said}"))
    }

    /// Runs `minisglctl` against this daemon.
    fn ctl(&self, args: impl FnOnce(&mut Command) -> &mut Command) -> Result<()> {
        let mut command = Command::new(build::binary("minisglctl"));
        command.arg("--socket").arg(self.socket());
        sh::run(args(&mut command), &format!("the daemon's log:\n{}", self.log()))
    }

    fn log(&self) -> String {
        read_tail(&self.dir.join("log"))
    }

    fn stop(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let deadline = Instant::now() + STOP_MAX;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !self.kept {
            self.stop();
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

fn read_tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
