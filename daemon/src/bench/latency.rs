//! Milliseconds a token: what a decode step takes for a batch that stays the same.
//!
//! The time from the moment in which every request has its first token to the last token, over `output - 1`: prefill is
//! left out. With a schema each batch is run by turns with outputs that are held to it and such that are not, all drawn at
//! [`HELD_TEMPERATURE`], since the likeliest tokens of random weights would be spaces for ever. Both ends are of one run (the difference of two runs' best times would be that of one run's luck and
//! another's), and the run counts in which it is least. Prompts are fresh and the prefix cache is emptied before every
//! run.

use anyhow::bail;

use super::args::LatencyArgs;
use super::floor::{Floor, Hardware};
use super::report::{Figure, Phases, RunReport};
use super::session::{Draw, Run, Session};
use super::timed::StepRecord;
use super::workload::Workload;

/// Temperature where outputs are held to a schema, and of those beside them that are not.
const HELD_TEMPERATURE: f32 = 1.0;

/// Measures each batch.
///
/// # Errors
/// A batch does not fit the model as loaded, or the engine broke.
pub fn run(
    session: &mut Session,
    args: &LatencyArgs,
    hardware: Option<Hardware>,
) -> anyhow::Result<Vec<RunReport>> {
    let mut reports = Vec::new();
    for &batch in &args.batch {
        reports.extend(measure(session, args, batch, hardware)?);
    }
    Ok(reports)
}

/// The runs that count so far.
#[derive(Default)]
struct Best {
    /// With one token for each request, by its time.
    one: Option<Run>,
    /// With all, by the time behind the first tokens.
    all: Option<Run>,
}

impl Best {
    /// Runs both once more.
    fn turn(
        &mut self,
        session: &mut Session,
        short: &Workload,
        long: &Workload,
        draw: Draw,
    ) -> anyhow::Result<()> {
        let better = |best: &mut Option<Run>, run: Run, time: fn(&Run) -> f64| {
            if best.as_ref().is_none_or(|best| time(&run) < time(best)) {
                *best = Some(run);
            }
        };
        better(&mut self.one, session.run(short, draw)?, |run| run.seconds);
        better(&mut self.all, session.run(long, draw)?, decode_s);
        Ok(())
    }
}

fn measure(
    session: &mut Session,
    args: &LatencyArgs,
    batch: u32,
    hardware: Option<Hardware>,
) -> anyhow::Result<Vec<RunReport>> {
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
    let draws = match args.form.schema {
        None => vec![Draw::GREEDY],
        Some(_) => [false, true].map(|held| Draw { temperature: HELD_TEMPERATURE, held }).to_vec(),
    };
    let mut bests: Vec<Best> = draws.iter().map(|_| Best::default()).collect();
    for &draw in &draws {
        session.run(&long.with_outputs_max(8), draw)?;
    }
    for _ in 0..args.runs {
        for (best, &draw) in bests.iter_mut().zip(&draws) {
            best.turn(session, &short, &long, draw)?;
        }
    }
    let runs =
        bests.into_iter().zip(draws).filter_map(|(best, draw)| Some((best.one?, best.all?, draw)));
    Ok(runs
        .map(|(one, all, draw)| report(session, args, batch, hardware, &one, &all, draw))
        .collect())
}

fn report(
    session: &Session,
    args: &LatencyArgs,
    batch: u32,
    hardware: Option<Hardware>,
    one: &Run,
    all: &Run,
    draw: Draw,
) -> RunReport {
    let steps = f64::from(args.output - 1);
    let seconds = decode_s(all);
    let costs = session.costs();
    // Only steps without a prompt's chunk; a prompt that is split leaves fewer than `output - 1`.
    let decode: Vec<StepRecord> =
        all.steps.iter().copied().filter(|step| step.prefill_rows == 0).collect();
    let floor_of = |records: &[StepRecord]| {
        hardware.map(|hardware| Floor::of(records, costs, &hardware).seconds())
    };
    let floor_s = floor_of(&decode).map(|floor_s| floor_s / decode.len().max(1) as f64 * steps);
    let drawn = match (draw.temperature > 0.0, draw.held) {
        (false, _) => "greedy".to_owned(),
        (true, false) => format!("temperature {}", draw.temperature),
        (true, true) => format!("temperature {}, all held to --schema", draw.temperature),
    };
    RunReport {
        name: format!(
            "latency, batch {batch}, prompt {}, output {}, {drawn}, best of {}",
            args.prompt, args.output, args.runs
        ),
        figures: vec![
            Figure::time("decode", "ms/token", 1e3 / steps, seconds, floor_s),
            Figure::time("first token", "ms", 1e3, one.seconds, floor_of(&one.steps)),
        ],
        phases: Phases::of(all, costs, hardware.as_ref()),
    }
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
