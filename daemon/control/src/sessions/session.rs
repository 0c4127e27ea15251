//! One request between `submit` and its last event.
//!
//! Owns: what another instance needs to go on at the very next token. Must never: know of other sessions.

use std::time::{Duration, Instant};

use minisgl_proto::admin::{RequestState, RequestStatus};
use minisgl_proto::{Generate, RequestId, SamplingParams, StopParams, Submit, TokenEvent};
use tokio::sync::mpsc;

/// Blame after which a session is suspected of ending its instances. See [`Blame`].
const BLAME_MAX: u8 = 4;

/// Bytes of a session besides its tokens, about.
const SESSION_BYTES: usize = 512;

/// How much the end of an instance speaks against the requests that it had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blame {
    /// The daemon ended it, for reasons of its own.
    None,
    /// SIGKILL from outside: an operator's, or the kernel's when memory runs out. Four in a row are too many.
    Little,
    /// It broke, hung or ended by itself. Two in a row are too many.
    Much,
}

impl Blame {
    fn weight(self) -> u8 {
        match self {
            Blame::None => 0,
            Blame::Little => BLAME_MAX / 4,
            Blame::Much => BLAME_MAX / 2,
        }
    }
}

/// Where a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// With no instance.
    Parked,
    /// With the instance that is attached.
    Sent {
        /// It has brought a token of it.
        running: bool,
    },
    /// Nobody reads it any more; the instance has not let go of it yet.
    Leaving,
}

/// What another instance needs.
struct Journal {
    prompt: Vec<u32>,
    /// Tokens that were delivered.
    generated: Vec<u32>,
}

/// See the module's documentation.
pub(super) struct Session {
    pub(super) place: Place,
    reader: Option<mpsc::Sender<TokenEvent>>,
    /// `None` where there was no room to keep it.
    journal: Option<Journal>,
    sampling: SamplingParams,
    stop: StopParams,
    pub(super) priority: i32,
    request_id: String,
    key: Option<String>,
    prompt_tokens: u32,
    generated_tokens: u32,
    /// Log-probabilities of the prompt that were delivered.
    scored_tokens: u32,
    submitted: Instant,
    sent: Instant,
    /// While it is parked: since when.
    parked_since: Option<Instant>,
    /// How long it was parked before, since its last token.
    parked_before: Duration,
    /// Of the ends of instances in a row that had it, without a token of it between.
    blame: u8,
    /// Times it was sent to another instance.
    moves: u32,
}

impl Session {
    pub(super) fn new(
        request: Generate,
        reader: mpsc::Sender<TokenEvent>,
        now: Instant,
    ) -> Session {
        let Generate { prompt, sampling, stop, priority, request_id, key } = request;
        Session {
            place: Place::Parked,
            reader: Some(reader),
            prompt_tokens: u32::try_from(prompt.len()).unwrap_or(u32::MAX),
            journal: Some(Journal { prompt, generated: Vec::new() }),
            sampling,
            stop,
            priority,
            request_id,
            key,
            generated_tokens: 0,
            scored_tokens: 0,
            submitted: now,
            sent: now,
            parked_since: Some(now),
            parked_before: Duration::ZERO,
            blame: 0,
            moves: 0,
        }
    }

    /// Bytes that it keeps for another instance, about.
    pub(super) fn bytes(&self) -> usize {
        let tokens = self.journal.as_ref().map_or(0, |j| j.prompt.len() + j.generated.len());
        let grammar = self.sampling.guided.as_ref().and_then(|guided| guided.grammar.as_ref());
        let grammar = grammar.map_or(0, |grammar| grammar.bytes());
        SESSION_BYTES + 4 * tokens + 8 * self.sampling.logit_bias.len() + grammar
    }

    /// Another instance cannot go on with it from here on.
    pub(super) fn drop_journal(&mut self) {
        self.journal = None;
    }

    pub(super) fn has_journal(&self) -> bool {
        self.journal.is_some()
    }

