//! How much a request may have, and what that hangs on.
//!
//! Owns: the words in which clients are told of it. Must never: read a request.

use minisgl_proto::ModelInfo;

/// What prompt and output of a request may have together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Tokens.
    pub tokens: u32,
    /// Tokens in a KV cache large enough; no more than `tokens` where it is not the cache that limits.
    possible: u32,
}

impl Room {
    /// Of a model as it is loaded.
    pub fn of(info: &ModelInfo) -> Room {
        Room { tokens: info.max_len, possible: info.context_len }
    }

    /// Its beginning is what clients look for: litellm, LangChain, pydantic-ai and Claude Code tell an overflow by it.
    pub fn describe(&self) -> String {
        let Room { tokens, possible } = self;
        let mut text = format!("This model's maximum context length is {tokens} tokens");
        if possible > tokens {
            text += &format!(
                " (as many as its KV cache has room for: loaded with a larger kv_tokens it takes up to {possible})"
            );
        }
        text
    }
}

/// Why output ended at `tokens` of prompt and output together, which is before what it was promised: the model was loaded
/// again, with less room.
pub fn ran_out(tokens: usize) -> String {
    format!(
        "the model was loaded again and takes {tokens} tokens of prompt and output together now: for more, have it loaded \
         with a larger kv_tokens or max_len"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_that_limits_is_named() {
        let room = |possible| Room { tokens: 512, possible }.describe();
        // 0: by a worker that does not say.
        for possible in [0, 512] {
            assert_eq!(room(possible), "This model's maximum context length is 512 tokens");
        }
        let cut = room(4096);
        assert!(cut.starts_with("This model's maximum context length is 512 tokens"), "{cut}");
        assert!(
            cut.contains("KV cache") && cut.contains("kv_tokens") && cut.contains("4096"),
            "{cut}"
        );
    }
}
