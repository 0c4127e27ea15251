//! What other parsers make of our recorded outputs, beside what ours make of them.
//!
//! ```text
//!   dialect-oracles CASES [RESULTS ...] [--differences]
//! ```
//!
//! CASES is written by the test `cases_are_written_for_other_parsers`, RESULTS by the Python programs beside this one. It runs
//! `tool-parser` and `reasoning-parser` itself, and prints how many cases each parser reads as ours does, whole and streamed a
//! character at a time; with `--differences` every case that it reads otherwise.
//!
//! Owns: the comparison. Must never: be a dependency of anything, or decide which of two is right.

mod smg;

use std::collections::BTreeMap;

use serde_json::Value;

/// A call as JSON values, where its arguments are JSON; as text where they are not.
fn calls(said: &Value) -> Vec<(String, Value)> {
    let calls = said["calls"].as_array().cloned().unwrap_or_default();
    calls
        .iter()
        .map(|call| {
            let text = call["arguments"].as_str().unwrap_or_default();
            let arguments = serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
            (call["name"].as_str().unwrap_or_default().to_string(), arguments)
        })
        .collect()
}

fn trimmed<'a>(said: &'a Value, field: &str) -> &'a str {
    said[field].as_str().unwrap_or_default().trim()
}

/// What is the same in two readings: calls, text, thought. White space at the ends counts for nothing.
fn same(ours: &Value, theirs: &Value) -> [bool; 3] {
    if theirs.get("error").is_some() {
        return [false; 3];
    }
    [
        calls(ours) == calls(theirs),
        trimmed(ours, "text") == trimmed(theirs, "text"),
        trimmed(ours, "thought") == trimmed(theirs, "thought"),
    ]
}

/// How a case came: at once, a token at a time, a character at a time.
const MODES: [&str; 3] = ["whole", "tokens", "chars"];

/// Whether there are calls, all of them whole, and of tools that the request has.
fn is_well_formed(case: &Value, recorded: &Value) -> bool {
    let calls = case["calls"].as_array().cloned().unwrap_or_default();
    let is_known = |name: &Value| {
        recorded["tools"].as_array().into_iter().flatten().any(|tool| tool["name"] == *name)
    };
    !calls.is_empty()
        && calls.iter().all(|call| call["outcome"] == "whole" && is_known(&call["name"]))
}

/// Why calls differ, as far as a program can tell: by what ours found, then by which of their ways agree.
fn kind(case: &Value, result: &Value, recorded: &Value) -> Option<&'static str> {
    let ours = calls(case);
    let [whole, tokens] = ["whole", "tokens"].map(|mode| calls(&result[mode]));
    if whole == ours && tokens == ours {
        return None;
    }
    let has = |outcome: &str| {
        case["calls"].as_array().into_iter().flatten().any(|call| call["outcome"] == outcome)
    };
    let known: Vec<&str> = recorded["tools"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|tool| tool["name"].as_str())
        .collect();
    Some(if has("cut") {
        "a call that is cut"
    } else if has("broken") {
        "a call that is broken"
    } else if ours.is_empty() {
        "a call where ours has text"
    } else if ours.iter().any(|(name, _)| !known.contains(&name.as_str())) {
        "a tool that the request does not have"
    } else if case["output"].as_str().is_some_and(|output| output.contains("{x} [y]")) {
        "markers, quotes and brackets inside a value"
    } else if whole == ours {
        "right whole, otherwise in a stream"
    } else if tokens == ours {
        "right in a stream, otherwise whole"
    } else if whole.is_empty() && tokens.is_empty() {
        "no call: a form that it does not know, or will not repair"
    } else {
        "other calls"
    })
}

#[derive(Default)]
struct Row {
    cases: usize,
    /// By mode, those that are the same as ours: calls, text, thought.
    same: [[usize; 3]; 3],
    well_formed: usize,
    /// By mode, those well-formed ones whose calls are the same.
    well: [usize; 3],
    /// Cases whose calls are others in a stream than as a whole, by token and by character.
    unstable: [usize; 2],
    errors: usize,
}

fn main() {
    let mut paths = Vec::new();
    let mut lists = false;
    for argument in std::env::args().skip(1) {
        if argument == "--differences" {
            lists = true;
        } else {
            paths.push(argument);
        }
    }
    let read = |path: &String| -> Value {
        let text = std::fs::read(path).unwrap_or_else(|e| panic!("{path}: {e}"));
        serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{path}: {e}"))
    };
    let (cases, others) =
        paths.split_first().expect("usage: dialect-oracles CASES [RESULTS ...] [--differences]");
    let recorded = read(cases);
    let mut all = vec![smg::run(&recorded)];
    all.extend(others.iter().map(read));
    for of in &all {
        table(&recorded, of, lists);
    }
}

