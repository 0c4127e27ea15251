//! The grammar that makes a model call tools, in its own dialect: Lark, as llguidance reads it.
//!
//! ```text
//!   start: <[151657]> "\n{\"name\": \"" r4                  calls must come; <tool_call> is a token
//!   start: (T3 <[151657]> "\n{\"name\": \"" r4)* T3         text may come as well: T3 has no marker
//!   r4: r2 "}\n" <[151658]>
//!   r2: "f" r1 r0 | T5 r1 r6                                T5: "g" | "h", whose arguments are the same
//!   r1: "\", \"arguments\": "                               r0: %json {..}
//! ```
//!
//! It begins behind the thought; harmony's, of which a thought is a part, with the output.
//!
//! Owns: the whole text. Must never: compile one, or write a call that the dialect's own parser does not read: whether it reads a
//! tool's name is asked of it.

mod arguments;
mod lark;
mod literal;
mod messages;
mod schema;

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::dialect::{Asked, Dialect, Talk};
use crate::flow::Flow;
use crate::grammar::{Arguments, Tag};
use crate::part::{Outcome, Part};
use crate::tools::{Tool, Tools};
use arguments::{Tags, as_json, parameters, tagged};
pub use lark::LARK_BYTES_MAX;
use lark::{Lark, quoted, string, too_long};
use literal::{Literals, Notation};
use schema::ALL_LOOKS_MAX;

/// A tool whose calls are enforced.
#[derive(Clone, Copy, Debug)]
pub struct Enforced<'a> {
    /// Which.
    pub tool: &'a Tool,
    /// Whether its schema is taken at its word: a keyword that cannot be enforced is an error when the grammar is compiled. Else such
    /// keywords are left out.
    pub strict: bool,
}

/// What a grammar shall make a model do.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// What may be called. Of two tools of one name the first counts.
    pub tools: &'a [Enforced<'a>],
    /// Whether the output is calls and nothing else; else it is text, with calls or without.
    pub required: bool,
    /// Whether there is one call at most.
    pub single: bool,
    /// What an output without calls is where none is required, as the body of a rule; `None`: text, in which calls may stand.
    pub answer: Option<&'a str>,
}

impl Dialect {
    /// The grammar, in Lark. `token` is the id of a token of just this text, where the vocabulary has one: markers that are tokens are
    /// written as such.
    ///
    /// # Errors
    /// A name that the dialect cannot write, a schema too large to be written out, no tool at all; the text says which.
    pub fn lark(
        &'static self,
        wanted: &Wanted<'_>,
        token: &dyn Fn(&str) -> Option<u32>,
    ) -> Result<String, String> {
        let tag = self.enforcement().tag(&|text| token(text).is_some());
        let tag = tag.ok_or_else(|| format!("dialect {} has no calls to enforce", self.name))?;
        if wanted.tools.is_empty() {
            return Err("there is no tool to call".to_owned());
        }
        let mut lark = Lark::new(self.keeps(), token);
        let call = call(self, tag, wanted, &mut lark)?;
        let start = match &self.talk {
            Talk::Harmony => {
                let begin = lark.text(tag.begin.split_once("NAME").map_or("", |(begin, _)| begin));
                let call = lark.rule(format!("{begin} {}", call.name));
                messages::start(&call, wanted, &mut lark)
            }
            Talk::Flow(flow) => match wanted.answer.filter(|_| !wanted.required) {
                None => start(flow, tag, &call, wanted, self.keeps(), &mut lark),
                Some(answer) => {
                    let calls = Wanted { required: true, ..*wanted };
                    let calls = start(flow, tag, &call, &calls, self.keeps(), &mut lark);
                    format!("{calls} | {answer}")
                }
            },
        };
        lark.check()?;
        Ok(lark.finish(&start))
    }
}

/// Rules of a call.
struct Call {
    /// From behind what stands before every name.
    name: String,
    /// With what stands before the first, where nothing but that and the name tells it from text.
    bare: String,
}

