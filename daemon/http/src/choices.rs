//! The running generations of one HTTP request, as one stream of pieces of text.
//!
//! ```text
//!   events of choice 0 --> detokenize --> stop strings --\
//!   events of choice 1 --> detokenize --> stop strings ----> Delta, Delta, ... in order of arrival
//! ```
//!
//! Owns: the generations, so dropping it aborts them all. Must never: buffer. It takes an event only
//! when polled, so a slow client fills nothing but the backend's own bounded channel.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::http::StatusCode;
use futures_util::{Stream, StreamExt};
use minisgl_proto::{Finish, Sampled, TokenEvent};

use crate::backend::{Generate, Generation, Model};
use crate::detokenize::Detokenizer;
use crate::error::ApiError;
use crate::random::choice_seed;
use crate::record::Record;
use crate::sampling::Wanted;
use crate::stop::StopMatcher;
use crate::tokenizer::TextModel;

/// Why a choice ended well.
#[derive(Clone, Debug, PartialEq)]
pub enum Ended {
    /// A stop token of this id, which is not part of the text; absent if the worker did not say.
    StopToken(Option<u32>),
    /// A stop string.
    StopString(String),
    /// `max_tokens`, or the end of the context.
    Length {
        /// Tokens that were allowed.
        max_tokens: u32,
    },
}

impl Ended {
    /// OpenAI's `finish_reason`.
    pub fn reason(&self) -> &'static str {
        match self {
            Ended::StopToken(_) | Ended::StopString(_) => "stop",
            Ended::Length { .. } => "length",
        }
    }
}

/// The next piece of one choice.
#[derive(Clone, Debug, PartialEq)]
pub struct Delta {
    /// Which choice: prompts in order, `n` choices each.
    pub choice: usize,
    /// Whole characters; may be empty when the choice ends.
    pub text: String,
    /// The tokens behind the text, if log-probabilities were asked for. A stop token is not there.
    pub tokens: Vec<Sampled>,
    /// Set on the choice's last delta.
    pub ended: Option<Ended>,
}

/// Token counts of one choice so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of its prompt.
    pub prompt: usize,
    /// Those of them that came from the prefix cache.
    pub cached: usize,
    /// Tokens generated, a stop token included.
    pub completion: usize,
}

/// What to generate.
pub struct Job {
    /// On what.
    pub model: Arc<dyn Model>,
    /// Its text side.
    pub text: Arc<TextModel>,
    /// Token ids of each prompt.
    pub prompts: Vec<Vec<u32>>,
    /// How.
    pub wanted: Wanted,
    /// The generated text is a text of its own and does not continue the prompt's.
    pub at_start: bool,
    /// Name of the field that a prompt comes from.
    pub param: &'static str,
}

/// The generations of one request.
pub struct Choices {
    choices: Vec<Choice>,
    /// Choices that have not ended, in the order they are asked.
    live: VecDeque<usize>,
    peeked: Option<Delta>,
    text: Arc<TextModel>,
    record: Arc<Record>,
    retry_after_s: u32,
    per_prompt: usize,
}

struct Choice {
    generation: Option<Generation>,
    detokenizer: Detokenizer,
    stops: StopMatcher,
    min_tokens: usize,
    max_tokens: u32,
    include_stop: bool,
    /// Whether `tokens` are wanted, and those not delivered yet.
    logprobs: bool,
    pending: Vec<Sampled>,
    usage: Usage,
    /// Every token so far, a stop token and those of a stop string included.
    token_ids: Vec<u32>,
    /// Whether it stands for its prompt where a prompt counts once.
    is_first: bool,
    last_token: Option<Instant>,
}

