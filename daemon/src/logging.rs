//! Logs go to standard error: readable lines, or JSON when asked for. Where that is systemd's journal they go
//! there with a field for each value.

mod journal;

use std::io::IsTerminal;

use anyhow::Context;
use serde::Deserialize;
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use journal::Journal;

/// Logs.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// Level or directives: `info`, `debug`, `info,minisgl_http=debug`; for the workers too.
    pub level: String,
    /// Lines or JSON.
    pub format: LogFormat,
    /// Log every prompt too.
    pub prompts: bool,
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig { level: "info".to_owned(), format: LogFormat::Text, prompts: false }
    }
}

/// Shape of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people; with fields where it goes to systemd's journal.
    Text,
    /// One object a line.
    Json,
}

/// The targets of the lines that children write.
const CHILDREN: [&str; 2] = ["worker", "text"];

/// Reads a level or directives.
///
/// # Errors
/// It is neither.
pub fn filter(level: &str) -> anyhow::Result<EnvFilter> {
    EnvFilter::try_new(level).with_context(|| {
        format!("[log] level \"{level}\" is neither error, warn, info, debug, trace nor a list of directives")
    })
}

/// Installs the subscriber of a worker: lines that begin with their level, `<6>text`, as sd-daemon(3) has it. The
/// daemon reads them one by one and gives them time and model; what a library writes has no such beginning.
///
/// # Errors
/// As [`filter`].
pub fn init_worker(level: &str) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(filter(level)?)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .event_format(Leveled)
        .init();
    Ok(())
}

/// An event as lines for the daemon, each with its level.
struct Leveled;

impl<S, N> FormatEvent<S, N> for Leveled
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        let level = minisgl_control::log_level::number(*event.metadata().level());
        let mut text = String::new();
        context.field_format().format_fields(Writer::new(&mut text), event)?;
        text.lines().try_for_each(|line| writeln!(writer, "<{level}>{line}"))
    }
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

/// The daemon's filter. Children leave out by themselves what is not wanted; what they write passes.
fn own_filter(config: &LogConfig) -> anyhow::Result<EnvFilter> {
    let [worker, text] = CHILDREN;
    filter(&format!("{worker}=trace,{text}=trace,{}", config.level))
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

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_line_of_a_worker_begins_with_its_level() {
        let writer = Written::default();
        let kept = writer.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .event_format(Leveled)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::error!(step = 7, "it broke\nin two");
            tracing::info!("ready");
            tracing::trace!("x");
        });
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "<3>it broke\n<3>in two step=7\n<6>ready\n<8>x\n");
    }
}
