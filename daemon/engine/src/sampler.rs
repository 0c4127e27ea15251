//! From logits to one token.
//!
//! Owns: what sampling parameters mean, and each slot's state (parameters, token counts). Must
//! never: know where logits come from, or let a draw depend on anything but the logits, the
//! parameters, the history of the request, and (seed, position).
//!
//! This is the definition that a device's sampler is held to, so it is one that every device can
//! meet to the bit, given the same logits: f32 additions, multiplications and divisions in the order
//! written, never fused, and sums of integers, which no parallel reduction can change.
//!
//! 0. **Refuse.** If a logit is NaN, or none is above -inf, there is nothing to sample from: the outcome is
//!    [`NO_TOKEN`], and the request's state stays as it is.
//! 1. **Clean.** +inf becomes the largest finite f32, -0 becomes +0. So after each change to a logit below, where NaN
//!    becomes -inf. If bans then leave no logit above -inf, the token is 0.
//! 2. **Log-probabilities**, if asked for, are taken here; see `sampler/logprobs.rs`. Those of a prompt's own
//!    token are all that is wanted of its logits.
//! 3. **Adjust.** `logit_bias` is added. Every token in prompt or output: `z / r` if `z > 0`, else
//!    `z * r`, with `r = repetition_penalty`. Every token that is `n > 0` times in the output:
//!    `(z - presence_penalty) - frequency_penalty * n`. Tokens that are banned below a position become -inf there, and
//!    those that the mask, where there is one, does not allow.
//! 4. **Rank** by logit, the larger first, and by token id among equals, the lower first.
//!    `temperature <= 0` (or NaN) takes the first of the ranking: that is greedy.
//! 5. **Weigh.** Otherwise `w = floor(2^40 * exp((z - z_max) / temperature))`, an integer; see
//!    `sampler/weight.rs`. A sum over the largest vocabulary fits in 64 bits.
//! 6. **Filter.** Each keeps a first part of the ranking, of what the one before kept. *top-k*: `k`
//!    tokens. *top-p*: the fewest tokens whose sum of `w` is at least `ceil(top_p * sum)`, in f64.
//!    *min-p*: tokens with `w >= ceil(min_p * 2^40)`, in f64.
//! 7. **Draw.** One 64-bit uniform `u` of Philox; see `sampler/philox.rs`. In the order of token ids, the first
//!    token with which the running sum of `w` exceeds `floor(u * sum / 2^64)`.

mod filter;
mod history;
mod logprobs;
mod philox;
#[cfg(test)]
mod tests;
mod weight;

use minisgl_proto::{NO_TOKEN, Sampled, SamplingParams};
use minisgl_sched::guide::is_allowed;
use minisgl_sched::{CountsId, Install};

use filter::{Candidate, draw, keep_count, keep_mass, key};
use history::History;
use weight::{ONE, scaled_exp, whole};

/// Samples for every slot of one rank. All ranks hold equal ones, and sample the same tokens.
pub struct Sampler {
    vocab_size: usize,
    slots: Vec<Slot>,
    /// Tables of token counts; each is made when a request first needs it, and kept for the next.
    histories: Vec<Option<History>>,
    /// Logits being worked on, `[vocab]`.
    logits: Vec<f32>,
    /// Weights before their floor, `[vocab]`.
    scaled: Vec<f32>,
    /// Tokens of positive weight, in the order of ids; room for the whole vocabulary.
    candidates: Vec<Candidate>,
}

/// One request's state.
#[derive(Default)]
struct Slot {
    sampling: SamplingParams,
    banned: Vec<u32>,
    banned_below: u32,
    /// Its table, if it has penalties.
    counts: Option<CountsId>,
}

impl Sampler {
    /// A sampler of `slots` requests at once, `penalised` of them with penalties, over a vocabulary of `vocab_size`.
    pub fn new(slots: usize, penalised: usize, vocab_size: usize) -> Sampler {
        Sampler {
            vocab_size,
            slots: std::iter::repeat_with(Slot::default).take(slots).collect(),
            histories: std::iter::repeat_with(|| None).take(penalised).collect(),
            logits: Vec::with_capacity(vocab_size),
            scaled: Vec::with_capacity(vocab_size),
            candidates: Vec::with_capacity(vocab_size),
        }
    }

    /// Replaces a slot's state. Token ids outside the vocabulary are ignored.
    ///
    /// # Panics
    /// If there is no such slot, or no such table of token counts.
    pub fn install(&mut self, install: &Install) {
        let slot = &mut self.slots[install.slot as usize];
        slot.sampling.clone_from(&install.sampling);
        slot.banned.clone_from(&install.banned);
        slot.banned_below = install.banned_below;
        slot.counts = install.counts;
        if let Some(counts) = install.counts {
            let history = &mut self.histories[counts as usize];
            let history = history.get_or_insert_with(|| History::new(self.vocab_size));
            history.reset(&install.history, install.prompt_len as usize);
        }
    }

