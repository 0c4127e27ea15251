//! Grammars of tool calls: whatever they let a model write, the dialect's own parser reads, as calls of the tools.

use std::sync::Arc;

use minisgl_dialect::{
    Arguments, Asked, Dialect, Enforced, Outcome, Part, Tool, Tools, Wanted, by_name, names,
};
use minisgl_grammar::{Compiled, Compiler, Limits, State, Vocabulary};
use minisgl_proto::Grammar;
use serde_json::{Value, json};

use crate::common::Random;

/// Outputs for each dialect, vocabulary and wish.
const WALKS: u64 = 20;
/// Tokens after which an output is ended as soon as may be.
const SOFT: usize = 30;

/// How a dialect's markers stand in a vocabulary.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Markers {
    /// As special tokens.
    Special,
    /// As tokens of their text.
    Plain,
    /// As text.
    Text,
}

struct Words {
    tokens: Vec<Vec<u8>>,
    markers: Vec<&'static str>,
    has: Markers,
}

const FIRST: usize = 256;
const STOP: u32 = FIRST as u32;

impl Words {
    /// The vocabulary of a dialect's model, which has none of the markers `without`.
    fn new(dialect: &'static Dialect, has: Markers, without: &[&str]) -> Words {
        let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
        tokens.push(b"\xff<|stop|>".to_vec());
        let longer =
            ["\":", "\", \"", "{\"", "\"}", "name", "tool", "_call", ">\n", "</", "true", "[1,"];
        tokens.extend(longer.iter().map(|text| text.as_bytes().to_vec()));
        let mut markers = dialect.keeps();
        markers.retain(|marker| !without.contains(marker));
        for marker in &markers {
            match has {
                Markers::Special => tokens.push([b"\xff", marker.as_bytes()].concat()),
                Markers::Plain => tokens.push(marker.as_bytes().to_vec()),
                Markers::Text => {}
            }
        }
        Words { tokens, markers, has }
    }

    fn id(&self, text: &str) -> Option<u32> {
        let at = self.markers.iter().position(|marker| *marker == text)?;
        let first = self.tokens.len() - self.markers.len();
        (self.has != Markers::Text).then_some((first + at) as u32)
    }

    fn compiler(&self) -> Compiler {
        let limits = Limits::default();
        let size = self.tokens.len();
        Compiler::new(Vocabulary::new(self.tokens.clone(), size, &[STOP], &limits).unwrap(), limits)
    }

    fn text(&self, output: &[u32]) -> String {
        let bytes = output.iter().flat_map(|&token| match &self.tokens[token as usize][..] {
            [0xff, text @ ..] => text,
            text => text,
        });
        String::from_utf8(bytes.copied().collect()).unwrap()
    }

    fn allowed(&self, state: &mut State, output: &[u32]) -> Vec<u32> {
        let mut mask = vec![u32::MAX; self.tokens.len().div_ceil(32)];
        if let Err(error) = state.narrow(output, &mut mask) {
            panic!("{error} behind {:?}", self.text_of(output));
        }
        let all = 0..self.tokens.len() as u32;
        all.filter(|&token| mask[token as usize / 32] >> (token % 32) & 1 == 1).collect()
    }

