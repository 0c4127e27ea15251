//! What a scheduler is told once, and the limits that follow from it.
//!
//! Owns: the checks that make a configuration usable. Must never: change at run time.

use minisgl_cache::Windows;
use minisgl_proto::CacheMode;

/// Sizes and limits. All counts are at least 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchedConfig {
    /// KV pages in all.
    pub pages: u32,
    /// Tokens a page, for the layers of one group.
    pub page_size: u32,
    /// Groups of layers whose pages may go once they are behind a window.
    pub windows: Windows,
    /// Requests running at once, at most: the executor's slots. No more run than `chunk_tokens`, so
    /// that a step always has room for every decode row.
    pub max_running: u32,
    /// Of those, requests with penalties, at most: the executor's tables of token counts. One more waits, and with it
    /// all that come after it.
    pub penalised_max: u32,
    /// Requests waiting for a slot, at most; one more is refused.
    pub max_waiting: u32,
    /// Tokens a step feeds at most, decode rows included.
    pub chunk_tokens: u32,
    /// Prompt tokens of which a step reports log-probabilities, at most: each takes a row of logits.
    pub scored_max: u32,
    /// Prompt plus generated tokens of one request, at most.
    pub max_len: u32,
    /// Valid token ids are below this.
    pub vocab_size: u32,
    /// Tokens that end a request unless it ignores them.
    pub eos_token_ids: Vec<u32>,
    /// Whether prefixes are shared and kept.
    pub cache: CacheMode,
    /// Plan step `n + 1` while step `n` runs.
    pub overlap: bool,
}

/// Why a configuration cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A count is 0.
    #[error("{field} is 0, it must be at least 1")]
    Zero {
        /// Which one.
        field: &'static str,
    },
    /// Not even a prompt of one token and one generated token would fit.
    #[error("max_len is {max_len}, it must be at least 2: one prompt token and one generated")]
    TooShort {
        /// As configured.
        max_len: u32,
    },
    /// Not even one page for each group of layers.
    #[error("pages is {pages}, it must be at least {groups}: one for each group of layers")]
    TooFewPages {
        /// As configured.
        pages: u32,
        /// Groups of layers.
        groups: usize,
    },
    /// Token ids travel as signed numbers, see [`crate::Plan::tokens`].
    #[error("vocab_size is {vocab_size}, it must be below 2^31")]
    HugeVocabulary {
        /// As configured.
        vocab_size: u32,
    },
}

impl SchedConfig {
    /// # Errors
    /// The first limit that no request could meet.
    pub fn check(&self) -> Result<(), ConfigError> {
        for (field, value) in [
            ("pages", self.pages),
            ("page_size", self.page_size),
            ("max_running", self.max_running),
            ("penalised_max", self.penalised_max),
            ("max_waiting", self.max_waiting),
            ("chunk_tokens", self.chunk_tokens),
            ("scored_max", self.scored_max),
            ("vocab_size", self.vocab_size),
        ] {
            if value == 0 {
                return Err(ConfigError::Zero { field });
            }
        }
        if (self.pages as usize) < self.groups() {
            return Err(ConfigError::TooFewPages { pages: self.pages, groups: self.groups() });
        }
        if self.max_len < 2 {
            return Err(ConfigError::TooShort { max_len: self.max_len });
        }
        if self.vocab_size > i32::MAX as u32 {
            return Err(ConfigError::HugeVocabulary { vocab_size: self.vocab_size });
        }
        Ok(())
    }

    /// Requests that may run at once.
    pub(crate) fn slots(&self) -> usize {
        self.max_running.min(self.chunk_tokens) as usize
    }

    /// Tables of token counts: more than slots are never needed.
    pub(crate) fn penalised(&self) -> usize {
        self.slots().min(self.penalised_max as usize)
    }

    /// Groups of layers, each with pages of its own.
    pub fn groups(&self) -> usize {
        self.windows.all_groups()
    }

    /// Pages of all groups that a request has at most until `tokens` of it are computed, up to `row` at a time.
    pub(crate) fn pages_for(&self, tokens: usize, row: usize) -> usize {
        let row = row.min(self.chunk_tokens as usize);
        self.windows.pages_for(tokens, row, self.page_size as usize)
    }

    /// Prompt plus generated tokens that one request may have. The last token is never fed, so it
    /// needs no place in a page.
    pub fn len_limit(&self) -> usize {
        let (pages, row) = (self.pages as usize, self.chunk_tokens as usize);
        let tokens = self.windows.tokens_in(pages, row, self.page_size as usize);
        (self.max_len as usize).min(tokens + 1)
    }

    /// Plans that may be in flight at once.
    pub(crate) fn plans_in_flight(&self) -> usize {
        if self.overlap { 2 } else { 1 }
    }
}
