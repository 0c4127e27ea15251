//! A deterministic "language model": the KV of a token is a hash of all tokens up to it, and the
//! next token is a function of the last KV, the seed, the position and, with penalties, the
//! history.

use minisgl_proto::{Sampled, SamplingParams, TokenLogprob};

use crate::rng::mix;

/// What a page holds for one token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kv {
    pub token: u32,
    pub hash: u64,
}

/// The KV of `token` after the one before; `None` at position 0.
pub fn feed(before: Option<Kv>, token: u32) -> Kv {
    let hash = before.map_or(0x1234_5678, |kv| kv.hash);
    Kv { token, hash: mix(hash.wrapping_mul(31).wrapping_add(u64::from(token) + 1)) }
}

/// What determines a sampled token besides the KV.
pub struct Sampling<'a> {
    pub params: &'a SamplingParams,
    /// Prompt and output, looked at only if the parameters need it.
    pub history: &'a [u32],
    pub banned: &'a [u32],
    /// Whether it may come next, bans aside.
    pub allows: &'a dyn Fn(u32) -> bool,
    pub vocab_size: u32,
    /// Position of the token to be sampled.
    pub position: u32,
}

/// The log-probability of `token` after `last`, and of the `top` most likely ones.
pub fn score(last: Kv, token: u32, top: u32) -> Sampled {
    let of = |token: u32| (mix(last.hash ^ u64::from(token)) >> 40) as f32;
    let top = (0..top).map(|token| TokenLogprob { token, logprob: of(token) }).collect();
    Sampled { token, logprob: Some(of(token)), top }
}

pub fn sample(last: Kv, s: &Sampling) -> Sampled {
    let mut hash = mix(last.hash ^ mix(s.params.seed ^ (u64::from(s.position) << 32)));
    if s.params.needs_history() {
        for &token in s.history {
            hash = mix(hash.wrapping_add(u64::from(token) + 1));
        }
    }
    let first = (hash % u64::from(s.vocab_size)) as u32;
    let candidates = (0..s.vocab_size).map(|i| (first + i) % s.vocab_size);
    let token =
        candidates.clone().find(|&t| !s.banned.contains(&t) && (s.allows)(t)).unwrap_or(first);
    // All of the state shows in the log-probability, however small the vocabulary.
    Sampled { token, logprob: Some((hash >> 40) as f32), top: Vec::new() }
}
