//! Text that no model should write: markers, halves of markers and pieces of JSON at random, through every dialect.

use crate::support::{Item, Random, asked, check_calls, is_beginning, parse, pieces};
use minisgl_dialect::{Asked, Dialect, by_name, names};

/// Texts a dialect.
const TEXTS: u64 = 1_000;

const FRAGMENTS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    "\"",
    ":",
    ",",
    " ",
    "\n",
    "\\",
    "\\u00e9",
    "\\ud83d",
    "a",
    "é",
    "💧",
    "1",
    "-",
    "2.5",
    "true",
    "None",
    "'",
    "(",
    ")",
    "=",
    "<",
    ">",
    "|",
    "name",
    "\"name\"",
    "\"arguments\"",
    "\"parameters\"",
    "{\"name\": \"now\", ",
    "\"arguments\": {",
    "\"name\": \"get_weather\"",
    "now",
    "plan",
    "now(",
    "steps=",
    "\"\"\"",
    "call:",
    "call:now{",
    "to=functions.now",
    "functions.now:0",
    "analysis",
    "final",
    "commentary",
    "```json\n",
    "```",
    "function",
    "<parameter=steps>",
    "<function=plan>",
    "<invoke name=\"now\">",
    "<parameter name=\"deep\">",
    "</parameter>",
    "</function>",
    "</invoke>",
    "[{",
    "}]",
    "{}",
    "\r",
    "\t",
    "\u{1}",
    ";",
    "<arg_key>",
    "</arg_key>",
    "<arg_value>",
    "</arg_value>",
    "steps",
    "\"x\": 1",
    "                ",
];

fn text(dialect: &Dialect, random: &mut Random) -> String {
    let markers = dialect.keeps();
    let mut text = String::new();
    for _ in 0..1 + random.below(40) {
        let any = random.below(3);
        if any == 0 && !markers.is_empty() {
            let marker = markers[random.below(markers.len())];
            let mut end =
                if random.below(4) == 0 { random.below(marker.len()) } else { marker.len() };
            while !marker.is_char_boundary(end) {
                end += 1;
            }
            text.push_str(&marker[..end]);
        } else {
            text.push_str(FRAGMENTS[random.below(FRAGMENTS.len())]);
        }
    }
    text
}

/// Whether parts hold a text's characters in order, each once, but for markers, white space, and what calls are made of.
fn holds_all(dialect: &Dialect, text: &str, items: &[Item]) -> bool {
    let markers = dialect.keeps();
    // Places of the text that may have been reached.
    let mut places = vec![false; text.len() + 1];
    places[0] = true;
    let skip = |places: &mut Vec<bool>| {
        for at in 0..text.len() {
            if !places[at] {
                continue;
            }
            if text.as_bytes()[at].is_ascii_whitespace() {
                places[at + 1] = true;
            }
            for marker in &markers {
                if text[at..].starts_with(marker) {
                    places[at + marker.len()] = true;
                }
                // Half of one, where the output ends in a call.
                if marker.starts_with(&text[at..]) {
                    places[text.len()] = true;
                }
            }
        }
    };
    for item in items {
        match item {
            Item::Text(all) | Item::Reasoning(all) => {
                for char in all.chars() {
                    skip(&mut places);
                    let mut next = vec![false; text.len() + 1];
                    for at in 0..text.len() {
                        if places[at] && text[at..].starts_with(char) {
                            next[at + char.len_utf8()] = true;
                        }
                    }
                    places = next;
                }
            }
            // A call is made of any text.
            Item::Call { .. } => {
                let first = places.iter().position(|reached| *reached).unwrap_or(text.len());
                for (at, place) in places.iter_mut().enumerate().skip(first) {
                    *place = *place || text.is_char_boundary(at);
                }
            }
        }
    }
    skip(&mut places);
    places[text.len()]
}

#[test]
fn garbage_is_the_same_in_any_pieces_and_nothing_of_it_is_lost() {
    for name in names() {
        let dialect = by_name(name).unwrap();
        for seed in 1..=TEXTS {
            let mut random = Random(seed * 0x1234_5677);
            let text = text(dialect, &mut random);
            let mut asked = asked(dialect, "<|start|>assistant");
            asked.in_thought = random.below(3) == 0;
            let at_once = parse(dialect, &asked, [text.as_str()]);
            let context = || format!("{name}, seed {seed}: {text:?} gave {:?}", at_once.0);
            check_calls(&at_once.0, &at_once.2, &text);
            assert!(is_beginning(&at_once.1, &at_once.0), "{}", context());
            assert!(name == "gpt_oss" || holds_all(dialect, &text, &at_once.0), "{}", context());
            for _ in 0..4 {
                let pieces = pieces(&text, &mut random);
                let split = parse(dialect, &asked, pieces.iter().copied());
                assert_eq!(split, at_once, "in pieces {pieces:?}: {}", context());
            }
            let chars: Vec<&str> = text.split_inclusive(|_| true).collect();
            assert_eq!(parse(dialect, &asked, chars), at_once, "{}", context());
            // Where nothing is asked for, it is text as it stands.
            let none = Asked { tail: asked.tail.clone(), ..Asked::default() };
            if name != "gpt_oss" && !text.is_empty() && !text_has_silent(dialect, &text) {
                let (items, ..) = parse(dialect, &none, [text.as_str()]);
                assert_eq!(items, [Item::Text(text.clone())], "{}", context());
            }
        }
    }
}

fn text_has_silent(dialect: &'static Dialect, text: &str) -> bool {
    // Markers that are dropped whatever is asked for are among those that are kept.
    let none = Asked::default();
    dialect
        .keeps()
        .into_iter()
        .filter(|marker| text.contains(marker))
        .any(|marker| parse(dialect, &none, [marker]).0.is_empty())
}
