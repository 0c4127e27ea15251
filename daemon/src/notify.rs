//! What the service manager hears of the daemon, as sd_notify(3) has it.
//!
//! ```text
//!   READY=1 ───> WATCHDOG=1, STATUS=loading Qwen/Qwen3-8B: weights 43 % ───> STOPPING=1, EXTEND_TIMEOUT_USEC=
//!      └───────< RELOADING=1 <──┘
//! ```
//!
//! One task looks at the registry, composes and sends. That it runs at all is the sign that the runtime turns;
//! WATCHDOG=1 also says that every model has somebody who will repair it.
//!
//! Owns: the notification socket. Must never: wait for the service manager.

mod status;

use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use minisgl_proto::admin::ModelStatus;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use nix::time::{ClockId, clock_gettime};
use tokio::sync::watch;
use tokio::time::Instant;

use self::status::status;

/// Time between two looks at the registry; less when the watchdog is impatient.
const LOOK: Duration = Duration::from_secs(1);
/// The same at least.
const LOOK_MIN: Duration = Duration::from_millis(1);
/// WATCHDOG=1 is said this often in the watchdog's time.
const FEEDS: u32 = 4;
/// What a stop asks for with every look, beyond which it counts as stuck.
const STOP_EXTENSION: Duration = Duration::from_secs(10);
/// How long an important message is repeated to a busy manager, and the pause between two attempts.
const INSIST: Duration = Duration::from_secs(5);
const INSIST_PAUSE: Duration = Duration::from_millis(20);

/// What there is to say.
pub struct Report {
    /// Every model.
    pub models: Vec<ModelStatus>,
    /// What only a new daemon can repair.
    pub hung: Option<String>,
    /// What else the operator should know.
    pub note: Option<String>,
}

/// The way to the service manager.
#[derive(Clone)]
pub struct Notifier {
    socket: Arc<UnixDatagram>,
    manager: SocketAddr,
    /// WATCHDOG=1 is expected at least this often.
    watchdog: Option<Duration>,
}

impl Notifier {
    /// As the environment says; `None` where no service manager listens.
    ///
    /// # Errors
    /// The environment says something invalid.
    pub fn from_env() -> anyhow::Result<Option<Notifier>> {
        Notifier::of(|variable| std::env::var_os(variable))
    }

    fn of(env: impl Fn(&str) -> Option<OsString>) -> anyhow::Result<Option<Notifier>> {
        let Some(address) = env("NOTIFY_SOCKET").filter(|address| !address.is_empty()) else {
            return Ok(None);
        };
        let manager = parse_address(&address)?;
        let socket = UnixDatagram::unbound().context("cannot make a datagram socket")?;
        socket.set_nonblocking(true).context("cannot make a socket that does not wait")?;
        let number = |variable: &str| -> anyhow::Result<Option<u64>> {
            let Some(value) = env(variable) else { return Ok(None) };
            let number = value.to_str().and_then(|value| value.parse().ok());
            number.with_context(|| format!("{variable} is {value:?}, not a number")).map(Some)
        };
        let ours = number("WATCHDOG_PID")?.is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC")?.filter(|&usec| ours && usec > 0);
        let watchdog = watchdog.map(Duration::from_micros);
        Ok(Some(Notifier { socket: Arc::new(socket), manager, watchdog }))
    }

