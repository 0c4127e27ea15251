//! The journal's own protocol: an entry has a line for people and a field for each value.
//!
//! ```text
//! MESSAGE=request request_id=7f3a model="m" outcome="ok" generated_tokens=20
//! PRIORITY=6   SYSLOG_IDENTIFIER=minisgld   MINISGL_TARGET=minisgl_http::record
//! MINISGL_REQUEST_ID=7f3a   MINISGL_MODEL=m   MINISGL_OUTCOME=ok   MINISGL_GENERATED_TOKENS=20
//! ```
//!
//! ```text
//!   event ── the journal takes it ──> sent
//!     └───── it is busy, or entries wait ──> queue (bounded) ── thread "journal" ──> sent, in order
//!                                              └─ full: counted, and told of once it is empty
//! ```
//!
//! Owns: the socket, the queue, and the shape of an entry. Must never: hold up who logs. The journal may be stopped, or
//! wait for a disk that is full, while its socket stays; and events come from the threads that serve requests.

use std::collections::VecDeque;
use std::fmt::{self, Write};
use std::io::{self, ErrorKind};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Where the journal listens.
const SOCKET: &str = "/run/systemd/journal/socket";
/// Says which stream is the journal's: `DEVICE:INODE`.
const STREAM: &str = "JOURNAL_STREAM";
/// Bytes of a value at most. All of an entry has to fit into one datagram.
const VALUE_BYTES_MAX: usize = 16 << 10;
/// Bytes of the entries that wait for a busy journal, at most; more are lost.
const QUEUE_BYTES_MAX: usize = 4 << 20;
/// Pause between two attempts to reach a busy journal.
const RETRY: Duration = Duration::from_millis(20);

/// Writes events to the journal.
pub struct Journal(Arc<Shared>);

struct Shared {
    socket: UnixDatagram,
    path: PathBuf,
    queue: Mutex<Queue>,
    /// There is something in the queue, or there will never be again.
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    entries: VecDeque<Waiting>,
    bytes: usize,
    lost: u64,
    closed: bool,
}

struct Waiting {
    bytes: Vec<u8>,
    /// For standard error, where the journal cannot be reached at all.
    line: String,
}

impl Journal {
    /// The journal, if it is what standard error is connected to.
    pub fn of_stderr() -> Option<Self> {
        let stderr = nix::sys::stat::fstat(std::io::stderr()).ok()?;
        let stream = std::env::var(STREAM).ok()?;
        is_stream(&stream, stderr.st_dev, stderr.st_ino).then(|| Journal::at(Path::new(SOCKET)))?
    }

    fn at(path: &Path) -> Option<Self> {
        let socket = UnixDatagram::unbound().ok()?;
        socket.set_nonblocking(true).ok()?;
        // To nobody in particular: a journal that is restarted has another socket of this name.
        let path = path.exists().then(|| path.to_path_buf())?;
        let (queue, changed) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { socket, path, queue, changed });
        let writer = Arc::clone(&shared);
        std::thread::Builder::new().name("journal".into()).spawn(move || writer.drain()).ok()?;
        Some(Journal(shared))
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.0.queue().closed = true;
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.socket.send_to(bytes, &self.path).map(drop)
    }

    /// Sends an entry, or leaves it to the thread. Never waits for the journal.
    fn put(&self, entry: Waiting) {
        let mut queue = self.queue();
        if queue.entries.is_empty() && self.send(&entry.bytes).is_ok() {
            return;
        }
        let bytes = queue.bytes + entry.bytes.len() + entry.line.len();
        if bytes > QUEUE_BYTES_MAX {
            queue.lost += 1;
            return;
        }
        queue.bytes = bytes;
        queue.entries.push_back(entry);
        self.changed.notify_one();
    }

    /// Sends what waits, in its order, for as long as anybody logs.
    fn drain(&self) {
        let mut queue = self.queue();
        loop {
            let Some(entry) = queue.entries.front() else {
                if queue.closed {
                    return;
                }
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            match self.send(&entry.bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if queue.closed {
                        return;
                    }
                    drop(queue);
                    std::thread::sleep(RETRY);
                    queue = self.queue();
                }
                sent => {
                    let entry = queue.entries.pop_front();
                    let Some(Waiting { bytes, line }) = entry else { continue };
                    queue.bytes -= bytes.len() + line.len();
                    let lost =
                        if queue.entries.is_empty() { std::mem::take(&mut queue.lost) } else { 0 };
                    drop(queue);
                    if sent.is_err() {
                        eprintln!("{line}");
                    }
                    if lost > 0 {
                        self.put(lost_entry(lost));
                    }
                    queue = self.queue();
                }
            }
        }
    }
}

