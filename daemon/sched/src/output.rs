//! The way home: what a plan sampled, and what ends because of it.

use minisgl_proto::{Finish, Sampled, TokenEvent};

use crate::leave::finish_event;
use crate::plan::StepOutput;
use crate::requests::Key;
use crate::scheduler::Scheduler;

impl Scheduler {
    /// Takes the output of the oldest plan in flight.
    pub(crate) fn take_output(&mut self, output: StepOutput, events: &mut Vec<TokenEvent>) {
        let plan = self.in_flight.pop_front().expect("an output belongs to a plan in flight");
        assert_eq!(output.step, plan.step, "plans finish in the order they were launched");
        assert_eq!(output.sampled.len(), plan.sampled.len(), "one token for each sampled row");
        self.totals.steps += 1;
        self.totals.step_s = output.seconds;
        self.totals.rows = plan.rows;
        self.totals.prefill_tokens = plan.prefill_tokens;
        events.reserve(output.sampled.len());
        for (key, sampled) in plan.sampled.into_iter().zip(output.sampled) {
            self.take_token(key, sampled, events);
        }
    }

    fn take_token(&mut self, key: Key, sampled: Sampled, events: &mut Vec<TokenEvent>) {
        // The row of a request that has ended since; its result means nothing.
        let Some(request) = self.requests.get_mut(key) else { return };
        let token = sampled.token;
        request.pending -= 1;
        if token >= self.config.vocab_size {
            let what = format!(
                "the engine sampled token {token}, the vocabulary has {}",
                self.config.vocab_size
            );
            events.push(finish_event(request.id, Finish::Failed(what)));
            return self.end(key);
        }
        let may_stop = request.generated() >= request.min_tokens as usize;
        request.tokens.push(token);
        self.totals.generated_tokens += 1;
        let finish = if may_stop && request.stop_tokens.contains(&token) {
            Some(Finish::Stop)
        } else if request.tokens.len() == request.max_total {
            Some(Finish::Length)
        } else {
            None
        };
        let is_first = request.generated() == 1;
        let ends = finish.is_some();
        events.push(TokenEvent {
            id: request.id,
            sampled: Some(sampled),
            cached_tokens: is_first.then_some(request.cached as u32),
            queue_s: request.queue_s.filter(|_| is_first),
            finish,
        });
        if ends {
            self.end(key);
        }
    }
}