    /// Says that the configuration is being read again, until [`Notifier::reloaded`].
    pub async fn reloading(&self) {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
        self.insist(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.as_micros())).await;
    }

    /// Says that it was read, whatever came of it.
    pub async fn reloaded(&self) {
        self.insist("READY=1").await;
    }

    /// Gives a listening socket into the manager's keeping, for the next daemon, in place of the one before.
    pub async fn keep(&self, name: &str, socket: BorrowedFd<'_>) {
        self.insist(&format!("FDSTOREREMOVE=1\nFDNAME={name}")).await;
        let message = format!("FDSTORE=1\nFDNAME={name}");
        let began = Instant::now();
        while let Err(error) = self.send_with(&message, socket) {
            let is_busy = error.downcast_ref() == Some(&Errno::EAGAIN);
            if !is_busy || began.elapsed() >= INSIST {
                tracing::warn!(%error, "the service manager does not keep the socket of {name} for a restart");
                return;
            }
            tokio::time::sleep(INSIST_PAUSE).await;
        }
    }

    /// Sends an important message, again and again unless the manager stays busy for [`INSIST`].
    async fn insist(&self, message: &str) {
        let began = Instant::now();
        while self.send(message).is_err() && began.elapsed() < INSIST {
            tokio::time::sleep(INSIST_PAUSE).await;
        }
    }

    fn send_with(&self, message: &str, socket: BorrowedFd<'_>) -> anyhow::Result<()> {
        let path = self.manager.as_pathname().map(UnixAddr::new);
        let name = || self.manager.as_abstract_name().map(UnixAddr::new_abstract);
        let address = path.or_else(name).context("the service manager has no address")??;
        let (text, sockets) = ([IoSlice::new(message.as_bytes())], [socket.as_raw_fd()]);
        let control = [ControlMessage::ScmRights(&sockets)];
        let own = self.socket.as_raw_fd();
        sendmsg(own, &text, &control, MsgFlags::empty(), Some(&address))?;
        Ok(())
    }

    /// Says that the daemon is ready, and from then on how it is, until the runtime ends. `stopping` turns to the
    /// time that running requests have when a stop begins.
    pub async fn run(
        self,
        report: impl Fn() -> Report,
        mut stopping: watch::Receiver<Option<Duration>>,
    ) {
        let pause = self.watchdog.map_or(LOOK, |watchdog| (watchdog / FEEDS).clamp(LOOK_MIN, LOOK));
        let mut stop_began = None;
        let mut was_hung = false;
        // What the manager has heard; a message lost because it was busy is repeated.
        let (mut ready_said, mut stopping_said, mut status_said) = (false, false, String::new());
        loop {
            let report = report();
            let mut lines = Vec::new();
            if !ready_said {
                lines.push("READY=1".to_owned());
            }
            let drain = *stopping.borrow();
            if drain.is_some() {
                stop_began.get_or_insert_with(Instant::now);
                if !stopping_said {
                    lines.push("STOPPING=1".to_owned());
                }
                lines.push(format!("EXTEND_TIMEOUT_USEC={}", STOP_EXTENSION.as_micros()));
            }
            if self.watchdog.is_some() {
                match &report.hung {
                    None => lines.push("WATCHDOG=1".to_owned()),
                    Some(why) if !was_hung => {
                        tracing::error!("the watchdog is no longer fed: {why}");
                    }
                    Some(_) => {}
                }
                was_hung = report.hung.is_some();
            }
            let since = |began: Instant| drain.unwrap_or_default().saturating_sub(began.elapsed());
            let left = stop_began.map(since);
            let status = status(&report, left);
            if status != status_said {
                lines.push(format!("STATUS={status}"));
            }
            if !lines.is_empty() && self.send(&lines.join("\n")).is_ok() {
                (ready_said, stopping_said, status_said) = (true, stop_began.is_some(), status);
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                changed = stopping.changed(), if stop_began.is_none() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
        }
    }

    fn send(&self, message: &str) -> io::Result<()> {
        let sent = self.socket.send_to_addr(message.as_bytes(), &self.manager);
        if let Err(error) = &sent {
            tracing::debug!(%error, "the service manager did not take {message:?}");
        }
        sent.map(drop)
    }
}