impl Choices {
    /// Submits everything, or nothing.
    ///
    /// # Errors
    /// A prompt does not fit, or the backend refuses; what was submitted before is aborted.
    pub fn start(
        job: Job,
        seed: u64,
        record: Arc<Record>,
        retry_after_s: u32,
    ) -> Result<Choices, ApiError> {
        let Job { model, text, prompts, wanted, at_start, param } = job;
        let info = model.info();
        let mut choices = Vec::with_capacity(prompts.len() * wanted.n as usize);
        let mut stops = Vec::with_capacity(prompts.len());
        if !wanted.stop_strings.is_empty() {
            text.need_tokenizer("stop")?;
        }
        for prompt in &prompts {
            if prompt.is_empty() {
                return Err(ApiError::field(param, format!("{param} has no token")));
            }
            stops.push(wanted.stop_for(prompt.len(), info.max_len, param)?);
        }
        for (prompt, stop) in prompts.iter().zip(stops) {
            for choice in 0..wanted.n {
                let mut sampling = wanted.sampling.clone();
                sampling.seed = choice_seed(seed, choice);
                let request = Generate {
                    prompt: prompt.clone(),
                    sampling,
                    stop: stop.clone(),
                    priority: wanted.priority,
                    request_id: String::new(),
                    key: None,
                };
                let generation = model
                    .submit(request)
                    .map_err(|refusal| ApiError::from_unavailable(&refusal, retry_after_s))?;
                if choice == 0 {
                    record.prompt(prompt.len());
                }
                choices.push(Choice {
                    generation: Some(generation),
                    detokenizer: text.detokenizer(wanted.skip_special, at_start),
                    stops: StopMatcher::new(wanted.stop_strings.clone(), wanted.include_stop),
                    min_tokens: wanted.min_tokens() as usize,
                    max_tokens: stop.max_tokens,
                    include_stop: wanted.include_stop,
                    logprobs: wanted.sampling.logprobs.is_some(),
                    pending: Vec::new(),
                    usage: Usage { prompt: prompt.len(), ..Usage::default() },
                    token_ids: Vec::new(),
                    is_first: choice == 0,
                    last_token: None,
                });
            }
        }
        let live = (0..choices.len()).collect();
        let per_prompt = wanted.n as usize;
        Ok(Choices { choices, live, peeked: None, text, record, retry_after_s, per_prompt })
    }

    /// Waits until there is something to deliver, so that a failure before it has its own status.
    ///
    /// # Errors
    /// The generation failed before its first text.
    pub async fn begin(&mut self) -> Result<(), ApiError> {
        if let Some(first) = self.next().await {
            self.peeked = Some(first?);
        }
        Ok(())
    }

    /// Waits for all of them; one delta each, with everything.
    ///
    /// # Errors
    /// One failed, and so they all did.
    pub async fn gather(&mut self) -> Result<Vec<Delta>, ApiError> {
        let mut whole: Vec<Delta> = (0..self.choices.len())
            .map(|choice| Delta { choice, text: String::new(), tokens: Vec::new(), ended: None })
            .collect();
        while let Some(delta) = self.next().await {
            let delta = delta?;
            let so_far = &mut whole[delta.choice];
            so_far.text += &delta.text;
            so_far.tokens.extend(delta.tokens);
            so_far.ended = delta.ended;
        }
        Ok(whole)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.choices.len()
    }

    /// Token counts of one choice.
    pub fn usage(&self, choice: usize) -> Usage {
        self.choices[choice].usage
    }

    /// The tokens that [`Usage::completion`] counts.
    pub fn token_ids(&self, choice: usize) -> &[u32] {
        &self.choices[choice].token_ids
    }

    /// Token counts of the whole request: a prompt counts once, however many choices it has.
    pub fn total(&self) -> Usage {
        let mut total = Usage::default();
        for (index, choice) in self.choices.iter().enumerate() {
            total.completion += choice.usage.completion;
            if index % self.per_prompt == 0 {
                total.prompt += choice.usage.prompt;
                total.cached += choice.usage.cached;
            }
        }
        total
    }

    /// Ends everything that still runs.
    fn abort(&mut self) {
        self.live.clear();
        for choice in &mut self.choices {
            choice.generation = None;
        }
    }
}

