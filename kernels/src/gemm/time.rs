//! Timing of small things: replays of a graph of launches, since the host would be slower than they are.

use cudarc::driver::sys::{CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode};

use super::{GemmError, driver};
use crate::Device;

/// Seconds that one replay should take at least.
const REPLAY_S: f64 = 200e-6;

/// What is this much slower than the best is not timed again.
const HOPELESS: f64 = 1.3;

/// Seconds of one of `launches`, which differ in what they read only; less precise if it is far slower than
/// `best_s`.
pub(super) fn time(
    device: &Device,
    launches: usize,
    best_s: f64,
    mut launch: impl FnMut(usize) -> Result<(), GemmError>,
) -> Result<f64, GemmError> {
    let (stream, failed) = (device.stream(), || driver("timing a product"));
    let between = |work: &mut dyn FnMut() -> Result<(), GemmError>| {
        let flags = Some(CUevent_flags::CU_EVENT_DEFAULT);
        let begin = stream.record_event(flags).map_err(failed())?;
        work()?;
        let end = stream.record_event(flags).map_err(failed())?;
        let millis = begin.elapsed_ms(&end).map_err(failed())?;
        Ok::<_, GemmError>(f64::from(millis) * 1e-3)
    };
    launch(0)?; // What is loaded lazily must not be loaded in a capture.
    let once_s = between(&mut || launch(0))?;
    let count = ((REPLAY_S / once_s).ceil() as usize).clamp(1, launches);
    if once_s > REPLAY_S && once_s > best_s * HOPELESS {
        return Ok(once_s);
    }

    stream
        .begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        .map_err(failed())?;
    let launched = (0..count).try_for_each(&mut launch);
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY;
    let graph = stream.end_capture(flags).map_err(failed())?;
    launched?;
    let Some(graph) = graph else { return Ok(f64::INFINITY) };
    let replay = || between(&mut || graph.launch().map_err(failed()));
    replay()?;
    let mut times = vec![replay()?];
    if times[0] <= best_s * HOPELESS * count as f64 {
        for _ in 0..4 {
            times.push(replay()?);
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2] / count as f64)
}
