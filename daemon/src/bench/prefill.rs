//! Prompt tokens a second: long prompts, one after the other, one token generated for each.

use super::args::PrefillArgs;
use super::floor::Hardware;
use super::report::{Figure, Phases, RunReport};
use super::session::{Draw, Run, Session};
use super::workload::Workload;

/// One prompt to warm up, then `count` that count.
///
/// # Errors
/// The prompt does not fit the model as loaded, or the engine broke.
pub fn run(
    session: &mut Session,
    args: &PrefillArgs,
    hardware: Option<Hardware>,
) -> anyhow::Result<RunReport> {
    let prompt = Workload::uniform(1, args.tokens, 1);
    session.check_len(&prompt)?;
    session.run(&prompt, Draw::GREEDY)?;
    let mut total: Option<Run> = None;
    let mut best_s = f64::INFINITY;
    for _ in 0..args.count {
        let run = session.run(&prompt, Draw::GREEDY)?;
        best_s = best_s.min(run.seconds);
        total = Some(match total {
            None => run,
            Some(total) => total.then(run),
        });
    }
    let Some(total) = total else { anyhow::bail!("--count is 0: it must be at least 1") };
    let tokens = u64::from(args.tokens) * u64::from(args.count);
    let phases = Phases::of(&total, session.costs(), hardware.as_ref());
    let floor_s = phases.floor_s();
    let each_s = floor_s.map(|floor_s| floor_s / f64::from(args.count));
    Ok(RunReport {
        name: format!("prefill, {} prompts of {} tokens, one by one", args.count, args.tokens),
        figures: vec![
            Figure::rate("prompt", "tok/s", tokens, total.seconds, floor_s),
            Figure::rate("prompt, best", "tok/s", u64::from(args.tokens), best_s, each_s),
            Figure::time("first token", "ms", 1e3 / f64::from(args.count), total.seconds, floor_s),
        ],
        phases,
    })
}
