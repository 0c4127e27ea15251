//! The ways out: a request ends, or is preempted. Either way it then holds nothing.

use minisgl_proto::{Finish, RequestId, TokenEvent};

use crate::request::Running;
use crate::requests::Key;
use crate::scheduler::Scheduler;

impl Scheduler {
    /// Ends a request at once, wherever it is.
    pub(crate) fn abort(&mut self, id: RequestId, events: &mut Vec<TokenEvent>) {
        let Some(&key) = self.keys.get(&id) else { return };
        self.end(key);
        // A token that came in this very step takes the news along. An event that is the last of its request is
        // another's, which had the same id before.
        match events.iter_mut().rev().find(|event| event.id == id) {
            Some(event) if event.finish.is_none() => event.finish = Some(Finish::Aborted),
            _ => events.push(finish_event(id, Finish::Aborted)),
        }
    }

    /// Forgets a request and gives back all it held. What it has computed stays in the tree.
    pub(crate) fn end(&mut self, key: Key) {
        if self.requests[key].running.is_some() {
            self.running.retain(|&other| other != key);
            self.release(key);
        }
        let request = self.requests.remove(key).expect("a request ends once");
        self.keys.remove(&request.id);
        self.waiting.remove(&request.rank);
        self.admission_blocked = false;
    }

    /// Takes everything from the last of the running requests and puts it back into the queue,
    /// where its rank puts it before all later ones of its priority.
    pub(crate) fn preempt_last(&mut self) {
        let key = self.running.pop().expect("someone is short of pages");
        self.release(key);
        let request = &mut self.requests[key];
        request.computed = 0;
        self.waiting.insert(request.rank, key);
        self.totals.preemptions += 1;
        self.admission_blocked = false;
    }

    fn release(&mut self, key: Key) {
        let request = &mut self.requests[key];
        let Some(Running { slot, counts, mut table, .. }) = request.running.take() else { return };
        self.cache.publish(&mut table, request.publishable());
        self.free_slots.push(slot);
        self.free_counts.extend(counts);
    }
}

/// The last event of a request that ends without a token.
pub(crate) fn finish_event(id: RequestId, finish: Finish) -> TokenEvent {
    TokenEvent {
        id,
        sampled: None,
        prompt_logprobs: Vec::new(),
        cached_tokens: None,
        queue_s: None,
        finish: Some(finish),
    }
}
