//! The test suite of JSON Schema (draft 2020-12): what is taken, what is refused and by which words, and where an instance is judged
//! otherwise than the suite says.
//!
//! `cargo xtask test` fetches it and says in `MINISGL_SCHEMA_SUITE` where its files are. All that differs is in `known.rs`.

#![allow(clippy::unwrap_used, reason = "tests")]

mod instance;
mod known;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use minisgl_grammar::{COMPILE_STACK_BYTES, Compiled, Compiler, Limits, Vocabulary};
use minisgl_proto::Grammar;
use serde_json::Value;

use known::{COUNTS, Counts, DIFFERENCES, REFUSALS, WORDS};

/// Behind the bytes.
const STOP: u32 = 256;
const SIZE: usize = 257;

fn compiler() -> Compiler {
    let bytes = (0..=255).map(|byte| vec![byte]);
    let tokens = bytes.chain([b"\xff<|end|>".to_vec()]).collect();
    let limits = Limits::default();
    Compiler::new(Vocabulary::new(tokens, SIZE, &[STOP], &limits).unwrap(), limits)
}

/// Whether masks allow each byte of `text`, and an end behind it.
fn accepts(compiled: &Compiled, text: &str) -> bool {
    let mut state = compiled.begin();
    let output: Vec<u32> = text.bytes().map(u32::from).collect();
    let mut goes = |at: usize| {
        let mut mask = [u32::MAX; SIZE.div_ceil(32)];
        let next = output.get(at).copied().unwrap_or(STOP);
        state.narrow(&output[..at], &mut mask).is_ok()
            && mask[next as usize / 32] >> (next % 32) & 1 == 1
    };
    (0..=output.len()).all(&mut goes)
}

/// All files of a folder and those in it, by their names from there.
fn files(root: &Path, dir: &Path, into: &mut BTreeMap<String, Value>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(root, &path, into);
        } else if path.extension().is_some_and(|end| end == "json") {
            let name = path.strip_prefix(root).unwrap().display().to_string();
            let text = std::fs::read_to_string(&path).unwrap();
            into.insert(name, serde_json::from_str(&text).unwrap());
        }
    }
}

/// What was seen, and which rows of the tables were used how often.
struct Seen {
    counts: Counts,
    refusals: Vec<usize>,
    differences: Vec<usize>,
    wrong: Vec<String>,
}

impl Seen {
    fn new() -> Seen {
        let (refusals, differences) = (vec![0; REFUSALS.len()], vec![0; DIFFERENCES.len()]);
        Seen { counts: Counts::default(), refusals, differences, wrong: Vec::new() }
    }

    /// Whether a refusal is one of the known.
    fn refused(&mut self, file: &str, group: &str, lenient: bool, error: &str) {
        if let Some((_, words)) = error.split_once("Unimplemented keys: ") {
            let words: Vec<&str> = serde_json::from_str(words).unwrap();
            if !lenient && words.iter().all(|word| WORDS.contains(word)) {
                return;
            }
        }
        let row = REFUSALS.iter().position(|row| {
            row.file == file
                && (row.group.is_empty() || row.group == group)
                && (row.lenient || !lenient)
                && error.contains(row.said)
        });
        match row {
            Some(row) => self.refusals[row] += 1,
            None => self.wrong.push(format!("{file}: {group}: refused: {error}")),
        }
    }

    /// Whether it is known that an instance is judged otherwise.
    fn differs(&mut self, file: &str, group: &str, test: &str, text: &str, valid: bool) {
        let row = DIFFERENCES.iter().position(|row| {
            row.file == file && row.valid == valid && row.group == group && test.contains(row.test)
        });
        match row {
            Some(row) => self.differences[row] += 1,
            None => {
                let taken = if valid { "is refused" } else { "is taken" };
                self.wrong.push(format!("{file}: {group}: {test}: {text} {taken}"));
            }
        }
    }

    fn group(&mut self, compiler: &Compiler, file: &str, group: &Value) {
        let name = group["description"].as_str().unwrap();
        let schema = &group["schema"];
        let mut compile = |lenient| {
            let grammar = Grammar::JsonSchema { schema: schema.to_string(), lenient };
            let compiled = compiler.compile(&grammar);
            if let Err(error) = &compiled {
                self.refused(file, name, lenient, &error.to_string());
            }
            compiled.ok()
        };
        let (strict, lenient) = (compile(false), compile(true));
        self.counts.groups += 1;
        self.counts.strict += usize::from(strict.is_some());
        self.counts.lenient += usize::from(lenient.is_some());
        for test in group["tests"].as_array().unwrap() {
            let (about, valid) = (test["description"].as_str().unwrap(), test["valid"] == true);
            for text in instance::texts(schema, &test["data"]) {
                let right = match (&strict, &lenient) {
                    (Some(strict), _) => {
                        self.counts.texts += 1;
                        accepts(strict, &text) == valid
                    }
                    // Words were left out: more may be taken, not less.
                    (None, Some(lenient)) if valid => {
                        self.counts.lenient_texts += 1;
                        accepts(lenient, &text)
                    }
                    _ => true,
                };
                if !right {
                    self.differs(file, name, about, &text, valid);
                }
            }
        }
    }

    fn check(self) {
        println!("{:?}", self.counts);
        let mut wrong = self.wrong;
        for (row, count) in REFUSALS.iter().zip(self.refusals) {
            if count != row.count {
                wrong.push(format!("{count} are refused so: {row:?}"));
            }
        }
        for (row, count) in DIFFERENCES.iter().zip(self.differences) {
            // In both texts.
            if count != 2 * row.count {
                wrong.push(format!("{count} texts differ so: {row:?}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        assert_eq!(self.counts, COUNTS);
    }
}

#[test]
fn what_the_suite_says_holds_but_for_what_is_known() {
    let Some(dir) = std::env::var_os("MINISGL_SCHEMA_SUITE").map(PathBuf::from) else {
        eprintln!("skipped: MINISGL_SCHEMA_SUITE is not set; `cargo xtask test` fetches the suite");
        return;
    };
    let run = move || {
        let mut all = BTreeMap::new();
        files(&dir, &dir, &mut all);
        let (compiler, mut seen) = (compiler(), Seen::new());
        for (file, groups) in &all {
            groups.as_array().unwrap().iter().for_each(|group| seen.group(&compiler, file, group));
        }
        seen.check();
    };
    // With the stack of a thread that compiles grammars.
    let thread = std::thread::Builder::new().stack_size(COMPILE_STACK_BYTES).spawn(run).unwrap();
    thread.join().unwrap();
}
