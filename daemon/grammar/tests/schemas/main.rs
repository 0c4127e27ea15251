//! Schemas as tools and clients write them: all are taken, and what a random model writes under them is theirs, as another
//! implementation of JSON Schema says.
//!
//! `catalogue.json` has one to a line, written for this test in the shape of public tools' definitions and of what pydantic and zod
//! make. Those with `"lenient": true` have words that are not enforced.

#![allow(clippy::unwrap_used, reason = "tests")]

mod model;

use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use jsonschema::Validator;
use minisgl_grammar::{COMPILE_STACK_BYTES, Compiler};
use minisgl_proto::Grammar;
use serde_json::{Value, json};

use model::{Model, Outcome};

const CATALOGUE: &str = include_str!("catalogue.json");

/// Outputs in all.
const GENERATIONS: usize = 2_000;

/// Words that a lenient schema may have and an output break.
const LEFT_OUT: [&str; 9] = [
    "dependentRequired",
    "else",
    "format",
    "if",
    "not",
    "oneOf",
    "propertyNames",
    "then",
    "uniqueItems",
];

struct Entry {
    name: String,
    lenient: bool,
    schema: Value,
}

impl Entry {
    fn grammar(&self, lenient: bool) -> Grammar {
        Grammar::JsonSchema { schema: self.schema.to_string(), lenient }
    }
}

fn catalogue() -> Vec<Entry> {
    let entries: Vec<Value> = serde_json::from_str(CATALOGUE).unwrap();
    let entry = |entry: Value| Entry {
        name: entry["name"].as_str().unwrap().to_owned(),
        lenient: entry["lenient"] == true,
        schema: entry["schema"].clone(),
    };
    entries.into_iter().map(entry).collect()
}

/// Addresses of more characters than a mailbox may have, which a grammar does not count.
static LONG_ADDRESSES: AtomicUsize = AtomicUsize::new(0);

fn is_address(text: &str) -> bool {
    static ADDRESS: LazyLock<Validator> = LazyLock::new(|| {
        let options = jsonschema::options().should_validate_formats(true);
        options.build(&json!({ "format": "email" })).unwrap()
    });
    let (name, domain) = text.rsplit_once('@').unwrap_or_default();
    let is_long = name.len() > 64 || domain.len() > 254 || domain.split('.').any(|l| l.len() > 63);
    LONG_ADDRESSES.fetch_add(is_long.into(), Ordering::Relaxed);
    is_long || ADDRESS.is_valid(&text.into())
}

fn validator(entry: &Entry) -> Validator {
    let options = jsonschema::options().should_validate_formats(true);
    let validator = options.with_format("email", is_address).build(&entry.schema);
    validator.unwrap_or_else(|error| panic!("{}: {error}", entry.name))
}

/// With the stack of a thread that compiles grammars.
fn on_a_large_stack(test: fn()) {
    let thread = std::thread::Builder::new().stack_size(COMPILE_STACK_BYTES).spawn(test).unwrap();
    thread.join().unwrap();
}

#[test]
fn all_are_taken_and_soon() {
    on_a_large_stack(|| {
        let compiler = Compiler::new(model::vocabulary(), model::limits());
        let (mut times, mut refused) = (Vec::new(), Vec::new());
        for entry in catalogue() {
            let began = Instant::now();
            if let Err(error) = compiler.compile(&entry.grammar(entry.lenient)) {
                refused.push(format!("{}: {error}", entry.name));
            }
            times.push((began.elapsed(), entry.name.clone()));
            if entry.lenient {
                let strict = compiler.compile(&entry.grammar(false));
                let error = strict.err().map(|error| error.to_string()).unwrap_or_default();
                if error.is_empty() {
                    refused.push(format!("{} needs not be lenient", entry.name));
                }
                println!("leniently alone: {}: {error}", entry.name);
            }
        }
        times.sort();
        let (longest, name) = times.last().unwrap();
        let median = times[times.len() / 2].0;
        println!("{} schemas: {median:?} in the middle, {longest:?} at most ({name})", times.len());
        assert!(refused.is_empty(), "{}", refused.join("\n"));
        assert!(times.len() >= 100, "{}", times.len());
        assert!(*longest < Duration::from_secs(5), "{name}: {longest:?}");
    });
}

#[test]
fn what_a_random_model_writes_is_the_schemas() {
    on_a_large_stack(|| {
        let compiler = Compiler::new(model::vocabulary(), model::limits());
        let entries = catalogue();
        let (mut finished, mut tokens, mut invalid) = (0, 0, Vec::new());
        // Known to be so, and no fault of a grammar: see the places where they are counted.
        let (mut large, mut vague, mut left_out) = (0, 0, 0);
        for (at, entry) in entries.iter().enumerate() {
            let Ok(compiled) = compiler.compile(&entry.grammar(entry.lenient)) else { continue };
            let validator = validator(entry);
            // As evenly as it goes.
            let count = (GENERATIONS + at) / entries.len();
            for seed in 0..count as u64 {
                let mut model = Model::new(at as u64 * 1_000 + seed);
                let text = match model.write(&compiled) {
                    Outcome::Finished(text) => text,
                    Outcome::CutOff(text) => {
                        println!("cut off: {} with seed {seed}: {text}", entry.name);
                        continue;
                    }
                };
                finished += 1;
                tokens += model.written;
                let instance: Value = match serde_json::from_str(&text) {
                    Ok(instance) => instance,
                    // JSON has it, an f64 has not.
                    Err(error) if error.to_string().starts_with("number out of range") => {
                        large += 1;
                        continue;
                    }
                    Err(error) => {
                        invalid.push(format!("{} with seed {seed}: {error}: {text}", entry.name));
                        continue;
                    }
                };
                for error in validator.iter_errors(&instance) {
                    let (path, said) = (error.schema_path.to_string(), error.to_string());
                    let is_in = |word: &&str| path.split('/').any(|part| part == *word);
                    // The validator divides as an f64 does.
                    if path.ends_with("/multipleOf")
                        && error.instance.as_f64().is_some_and(|n| n.abs() > 9e15)
                    {
                        vague += 1;
                    } else if entry.lenient && LEFT_OUT.iter().any(is_in) {
                        left_out += 1;
                    } else {
                        invalid.push(format!("{} with seed {seed}: {path}: {said}", entry.name));
                    }
                }
            }
        }
        let long = LONG_ADDRESSES.load(Ordering::Relaxed);
        println!(
            "{finished} of {GENERATIONS} finished, {tokens} tokens, {} invalid; known: {large} numbers beyond f64, {vague} too \
             large to divide, {long} long addresses, {left_out} that break what is left out",
            invalid.len()
        );
        assert!(finished > GENERATIONS * 98 / 100);
        assert!(invalid.is_empty(), "{}", invalid.join("\n"));
    });
}