    /// What an instance needs to go on with it; `None` without a journal.
    pub(super) fn submit(&self, id: RequestId) -> Option<Submit> {
        let Journal { prompt, generated } = self.journal.as_ref()?;
        let mut sampling = self.sampling.clone();
        if self.scored_tokens > 0 {
            // Nothing comes before the first token, so scores begin with the second.
            sampling.prompt_logprobs_from =
                sampling.prompt_logprobs_from.max(1) + self.scored_tokens;
            if sampling.prompt_logprobs_from as usize >= prompt.len() {
                sampling.prompt_logprobs = None;
            }
        }
        Some(Submit {
            id,
            prompt: prompt.clone(),
            generated: generated.clone(),
            sampling,
            stop: self.stop.clone(),
            priority: self.priority,
        })
    }

    /// An instance has it now.
    pub(super) fn on_sent(&mut self, now: Instant) {
        self.parked_before = self.waited(now);
        self.parked_since = None;
        self.place = Place::Sent { running: false };
        self.sent = now;
    }

    /// Its instance is gone.
    pub(super) fn park(&mut self, blame: Blame, now: Instant) {
        self.place = Place::Parked;
        self.parked_since = Some(now);
        self.blame = self.blame.saturating_add(blame.weight());
        self.moves += 1;
    }

    /// It may be what ends its instances.
    pub(super) fn is_suspect(&self) -> bool {
        self.blame >= BLAME_MAX
    }

    /// How long it has waited for an instance since its last token.
    pub(super) fn waited(&self, now: Instant) -> Duration {
        let since = self.parked_since.map(|since| now.saturating_duration_since(since));
        self.parked_before + since.unwrap_or_default()
    }

    /// Whether the reader has as much to read as it may, the last event aside.
    pub(super) fn is_behind(&self) -> bool {
        self.reader.as_ref().is_some_and(|reader| reader.capacity() <= 1)
    }

    /// Hands an event to the reader. From then on what it brings counts as delivered. Returns whether it was.
    pub(super) fn deliver(&mut self, mut event: TokenEvent) -> bool {
        let Some(reader) = &self.reader else { return false };
        let token = event.sampled.as_ref().map(|sampled| sampled.token);
        let scored = event.prompt_logprobs.len() as u32;
        self.add_wait(&mut event);
        if reader.try_send(event).is_err() {
            return false;
        }
        if token.is_some() || scored > 0 {
            self.scored_tokens += scored;
            self.blame = 0;
            self.parked_before = Duration::ZERO;
            self.place = Place::Sent { running: true };
        }
        if let Some(token) = token {
            self.generated_tokens += 1;
            if let Some(journal) = &mut self.journal {
                journal.generated.push(token);
            }
        }
        true
    }

    /// The worker counts the wait from when it heard of the request.
    fn add_wait(&self, event: &mut TokenEvent) {
        if let Some(seconds) = &mut event.queue_s {
            *seconds += self.sent.saturating_duration_since(self.submitted).as_secs_f32();
        }
    }

    /// Its last event, for which the reader has room; nothing is delivered after it.
    pub(super) fn end(&mut self, mut event: TokenEvent) {
        self.add_wait(&mut event);
        if let Some(reader) = self.reader.take() {
            let _ = reader.try_send(event);
        }
    }

    /// Nobody reads it any more.
    pub(super) fn hang_up(&mut self) {
        self.reader = None;
    }

    /// Its client's name for it.
    pub(super) fn request_id(&self) -> &str {
        &self.request_id
    }

    /// Name of the API key it came with.
    pub(super) fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// For operators; `None` once nobody reads it.
    pub(super) fn status(&self, id: RequestId, model: &str, now: Instant) -> Option<RequestStatus> {
        let state = match self.place {
            Place::Parked => RequestState::Parked,
            Place::Sent { running: false } => RequestState::Waiting,
            Place::Sent { running: true } => RequestState::Running,
            Place::Leaving => return None,
        };
        Some(RequestStatus {
            id: id.0,
            request_id: self.request_id.clone(),
            model: model.to_string(),
            key: self.key.clone(),
            state,
            prompt_tokens: self.prompt_tokens,
            generated_tokens: self.generated_tokens,
            max_tokens: self.stop.max_tokens,
            priority: self.priority,
            age_s: now.saturating_duration_since(self.submitted).as_secs_f64(),
            moves: self.moves,
        })
    }
}
