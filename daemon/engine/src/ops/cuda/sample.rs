//! From hidden states to tokens.
//!
//! Owns: logits, and how many rows of them are held at once. Must never: wait for a token.

use std::ops::Range;

use cudarc::driver::CudaView;
use minisgl_kernels::gemm::{GemmArgs, GemmOut};
use minisgl_kernels::ops::{Sample, SkinnyGemm, SkinnyInput, SkinnyOut, sample_scratch_len};

use super::linear::gemm_rows;
use super::results::{TOP_MAX, Wanted};
use super::{Buffer, CudaOps, Matrix, failed};
use crate::batch::Batch;
use crate::ops::{OpResult, Pending};

/// Rows whose logits are held at once: whole vocabularies are long.
pub(super) const LOGIT_ROWS: usize = 256;

impl CudaOps {
    /// Samples every row that is to be, [`LOGIT_ROWS`] at a time.
    pub(super) fn sample_all(
        &mut self,
        batch: &Batch,
        head: &Matrix,
        hidden: &Buffer,
    ) -> OpResult<Box<dyn Pending>> {
        let rows = self.issued(batch.sampled().len());
        for start in (0..rows).step_by(LOGIT_ROWS) {
            self.sample_rows(start..rows.min(start + LOGIT_ROWS), head, hidden)?;
        }
        let wanted = batch.sampled().iter().map(|sampled| Wanted {
            row: sampled.row as usize,
            logprobs: self.requests.logprobs(batch.rows()[sampled.row as usize].slot),
        });
        let (pending, outgoing) = self.outputs.expect(batch.rows().len(), wanted.collect())?;
        self.outgoing = Some(outgoing);
        Ok(pending)
    }

    /// Samples `rows` of the sampled rows: their logits, then their tokens.
    fn sample_rows(&mut self, rows: Range<usize>, head: &Matrix, hidden: &Buffer) -> OpResult {
        let (count, width) = (rows.len(), hidden.width);
        let m =
            gemm_rows(count, self.logits.len() / self.logit_stride).min(hidden.rows - rows.start);
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
        if few {
            SkinnyGemm {
                input: SkinnyInput::Plain((&x).into()),
                weight: (&head.data).into(),
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
                weight: (&head.data).into(),
                bias: None,
                out: GemmOut::F32((&mut out).into()),
                m,
                n,
                k,
            };
            gemm.launch(device, product).map_err(failed("logits"))?;
        }
        if let Some(team) = team {
            let mut all = logits.slice_mut(..count * *logit_stride);
            let joined = team.peers().gather(device, count, *logit_stride, (&mut all).into());
            joined.map_err(failed("join logits"))?;
        }

        let CudaOps { device, inputs, requests, outputs, .. } = self;
        let logits = self.logits.slice(..count * self.logit_stride);
        let scratch_len = sample_scratch_len(device, count, self.vocab, self.logit_stride);
        let tops = rows.start * TOP_MAX..rows.end * TOP_MAX;
        let sample = |params: &CudaView<'_, _>| {
            Sample {
                logits: (&logits).into(),
                params: params.into(),
                bias_tokens: (&requests.bias_tokens).into(),
                bias_values: (&requests.bias_values).into(),
                banned: (&requests.banned).into(),
                marks: (&mut requests.marks).into(),
                scratch: (&mut self.scratch.slice_mut(..scratch_len)).into(),
                tokens: (&mut outputs.tokens).into(),
                logprob: (&mut outputs.logprob.slice_mut(rows.clone())).into(),
                top_tokens: (&mut outputs.top_tokens.slice_mut(tops.clone())).into(),
                top_logprobs: (&mut outputs.top_logprobs.slice_mut(tops)).into(),
                rows: count,
                vocab: self.vocab,
                stride: self.logit_stride,
                top_max: TOP_MAX,
            }
            .launch(device)
        };
        inputs.with_samples(rows.clone(), sample).map_err(failed("sample"))
    }
}
