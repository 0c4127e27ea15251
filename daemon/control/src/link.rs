//! Frames in and out of one worker, wherever it runs.
//!
//! ```text
//!   outbox --writer task--> +----------+ <--> the worker
//!     sink <--reader task-- |  stream  |
//!                           +----------+
//! ```
//!
//! Owns: the two tasks, which end when the link is dropped. Must never: know what a frame means, or that there is
//! a process at the other end.

use std::future::Future;
use std::sync::Arc;

use minisgl_proto::frame::{self, HEADER_BYTES};
use minisgl_proto::{FromWorker, ToWorker};
use tokio::io::{AsyncBufRead, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Bytes that one read takes at most, and one write when frames queue.
const CHUNK_BYTES: usize = 64 << 10;

/// Takes what comes out of a link.
pub(crate) trait Sink: Send + Sync + 'static {
    /// The worker said something. The next frame is read when this is done.
    fn frame(&self, frame: FromWorker) -> impl Future<Output = ()> + Send;

    /// This frame cannot be sent: it is too large.
    fn unsendable(&self, frame: ToWorker, why: String);

    /// Nothing comes any more. `error` says what was wrong with the last that came.
    fn closed(&self, error: Option<String>) -> impl Future<Output = ()> + Send;
}

/// See the module's documentation.
pub(crate) struct Link {
    outbox: mpsc::Sender<ToWorker>,
    tasks: [JoinHandle<()>; 2],
}

impl Link {
    /// Starts to read and to write. `capacity` frames may wait to be written. Must be called in a tokio runtime.
    pub(crate) fn over<R, W>(reader: R, writer: W, capacity: usize, sink: impl Sink) -> Link
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        let (outbox, frames) = mpsc::channel(capacity);
        let sink = Arc::new(sink);
        let tasks = [
            tokio::spawn(read(reader, Arc::clone(&sink))),
            tokio::spawn(write(writer, frames, sink)),
        ];
        Link { outbox, tasks }
    }

    /// Frames on their way to the worker.
    pub(crate) fn outbox(&self) -> &mpsc::Sender<ToWorker> {
        &self.outbox
    }

    /// Sends a frame; whether it is on its way.
    pub(crate) fn send(&self, frame: ToWorker) -> bool {
        self.outbox.try_send(frame).is_ok()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn read<R: AsyncRead + Unpin>(reader: R, sink: Arc<impl Sink>) {
    let mut reader = BufReader::with_capacity(CHUNK_BYTES, reader);
    let mut payload = Vec::new();
    let error = loop {
        match next_frame(&mut reader, &mut payload).await {
            Ok(Some(frame)) => sink.frame(frame).await,
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    sink.closed(error).await;
}

/// The next frame; `None` at the end of the stream.
async fn next_frame<R: AsyncBufRead + Unpin>(
    reader: &mut R,
    payload: &mut Vec<u8>,
) -> Result<Option<FromWorker>, String> {
    let mut header = [0; HEADER_BYTES];
    // A worker killed between two bytes of a frame leaves a torn one; that is an end, not an error.
    if reader.read_exact(&mut header).await.is_err() {
        return Ok(None);
    }
    let bytes = frame::payload_bytes(header).map_err(|error| error.to_string())?;
    payload.clear();
    // `take` lets the buffer grow with what arrives, not with what a header claims.
    let read = reader.take(bytes as u64).read_to_end(payload).await;
    if !matches!(read, Ok(n) if n == bytes) {
        return Ok(None);
    }
    frame::decode(payload).map(Some).map_err(|error| error.to_string())
}

/// Writes frames, several at once when they queue, until the stream or the outbox closes.
async fn write<W: AsyncWrite + Unpin>(
    mut writer: W,
    mut frames: mpsc::Receiver<ToWorker>,
    sink: Arc<impl Sink>,
) {
    let mut bytes = Vec::new();
    while let Some(frame) = frames.recv().await {
        bytes.clear();
        encode(frame, &mut bytes, &*sink);
        while bytes.len() < CHUNK_BYTES
            && let Ok(frame) = frames.try_recv()
        {
            encode(frame, &mut bytes, &*sink);
        }
        if writer.write_all(&bytes).await.is_err() {
            return; // the reader sees the end too, and tells
        }
    }
}

fn encode(frame: ToWorker, bytes: &mut Vec<u8>, sink: &impl Sink) {
    if let Err(error) = frame::encode(&frame, bytes) {
        sink.unsendable(frame, error.to_string());
    }
}
