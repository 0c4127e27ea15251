//! Texts in grammars.
//!
//! Owns: how one is written so that it stands for itself. Must never: know a grammar.

use std::fmt::Write;

/// A text as a regular expression.
pub(crate) fn literal(text: &str) -> String {
    let mut literal = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii_alphanumeric() {
            literal.push(c);
        } else {
            let _ = write!(literal, "\\x{{{:x}}}", u32::from(c));
        }
    }
    literal
}

/// A text in quotation marks, as Lark has it.
pub(crate) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}
