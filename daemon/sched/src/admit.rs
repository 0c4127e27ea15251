//! Admission: who leaves the queue.
//!
//! Strictly by rank; the first that does not fit holds up the rest, so none is passed over for
//! good. Optimistic: a request gets pages for its next chunk only, and none are kept for its
//! output. It is let in when its whole prefix would fit beside what the running requests still have
//! to prefill and a little room for them to decode; if that turns out too little, the youngest is
//! preempted.

use minisgl_cache::PageTable;
use minisgl_proto::CacheMode;

use crate::batch::Draft;
use crate::request::{Request, Running};
use crate::requests::Key;
use crate::scheduler::Scheduler;

/// Tokens that each running request should be able to decode before pages run out.
const HEADROOM_TOKENS: usize = 32;

/// The headroom of all together is at most this part of the pool.
const HEADROOM_PART: usize = 16;

impl Scheduler {
    /// Lets requests in while slots, tables of token counts, pages and the budget last, and plans their first chunks.
    pub(crate) fn admit(&mut self, draft: &mut Draft, now_s: f64) {
        if self.waiting.is_empty() || self.admission_blocked {
            return;
        }
        let lacking = |key: &Key| self.lacking_pages(&self.requests[*key]);
        let mut promised: usize = self.running.iter().map(lacking).sum();
        let headroom = |key: &Key| self.headroom_pages(&self.requests[*key]);
        let mut headroom: usize = self.running.iter().map(headroom).sum();
        while draft.budget > 0 && !self.free_slots.is_empty() {
            let Some((_, &key)) = self.waiting.first_key_value() else { return };
            let request = &self.requests[key];
            if request.pending > 0 {
                return;
            }
            if request.sampling.needs_history() && self.free_counts.is_empty() {
                return;
            }
            // Matched anew each time: others may have computed its prefix while it waited.
            let len = request.tokens.len();
            let mut table = self.cache.match_prefix(request.matchable());
            let page_size = self.cache.page_size();
            let matched = table.pages().len() * page_size;
            if self.is_being_computed(request, matched, draft) {
                return;
            }
            // With nothing running this is no more than the pool, by the limits on submission.
            let all = self.config.pages_for(len, len - matched);
            let lacking = all.saturating_sub(table.held());
            let most = self.config.pages as usize / HEADROOM_PART;
            let wanted = lacking + promised + headroom.min(most);
            if wanted > self.cache.available() {
                self.admission_blocked = true;
                return;
            }
            let chunk = draft.budget.min(request.feed_end(draft.scores).saturating_sub(matched));
            if chunk == 0 {
                return;
            }
            let held = table.held();
            let pages = (matched + chunk).div_ceil(page_size) - table.pages().len();
            let grown = self.cache.grow(&mut table, pages);
            assert!(grown, "a request that was accepted fits into the pool");
            promised += lacking.saturating_sub(table.held() - held);
            self.start(key, table, matched, now_s, draft);
            headroom += self.headroom_pages(&self.requests[key]);
            draft.take(&self.requests[key], chunk);
            self.push_row(key, chunk, draft);
        }
    }

    fn start(&mut self, key: Key, table: PageTable, matched: usize, now_s: f64, draft: &mut Draft) {
        let slot = self.free_slots.pop().expect("admission looked for a free slot");
        let request = &mut self.requests[key];
        let counts = request.sampling.needs_history().then(|| {
            self.free_counts.pop().expect("admission looked for a free table of token counts")
        });
        self.waiting.remove(&request.rank);
        let in_prompt = matched.min(request.prompt_len);
        if request.queue_s.is_none() {
            request.queue_s = Some((now_s - request.submitted_s).max(0.0) as f32);
            request.cached = in_prompt;
            self.totals.prompt_tokens += request.prompt_len as u64;
            self.totals.cached_tokens += in_prompt as u64;
        }
        // What it finds after a preemption may be its own work.
        request.cached = request.cached.min(in_prompt);
        request.computed = matched;
        request.prefix_len = request.tokens.len();
        request.running = Some(Running { slot, counts, table, told: 0 });
        draft.plan.installs.push(request.install(slot, counts));
        let rank = request.rank;
        let at = self.running.partition_point(|&other| self.requests[other].rank < rank);
        self.running.insert(at, key);
    }

    /// Whether this very plan computes at least half of what is left of the request's prefix, for
    /// another one: a step later it can be shared.
    fn is_being_computed(&self, request: &Request, matched: usize, draft: &Draft) -> bool {
        if self.config.cache == CacheMode::Naive {
            return false;
        }
        let tokens = request.matchable();
        let page_size = self.cache.page_size();
        let next_page = matched..matched + page_size;
        let Some(wanted) = tokens.get(next_page.clone()) else { return false };
        draft.prefilled.iter().any(|&key| {
            let other = &self.requests[key];
            let theirs = &other.tokens[..other.computed.min(other.tokens.len())];
            // Cheap to tell apart first.
            if theirs.get(next_page.clone()) != Some(wanted)
                || theirs[..matched] != tokens[..matched]
            {
                return false;
            }
            let rest = tokens[matched..].iter().zip(&theirs[matched..]);
            let common = rest.take_while(|(a, b)| a == b).count();
            2 * (common / page_size * page_size) >= request.tokens.len() - matched
        })
    }

    /// Pages that a request takes to decode a little. Where it is longer than a window, one of a window group goes for each
    /// that comes.
    fn headroom_pages(&self, request: &Request) -> usize {
        let first = HEADROOM_TOKENS.div_ceil(self.cache.page_size());
        let pages = |tokens| self.config.pages_for(tokens, 1);
        let now = request.total();
        first.max(pages(now + HEADROOM_TOKENS) - pages(now))
    }
}
