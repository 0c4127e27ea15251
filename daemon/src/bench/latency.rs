//! Milliseconds a token: what a decode step takes for a batch that stays the same.
//!
//! The time from the moment in which every request has its first token to the last token, over `output - 1`: prefill is
//! left out. Both ends are of one run (the difference of two runs' best times would be that of one run's luck and
//! another's), and the run counts in which it is least. Prompts are fresh and the prefix cache is emptied before every
//! run.

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
    let (info, scheduling) = (session.info(), session.scheduling());
    let page_size = info.page_size as usize;
    let each = scheduling.windows.pages_for(long.len_max() as usize, 1, page_size);
    let (needed, pages) = (u64::from(batch) * each as u64, info.kv_pages);
    if needed > u64::from(pages) {
        bail!(
            "--batch {batch} needs {needed} KV pages of {page_size} tokens, there are {pages}: raise \
             --kv-tokens or --memory-ratio, or ask for less"
        );
    }
    let short = long.with_outputs_max(1);
    session.run(&long.with_outputs_max(8), 0.0)?;
    let mut best = |workload: &Workload, time: fn(&Run) -> f64| -> anyhow::Result<Run> {
        let mut best = session.run(workload, 0.0)?;
        for _ in 1..args.runs {
            let run = session.run(workload, 0.0)?;
            if time(&run) < time(&best) {
                best = run;
            }
        }
        Ok(best)
    };
    let (one, all) = (best(&short, |run| run.seconds)?, best(&long, decode_s)?);
    let steps = f64::from(args.output - 1);
    let seconds = decode_s(&all);
    let costs = session.costs().clone();
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

/// Seconds of a run after the last of its requests has got its first token.
fn decode_s(run: &Run) -> f64 {
    run.seconds - run.first_token_s.iter().copied().fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decoding_begins_with_the_last_first_token_of_the_same_run() {
        let run = Run {
            steps: Vec::new(),
            seconds: 5.0,
            first_token_s: vec![0.5, 1.25, 1.0],
            schedule_s: 0.0,
            preemptions: 0,
        };
        assert_eq!(decode_s(&run), 3.75);
    }
}
