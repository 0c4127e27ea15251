//! Logs go to standard error: readable lines, or JSON when asked for. Where that is systemd's journal they go
//! there with a field for each value.

mod journal;

use std::io::IsTerminal;

use anyhow::Context;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use crate::config::{LogConfig, LogFormat};
use journal::Journal;

/// The target of the lines that workers write.
const WORKER_TARGET: &str = "worker";

/// Reads a level or directives.
///
/// # Errors
/// It is neither.
pub fn filter(level: &str) -> anyhow::Result<EnvFilter> {
    EnvFilter::try_new(level).with_context(|| {
        format!("[log] level \"{level}\" is neither error, warn, info, debug, trace nor a list of directives")
    })
}

/// Installs the subscriber of a worker: plain lines, which the daemon reads one by one and gives
/// their time, model and level.
///
/// # Errors
/// As [`filter`].
pub fn init_worker(level: &str) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(filter(level)?)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .without_time()
        .with_target(false)
        .init();
    Ok(())
}

/// Changes the level of the log that is installed.
#[derive(Clone)]
pub struct LevelHandle(reload::Handle<EnvFilter, Registry>);

impl LevelHandle {
    /// From now on what `config` says.
    ///
    /// # Errors
    /// As [`filter`].
    pub fn set(&self, config: &LogConfig) -> anyhow::Result<()> {
        self.0.reload(own_filter(config)?).context("the log has no level")
    }
}

/// The daemon's filter. Workers leave out by themselves what is not wanted; what they write passes.
fn own_filter(config: &LogConfig) -> anyhow::Result<EnvFilter> {
    filter(&format!("{WORKER_TARGET}=trace,{}", config.level))
}

/// Installs the daemon's log subscriber.
///
/// # Errors
/// The level directive does not parse.
pub fn init(config: &LogConfig) -> anyhow::Result<LevelHandle> {
    let (filter, handle) = reload::Layer::new(own_filter(config)?);
    let registry = tracing_subscriber::registry().with(filter);
    if config.format == LogFormat::Text
        && let Some(journal) = Journal::of_stderr()
    {
        registry.with(journal).init();
        return Ok(LevelHandle(handle));
    }
    let lines =
        fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    match config.format {
        LogFormat::Text => registry.with(lines).init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).init(),
    }
    Ok(LevelHandle(handle))
}