/// The rules of all tools' calls, up to the end of their arguments.
fn call(
    dialect: &'static Dialect,
    tag: &Tag,
    wanted: &Wanted<'_>,
    lark: &mut Lark<'_>,
) -> Result<Call, String> {
    let (before, behind) = tag.begin.split_once("NAME").unwrap_or((tag.begin, ""));
    let mut literals = Literals::new(match tag.arguments {
        Arguments::Gemma => Notation::Gemma,
        _ => Notation::Python,
    });
    let mut seen = BTreeSet::new();
    // Names by the rule of their arguments, in the order of tools.
    let mut groups: Vec<(String, Vec<String>)> = Vec::new();
    let mut places = std::collections::HashMap::new();
    let (mut names_bytes, mut looks) = (0, ALL_LOOKS_MAX);
    let types = match tag.arguments {
        Arguments::Tagged { .. } => Tools::of(wanted.tools.iter().map(|tool| tool.tool)),
        _ => Tools::default(),
    };
    for tool in wanted.tools {
        let name = &tool.tool.name;
        if !seen.insert(name) {
            continue;
        }
        // In quotation marks, with a sign before the next. They are written last.
        names_bytes += name.len() + 3;
        if names_bytes > LARK_BYTES_MAX {
            return Err(too_long());
        }
        if name.contains(char::is_control) || !reads(dialect, tag, tool.tool) {
            let dialect = dialect.name;
            return Err(format!(
                "tool {name:?}: calls as {dialect} writes them cannot hold this name; letters, digits, _ and - always can"
            ));
        }
        let arguments = match tag.arguments {
            Arguments::Json => as_json(tool, lark)?,
            Arguments::Tagged { open, middle, close } => {
                let end = [tag.end, tag.last].concat().replace('>', "> ");
                let tags = Tags { open, middle, close, end };
                tagged(tool, &types, &tags, &mut looks, lark)?
            }
            Arguments::Python | Arguments::Gemma => {
                let arguments = literals.arguments(&parameters(tool)?, lark);
                lark.check()?;
                arguments.map_err(|what| format!("tool {name:?} has {what}"))?
            }
        };
        lark.check()?;
        let at = *places.entry(arguments.clone()).or_insert_with(|| {
            groups.push((arguments, Vec::new()));
            groups.len() - 1
        });
        groups[at].1.push(string(name));
    }
    let (mut named, mut bare) = (Vec::new(), Vec::new());
    let head = string(&[tag.first, before].concat());
    let is_bare = matches!(dialect.talk, Talk::Flow(Flow { bare: [_, ..], .. }));
    let then = indexed(behind, lark);
    let then = lark.rule(then);
    for (arguments, names) in groups {
        let names = match &names[..] {
            [name] => name.clone(),
            _ => lark.terminal(names.join(" | ")),
        };
        if is_bare && !wanted.required {
            let head = lark.first(format!("{head} ({names}) {}", string(behind)));
            bare.push(format!("{head} {arguments}"));
        }
        named.push(format!("{names} {then} {arguments}"));
    }
    let mut rule = |all: Vec<String>| lark.rule(all.join("\n | "));
    Ok(Call { name: rule(named), bare: if bare.is_empty() { String::new() } else { rule(bare) } })
}

/// A text in which a call's number may stand. A grammar cannot count, so that it may be any.
fn indexed(text: &str, lark: &Lark<'_>) -> String {
    let pieces: Vec<String> = text.split("INDEX").map(|piece| lark.text(piece)).collect();
    pieces.join(" /[0-9]{1,4}/ ")
}

