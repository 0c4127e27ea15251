//! The plan of one step: what every rank runs, in flat arrays, and what changes in its slots.
//!
//! Owns: the data that crosses from scheduler to engine. Must never: point back into the scheduler.
//!
//! An executor keeps a slot for each running request: its page table, how it is sampled, the token it sampled last. A
//! plan says what changes there, so that its size does not grow with the lengths of requests. It is complete: an executor needs
//! nothing but the plans it was given, in order.
//!
//! ```text
//!             row 0, slot 5 (decode)   row 1, slot 2 (decode)   row 2, slot 0 (prefill chunk)
//!   tokens    [ -1 |                   42 |                     15 27 911 4 ... 88 ]
//!               |                      literal token id
//!               the token that slot 5 sampled last
//!   grown     [ slot 5, entry 12 |                              slot 0, entries 0..3 ]
//!   pages     [ 31 |                                            3 4 5 ]
//!               what these entries of the slots' page tables become
//! ```
//!
//! Where layers are in groups, a slot has a page table for each group. They have as many entries; in those of window groups
//! entries before the window may name any page, or none, since nothing is read there.

use minisgl_proto::SamplingParams;

/// Index of a KV page.
pub type PageId = u32;

/// A running request's place in the executor's per-request state, in `0..max_running`. It stays the
/// same while the request runs, and is given anew after a preemption.
pub type SlotId = u32;

/// Index of a table of token counts, in `0..penalised_max`: what a running request with penalties has of the executor's
/// memory, for as long as it has its slot.
pub type CountsId = u32;

/// One step. Rows of one token that are sampled, decode steps above all, come first; after them come
/// the chunks of prompts, among which a single token may be, too. Each running request has at most one
/// row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Counts up by one from 0.
    pub step: u64,
    /// Requests that (re)start in this plan; their slots' state is replaced before the rows run, and their page
    /// tables are empty.
    pub installs: Vec<Install>,
    /// What changes in the page tables of slots before the rows run, after `installs`.
    pub grown: Vec<Grown>,
    /// The entries of all `grown`, concatenated.
    pub pages: Vec<PageId>,
    /// What runs.
    pub rows: Vec<Row>,
    /// Input tokens of all rows, concatenated: a token id, or [`SAMPLED_LAST`].
    pub tokens: Vec<i32>,
    /// Rows, ascending, whose tokens are sampled under a mask. It may depend on what the plan before samples, so that it
    /// is not in here: with such rows nothing of this plan is sampled before its [`Late`] part is there.
    pub masked: Vec<u32>,
}

/// What a plan with [`Plan::masked`] rows needs before it samples: it may come while the forward pass runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Late {
    /// [`Plan::step`] of the plan it belongs to.
    pub step: u64,
    /// The masks of `Plan::masked`, concatenated: a bit for each token of the vocabulary, see [`crate::guide`]. Where it
    /// is not set, the token is not sampled. One bit at least is set in each.
    pub masks: Vec<u32>,
}

/// In the place of a token id: the token that the row's slot sampled last, in the plan before.
pub const SAMPLED_LAST: i32 = -1;

/// The entries `at .. at + len` of a page table become the next `len` of [`Plan::pages`]. They follow what the table has, or
/// replace its end: a table has no gaps, but for what is before the window in one of a window group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grown {
    /// Whose table.
    pub slot: SlotId,
    /// Of which group of layers; 0 is the first, window groups follow.
    pub group: u32,
    /// First entry that changes.
    pub at: u32,
    /// Entries, the last of which is the table's last.
    pub len: u32,
}

/// A request takes a slot.
#[derive(Clone, Debug, PartialEq)]
pub struct Install {
    /// Which slot.
    pub slot: SlotId,
    /// How its tokens are sampled.
    pub sampling: SamplingParams,
    /// Where its tokens are counted; there if, and only if, `sampling.needs_history()`.
    pub counts: Option<CountsId>,
    /// Prompt and output so far, which penalties look at. Empty unless
    /// `sampling.needs_history()`. Tokens sampled later are added by the executor itself.
    pub history: Vec<u32>,
    /// How many tokens of `history` are prompt.
    pub prompt_len: u32,
    /// Tokens that must not be sampled at positions below `banned_below`.
    pub banned: Vec<u32>,
    /// Position of the first token that may be one of `banned`.
    pub banned_below: u32,
}

/// A request's part of a step: `len` tokens at positions `start .. start + len`. Position `p` lives in page
/// `p / page_size` of each of the slot's page tables, at offset `p % page_size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The request's slot.
    pub slot: SlotId,
    /// Position of the first token: that many tokens of KV are read besides the row's own.
    pub start: u32,
    /// Tokens fed, at least one.
    pub len: u32,
    /// First token of the row in `Plan::tokens`.
    pub tokens_at: u32,
    /// Of which of its tokens the logits are wanted.
    pub want: Want,
}

/// Which logits of a row are wanted, and what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// None: the row fills pages. All chunks of a prompt but the last.
    Nothing,
    /// Those after the last token: the next one is sampled.
    Last,
    /// Those after each token, from the `first` of the row on: the log-probability of the token that comes next
    /// in the prompt is reported.
    Each {
        /// Index in the row, below its length.
        first: u32,
        /// The token that comes next after the row's last. `None`: the prompt ends here, and it is sampled.
        next: Option<u32>,
    },
}

impl Row {
    /// Whether the token after this row is sampled.
    pub fn is_sampled(&self) -> bool {
        matches!(self.want, Want::Last | Want::Each { next: None, .. })
    }

    /// Of how many tokens, the last ones of the row, logits are wanted.
    pub fn logits(&self) -> u32 {
        match self.want {
            Want::Nothing => 0,
            Want::Last => 1,
            Want::Each { first, .. } => self.len - first,
        }
    }

    /// How many prompt tokens are reported with their log-probability.
    pub fn scored(&self) -> u32 {
        self.logits() - u32::from(self.is_sampled())
    }

    /// Position of the token that comes after this row; with the seed it determines the draw.
    pub fn next_position(&self) -> u32 {
        self.start + self.len
    }
}

/// What a step brought.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepOutput {
    /// [`Plan::step`] of the plan it belongs to.
    pub step: u64,
    /// One for each position whose logits the plan wants, in the order of rows and positions: the token that is
    /// sampled there, or the prompt's own.
    pub sampled: Vec<minisgl_proto::Sampled>,
    /// Seconds that the device spent on this step alone: none of them counts for two steps, so that all of them
    /// together are no more than have passed. What a step spent behind the one before it is not in here.
    pub step_s: f32,
}
