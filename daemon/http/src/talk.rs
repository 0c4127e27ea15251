//! What a model says, told apart by its dialect: thoughts, calls and text.
//!
//! ```text
//!   text of tokens -> Reader (a parser of the dialect) -> Said: pieces, and how much of the text they settle
//! ```
//!
//! Owns: ids of calls, and where one call is all that was asked for. Must never: know a surface, or a dialect by name.

use std::ops::Range;
use std::sync::Arc;

use minisgl_dialect::{
    self as dialect, Asked, Counts, Dialect, Ids, Outcome, Parser, Phase, Tools,
};
use minisgl_proto::Thought;

use crate::part::Part;
use crate::random::choice_seed;
use crate::tokenizer::TextModel;

/// How the outputs of a request are read. Made once a request.
pub struct Talk {
    dialect: &'static Dialect,
    asked: Asked,
    /// Whether the first call ends the output.
    single: bool,
    /// Whether thoughts are told at all.
    shown: bool,
    /// Whether the model may open one.
    thinks: bool,
    seed: u64,
}

/// What a request wants of it, before its prompt is there.
#[derive(Clone, Debug)]
pub struct Wants {
    /// Its tools.
    pub tools: Arc<Tools>,
    /// Whether they may be called.
    pub calls: bool,
    /// Whether one call is all that is wanted.
    pub single: bool,
    /// Whether thoughts are told apart from text.
    pub separate: bool,
    /// Whether thoughts are told at all.
    pub shown: bool,
    /// Whether the model may think, as far as the request says.
    pub thinks: bool,
}

impl Talk {
    /// Of outputs that go on a prompt with this `end`; `seed` makes ids of calls that no other request has.
    pub fn new(dialect: &'static Dialect, wants: Wants, end: String, seed: u64) -> Talk {
        let Wants { tools, calls, single, separate, shown, thinks } = wants;
        let in_thought = dialect.is_in_thought(&end, "");
        // A thought that is not to be told must be known for one.
        let asked = Asked { tools, calls, reasoning: separate || !shown, in_thought, tail: end };
        Talk { dialect, asked, single, shown, thinks, seed }
    }

    /// What reads the output of one choice; `None`: all of it is text.
    pub fn reader(&self, choice: u32) -> Option<Box<Reader>> {
        if self.dialect.is_plain(&self.asked) {
            return None;
        }
        Some(Box::new(Reader {
            parser: Some(self.dialect.parser(&self.asked)),
            ids: self.dialect.ids,
            single: self.single,
            shown: self.shown,
            seed: choice_seed(self.seed, choice),
            bytes: 0,
            phase: match self.asked.in_thought && self.asked.reasoning {
                true => Phase::Reasoning,
                false => Phase::Text,
            },
            counts: Counts::default(),
            over: false,
            own: Vec::new(),
        }))
    }

    /// How it is written.
    pub fn dialect(&self) -> &'static Dialect {
        self.dialect
    }

    /// Whether a thought is a message among others, which the grammar of calls has in it.
    pub fn thinks_in_messages(&self) -> bool {
        self.dialect.thinks_in_messages()
    }

    /// What closes a thought, as the model writes it.
    pub fn close(&self) -> Option<&'static str> {
        self.dialect.thought()?.close.first().copied()
    }

    /// What may stand before what is to be of some form: a thought, and of some dialects other messages.
    pub fn thought(&self, text: &TextModel) -> Option<Thought> {
        let answer = self.dialect.answer(self.asked.in_thought)?;
        // Nobody opens one where the request says that the model does not think; what the template has opened goes on.
        if !self.thinks && !answer.open.is_empty() && !self.thinks_in_messages() {
            return None;
        }
        let open: Vec<u32> = answer.open.iter().filter_map(|mark| text.marker(mark)).collect();
        // What opens one and is no token would have to be found among letters: then there is none.
        (answer.open.is_empty() || !open.is_empty()).then(|| Thought {
            open,
            close: answer.behind.iter().map(|&mark| mark.to_owned()).collect(),
            budget: None,
        })
    }
}

/// One output on its way from text to parts.
pub struct Reader {
    /// Gone at the end.
    parser: Option<Parser>,
    ids: Ids,
    single: bool,
    shown: bool,
    seed: u64,
    /// Bytes of text so far.
    bytes: usize,
    phase: Phase,
    counts: Counts,
    over: bool,
    /// The models' own ids so far.
    own: Vec<String>,
}

