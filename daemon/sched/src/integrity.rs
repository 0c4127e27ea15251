//! The integrity check: every invariant of scheduling, recomputed from scratch.
//!
//! Owns: nothing. Must never: change or repair what it looks at. Linear in requests and pages; for
//! tests, and for a worker that is idle.

use std::collections::HashSet;

use crate::request::Request;
use crate::requests::Key;
use crate::scheduler::Scheduler;

/// What does not add up. Any of these is a bug in this crate or the cache.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IntegrityError {
    /// Pool and tree.
    #[error("prefix cache: {0}")]
    Cache(#[from] minisgl_cache::IntegrityError),
    /// One request.
    #[error("request {id}: {what}")]
    Request {
        /// Which one.
        id: minisgl_proto::RequestId,
        /// What is wrong with it.
        what: &'static str,
    },
    /// All of them together.
    #[error("{0}")]
    Sum(&'static str),
}

impl Scheduler {
    /// Checks all of it.
    ///
    /// # Errors
    /// The first thing found that does not add up.
    pub fn check_integrity(&mut self) -> Result<(), IntegrityError> {
        self.cache.check_integrity()?;
        let counts = self.cache.counts();
        let ensure = |good, what| if good { Ok(()) } else { Err(IntegrityError::Sum(what)) };
        let all = counts.free + counts.cached + counts.owned;
        ensure(all == self.config.pages as usize, "free + cached + owned pages are not all pages")?;

        let mut slots: HashSet<_> = self.free_slots.iter().copied().collect();
        let mut counts_of: HashSet<_> = self.free_counts.iter().copied().collect();
        let mut owned = HashSet::new();
        for &key in &self.running {
            let request = self.requests.get(key).ok_or(IntegrityError::Sum("an ended one runs"))?;
            self.check_request(key, request, true)?;
            let Some(running) = &request.running else { continue };
            ensure(slots.insert(running.slot), "two requests have the same slot")?;
            let counted = running.counts.is_some() == request.sampling.needs_history();
            ensure(counted, "a request counts tokens for nothing, or does not and should")?;
            let own = running.counts.is_none_or(|counts| counts_of.insert(counts));
            ensure(own, "two requests count tokens in the same table")?;
            for page in running.table.owned() {
                ensure(owned.insert(page), "two requests write the same page")?;
            }
        }
        ensure(slots.len() == self.config.slots(), "a slot is lost")?;
        let tables = self.config.penalised();
        ensure(counts_of.len() == tables, "a table of token counts is lost")?;
        ensure(owned.len() == counts.owned, "a page is owned by no request")?;
        let ranks = self.running.windows(2);
        let in_order = |w: &[Key]| self.requests[w[0]].rank < self.requests[w[1]].rank;
        ensure(ranks.into_iter().all(in_order), "running requests are not in order")?;

        for (&rank, &key) in &self.waiting {
            let request =
                self.requests.get(key).ok_or(IntegrityError::Sum("an ended one waits"))?;
            ensure(request.rank == rank, "a request waits in another's place")?;
            self.check_request(key, request, false)?;
        }
        let alive = self.waiting.len() + self.running.len();
        ensure(alive == self.requests.len(), "a request neither waits nor runs")?;
        ensure(alive == self.keys.len(), "an ended request has left its id")?;
        let limit = self.config.slots() + self.config.max_waiting as usize;
        ensure(alive <= limit, "the queue is over its limit")?;
        ensure(self.in_flight.len() <= self.config.plans_in_flight(), "too many plans in flight")?;
        let oldest = self.in_flight.front().is_none_or(|plan| plan.masked.is_empty());
        ensure(oldest, "the oldest plan in flight was not told its masks")?;
        let stuck = alive > 0 && self.in_flight.is_empty();
        ensure(!stuck, "there are requests, and nothing in flight that would move them")
    }

    fn check_request(&self, key: Key, r: &Request, runs: bool) -> Result<(), IntegrityError> {
        let ensure = |good, what| {
            if good { Ok(()) } else { Err(IntegrityError::Request { id: r.id, what }) }
        };
        ensure(self.keys.get(&r.id) == Some(&key), "it is not found by its id")?;
        ensure(
            r.running.is_some() == runs,
            "it holds pages while it waits, or none while it runs",
        )?;
        let wanted = self.in_flight.iter().flat_map(|plan| &plan.wanted);
        let own = wanted.filter(|wanted| wanted.key == key);
        let pending = own.clone().filter(|wanted| wanted.sampled).count();
        ensure(r.pending == pending, "its pending tokens are not those in flight")?;
        let scores: usize = own.map(|wanted| wanted.scored as usize).sum();
        ensure(
            r.pending_scores == scores,
            "its pending log-probabilities are not those in flight",
        )?;
        ensure(r.computed <= r.total(), "more is computed than there is")?;
        ensure(r.total() <= r.max_total, "it is over its length")?;
        ensure(r.max_total <= self.config.len_limit(), "its limit is over everyone's")?;
        let Some(running) = &r.running else {
            return ensure(r.computed == 0, "it waits with computed tokens");
        };
        let (table, page_size) = (&running.table, self.cache.page_size());
        ensure(r.cached <= r.computed, "more was cached than is computed")?;
        let can_score = !r.is_scoring() || r.computed < r.next_scored;
        ensure(can_score, "its prompt is computed past what is to be reported")?;
        let (read, live) = (r.computed.saturating_sub(self.config.windows.keep), table.live());
        ensure(live * page_size <= read, "its window lacks pages")?;
        ensure(table.pages().len() == r.computed.div_ceil(page_size), "its page table's length")?;
        ensure(table.shared_pages() * page_size <= r.computed, "it shares what is not computed")
    }
}
