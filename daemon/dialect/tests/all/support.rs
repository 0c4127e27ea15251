//! Running parsers, and what all of them must keep to.

use std::sync::Arc;

use minisgl_dialect::{Asked, Dialect, Left, Outcome, Part, Tool, Tools, by_name};
use serde_json::{Value, json};

/// An output, and the parts it must give: a line each, adjacent pieces joined.
///
/// ```text
///   T "text"      R "reasoning"      C0 name {"a": 1}      C1 name#id {} cut      (or broken)
/// ```
pub struct Case {
    /// Name of the dialect.
    pub dialect: &'static str,
    /// What the prompt ends with.
    pub prompt: &'static str,
    /// What the model writes.
    pub output: &'static str,
    /// The parts.
    pub parts: &'static [&'static str],
}

/// The tools of all cases: their names, and what they take.
pub fn tool_schemas() -> [(&'static str, Value); 4] {
    [
        (
            "get_weather",
            json!({"type": "object", "properties": {
                "city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["C", "F"]}}}),
        ),
        (
            "write_file",
            json!({"properties": {"path": {"type": "string"}, "content": {"type": "string"}}}),
        ),
        (
            "plan",
            json!({"properties": {
                "steps": {"type": "array"}, "deep": {"type": "object"}, "done": {"type": "boolean"},
                "note": {"anyOf": [{"type": "string"}, {"type": "null"}]}, "scale": {"type": "number"},
                "any": {}, "either": {"type": ["string", "array"]}}}),
        ),
        ("now", Value::Null),
    ]
}

/// The tools of all cases.
pub fn tools() -> Arc<Tools> {
    let tools = tool_schemas().map(|(name, parameters)| Tool { name: name.into(), parameters });
    Arc::new(Tools::new(&tools))
}

/// What is asked where calls and thoughts are read.
pub fn asked(dialect: &Dialect, prompt: &str) -> Asked {
    Asked {
        tools: tools(),
        calls: true,
        reasoning: true,
        in_thought: dialect.is_in_thought(prompt, ""),
        tail: prompt.to_string(),
    }
}

/// Parts, joined.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    Text(String),
    Reasoning(String),
    Call { index: usize, name: String, id: Option<String>, json: String, outcome: Option<Outcome> },
}

impl Item {
    pub fn line(&self) -> String {
        match self {
            Item::Text(text) => format!("T {text:?}"),
            Item::Reasoning(text) => format!("R {text:?}"),
            Item::Call { index, name, id, json, outcome } => {
                let id = id.as_ref().map_or(String::new(), |id| format!("#{id}"));
                let end = match outcome {
                    Some(Outcome::Whole) => "",
                    Some(Outcome::Cut) => " cut",
                    Some(Outcome::Broken) => " broken",
                    None => " open",
                };
                format!("C{index} {name}{id} {json}{end}")
            }
        }
    }
}

pub fn fold(items: &mut Vec<Item>, part: Part<'_>) {
    match part {
        Part::Text(text) | Part::Reasoning(text) => {
            assert!(!text.is_empty(), "an empty piece");
            let reasoning = matches!(part, Part::Reasoning(_));
            match items.last_mut() {
                Some(Item::Text(all)) if !reasoning => all.push_str(text),
                Some(Item::Reasoning(all)) if reasoning => all.push_str(text),
                _ if reasoning => items.push(Item::Reasoning(text.to_string())),
                _ => items.push(Item::Text(text.to_string())),
            }
        }
        Part::Begin { index, name, id } => {
            let calls = items.iter().filter(|item| matches!(item, Item::Call { .. })).count();
            assert_eq!(index, calls, "calls are counted in order");
            let (name, id) = (name.to_string(), id.map(str::to_string));
            items.push(Item::Call { index, name, id, json: String::new(), outcome: None });
        }
        Part::Arguments { index: of, json: piece } => {
            let Some(Item::Call { index, json, outcome: None, .. }) = items.last_mut() else {
                panic!("arguments without a call");
            };
            assert!(*index == of && !piece.is_empty());
            json.push_str(piece);
        }
        Part::End { index: of, outcome: how } => {
            let Some(Item::Call { index, outcome, .. }) = items.last_mut() else {
                panic!("an end without a call");
            };
            assert!(*index == of && outcome.is_none());
            *outcome = Some(how);
        }
    }
}

/// What a parser makes of pieces; what it had given before the end; what was left.
pub fn parse<'a>(
    dialect: &'static Dialect,
    asked: &Asked,
    pieces: impl IntoIterator<Item = &'a str>,
) -> (Vec<Item>, Vec<Item>, Left) {
    let mut parser = dialect.parser(asked);
    let mut items = Vec::new();
    for piece in pieces {
        parser.push(piece, &mut |part| fold(&mut items, part));
    }
    let before = items.clone();
    let left = parser.finish(&mut |part| fold(&mut items, part));
    (items, before, left)
}

/// Random numbers (xorshift64*).
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }
}