/// Pieces of an output; room for them is a thread's, so that no stream holds any.
#[derive(Default)]
pub struct Said {
    text: String,
    pieces: Vec<Piece>,
}

/// A part whose texts are elsewhere.
#[derive(Clone)]
enum Piece {
    Text(Range<usize>),
    Reasoning(Range<usize>),
    Begin { index: usize, id: Range<usize>, name: Range<usize> },
    Arguments { index: usize, json: Range<usize> },
    End { index: usize, whole: bool },
}

impl Said {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// The part in this place.
    pub fn part(&self, at: usize) -> Part<'_> {
        let text = |range: &Range<usize>| &self.text[range.clone()];
        match &self.pieces[at] {
            Piece::Text(range) => Part::Text(text(range)),
            Piece::Reasoning(range) => Part::Reasoning(text(range)),
            Piece::Begin { index, id, name } => {
                Part::ToolCall { index: *index, start: Some((text(id), text(name))), arguments: "" }
            }
            Piece::Arguments { index, json } => {
                Part::ToolCall { index: *index, start: None, arguments: text(json) }
            }
            Piece::End { index, whole } => Part::CallEnd { index: *index, whole: *whole },
        }
    }

    fn put(&mut self, text: &str) -> Range<usize> {
        let from = self.text.len();
        self.text.push_str(text);
        from..self.text.len()
    }
}

impl Reader {
    /// Takes the next piece of text, the `last` one perhaps, and says in `said` what is certain by now. Whether the output is
    /// over: the one call that was asked for has ended.
    pub fn read(&mut self, text: &str, last: bool, said: &mut Said) -> bool {
        said.text.clear();
        said.pieces.clear();
        let Some(mut parser) = self.parser.take() else { return self.over };
        self.bytes += text.len();
        let (ids, seed, single, shown) = (self.ids, self.seed, self.single, self.shown);
        let (over, own) = (&mut self.over, &mut self.own);
        let mut sink = |part: dialect::Part<'_>| {
            // What comes behind the one call is nobody's.
            if *over {
                return;
            }
            let piece = match part {
                dialect::Part::Text(text) => Piece::Text(said.put(text)),
                dialect::Part::Reasoning(_) if !shown => return,
                dialect::Part::Reasoning(text) => Piece::Reasoning(said.put(text)),
                dialect::Part::Begin { index, name, id } => {
                    let id = call_id(ids, id, name, seed, index, own);
                    let id = said.put(&id);
                    Piece::Begin { index, id, name: said.put(name) }
                }
                dialect::Part::Arguments { index, json } => {
                    Piece::Arguments { index, json: said.put(json) }
                }
                dialect::Part::End { index, outcome } => {
                    let whole = outcome == Outcome::Whole;
                    *over = single && whole;
                    Piece::End { index, whole }
                }
            };
            said.pieces.push(piece);
        };
        parser.push(text, &mut sink);
        self.phase = parser.phase();
        if last {
            self.counts = parser.finish(&mut sink).counts;
        } else {
            self.parser = Some(parser);
        }
        self.over
    }

    /// Ends it early: what comes is nobody's.
    pub fn close(&mut self) {
        if let Some(parser) = self.parser.take() {
            self.counts = parser.finish(&mut |_| ()).counts;
        }
    }

    /// Whether tokens are thoughts now.
    pub fn thinks(&self) -> bool {
        self.phase == Phase::Reasoning
    }

    /// Bytes of the text so far that were told as parts, or swallowed as markers.
    pub fn settled(&self) -> usize {
        self.bytes - self.parser.as_ref().map_or(0, Parser::held)
    }

    /// What became of its calls; known at the end.
    pub fn counts(&self) -> Counts {
        self.counts
    }
}

const LETTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The id of a call: the model's own where its template wants that back.
fn call_id(
    ids: Ids,
    own: Option<&str>,
    name: &str,
    seed: u64,
    index: usize,
    used: &mut Vec<String>,
) -> String {
    let mut seed = choice_seed(seed, index as u32 + 1);
    let mut letters = |count: usize| -> String {
        let mut next = || {
            seed = choice_seed(seed, 1);
            char::from(LETTERS[(seed % 62) as usize])
        };
        (0..count).map(|_| next()).collect()
    };
    let nine = |id: &&str| id.len() == 9 && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
    match ids {
        Ids::Any => format!("call_{}", letters(24)),
        Ids::NineLetters => own.filter(nine).map_or_else(|| letters(9), str::to_owned),
        Ids::Own => {
            let numbered = (index..).map(|index| format!("functions.{name}:{index}"));
            let mut all = own.map(str::to_owned).into_iter().chain(numbered);
            // A model may count wrongly; a result finds its call by the id.
            let id = all.find(|id| !used.contains(id)).unwrap_or_default();
            used.push(id.clone());
            id
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use minisgl_dialect::{Tool, by_name};

    fn talk(single: bool, shown: bool) -> Talk {
        let tools = [Tool { name: "f".into(), parameters: serde_json::Value::Null }];
        let wants = Wants {
            tools: Arc::new(Tools::new(&tools)),
            calls: true,
            single,
            separate: true,
            shown,
            thinks: true,
        };
        Talk::new(by_name("hermes").unwrap(), wants, "<think>\n".into(), 7)
    }

    const OUTPUT: &str = "hm</think>\n\nSo: <tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>\n<tool_call>\n\
                          {\"name\": \"f\", \"arguments\": {}}\n</tool_call> after";

    /// All parts of an output that comes a character at a time.
    fn read(talk: &Talk, choice: u32) -> (Vec<String>, Counts) {
        let (mut reader, mut said) = (talk.reader(choice).unwrap(), Said::default());
        let mut all = Vec::new();
        let mut settled = 0;
        for char in OUTPUT.chars().map(Some).chain([None]) {
            let text = char.map(String::from).unwrap_or_default();
            let over = reader.read(&text, char.is_none(), &mut said);
            all.extend((0..said.len()).map(|at| format!("{:?}", said.part(at))));
            assert!(reader.settled() >= settled);
            settled = reader.settled();
            if over {
                reader.close();
                break;
            }
        }
        (all, reader.counts())
    }

    #[test]
    fn calls_have_ids_that_no_other_has() {
        let mut ids = std::collections::HashSet::new();
        for (choice, seed) in [(0, 7), (1, 7), (0, 8)] {
            let (mut reader, mut said) =
                (Talk { seed, ..talk(false, true) }.reader(choice).unwrap(), Said::default());
            reader.read(OUTPUT, true, &mut said);
            for at in 0..said.len() {
                if let Part::ToolCall { start: Some((id, _)), .. } = said.part(at) {
                    assert!(id.starts_with("call_") && id.len() == 29, "{id}");
                    assert!(ids.insert(id.to_owned()), "{id} comes twice");
                }
            }
        }
        assert_eq!(ids.len(), 6);
    }

    #[test]
    fn one_call_is_the_end_where_one_was_asked_for() {
        let (all, counts) = read(&talk(true, true), 0);
        assert!(all.last().unwrap().contains("CallEnd { index: 0, whole: true }"), "{all:?}");
        assert_eq!(counts.whole, 1);
        let (all, counts) = read(&talk(false, true), 0);
        assert!(all.last().unwrap().contains("Text"), "{all:?}");
        assert_eq!(counts.whole, 2);
    }

    #[test]
    fn thoughts_are_not_told_where_they_are_not_wanted() {
        let thinks = |all: &[String]| all.iter().any(|part| part.contains("Reasoning"));
        assert!(thinks(&read(&talk(false, true), 0).0));
        let (all, _) = read(&talk(false, false), 0);
        assert!(!thinks(&all) && !all.concat().contains("hm"), "{all:?}");
    }

    #[test]
    fn ids_are_what_templates_take() {
        let mut used = Vec::new();
        let mut id = |ids, own| call_id(ids, own, "f", 1, 2, &mut used);
        assert_eq!(id(Ids::NineLetters, None).len(), 9);
        assert_eq!(id(Ids::NineLetters, Some("abcdefghi")), "abcdefghi");
        assert_ne!(id(Ids::NineLetters, Some("too short")), "too short");
        assert_eq!(id(Ids::Own, Some("functions.f:7")), "functions.f:7");
        assert_eq!(id(Ids::Own, None), "functions.f:2");
        assert_eq!(id(Ids::Own, Some("functions.f:7")), "functions.f:3", "none comes twice");
    }
}
