//! The cases as JSON, for parsers that are none of ours (`tests/oracles`).
//!
//! `MINISGL_DIALECT_CASES` names the file that is written; without it nothing is.

use minisgl_dialect::{Outcome, by_name};
use serde_json::{Value, json};

use crate::cases;
use crate::support::{Case, Item, asked, parse, tool_schemas};

/// What all parts say, texts and thoughts each in one.
fn said(case: &Case) -> Value {
    let dialect = by_name(case.dialect).unwrap();
    let asked = asked(dialect, case.prompt);
    let (mut text, mut thought, mut calls) = (String::new(), String::new(), Vec::new());
    for item in parse(dialect, &asked, [case.output]).0 {
        match item {
            Item::Text(piece) => text.push_str(&piece),
            Item::Reasoning(piece) => thought.push_str(&piece),
            Item::Call { name, json, outcome, .. } => {
                let how = match outcome {
                    Some(Outcome::Whole) => "whole",
                    Some(Outcome::Cut) => "cut",
                    _ => "broken",
                };
                calls.push(json!({"name": name, "arguments": json, "outcome": how}));
            }
        }
    }
    json!({
        "dialect": case.dialect,
        "output": case.output,
        "in_thought": asked.in_thought,
        "text": text,
        "thought": thought,
        "calls": calls,
    })
}

#[test]
fn cases_are_written_for_other_parsers() {
    let Some(path) = std::env::var_os("MINISGL_DIALECT_CASES") else {
        eprintln!("skipped: MINISGL_DIALECT_CASES is not set");
        return;
    };
    let said: Vec<Value> =
        cases::ALL.iter().flat_map(|(_, cases)| cases.iter()).map(said).collect();
    let keeps: Value = cases::ALL
        .iter()
        .map(|(name, _)| ((*name).to_string(), json!(by_name(name).unwrap().keeps())))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let tools: Vec<Value> = tool_schemas()
        .into_iter()
        .map(|(name, parameters)| json!({"name": name, "parameters": parameters}))
        .collect();
    let all = json!({"tools": tools, "markers": keeps, "cases": said});
    std::fs::write(path, serde_json::to_vec_pretty(&all).unwrap()).unwrap();
}
