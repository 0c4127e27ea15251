//! A vocabulary of bytes and some longer tokens, and outputs drawn under masks.

use std::sync::Arc;

use minisgl_grammar::{Compiled, Compiler, GrammarError, Limits, State, Vocabulary};
use minisgl_proto::Grammar;

pub const THINK: u32 = 256;
pub const END_OF_THOUGHT: u32 = 257;
pub const STOP: [u32; 2] = [258, 259];
/// More logits than tokens.
pub const SIZE: usize = 300;

pub fn tokens() -> Vec<Vec<u8>> {
    let special = ["<think>", "</think>", "<|end|>", "<|stop|>"];
    let longer = ["\"name\"", "\": ", "tru", "e}", "[1,", " \"", "null", "\u{e9}", "ab", "\"}"];
    let bytes = (0..=255).map(|byte| vec![byte]);
    let special = special.iter().map(|text| [b"\xff", text.as_bytes()].concat());
    bytes.chain(special).chain(longer.iter().map(|text| text.as_bytes().to_vec())).collect()
}

pub fn compiler(limits: Limits) -> Compiler {
    Compiler::new(Vocabulary::new(tokens(), SIZE, &STOP, &limits).unwrap(), limits)
}

pub fn compile(grammar: &Grammar) -> Result<Arc<Compiled>, GrammarError> {
    compiler(Limits::default()).compile(grammar)
}

pub fn schema(schema: &str) -> Grammar {
    Grammar::JsonSchema { schema: schema.to_owned(), lenient: false }
}

/// The tokens that may come after `output`.
pub fn allowed(state: &mut State, output: &[u32]) -> Vec<u32> {
    let mut mask = vec![u32::MAX; SIZE.div_ceil(32)];
    state.narrow(output, &mut mask).unwrap();
    (0..SIZE as u32).filter(|&token| mask[token as usize / 32] >> (token % 32) & 1 == 1).collect()
}

pub fn text(output: &[u32]) -> String {
    let tokens = tokens();
    let bytes = output.iter().filter(|&&token| !(256..260).contains(&token));
    let bytes: Vec<u8> = bytes.flat_map(|&token| tokens[token as usize].clone()).collect();
    String::from_utf8(bytes).unwrap()
}

/// The ids of a text's bytes.
pub fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

/// Whether each token of `output` is allowed, and a stop token behind it.
pub fn takes(grammar: &Grammar, output: &[u32]) -> bool {
    let mut state = compile(grammar).unwrap().begin();
    let goes = |at: usize| {
        let may = |token| allowed(&mut state, &output[..at]).contains(token);
        (at < output.len()).then(|| output[at]).iter().all(may)
    };
    (0..output.len()).all(goes) && {
        let may = allowed(&mut state, output);
        STOP.iter().all(|stop| may.contains(stop))
    }
}

pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, end: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % end
    }
}

/// An output drawn among the tokens that may come, without the stop token that ends it; it is ended soon after `soft` tokens.
pub fn draw(compiled: &Compiled, random: &mut Random, soft: usize) -> Vec<u32> {
    let (mut state, mut output) = (compiled.begin(), Vec::new());
    loop {
        let mut may = allowed(&mut state, &output);
        let ends = may.iter().any(|token| STOP.contains(token));
        if ends && output.len() >= soft {
            return output;
        }
        // Out of texts and numbers again.
        let closing: Vec<u32> =
            may.iter().copied().filter(|&t| b"\"}],".contains(&(t as u8)) && t < 256).collect();
        if output.len() >= soft && !closing.is_empty() && random.below(4) > 0 {
            may = closing;
        }
        let token = may[random.below(may.len())];
        if STOP.contains(&token) {
            return output;
        }
        assert!(output.len() < 20 * soft + 2_000, "{:?} does not end", text(&output));
        output.push(token);
    }
}
