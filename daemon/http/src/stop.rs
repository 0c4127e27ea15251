//! Stop strings in a stream of text.
//!
//! Owns: holding back text that may be the start of a stop string, and finding the stop string that
//! is complete first. The answer depends on the text alone, never on how it was cut into pieces.
//! Each stop string runs its own Knuth-Morris-Pratt automaton (SIAM J. Comput. 6(2), 1977), so a
//! byte costs O(stop strings) amortised and at most one stop string's length is ever held.

/// Watches text for any of some stop strings.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    automata: Vec<Automaton>,
    held: String,
    include: bool,
}

#[derive(Clone, Debug)]
struct Automaton {
    pattern: String,
    /// `failure[i]`: length of the longest proper prefix of the pattern that ends `pattern[..=i]`.
    failure: Vec<usize>,
    /// How much of the pattern the text so far ends with.
    matched: usize,
}

impl Automaton {
    fn new(pattern: String) -> Automaton {
        let bytes = pattern.as_bytes();
        let mut failure = vec![0; bytes.len()];
        let mut length = 0;
        for at in 1..bytes.len() {
            while length > 0 && bytes[at] != bytes[length] {
                length = failure[length - 1];
            }
            if bytes[at] == bytes[length] {
                length += 1;
            }
            failure[at] = length;
        }
        Automaton { pattern, failure, matched: 0 }
    }

    fn is_complete(&self) -> bool {
        self.matched == self.pattern.len()
    }

    /// Takes a byte. Not to be called again once the pattern is complete.
    fn step(&mut self, byte: u8) {
        let bytes = self.pattern.as_bytes();
        while self.matched > 0 && bytes[self.matched] != byte {
            self.matched = self.failure[self.matched - 1];
        }
        if bytes[self.matched] == byte {
            self.matched += 1;
        }
    }
}

impl StopMatcher {
    /// Watches for these, none of them empty; `include` delivers the stop string too.
    pub fn new(stops: Vec<String>, include: bool) -> StopMatcher {
        debug_assert!(stops.iter().all(|stop| !stop.is_empty()));
        let automata = stops.into_iter().map(Automaton::new).collect();
        StopMatcher { automata, held: String::new(), include }
    }

    /// Takes the next piece of text and appends to `out` what cannot be part of a stop string any more.
    /// Returns the stop string that is now complete; nothing more may follow. When several end at the same
    /// byte, the longest counts.
    pub fn push(&mut self, piece: &str, out: &mut String) -> Option<String> {
        if self.automata.is_empty() {
            out.push_str(piece);
            return None;
        }
        let before = self.held.len();
        self.held.push_str(piece);
        for (at, byte) in piece.bytes().enumerate() {
            for automaton in &mut self.automata {
                automaton.step(byte);
            }
            let complete = self
                .automata
                .iter()
                .filter(|automaton| automaton.is_complete())
                .max_by_key(|automaton| automaton.pattern.len());
            if let Some(automaton) = complete {
                let end = before + at + 1;
                let start = end - automaton.pattern.len();
                out.push_str(&self.held[..if self.include { end } else { start }]);
                let stopped = automaton.pattern.clone();
                self.held.clear();
                return Some(stopped);
            }
        }
        let hold = self.automata.iter().map(|automaton| automaton.matched).max().unwrap_or(0);
        let kept = self.held.len() - hold;
        out.push_str(&self.held[..kept]);
        self.held.drain(..kept);
        None
    }

    /// The text ended: what was held back was no stop string after all.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, slowly: the first end of any stop string; of those the longest.
    fn model(text: &str, stops: &[String]) -> (String, Option<String>) {
        for (end, _) in text.char_indices().skip(1).chain([(text.len(), ' ')]) {
            let ending = stops.iter().filter(|stop| text[..end].ends_with(stop.as_str()));
            if let Some(stop) = ending.max_by_key(|stop| stop.len()) {
                return (text[..end - stop.len()].to_string(), Some(stop.clone()));
            }
        }
        (text.to_string(), None)
    }

    fn push(matcher: &mut StopMatcher, piece: &str) -> (String, Option<String>) {
        let mut out = String::new();
        let stopped = matcher.push(piece, &mut out);
        (out, stopped)
    }

    fn finish(matcher: &mut StopMatcher) -> String {
        let mut out = String::new();
        matcher.finish(&mut out);
        out
    }

    #[test]
    fn text_before_a_stop_string_is_delivered_exactly() {
        let mut matcher = StopMatcher::new(vec!["</s>".into(), "END".into()], false);
        assert_eq!(push(&mut matcher, "a <"), ("a ".into(), None));
        assert_eq!(push(&mut matcher, "/b E"), ("</b ".into(), None));
        assert_eq!(push(&mut matcher, "NDx"), ("".into(), Some("END".into())));
    }

    #[test]
    fn held_text_comes_out_at_the_end() {
        let mut matcher = StopMatcher::new(vec!["aab".into()], false);
        assert_eq!(push(&mut matcher, "aaa").0, "a");
        assert_eq!(finish(&mut matcher), "aa");
    }

    #[test]
    fn the_stop_string_can_be_included() {
        let mut matcher = StopMatcher::new(vec!["é!".into()], true);
        assert_eq!(push(&mut matcher, "caf").0, "caf");
        assert_eq!(push(&mut matcher, "é").0, "");
        assert_eq!(push(&mut matcher, "!?").0, "é!");
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same(
            pieces in prop::collection::vec("[abé]{0,4}", 0..12),
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
        ) {
            let text = pieces.concat();
            let (expected, expected_stop) = model(&text, &stops);
            let mut matcher = StopMatcher::new(stops.clone(), false);
            let mut delivered = String::new();
            let mut stopped = None;
            for piece in &pieces {
                stopped = matcher.push(piece, &mut delivered);
                if stopped.is_some() {
                    break;
                }
            }
            if stopped.is_none() {
                matcher.finish(&mut delivered);
            }
            prop_assert_eq!(delivered, expected);
            prop_assert_eq!(stopped, expected_stop);
        }
    }
}
