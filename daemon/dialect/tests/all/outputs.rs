//! Outputs of every dialect, whole, in all pieces, and cut everywhere.

use minisgl_dialect::{Left, Phase, by_name, names};

use crate::cases;
use crate::support::{Case, asked, check, parse};

/// Random splits of each output.
const SPLITS: usize = 10_000;

fn all(cases: &[Case]) {
    for case in cases {
        check(case, SPLITS);
    }
}

#[test]
fn every_dialect_has_outputs_that_are_valid_broken_and_cut() {
    let recorded: Vec<&str> = cases::ALL.iter().map(|(name, _)| *name).collect();
    let mut gaps: Vec<String> = names()
        .filter(|name| !recorded.contains(name))
        .map(|name| format!("{name} has no outputs"))
        .collect();
    for (name, cases) in cases::ALL {
        let dialect = by_name(name).unwrap();
        let (mut valid, mut broken, mut cut, mut no_call) = (0, 0, 0, 0);
        for case in *cases {
            assert_eq!(case.dialect, *name, "a case of another");
            let (_, _, Left { phase, counts }) =
                parse(dialect, &asked(dialect, case.prompt), [case.output]);
            let ended = phase == Phase::Text && counts.broken + counts.refused == 0;
            valid += u32::from(ended && counts.whole > 0);
            broken += u32::from(counts.broken > 0);
            cut += u32::from(counts.cut > 0);
            no_call += u32::from(counts.whole + counts.cut + counts.broken == 0);
        }
        let all = cases.len();
        let line = format!(
            "{name}: {all} outputs, {valid} with valid calls alone, {broken} with a broken one, \
             {cut} with one that is cut, {no_call} with none"
        );
        println!("{line}");
        if valid.min(broken).min(cut).min(no_call) == 0 {
            gaps.push(line);
        }
    }
    assert!(gaps.is_empty(), "{gaps:#?}");
}

#[test]
fn command() {
    all(cases::command::CASES);
}

#[test]
fn deepseek_v3() {
    all(cases::deepseek_v3::CASES);
}

#[test]
fn deepseek_v31() {
    all(cases::deepseek_v31::CASES);
}

#[test]
fn gemma3() {
    all(cases::gemma3::CASES);
}

#[test]
fn gemma4() {
    all(cases::gemma4::CASES);
}

#[test]
fn glm() {
    all(cases::glm::CASES);
}

#[test]
fn gpt_oss() {
    all(cases::gpt_oss::CASES);
}

#[test]
fn granite() {
    all(cases::granite::CASES);
}

#[test]
fn hermes() {
    all(cases::hermes::CASES);
}

#[test]
fn kimi_k2() {
    all(cases::kimi_k2::CASES);
}

#[test]
fn llama() {
    all(cases::llama::CASES);
}

#[test]
fn minimax_m2() {
    all(cases::minimax_m2::CASES);
}

#[test]
fn mistral() {
    all(cases::mistral::CASES);
}

#[test]
fn nemotron() {
    all(cases::nemotron::CASES);
}

#[test]
fn phi4() {
    all(cases::phi4::CASES);
}

#[test]
fn plain() {
    all(cases::plain::CASES);
}

#[test]
fn qwen3_coder() {
    all(cases::qwen3_coder::CASES);
}

#[test]
fn smollm3() {
    all(cases::smollm3::CASES);
}

#[test]
fn think() {
    all(cases::think::CASES);
}
