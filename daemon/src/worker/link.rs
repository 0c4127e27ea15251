//! The worker's end of the socket to the daemon: a thread that reads, a thread that writes.
//!
//! Both queues are bounded. A full inbox stops the reader, and so the daemon's writer; a full outbox
//! stops the scheduler until the daemon reads again.
//!
//! Owns: that frames go out whole and in order, or not at all. Must never: leave one out and go on: a stream without one
//! of its tokens is wrong, and one without its end never ends. The worker ends instead, and another goes on from what was
//! delivered.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use minisgl_proto::frame::{self, HEADER_BYTES};
use minisgl_proto::{FromWorker, Submit, ToWorker};
use minisgl_sched::Held;

/// Frames waiting in either direction, at most.
const QUEUE_FRAMES_MAX: usize = 4096;

/// What the reader hands to the scheduler.
#[derive(Debug)]
pub enum Incoming {
    /// A frame from the daemon.
    Frame(Box<ToWorker>),
    /// The daemon is gone, or sent something that is not a frame; nothing follows.
    Closed(String),
    /// A frame for the daemon cannot be sent; those before it are, and none after it.
    Unsendable(String),
    /// A request whose output follows a grammar, and what holds it to that, or why nothing does.
    Guided(Box<(Submit, Result<Held, String>)>),
}

/// Both directions of the socket.
pub struct Link {
    /// Frames from the daemon, in order.
    pub inbox: Receiver<Incoming>,
    /// The way into it for threads of this process.
    pub into_inbox: SyncSender<Incoming>,
    outbox: Option<SyncSender<FromWorker>>,
    writer: Option<JoinHandle<()>>,
}

/// The socket that the daemon gave this process as its standard input.
///
/// # Errors
/// Standard input is not a socket: somebody started the worker by hand.
pub fn connect() -> io::Result<UnixStream> {
    let stdin = io::stdin().as_fd().try_clone_to_owned()?;
    let stream = UnixStream::from(stdin);
    stream.peer_addr().map_err(|error| {
        io::Error::new(
            error.kind(),
            "standard input is not a socket; workers are started by `minisgld serve`",
        )
    })?;
    Ok(stream)
}

impl Link {
    /// Starts the two threads over `stream`.
    ///
    /// # Errors
    /// The stream cannot be cloned.
    pub fn over(stream: UnixStream) -> io::Result<Link> {
        let (inbox_sender, inbox) = sync_channel(QUEUE_FRAMES_MAX);
        let (outbox, outgoing) = sync_channel(QUEUE_FRAMES_MAX);
        let reader = stream.try_clone()?;
        let (faults, into_inbox) = (inbox_sender.clone(), inbox_sender.clone());
        std::thread::Builder::new()
            .name("link-read".to_owned())
            .spawn(move || read(reader, &inbox_sender))?;
        let writer = std::thread::Builder::new()
            .name("link-write".to_owned())
            .spawn(move || write(stream, outgoing, &faults))?;
        Ok(Link { inbox, into_inbox, outbox: Some(outbox), writer: Some(writer) })
    }

    /// Queues a frame. When the daemon is gone, or an earlier frame could not be sent, the inbox says so; a frame for
    /// nobody is dropped.
    pub fn send(&self, message: FromWorker) {
        if let Some(outbox) = &self.outbox {
            let _ = outbox.send(message);
        }
    }
}

impl Drop for Link {
    /// Everything queued is written before the process ends.
    fn drop(&mut self) {
        self.outbox = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

fn read(mut stream: UnixStream, inbox: &SyncSender<Incoming>) {
    let closed = loop {
        match read_frame(&mut stream) {
            Ok(Some(message)) => {
                if inbox.send(Incoming::Frame(Box::new(message))).is_err() {
                    return;
                }
            }
            Ok(None) => break "the daemon closed the connection".to_owned(),
            Err(error) => break format!("the connection to the daemon broke: {error}"),
        }
    };
    let _ = inbox.send(Incoming::Closed(closed));
}

/// The next frame, or `None` at the end of the stream.
///
/// # Errors
/// The stream breaks off, or has something that is not a frame.
pub fn read_frame(stream: &mut UnixStream) -> io::Result<Option<ToWorker>> {
    let mut header = [0u8; HEADER_BYTES];
    match stream.read_exact(&mut header) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let mut payload = vec![0u8; frame::payload_bytes(header).map_err(io::Error::other)?];
    stream.read_exact(&mut payload)?;
    frame::decode(&payload).map(Some).map_err(io::Error::other)
}

/// Writes frames until the worker lets go of the queue, the daemon is gone, or one cannot be sent.
fn write(mut stream: UnixStream, outgoing: Receiver<FromWorker>, inbox: &SyncSender<Incoming>) {
    let mut buffer = Vec::new();
    while let Ok(message) = outgoing.recv() {
        buffer.clear();
        let mut unsendable = None;
        // Whatever else is queued goes out with the same system call.
        for message in std::iter::once(message).chain(outgoing.try_iter()) {
            if let Err(error) = frame::encode(&message, &mut buffer) {
                unsendable = Some(format!("a frame for the daemon cannot be sent: {error}"));
                break;
            }
        }
        if stream.write_all(&buffer).is_err() {
            return;
        }
        if let Some(why) = unsendable {
            // First the queue: a scheduler that waits for room in it would not look into its inbox.
            drop(outgoing);
            let _ = inbox.send(Incoming::Unsendable(why));
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use minisgl_proto::StepStats;
    use minisgl_proto::frame::FRAME_BYTES_MAX;

    use super::*;

    fn step(event_bytes: usize) -> FromWorker {
        let event = minisgl_proto::TokenEvent {
            id: minisgl_proto::RequestId(1),
            sampled: None,
            prompt_logprobs: Vec::new(),
            cached_tokens: None,
            queue_s: None,
            finish: Some(minisgl_proto::Finish::Failed("x".repeat(event_bytes))),
        };
        FromWorker::Step { events: vec![event], stats: StepStats::default() }
    }

    #[test]
    fn a_frame_that_cannot_be_sent_is_the_last_and_is_told_of() {
        let (mut daemon, worker) = UnixStream::pair().unwrap();
        let link = Link::over(worker).unwrap();
        link.send(step(1));
        link.send(step(FRAME_BYTES_MAX));
        // More than the queue holds: nobody takes them, and nobody waits for room.
        for _ in 0..2 * QUEUE_FRAMES_MAX {
            link.send(FromWorker::Pong(7));
        }
        let told = link.inbox.recv_timeout(Duration::from_secs(60)).unwrap();
        let Incoming::Unsendable(why) = told else { panic!("{told:?}") };
        assert!(why.contains("cannot be sent") && why.contains("over the limit"), "{why}");
        // What came before has arrived; nothing has that came after.
        daemon.shutdown(std::net::Shutdown::Write).unwrap();
        let closed = link.inbox.recv_timeout(Duration::from_secs(60)).unwrap();
        assert!(matches!(closed, Incoming::Closed(_)), "{closed:?}");
        drop(link);
        let mut bytes = Vec::new();
        daemon.read_to_end(&mut bytes).unwrap();
        let mut expected = Vec::new();
        frame::encode(&step(1), &mut expected).unwrap();
        assert_eq!(bytes, expected);
    }
}
