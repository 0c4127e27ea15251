//! Results as text for people. Pure functions: data in, text out.

use std::fmt::Write;

use minisgl_proto::admin::{HealthReport, ModelState, ModelStatus, Origin};
use minisgl_proto::worker::{LoadProgress, LoadStage};
use minisgl_proto::{GpuList, ModelInfo, StepStats};

pub use self::disk::{fit, models};
pub use self::requests::requests;
use crate::output::one_line;

mod disk;
mod requests;

/// Columns of left-aligned cells, two spaces apart, no space at line ends.
fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    // A cell is one line whatever it came from.
    let clean = |row: &Vec<String>| row.iter().map(|cell| one_line(cell)).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(clean).collect();
    let cell = |row: &[String], column: usize| row[column].chars().count();
    let widths: Vec<usize> = (0..head.len())
        .map(|column| {
            rows.iter().map(|row| cell(row, column)).max().unwrap_or(0).max(head[column].len())
        })
        .collect();
    let mut out = String::new();
    let head: Vec<String> = head.iter().map(|text| (*text).to_string()).collect();
    for row in std::iter::once(&head).chain(&rows) {
        let mut line = String::new();
        for (text, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{text:<width$}  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// A state's word, as in JSON.
pub fn state(state: ModelState) -> &'static str {
    match state {
        ModelState::Loading => "loading",
        ModelState::Ready => "ready",
        ModelState::Stalled => "stalled",
        ModelState::Restarting => "restarting",
        ModelState::Failed => "failed",
        ModelState::Unloading => "unloading",
    }
}

/// A stage's words.
pub fn stage(stage: LoadStage) -> &'static str {
    match stage {
        LoadStage::Resolve => "resolve",
        LoadStage::Download => "download",
        LoadStage::Place => "place",
        LoadStage::Read => "read weights",
        LoadStage::KvPages => "KV pages",
        LoadStage::WarmUp => "warm up",
    }
}

