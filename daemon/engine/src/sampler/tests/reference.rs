//! The sampler's definition, written the slow way: everything is sorted, and penalties count through
//! the whole history. It shares the weight function and the generator, which have tests of their own.

use std::cmp::Ordering;

use minisgl_proto::{NO_TOKEN, Sampled, SamplingParams, TokenLogprob};
use minisgl_sched::Install;

use crate::sampler::philox::uniform;
use crate::sampler::weight::weight;

/// A request with its whole history.
#[derive(Clone, Debug, Default)]
pub(super) struct Request {
    pub(super) sampling: SamplingParams,
    pub(super) prompt: Vec<u32>,
    pub(super) output: Vec<u32>,
    pub(super) banned: Vec<u32>,
    pub(super) banned_below: u32,
}

fn clean(logit: f32) -> f32 {
    match logit {
        nan if nan.is_nan() => f32::NEG_INFINITY,
        f32::INFINITY => f32::MAX,
        0.0 => 0.0,
        other => other,
    }
}

/// Token ids, most likely first.
fn ranking(logits: &[f32]) -> Vec<usize> {
    let mut ids: Vec<usize> = (0..logits.len()).collect();
    ids.sort_by(|&a, &b| {
        logits[b].partial_cmp(&logits[a]).unwrap_or(Ordering::Equal).then(a.cmp(&b))
    });
    ids
}

impl Request {
    pub(super) fn install(&self, slot: u32) -> Install {
        let history = if self.sampling.needs_history() {
            [self.prompt.as_slice(), &self.output].concat()
        } else {
            vec![]
        };
        Install {
            slot,
            counts: self.sampling.needs_history().then_some(slot),
            sampling: self.sampling.clone(),
            history,
            prompt_len: self.prompt.len() as u32,
            banned: self.banned.clone(),
            banned_below: self.banned_below,
        }
    }

    pub(super) fn sample(
        &mut self,
        logits: &[f32],
        position: u32,
        mask: Option<&[u32]>,
    ) -> Sampled {
        if logits.iter().any(|z| z.is_nan()) || logits.iter().all(|&z| z == f32::NEG_INFINITY) {
            return Sampled { token: NO_TOKEN, logprob: None, top: Vec::new() };
        }
        let raw: Vec<f32> = logits.iter().map(|&logit| clean(logit)).collect();
        let may = |id: u32| mask.is_none_or(|mask| mask[id as usize / 32] >> (id % 32) & 1 == 1);
        let adjusted = |(&z, id): (&f32, u32)| match may(id) {
            true => self.adjusted(z, id, position),
            false => f32::NEG_INFINITY,
        };
        let adjusted: Vec<f32> = raw.iter().zip(0..).map(adjusted).collect();
        let token = self.choose(&adjusted, position);
        self.output.push(token);

        let best = raw[ranking(&raw)[0]];
        let sum: u64 = raw.iter().map(|&z| weight(z - best)).sum();
        let logprob = |id: usize| match raw[id] {
            f32::NEG_INFINITY => f32::NEG_INFINITY,
            z => (f64::from(z - best) - (sum as f64 / 2_f64.powi(40)).ln()) as f32,
        };
        let top = ranking(&raw).into_iter().take(self.sampling.logprobs.unwrap_or(0) as usize);
        Sampled {
            token,
            logprob: self.sampling.logprobs.map(|_| logprob(token as usize)),
            top: top.map(|id| TokenLogprob { token: id as u32, logprob: logprob(id) }).collect(),
        }
    }

    fn adjusted(&self, mut z: f32, id: u32, position: u32) -> f32 {
        let sampling = &self.sampling;
        for &(_, bias) in sampling.logit_bias.iter().filter(|(token, _)| *token == id) {
            z = clean(z + bias);
        }
        let count = self.output.iter().filter(|&&token| token == id).count();
        if count > 0 || self.prompt.contains(&id) {
            let penalty = sampling.repetition_penalty;
            z = clean(if z > 0.0 { z / penalty } else { z * penalty });
        }
        if count > 0 {
            let frequency = sampling.frequency_penalty * count as f32;
            z = clean((z - sampling.presence_penalty) - frequency);
        }
        if position < self.banned_below && self.banned.contains(&id) {
            f32::NEG_INFINITY
        } else {
            z
        }
    }

    fn choose(&self, logits: &[f32], position: u32) -> u32 {
        let sampling = &self.sampling;
        let mut kept = ranking(logits);
        let best = logits[kept[0]];
        if best == f32::NEG_INFINITY {
            return 0;
        }
        if sampling.temperature == 0.0 {
            return kept[0] as u32;
        }
        let weight = |id: usize| weight((logits[id] - best) / sampling.temperature);
        if sampling.top_k > 0 {
            kept.truncate(sampling.top_k as usize);
        }
        if sampling.top_p < 1.0 {
            let sum: u64 = kept.iter().map(|&id| weight(id)).sum();
            let need = (f64::from(sampling.top_p) * sum as f64).ceil() as u64;
            let mut running = 0;
            let reached = kept.iter().position(|&id| {
                running += weight(id);
                running >= need
            });
            kept.truncate(reached.map_or(usize::MAX, |last| last + 1));
        }
        let least = (f64::from(sampling.min_p) * 2_f64.powi(40)).ceil() as u64;
        kept.retain(|&id| weight(id) >= least);

        let sum: u128 = kept.iter().map(|&id| u128::from(weight(id))).sum();
        let target = (u128::from(uniform(sampling.seed, position)) * sum) >> 64;
        kept.sort_unstable();
        let mut running = 0;
        let found = kept.iter().find(|&&id| {
            running += u128::from(weight(id));
            running > target
        });
        found.map(|&id| id as u32).expect("the target is below the sum")
    }
}
