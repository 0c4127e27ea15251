//! Standard output, without a panic when its reader leaves.

use std::io::{ErrorKind, Write};

use serde::Serialize;

use crate::error::CtlError;

/// Writes text and flushes it.
pub fn print(text: &str) -> Result<(), CtlError> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => CtlError::BrokenPipe,
        _ => CtlError::Failed(format!("standard output cannot be written: {error}")),
    })
}

/// Writes a value as indented JSON.
pub fn print_json<T: Serialize + ?Sized>(value: &T) -> Result<(), CtlError> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|error| CtlError::Failed(format!("the result does not encode: {error}")))?;
    text.push('\n');
    print(&text)
}

/// Writes a line to standard error; nobody reading it is no reason to stop.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
