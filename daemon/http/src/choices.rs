//! The running generations of one HTTP request, as one stream of parts.
//!
//! ```text
//!   events of choice 0 --> detokenize --> stop strings --> a Reader's parts --\
//!   events of choice 1 --> detokenize --> stop strings --> a Reader's parts ----> Delta, Delta, ... in order of arrival
//! ```
//!
//! The log-probabilities of a prompt's own tokens are computed for its first choice and are those of all. Until they are
//! there, what its other choices say is held, which is at most what they may say.
//!
//! Owns: the generations, so dropping it aborts them all. Must never: buffer for a client. It takes an event only
//! when polled, so a slow client fills nothing but the backend's own bounded channel.

use std::cell::Cell;
use std::collections::VecDeque;
use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::http::StatusCode;
use minisgl_proto::{Finish, Sampled, TokenEvent};

use crate::backend::{Generate, Generation, Model};
use crate::detokenize::{Detokenizer, Show};
use crate::error::ApiError;
use crate::part::{Delta, Ended, Part, Scored, Usage, Whole};
use crate::random::choice_seed;
use crate::record::{Record, Tally};
use crate::room::Room;
use crate::sampling::Wanted;
use crate::stop::StopMatcher;
use crate::talk::{Reader, Said, Talk};
use crate::tokenizer::TextModel;
use crate::wire::Halt;

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
    /// How it is told apart; `None`: all of it is text.
    pub talk: Option<Talk>,
    /// Whether token ids are part of the answer.
    pub ids: bool,
    /// Name of the field that a prompt comes from.
    pub param: &'static str,
    /// Its id, for logs, and for whoever ends it by that.
    pub request_id: String,
    /// Name of the API key it came with.
    pub key: Option<String>,
}

/// The generations of one request.
pub struct Choices {
    choices: Vec<Choice>,
    /// Choices of one prompt, which stand side by side.
    per_prompt: usize,
    /// How many have not ended.
    running: usize,
    /// The choice that is asked first.
    turn: usize,
    total: Usage,
    common: Common,
    /// Says when they are to end early.
    halt: Option<Halt>,
}

/// What all choices share.
struct Common {
    text: Arc<TextModel>,
    tally: Tally,
    min_tokens: usize,
    include_stop: bool,
    ids: bool,
    retry_after_s: u32,
}

struct Choice {
    generation: Option<Generation>,
    detokenizer: Detokenizer,
    stops: StopMatcher,
    /// Tells thoughts and calls from text, where there may be some.
    reader: Option<Box<Reader>>,
    max_tokens: u32,
    usage: Usage,
    /// Whether it stands for its prompt where a prompt counts once.
    is_first: bool,
    begun: bool,
    last_token: Option<Instant>,
    /// Tokens whose text is not delivered yet, if log-probabilities were asked for.
    scores: Option<Box<Scores>>,
    /// Ids that are not delivered yet.
    ids: Vec<u32>,
    /// The prompt's tokens that are not delivered yet.
    prompt: Arc<Vec<Sampled>>,
    /// Whether it waits for them, and for nothing of its own.
    awaits_prompt: bool,
    /// What it said meanwhile.
    held: VecDeque<TokenEvent>,
}

/// Scored tokens on their way.
#[derive(Default)]
struct Scores {
    /// In order, each with the bytes of text before it.
    pending: Vec<Scored>,
    starts: Vec<usize>,
    /// Bytes and characters of the text so far.
    bytes: usize,
    chars: usize,
    /// Bytes that were delivered.
    delivered: usize,
}

/// Space for one piece of text at a time: a thread's, so that no stream holds any.
#[derive(Default)]
struct Scratch {
    new: String,
    out: String,
    said: Said,
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
}

