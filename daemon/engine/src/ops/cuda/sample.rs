//! From hidden states to tokens.
//!
//! Owns: logits, and how many rows of them are held at once. Must never: wait for a token.

use std::ops::Range;

use cudarc::driver::CudaView;
use minisgl_kernels::gemm::{GemmArgs, GemmOut};
use minisgl_kernels::ops::{Sample, SkinnyGemm, SkinnyInput, SkinnyOut, sample_scratch_len};
use minisgl_kernels::peers::PeerError;

use super::fp8::logits_fp8;
use super::linear::gemm_rows;
use super::results::{Outgoing, TOP_MAX, Wanted};
use super::team::Team;
use super::{Buffer, CudaOps, Matrix, failed};
use crate::batch::Batch;
use crate::ops::{OpResult, Pending};

impl CudaOps {
    /// Samples or scores every row of logits that is wanted, as many at a time as there is room for.
    pub(super) fn sample_all(&mut self, batch: &Batch, head: &Matrix, hidden: &Buffer) -> OpResult {
        let rows = self.issued(batch.logit_rows().len());
        for start in (0..rows).step_by(self.logit_rows) {
            self.sample_rows(start..rows.min(start + self.logit_rows), head, hidden)?;
        }
        Ok(())
    }

    /// The results of the step in hand, and what sends them.
    pub(super) fn expect(&mut self, batch: &Batch) -> OpResult<(Box<dyn Pending>, Outgoing)> {
        let wanted = batch.logit_rows().iter().map(|wanted| {
            let (slot, given) = (batch.rows()[wanted.row as usize].slot, wanted.given);
            let logprobs = match given {
                Some(_) => self.requests.prompt_logprobs(slot).or(Some(0)),
                None => self.requests.logprobs(slot),
            };
            Wanted { slot: slot as usize, logprobs, given }
        });
        self.outputs.expect(wanted.collect())
    }

    /// Samples or scores `rows` of the rows of logits: first the logits, then what becomes of them.
    fn sample_rows(&mut self, rows: Range<usize>, head: &Matrix, hidden: &Buffer) -> OpResult {
        let (count, width) = (rows.len(), hidden.width);
        let m = gemm_rows(count, self.logit_rows).min(hidden.rows - rows.start);
        let x = hidden.data.slice(rows.start * width..(rows.start + m) * width);
        let (n, k) = (head.padded_rows(), head.inputs);
        let few = self.few(m);
        let CudaOps { device, gemm, team, logits, logit_stride, .. } = self;
        // With several ranks these are a part of each row, which peers may still be reading.
        let mut out = match team {
            Some(team) => {
                let peers = team.peers();
                if rows.start > 0 {
                    peers.meet(device).map_err(failed("logits"))?;
                }
                peers.logits().slice_mut(..m * n)
            }
            None => logits.slice_mut(..m * *logit_stride),
        };
        if head.scale_form().is_some() {
            logits_fp8(device, (m, &x), head, &mut out)?;
        } else if few {
            SkinnyGemm {
                input: SkinnyInput::Plain((&x).into()),
                weight: head.into(),
                out: SkinnyOut::F32((&mut out).into()),
                m,
                n,
                k,
            }
            .launch(device)
            .map_err(failed("logits"))?;
        } else {
            let product = GemmArgs {
                x: (&x).into(),
                weight: head.plain()?.into(),
                bias: None,
                out: GemmOut::F32((&mut out).into()),
                m,
                n,
                k,
            };
            gemm.launch(device, product).map_err(failed("logits"))?;
        }
        let stride = *logit_stride;
        let drawn_together = team.as_ref().map(Team::seat).filter(|peers| peers.is_direct());
        let scratch_len = match &drawn_together {
            Some(peers) => peers.sample_scratch_len(count),
            None => sample_scratch_len(device, count, self.vocab, stride),
        };

        let CudaOps {
            device, inputs, requests, masks, outputs, logits, scratch, team, vocab, ..
        } = self;
        let tops = rows.start * TOP_MAX..rows.end * TOP_MAX;
        let allowed = masks.all();
        let sample = |draws: &CudaView<'_, _>| -> Result<(), PeerError> {
            let mut scratch = scratch.slice_mut(..scratch_len);
            let mut logprob = outputs.logprob.slice_mut(rows.clone());
            let mut top_tokens = outputs.top_tokens.slice_mut(tops.clone());
            let mut top_logprobs = outputs.top_logprobs.slice_mut(tops);
            let sample = Sample {
                draws: draws.into(),
                params: (&requests.params).into(),
                masks: (&allowed).into(),
                bias_tokens: (&requests.bias_tokens).into(),
                bias_values: (&requests.bias_values).into(),
                banned: (&requests.banned).into(),
                marks: (&mut requests.marks).into(),
                scratch: (&mut scratch).into(),
                tokens: (&mut outputs.tokens).into(),
                logprob: (&mut logprob).into(),
                top_tokens: (&mut top_tokens).into(),
                top_logprobs: (&mut top_logprobs).into(),
                rows: count,
                vocab: *vocab,
                top_max: TOP_MAX,
            };
            match team.as_mut().map(Team::peers) {
                Some(peers) if peers.is_direct() => {
                    return peers.sample(device, sample, logits.into(), stride);
                }
                Some(peers) => {
                    let mut all = logits.slice_mut(..count * stride);
                    peers.gather(device, count, stride, (&mut all).into())?;
                }
                None => {}
            }
            let logits = logits.slice(..count * stride);
            Ok(sample.launch(device, (&logits).into(), stride)?)
        };
        inputs.with_samples(rows.clone(), sample).map_err(failed("sample"))
    }
}
