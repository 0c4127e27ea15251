//! `load` and `restart`: what they send, and following a load to its end.

use minisgl_proto::admin::{LoadEvent, LoadRequest, ModelStatus, RestartRequest};
use minisgl_proto::disk::FitReport;
use serde_json::json;
use tokio::signal::unix::Signal;

use super::interrupts;
use crate::args::{Format, LoadArgs, OptionArgs};
use crate::client::{Client, Lines, segment};
use crate::error::CtlError;
use crate::output::{note, print, print_json};
use crate::progress::LoadView;
use crate::render;

/// `load`.
pub async fn load(client: &Client, args: &LoadArgs, format: Format) -> Result<(), CtlError> {
    let usage = |error: minisgl_proto::BadGpus| CtlError::Usage(error.to_string());
    let options = args.options.over(minisgl_proto::LoadOptions::default()).map_err(usage)?;
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
        aliases: args.aliases.clone(),
    };
    if args.dry_run {
        return dry_run(client, &request, format).await;
    }
    let mut interrupt = interrupts()?;
    let mut lines = client.post_lines("/admin/v1/load", &request).await?;
    let name = args.name.as_ref().unwrap_or(&args.model);
    if args.detach {
        return match format {
            Format::Json => print_json(&json!({ "loading": request.model })),
            Format::Table => print(&format!(
                "{name} is being loaded; wait for it with: minisglctl wait {name}\n"
            )),
        };
    }
    let status = follow(&mut lines, name, &mut interrupt).await?;
    if args.persist && !status.persisted {
        note("it is loaded, and not remembered for the next start; the daemon's log says why");
    }
    loaded(&status, format)
}

/// `restart`. Options go over those that the model has.
pub async fn restart(
    client: &Client,
    name: &str,
    options: &OptionArgs,
    format: Format,
) -> Result<(), CtlError> {
    let path = format!("/admin/v1/models/{}", segment(name));
    let now: ModelStatus = client.get(&path).await?;
    let usage = |error: minisgl_proto::BadGpus| CtlError::Usage(error.to_string());
    let changed = options.over(now.options.clone()).map_err(usage)?;
    let options = (changed != now.options).then_some(changed);
    let request = RestartRequest { name: name.to_string(), options };
    let mut interrupt = interrupts()?;
    let mut lines = client.post_lines("/admin/v1/restart", &request).await?;
    loaded(&follow(&mut lines, name, &mut interrupt).await?, format)
}

fn loaded(status: &ModelStatus, format: Format) -> Result<(), CtlError> {
    match format {
        Format::Json => print_json(status),
        Format::Table => {
            for line in &status.notes {
                note(&format!("note: {line}"));
            }
            let seconds = status.info.as_ref().map_or_else(|| render::seconds(0.0), render::loaded);
            print(&format!("{} is ready after {seconds}\n", status.name))
        }
    }
}

/// Shows a load until it has ended, well or not. Ctrl-C ends the showing alone.
async fn follow(
    lines: &mut Lines,
    name: &str,
    interrupt: &mut Signal,
) -> Result<ModelStatus, CtlError> {
    let mut view = LoadView::new();
    let ended = tokio::select! {
        ended = show(lines, &mut view) => ended,
        _ = interrupt.recv() => Err(CtlError::Interrupted(format!(
            "the load goes on in the daemon; see how far it is with: minisglctl ps\n\
             stop it with: minisglctl unload {name}"
        ))),
    };
    view.finish();
    ended
}

async fn show(lines: &mut Lines, view: &mut LoadView) -> Result<ModelStatus, CtlError> {
    while let Some(event) = lines.next_json::<LoadEvent>().await? {
        match event {
            LoadEvent::Progress(at) => view.update(&at),
            LoadEvent::Ready(status) => return Ok(*status),
            LoadEvent::Failed(error) => return Err(error.into()),
        }
    }
    Err(CtlError::Failed("the daemon went away during the load; see: minisglctl ps".to_string()))
}

/// `load --dry-run`. Good only when it fits.
async fn dry_run(client: &Client, request: &LoadRequest, format: Format) -> Result<(), CtlError> {
    say_fit(client.post("/admin/v1/fit", request).await?, format)
}

/// Shows what a load would come to. Good only when it fits.
pub fn say_fit(report: FitReport, format: Format) -> Result<(), CtlError> {
    match format {
        Format::Json => print_json(&report)?,
        Format::Table => print(&render::fit(&report))?,
    }
    match report.fits {
        true => Ok(()),
        false => Err(CtlError::Refused(
            report.problem.unwrap_or_else(|| format!("{} does not fit", report.name)),
        )),
    }
}
