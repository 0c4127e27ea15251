//! `POST /admin/v1/reload`: the daemon reads its configuration again.

use serde::{Deserialize, Serialize};

/// What a reload came to. One that is refused is an [`AdminError`](crate::admin::AdminError), and nothing has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadReply {
    /// Settings that differ from before and are in force.
    pub changed: Vec<String>,
    /// Settings that differ and wait for a restart.
    pub restart: Vec<String>,
}
