//! What is reported: figures beside their floors, and where the time went.
//!
//! Owns: a report's numbers, which are also its JSON. Must never: measure.

use serde::Serialize;

use super::floor::{Costs, Floor, Hardware};
use super::memory::HostMemory;
use super::session::{Run, Session};
use super::timed::StepRecord;

/// Everything that one call of `bench` prints.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Version of this program.
    pub version: &'static str,
    /// `architectures[0]` of `config.json`.
    pub architecture: String,
    /// A GPU's name, or `cpu`.
    pub device: String,
    /// Element type of the weights.
    pub dtype: String,
    /// Number of parameters.
    pub parameters: u64,
    /// Bytes of weights on the device.
    pub weight_bytes: u64,
    /// Bytes of KV pages on the device.
    pub kv_bytes: u64,
    /// Tokens that they hold.
    pub kv_tokens: u64,
    /// Tokens a page.
    pub page_size: u32,
    /// Tokens a step feeds at most.
    pub chunk_tokens: u32,
    /// Requests running at once, at most.
    pub max_running: u32,
    /// Step n + 1 is scheduled while step n runs.
    pub overlap: bool,
    /// Seconds from the start of loading to ready.
    pub load_s: f64,
    /// Bytes of weights that were read, or made, for that.
    pub read_bytes: u64,
    /// Seconds of `load_s` until they were on the device.
    pub read_s: f64,
    /// What the floors are computed from.
    pub hardware: Option<Hardware>,
    /// One for each thing measured.
    pub results: Vec<RunReport>,
    /// After all of them.
    pub host_memory: HostMemory,
}

/// One thing measured.
#[derive(Clone, Debug, Serialize)]
pub struct RunReport {
    /// What was run.
    pub name: String,
    /// What it is about.
    pub figures: Vec<Figure>,
    /// Where the time went.
    pub phases: Phases,
}

/// A number and what the hardware would allow.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// Of what.
    pub name: &'static str,
    /// In which unit.
    pub unit: &'static str,
    /// As measured.
    pub value: f64,
    /// At the floor's time, in the same unit.
    pub floor: Option<f64>,
    /// The part of what is possible that was reached: floor's time over time.
    pub reached: Option<f64>,
}

impl Figure {
    /// A count over seconds.
    pub fn rate(
        name: &'static str,
        unit: &'static str,
        count: u64,
        seconds: f64,
        floor_s: Option<f64>,
    ) -> Figure {
        Figure {
            name,
            unit,
            value: count as f64 / seconds,
            floor: floor_s.map(|floor_s| count as f64 / floor_s),
            reached: floor_s.map(|floor_s| floor_s / seconds),
        }
    }

    /// Seconds, times `scale` to be in `unit`.
    pub fn time(
        name: &'static str,
        unit: &'static str,
        scale: f64,
        seconds: f64,
        floor_s: Option<f64>,
    ) -> Figure {
        Figure {
            name,
            unit,
            value: seconds * scale,
            floor: floor_s.map(|floor_s| floor_s * scale),
            reached: floor_s.map(|floor_s| floor_s / seconds),
        }
    }
}

/// Some steps of a run.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Phase {
    /// How many.
    pub steps: usize,
    /// Seconds that they took, from the output before each to its own.
    pub seconds: f64,
    /// Rows that decoded, on average.
    pub decode_rows_mean: f64,
    /// Tokens of prompts.
    pub prefill_tokens: u64,
    /// The least they could have taken.
    pub floor: Option<Floor>,
}

impl Phase {
    fn of(steps: &[StepRecord], costs: &Costs, hardware: Option<&Hardware>) -> Phase {
        let decode_rows: u64 = steps.iter().map(|step| u64::from(step.decode_rows)).sum();
        Phase {
            steps: steps.len(),
            seconds: steps.iter().map(|step| step.wall_s).sum(),
            decode_rows_mean: decode_rows as f64 / steps.len().max(1) as f64,
            prefill_tokens: steps.iter().map(|step| u64::from(step.prefill_tokens)).sum(),
            floor: hardware.map(|hardware| Floor::of(steps, costs, hardware)),
        }
    }
}