/// Whether `DEVICE:INODE` names this file. A child of a service has the variable too, and its standard error
/// may be a file.
fn is_stream(stream: &str, device: u64, inode: u64) -> bool {
    stream.split_once(':').is_some_and(|(d, i)| d.parse() == Ok(device) && i.parse() == Ok(inode))
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut entry = Entry::default();
        event.record(&mut entry);
        let level = *event.metadata().level();
        let bytes = entry.encode(level, event.metadata().target());
        let line = format!("{level} {}: {}", event.metadata().target(), entry.line());
        self.0.put(Waiting { bytes, line });
    }
}

/// Says how many entries were lost.
fn lost_entry(lost: u64) -> Waiting {
    let message = format!("the journal was busy: {lost} lines of the log are lost");
    let entry = Entry { message, ..Entry::default() };
    let (level, target) = (Level::WARN, module_path!());
    Waiting {
        bytes: entry.encode(level, target),
        line: format!("{level} {target}: {}", entry.line()),
    }
}

/// An event's values.
#[derive(Default)]
struct Entry {
    message: String,
    fields: Vec<(&'static str, String)>,
    /// The fields as a line has them.
    text: String,
}

impl Entry {
    fn add(&mut self, field: &Field, value: String, shown: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = value;
            return;
        }
        let _ = write!(self.text, " {}={shown:?}", field.name());
        self.fields.push((field.name(), value));
    }

    fn line(&self) -> String {
        format!("{}{}", self.message, self.text)
    }

    fn encode(&self, level: Level, target: &str) -> Vec<u8> {
        let priority = match level {
            Level::ERROR => "3",
            Level::WARN => "4",
            Level::INFO => "6",
            Level::DEBUG | Level::TRACE => "7",
        };
        let mut bytes = Vec::with_capacity(512);
        put(&mut bytes, "MESSAGE", &self.line());
        put(&mut bytes, "PRIORITY", priority);
        put(&mut bytes, "SYSLOG_IDENTIFIER", "minisgld");
        put(&mut bytes, "MINISGL_TARGET", target);
        for (name, value) in &self.fields {
            put(
                &mut bytes,
                &format!("MINISGL_{}", name.to_ascii_uppercase().replace('.', "_")),
                value,
            );
        }
        bytes
    }
}

/// `NAME=value`, or with its length if it has several lines.
fn put(bytes: &mut Vec<u8>, name: &str, value: &str) {
    let value = beginning(value);
    bytes.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        bytes.push(b'\n');
        bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        bytes.push(b'=');
    }
    bytes.extend_from_slice(value.as_bytes());
    bytes.push(b'\n');
}

/// As much of a value as is sent.
fn beginning(value: &str) -> &str {
    let mut end = value.len().min(VALUE_BYTES_MAX);
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    &value[..end]
}

impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.to_string(), &value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format!("{value:?}"), value);
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// What the journal gets of these events.
    fn sent(log: impl FnOnce()) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let journal = UnixDatagram::bind(&path).unwrap();
        journal.set_nonblocking(true).unwrap();
        let layer = Journal::at(&path).unwrap();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        let mut bytes = vec![0; 1 << 20];
        let mut entries = Vec::new();
        while let Ok(count) = journal.recv(&mut bytes) {
            entries.push(String::from_utf8_lossy(&bytes[..count]).into_owned());
        }
        entries
    }

    #[test]
    fn an_entry_has_a_line_and_a_field_for_each_value() {
        let entries = sent(|| {
            let error: Option<&str> = None;
            tracing::info!(request_id = %"a-1", model = "org/m", error, tokens = 20_u64, first_token_s = 0.5, "request");
            tracing::error!(target: "worker", "it \"broke\"");
        });
        assert_eq!(
            entries,
            [
                "MESSAGE=request request_id=a-1 model=\"org/m\" tokens=20 first_token_s=0.5\n\
                 PRIORITY=6\nSYSLOG_IDENTIFIER=minisgld\nMINISGL_TARGET=minisgld::logging::journal::tests\n\
                 MINISGL_REQUEST_ID=a-1\nMINISGL_MODEL=org/m\nMINISGL_TOKENS=20\nMINISGL_FIRST_TOKEN_S=0.5\n",
                "MESSAGE=it \"broke\"\nPRIORITY=3\nSYSLOG_IDENTIFIER=minisgld\nMINISGL_TARGET=worker\n",
            ]
        );
    }

    #[test]
    fn a_value_can_have_several_lines_but_no_field_of_its_own_making() {
        let entries = sent(|| tracing::info!(why = "a\nPRIORITY=0", "two\nlines"));
        let entry = &entries[0];
        // The line shows the value quoted; the field has it as it is, after its length.
        assert!(
            entry.starts_with("MESSAGE\n\u{1d}\0\0\0\0\0\0\0two\nlines why=\"a\\nPRIORITY=0\"\n"),
            "{entry:?}"
        );
        assert!(entry.ends_with("MINISGL_WHY\n\u{c}\0\0\0\0\0\0\0a\nPRIORITY=0\n"), "{entry:?}");
    }

    #[test]
    fn long_values_are_cut_and_the_entry_still_arrives() {
        let long = "ä".repeat(1 << 20);
        let entries = sent(|| tracing::info!(text = %long, again = %long, "long"));
        assert_eq!(entries.len(), 1);
        assert!(entries[0].len() < 4 * VALUE_BYTES_MAX, "{} bytes", entries[0].len());
        assert!(!entries[0].contains('\u{fffd}'), "cut within a character");
    }

    #[test]
    fn a_journal_that_reads_nothing_holds_nobody_up_and_hears_what_was_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let journal = UnixDatagram::bind(&path).unwrap();
        let layer = Journal::at(&path).unwrap();
        let shared = Arc::clone(&layer.0);
        let (done, is_done) = std::sync::mpsc::channel();
        let log = move || {
            let text = "x".repeat(4096);
            for number in 0..4000 {
                tracing::info!(number, text, "busy");
            }
            done.send(()).unwrap();
        };
        let subscriber = tracing_subscriber::registry().with(layer);
        let dispatch = tracing::Dispatch::new(subscriber);
        let logging = dispatch.clone();
        std::thread::spawn(move || tracing::dispatcher::with_default(&logging, log));
        is_done.recv_timeout(Duration::from_secs(120)).expect("who logs is not held up");
        let lost = shared.queue().lost;
        assert!(lost > 0 && shared.queue().bytes <= QUEUE_BYTES_MAX);
        // Now it reads: everything that was not lost, in order.
        journal.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        let mut bytes = vec![0; 1 << 16];
        for number in 0..4000 - lost {
            let count = journal.recv(&mut bytes).unwrap();
            let entry = String::from_utf8_lossy(&bytes[..count]);
            assert!(entry.contains(&format!("MINISGL_NUMBER={number}\n")), "{number}: {entry:.80}");
        }
        let count = journal.recv(&mut bytes).unwrap();
        let entry = String::from_utf8_lossy(&bytes[..count]);
        assert!(entry.contains(&format!("{lost} lines of the log are lost")), "{entry}");
        drop(dispatch);
    }

    #[test]
    fn the_journal_is_known_by_its_stream() {
        assert!(is_stream("8:4711", 8, 4711));
        for other in ["8:4712", "9:4711", "8", "", ":", "8:4711:1"] {
            assert!(!is_stream(other, 8, 4711), "{other}");
        }
        assert!(Journal::at(Path::new("/nonexistent/socket")).is_none());
    }
}