/// Whether the dialect's parser reads a call of this name, with no arguments, as it would be written.
fn reads(dialect: &'static Dialect, tag: &Tag, tool: &Tool) -> bool {
    let arguments = match tag.arguments {
        Arguments::Json | Arguments::Gemma => "{}",
        Arguments::Tagged { .. } | Arguments::Python => "",
    };
    let (before, behind) = tag.begin.split_once("NAME").unwrap_or((tag.begin, ""));
    let (before, behind) = (before.replace("INDEX", "0"), behind.replace("INDEX", "0"));
    let text = [tag.first, &before, &tool.name, &behind, arguments, tag.end, tag.last].concat();
    let asked = Asked {
        tools: Arc::new(Tools::new(&[Tool { name: tool.name.clone(), ..Tool::default() }])),
        calls: true,
        reasoning: true,
        in_thought: false,
        tail: "<|start|>assistant".to_owned(),
    };
    let (mut parser, mut whole, mut others) = (dialect.parser(&asked), 0, 0);
    let mut take = |part: Part<'_>| match part {
        Part::Begin { name, .. } if name == tool.name => {}
        Part::Arguments { .. } => {}
        Part::End { outcome: Outcome::Whole, .. } => whole += 1,
        _ => others += 1,
    };
    parser.push(&text, &mut take);
    parser.finish(&mut take);
    (whole, others) == (1, 0)
}

/// What an output is, in a dialect of text with markers.
fn start(
    flow: &Flow,
    tag: &Tag,
    call: &Call,
    wanted: &Wanted<'_>,
    keeps: Vec<&'static str>,
    lark: &mut Lark<'_>,
) -> String {
    let (before, _) = tag.begin.split_once("NAME").unwrap_or((tag.begin, ""));
    let end = lark.text(tag.end);
    // All behind the beginning of the first call.
    let rest = |first: &str, alone: bool, lark: &mut Lark<'_>| {
        let (last, between) = (lark.text(tag.last), lark.text(tag.between));
        let begin = indexed(before, lark);
        match wanted.single || alone {
            true => lark.rule(format!("{first} {end} {last}")),
            false => {
                let next = lark.rule(format!("{between} {begin} {} {end}", call.name));
                lark.rule(format!("{first} {end} {next}* {last}"))
            }
        }
    };
    let head = [tag.first, before].concat();
    if wanted.required {
        let calls = rest(&call.name, false, lark);
        // Models write it behind a thought, and it goes with the marker.
        let space = if flow.thought.is_some() { r"/\n{1,2}/? " } else { "" };
        return format!("{space}{} {calls}", indexed(&head, lark));
    }
    let mut banned: Vec<String> = flow.calls.iter().map(|call| opener(call.marker)).collect();
    let marker = keeps.into_iter().filter(|marker| head.starts_with(marker));
    let Some(marker) = marker.max_by_key(|marker| marker.len()) else {
        // Only where an answer begins can a call be told from text.
        let calls = rest(&call.bare, false, lark);
        let free = lark.free(&banned);
        let bare: Vec<String> = flow.bare.iter().map(|(first, _)| bare(*first)).collect();
        let text = lark.terminal(format!("{free} & ~/\\s*({})(?s:.*)/", bare.join("|")));
        return format!("{calls} | {text}");
    };
    if !banned.contains(&quoted(marker)) {
        banned.push(quoted(marker));
    }
    let text = lark.until(&banned, marker);
    let calls = rest(&call.name, tag.first.is_empty(), lark);
    let begin = indexed(&head[marker.len()..], lark);
    let times = if wanted.single { "?" } else { "*" };
    format!("({text} {begin} {calls}){times} {}", lark.free(&banned))
}

/// What opens a call, as a regular expression: a word does only before a list.
fn opener(marker: &str) -> String {
    let word = marker.bytes().all(|byte| byte.is_ascii_alphanumeric());
    format!("{}{}", quoted(marker), if word { r"\s*\[" } else { "" })
}

/// How an answer begins that may be a call without a marker, of all that begin with this character.
fn bare(first: char) -> String {
    match first {
        '[' => r"\[\s*(\{|[A-Za-z_][A-Za-z0-9_.\-]*\()".to_owned(),
        '`' => r"(```(json|tool_call)?\s*)+[\[{]".to_owned(),
        other => quoted(&other.to_string()),
    }
}
