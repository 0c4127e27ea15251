//! The way home: what a plan sampled and reports, and what ends because of it.

use minisgl_proto::{Finish, NO_TOKEN, Reject, Sampled, TokenEvent};

use crate::guide::Stuck;
use crate::leave::finish_event;
use crate::plan::StepOutput;
use crate::requests::Key;
use crate::scheduler::{Scheduler, Wanted};

/// What is said to a request for which the model gave nothing to sample from.
const BROKEN_LOGITS: &str = "the model's logits for this request are no numbers (NaN, or all -inf): its weights are broken, \
                             its KV pages are of too narrow a type (see --kv-dtype), or the device is faulty";

impl Scheduler {
    /// Takes the output of the oldest plan in flight.
    pub(crate) fn take_output(&mut self, output: StepOutput, events: &mut Vec<TokenEvent>) {
        let plan = self.in_flight.pop_front().expect("an output belongs to a plan in flight");
        assert_eq!(output.step, plan.step, "plans finish in the order they were launched");
        let logits = |wanted: &Wanted| wanted.scored as usize + usize::from(wanted.sampled);
        let expected: usize = plan.wanted.iter().map(logits).sum();
        assert_eq!(
            output.sampled.len(),
            expected,
            "one for each position whose logits were wanted"
        );
        self.totals.steps += 1;
        self.totals.step_s = output.step_s;
        self.totals.rows = plan.rows;
        self.totals.prefill_tokens = plan.prefill_tokens;
        events.reserve(plan.wanted.len());
        let mut outputs = output.sampled.into_iter();
        for Wanted { key, scored, sampled } in plan.wanted {
            let scores: Vec<Sampled> = outputs.by_ref().take(scored as usize).collect();
            let sampled = sampled.then(|| outputs.next()).flatten();
            self.take_row(key, scores, sampled, events);
        }
    }

    /// Takes what became of a row's logits.
    fn take_row(
        &mut self,
        key: Key,
        scores: Vec<Sampled>,
        sampled: Option<Sampled>,
        events: &mut Vec<TokenEvent>,
    ) {
        // The row of a request that has ended since; its result means nothing.
        let Some(request) = self.requests.get_mut(key) else { return };
        request.pending_scores -= scores.len();
        if scores.iter().chain(&sampled).any(|sampled| sampled.token == NO_TOKEN) {
            return self.fail_broken(key, events);
        }
        let mut event = TokenEvent {
            id: request.id,
            sampled: None,
            prompt_logprobs: scores,
            cached_tokens: None,
            queue_s: None,
            finish: None,
        };
        if let Some(sampled) = sampled {
            event.finish = self.take_token(key, sampled.token);
            // One that failed was not sampled.
            event.sampled = Some(sampled)
                .filter(|_| !matches!(event.finish, Some(Finish::Failed(_) | Finish::Rejected(_))));
        } else if request.is_scored_out() {
            event.finish = Some(Finish::Length);
        }
        let Some(request) = self.requests.get(key) else { return };
        if event.sampled.is_some() && request.generated() == 1 || request.is_scored_out() {
            event.cached_tokens = Some(request.cached as u32);
            event.queue_s = request.queue_s;
        }
        let ends = event.finish.is_some();
        events.push(event);
        if ends {
            self.end(key);
        }
    }

    /// Ends a request whose logits are broken. What was computed for it must not reach another: nobody can tell from
    /// which token on it is wrong, so that all that no running request uses is forgotten.
    fn fail_broken(&mut self, key: Key, events: &mut Vec<TokenEvent>) {
        events.push(finish_event(self.requests[key].id, Finish::Failed(BROKEN_LOGITS.to_owned())));
        self.end(key);
        self.cache.flush();
        self.totals.broken_logits += 1;
    }

    /// Adds a sampled token; says whether and why the request ends with it.
    fn take_token(&mut self, key: Key, token: u32) -> Option<Finish> {
        let vocab_size = self.config.vocab_size;
        let request = &mut self.requests[key];
        request.pending -= 1;
        if token >= vocab_size {
            return Some(Finish::Failed(format!(
                "the engine sampled token {token}, the vocabulary has {vocab_size}"
            )));
        }
        let may_stop = request.generated() >= request.min_tokens as usize;
        let stuck = request.guide.as_ref().and_then(|guide| guide.stuck());
        if let Some(Stuck::Held(reason)) = stuck {
            let (field, reason) = (request.guided_by.clone(), reason.clone());
            return Some(Finish::Rejected(Reject::Grammar { field, reason }));
        }
        let is_ruled_out = stuck.is_some()
            || !may_stop && request.stop_tokens.contains(&token)
            || request.guide.as_ref().is_some_and(|guide| !guide.allows(request.output(), token));
        if is_ruled_out {
            // Only where nothing is left does an executor give such a token.
            let field = request.guided_by.clone();
            return Some(Finish::Rejected(Reject::NothingAllowed { field }));
        }
        request.tokens.push(token);
        self.totals.generated_tokens += 1;
        if may_stop && request.stop_tokens.contains(&token) {
            Some(Finish::Stop)
        } else if request.tokens.len() == request.max_total {
            Some(Finish::Length)
        } else {
            None
        }
    }
}
