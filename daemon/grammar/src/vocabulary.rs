//! A model's tokens, as the bytes that they stand for.
//!
//! Owns: reading them from `tokenizer.json`. Must never: tokenize what a client sent: masks want the way from tokens to bytes alone.

use std::sync::Arc;

use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{ParserFactory, token_bytes_from_tokenizer_json};

use crate::Limits;

/// Tokens that a grammar cannot be held to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VocabularyError {
    /// `tokenizer.json` is no JSON, or says not what its tokens stand for.
    #[error("tokenizer.json does not say what bytes its tokens stand for: {0}")]
    Unreadable(String),
    /// Nothing could end an output.
    #[error("the model has no stop token, so that no output could end")]
    NoStopToken,
    /// A stop token is outside the vocabulary.
    #[error("stop token {token} is outside the vocabulary of {size}")]
    StopToken {
        /// Its id.
        token: u32,
        /// Tokens of the vocabulary.
        size: usize,
    },
}

/// All tokens of a model, and what grammars are compiled with.
pub struct Vocabulary {
    pub(crate) factory: ParserFactory,
    pub(crate) stop: Arc<[u32]>,
    size: usize,
    trie: TokTrie,
    /// Tokens of line breaks alone.
    pub(crate) breaks: Vec<u32>,
}

impl Vocabulary {
    /// Of a model with `size` logits whose tokens are those of the text of a `tokenizer.json`, and whose output ends with any of `stop`.
    ///
    /// # Errors
    /// See [`VocabularyError`].
    pub fn read(
        tokenizer: &str,
        size: usize,
        stop: &[u32],
        limits: &Limits,
    ) -> Result<Vocabulary, VocabularyError> {
        let unreadable = |error: String| VocabularyError::Unreadable(error);
        let json = serde_json::from_str(tokenizer).map_err(|e| unreadable(e.to_string()))?;
        let tokens =
            token_bytes_from_tokenizer_json(&json).map_err(|e| unreadable(e.to_string()))?;
        Vocabulary::new(tokens, size, stop, limits)
    }

    /// Of tokens by their bytes, in the order of ids; of special ones the text behind a byte 0xff, which is in no text. A model may have
    /// more logits than tokens, or fewer.
    ///
    /// # Errors
    /// See [`VocabularyError`].
    pub fn new(
        mut tokens: Vec<Vec<u8>>,
        size: usize,
        stop: &[u32],
        limits: &Limits,
    ) -> Result<Vocabulary, VocabularyError> {
        // What stands for nothing is never allowed.
        tokens.resize(size, Vec::new());
        let &first = stop.first().ok_or(VocabularyError::NoStopToken)?;
        if let Some(&token) = stop.iter().find(|&&token| token as usize >= size) {
            return Err(VocabularyError::StopToken { token, size });
        }
        let trie = TokTrie::from(&TokRxInfo::new(size as u32, first), &tokens);
        let trie = trie.with_eos_tokens(stop);
        let breaks = (0..size as u32).filter(|&token| {
            let bytes = trie.token(token);
            !bytes.is_empty() && bytes.len() <= 2 && bytes.iter().all(|&byte| byte == b'\n')
        });
        let breaks = breaks.collect();
        let tokens: TokEnv = Arc::new(ApproximateTokEnv::new(trie.clone()));
        let factory = ParserFactory::new_simple(&tokens);
        let mut factory = factory.map_err(|e| VocabularyError::Unreadable(e.to_string()))?;
        factory.quiet();
        *factory.limits_mut() = limits.parser();
        Ok(Vocabulary { factory, stop: stop.into(), size, trie, breaks })
    }

    /// The bytes that a token stands for; of a special one its spelling.
    pub(crate) fn bytes(&self, token: u32) -> &[u8] {
        if token as usize >= self.size {
            return &[];
        }
        let bytes = self.trie.token(token);
        bytes.strip_prefix(&[TokTrie::SPECIAL_TOKEN_MARKER]).unwrap_or(bytes)
    }

    /// The special token of this spelling.
    pub(crate) fn special(&self, text: &str) -> Option<u32> {
        self.trie.get_special_token(text)
    }

    /// Logits of the model.
    pub fn size(&self) -> usize {
        self.size
    }
}
