//! `pull`, `models` and `rm`: what is on disk.

use minisgl_proto::disk::{DiskReport, PullEvent, PullRequest, Pulled, RmReply, RmRequest};

use super::interrupts;
use crate::args::Format;
use crate::client::{Client, Lines};
use crate::error::CtlError;
use crate::output::{note, print, print_json};
use crate::progress::LoadView;
use crate::render;

/// `pull`. Ctrl-C ends the download, as nobody else may be there to do it.
pub async fn pull(client: &Client, model: &str, format: Format) -> Result<(), CtlError> {
    let request = PullRequest { model: model.to_string() };
    let mut interrupt = interrupts()?;
    let mut lines = client.post_lines("/admin/v1/pull", &request).await?;
    let mut view = LoadView::new();
    let ended = tokio::select! {
        ended = show(&mut lines, &mut view) => ended,
        _ = interrupt.recv() => Err(CtlError::Interrupted(format!(
            "the download is stopped, unless a load waits for it too; go on with: minisglctl pull {model}"
        ))),
    };
    view.finish();
    let done = ended?;
    match format {
        Format::Json => print_json(&done),
        Format::Table => print(&format!(
            "{} is on disk: {} in {}\n",
            done.model,
            render::bytes(done.bytes),
            done.dir.display()
        )),
    }
}

async fn show(lines: &mut Lines, view: &mut LoadView) -> Result<Pulled, CtlError> {
    while let Some(event) = lines.next_json::<PullEvent>().await? {
        match event {
            PullEvent::Progress(at) => view.update(&at),
            PullEvent::Done(done) => return Ok(done),
            PullEvent::Failed(error) => return Err(error.into()),
        }
    }
    Err(CtlError::Failed(
        "the daemon went away during the download; pull again to go on".to_string(),
    ))
}

/// `models`.
pub async fn models(client: &Client, format: Format) -> Result<(), CtlError> {
    let report: DiskReport = client.get("/admin/v1/disk").await?;
    match format {
        Format::Json => print_json(&report),
        Format::Table => {
            for line in &report.notes {
                note(&format!("note: {line}"));
            }
            let now = std::time::UNIX_EPOCH.elapsed().map_or(0.0, |now| now.as_secs_f64());
            print(&render::models(&report, now))
        }
    }
}

/// `rm`: one after the other, up to the first that cannot be.
pub async fn rm(client: &Client, models: &[String], format: Format) -> Result<(), CtlError> {
    let mut replies = Vec::new();
    let mut failed = None;
    for model in models {
        let request = RmRequest { model: model.clone() };
        match client.post::<RmReply>("/admin/v1/rm", &request).await {
            Ok(reply) => {
                if format == Format::Table {
                    let freed = render::bytes(reply.freed_bytes);
                    print(&format!("{} is removed, {freed} became free\n", reply.removed))?;
                }
                replies.push(reply);
            }
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    if format == Format::Json {
        print_json(&replies)?;
    }
    failed.map_or(Ok(()), Err)
}
