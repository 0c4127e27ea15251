//! A step from its inputs to its results, op by op, recorded, or replayed.
//!
//! Owns: the order of what is enqueued. Must never: know what an op does.

use minisgl_sched::Late;

use super::graphs::{self, Mode, Part};
use super::inputs::Packing;
use super::tables::Listing;
use super::{CudaOps, failed};
use crate::batch::Batch;
use crate::ops::{OpResult, Pass, Pending};

impl CudaOps {
    /// Everything of a step, onto the stream; of one that waits for masks, up to where it samples.
    pub(super) fn issue(
        &mut self,
        batch: &Batch,
        pass: &mut impl Pass<Self>,
    ) -> OpResult<Option<Box<dyn Pending>>> {
        let waits = !batch.plan().masked.is_empty();
        let part = if waits { Part::Forward } else { Part::Whole };
        self.requests.install_all(&self.device, &batch.plan().installs)?;
        self.bring(batch)?;
        let stream = self.stream().clone();
        self.outputs.begin(&stream)?;
        self.issue_part(batch, part, |ops| {
            pass.forward(ops, batch)?;
            if waits { Ok(()) } else { pass.read(ops, batch) }
        })?;
        if waits { Ok(None) } else { self.send_results(batch).map(Some) }
    }

    /// The rest of the step in hand, which waited for `late`.
    pub(super) fn issue_rest(
        &mut self,
        batch: &Batch,
        late: &Late,
        pass: &mut impl Pass<Self>,
    ) -> OpResult<Box<dyn Pending>> {
        let stream = self.stream().clone();
        self.masks.send(&stream, &late.masks).map_err(failed("upload masks"))?;
        self.issue_part(batch, Part::Read, |ops| pass.read(ops, batch))?;
        self.send_results(batch)
    }

    /// Packs what the step's kernels read, and enqueues its way to the GPU.
    fn bring(&mut self, batch: &Batch) -> OpResult {
        // Whatever part comes first, rows are padded alike.
        let mode = self.graphs.mode(batch, Part::Whole).0;
        let padded = match mode {
            Mode::Eager => None,
            Mode::Padded(rows) | Mode::Replay(rows) => Some(rows),
        };
        let CudaOps { device, inputs, tables, requests, attention, .. } = self;
        let samples = batch.logit_rows().iter().map(|wanted| {
            let row = &batch.rows()[wanted.row as usize];
            match wanted.given {
                Some(token) => requests.score_row(row.slot, token),
                None => {
                    let mask = batch.mask_of(wanted.row);
                    requests.sample_row(row.slot, row.next_position(), mask)
                }
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
        let (kv_pages, nothing) = (self.kv_pages, Listing { from_row: 0, starts: &[] });
        let is_replay = matches!(mode, Mode::Replay(_)) && batch.plan().masked.is_empty();
        let changed = match is_replay && listing.starts.len() <= 1 {
            true => None,
            false => Some(tables.change(device, batch, kv_pages, listing)?),
        };
        attention
            .plan(device, &starts, decoding, padded.is_some())
            .map_err(failed("plan attention"))?;
        let changed = match changed {
            Some(changed) => changed,
            None => {
                let brought = inputs.bring(device, (&mut *tables, batch.plan()), kv_pages);
                if brought.map_err(failed("bring the step"))? {
                    return Ok(());
                }
                tables.change(device, batch, kv_pages, nothing)?
            }
        };
        inputs.upload(device.stream(), changed).map_err(failed("upload the step"))
    }

    /// Issues a part of the step as its rows want it: op by op, recorded, or replayed. Where there is no memory for a graph
    /// any more, steps of its size go on op by op.
    fn issue_part(
        &mut self,
        batch: &Batch,
        part: Part,
        mut issue: impl FnMut(&mut Self) -> OpResult,
    ) -> OpResult {
        let (mode, record) = self.graphs.mode(batch, part);
        self.mode = mode;
        match (mode, record) {
            // A plan may do no more than install requests.
            (Mode::Eager, _) if batch.tokens().is_empty() => Ok(()),
            (Mode::Eager, _) => issue(self),
            (Mode::Padded(rows), false) => {
                issue(self)?;
                self.graphs.ran(rows, part);
                Ok(())
            }
            (Mode::Padded(rows), true) => {
                let stream = self.stream().clone();
                graphs::begin(&stream).map_err(failed("record a step"))?;
                let done = issue(self);
                let recorded = graphs::end(&stream);
                done?;
                match recorded {
                    Ok(graph) => self.graphs.keep(rows, part, graph),
                    Err(error) => {
                        tracing::warn!("a step of {rows} rows is not recorded: {error}");
                        self.graphs.give_up(rows, part);
                        return issue(self);
                    }
                }
                self.graphs.replay(rows, part).map_err(failed("run a recorded step"))
            }
            (Mode::Replay(rows), _) => {
                self.graphs.replay(rows, part).map_err(failed("run a recorded step"))
            }
        }
    }

    /// Enqueues the results' way to the host.
    fn send_results(&mut self, batch: &Batch) -> OpResult<Box<dyn Pending>> {
        let (pending, outgoing) = self.expect(batch)?;
        self.outputs.send(self.stream(), &outgoing).map_err(failed("send tokens"))?;
        Ok(pending)
    }
}