    fn text_of(&self, output: &[u32]) -> String {
        let bytes: Vec<u8> = output.iter().flat_map(|&t| self.tokens[t as usize].clone()).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Writes a text by its bytes, or its token, if it may be written.
    fn write(&self, state: &mut State, output: &mut Vec<u32>, text: &str) -> bool {
        let before = output.len();
        if let Some(token) = self.id(text).filter(|id| self.allowed(state, output).contains(id)) {
            output.push(token);
            return true;
        }
        for byte in text.bytes() {
            if !self.allowed(state, output).contains(&byte.into()) {
                output.truncate(before);
                // A state is told of less, or else it takes another token for one that it has seen.
                self.allowed(state, output);
                return false;
            }
            output.push(byte.into());
        }
        true
    }

    /// An output drawn among the tokens that may come, which now and then writes a marker, and ends soon after `soft` tokens.
    fn draw(
        &self,
        compiled: &Compiled,
        random: &mut Random,
        closes: &[&str],
        soft: usize,
    ) -> String {
        let (mut state, mut output) = (compiled.begin(), Vec::new());
        loop {
            let may = self.allowed(&mut state, &output);
            let late = output.len() >= soft;
            if may.contains(&STOP) && (late || random.below(20) == 0 || may.len() == 1) {
                return self.text(&output);
            }
            if output.len() > 2_000 {
                // A walk that goes on and on; another ends.
                return self.draw(compiled, random, closes, soft);
            }
            let rare = if late {
                3
            } else if output.is_empty() {
                2
            } else {
                12
            };
            if random.below(rare) == 0 {
                let text = closes[random.below(closes.len())];
                if self.write(&mut state, &mut output, text) {
                    continue;
                }
            }
            let closing = |token: &&u32| {
                **token > STOP + 11 || **token < 256 && b"\"'}])".contains(&(**token as u8))
            };
            let closing: Vec<u32> = may.iter().filter(closing).copied().collect();
            let likely = if late { 5 } else { 2 };
            let from = match !closing.is_empty() && random.below(6) < likely {
                true => &closing,
                false => &may,
            };
            output.push(from[random.below(from.len())]);
            if output.last() == Some(&STOP) {
                output.pop();
                return self.text(&output);
            }
        }
    }
}

/// `inner` is the type of texts inside of other values. The text of a value between tags must not hold its closing tag, and inside of
/// JSON nothing keeps a model from it.
fn tools(inner: &str) -> Vec<Tool> {
    let tool = |name: &str, parameters: Value| Tool { name: name.into(), parameters };
    vec![
        tool(
            "get_weather",
            json!({"type": "object", "properties": {
                "city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["C", "F"]}},
                "required": ["city"], "additionalProperties": false}),
        ),
        // A name that another begins with.
        tool(
            "get",
            json!({"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]}),
        ),
        tool(
            "plan-it",
            json!({"properties": {
                "steps": {"type": "array", "items": {"type": inner}}, "done": {"type": "boolean"},
                "note": {"anyOf": [{"type": "string"}, {"type": "null"}]}, "scale": {"type": "number"},
                "any": {}, "either": {"type": ["string", "array"]},
                "kind": {"enum": ["a", 1, null, true]}, "nothing": {"type": "null"}},
                "required": ["steps", "scale", "kind"], "additionalProperties": false}),
        ),
        tool(
            "by.ref",
            json!({"$ref": "#/$defs/Args", "$defs": {"Args": {"type": "object",
                "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": false}}}),
        ),
        tool("now", Value::Null),
        tool("later", json!({})),
        tool(
            "search",
            json!({"type": "object", "$defs": {
                "Filter": {"type": "object", "properties": {
                    "field": {"type": inner}, "limit": {"$ref": "#/properties/limit"},
                    "inner": {"anyOf": [{"$ref": "#/$defs/Filter"}, {"type": "null"}]}},
                    "required": ["field"], "additionalProperties": false}},
                "properties": {"filter": {"$ref": "#/$defs/Filter"}, "limit": {"type": "integer"}},
                "required": ["filter"], "additionalProperties": false}),
        ),
        tool(
            "open",
            json!({"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"],
                "additionalProperties": {"type": "integer"}}),
        ),
    ]
}

/// What of JSON Schema the tools have.
fn fits(value: &Value, schema: &Value, root: &Value) -> bool {
    let Value::Object(schema) = schema else { return true };
    if let Some(Value::String(at)) = schema.get("$ref") {
        return fits(value, root.pointer(&at[1..]).unwrap(), root);
    }
    let is = |name: &str| match name {
        "string" => value.is_string(),
        "integer" => {
            value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|f| f.fract() == 0.0)
        }
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("{other}"),
    };
    let typed = match schema.get("type") {
        Some(Value::String(name)) => is(name),
        Some(Value::Array(names)) => names.iter().any(|name| is(name.as_str().unwrap())),
        _ => true,
    };
    let listed = |key: &str| schema.get(key).and_then(Value::as_array);
    let chosen = listed("enum").is_none_or(|values| values.contains(value));
    let branch = listed("anyOf").is_none_or(|all| all.iter().any(|one| fits(value, one, root)));
    let items = value.as_array().is_none_or(|items| {
        schema.get("items").is_none_or(|one| items.iter().all(|item| fits(item, one, root)))
    });
    let fields = value.as_object().is_none_or(|fields| {
        let properties = schema.get("properties");
        let there = |name: &Value| fields.contains_key(name.as_str().unwrap());
        let others = schema.get("additionalProperties");
        listed("required").is_none_or(|names| names.iter().all(there))
            && fields.iter().all(|(name, value)| match properties.and_then(|all| all.get(name)) {
                Some(schema) => fits(value, schema, root),
                None => others.is_none_or(|others| *others != false && fits(value, others, root)),
            })
    });
    typed && chosen && branch && items && fields
}

#[derive(Clone, Copy, Debug)]
struct Wish {
    required: bool,
    single: bool,
    named: bool,
}

const WISHES: [Wish; 5] = [
    Wish { required: true, single: false, named: false },
    Wish { required: true, single: true, named: false },
    Wish { required: true, single: true, named: true },
    Wish { required: false, single: false, named: false },
    Wish { required: false, single: true, named: false },
];

/// Reads an output as the server does, in pieces, and holds it to what was wished; says how many calls there were.
fn check(
    dialect: &'static Dialect,
    output: &str,
    tools: &[Tool],
    wish: Wish,
    random: &mut Random,
) -> usize {
    let asked = Asked {
        tools: Arc::new(Tools::new(tools)),
        calls: true,
        reasoning: true,
        in_thought: false,
        tail: "<|start|>assistant".to_owned(),
    };
    let mut calls: Vec<(String, String, Option<Outcome>)> = Vec::new();
    let mut text = String::new();
    let mut take = |part: Part<'_>| match part {
        Part::Text(piece) => text.push_str(piece),
        Part::Reasoning(_) => {}
        Part::Begin { name, .. } => calls.push((name.to_owned(), String::new(), None)),
        Part::Arguments { json, .. } => calls.last_mut().unwrap().1.push_str(json),
        Part::End { outcome, .. } => calls.last_mut().unwrap().2 = Some(outcome),
    };
    let mut parser = dialect.parser(&asked);
    let mut rest = output;
    while !rest.is_empty() {
        let mut at = (1 + random.below(9)).min(rest.len());
        while !rest.is_char_boundary(at) {
            at += 1;
        }
        parser.push(&rest[..at], &mut take);
        rest = &rest[at..];
    }
    let left = parser.finish(&mut take);
    let of = || format!("{} {wish:?}: {output:?} is {calls:?} and {text:?}", dialect.name);
    assert_eq!((left.counts.cut, left.counts.broken), (0, 0), "{}", of());
    if wish.required {
        assert!(!calls.is_empty() && text.is_empty() && left.counts.refused == 0, "{}", of());
    }
    assert!(!wish.single || calls.len() <= 1, "{}", of());
    for (name, arguments, outcome) in &calls {
        assert_eq!(*outcome, Some(Outcome::Whole), "{}", of());
        let tool =
            tools.iter().find(|tool| tool.name == *name).unwrap_or_else(|| panic!("{}", of()));
        let value: Value = match serde_json::from_str(arguments) {
            Ok(value) => value,
            // A lone surrogate, and a number of many digits, are JSON, and no text or number of Rust's.
            Err(error)
                if ["surrogate", "hex", "range"].iter().any(|w| error.to_string().contains(w)) =>
            {
                continue;
            }
            Err(error) => panic!("{error}: {}", of()),
        };
        assert!(value.is_object() && fits(&value, &tool.parameters, &tool.parameters), "{}", of());
    }
    calls.len()
}

fn walk(name: &str, has: Markers, without: &[&str]) {
    let dialect = by_name(name).unwrap();
    let words = Words::new(dialect, has, without);
    let compiler = words.compiler();
    let tag = dialect.enforcement().tag(&|text| words.id(text).is_some()).unwrap();
    let is_tagged = matches!(tag.arguments, Arguments::Tagged { .. });
    let tools = tools(if is_tagged { "integer" } else { "string" });
    let mut closes = words.markers.clone();
    // What calls begin with.
    let head = format!("{}{}", tag.first, tag.begin.replace("NAME", "now"));
    let marker = words.markers.iter().copied().filter(|marker| head.starts_with(marker));
    let head = marker.max_by_key(|marker| marker.len()).unwrap_or(&head);
    closes.extend(vec![head; closes.len()]);
    if let Arguments::Tagged { close, .. } = tag.arguments {
        closes.extend([close; 4]);
    }
    for wish in WISHES {
        let all: Vec<Enforced<'_>> = tools
            .iter()
            .map(|tool| Enforced { tool, strict: tool.name == "get_weather" })
            .collect();
        let (mut calls, mut silent) = (0, 0);
        for seed in 1..=WALKS {
            let mut random = Random(seed * 0x9e37_79b9);
            let only = random.below(all.len());
            let some = if wish.named { &all[only..=only] } else { &all[..] };
            let wanted =
                Wanted { tools: some, required: wish.required, single: wish.single, answer: None };
            let lark = dialect.lark(&wanted, &|text| words.id(text)).unwrap();
            let compiled = match compiler.compile(&Grammar::Calls(lark.clone())) {
                Ok(compiled) => compiled,
                Err(error) => panic!("{name} {has:?}: {error}\n{lark}"),
            };
            let output = words.draw(&compiled, &mut random, &closes, SOFT);
            let count = check(dialect, &output, &tools, wish, &mut random);
            calls += count;
            silent += usize::from(count == 0);
        }
        assert!(calls > 0, "{name} {has:?} {wish:?}: no call in any output");
        assert!(wish.required || silent > 0, "{name} {has:?} {wish:?}: no output without a call");
    }
}

#[test]
fn special_markers() {
    names().for_each(|name| walk(name, Markers::Special, &[]));
}

#[test]
fn plain_markers() {
    names().for_each(|name| walk(name, Markers::Plain, &[]));
}

#[test]
fn markers_in_text() {
    names().for_each(|name| walk(name, Markers::Text, &[]));
}

/// Models of one family that have other tokens, and write their calls otherwise.
#[test]
fn other_vocabularies() {
    for (name, without, head) in [
        ("mistral", &["[ARGS]", "[CALL_ID]"][..], "[TOOL_CALLS]["),
        ("granite", &["<tool_call>", "</tool_call>"], "<|tool_call|>["),
        ("nemotron", &["<TOOLCALL>", "</TOOLCALL>"], "<tool_call>"),
    ] {
        for has in [Markers::Special, Markers::Plain] {
            let words = Words::new(by_name(name).unwrap(), has, without);
            let tag = by_name(name).unwrap().enforcement().tag(&|text| words.id(text).is_some());
            let tag = tag.unwrap();
            assert!([tag.first, tag.begin].concat().starts_with(head), "{name}: {tag:?}");
            walk(name, has, without);
        }
    }
}

/// Where an answer is to have a form, and tools may be called: one or the other.
#[test]
fn an_answer_of_a_form_or_calls() {
    for name in names() {
        let dialect = by_name(name).unwrap();
        let words = Words::new(dialect, Markers::Special, &[]);
        let (tools, limits) = (tools("integer"), Limits::default());
        let all: Vec<Enforced<'_>> =
            tools.iter().map(|tool| Enforced { tool, strict: false }).collect();
        let form =
            r#"%json {"type": "array", "items": {"enum": [17]}, "minItems": 1, "maxItems": 2}"#;
        let wanted = Wanted { tools: &all, required: false, single: true, answer: Some(form) };
        let lark = dialect.lark(&wanted, &|text| words.id(text)).unwrap();
        let compiler = Compiler::new(
            Vocabulary::new(words.tokens.clone(), words.tokens.len(), &[STOP], &limits).unwrap(),
            limits,
        );
        let compiled =
            compiler.compile(&Grammar::Calls(lark)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let (mut calls, mut forms) = (0, 0);
        for seed in 1..=30 {
            let output = words.draw(&compiled, &mut Random(seed), &words.markers, SOFT);
            let wish = Wish { required: false, single: true, named: false };
            let asked = Asked {
                tools: Arc::new(Tools::new(&tools)),
                calls: true,
                reasoning: true,
                in_thought: false,
                tail: "<|start|>assistant".to_owned(),
            };
            let (mut parser, mut text) = (dialect.parser(&asked), String::new());
            let mut take = |part: Part<'_>| {
                if let Part::Text(piece) = part {
                    text.push_str(piece);
                }
            };
            parser.push(&output, &mut take);
            let counts = parser.finish(&mut take).counts;
            match counts.whole {
                0 => {
                    let json: Value = serde_json::from_str(text.trim())
                        .unwrap_or_else(|why| panic!("{name}: {why}: {output:?}"));
                    assert!(
                        json.as_array().unwrap().iter().all(|item| *item == 17),
                        "{name}: {output:?}"
                    );
                    forms += 1;
                }
                _ => calls += check(dialect, &output, &tools, wish, &mut Random(seed)),
            }
        }
        assert!(calls > 0 && forms > 0, "{name}: {calls} calls, {forms} forms");
    }
}

/// What ends a message of harmony is a stop token.
#[test]
fn a_call_ends_with_a_stop_token() {
    let dialect = by_name("gpt_oss").unwrap();
    let words = Words::new(dialect, Markers::Special, &[]);
    let limits = Limits::default();
    let id = |text: &str| words.id(text).unwrap();
    let stop = [STOP, id("<|call|>"), id("<|return|>")];
    let vocabulary =
        Vocabulary::new(words.tokens.clone(), words.tokens.len(), &stop, &limits).unwrap();
    let compiler = Compiler::new(vocabulary, limits);
    let tools = tools("string");
    let now = tools.iter().find(|tool| tool.name == "now").unwrap();
    for wish in WISHES {
        let all = [Enforced { tool: now, strict: true }];
        let wanted =
            Wanted { tools: &all, required: wish.required, single: wish.single, answer: None };
        let lark = dialect.lark(&wanted, &|text| words.id(text)).unwrap();
        let compiled = compiler.compile(&Grammar::Calls(lark)).unwrap();
        let mut state = compiled.begin();
        let mut output: Vec<u32> = Vec::new();
        let parts = [
            "<|channel|>",
            "analysis",
            "<|message|>",
            "I",
            "<|end|>",
            "<|start|>",
            "assistant",
            "<|channel|>",
            "commentary to=functions.now ",
            "<|constrain|>",
            "json",
            "<|message|>",
            "{}",
        ];
        for part in parts {
            assert!(words.write(&mut state, &mut output, part), "{wish:?}: {part:?}");
        }
        let may = words.allowed(&mut state, &output);
        assert!(stop.iter().all(|token| may.contains(token)), "{wish:?}: {may:?}");
        output.push(id("<|call|>"));
        state.is_over(&output).expect("it stays in its grammar");
        assert_eq!(check(dialect, &words.text(&output), &tools, wish, &mut Random(1)), 1);
    }
}

#[test]
fn names_that_a_dialect_cannot_write_are_told() {
    let refused = |dialect: &str, name: &str| {
        let tool = Tool { name: name.into(), parameters: Value::Null };
        let all = [Enforced { tool: &tool, strict: false }];
        let wanted = Wanted { tools: &all, required: true, single: true, answer: None };
        let error = by_name(dialect).unwrap().lark(&wanted, &|_| None).err();
        error.inspect(|error| assert!(error.contains(&format!("{name:?}")), "{error}")).is_some()
    };
    for dialect in names() {
        for name in ["f", "get_weather", "mcp__server-1__tool", "a.b", "N"] {
            assert!(!refused(dialect, name), "{dialect}: {name:?}");
        }
        for name in ["", "a\nb", &"x".repeat(600)] {
            assert!(refused(dialect, name), "{dialect}: {name:?}");
        }
    }
    for (dialect, name) in [
        ("hermes", "a\"b"),
        ("hermes", "a\\b"),
        ("qwen3_coder", "a b"),
        ("qwen3_coder", "a>b"),
        ("glm", "a<b"),
        ("gpt_oss", "a b"),
        ("gpt_oss", "a<|message|>"),
        ("gemma3", "1a"),
        ("gemma4", "a b"),
        ("mistral", "a b"),
    ] {
        assert!(refused(dialect, name), "{dialect}: {name:?}");
    }
    assert!(!refused("hermes", "städte/suche") && !refused("kimi_k2", "a:1"));
    let wanted = Wanted { tools: &[], required: true, single: true, answer: None };
    assert!(by_name("hermes").unwrap().lark(&wanted, &|_| None).is_err());
}