/// Bytes with three digits or so.
pub fn bytes(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

/// A count with three digits or so: 134.5M.
fn count(count: u64) -> String {
    let units = ["", "K", "M", "B", "T"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { count.to_string() } else { format!("{value:.1}{}", units[unit]) }
}

/// Seconds in the two largest units.
pub fn seconds(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    match whole {
        0..10 => format!("{seconds:.1}s"),
        10..60 => format!("{whole}s"),
        60..3600 => format!("{}m{:02}s", whole / 60, whole % 60),
        3600..86_400 => format!("{}h{:02}m", whole / 3600, whole % 3600 / 60),
        _ => format!("{}d{:02}h", whole / 86_400, whole % 86_400 / 3600),
    }
}

/// How long a model took to load, and how fast its weights came.
pub fn loaded(info: &ModelInfo) -> String {
    let (read, took) = (bytes(info.read_bytes), seconds(info.read_s));
    let rate = info.read_bytes as f64 / info.read_s.max(1e-9) / 1e9;
    format!("{}, {read} of weights in {took} ({rate:.1} GB/s)", seconds(info.load_s))
}

/// `1 rank`, `2 ranks`.
pub fn plural(count: impl Into<u64>, word: &str) -> String {
    let count = count.into();
    format!("{count} {word}{}", if count == 1 { "" } else { "s" })
}

fn percent(part: u64, whole: u64) -> String {
    if whole == 0 { "-".into() } else { format!("{:.0}%", part as f64 * 100.0 / whole as f64) }
}

/// A point of a load in one line.
pub fn progress(progress: &LoadProgress) -> String {
    let LoadProgress { stage: at, done, total, detail } = progress;
    let amount = |value: u64| match at {
        LoadStage::WarmUp => value.to_string(),
        _ => bytes(value),
    };
    let mut line = stage(*at).to_string();
    if *total > 0 {
        let _ = write!(line, " {} of {}", amount(*done), amount(*total));
    }
    if !detail.is_empty() {
        let _ = write!(line, " ({detail})");
    }
    line
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_string())
}

/// A model's state, and why.
pub fn state_line(model: &ModelStatus) -> String {
    let name = &model.name;
    let mut line = format!("{name} is {}", state(model.state));
    let reason = reason(model);
    if !reason.is_empty() {
        let _ = write!(line, ": {reason}");
    }
    line
}

/// Why a model is not ready, how far it is, and when it is tried again.
fn reason(model: &ModelStatus) -> String {
    let mut reason = match (&model.reason, &model.progress) {
        (Some(reason), _) => reason.clone(),
        (None, Some(at)) => progress(at),
        (None, None) => String::new(),
    };
    if let Some(after) = model.retry_in_s {
        let _ = write!(reason, "; tried again in {}", seconds(after));
    }
    one_line(&reason)
}

/// KV pages that running requests use: neither free nor kept for nobody, as in `top` and in the metrics.
fn pages_in_use(stats: &StepStats) -> u64 {
    stats.pages_total.saturating_sub(stats.pages_free).saturating_sub(stats.pages_evictable)
}

/// `ps`. GPUs have columns where some model has any, and so has `--persist`.
pub fn ps(models: &[ModelStatus]) -> String {
    let with_persisted = models.iter().any(|model| model.persisted);
    let with_gpus = models.iter().any(|model| !model.gpus.is_empty());
    let rows = models.iter().map(|model| {
        let info = model.info.as_ref();
        let stats = model.stats.as_ref();
        let used = |s: &StepStats| percent(pages_in_use(s), s.pages_total);
        let cached = |s: &StepStats| percent(s.pages_evictable, s.pages_total);
        let mut row = vec![
            model.name.clone(),
            state(model.state).to_string(),
            seconds(model.state_s),
            or_dash(info.map(|info| info.device.clone())),
            info.map_or(model.options.tp, |info| info.tp).to_string(),
        ];
        if with_gpus {
            row.push(or_dash(gpus(model)));
            row.push(or_dash(model.gpu_memory_bytes.map(bytes)));
        }
        row.extend([
            or_dash(stats.map(|stats| format!("{}/{}", stats.running, stats.waiting))),
            or_dash(stats.map(used)),
            or_dash(stats.map(cached)),
            or_dash(stats.map(|stats| percent(stats.cached_tokens, stats.prompt_tokens))),
            model.restarts.to_string(),
        ]);
        if with_persisted {
            row.push(if model.persisted { "yes" } else { "-" }.to_string());
        }
        row.push(reason(model));
        row
    });
    let mut head = vec!["NAME", "STATE", "FOR", "DEVICE", "TP"];
    if with_gpus {
        head.extend(["GPUS", "GPU MEM"]);
    }
    head.extend(["RUN/WAIT", "KV", "CACHE", "HITS", "RESTARTS"]);
    head.extend(with_persisted.then_some("PERSIST"));
    head.push("REASON");
    table(&head, &rows.collect::<Vec<_>>())
}

fn gpus(model: &ModelStatus) -> Option<String> {
    (!model.gpus.is_empty()).then(|| GpuList(model.gpus.clone()).to_string())
}

/// `show`: name and value, one a line.
pub fn show(model: &ModelStatus) -> String {
    let mut lines: Vec<(&str, String)> = vec![
        ("name", model.name.clone()),
        ("source", model.source.clone()),
        ("state", format!("{} for {}", state(model.state), seconds(model.state_s))),
    ];
    if let Some(reason) = &model.reason {
        lines.push(("reason", reason.clone()));
    }
    if let Some(at) = &model.progress {
        lines.push(("progress", progress(at)));
    }
    lines.push(("worker", or_dash(model.pid.map(|pid| format!("process {pid}")))));
    if let Some(gpus) = gpus(model) {
        let memory = model.gpu_memory_bytes.map(|held| format!(", {} held", bytes(held)));
        lines.push(("GPUs", format!("{gpus}{}", memory.unwrap_or_default())));
    }
    lines.push(("restarts", model.restarts.to_string()));
    if !model.aliases.is_empty() {
        lines.push(("aliases", model.aliases.join(", ")));
    }
    if let Some(after) = model.retry_in_s {
        lines.push(("tried again", format!("in {}", seconds(after))));
    }
    match model.origin {
        Origin::Configured => lines.push(("at start", "loaded: the configuration has it".into())),
        Origin::Persisted => lines.push(("at start", "loaded again, until it is unloaded".into())),
        Origin::Loaded if model.persisted => {
            lines.push(("at start", "loaded again, until it is unloaded".into()));
        }
        Origin::Loaded => {}
    }
    lines.extend(model.notes.iter().map(|note| ("note", note.clone())));
    lines.push(("in flight", plural(model.in_flight, "request")));
    if let Some(info) = &model.info {
        let weights = bytes(info.weight_bytes);
        lines.push(("folder", info.dir.display().to_string()));
        lines.push(("architecture", info.architecture.clone()));
        lines.extend(model.dialect.iter().map(|name| ("dialect", name.clone())));
        lines.push((
            "parameters",
            format!("{} in {}, {weights}", count(info.parameters), info.dtype),
        ));
        lines.push(("device", format!("{}, {}", info.device, plural(info.tp, "rank"))));
        let pages = info.kv_tokens / u64::from(info.page_size.max(1));
        let groups = match info.kv_groups {
            ..=1 => String::new(),
            groups => format!(" for each of {groups} groups of layers"),
        };
        lines.push((
            "KV cache",
            format!(
                "{} tokens in {pages} pages of {}{groups}, {} in {}",
                info.kv_tokens,
                info.page_size,
                bytes(info.kv_bytes),
                info.kv_dtype
            ),
        ));
        let possible = match info.context_len {
            possible if possible > info.max_len => {
                format!(": as many as the KV cache has room for, of {possible}")
            }
            _ => String::new(),
        };
        lines.push(("context", format!("{} tokens{possible}", info.max_len)));
        lines.push((
            "limits",
            format!(
                "{} running, {} waiting, {} tokens a step",
                info.max_running, info.max_waiting, info.chunk_tokens
            ),
        ));
        lines.push(("loaded in", loaded(info)));
    }
    if let Some(stats) = &model.stats {
        lines.push(("requests", format!("{} running, {} waiting", stats.running, stats.waiting)));
        lines.push((
            "pages",
            format!(
                "{} in use, {} cached beside them, {} free",
                pages_in_use(stats),
                stats.pages_evictable,
                stats.pages_free
            ),
        ));
        let hits = percent(stats.cached_tokens, stats.prompt_tokens);
        lines.push((
            "tokens",
            format!(
                "{} prompt, {} of them cached ({hits}), {} generated",
                stats.prompt_tokens, stats.cached_tokens, stats.generated_tokens
            ),
        ));
        lines.push((
            "steps",
            format!("{}, {}", stats.steps, plural(stats.preemptions, "preemption")),
        ));
    }
    pairs(&lines)
}

/// Names and values, one pair a line; a value of more lines goes on below itself.
pub fn pairs(lines: &[(&str, String)]) -> String {
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut out = String::new();
    for (name, value) in lines {
        let value = value.trim_end().replace('\n', &format!("\n{:width$}  ", ""));
        let _ = writeln!(out, "{name:<width$}  {value}");
    }
    out
}

/// `health`.
pub fn health(report: &HealthReport) -> String {
    let word = if report.ready { "ready" } else { "not ready" };
    format!("{word}: {}\n", report.summary)
}

#[cfg(test)]
mod tests;
