//! The commands of the admin API.
//!
//! Owns: which call belongs to which command. Must never: lay out text; that is [`crate::render`]'s.

use minisgl_proto::VERSION;
use minisgl_proto::admin::{
    FlushReply, FlushRequest, HealthReport, LoadEvent, LoadRequest, ModelStatus, UnloadRequest,
    VersionInfo,
};
use serde_json::json;

use crate::args::{Format, LoadArgs};
use crate::client::{Client, segment};
use crate::error::CtlError;
use crate::exposition;
use crate::output::{note, print, print_json};
use crate::progress::LoadView;
use crate::render;

/// `load`.
pub async fn load(client: &Client, args: &LoadArgs) -> Result<(), CtlError> {
    let options = args.options().map_err(|error| CtlError::Usage(error.to_string()))?;
    // The daemon has another working directory.
    let model = match std::fs::canonicalize(&args.model) {
        Ok(path) if path.is_dir() => path.to_string_lossy().into_owned(),
        _ => args.model.clone(),
    };
    let request = LoadRequest {
        model,
        name: args.name.clone(),
        options,
        persist: args.persist,
        aliases: Vec::new(),
    };
    let mut lines = client.post_lines("/admin/v1/load", &request).await?;
    let mut view = LoadView::new();
    while let Some(line) = lines.next().await? {
        let event = serde_json::from_str(&line).map_err(|error| {
            CtlError::Failed(format!("the daemon sent a line that makes no sense: {error}"))
        })?;
        match event {
            LoadEvent::Progress(at) => view.update(&at),
            LoadEvent::Ready(status) => {
                view.finish();
                if args.persist && !status.persisted {
                    note(
                        "it is loaded, and not remembered for the next start; the daemon's log says why",
                    );
                }
                return match args.output.format {
                    Format::Json => print_json(&status),
                    Format::Table => print(&format!(
                        "{} is ready after {}\n",
                        status.name,
                        status.info.as_ref().map_or_else(|| render::seconds(0.0), render::loaded)
                    )),
                };
            }
            LoadEvent::Failed(error) => {
                view.finish();
                return Err(error.into());
            }
        }
    }
    view.finish();
    Err(CtlError::Failed("the daemon went away during the load; see: minisglctl ps".to_string()))
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

/// `list`.
pub async fn list(client: &Client, format: Format) -> Result<(), CtlError> {
    let models: Vec<ModelStatus> = client.get("/admin/v1/models").await?;
    match format {
        Format::Json => print_json(&models),
        Format::Table => print(&render::list(&models)),
    }
}

/// `ps`.
pub async fn ps(client: &Client, format: Format) -> Result<(), CtlError> {
    let models: Vec<ModelStatus> = client.get("/admin/v1/models").await?;
    match format {
        Format::Json => print_json(&models),
        Format::Table => print(&render::ps(&models)),
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
