//! `minisgld bench`: scheduler and engine in one process, without HTTP, as fast as they go.
//!
//! Owns: the workloads, their clocks, and the floors that figures are held against. Must never: run
//! anything that the worker would not; the loop is the worker's own [`Driver`].
//!
//! ```text
//!   args ──> bench (load) ──> offline | latency | prefill ──> report (text or JSON)
//!                 session: submit, turn the driver, take the times ── timed: one record a step
//!                                          floor: what the hardware could have done
//!        front: a daemon of its own, a worker that computes nothing (echo), clients
//! ```
//!
//! [`Driver`]: minisgl_sched::Driver

mod args;
pub mod echo;
mod floor;
mod front;
mod latency;
mod memory;
mod offline;
mod prefill;
mod report;
mod session;
#[cfg(test)]
mod tests;
mod text;
mod timed;
mod workload;

pub use args::BenchArgs;

use anyhow::Context;

use self::args::{ModelBench, What};
use self::floor::Hardware;
use self::report::Report;
use self::session::Session;

/// Runs one benchmark and prints what it measured on standard output.
///
/// # Errors
/// The model does not load, the workload does not fit into it, or the engine broke.
pub fn run(args: &BenchArgs) -> anyhow::Result<()> {
    match &args.what {
        What::Front(args) => front::run(args),
        What::Model(bench) => run_model(bench),
    }
}

fn run_model(bench: &ModelBench) -> anyhow::Result<()> {
    // On standard error: that a model runs on the CPU for want of a GPU is said there.
    crate::logging::init_worker("info")?;
    let report = measure(bench).inspect_err(|_| crate::leave::soon())?;
    if bench.common().json {
        println!("{}", serde_json::to_string_pretty(&report).context("cannot write JSON")?);
    } else {
        print!("{}", report.text());
    }
    Ok(())
}

fn measure(bench: &ModelBench) -> anyhow::Result<Report> {
    let common = bench.common();
    let mut options = common.load.options()?;
    crate::worker::apply_environment(&mut options);
    if let ModelBench::Offline(offline) = bench {
        // All requests are submitted at once, and none is refused.
        options.max_waiting = options.max_waiting.max(offline.requests_max());
    }
    let mut session = Session::load(&common.model, &options)?;
    if let Some(schema) = bench.schema() {
        session.set_schema(schema, &common.model)?;
    }
    let report = measure_loaded(bench, &mut session);
    if report.is_err() {
        // Giving up what a broken GPU holds may take for ever; it ends with the process.
        std::mem::forget(session);
    }
    report
}

fn measure_loaded(bench: &ModelBench, session: &mut Session) -> anyhow::Result<Report> {
    let hardware = Hardware::choose(&bench.common().floor, &session.info().device)?;
    let hardware = hardware.map(|one| one.times(session.info().gpus.len().max(1)));
    let results = match bench {
        ModelBench::Offline(args) => offline::run(session, args, hardware)?,
        ModelBench::Latency(args) => latency::run(session, args, hardware)?,
        ModelBench::Prefill(args) => vec![prefill::run(session, args, hardware)?],
    };
    Report::new(session, hardware, results)
}