fn table(recorded: &Value, of: &Value, lists: bool) {
    let name = of["of"].as_str().unwrap_or_default();
    let mut rows: BTreeMap<(String, String), Row> = BTreeMap::new();
    let mut kinds: BTreeMap<&str, BTreeMap<String, usize>> = BTreeMap::new();
    for result in of["results"].as_array().into_iter().flatten() {
        let case = &recorded["cases"][result["case"].as_u64().unwrap_or(0) as usize];
        let dialect = case["dialect"].as_str().unwrap_or_default();
        let parser = result["parser"].as_str().unwrap_or_default();
        let row = rows.entry((dialect.to_string(), parser.to_string())).or_default();
        let well_formed = is_well_formed(case, recorded);
        row.cases += 1;
        row.well_formed += usize::from(well_formed);
        if let Some(kind) = kind(case, result, recorded) {
            *kinds.entry(kind).or_default().entry(dialect.to_string()).or_default() += 1;
        }
        let mut differs = false;
        for (mode, at) in MODES.iter().zip(0..) {
            let same = same(case, &result[*mode]);
            differs |= same.contains(&false);
            for (sum, is) in row.same[at].iter_mut().zip(same) {
                *sum += usize::from(is);
            }
            row.well[at] += usize::from(well_formed && same[0]);
            row.errors += usize::from(result[*mode].get("error").is_some());
            if at > 0 {
                row.unstable[at - 1] +=
                    usize::from(calls(&result["whole"]) != calls(&result[*mode]));
            }
        }
        if lists && differs {
            let kind = if well_formed { "well-formed" } else { "other" };
            println!("--- {name}, {dialect} ({parser}), {kind}");
            println!("  output {}", case["output"]);
            println!("  ours   {}", say(case));
            for mode in MODES {
                let theirs = &result[mode];
                if same(case, theirs).contains(&false) {
                    println!("  {mode:6} {}", say(theirs));
                }
            }
        }
    }
    println!(
        "\n{name}: outputs that are read as ours reads them, of those with well-formed calls of the request's tools, and of all"
    );
    println!(
        "(whole / a token at a time / a character at a time), and those with other calls in a stream than as a whole.\n"
    );
    println!(
        "| Dialect | Parser | Well-formed | Calls | All | Calls | Text | Thought | Stream unlike whole | Errors |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let mut sum = Row::default();
    for ((dialect, parser), row) in &rows {
        println!("| {dialect} | {parser} | {} |", row.line());
        sum.add(row);
    }
    println!("| all | | {} |", sum.line());
    println!("\n| Calls differ (whole or a token at a time) | Cases | By dialect |\n|---|---|---|");
    for (kind, dialects) in &kinds {
        let list: Vec<String> = dialects.iter().map(|(name, n)| format!("{name} {n}")).collect();
        println!("| {kind} | {} | {} |", dialects.values().sum::<usize>(), list.join(", "));
    }
}

/// Text, thought and calls in a line.
fn say(said: &Value) -> String {
    if let Some(error) = said.get("error") {
        return format!("error: {error}");
    }
    let calls: Vec<String> =
        calls(said).iter().map(|(name, json)| format!("{name} {json}")).collect();
    format!("text {} thought {} calls {calls:?}", said["text"], said["thought"])
}

impl Row {
    fn add(&mut self, other: &Row) {
        self.cases += other.cases;
        self.well_formed += other.well_formed;
        self.errors += other.errors;
        for at in 0..3 {
            self.well[at] += other.well[at];
            for field in 0..3 {
                self.same[at][field] += other.same[at][field];
            }
        }
        for at in 0..2 {
            self.unstable[at] += other.unstable[at];
        }
    }

    fn line(&self) -> String {
        let of = |field: usize| {
            format!("{} / {} / {}", self.same[0][field], self.same[1][field], self.same[2][field])
        };
        let [well, by_token, by_char] = self.well;
        format!(
            "{} | {well} / {by_token} / {by_char} | {} | {} | {} | {} | {} / {} | {}",
            self.well_formed,
            self.cases,
            of(0),
            of(1),
            of(2),
            self.unstable[0],
            self.unstable[1],
            self.errors
        )
    }
}
