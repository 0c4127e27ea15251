//! Throughput: everything is asked at once, and the clock stops at the last token.

use anyhow::bail;

use super::args::OfflineArgs;
use super::floor::Hardware;
use super::report::{Figure, Phases, RunReport};
use super::session::{Draw, Session};
use super::workload::Workload;

/// Tokens that each request generates in the run before the one that counts.
const WARM_UP_OUTPUT: u32 = 8;

/// Runs the workload twice, first briefly; and again where there is a schema.
///
/// # Errors
/// The workload does not fit the model, or the engine broke.
pub fn run(
    session: &mut Session,
    args: &OfflineArgs,
    hardware: Option<Hardware>,
) -> anyhow::Result<Vec<RunReport>> {
    if !(args.temperature >= 0.0 && args.temperature.is_finite()) {
        bail!("--temperature is {}: it must be at least 0", args.temperature);
    }
    let mut workload = Workload::open(args.workload.as_deref())?;
    if let Some(count) = args.requests {
        workload = workload.take(count)?;
    }
    session.check_len(&workload)?;
    let forms = if args.form.schema.is_some() { &[false, true][..] } else { &[false] };
    let measure = |&held: &bool| one(session, args, &workload, held, hardware);
    forms.iter().map(measure).collect()
}

fn one(
    session: &mut Session,
    args: &OfflineArgs,
    workload: &Workload,
    held: bool,
    hardware: Option<Hardware>,
) -> anyhow::Result<RunReport> {
    let draw = Draw { temperature: args.temperature, held };
    session.run(&workload.with_outputs_max(WARM_UP_OUTPUT), draw)?;
    let run = session.run(workload, draw)?;
    let (prompts, outputs) = (workload.prompt_tokens(), workload.output_tokens());
    let phases = Phases::of(&run, session.costs(), hardware.as_ref());
    Ok(RunReport {
        name: format!(
            "offline, {} requests, {prompts} prompt and {outputs} output tokens, temperature {}{}",
            workload.prompt_lens.len(),
            args.temperature,
            if held { ", all held to --schema" } else { "" }
        ),
        figures: vec![
            Figure::rate("output", "tok/s", outputs, run.seconds, phases.floor_s()),
            Figure::rate("prompt", "tok/s", prompts, run.seconds, None),
            Figure::time("time", "s", 1.0, run.seconds, phases.floor_s()),
        ],
        phases,
    })
}
