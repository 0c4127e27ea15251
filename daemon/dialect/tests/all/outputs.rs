//! Outputs of every dialect, whole, in all pieces, and cut everywhere.

use crate::cases;
use crate::support::{Case, check};

/// Random splits of each output.
const SPLITS: usize = 10_000;

fn all(cases: &[Case]) {
    for case in cases {
        check(case, SPLITS);
    }
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