    /// Samples the token at `position` from `logits`, `[vocab]`, of which `mask` allows some (see
    /// [`minisgl_sched::guide`]), and adds it to the slot's history.
    ///
    /// # Panics
    /// If there is no such slot, or `logits` is not as long as the vocabulary.
    pub fn sample(
        &mut self,
        slot: u32,
        logits: &[f32],
        position: u32,
        mask: Option<&[u32]>,
    ) -> Sampled {
        assert_eq!(logits.len(), self.vocab_size, "one logit for each token of the vocabulary");
        if is_broken(logits) {
            return nothing();
        }
        self.logits.clear();
        self.logits.extend(logits.iter().map(|&logit| clean(logit)));

        let slot = &mut self.slots[slot as usize];
        let mut history = slot.counts.and_then(|counts| self.histories[counts as usize].as_mut());
        let raw = slot.sampling.logprobs.map(|count| {
            let normalizer = logprobs::normalizer(&self.logits);
            (normalizer, logprobs::top(&self.logits, normalizer, count, &mut self.candidates))
        });
        slot.adjust(&mut self.logits, history.as_deref(), position);
        if let Some(mask) = mask {
            let tokens = self.logits.iter_mut().zip(0..);
            let others = tokens.filter(|&(_, token)| !is_allowed(mask, token));
            others.for_each(|(logit, _)| *logit = f32::NEG_INFINITY);
        }
        let (scaled, candidates) = (&mut self.scaled, &mut self.candidates);
        let token = choose(&self.logits, &slot.sampling, position, scaled, candidates);
        if let Some(history) = &mut history {
            history.push(token);
        }
        let (logprob, top) = match raw {
            Some((normalizer, top)) => {
                (Some(logprobs::of(clean(logits[token as usize]), normalizer)), top)
            }
            None => (None, Vec::new()),
        };
        Sampled { token, logprob, top }
    }
}

impl Sampler {
    /// The log-probability of the prompt's own `token` under `logits`, `[vocab]`, with the most likely ones.
    /// Changes nothing of the slot's state.
    ///
    /// # Panics
    /// If there is no such slot, or `logits` is not as long as the vocabulary.
    pub fn score(&mut self, slot: u32, logits: &[f32], token: u32) -> Sampled {
        assert_eq!(logits.len(), self.vocab_size, "one logit for each token of the vocabulary");
        if is_broken(logits) {
            return nothing();
        }
        self.logits.clear();
        self.logits.extend(logits.iter().map(|&logit| clean(logit)));
        let count = self.slots[slot as usize].sampling.prompt_logprobs.unwrap_or(0);
        let normalizer = logprobs::normalizer(&self.logits);
        let top = logprobs::top(&self.logits, normalizer, count, &mut self.candidates);
        let logprob = logprobs::of(self.logits[token as usize], normalizer);
        Sampled { token, logprob: Some(logprob), top }
    }
}

impl Slot {
    /// Step 3 of the module's definition, the mask aside.
    fn adjust(&self, logits: &mut [f32], history: Option<&History>, position: u32) {
        let sampling = &self.sampling;
        for &(token, bias) in &sampling.logit_bias {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = clean(*logit + bias);
            }
        }
        if let Some(history) = history {
            for (token, count) in history.seen() {
                let logit = &mut logits[token as usize];
                let penalty = sampling.repetition_penalty;
                *logit = clean(if *logit > 0.0 { *logit / penalty } else { *logit * penalty });
                if count > 0 {
                    let frequency = sampling.frequency_penalty * count as f32;
                    *logit = clean((*logit - sampling.presence_penalty) - frequency);
                }
            }
        }
        if position < self.banned_below {
            for &token in &self.banned {
                if let Some(logit) = logits.get_mut(token as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }
}

/// Steps 4 to 7 of the module's definition.
fn choose(
    logits: &[f32],
    sampling: &SamplingParams,
    position: u32,
    scaled: &mut Vec<f32>,
    candidates: &mut Vec<Candidate>,
) -> u32 {
    let (first, highest) = argmax(logits);
    let temperature = sampling.temperature;
    if highest == f32::NEG_INFINITY || temperature.is_nan() || temperature <= 0.0 {
        return first;
    }
    scaled.clear();
    scaled.extend(logits.iter().map(|&logit| scaled_exp((logit - highest) / temperature)));
    candidates.clear();
    candidates.extend(logits.iter().zip(scaled.iter()).enumerate().filter_map(
        |(id, (&logit, &scaled))| {
            let weight = whole(scaled);
            (weight > 0).then(|| Candidate { key: key(logit), id: id as u32, weight })
        },
    ));

    if sampling.top_k > 0 {
        keep_count(candidates, sampling.top_k as usize);
    }
    if sampling.top_p < 1.0 {
        keep_mass(candidates, sampling.top_p);
    }
    if sampling.min_p > 0.0 {
        let least = (f64::from(sampling.min_p.min(1.0)) * ONE as f64).ceil() as u64;
        candidates.retain(|candidate| candidate.weight >= least);
    }

    draw(candidates, philox::uniform(sampling.seed, position)).unwrap_or(first)
}

/// Step 0 of the module's definition.
fn is_broken(logits: &[f32]) -> bool {
    let (mut is_nan, mut highest) = (false, f32::NEG_INFINITY);
    for &logit in logits {
        is_nan |= logit.is_nan();
        highest = highest.max(logit);
    }
    is_nan || highest == f32::NEG_INFINITY
}

/// What broken logits give.
fn nothing() -> Sampled {
    Sampled { token: NO_TOKEN, logprob: None, top: Vec::new() }
}

/// Step 1 of the module's definition.
fn clean(logit: f32) -> f32 {
    if logit.is_nan() { f32::NEG_INFINITY } else { logit.min(f32::MAX) + 0.0 }
}

/// The lowest id among the highest logits, and its logit; 0 and -inf if there are none.
fn argmax(logits: &[f32]) -> (u32, f32) {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let first = logits.iter().position(|&logit| logit == highest).unwrap_or(0);
    (first as u32, highest)
}
