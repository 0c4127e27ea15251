//! What sampling knows of each running request.
//!
//! Owns: parameters, biases and banned tokens by slot on the GPU, and tables of token counts there. Must never: look at
//! logits.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DriverError};
use minisgl_kernels::Device;
use minisgl_kernels::abi::{SampleParams, SampleRow};
use minisgl_kernels::ops::HistoryReset;
use minisgl_proto::SamplingParams;
use minisgl_proto::limits::{BANNED_MAX, LOGIT_BIAS_MAX};
use minisgl_sched::Install;

use super::failed;
use super::results::TOP_MAX;
use crate::ops::OpResult;

/// Parameters that are sent at a time, from memory that the driver copies before it returns.
const PARAMS_SENT: usize = 512;

/// What a slot's rows report.
#[derive(Clone, Copy, Default)]
struct Reports {
    logprobs: Option<u32>,
    prompt_logprobs: Option<u32>,
}

/// The slots of one rank.
pub(super) struct Requests {
    reports: Vec<Reports>,
    vocab: usize,
    /// What `params` becomes, or is.
    params_host: Vec<SampleParams>,
    /// `[slots]`.
    pub(super) params: CudaSlice<SampleParams>,
    /// `[slots, LOGIT_BIAS_MAX]`, as the next.
    pub(super) bias_tokens: CudaSlice<u32>,
    pub(super) bias_values: CudaSlice<f32>,
    /// `[slots, BANNED_MAX]`.
    pub(super) banned: CudaSlice<u32>,
    /// Token counts, `[penalised, vocab]`.
    pub(super) marks: CudaSlice<u32>,
    /// One request's prompt and output.
    history: CudaSlice<u32>,
}

impl Requests {
    pub(super) fn new(
        stream: &Arc<CudaStream>,
        (slots, penalised): (usize, usize),
        vocab: usize,
        max_len: usize,
    ) -> Result<Requests, DriverError> {
        Ok(Requests {
            reports: vec![Reports::default(); slots],
            vocab,
            params_host: vec![SampleParams::default(); slots],
            params: stream.clone_htod(&vec![SampleParams::default(); slots])?,
            bias_tokens: stream.alloc_zeros(slots * LOGIT_BIAS_MAX)?,
            bias_values: stream.alloc_zeros(slots * LOGIT_BIAS_MAX)?,
            banned: stream.alloc_zeros(slots * BANNED_MAX)?,
            marks: stream.alloc_zeros(penalised * vocab)?,
            history: stream.alloc_zeros(max_len)?,
        })
    }

    /// Replaces the state of slots; in the order of the stream, so that steps before it see the old one.
    ///
    /// # Errors
    /// The driver's, and a request beyond the [`limits`](minisgl_proto::limits), which the scheduler lets
    /// no request be.
    pub(super) fn install_all(&mut self, device: &Device, installs: &[Install]) -> OpResult {
        for install in installs {
            self.install(device, install)?;
        }
        let slots = installs.iter().map(|install| install.slot as usize);
        let (Some(first), Some(last)) = (slots.clone().min(), slots.max()) else { return Ok(()) };
        // Those between are sent as they are there.
        for start in (first..=last).step_by(PARAMS_SENT) {
            let range = start..(start + PARAMS_SENT).min(last + 1);
            let mut to = self.params.slice_mut(range.clone());
            let sent = device.stream().memcpy_htod(&self.params_host[range], &mut to);
            sent.map_err(failed("start a request"))?;
        }
        Ok(())
    }

    /// Replaces what one slot refers to. What few requests have, a bias or a history, is copied from pageable memory.
    fn install(&mut self, device: &Device, install: &Install) -> OpResult {
        let fault = |error: DriverError| failed("start a request")(error);
        let stream = device.stream();
        within_limits(install, self.history.len()).map_err(failed("start a request"))?;
        let bias = merged(&install.sampling.logit_bias);
        let (tokens, values): (Vec<u32>, Vec<f32>) = bias.into_iter().unzip();
        let banned = &install.banned;
        if !tokens.is_empty() {
            let at = install.slot as usize * LOGIT_BIAS_MAX;
            let room = at..at + tokens.len();
            stream
                .memcpy_htod(&tokens, &mut self.bias_tokens.slice_mut(room.clone()))
                .and_then(|()| stream.memcpy_htod(&values, &mut self.bias_values.slice_mut(room)))
                .map_err(fault)?;
        }
        if !banned.is_empty() {
            let at = install.slot as usize * BANNED_MAX;
            let mut room = self.banned.slice_mut(at..at + banned.len());
            stream.memcpy_htod(banned, &mut room).map_err(fault)?;
        }
        if let Some(counts) = install.counts {
            let table = counts as usize * self.vocab;
            let mut marks = self.marks.slice_mut(table..table + self.vocab);
            stream.memset_zeros(&mut marks).map_err(fault)?;
            let len = install.history.len();
            if len > 0 {
                let mut tokens = self.history.slice_mut(..len);
                stream.memcpy_htod(&install.history, &mut tokens).map_err(fault)?;
                let reset = HistoryReset {
                    tokens: (&tokens).into(),
                    marks: (&mut marks).into(),
                    prompt_len: (install.prompt_len as usize).min(len),
                };
                reset.launch(device).map_err(failed("start a request"))?;
            }
        }
        let (slot, sampling) = (install.slot, &install.sampling);
        let SamplingParams { logprobs, prompt_logprobs, .. } = *sampling;
        self.reports[slot as usize] = Reports { logprobs, prompt_logprobs };
        self.params_host[slot as usize] = SampleParams {
            seed: sampling.seed,
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            repetition_penalty: sampling.repetition_penalty,
            presence_penalty: sampling.presence_penalty,
            frequency_penalty: sampling.frequency_penalty,
            history: install.counts.map_or(-1, |counts| counts as i32),
            bias_at: slot * LOGIT_BIAS_MAX as u32,
            bias_len: tokens.len() as u32,
            banned_at: slot * BANNED_MAX as u32,
            banned_len: banned.len() as u32,
            banned_below: install.banned_below,
            reserved: 0,
        };
        Ok(())
    }

