//! Outputs that are held to a rule, as a worker holds them to grammars: one that must see each token once and in order.

use minisgl_proto::{Grammar, Guided, Submit};
use minisgl_sched::{Constraint, Crew, Event, Held, Job};

/// Which rule a request is held to, if so.
pub fn rule_of(submit: &Submit) -> Option<u32> {
    match submit.sampling.guided.as_deref() {
        Some(Guided { grammar: Some(Grammar::Regex(text)), .. }) => text.parse().ok(),
        _ => None,
    }
}

pub fn held_to(rule: u32) -> Option<Box<Guided>> {
    Some(Box::new(Guided {
        grammar: Some(Grammar::Regex(rule.to_string())),
        thought: None,
        field: "rule".into(),
    }))
}

/// Whether `token` may come after `output`. Rules of 7 and more end in nothing.
pub fn follows(rule: u32, output: &[u32], token: u32) -> bool {
    if rule >= 7 && output.len() as u32 == rule {
        return false;
    }
    let sum = output.iter().fold(rule, |sum, token| sum.wrapping_mul(31) + token);
    !(sum + token * 7).is_multiple_of(5)
}

struct Rule {
    rule: u32,
    seen: Vec<u32>,
}

impl Constraint for Rule {
    fn narrow(&mut self, output: &[u32], mask: &mut [u32]) -> Result<(), String> {
        assert!(output.starts_with(&self.seen), "{output:?} does not go on from {:?}", self.seen);
        self.seen = output.to_vec();
        let tokens = mask.len() as u32 * 32;
        let mut left = false;
        for token in 0..tokens {
            if follows(self.rule, output, token) {
                left = true;
            } else {
                mask[token as usize / 32] &= !(1 << (token % 32));
            }
        }
        if left { Ok(()) } else { Err(format!("rule {} ended", self.rule)) }
    }
}

/// As a worker hands it over.
pub fn event(submit: Submit) -> Event {
    match rule_of(&submit) {
        Some(rule) => Event::SubmitHeld(submit, Held::new(Rule { rule, seen: Vec::new() })),
        None => Event::Submit(submit),
    }
}

/// Each mask in a thread of its own, the last first.
pub struct Threads;

impl Crew for Threads {
    fn run(&self, jobs: &mut [Job<'_>]) {
        std::thread::scope(|scope| {
            jobs.iter_mut().rev().for_each(|job| drop(scope.spawn(|| job.run())));
        });
    }
}
