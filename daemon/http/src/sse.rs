//! Server-sent events: deltas to `data:` lines, each written when it is there.
//!
//! Owns: the framing and the end of a stream. The body holds the generations, so a client that goes
//! away drops them.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures_util::{StreamExt, stream};
use serde_json::Value;

use crate::choices::{Choices, Delta};
use crate::error::ApiError;
use crate::record::Record;

/// How an endpoint writes its stream.
pub trait Format: Send + 'static {
    /// Chunks before anything is generated.
    fn open(&mut self, choices: &Choices) -> Vec<Value>;
    /// Chunks for one delta.
    fn delta(&mut self, delta: Delta, choices: &Choices) -> Vec<Value>;
    /// Chunks after the last delta.
    fn close(&mut self, choices: &Choices) -> Vec<Value>;
}

struct Stream<F> {
    choices: Choices,
    format: F,
    ready: VecDeque<Bytes>,
    record: Arc<Record>,
    over: bool,
}

impl<F: Format> Stream<F> {
    fn queue(&mut self, chunks: Vec<Value>) {
        self.ready.extend(chunks.iter().map(line));
    }

    fn advance(&mut self, next: Option<Result<Delta, ApiError>>) {
        match next {
            Some(Ok(delta)) => {
                let chunks = self.format.delta(delta, &self.choices);
                self.queue(chunks);
            }
            Some(Err(error)) => {
                self.record.failed(&error);
                self.ready.push_back(line(&error.to_json()));
                self.over = true;
            }
            None => {
                let chunks = self.format.close(&self.choices);
                self.queue(chunks);
                self.ready.push_back(Bytes::from_static(b"data: [DONE]\n\n"));
                self.record.complete();
                self.over = true;
            }
        }
    }
}

fn line(value: &Value) -> Bytes {
    format!("data: {value}\n\n").into()
}

/// Answers with a stream. An error on the way becomes a last `data: {"error": ...}` line, without
/// `[DONE]` after it.
pub fn respond(choices: Choices, mut format: impl Format, record: Arc<Record>) -> Response {
    record.streaming();
    let opening = format.open(&choices);
    let mut state = Stream { choices, format, ready: VecDeque::new(), record, over: false };
    state.queue(opening);
    let lines = stream::unfold(state, |mut state| async move {
        loop {
            if let Some(line) = state.ready.pop_front() {
                return Some((Ok::<_, std::convert::Infallible>(line), state));
            }
            if state.over {
                return None;
            }
            let next = state.choices.next().await;
            state.advance(next);
        }
    });
    let mut response = Response::new(Body::from_stream(lines));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies that buffer would make one lump of the stream.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}