/// Where [`Choices::poll_parts`] stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All choices have ended.
    Done,
    /// The sink wants no more for now.
    Full,
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
        let Job { model, text, prompts, wanted, at_start, talk, ids, param, request_id, key } = job;
        let info = model.info();
        if !wanted.stop_strings.is_empty() {
            text.need_tokenizer("stop")?;
        }
        let mut stops = Vec::with_capacity(prompts.len());
        for prompt in &prompts {
            if prompt.is_empty() {
                return Err(ApiError::field(param, format!("{param} has no token")));
            }
            stops.push(wanted.stop_for(prompt.len(), Room::of(info), param)?);
        }
        let mut choices = Vec::with_capacity(prompts.len() * wanted.n as usize);
        let mut total = Usage::default();
        for (prompt, stop) in prompts.into_iter().zip(stops) {
            let tokens = prompt.len();
            for (choice, prompt) in
                (0..wanted.n).zip(std::iter::repeat_n(prompt, wanted.n as usize))
            {
                let mut sampling = wanted.sampling.clone();
                sampling.seed = choice_seed(seed, choice);
                let awaits_prompt = choice > 0 && sampling.prompt_logprobs.is_some();
                if awaits_prompt {
                    sampling.prompt_logprobs = None;
                    sampling.prompt_logprobs_from = 0;
                }
                let request = Generate {
                    prompt,
                    sampling,
                    stop: stop.clone(),
                    priority: wanted.priority,
                    request_id: request_id.clone(),
                    key: key.clone(),
                };
                let generation = model
                    .submit(request)
                    .map_err(|refusal| ApiError::from_unavailable(&refusal, retry_after_s))?;
                if choice == 0 {
                    record.prompt(tokens);
                    total.prompt += tokens;
                }
                let scored = wanted.sampling.logprobs.is_some();
                let reader = talk.as_ref().and_then(|talk| talk.reader(choice));
                let show = match (wanted.skip_special, &reader) {
                    (false, _) => Show::All,
                    (true, Some(_)) => Show::Markers,
                    (true, None) => Show::None,
                };
                choices.push(Choice {
                    generation: Some(generation),
                    detokenizer: text.detokenizer(show, at_start),
                    stops: StopMatcher::new(wanted.stop_strings.clone(), wanted.include_stop),
                    reader,
                    max_tokens: stop.max_tokens,
                    usage: Usage { prompt: tokens, ..Usage::default() },
                    is_first: choice == 0,
                    begun: false,
                    last_token: None,
                    scores: scored.then(Box::default),
                    ids: Vec::new(),
                    prompt: Arc::default(),
                    awaits_prompt,
                    held: VecDeque::new(),
                });
            }
        }
        let (min_tokens, include_stop) = (wanted.min_tokens() as usize, wanted.include_stop);
        let (tally, per_prompt) = (Tally::new(record), wanted.n as usize);
        let common = Common { text, tally, min_tokens, include_stop, ids, retry_after_s };
        let running = choices.len();
        Ok(Choices { running, choices, per_prompt, turn: 0, total, common, halt: None })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.choices.len()
    }

    /// Ends them all, as [`ApiError::cancelled`], when this receives.
    pub fn halt_at(&mut self, halt: Option<Halt>) {
        self.halt = halt;
    }

    /// Token counts of the whole request: a prompt counts once, however many choices it has.
    pub fn total(&self) -> Usage {
        self.total
    }

    /// Hands over all that is there, until the sink answers `false`. Pending: there is nothing more yet.
    ///
    /// # Errors
    /// One failed, and so they all did.
    pub fn poll_parts(
        &mut self,
        cx: &mut Context<'_>,
        mut sink: impl FnMut(&Delta<'_>) -> bool,
    ) -> Poll<Result<Progress, ApiError>> {
        if let Some(halt) = &mut self.halt
            && let Poll::Ready(word) = Pin::new(halt).poll(cx)
        {
            self.halt = None;
            if word.is_ok() {
                self.abort();
                return Poll::Ready(Err(ApiError::cancelled()));
            }
        }
        let mut scratch = SCRATCH.take();
        let progress = self.poll_with(cx, &mut scratch, &mut sink);
        SCRATCH.set(scratch);
        if matches!(progress, Poll::Ready(Err(_))) {
            self.abort();
        }
        progress
    }

    fn poll_with(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut Scratch,
        sink: &mut impl FnMut(&Delta<'_>) -> bool,
    ) -> Poll<Result<Progress, ApiError>> {
        // One look at the clock for all that is there at once.
        let mut now = None;
        let count = self.choices.len();
        let (mut step, mut steps) = (0, count);
        while step < steps {
            let index = (self.turn + step) % count;
            step += 1;
            // Each choice is asked until it has nothing new, so that its waker is in place.
            while let Poll::Ready(event) = self.choices[index].next_event(cx, &self.common) {
                let event = event?;
                let has_token = event.sampled.is_some();
                let has_prompt = has_token || event.finish.is_some();
                let now = *now.get_or_insert_with(Instant::now);
                let choice = &mut self.choices[index];
                let taken = choice.take(event, &mut self.common, &mut self.total, now, scratch);
                if has_prompt && self.share_prompt(index) {
                    // What the others hold can go.
                    steps = step + count;
                }
                let choice = &mut self.choices[index];
                let thought = choice.thinks();
                let told = match taken {
                    Ok(taken) => choice.read(taken, scratch, &mut self.common),
                    Err(error) => return Poll::Ready(Err(error)),
                };
                if has_token && (thought || choice.thinks()) {
                    choice.usage.reasoning += 1;
                    self.total.reasoning += 1;
                }
                let ended = match told {
                    Taken::Nothing => continue,
                    Taken::Text => None,
                    Taken::End(ended) => Some(ended),
                };
                let scored = choice.scored(scratch.out.len(), ended.as_ref());
                let delta = |part, is_last: bool| Delta {
                    choice: index,
                    part,
                    tokens: match &choice.scores {
                        Some(scores) if is_last => &scores.pending[..scored],
                        _ => &[],
                    },
                    ids: if is_last { &choice.ids } else { &[] },
                    prompt: if is_last { &choice.prompt } else { &[] },
                    ended: ended.as_ref().filter(|_| is_last),
                    usage: choice.usage,
                    total: self.total,
                };
                let more = match (&choice.reader, scratch.said.len()) {
                    (None, _) => sink(&delta(Part::Text(&scratch.out), true)),
                    (Some(_), 0) => sink(&delta(Part::Text(""), true)),
                    // They are of one event: all of them go.
                    (Some(_), parts) => {
                        let mut more = true;
                        for at in 0..parts {
                            more &= sink(&delta(scratch.said.part(at), at + 1 == parts));
                        }
                        more
                    }
                };
                choice.delivered(scored);
                if ended.is_some() {
                    choice.generation = None;
                    self.running -= 1;
                }
                if !more {
                    self.turn = (index + 1) % count;
                    return Poll::Ready(Ok(Progress::Full));
                }
            }
        }
        if self.running == 0 { Poll::Ready(Ok(Progress::Done)) } else { Poll::Pending }
    }

    /// All scores of its prompt are there: they are those of the prompt's other choices, too. Whether any waited.
    fn share_prompt(&mut self, index: usize) -> bool {
        let end = (index + self.per_prompt).min(self.choices.len());
        let [first, others @ ..] = &mut self.choices[index..end] else { return false };
        if !first.is_first {
            return false;
        }
        let mut any = false;
        for other in others.iter_mut().filter(|other| other.awaits_prompt) {
            other.prompt = Arc::clone(&first.prompt);
            other.awaits_prompt = false;
            any = true;
        }
        any
    }

    /// Waits for all of them; one whole each. `hear` hears each delta.
    ///
    /// # Errors
    /// One failed, and so they all did.
    pub async fn gather(
        &mut self,
        mut hear: impl FnMut(&Delta<'_>),
    ) -> Result<Vec<Whole>, ApiError> {
        let mut wholes = vec![Whole::default(); self.choices.len()];
        std::future::poll_fn(|cx| {
            self.poll_parts(cx, |delta| {
                wholes[delta.choice].fold(delta);
                hear(delta);
                true
            })
        })
        .await?;
        Ok(wholes)
    }

    /// Ends everything that still runs.
    fn abort(&mut self) {
        self.running = 0;
        for choice in &mut self.choices {
            choice.generation = None;
        }
    }
}

/// What an event came to; the text is in the scratch.
enum Taken {
    /// Nothing that can be delivered yet.
    Nothing,
    Text,
    End(Ended),
}

impl Choice {
    /// What is to be taken next. Pending: there is nothing now, or nothing more.
    ///
    /// # Errors
    /// It was cut off, or it failed while its prompt was awaited.
    fn next_event(
        &mut self,
        cx: &mut Context<'_>,
        common: &Common,
    ) -> Poll<Result<TokenEvent, ApiError>> {
        let Some(generation) = &mut self.generation else { return Poll::Pending };
        if !self.awaits_prompt
            && let Some(event) = self.held.pop_front()
        {
            return Poll::Ready(Ok(event));
        }
        while self.held.back().is_none_or(|last| last.finish.is_none()) {
            let event = match generation.events.poll_recv(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(event)) => event,
                Poll::Ready(None) => return Poll::Ready(Err(too_slow())),
            };
            if !self.awaits_prompt {
                return Poll::Ready(Ok(event));
            }
            let failed = event.finish.as_ref();
            let failed = failed.and_then(|it| ApiError::from_finish(it, common.retry_after_s));
            if let Some(error) = failed {
                return Poll::Ready(Err(error));
            }
            self.held.push_back(event);
        }
        Poll::Pending
    }

    fn take(
        &mut self,
        event: TokenEvent,
        common: &mut Common,
        total: &mut Usage,
        now: Instant,
        Scratch { new, out, .. }: &mut Scratch,
    ) -> Result<Taken, ApiError> {
        let TokenEvent { sampled, prompt_logprobs, cached_tokens, queue_s, finish, .. } = event;
        if let Some(finish) = &finish
            && let Some(error) = ApiError::from_finish(finish, common.retry_after_s)
        {
            return Err(error);
        }
        new.clear();
        out.clear();
        Arc::make_mut(&mut self.prompt).extend(prompt_logprobs);
        if !self.begun && (sampled.is_some() || cached_tokens.is_some()) {
            self.begun = true;
            let cached = cached_tokens.unwrap_or(0);
            self.usage.cached = cached as usize;
            let counted = if self.is_first { cached } else { 0 };
            total.cached += counted as usize;
            common.tally.first_token(counted, queue_s);
        }
        let mut ended = match finish {
            Some(Finish::Length) => {
                let tokens = self.usage.completion + usize::from(sampled.is_some());
                let is_cut = tokens < self.max_tokens as usize;
                Some(Ended::Length { tokens, room: is_cut.then(|| self.usage.prompt + tokens) })
            }
            Some(_) => Some(Ended::StopToken(sampled.as_ref().map(|sampled| sampled.token))),
            None => None,
        };
        if let Some(sampled) = sampled {
            self.usage.completion += 1;
            total.completion += 1;
            common.tally.token(self.last_token.replace(now).map(|last| now - last), now);
            if common.ids {
                self.ids.push(sampled.token);
            }
            let is_text = common.include_stop || !matches!(ended, Some(Ended::StopToken(_)));
            // A call may be closed by what ends an output.
            let is_marker = self.reader.is_some() && common.text.is_marker(sampled.token);
            if is_text || is_marker {
                common.text.push(&mut self.detokenizer, sampled.token, new);
            }
            if is_text && let Some(scores) = &mut self.scores {
                scores.push(sampled);
            }
        }
        if ended.is_some() {
            common.text.finish(&mut self.detokenizer, new);
        }
        if let Some(scores) = &mut self.scores {
            scores.bytes += new.len();
            scores.chars += new.chars().count();
        }
        if self.usage.completion < common.min_tokens {
            out.push_str(new);
        } else if let Some(stop) = self.stops.push(new, out) {
            ended = Some(Ended::StopString(stop));
        }
        if let Some(ended) = ended {
            self.stops.finish(out);
            return Ok(Taken::End(ended));
        }
        // Without a tokenizer there never is a text, and the tokens themselves are what is delivered.
        let is_nothing =
            out.is_empty() && (common.text.has_tokenizer() || self.usage.completion == 0);
        Ok(if is_nothing { Taken::Nothing } else { Taken::Text })
    }

    /// Tells the text in the scratch apart. The one call that was asked for ends the output as well.
    fn read(
        &mut self,
        taken: Taken,
        Scratch { out, said, .. }: &mut Scratch,
        common: &mut Common,
    ) -> Taken {
        let Some(reader) = &mut self.reader else { return taken };
        let is_last = matches!(taken, Taken::End(_));
        if matches!(taken, Taken::Nothing) {
            return taken;
        }
        let over = reader.read(out, is_last, said);
        let taken = match taken {
            Taken::Text if over => Taken::End(Ended::Called),
            Taken::Text if said.len() == 0 => Taken::Nothing,
            taken => taken,
        };
        if matches!(taken, Taken::End(_)) {
            if !is_last {
                reader.close();
            }
            common.tally.calls(reader.counts());
        }
        taken
    }

    /// Whether its tokens are thoughts now.
    fn thinks(&self) -> bool {
        self.reader.as_ref().is_some_and(|reader| reader.thinks())
    }

    /// How many scored tokens go with so many bytes of text: those of which at least a part is in it. At the
    /// end all do, but those behind a stop string.
    fn scored(&mut self, bytes: usize, ended: Option<&Ended>) -> usize {
        let Some(scores) = &mut self.scores else { return 0 };
        scores.delivered = match &self.reader {
            None => scores.delivered + bytes,
            Some(reader) => reader.settled(),
        };
        match ended {
            Some(Ended::StopToken(_) | Ended::Length { .. }) => scores.pending.len(),
            _ => scores.starts.partition_point(|&start| start < scores.delivered),
        }
    }

    /// A delta went out, with so many scored tokens.
    fn delivered(&mut self, scored: usize) {
        if let Some(scores) = &mut self.scores {
            scores.pending.drain(..scored);
            scores.starts.drain(..scored);
        }
        self.ids.clear();
        self.prompt = Arc::default();
    }
}

impl Scores {
    fn push(&mut self, sampled: Sampled) {
        self.pending.push(Scored { sampled, at: self.chars });
        self.starts.push(self.bytes);
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
