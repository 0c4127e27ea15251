//! What can go wrong with a hub, told apart by type.

use std::io::ErrorKind;
use std::time::Duration;

use reqwest::StatusCode;

/// Whether trying again can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// It would get the same answer.
    Never,
    /// After a pause that grows.
    Backoff,
    /// Not before the server's own word.
    After(Duration),
}

/// Why a file or an answer did not come. `what` is the file, or the question.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HubError {
    /// The server refused.
    #[error("{what}: HTTP status {status}{hint}")]
    Status { what: String, status: StatusCode, retry_after: Option<Duration>, hint: String },
    /// No connection, or a broken one.
    #[error("{what}: {why}")]
    Network { what: String, why: String },
    /// The server took the connection and then said nothing.
    #[error("{what}: {phase} in {} s", .limit.as_secs_f32())]
    Silent { what: String, phase: &'static str, limit: Duration },
    /// Its answer makes no sense, or the repo cannot be used.
    #[error("{0}")]
    Unusable(String),
    /// What came, twice, is not what was announced.
    #[error(
        "{file}: what came has the {hash} {got} instead of {wanted}, twice; it was removed. Is there a proxy or a \
         mirror between?"
    )]
    Content { file: String, hash: &'static str, got: String, wanted: String },
    /// Somebody else writes the same file.
    #[error("{file} is being downloaded by another program (it holds {lock})")]
    Locked { file: String, lock: String },
    /// The cache cannot be written.
    #[error("{what}: {source}")]
    Disk { what: String, source: std::io::Error },
    /// The download ended without a word.
    #[error("the download ended before its time; the log says why")]
    Lost,
}

impl HubError {
    /// Whether another attempt, now or soon, can help.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            HubError::Status { status, .. } => is_passing(*status),
            HubError::Network { .. } | HubError::Silent { .. } => true,
            _ => false,
        }
    }

    /// Whether a later load can help.
    pub(crate) fn retry(&self) -> Retry {
        match self {
            HubError::Status { retry_after: Some(pause), .. } if self.is_passing() => {
                Retry::After(*pause)
            }
            // Somebody frees the disk, or the other program ends.
            HubError::Locked { .. } | HubError::Lost => Retry::Backoff,
            HubError::Disk { source, .. } => match source.kind() {
                ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Retry::Never,
                _ => Retry::Backoff,
            },
            _ if self.is_passing() => Retry::Backoff,
            _ => Retry::Never,
        }
    }

    /// Whether the hub says that it has nothing of that name, or nothing for this user.
    pub(crate) fn is_absent(&self) -> bool {
        let HubError::Status { status, .. } = self else { return false };
        matches!(*status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND)
    }

    /// What the server wants waited.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            HubError::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    pub(crate) fn network(what: &str, error: &reqwest::Error) -> HubError {
        // The library's own words leave out what the system said.
        let mut why = match (error.is_connect(), error.is_timeout()) {
            (true, true) => "no connection in time".to_string(),
            (true, false) => "no connection".to_string(),
            _ => "the connection broke".to_string(),
        };
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            if cause.source().is_none() {
                why.push_str(&format!(" ({cause})"));
            }
            source = cause.source();
        }
        HubError::Network { what: what.to_string(), why }
    }

    pub(crate) fn disk(what: impl Into<String>, source: std::io::Error) -> HubError {
        HubError::Disk { what: what.into(), source }
    }
}

/// Request timeout, too early, too many requests, and whatever the server blames on itself.
fn is_passing(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 425 | 429) || status.is_server_error()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16, retry_after: Option<u64>) -> HubError {
        HubError::Status {
            what: "config.json".to_string(),
            status: StatusCode::from_u16(code).unwrap(),
            retry_after: retry_after.map(Duration::from_secs),
            hint: String::new(),
        }
    }

    #[test]
    fn what_passes_is_retried_and_what_is_final_is_not() {
        for code in [408, 425, 429, 500, 502, 503, 504, 520] {
            assert_eq!(status(code, None).retry(), Retry::Backoff, "{code}");
            assert_eq!(status(code, Some(7)).retry(), Retry::After(Duration::from_secs(7)));
        }
        for code in [400, 401, 403, 404, 410, 416, 451] {
            assert_eq!(status(code, Some(7)).retry(), Retry::Never, "{code}");
        }
        let full = HubError::disk("x", ErrorKind::StorageFull.into());
        assert_eq!((full.retry(), full.is_passing()), (Retry::Backoff, false));
        let denied = HubError::disk("x", ErrorKind::PermissionDenied.into());
        assert_eq!(denied.retry(), Retry::Never);
    }
}
