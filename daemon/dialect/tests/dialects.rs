//! Outputs of every dialect, whole, in all pieces, and cut everywhere.

mod cases;
mod support;

use support::{Case, check};

/// Random splits of each output.
const SPLITS: usize = 10_000;

fn all(cases: &[Case]) {
    for case in cases {
        check(case, SPLITS);
    }
}

#[test]
fn hermes() {
    all(cases::hermes::CASES);
}

#[test]
fn qwen3_coder() {
    all(cases::qwen3_coder::CASES);
}

#[test]
fn mistral() {
    all(cases::mistral::CASES);
}

#[test]
fn gpt_oss() {
    all(cases::gpt_oss::CASES);
}

#[test]
fn think() {
    all(cases::think::CASES);
}