impl Stream for Choices {
    type Item = Result<Delta, ApiError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if let Some(delta) = this.peeked.take() {
            return Poll::Ready(Some(Ok(delta)));
        }
        for _ in 0..this.live.len() {
            let Some(index) = this.live.pop_front() else { break };
            let choice = &mut this.choices[index];
            // Each choice is asked until it has nothing new, so that its waker is in place.
            while let Some(generation) = &mut choice.generation {
                let event = match generation.events.poll_recv(cx) {
                    Poll::Pending => {
                        this.live.push_back(index);
                        break;
                    }
                    Poll::Ready(event) => event,
                };
                let taken = match event {
                    Some(event) => choice.take(event, &this.text, &this.record, this.retry_after_s),
                    None => Err(too_slow()),
                };
                match taken {
                    Ok(None) => {}
                    Ok(Some(piece)) => {
                        if piece.ended.is_some() {
                            choice.generation = None;
                        } else {
                            this.live.push_back(index);
                        }
                        return Poll::Ready(Some(Ok(Delta { choice: index, ..piece })));
                    }
                    Err(error) => {
                        this.abort();
                        return Poll::Ready(Some(Err(error)));
                    }
                }
            }
        }
        if this.live.is_empty() { Poll::Ready(None) } else { Poll::Pending }
    }
}

impl Choice {
    /// What an event adds to the text, if anything can be delivered.
    fn take(
        &mut self,
        event: TokenEvent,
        text: &TextModel,
        record: &Record,
        retry_after_s: u32,
    ) -> Result<Option<Delta>, ApiError> {
        let TokenEvent { sampled, cached_tokens, queue_s, finish, .. } = event;
        if let Some(error) = finish.as_ref().and_then(|f| ApiError::from_finish(f, retry_after_s)) {
            return Err(error);
        }
        let mut ended = match finish {
            Some(Finish::Length) => Some(Ended::Length { max_tokens: self.max_tokens }),
            Some(_) => Some(Ended::StopToken(sampled.as_ref().map(|sampled| sampled.token))),
            None => None,
        };
        let mut new = String::new();
        if let Some(sampled) = sampled {
            self.count(cached_tokens, queue_s, record);
            self.token_ids.push(sampled.token);
            let is_stop_token = matches!(ended, Some(Ended::StopToken(_)));
            if !is_stop_token || self.include_stop {
                text.push(&mut self.detokenizer, sampled.token, &mut new);
                if self.logprobs {
                    self.pending.push(sampled);
                }
            }
        }
        if ended.is_some() {
            text.finish(&mut self.detokenizer, &mut new);
        }
        let mut out = if self.usage.completion < self.min_tokens {
            new
        } else {
            let passed = self.stops.push(&new);
            if let Some(stop) = passed.stopped {
                ended = Some(Ended::StopString(stop));
            }
            passed.text
        };
        if ended.is_some() {
            out += &self.stops.finish();
        }
        // Without a tokenizer there never is a text, and the tokens themselves are what is delivered.
        if out.is_empty() && ended.is_none() && text.has_tokenizer() {
            return Ok(None);
        }
        let tokens = std::mem::take(&mut self.pending);
        Ok(Some(Delta { choice: 0, text: out, tokens, ended }))
    }

    fn count(&mut self, cached: Option<u32>, queue_s: Option<f32>, record: &Record) {
        let now = Instant::now();
        if self.usage.completion == 0 {
            self.usage.cached = cached.unwrap_or(0) as usize;
            let counted = if self.is_first { cached.unwrap_or(0) } else { 0 };
            record.first_token(counted, queue_s);
        }
        self.usage.completion += 1;
        record.token(self.last_token.replace(now).map(|last| now - last));
    }
}

fn too_slow() -> ApiError {
    ApiError::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "the request was cut off: the client reads more slowly than tokens come and its buffer is \
         full",
    )
    .with_code("client_too_slow")
}
