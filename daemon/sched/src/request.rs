//! One request: its tokens, how far they are computed, and what it holds.
//!
//! Owns: the arithmetic of a request's progress. Must never: know of other requests.
//!
//! ```text
//!   tokens    [ prompt ............ | output ..... | t ]
//!               computed: fed by the plans so far    |
//!                                                    pending: will be sampled by a plan in flight
//! ```
//!
//! `computed <= known + pending`. What is left to feed is one token while decoding, more while
//! prefilling; a preempted request starts over with prompt and output together as its prefix, and so does one
//! that was submitted with output of an earlier worker.

use minisgl_cache::PageTable;
use minisgl_proto::{RequestId, SamplingParams};

use crate::guide::Guide;
use crate::plan::{CountsId, Install, SlotId};

/// Higher priority first, then the order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    priority: std::cmp::Reverse<i32>,
    /// Unique for each request.
    pub(crate) arrival: u64,
}

impl Rank {
    pub(crate) fn new(priority: i32, arrival: u64) -> Rank {
        Rank { priority: std::cmp::Reverse(priority), arrival }
    }
}

/// What a request holds while it runs.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) slot: SlotId,
    /// There if it has penalties.
    pub(crate) counts: Option<CountsId>,
    pub(crate) table: PageTable,
    /// Pages of the table, from the front, that the executor knows from the plans so far.
    pub(crate) told: usize,
}

/// A request that has not ended.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) id: RequestId,
    pub(crate) rank: Rank,
    pub(crate) sampling: SamplingParams,
    /// There if not every token may come at any time. `sampling` has nothing of it any more.
    pub(crate) guide: Option<Guide>,
    /// The field to name if it rules every token out.
    pub(crate) guided_by: String,
    /// Tokens that end it.
    pub(crate) stop_tokens: Vec<u32>,
    pub(crate) min_tokens: u32,
    /// Prompt and output, as far as known.
    pub(crate) tokens: Vec<u32>,
    pub(crate) prompt_len: usize,
    /// Prompt plus output tokens at most.
    pub(crate) max_total: usize,
    /// Tokens in the page table's pages, once all plans so far have run.
    pub(crate) computed: usize,
    /// Tokens that plans in flight sample for it: 0 to 2.
    pub(crate) pending: usize,
    /// Present while it runs.
    pub(crate) running: Option<Running>,
    pub(crate) submitted_s: f64,
    /// Seconds from submission to the first plan it was in, once it was in one.
    pub(crate) queue_s: Option<f32>,
    /// Prompt tokens found in the cache; after a preemption, the fewest.
    pub(crate) cached: usize,
    /// Tokens known when it was last admitted: computing them is prefilling.
    pub(crate) prefix_len: usize,
    /// Position of the next prompt token whose log-probability no plan so far reports; the prompt's length when
    /// none is left, or none was asked for. It stays where it is in a preemption: a plan in flight still reports.
    pub(crate) next_scored: usize,
    /// Prompt tokens whose log-probabilities plans in flight report.
    pub(crate) pending_scores: usize,
}

impl Request {
    /// Tokens known or being sampled.
    pub(crate) fn total(&self) -> usize {
        self.tokens.len() + self.pending
    }

    /// Output tokens known.
    pub(crate) fn generated(&self) -> usize {
        self.output().len()
    }

    /// The output as far as it is known.
    pub(crate) fn output(&self) -> &[u32] {
        &self.tokens[self.prompt_len..]
    }

    /// Log-probabilities of its prompt are still to be planned.
    pub(crate) fn is_scoring(&self) -> bool {
        self.next_scored < self.prompt_len
    }

    /// Another token is to be sampled than those that are known or in flight.
    fn will_sample(&self) -> bool {
        self.total() < self.max_total
    }

    /// Tokens to feed before the next one is sampled. 0 when nothing more is to be sampled or reported.
    pub(crate) fn to_feed(&self) -> usize {
        self.feed_end(usize::MAX) - self.computed
    }

    /// How far the next plan may compute it, if that can report `scores` more log-probabilities.
    pub(crate) fn feed_end(&self, scores: usize) -> usize {
        if !self.is_scoring() {
            return if self.will_sample() { self.total() } else { self.computed };
        }
        let left = self.prompt_len - self.next_scored;
        if left > scores {
            self.next_scored - 1 + scores
        } else if self.will_sample() && self.total() == self.prompt_len {
            self.prompt_len
        } else {
            // The prompt's last token is reported by the logits after the one before it.
            self.prompt_len - 1
        }
    }

    /// Feeds one token a step.
    pub(crate) fn is_decoding(&self) -> bool {
        self.to_feed() == 1 && self.will_sample()
    }

    /// Log-probabilities of its prompt that are newly reported when its first `end` tokens are computed.
    pub(crate) fn scored_by(&self, end: usize) -> usize {
        (end + 1).min(self.prompt_len).saturating_sub(self.next_scored)
    }

    /// Tokens of the prefix whose pages may come from the cache: from there on logits are wanted. One token at
    /// least is left to compute, or there would be none to sample from.
    pub(crate) fn matchable(&self) -> &[u32] {
        let end = if self.is_scoring() { self.next_scored } else { self.tokens.len() };
        &self.tokens[..end - 1]
    }

    /// All that was asked for has come, and nothing is generated.
    pub(crate) fn is_scored_out(&self) -> bool {
        self.max_total == self.prompt_len && !self.is_scoring() && self.pending_scores == 0
    }

    /// Tokens that are both computed and known: what can go into the tree.
    pub(crate) fn publishable(&self) -> &[u32] {
        &self.tokens[..self.computed.min(self.tokens.len())]
    }

    /// How the executor is to set up `slot`.
    pub(crate) fn install(&self, slot: SlotId, counts: Option<CountsId>) -> Install {
        let history = if self.sampling.needs_history() { &self.tokens[..] } else { &[] };
        Install {
            slot,
            counts,
            sampling: self.sampling.clone(),
            prompt_len: self.prompt_len.min(history.len()) as u32,
            history: history.to_vec(),
            banned: if self.min_tokens > 0 { self.stop_tokens.clone() } else { Vec::new() },
            banned_below: (self.prompt_len as u32).saturating_add(self.min_tokens),
        }
    }
}
