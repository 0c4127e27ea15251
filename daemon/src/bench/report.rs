//! What is printed: figures beside their floors, then where the time went.
//!
//! Owns: the words and units of a report, as text and as JSON. Must never: measure.

use std::fmt::Write;

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
    /// The longest step that only decoded.
    pub decode_step_max_s: f64,
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
        let (info, options) = (session.info(), session.options());
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
            chunk_tokens: info.chunk_tokens,
            max_running: options.max_running,
            overlap: options.overlap,
            load_s: session.load_s(),
            hardware,
            results,
            host_memory: HostMemory::now()?,
        })
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        const GIB: f64 = (1u64 << 30) as f64;
        const MIB: f64 = (1u64 << 20) as f64;
        writeln!(
            out,
            "{}, {:.2} B parameters, {}, on {}: {:.2} GiB of weights, loaded in {:.2} s",
            self.architecture,
            self.parameters as f64 / 1e9,
            self.dtype,
            self.device,
            self.weight_bytes as f64 / GIB,
            self.load_s
        )?;
        writeln!(
            out,
            "KV cache {} tokens ({:.2} GiB) in pages of {}, chunks of {}, {} running at most{}",
            self.kv_tokens,
            self.kv_bytes as f64 / GIB,
            self.page_size,
            self.chunk_tokens,
            self.max_running,
            if self.overlap { "" } else { ", no overlap" }
        )?;
        match &self.hardware {
            Some(hardware) => writeln!(
                out,
                "floors at {:.0} GB/s read and {:.1} TFLOP/s",
                hardware.read_bytes_per_s / 1e9,
                hardware.matmul_flop_per_s / 1e12
            )?,
            None => writeln!(out, "no floors: give --read-bandwidth and --matmul of this device")?,
        }
        for result in &self.results {
            writeln!(out, "\n{}", result.name)?;
            for figure in &result.figures {
                figure.write(out)?;
            }
            result.phases.write(out)?;
        }
        writeln!(
            out,
            "\nhost memory {:.0} MiB resident, {:.0} MiB at most",
            self.host_memory.rss_bytes as f64 / MIB,
            self.host_memory.rss_peak_bytes as f64 / MIB
        )
    }
}

impl Figure {
    fn write(&self, out: &mut String) -> std::fmt::Result {
        let digits = |value: f64| if value < 100.0 { 3 } else { 0 };
        write!(out, "  {:<13} {:>10.*} {}", self.name, digits(self.value), self.value, self.unit)?;
        if let (Some(floor), Some(reached)) = (self.floor, self.reached) {
            write!(out, ", floor {floor:.*}, reached {:.1} %", digits(floor), reached * 100.0)?;
        }
        writeln!(out)
    }
}

impl Phases {
    fn write(&self, out: &mut String) -> std::fmt::Result {
        for (name, phase) in [("prefill", &self.prefill), ("decode", &self.decode)] {
            if phase.steps > 0 {
                phase.write(name, out)?;
            }
        }
        let steps = self.all.steps.max(1) as f64;
        writeln!(
            out,
            "  {} steps, {} preemptions, {:.1} decode rows on average; first token after {:.3} s on \
             average, {:.3} s at most",
            self.all.steps,
            self.preemptions,
            self.all.decode_rows_mean,
            self.first_token_mean_s,
            self.first_token_max_s
        )?;
        writeln!(
            out,
            "  host, us a step: schedule {:.1}, launch {:.1}, wait {:.1}; busy {:.2} % of the time",
            self.schedule_s / steps * 1e6,
            self.launch_s / steps * 1e6,
            self.wait_s / steps * 1e6,
            (self.schedule_s + self.launch_s) / self.all.seconds.max(f64::MIN_POSITIVE) * 100.0
        )
    }
}

impl Phase {
    fn write(&self, name: &str, out: &mut String) -> std::fmt::Result {
        write!(
            out,
            "  {name} steps: {} in {:.3} s, {:.3} ms each, {:.1} decode rows",
            self.steps,
            self.seconds,
            self.seconds / self.steps as f64 * 1e3,
            self.decode_rows_mean
        )?;
        if self.prefill_tokens > 0 {
            write!(out, ", {} prompt tokens", self.prefill_tokens)?;
        }
        if let Some(floor) = &self.floor {
            write!(
                out,
                "; floor {:.3} s = weights {:.3} + KV {:.3} + prompts {:.3}",
                floor.seconds(),
                floor.weights_s,
                floor.kv_s,
                floor.prefill_s
            )?;
        }
        writeln!(out)
    }
}