/// A path, or a name after `@` in the abstract namespace.
fn parse_address(address: &OsStr) -> anyhow::Result<SocketAddr> {
    let parsed = match address.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(address),
        _ => bail!("NOTIFY_SOCKET is {address:?}, neither a path nor @ and a name"),
    };
    parsed.with_context(|| format!("NOTIFY_SOCKET is {address:?}, which is no address"))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    use minisgl_proto::admin::ModelState;
    use minisgl_proto::worker::LoadStage;
    use tempfile::TempDir;

    use super::status::tests::{loading, model};
    use super::*;

    fn notifier(variables: &[(&str, &str)]) -> anyhow::Result<Option<Notifier>> {
        let find = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into());
        Notifier::of(find)
    }

    #[test]
    fn the_environment_is_heeded_and_what_it_cannot_mean_is_named() {
        assert!(notifier(&[]).unwrap().is_none());
        assert!(notifier(&[("NOTIFY_SOCKET", ""), ("WATCHDOG_USEC", "5")]).unwrap().is_none());
        let watchdog = |more: &[(&str, &str)]| {
            let variables = [&[("NOTIFY_SOCKET", "/run/x")], more].concat();
            notifier(&variables).map(|notifier| notifier.unwrap().watchdog)
        };
        let minute = Some(Duration::from_secs(60));
        let own = std::process::id().to_string();
        assert_eq!(watchdog(&[]).unwrap(), None);
        assert_eq!(watchdog(&[("WATCHDOG_USEC", "60000000")]).unwrap(), minute);
        assert_eq!(
            watchdog(&[("WATCHDOG_USEC", "60000000"), ("WATCHDOG_PID", &own)]).unwrap(),
            minute
        );
        assert_eq!(
            watchdog(&[("WATCHDOG_USEC", "60000000"), ("WATCHDOG_PID", "1")]).unwrap(),
            None
        );
        assert_eq!(watchdog(&[("WATCHDOG_USEC", "0")]).unwrap(), None);
        let error = format!("{:#}", watchdog(&[("WATCHDOG_USEC", "soon")]).unwrap_err());
        assert!(error.contains("WATCHDOG_USEC") && error.contains("soon"), "{error}");
        for address in ["run/x", "vsock:2:1234"] {
            let error = notifier(&[("NOTIFY_SOCKET", address)]).err().unwrap().to_string();
            assert!(error.contains("NOTIFY_SOCKET") && error.contains(address), "{error}");
        }
    }

    /// Somebody who listens as systemd does, and what they heard.
    struct Manager {
        socket: UnixDatagram,
        _dir: TempDir,
        path: String,
    }

    impl Manager {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("notify");
            let socket = UnixDatagram::bind(&path).unwrap();
            socket.set_nonblocking(true).unwrap();
            Manager { socket, path: path.to_str().unwrap().to_owned(), _dir: dir }
        }

        /// The lines that came in `time`.
        async fn hear(&self, time: Duration) -> Vec<String> {
            tokio::time::sleep(time).await;
            let mut bytes = [0; 4096];
            let mut lines = Vec::new();
            while let Ok(count) = self.socket.recv(&mut bytes) {
                let text = std::str::from_utf8(&bytes[..count]).unwrap();
                lines.extend(text.lines().map(str::to_owned));
            }
            lines
        }
    }

    const WHILE: Duration = Duration::from_millis(400);

    // On a clock that stands still while anything can run.
    #[tokio::test(start_paused = true)]
    async fn the_watchdog_starves_while_something_hangs_and_a_stop_is_told() {
        let manager = Manager::new();
        let address = ("NOTIFY_SOCKET", manager.path.as_str());
        let notifier = notifier(&[address, ("WATCHDOG_USEC", "200000")]).unwrap().unwrap();
        let hung = Arc::new(AtomicBool::new(false));
        let models = Arc::new(Mutex::new(vec![loading("m", LoadStage::Read, 1, 2)]));
        let report = {
            let (hung, models) = (Arc::clone(&hung), Arc::clone(&models));
            move || Report {
                models: models.lock().unwrap().clone(),
                hung: hung.load(Ordering::SeqCst).then(|| "m hangs".to_owned()),
                note: None,
            }
        };
        let (stop, stopping) = watch::channel(None);
        let task = tokio::spawn(notifier.run(report, stopping));
        let count = |lines: &[String], line: &str| lines.iter().filter(|l| *l == line).count();

        let heard = manager.hear(WHILE).await;
        assert_eq!(heard[..2], ["READY=1", "WATCHDOG=1"]);
        assert_eq!(count(&heard, "READY=1"), 1);
        assert_eq!(count(&heard, "STATUS=loading m: weights 50 %"), 1, "only what is new");
        assert!(count(&heard, "WATCHDOG=1") >= 3, "{heard:?}");

        *models.lock().unwrap() = vec![model("m", ModelState::Ready)];
        let heard = manager.hear(WHILE).await;
        assert_eq!(count(&heard, "STATUS=1 model ready"), 1, "{heard:?}");

        hung.store(true, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(60)).await;
        manager.hear(Duration::from_millis(60)).await;
        assert_eq!(manager.hear(WHILE).await, Vec::<String>::new());
        hung.store(false, Ordering::SeqCst);
        assert!(count(&manager.hear(WHILE).await, "WATCHDOG=1") > 0);

        stop.send(Some(Duration::from_secs(30))).unwrap();
        let heard = manager.hear(WHILE).await;
        assert_eq!(count(&heard, "STOPPING=1"), 1, "{heard:?}");
        assert!(count(&heard, "EXTEND_TIMEOUT_USEC=10000000") >= 3, "{heard:?}");
        assert_eq!(count(&heard, "STATUS=stopping"), 1, "{heard:?}");
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_deaf_manager_holds_nothing_up_and_hears_the_rest_later() {
        let manager = Manager::new();
        let address = ("NOTIFY_SOCKET", manager.path.as_str());
        let notifier = notifier(&[address, ("WATCHDOG_USEC", "4000")]).unwrap().unwrap();
        while notifier.send("WATCHDOG=1").is_ok() {}
        let report = || Report { models: vec![], hung: None, note: None };
        let (_stop, stopping) = watch::channel(None);
        let task = tokio::spawn(notifier.run(report, stopping));
        // This test has one thread: were it held up, it would not go on.
        tokio::time::sleep(Duration::from_millis(50)).await;
        manager.hear(Duration::ZERO).await;
        let heard = manager.hear(Duration::from_millis(100)).await;
        assert!(heard.iter().any(|line| line == "READY=1"), "{heard:?}");
        assert!(heard.iter().any(|line| line == "STATUS=no model is loaded"), "{heard:?}");
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_socket_is_given_to_a_manager_that_was_busy() {
        let manager = Manager::new();
        let notifier = notifier(&[("NOTIFY_SOCKET", manager.path.as_str())]).unwrap().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        while notifier.send("WATCHDOG=1").is_ok() {}
        let keep = notifier.keep("http", std::os::fd::AsFd::as_fd(&listener));
        let listen = async {
            // There is room for the first of the two messages alone.
            manager.socket.recv(&mut [0; 64]).unwrap();
            tokio::time::sleep(INSIST_PAUSE * 3).await;
            let mut lines = Vec::new();
            while !lines.iter().any(|line| line == "FDSTORE=1") {
                lines = manager.hear(Duration::from_millis(10)).await;
            }
        };
        let both = async { tokio::join!(keep, listen) };
        tokio::time::timeout(Duration::from_secs(10), both).await.expect("it is given at last");
    }

    #[tokio::test]
    async fn an_abstract_address_is_reached() {
        let name = format!("minisgld-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        let notifier = notifier(&[("NOTIFY_SOCKET", &format!("@{name}"))]).unwrap().unwrap();
        notifier.send("READY=1").unwrap();
        let mut bytes = [0; 64];
        let count = manager.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..count], b"READY=1");
    }
}
