//! `top`: a live view of models, throughput, latencies, caches and GPUs.
//!
//! | file | what it holds |
//! |---|---|
//! | `screen` | the terminal: keys, signals, restoring it |
//! | `draw` | a view as cells; a pure function |
//! | `view` | what a frame shows, from what the daemon says |
//! | `histogram` | percentiles from buckets |
//!
//! Owns: asking the daemon, by the calls that everybody has: status and metrics. Must never: ask so often
//! that it is felt.

mod draw;
mod histogram;
mod screen;
mod view;

#[cfg(test)]
mod tests;

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use minisgl_proto::admin::{ModelStatus, VersionInfo};

use crate::args::TopArgs;
use crate::client::Client;
use crate::error::CtlError;
use crate::exposition;
use crate::output::print;
use view::{History, Look};

/// The daemon looks at its GPUs when it is scraped for the first time; that takes a moment.
const GPUS_WAIT: Duration = Duration::from_millis(300);
const GPUS_TRIES: u32 = 5;

/// `top`.
pub async fn run(client: &Client, args: &TopArgs) -> Result<(), CtlError> {
    if args.once {
        return once(client, args.width).await;
    }
    if !std::io::stdout().is_terminal() {
        return Err(CtlError::Usage(
            "top draws on a terminal, and standard output is none; try: minisglctl top --once"
                .to_string(),
        ));
    }
    // What is wrong from the start is told before the terminal is taken.
    let first = look(client).await?;
    screen::run(client, Duration::from_secs(args.interval), first).await
}

async fn once(client: &Client, width: u16) -> Result<(), CtlError> {
    let mut seen = look(client).await?;
    for _ in 0..GPUS_TRIES {
        if !seen.lacks_gpus() {
            break;
        }
        tokio::time::sleep(GPUS_WAIT).await;
        seen = look(client).await?;
    }
    print(&draw::text(&History::default().add(seen), width))
}

/// Asks the daemon for everything that a frame needs.
async fn look(client: &Client) -> Result<Look, CtlError> {
    let version: VersionInfo = client.get("/admin/v1/version").await?;
    let models: Vec<ModelStatus> = client.get("/admin/v1/models").await?;
    let metrics = client.get_bytes("/metrics").await?;
    let samples = exposition::samples(&String::from_utf8_lossy(&metrics)).collect();
    Ok(Look { at: Instant::now(), version, models, samples })
}