/// Where the time of a run went.
#[derive(Clone, Debug, Serialize)]
pub struct Phases {
    /// All steps.
    pub all: Phase,
    /// Those with a prompt's chunk.
    pub prefill: Phase,
    /// The rest.
    pub decode: Phase,
    /// Seconds of the host's thread in all: planning, handing over, waiting.
    pub schedule_s: f64,
    /// See `schedule_s`.
    pub launch_s: f64,
    /// See `schedule_s`.
    pub wait_s: f64,
    /// Seconds of the rank's thread, enqueuing: no part of the host's, it works beside it.
    pub enqueue_s: Option<f64>,
    /// The longest step that only decoded.
    pub decode_step_max_s: f64,
    /// The part of the decode steps' time in which the device ran no kernel of theirs.
    pub decode_idle: Option<f64>,
    /// Requests put back into the queue for want of pages.
    pub preemptions: u64,
    /// Seconds from submission to the first token, on average and at most.
    pub first_token_mean_s: f64,
    /// See `first_token_mean_s`.
    pub first_token_max_s: f64,
}

impl Phases {
    /// Splits a run.
    pub fn of(run: &Run, costs: &Costs, hardware: Option<&Hardware>) -> Phases {
        let (decode, prefill): (Vec<StepRecord>, Vec<StepRecord>) =
            run.steps.iter().partition(|step| step.prefill_rows == 0);
        let firsts = &run.first_token_s;
        Phases {
            all: Phase::of(&run.steps, costs, hardware),
            prefill: Phase::of(&prefill, costs, hardware),
            decode: Phase::of(&decode, costs, hardware),
            schedule_s: run.schedule_s,
            launch_s: run.steps.iter().map(|step| step.launch_s).sum(),
            wait_s: run.steps.iter().map(|step| step.wait_s).sum(),
            enqueue_s: sum(&run.steps, |step| step.profile.enqueue_s),
            decode_idle: sum(&decode, |step| step.profile.device_s).map(|device_s| {
                1.0 - device_s / decode.iter().map(|step| step.wall_s).sum::<f64>()
            }),
            decode_step_max_s: decode.iter().map(|step| step.wall_s).fold(0.0, f64::max),
            preemptions: run.preemptions,
            first_token_mean_s: firsts.iter().sum::<f64>() / firsts.len().max(1) as f64,
            first_token_max_s: firsts.iter().copied().fold(0.0, f64::max),
        }
    }

    /// The least time for all steps.
    pub fn floor_s(&self) -> Option<f64> {
        self.all.floor.map(|floor| floor.seconds())
    }
}

/// Of a part that every step has measured, and `None` otherwise or without steps.
fn sum(steps: &[StepRecord], part: impl Fn(&StepRecord) -> Option<f32>) -> Option<f64> {
    let all: Option<f64> = steps.iter().map(|step| part(step).map(f64::from)).sum();
    all.filter(|_| !steps.is_empty())
}

impl Report {
    /// About `results` of a session.
    ///
    /// # Errors
    /// The host's memory cannot be read.
    pub fn new(
        session: &Session,
        hardware: Option<Hardware>,
        results: Vec<RunReport>,
    ) -> anyhow::Result<Report> {
        let (info, scheduling) = (session.info(), session.scheduling());
        Ok(Report {
            version: env!("CARGO_PKG_VERSION"),
            architecture: info.architecture.clone(),
            device: info.device.clone(),
            dtype: info.dtype.clone(),
            parameters: info.parameters,
            weight_bytes: info.weight_bytes,
            kv_bytes: info.kv_bytes,
            kv_tokens: info.kv_tokens,
            page_size: info.page_size,
            chunk_tokens: scheduling.chunk_tokens,
            max_running: scheduling.max_running,
            overlap: scheduling.overlap,
            load_s: session.load_s(),
            read_bytes: info.read_bytes,
            read_s: info.read_s,
            hardware,
            results,
            host_memory: HostMemory::now()?,
        })
    }
}
