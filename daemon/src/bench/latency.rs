//! Milliseconds a token: what a decode step takes for a batch that stays the same.
//!
//! The time of `output` tokens less the time of one, over `output - 1`: prefill is left out. Of each the
//! least over some runs counts. Prompts are fresh and the prefix cache is emptied before every run.

use anyhow::bail;

use super::args::LatencyArgs;
use super::floor::{Floor, Hardware};
use super::report::{Figure, Phases, RunReport};
use super::session::{Run, Session};
use super::timed::StepRecord;
use super::workload::Workload;

/// Measures each batch.
///
/// # Errors
/// A batch does not fit the model as loaded, or the engine broke.
pub fn run(
    session: &mut Session,
    args: &LatencyArgs,
    hardware: Option<Hardware>,
) -> anyhow::Result<Vec<RunReport>> {
    args.batch.iter().map(|&batch| measure(session, args, batch, hardware)).collect()
}

fn measure(
    session: &mut Session,
    args: &LatencyArgs,
    batch: u32,
    hardware: Option<Hardware>,
) -> anyhow::Result<RunReport> {
    let max_running = session.scheduling().max_running;
    if batch > max_running {
        bail!("--batch {batch} is more than --max-running {max_running}: raise it");
    }
    let long = Workload::uniform(batch, args.prompt, args.output);
    session.check_len(&long)?;
    let page_size = u64::from(session.info().page_size);
    let needed = u64::from(batch) * long.len_max().next_multiple_of(page_size);
    let kv_tokens = session.info().kv_tokens;
    if needed > kv_tokens {
        bail!(
            "--batch {batch} needs {needed} tokens of KV cache, there are {kv_tokens}: raise \
             --kv-tokens or --memory-ratio, or ask for less"
        );
    }
    let short = long.with_outputs_max(1);
    session.run(&long.with_outputs_max(8), 0.0)?;
    let mut best = |workload: &Workload| -> anyhow::Result<Run> {
        let mut best = session.run(workload, 0.0)?;
        for _ in 1..args.runs {
            let run = session.run(workload, 0.0)?;
            if run.seconds < best.seconds {
                best = run;
            }
        }
        Ok(best)
    };
    let (one, all) = (best(&short)?, best(&long)?);
    let steps = f64::from(args.output - 1);
    let seconds = all.seconds - one.seconds;
    let costs = *session.costs();
    // Only steps without a prompt's chunk; a prompt that is split leaves fewer than `output - 1`.
    let decode: Vec<StepRecord> =
        all.steps.iter().copied().filter(|step| step.prefill_rows == 0).collect();
    let floor_of = |records: &[StepRecord]| {
        hardware.map(|hardware| Floor::of(records, &costs, &hardware).seconds())
    };
    let floor_s = floor_of(&decode).map(|floor_s| floor_s / decode.len().max(1) as f64 * steps);
    Ok(RunReport {
        name: format!(
            "latency, batch {batch}, prompt {}, output {}, greedy, best of {}",
            args.prompt, args.output, args.runs
        ),
        figures: vec![
            Figure::time("decode", "ms/token", 1e3 / steps, seconds, floor_s),
            Figure::time("first token", "ms", 1e3, one.seconds, floor_of(&one.steps)),
        ],
        phases: Phases::of(&all, &costs, hardware.as_ref()),
    })
}
