//! What can go wrong, and the exit code that says so.

use std::path::PathBuf;

use minisgl_proto::admin::{AdminError, AdminErrorCode};

/// For `--help`.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  done
  2  usage: the command line or an input file is wrong
  3  unreachable: no daemon answers on the socket
  4  not found: no such model, folder or repo
  5  refused: not allowed, or not possible now
  6  failed: it was tried and did not work, or not in time
 10  doctor: this build has no CUDA backend
 11  doctor: no NVIDIA driver, or one that cannot be used
 12  doctor: no GPU that can be used
 13  doctor: a library is missing
130  interrupted by Ctrl-C";

/// Every way a command ends but the good one.
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    /// The command line or an input file is wrong.
    #[error("{0}")]
    Usage(String),
    /// Nobody answers.
    #[error(
        "no daemon answers on {}: {why}\n\
         start it with: minisgld serve\n\
         or name its socket with --socket PATH (or MINISGL_SOCKET)",
        .socket.display()
    )]
    Unreachable {
        /// Where it was looked for.
        socket: PathBuf,
        /// What the system said.
        why: String,
    },
    /// No such model.
    #[error("{0}")]
    NotFound(String),
    /// Not allowed, or not possible now.
    #[error("{0}")]
    Refused(String),
    /// It was tried and did not work.
    #[error("{0}")]
    Failed(String),
    /// By Ctrl-C; says what goes on.
    #[error("interrupted: {0}")]
    Interrupted(String),
    /// Models run on the CPU here.
    #[error("no GPU: {why}")]
    NoGpu {
        /// Exit code for what is missing.
        code: u8,
        /// What is missing, and what to do.
        why: String,
    },
    /// Whoever read our output has seen enough.
    #[error("the output was closed")]
    BrokenPipe,
}

impl CtlError {
    /// See [`EXIT_CODES`].
    pub fn exit_code(&self) -> u8 {
        match self {
            CtlError::BrokenPipe => 0,
            CtlError::Usage(_) => 2,
            CtlError::Unreachable { .. } => 3,
            CtlError::NotFound(_) => 4,
            CtlError::Refused(_) => 5,
            CtlError::Failed(_) => 6,
            CtlError::NoGpu { code, .. } => *code,
            CtlError::Interrupted(_) => 130,
        }
    }
}

impl From<AdminError> for CtlError {
    fn from(error: AdminError) -> Self {
        match error.code {
            AdminErrorCode::Invalid => CtlError::Usage(error.message),
            AdminErrorCode::NotFound => CtlError::NotFound(error.message),
            AdminErrorCode::Conflict | AdminErrorCode::Forbidden => {
                CtlError::Refused(error.message)
            }
            AdminErrorCode::Failed => CtlError::Failed(error.message),
        }
    }
}
