//! Running other programs, with errors a person can act on.

use std::io::ErrorKind;
use std::process::{Command, Output};

use anyhow::{Context, Result, bail};

/// Runs `command` with its output shown.
///
/// # Errors
/// The program is not installed (`remedy` says how to get it), or it failed.
pub fn run(command: &mut Command, remedy: &str) -> Result<()> {
    let shown = show(command);
    let status = command.status().map_err(|e| explain(e, &shown, remedy))?;
    if !status.success() {
        bail!("`{shown}` failed ({status}); {remedy}");
    }
    Ok(())
}

/// Runs `command` and returns its standard output; its standard error is in the error.
///
/// # Errors
/// As [`run`].
pub fn capture(command: &mut Command, remedy: &str) -> Result<String> {
    let shown = show(command);
    let Output { status, stdout, stderr } =
        command.output().map_err(|e| explain(e, &shown, remedy))?;
    if !status.success() {
        let why = String::from_utf8_lossy(&stderr);
        bail!("`{shown}` failed ({status}); {remedy}\n{}", why.trim_end());
    }
    String::from_utf8(stdout).with_context(|| format!("`{shown}` wrote something that is not text"))
}

/// Whether `program --version` runs.
pub fn has(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|out| out.status.success())
}

fn show(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    words.join(" ")
}

fn explain(error: std::io::Error, shown: &str, remedy: &str) -> anyhow::Error {
    match error.kind() {
        ErrorKind::NotFound => anyhow::anyhow!("`{shown}`: no such program; {remedy}"),
        _ => anyhow::Error::new(error).context(format!("`{shown}` did not start")),
    }
}
