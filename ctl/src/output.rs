//! The one way to the terminal: standard output without a panic when its reader leaves, notes, bars.
//!
//! Names, reasons and progress come from the daemon, which has them from models' files and workers. Everything
//! that is written here is made [`printable`] first, so nothing of it can steer a terminal. A test sees to it
//! that no other file of this program writes.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{ErrorKind, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::error::CtlError;

/// Moves to the first cell and clears what is below.
const HOME: &[u8] = b"\x1b[H\x1b[J";

/// Text that cannot steer a terminal: line ends and tabs stay, all other control characters go.
pub fn printable(text: &str) -> Cow<'_, str> {
    let is_fine = |c: char| c == '\n' || c == '\t' || !c.is_control();
    match text.chars().all(is_fine) {
        true => Cow::Borrowed(text),
        false => Cow::Owned(text.chars().filter(|&c| is_fine(c)).collect()),
    }
}

/// The same on one line.
pub fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    printable(&words.join(" ")).into_owned()
}

/// Writes text and flushes it.
pub fn print(text: &str) -> Result<(), CtlError> {
    write(printable(text).as_bytes())
}

/// Writes a part of a model's answer: as it is for programs, printable on a terminal.
pub fn print_answer(text: &str) -> Result<(), CtlError> {
    match std::io::stdout().is_terminal() {
        true => print(text),
        false => write(text.as_bytes()),
    }
}

/// Writes a part of what a model thinks, dimmed, where a person reads; programs want the answer alone.
pub fn print_thought(text: &str) -> Result<(), CtlError> {
    if std::io::stdout().is_terminal() {
        write(format!("\x1b[2m{}\x1b[0m", printable(text)).as_bytes())?;
    }
    Ok(())
}

/// Writes a frame over the one before; where there is no terminal, below it.
pub fn redraw(text: &str) -> Result<(), CtlError> {
    if std::io::stdout().is_terminal() {
        write(HOME)?;
    }
    print(text)
}

fn write(bytes: &[u8]) -> Result<(), CtlError> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => CtlError::BrokenPipe,
        _ => CtlError::Failed(format!("standard output cannot be written: {error}")),
    })
}

/// Writes a value as indented JSON.
pub fn print_json<T: Serialize + ?Sized>(value: &T) -> Result<(), CtlError> {
    write_json(serde_json::to_string_pretty(value))
}

/// Writes a value as one line of JSON.
pub fn print_json_line<T: Serialize + ?Sized>(value: &T) -> Result<(), CtlError> {
    write_json(serde_json::to_string(value))
}

fn write_json(text: serde_json::Result<String>) -> Result<(), CtlError> {
    let text =
        text.map_err(|error| CtlError::Failed(format!("the result does not encode: {error}")))?;
    write(escaped(&text).as_bytes())
}

/// JSON with those control characters escaped that may stand in a string as they are, and a line end.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 1);
    for c in text.chars() {
        match c {
            '\n' => out.push(c),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('\n');
    out
}

/// Writes a line to standard error; nobody reading it is no reason to stop.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{}", printable(text));
}

/// Whether notes go to a person's terminal.
pub fn notes_are_seen() -> bool {
    std::io::stderr().is_terminal()
}

/// A bar on standard error.
pub struct Bar(ProgressBar);

impl Bar {
    /// Draws as `template` says; see indicatif.
    pub fn new(total: u64, template: &str) -> Self {
        // A bar without its style would be seen for a moment.
        Bar(ProgressBar::new(total).with_style(style(template)))
    }

    /// What stands before it.
    pub fn prefix(&self, text: &'static str) {
        self.0.set_prefix(text);
    }

    /// Moves also while nothing is told.
    pub fn tick(&self, every: Duration) {
        self.0.enable_steady_tick(every);
    }

    /// Another length, drawn as `template` says.
    pub fn resize(&self, total: u64, template: &str) {
        if self.0.length() != Some(total) {
            self.0.set_style(style(template));
            self.0.set_length(total);
        }
    }

    /// So far.
    pub fn at(&self, done: u64, message: &str) {
        self.0.set_position(done);
        self.0.set_message(one_line(message));
    }

    /// Stays as it is.
    pub fn finish(&self) {
        self.0.finish();
    }
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template);
    style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_printed_can_steer_a_terminal() {
        assert_eq!(printable("a\x1b[2Jb\n\tc\u{9b}1m\r\x07\x7f"), "a[2Jb\n\tc1m");
        assert_eq!(one_line("a\nfailed  \x1b]0;x\x07 b"), "a failed ]0;x b");
        let json = serde_json::to_string("\x1b[2J\u{9b}1m\x7f").unwrap();
        let escaped = escaped(&json);
        assert!(!escaped.trim_end().chars().any(char::is_control), "{escaped:?}");
        let back: String = serde_json::from_str(&escaped).unwrap();
        assert_eq!(back, "\x1b[2J\u{9b}1m\x7f", "programs lose nothing");
    }

    #[test]
    fn no_other_file_writes() {
        let mut folders =
            vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))];
        let mut files = 0;
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                if path.ends_with("src/output.rs") {
                    continue;
                }
                let text = std::fs::read_to_string(&path).unwrap();
                for way in ["println!", "print!(", "indicatif", "stdout().lock", "stderr().lock"] {
                    assert!(!text.contains(way), "{} writes by {way}", path.display());
                }
                files += 1;
            }
        }
        assert!(files > 15, "{files} files were looked at");
    }
}
