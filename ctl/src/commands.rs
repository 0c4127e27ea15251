//! The commands of the admin API.
//!
//! Owns: which call belongs to which command. Must never: lay out text; that is [`crate::render`]'s.

mod disk;
mod load;
mod requests;
mod watch;

use minisgl_proto::VERSION;
use minisgl_proto::admin::{
    FlushReply, FlushRequest, HealthReport, ModelStatus, UnloadRequest, VersionInfo,
};
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};

pub use self::disk::{models, pull, rm};
pub use self::load::{load, restart, say_fit};
pub use self::requests::{cancel, requests};
pub use self::watch::{logs, ps, wait};
use crate::args::Format;
use crate::client::{Client, segment};
use crate::error::CtlError;
use crate::exposition;
use crate::output::{print, print_json};
use crate::render;

/// Ctrl-C from now on. What it should not break off in silence asks for this before it begins.
fn interrupts() -> Result<Signal, CtlError> {
    signal(SignalKind::interrupt())
        .map_err(|error| CtlError::Failed(format!("Ctrl-C cannot be heard: {error}")))
}

/// `unload`.
pub async fn unload(
    client: &Client,
    name: &str,
    force: bool,
    format: Format,
) -> Result<(), CtlError> {
    let request = UnloadRequest { name: name.to_string(), force };
    let status: ModelStatus = client.post("/admin/v1/unload", &request).await?;
    match format {
        Format::Json => print_json(&status),
        Format::Table => print(&format!("{name} is unloaded\n")),
    }
}

/// `show`.
pub async fn show(client: &Client, name: &str, format: Format) -> Result<(), CtlError> {
    let path = format!("/admin/v1/models/{}", segment(name));
    let model: ModelStatus = client.get(&path).await?;
    match format {
        Format::Json => print_json(&model),
        Format::Table => print(&render::show(&model)),
    }
}

/// `flush`.
pub async fn flush(client: &Client, name: &str, format: Format) -> Result<(), CtlError> {
    let request = FlushRequest { name: name.to_string() };
    let reply: FlushReply = client.post("/admin/v1/flush", &request).await?;
    match format {
        Format::Json => print_json(&reply),
        Format::Table => {
            print(&format!("{} became free\n", render::plural(reply.pages_freed, "page")))
        }
    }
}

/// `metrics`.
pub async fn metrics(client: &Client, format: Format) -> Result<(), CtlError> {
    let body = client.get_bytes("/metrics").await?;
    let text = String::from_utf8_lossy(&body);
    match format {
        Format::Json => print_json(&exposition::to_json(&text)),
        Format::Table => print(&text),
    }
}

/// `health`.
pub async fn health(client: &Client, format: Format) -> Result<(), CtlError> {
    let report: HealthReport = client.get("/admin/v1/health").await?;
    match format {
        Format::Json => print_json(&report)?,
        Format::Table => print(&render::health(&report))?,
    }
    if report.ready { Ok(()) } else { Err(CtlError::Failed("the daemon is not ready".to_string())) }
}

/// `version`.
pub async fn version(client: &Client, format: Format) -> Result<(), CtlError> {
    let daemon: Result<VersionInfo, CtlError> = client.get("/admin/v1/version").await;
    match format {
        Format::Json => print_json(&json!({ "client": VERSION, "daemon": daemon.as_ref().ok() }))?,
        Format::Table => {
            print(&format!("client  {VERSION}\n"))?;
            if let Ok(daemon) = &daemon {
                print(&format!(
                    "daemon  {} (process {}, up {}, serving {})\n",
                    daemon.version,
                    daemon.pid,
                    render::seconds(daemon.uptime_s),
                    daemon.listen
                ))?;
            }
        }
    }
    daemon.map(|_| ())
}
