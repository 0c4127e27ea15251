//! How a child of the daemon is started.
//!
//! Owns: program, arguments, variables. Must never: start anything.

use std::ffi::OsString;
use std::path::PathBuf;

/// How a worker is started, or another child of the daemon. A worker gets its end of the socket as
/// standard input.
#[derive(Clone, Debug)]
pub struct WorkerCommand {
    /// Program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Variables it gets on top of the daemon's.
    pub env: Vec<(OsString, OsString)>,
}

impl WorkerCommand {
    /// This very program with the argument `worker`. `/proc/self/exe` stays the same program when
    /// a package upgrade replaces the file, so daemon and worker never differ in version.
    pub fn current_exe() -> Self {
        WorkerCommand {
            program: "/proc/self/exe".into(),
            args: vec!["worker".into()],
            env: Vec::new(),
        }
    }
}
