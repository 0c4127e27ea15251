//! Which tokens a request has seen, for penalties.

/// Counts over the vocabulary. Adding a token is O(1) and allocates nothing; memory is touched only
/// where tokens are.
pub(super) struct History {
    /// For each token id: twice the times it is in the output, plus one if it is in the prompt.
    marks: Vec<u32>,
    /// Tokens with a mark, each once; room for all.
    seen: Vec<u32>,
}

const IN_PROMPT: u32 = 1;
const IN_OUTPUT: u32 = 2;

impl History {
    pub(super) fn new(vocab_size: usize) -> History {
        History { marks: vec![0; vocab_size], seen: Vec::with_capacity(vocab_size) }
    }

    /// Starts over with `prompt_len` tokens of prompt, then output.
    pub(super) fn reset(&mut self, tokens: &[u32], prompt_len: usize) {
        for token in self.seen.drain(..) {
            self.marks[token as usize] = 0;
        }
        let (prompt, output) = tokens.split_at(prompt_len.min(tokens.len()));
        for &token in prompt {
            self.mark(token, |mark| mark | IN_PROMPT);
        }
        for &token in output {
            self.push(token);
        }
    }

    /// Adds a token of the output.
    pub(super) fn push(&mut self, token: u32) {
        self.mark(token, |mark| mark.saturating_add(IN_OUTPUT));
    }

    /// Every token in prompt or output once, with the times it is in the output.
    pub(super) fn seen(&self) -> impl Iterator<Item = (u32, u32)> {
        self.seen.iter().map(|&token| (token, self.marks[token as usize] / IN_OUTPUT))
    }

    fn mark(&mut self, token: u32, change: impl FnOnce(u32) -> u32) {
        let Some(mark) = self.marks.get_mut(token as usize) else { return };
        if *mark == 0 {
            self.seen.push(token);
        }
        *mark = change(*mark);
    }
}
