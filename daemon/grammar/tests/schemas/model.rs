//! A model that knows nothing: random logits, a temperature, and the masks of a grammar.
//!
//! Owns: its vocabulary, and when it wants to end. Must never: choose what a mask forbids.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use minisgl_grammar::{Compiled, Limits, Vocabulary};
use serde_json::Value;

/// Bytes, an end token, then longer tokens.
const STOP: u32 = 256;

const TEMPERATURE: f64 = 1.5;

/// Of logits, about; those of models are spread as widely.
const SPREAD: f64 = 4.0;

/// Tokens after which an output is brought to its end, and those that it has at most.
const SOFT: std::ops::Range<usize> = 5..60;
const MOST: usize = 2_500;

pub fn limits() -> Limits {
    Limits::default()
}

static TOKENS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(tokens);

fn tokens() -> Vec<Vec<u8>> {
    let mut longer: BTreeSet<String> = BTreeSet::new();
    let common = [
        "\": ",
        "\":",
        "\",",
        "\", ",
        "\"}",
        "\"]",
        "{\"",
        "[\"",
        "[{",
        "}]",
        "}}",
        "}, ",
        ": ",
        ", ",
        "[]",
        "{}",
        "\\n",
        "\\\"",
        "\\u00",
        "\n  ",
        "true",
        "false",
        "null",
        "tru",
        "nul",
        "e,",
        "the",
        " and",
        " of",
        "ing",
        ".com",
        "@",
        "://",
        "http",
        "20",
        "2026",
        "-0",
        "0.",
        ".5",
        "00",
        "T1",
        "\u{e9}",
        "\u{1f600}",
        "\u{4e2d}",
        "  ",
        "    ",
        "12",
        "1, ",
        "0}",
    ];
    longer.extend(common.map(str::to_owned));
    names(&serde_json::from_str(super::CATALOGUE).unwrap(), &mut longer);
    // A part of a character, too.
    let parts = [b"\xe4\xb8".to_vec(), b"\xf0\x9f".to_vec(), b"\x98\x80\"".to_vec()];
    let bytes = (0..=255).map(|byte| vec![byte]);
    let longer = longer.into_iter().map(String::into_bytes);
    bytes.chain([b"\xff<|end|>".to_vec()]).chain(longer).chain(parts).collect()
}

/// Names of properties, with what stands around them.
fn names(schema: &Value, into: &mut BTreeSet<String>) {
    match schema {
        Value::Object(fields) => {
            if let Some(Value::Object(of)) = fields.get("properties") {
                for name in of.keys() {
                    into.extend([name.clone(), format!("\"{name}\""), format!("\"{name}\": ")]);
                }
            }
            fields.values().for_each(|value| names(value, into));
        }
        Value::Array(items) => items.iter().for_each(|item| names(item, into)),
        _ => {}
    }
}

pub fn vocabulary() -> Vocabulary {
    let size = TOKENS.len();
    Vocabulary::new(TOKENS.clone(), size, &[STOP], &limits()).unwrap()
}

pub enum Outcome {
    Finished(String),
    /// At [`MOST`].
    CutOff(String),
}

pub struct Model {
    state: u64,
    pub written: usize,
}

impl Model {
    pub fn new(seed: u64) -> Model {
        Model { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, written: 0 }
    }

    /// From 0 to 1.
    fn random(&mut self) -> f64 {
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Four of them, as a bell.
    fn logit(&mut self) -> f64 {
        SPREAD * (self.random() + self.random() + self.random() + self.random() - 2.0)
    }

    pub fn write(&mut self, compiled: &Compiled) -> Outcome {
        let (mut state, mut output) = (compiled.begin(), Vec::new());
        let soft = SOFT.start + (self.random() * SOFT.len() as f64) as usize;
        while output.len() < MOST {
            let mut mask = vec![u32::MAX; TOKENS.len().div_ceil(32)];
            state.narrow(&output, &mut mask).unwrap();
            let is_set = |token: u32| mask[token as usize / 32] >> (token % 32) & 1 == 1;
            let may: Vec<u32> = (0..TOKENS.len() as u32).filter(|&token| is_set(token)).collect();
            let token = self.choose(&may, output.len() >= soft);
            if token == STOP {
                self.written = output.len();
                return Outcome::Finished(self.text(&output));
            }
            output.push(token);
        }
        Outcome::CutOff(self.text(&output))
    }

    fn choose(&mut self, may: &[u32], closing: bool) -> u32 {
        if closing && may.contains(&STOP) {
            return STOP;
        }
        // In a text nearly everything may come.
        let ends = if may.contains(&b'~'.into()) { b"\"@.s" } else { b"}]\"," };
        let mut ends = ends.iter().map(|&byte| u32::from(byte));
        if closing
            && self.random() < 0.75
            && let Some(end) = ends.find(|end| may.contains(end))
        {
            return end;
        }
        let weights: Vec<f64> = may.iter().map(|_| (self.logit() / TEMPERATURE).exp()).collect();
        let mut left = self.random() * weights.iter().sum::<f64>();
        for (token, weight) in may.iter().zip(weights) {
            left -= weight;
            if left < 0.0 {
                return *token;
            }
        }
        *may.last().unwrap()
    }

    /// What is cut off may end within a character.
    fn text(&self, output: &[u32]) -> String {
        let bytes: Vec<u8> =
            output.iter().flat_map(|&token| TOKENS[token as usize].clone()).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}
