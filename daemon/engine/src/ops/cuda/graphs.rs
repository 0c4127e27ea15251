//! Decode steps as CUDA graphs: recorded once for each number of rows, replayed as one launch; as two where masks come
//! between the forward pass and sampling.
//!
//! Owns: the graphs, and which steps are one. Must never: record a kernel that has not run before; what is
//! loaded lazily must not be loaded while recording.

use std::collections::HashMap;
use std::sync::Arc;

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaGraph, CudaStream, DriverError};
use minisgl_sched::Want;

use super::linear::gemm_rows;
use crate::batch::Batch;

/// Anything but `0` in this variable and every step is enqueued op by op, to tell what graphs change.
const DISABLE_GRAPHS: &str = "MINISGL_DISABLE_CUDA_GRAPHS";

/// How a step is issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Every op is enqueued.
    Eager,
    /// As many rows as a graph has, enqueued or recorded.
    Padded(usize),
    /// The graph of that many rows runs; no op issues anything.
    Replay(usize),
}

/// What of a step is issued, and recorded, at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Part {
    /// All of it.
    Whole,
    /// Up to the residual stream.
    Forward,
    /// The rest.
    Read,
}

/// What is known of rows and a part that have run.
enum Known {
    /// They ran once, and are recorded next.
    Ran,
    /// As recorded.
    Recorded(Option<CudaGraph>),
    /// They cannot be recorded.
    Never,
}

/// The graphs of one rank.
pub(super) struct Graphs {
    known: HashMap<(usize, Part), Known>,
    rows_max: usize,
}

// SAFETY: a graph may be used from any thread, by one at a time; `Graphs` is not Sync and hands none out.
unsafe impl Send for Graphs {}

impl Graphs {
    /// For decode steps of up to `rows_max` rows.
    pub(super) fn new(rows_max: usize) -> Graphs {
        let disabled = std::env::var_os(DISABLE_GRAPHS).is_some_and(|value| value != "0");
        Graphs { known: HashMap::new(), rows_max: if disabled { 0 } else { rows_max } }
    }

    /// How to issue a part of `batch`, and whether to record it. All parts have the same rows.
    pub(super) fn mode(&self, batch: &Batch, part: Part) -> (Mode, bool) {
        let decode =
            |batch: &Batch| batch.rows().iter().all(|row| row.len == 1 && row.want == Want::Last);
        let rows = batch.rows().len();
        if rows == 0 || rows > self.rows_max || !decode(batch) {
            return (Mode::Eager, false);
        }
        let padded = gemm_rows(rows, self.rows_max);
        match self.known.get(&(padded, part)) {
            None | Some(Known::Never) => (Mode::Padded(padded), false),
            Some(Known::Ran) => (Mode::Padded(padded), true),
            Some(Known::Recorded(_)) => (Mode::Replay(padded), false),
        }
    }

    /// Keeps what was recorded as the graph of a part of `rows` rows.
    pub(super) fn keep(&mut self, rows: usize, part: Part, graph: Option<CudaGraph>) {
        self.known.insert((rows, part), Known::Recorded(graph));
    }

    /// A part of `rows` rows cannot be recorded: it is enqueued op by op from now on.
    pub(super) fn give_up(&mut self, rows: usize, part: Part) {
        self.known.insert((rows, part), Known::Never);
    }

    /// A part of a step of `rows` rows ran.
    pub(super) fn ran(&mut self, rows: usize, part: Part) {
        self.known.entry((rows, part)).or_insert(Known::Ran);
    }

    /// Enqueues the graph of a part of `rows` rows.
    pub(super) fn replay(&self, rows: usize, part: Part) -> Result<(), DriverError> {
        match self.known.get(&(rows, part)) {
            Some(Known::Recorded(Some(graph))) => graph.launch(),
            _ => Ok(()),
        }
    }
}

/// From now on the stream records, and runs nothing.
pub(super) fn begin(stream: &CudaStream) -> Result<(), DriverError> {
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
}

/// Ends recording; what was recorded has not run.
pub(super) fn end(stream: &Arc<CudaStream>) -> Result<Option<CudaGraph>, DriverError> {
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY;
    stream.end_capture(flags)
}
