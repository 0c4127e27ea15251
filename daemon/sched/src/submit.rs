//! The way in: what is refused, and what is queued.

use minisgl_proto::limits::{LOGIT_BIAS_MAX, STOP_TOKENS_MAX, TOP_LOGPROBS_MAX};
use minisgl_proto::{Finish, Reject, Submit, TokenEvent};

use crate::leave::finish_event;
use crate::request::{Rank, Request};
use crate::scheduler::Scheduler;

impl Scheduler {
    /// Queues a request or refuses it; a refusal is its only event.
    pub(crate) fn submit(&mut self, submit: Submit, now_s: f64, events: &mut Vec<TokenEvent>) {
        if self.keys.contains_key(&submit.id) {
            return;
        }
        match self.check(&submit) {
            Err(reject) => events.push(finish_event(submit.id, Finish::Rejected(reject))),
            Ok(())
                if submit.stop.max_tokens == 0 && next_scored(&submit) == submit.prompt.len() =>
            {
                events.push(finish_event(submit.id, Finish::Length));
            }
            Ok(()) => self.enqueue(submit, now_s),
        }
    }

    fn check(&self, submit: &Submit) -> Result<(), Reject> {
        let prompt = submit.prompt.len();
        let limit = self.config.len_limit() - 1;
        let vocab_size = self.config.vocab_size;
        let biased = submit.sampling.logit_bias.iter().map(|(token, _)| token);
        let mut tokens = submit.prompt.iter().chain(biased);
        if self.draining {
            return Err(Reject::Draining);
        }
        if prompt == 0 {
            return Err(Reject::Empty);
        }
        if prompt > limit {
            return Err(Reject::TooLong { prompt: prompt as u32, limit: limit as u32 });
        }
        if let Some(&token) = tokens.find(|&&token| token >= vocab_size) {
            return Err(Reject::BadToken { token, vocab_size });
        }
        let Submit { sampling, stop, .. } = submit;
        for (field, count, limit) in [
            ("logit_bias", sampling.logit_bias.len(), LOGIT_BIAS_MAX),
            ("logprobs", sampling.logprobs.unwrap_or(0) as usize, TOP_LOGPROBS_MAX as usize),
            (
                "prompt_logprobs",
                sampling.prompt_logprobs.unwrap_or(0) as usize,
                TOP_LOGPROBS_MAX as usize,
            ),
            ("stop_token_ids", stop.stop_token_ids.len(), STOP_TOKENS_MAX),
        ] {
            if count > limit {
                let (count, limit) = (count as u32, limit as u32);
                return Err(Reject::TooMany { field: field.into(), count, limit });
            }
        }
        // A request for which there is a slot does not count as waiting.
        let max_waiting = self.config.max_waiting;
        if self.requests.len() >= self.config.slots() + max_waiting as usize {
            return Err(Reject::QueueFull { limit: max_waiting });
        }
        Ok(())
    }

    fn enqueue(&mut self, submit: Submit, now_s: f64) {
        let next_scored = next_scored(&submit);
        let Submit { id, prompt, sampling, stop, priority } = submit;
        let eos: &[u32] = if stop.ignore_eos { &[] } else { &self.config.eos_token_ids };
        let stop_tokens = eos.iter().chain(&stop.stop_token_ids).copied();
        let max_total = prompt.len().saturating_add(stop.max_tokens as usize);
        let rank = Rank::new(priority, self.arrivals);
        let request = Request {
            id,
            rank,
            sampling,
            stop_tokens: stop_tokens.filter(|&token| token < self.config.vocab_size).collect(),
            min_tokens: stop.min_tokens,
            prompt_len: prompt.len(),
            max_total: max_total.min(self.config.len_limit()),
            computed: 0,
            pending: 0,
            pending_row: 0,
            running: None,
            submitted_s: now_s,
            queue_s: None,
            cached: 0,
            prefix_len: prompt.len(),
            next_scored,
            pending_scores: 0,
            tokens: prompt,
        };
        self.arrivals += 1;
        let key = self.requests.insert(request);
        self.keys.insert(id, key);
        self.waiting.insert(rank, key);
        self.admission_blocked = false;
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