    /// Whether and how many log-probabilities a slot wants.
    pub(super) fn logprobs(&self, slot: u32) -> Option<u32> {
        self.reports[slot as usize].logprobs
    }

    /// The same of its prompt.
    pub(super) fn prompt_logprobs(&self, slot: u32) -> Option<u32> {
        self.reports[slot as usize].prompt_logprobs
    }

    /// How the token of `slot` at `position` is sampled, under one of the step's masks or none.
    pub(super) fn sample_row(&self, slot: u32, position: u32, mask: Option<usize>) -> SampleRow {
        SampleRow {
            logprobs: self.logprobs(slot).map_or(-1, |count| count.min(i32::MAX as u32) as i32),
            mask: mask.map_or(-1, |mask| mask as i32),
            ..SampleRow::drawn(slot, position, slot as i32)
        }
    }

    /// How `token`, the prompt's own, is reported for `slot`.
    pub(super) fn score_row(&self, slot: u32, token: u32) -> SampleRow {
        let top = self.prompt_logprobs(slot).unwrap_or(0);
        SampleRow {
            logprobs: top.min(i32::MAX as u32) as i32,
            given: token as i32,
            ..SampleRow::drawn(slot, 0, slot as i32)
        }
    }
}

/// What the tables here hold, nothing less: cutting a request would change what it means.
fn within_limits(install: &Install, history_max: usize) -> Result<(), String> {
    let sampling = &install.sampling;
    for (what, count, limit) in [
        ("biases", sampling.logit_bias.len(), LOGIT_BIAS_MAX),
        ("banned tokens", install.banned.len(), BANNED_MAX),
        ("tokens", install.history.len(), history_max),
        ("log-probabilities", sampling.logprobs.unwrap_or(0) as usize, TOP_MAX),
        (
            "log-probabilities of its prompt",
            sampling.prompt_logprobs.unwrap_or(0) as usize,
            TOP_MAX,
        ),
    ] {
        if count > limit {
            return Err(format!("it has {count} {what}, the limit is {limit}"));
        }
    }
    Ok(())
}

/// Each token once, as the kernel wants it; biases of the same token add up.
fn merged(bias: &[(u32, f32)]) -> Vec<(u32, f32)> {
    let mut merged: Vec<(u32, f32)> = bias.to_vec();
    merged.sort_by_key(|&(token, _)| token);
    merged.dedup_by(|next, kept| {
        let same = next.0 == kept.0;
        if same {
            kept.1 += next.1;
        }
        same
    });
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_biased_once() {
        assert_eq!(merged(&[(7, 1.0), (3, 2.0), (7, 0.5)]), [(3, 2.0), (7, 1.5)]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let install = |biases: usize, banned: usize, logprobs: u32, of_prompt: u32| Install {
            slot: 0,
            counts: None,
            sampling: SamplingParams {
                logit_bias: vec![(1, 1.0); biases],
                logprobs: Some(logprobs),
                prompt_logprobs: Some(of_prompt),
                ..SamplingParams::default()
            },
            banned: vec![2; banned],
            banned_below: 1,
            history: Vec::new(),
            prompt_len: 0,
        };
        assert_eq!(within_limits(&install(1024, 128, 128, 128), 0), Ok(()));
        for (beyond, what) in [
            (install(1025, 0, 0, 0), "it has 1025 biases, the limit is 1024"),
            (install(0, 129, 0, 0), "it has 129 banned tokens, the limit is 128"),
            (install(0, 0, 129, 0), "it has 129 log-probabilities, the limit is 128"),
            (install(0, 0, 0, 129), "it has 129 log-probabilities of its prompt, the limit is 128"),
        ] {
            assert_eq!(within_limits(&beyond, 0), Err(what.to_string()));
        }
    }
}
