//! A report for people.
//!
//! Owns: its words and units. Must never: compute a number that the JSON lacks.

use std::fmt::Write;

use super::report::{Figure, Phase, Phases, Report};

impl Report {
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
            "{}, {:.2} B parameters, {}, on {}: {:.2} GiB of weights, loaded in {:.2} s (weights {:.2} s)",
            self.architecture,
            self.parameters as f64 / 1e9,
            self.dtype,
            self.device,
            self.weight_bytes as f64 / GIB,
            self.load_s,
            self.read_s
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
        let us = |seconds: f64| seconds / steps * 1e6;
        write!(
            out,
            "  host, us a step: schedule {:.1}, launch {:.1}, wait {:.1}",
            us(self.schedule_s),
            us(self.launch_s),
            us(self.wait_s)
        )?;
        if let Some(enqueue_s) = self.enqueue_s {
            write!(out, "; rank, enqueue {:.1}", us(enqueue_s))?;
        }
        let busy = (self.schedule_s + self.launch_s) / self.all.seconds.max(f64::MIN_POSITIVE);
        write!(out, "; host busy {:.2} % of the time", busy * 100.0)?;
        if let Some(idle) = self.decode_idle {
            write!(out, ", device idle {:.2} % of decode", idle * 100.0)?;
        }
        writeln!(out)
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
