//! The way in: what is refused, and what is queued.

use minisgl_proto::limits::{
    ALLOWED_TOKENS_MAX, BAD_WORD_TOKENS_MAX, BAD_WORDS_MAX, LOGIT_BIAS_MAX, STOP_TOKENS_MAX,
    TOP_LOGPROBS_MAX,
};
use minisgl_proto::{Finish, Reject, Submit, TokenEvent};

use crate::guide::{Guide, field_of};
use crate::held::Held;
use crate::leave::finish_event;
use crate::request::{Rank, Request};
use crate::scheduler::Scheduler;

impl Scheduler {
    /// Queues a request or refuses it; a refusal is its only event.
    pub(crate) fn submit(
        &mut self,
        (submit, held): (Submit, Option<Held>),
        now_s: f64,
        events: &mut Vec<TokenEvent>,
    ) {
        if self.keys.contains_key(&submit.id) {
            return;
        }
        let id = submit.id;
        let finish = match self.check(&submit, held.is_some()) {
            Err(reject) => Some(Finish::Rejected(reject)),
            Ok(()) => self.end_of(&submit),
        };
        let finish = match finish {
            Some(finish) => Some(finish),
            None => self.enqueue(submit, held, now_s).err().map(Finish::Rejected),
        };
        events.extend(finish.map(|finish| finish_event(id, finish)));
    }

    /// How a request ends that has nothing left to do: no token was asked for, or those that it comes with
    /// are all it may have. Its limits may be lower here than where they were generated.
    fn end_of(&self, submit: &Submit) -> Option<Finish> {
        let Submit { prompt, generated, stop, .. } = submit;
        if next_scored(submit) < prompt.len() {
            return None;
        }
        let stops = |token: &u32| {
            let is_eos = !stop.ignore_eos && self.config.eos_token_ids.contains(token);
            is_eos || stop.stop_token_ids.contains(token)
        };
        let may_stop = generated.len() > stop.min_tokens as usize;
        let max_total = self.max_total(prompt.len(), stop.max_tokens);
        if may_stop && generated.last().is_some_and(stops) {
            Some(Finish::Stop)
        } else if prompt.len() + generated.len() >= max_total {
            Some(Finish::Length)
        } else {
            None
        }
    }

    /// Prompt plus output tokens at most.
    fn max_total(&self, prompt: usize, max_tokens: u32) -> usize {
        prompt.saturating_add(max_tokens as usize).min(self.config.len_limit())
    }

    fn check(&self, submit: &Submit, is_held: bool) -> Result<(), Reject> {
        let prompt = submit.prompt.len();
        let limit = self.config.len_limit() - 1;
        let vocab_size = self.config.vocab_size;
        let biased = submit.sampling.logit_bias.iter().map(|(token, _)| token);
        let guided = submit.sampling.bad_words.iter().flatten();
        let guided = guided.chain(&submit.sampling.allowed_token_ids);
        let mut tokens = submit.prompt.iter().chain(&submit.generated).chain(biased).chain(guided);
        if self.draining {
            return Err(Reject::Draining);
        }
        if prompt == 0 {
            return Err(Reject::Empty);
        }
        if submit.sampling.guided.is_some() && !is_held {
            let field = field_of(&submit.sampling);
            let reason = "this worker holds no output to a grammar".to_owned();
            return Err(Reject::Grammar { field, reason });
        }
        // One that began elsewhere ends here, by length.
        if prompt > limit && submit.generated.is_empty() {
            return Err(Reject::TooLong { prompt: prompt as u32, limit: limit as u32 });
        }
        if let Some(&token) = tokens.find(|&&token| token >= vocab_size) {
            return Err(Reject::BadToken { token, vocab_size });
        }
        let Submit { sampling, stop, .. } = submit;
        let longest = sampling.bad_words.iter().map(Vec::len).max().unwrap_or(0);
        for (field, count, limit) in [
            ("logit_bias", sampling.logit_bias.len(), LOGIT_BIAS_MAX),
            ("logprobs", sampling.logprobs.unwrap_or(0) as usize, TOP_LOGPROBS_MAX as usize),
            (
                "prompt_logprobs",
                sampling.prompt_logprobs.unwrap_or(0) as usize,
                TOP_LOGPROBS_MAX as usize,
            ),
            ("stop_token_ids", stop.stop_token_ids.len(), STOP_TOKENS_MAX),
            ("allowed_token_ids", sampling.allowed_token_ids.len(), ALLOWED_TOKENS_MAX),
            ("bad_words", sampling.bad_words.len(), BAD_WORDS_MAX),
            ("bad_words", longest, BAD_WORD_TOKENS_MAX),
        ] {
            if count > limit {
                let (count, limit) = (count as u32, limit as u32);
                return Err(Reject::TooMany { field: field.into(), count, limit });
            }
        }
        if sampling.bad_words.iter().any(Vec::is_empty) {
            return Err(Reject::NothingAllowed { field: "bad_words".to_owned() });
        }
        // A request for which there is a slot does not count as waiting.
        let max_waiting = self.config.max_waiting;
        if self.requests.len() >= self.config.slots() + max_waiting as usize {
            return Err(Reject::QueueFull { limit: max_waiting });
        }
        Ok(())
    }

    /// Queues a request that was checked; one that allows no token at all is refused.
    fn enqueue(&mut self, submit: Submit, held: Option<Held>, now_s: f64) -> Result<(), Reject> {
        let next_scored = next_scored(&submit);
        let Submit { id, prompt, generated, mut sampling, stop, priority } = submit;
        let guided_by = field_of(&sampling);
        let guide = Guide::take(&mut sampling, held, self.config.vocab_size);
        if guide.as_ref().is_some_and(|guide| !guide.allows_any()) {
            return Err(Reject::NothingAllowed { field: guided_by });
        }
        let eos: &[u32] = if stop.ignore_eos { &[] } else { &self.config.eos_token_ids };
        let stop_tokens = eos.iter().chain(&stop.stop_token_ids).copied();
        let (prompt_len, mut tokens) = (prompt.len(), prompt);
        tokens.extend(generated);
        let rank = Rank::new(priority, self.arrivals);
        let request = Request {
            id,
            rank,
            guide,
            guided_by,
            sampling,
            stop_tokens: stop_tokens.filter(|&token| token < self.config.vocab_size).collect(),
            min_tokens: stop.min_tokens,
            prompt_len,
            max_total: self.max_total(prompt_len, stop.max_tokens),
            computed: 0,
            pending: 0,
            running: None,
            submitted_s: now_s,
            queue_s: None,
            cached: 0,
            prefix_len: tokens.len(),
            next_scored,
            pending_scores: 0,
            tokens,
        };
        self.arrivals += 1;
        let key = self.requests.insert(request);
        self.keys.insert(id, key);
        self.waiting.insert(rank, key);
        self.admission_blocked = false;
        Ok(())
    }
}

/// Position of the first prompt token whose log-probability is wanted, or the prompt's length.
fn next_scored(submit: &Submit) -> usize {
    let Submit { prompt, sampling, .. } = submit;
    match sampling.prompt_logprobs {
        // Nothing comes before the first token, so it has no probability.
        Some(_) => (sampling.prompt_logprobs_from.max(1) as usize).min(prompt.len()),
        None => prompt.len(),
    }
}
