//! Jinja2, as transformers runs it: sandboxed, with `trim_blocks`, `lstrip_blocks`, loop controls, and Python's values.
//!
//! | file | what it holds |
//! |---|---|
//! | `lexer`, `parser`, `statements`, `ast` | from source to tree |
//! | `value`, `text` | Python's values, and how they print |
//! | `ops`, `attributes`, `methods`, `strings`, `case`, `format`, `brace` | Python's operators and methods |
//! | `filters`, `lists`, `prose`, `json`, `checks`, `names`, `globals`, `time` | Jinja2's filters, tests and functions |
//! | `run`, `eval` | statements and expressions at work |
//!
//! Rendering pays for every step and every byte out of a budget, so that no template runs or grows without an end.
//!
//! Owns: the language. Must never: know of messages or tools, or reach anything outside of its variables but the clock.

mod args;
mod ast;
mod attributes;
mod brace;
mod case;
mod checks;
mod eval;
mod filters;
mod format;
mod globals;
mod json;
mod lexer;
mod lists;
mod methods;
mod names;
mod ops;
mod parser;
mod prose;
mod run;
mod statements;
mod strings;
mod text;
mod time;
mod value;

use std::sync::atomic::AtomicBool;

pub use json::plain as dumps;
pub use value::Value;

/// Why a source is no template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// The line, from 1.
    pub line: u32,
    /// What is wrong there.
    pub message: String,
}

/// Why a template made no text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// It called `raise_exception`.
    Raised(String),
    /// It did what Python does not.
    Failed(String),
    /// Nobody waits any more.
    Abandoned,
}

impl Error {
    fn failed(message: impl Into<String>) -> Error {
        Error::Failed(message.into())
    }

    /// Of computing with an integer that is only shown and compared here.
    fn too_large() -> Error {
        Error::failed("a number is too large to compute with")
    }
}

type Result<T> = std::result::Result<T, Error>;

/// What rendering may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Steps.
    pub fuel: u64,
    /// Bytes of what is rendered.
    pub bytes: usize,
}

/// A compiled template.
#[derive(Debug)]
pub struct Template(ast::Tree);

impl Template {
    /// Compiles a source.
    ///
    /// # Errors
    /// It is not Jinja.
    pub fn new(source: &str) -> std::result::Result<Template, Malformed> {
        parser::parse(source).map(Template)
    }

    /// Renders with these variables.
    ///
    /// # Errors
    /// The template raises one, does what cannot be done, or takes more than it may; with the line.
    pub fn render(
        &self,
        variables: impl IntoIterator<Item = (String, Value)>,
        limits: Limits,
        abandoned: &AtomicBool,
    ) -> std::result::Result<String, (Error, u32)> {
        run::render(&self.0, variables, limits, abandoned)
    }
}

#[cfg(test)]
mod tests;