/// A text in pieces: a few long ones, or many short ones.
pub fn pieces<'a>(text: &'a str, random: &mut Random) -> Vec<&'a str> {
    let longest = [1, 2, 4, 12, 40, text.len().max(1)][random.below(6)];
    let mut all = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let mut at = (1 + random.below(longest)).min(rest.len());
        while !rest.is_char_boundary(at) {
            at += 1;
        }
        let (piece, behind) = rest.split_at(at);
        all.push(piece);
        rest = behind;
    }
    all
}

/// Calls that ended well have JSON objects for arguments.
pub fn check_calls(items: &[Item], left: &Left, output: &str) {
    let (mut whole, mut cut, mut broken) = (0, 0, 0);
    for item in items {
        if let Item::Call { json, outcome, .. } = item {
            match outcome {
                Some(Outcome::Whole) => {
                    whole += 1;
                    let value = serde_json::from_str::<Value>(json);
                    // A lone surrogate is JSON, and no text of Rust's.
                    let lone = value.as_ref().is_err_and(|e| {
                        e.to_string().contains("surrogate") || e.to_string().contains("hex escape")
                    });
                    assert!(lone || value.is_ok_and(|v| v.is_object()), "{json:?} of {output:?}");
                }
                Some(Outcome::Cut) => cut += 1,
                Some(Outcome::Broken) => broken += 1,
                None => panic!("a call without an end: {output:?}"),
            }
        }
    }
    assert_eq!((left.counts.whole, left.counts.cut, left.counts.broken), (whole, cut, broken));
}

/// Whether what was given before the end is the beginning of what is given of a longer text.
pub fn is_beginning(before: &[Item], whole: &[Item]) -> bool {
    before.len() <= whole.len()
        && before.iter().zip(whole).enumerate().all(|(at, (a, b))| {
            let last = at + 1 == before.len();
            match (a, b) {
                _ if a == b => true,
                (Item::Text(a), Item::Text(b)) | (Item::Reasoning(a), Item::Reasoning(b)) => {
                    last && b.starts_with(a.as_str())
                }
                (
                    Item::Call { name: n, id: i, json: a, outcome: None, .. },
                    Item::Call { name: m, id: j, json: b, .. },
                ) => last && n == m && i == j && b.starts_with(a.as_str()),
                _ => false,
            }
        })
}

/// Outputs up to this length come in all splits in three as well.
const THREE_BYTES_MAX: usize = 200;

/// Holds a case to its parts, however the output comes, and every beginning of it to what any output keeps to.
pub fn check(case: &Case, splits: usize) {
    let dialect = by_name(case.dialect).unwrap();
    let asked = asked(dialect, case.prompt);
    let output = case.output;
    let (items, before, left) = parse(dialect, &asked, [output]);
    let lines: Vec<String> = items.iter().map(Item::line).collect();
    assert_eq!(lines, case.parts, "{} of {output:?}", case.dialect);
    check_calls(&items, &left, output);
    let at_once = (items, before, left);
    for (at, _) in output.char_indices() {
        let (head, tail) = output.split_at(at);
        let split = parse(dialect, &asked, [head, tail]);
        assert_eq!(split, at_once, "{} split at {at}: {head:?} + {tail:?}", case.dialect);
        // Cut here: nothing that was given is taken back.
        let (items, before, left) = parse(dialect, &asked, [head]);
        check_calls(&items, &left, head);
        assert!(
            is_beginning(&before, &at_once.0),
            "{before:?} of {head:?} is not in {:?}",
            at_once.0
        );
        let mut parser = dialect.parser(&asked);
        let mut one_by_one = Vec::new();
        for (at, char) in head.char_indices() {
            parser.push(&head[at..at + char.len_utf8()], &mut |part| fold(&mut one_by_one, part));
        }
        assert_eq!(one_by_one, before, "{} cut behind {head:?}", case.dialect);
        assert_eq!(parser.finish(&mut |part| fold(&mut one_by_one, part)), left);
        assert_eq!(one_by_one, items, "{} cut behind {head:?}", case.dialect);
    }
    if output.len() <= THREE_BYTES_MAX {
        let places: Vec<usize> = output.char_indices().map(|(at, _)| at).skip(1).collect();
        for (which, &first) in places.iter().enumerate() {
            for &second in &places[which + 1..] {
                let three = [&output[..first], &output[first..second], &output[second..]];
                let split = parse(dialect, &asked, three);
                assert_eq!(split, at_once, "{} in {three:?}", case.dialect);
            }
        }
    }
    for seed in 1..=splits {
        let pieces = pieces(output, &mut Random(seed as u64 * 0x9e37_79b9));
        let split = parse(dialect, &asked, pieces.iter().copied());
        assert_eq!(split, at_once, "{} in pieces {pieces:?} (seed {seed})", case.dialect);
    }
}
