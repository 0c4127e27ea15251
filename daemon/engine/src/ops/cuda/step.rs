//! A step from its inputs to its results, op by op, recorded, or replayed.
//!
//! Owns: the order of what is enqueued. Must never: know what an op does.

use minisgl_sched::Install;

use super::graphs::{self, Mode};
use super::inputs::Packing;
use super::tables::Listing;
use super::{CudaOps, failed};
use crate::batch::Batch;
use crate::ops::{OpResult, Pending};

impl CudaOps {
    /// Everything of a step, onto the stream.
    pub(super) fn issue(
        &mut self,
        batch: &Batch,
        installs: &[Install],
        forward: impl FnOnce(&mut Self) -> OpResult,
    ) -> OpResult<Box<dyn Pending>> {
        for install in installs {
            self.requests.install(&self.device, install)?;
        }
        let (mode, record) = self.graphs.mode(batch);
        self.mode = mode;
        let padded = match mode {
            Mode::Eager => None,
            Mode::Padded(rows) | Mode::Replay(rows) => Some(rows),
        };
        let CudaOps { device, inputs, tables, requests, attention, .. } = self;
        let samples = batch.logit_rows().iter().map(|wanted| {
            let row = &batch.rows()[wanted.row as usize];
            match wanted.given {
                Some(token) => requests.score_row(row.slot, token),
                None => requests.sample_row(row.slot, row.next_position()),
            }
        });
        let decoding = padded.unwrap_or(batch.decoding());
        let decode = attention.decode_planner();
        let listed_from = if decode.is_some() { decoding } else { 0 };
        let packing = Packing { page_size: self.heads.page_size, listed_from, padded, decode };
        let starts = inputs
            .pack(batch, samples, |slot| tables.start(slot), packing)
            .map_err(failed("upload the step"))?;
        let listing = Listing { from_row: listed_from, starts: &starts.page_starts[listed_from..] };
        let changed = tables.change(device, batch, self.kv_pages, listing)?;
        attention
            .plan(device, &starts, decoding, padded.is_some())
            .map_err(failed("plan attention"))?;
        inputs.upload(device.stream(), changed).map_err(failed("upload the step"))?;

        let stream = self.stream().clone();
        self.outputs.begin(&stream)?;
        match (mode, record) {
            // A plan may do no more than install requests.
            (Mode::Eager, _) if batch.tokens().is_empty() => {}
            (Mode::Eager, _) => forward(self)?,
            (Mode::Padded(rows), false) => {
                forward(self)?;
                self.graphs.ran(rows);
            }
            (Mode::Padded(rows), true) => {
                graphs::begin(&stream).map_err(failed("record a step"))?;
                let done = forward(self);
                let recorded = graphs::end(&stream);
                done?;
                self.graphs.keep(rows, recorded.map_err(failed("record a step"))?);
                self.graphs.replay(rows).map_err(failed("run a recorded step"))?;
            }
            (Mode::Replay(rows), _) => {
                self.graphs.replay(rows).map_err(failed("run a recorded step"))?;
            }
        }
        let (pending, outgoing) = self.expect(batch)?;
        self.outputs.send(&stream, &outgoing).map_err(failed("send tokens"))?;
        Ok(pending)
    }
}
