//! A worker that computes nothing: every request gets one token a step, at a pace.
//!
//! Owns: its loop. Must never: be what a model is served by; `bench front` alone asks for it.

use std::sync::mpsc::{RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use minisgl_proto::{
    Finish, FromWorker, ModelInfo, RequestId, Sampled, StepStats, Submit, ToWorker, TokenEvent,
    WorkerSpec,
};
use serde::Deserialize;

use crate::worker::link::{self, Incoming, Link};

/// Variable with the microseconds of a step.
pub const STEP_US: &str = "MINISGL_ECHO_STEP_US";
/// Tokens of context that it claims to have.
const MAX_LEN: u32 = 1 << 20;

/// Answers requests until the daemon is gone.
///
/// # Errors
/// The daemon is not one, or the model's folder has no configuration.
pub fn run() -> anyhow::Result<()> {
    let mut stream = link::connect()?;
    let spec = match link::read_frame(&mut stream)? {
        Some(ToWorker::Load(spec)) => spec,
        Some(other) => bail!("the first frame must be Load, not {other:?}"),
        None => return Ok(()),
    };
    let step_us = std::env::var(STEP_US).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    let vocab_size = vocab_size(&spec)?;
    let mut echo = Echo {
        link: Link::over(stream)?,
        step: Duration::from_micros(step_us),
        vocab_size,
        running: Vec::new(),
        stats: StepStats::default(),
    };
    echo.link.send(FromWorker::Ready(Box::new(info(&spec, vocab_size))));
    echo.serve();
    Ok(())
}

fn vocab_size(spec: &WorkerSpec) -> anyhow::Result<u32> {
    #[derive(Deserialize)]
    struct Config {
        vocab_size: u32,
    }
    let path = spec.dir.join("config.json");
    let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let config: Config = serde_json::from_slice(&text)
        .with_context(|| format!("{} has no vocab_size", path.display()))?;
    Ok(config.vocab_size)
}

fn info(spec: &WorkerSpec, vocab_size: u32) -> ModelInfo {
    ModelInfo {
        name: spec.name.clone(),
        dir: spec.dir.clone(),
        architecture: "Echo".into(),
        device: "none".into(),
        dtype: "f32".into(),
        parameters: 1,
        weight_bytes: 4,
        kv_dtype: "f32".into(),
        kv_bytes: 4,
        kv_tokens: u64::from(MAX_LEN),
        page_size: 16,
        kv_groups: 1,
        vocab_size,
        max_len: MAX_LEN,
        context_len: MAX_LEN,
        max_running: spec.options.max_running,
        max_waiting: spec.options.max_waiting,
        chunk_tokens: 512,
        eos_token_ids: vec![0],
        tp: 1,
        gpus: Vec::new(),
        read_bytes: 4,
        read_s: 0.0,
        load_s: 0.0,
    }
}

/// A request and how many tokens it got.
struct Running {
    id: RequestId,
    made: u32,
    max_tokens: u32,
}

struct Echo {
    link: Link,
    step: Duration,
    vocab_size: u32,
    running: Vec<Running>,
    stats: StepStats,
}

impl Echo {
    fn serve(&mut self) {
        let mut next = Instant::now();
        while self.gather(next) {
            if self.running.is_empty() || Instant::now() < next {
                continue;
            }
            // A step that is late does not make the next ones early.
            next = Instant::now().max(next + self.step);
            let events = self.events();
            self.stats.steps += 1;
            self.stats.rows = events.len() as u32;
            self.stats.running = self.running.len() as u32;
            self.stats.generated_tokens += events.len() as u64;
            self.link.send(FromWorker::Step { events, stats: self.stats });
        }
    }

    /// Takes in frames until the next step is due; false at the end.
    fn gather(&mut self, next: Instant) -> bool {
        loop {
            let incoming = if self.running.is_empty() {
                self.link.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                match self.link.inbox.try_recv() {
                    Err(TryRecvError::Empty) => {
                        let left = next.saturating_duration_since(Instant::now());
                        self.link.inbox.recv_timeout(left)
                    }
                    Err(TryRecvError::Disconnected) => Err(RecvTimeoutError::Disconnected),
                    Ok(incoming) => Ok(incoming),
                }
            };
            match incoming {
                Ok(Incoming::Frame(frame)) => self.accept(*frame),
                Ok(Incoming::Guided(_)) => {} // Nobody here compiles grammars.
                Ok(Incoming::Closed(_) | Incoming::Unsendable(_))
                | Err(RecvTimeoutError::Disconnected) => return false,
                Err(RecvTimeoutError::Timeout) => return true,
            }
        }
    }

    fn accept(&mut self, frame: ToWorker) {
        match frame {
            ToWorker::Submit(Submit { id, stop, .. }) => {
                self.running.push(Running { id, made: 0, max_tokens: stop.max_tokens });
            }
            ToWorker::Abort(id) => {
                let before = self.running.len();
                self.running.retain(|running| running.id != id);
                if self.running.len() < before {
                    let events = vec![event(id, None, Some(Finish::Aborted))];
                    self.link.send(FromWorker::Step { events, stats: self.stats });
                }
            }
            ToWorker::Flush => self.link.send(FromWorker::Flushed { pages: 0 }),
            ToWorker::Ping(number) => self.link.send(FromWorker::Pong(number)),
            ToWorker::Drain | ToWorker::Load(_) => {}
        }
    }

    /// One token for each request. Those of one step differ, as they do in earnest.
    fn events(&mut self) -> Vec<TokenEvent> {
        let vocab_size = u64::from(self.vocab_size);
        let mut events = Vec::with_capacity(self.running.len());
        self.running.retain_mut(|running| {
            let draw = (running.id.0 * 7919 + u64::from(running.made) * 104_729) % vocab_size;
            running.made += 1;
            let is_last = running.made >= running.max_tokens;
            events.push(event(running.id, Some(draw as u32), is_last.then_some(Finish::Length)));
            !is_last
        });
        events
    }
}

fn event(id: RequestId, token: Option<u32>, finish: Option<Finish>) -> TokenEvent {
    let sampled = token.map(|token| Sampled { token, logprob: None, top: Vec::new() });
    TokenEvent {
        id,
        sampled,
        prompt_logprobs: Vec::new(),
        cached_tokens: None,
        queue_s: None,
        finish,
    }
}
