//! A view as cells of a terminal. Pure functions: data in, cells or text out.

use minisgl_proto::admin::ModelState;
use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Row, Sparkline, Table, Widget};

use super::view::{Gpu, Model, View};
use crate::render;

/// Columns from which on there is room for more of a model.
const WIDE: u16 = 112;
/// Lines that say why models are not ready, at most.
const REASONS_MAX: usize = 4;
/// Lines of the throughput's trend, its title included.
const TREND_LINES: u16 = 5;

/// What the person did.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    /// Whether there will be another frame.
    pub(super) live: bool,
    /// The first model shown.
    pub(super) first: usize,
    /// What went wrong at the last look.
    pub(super) trouble: Option<String>,
}

/// A whole frame as text, as high as it needs to be.
pub(super) fn text(view: &View, width: u16) -> String {
    let rows = view.models.len().max(1) + reasons(view).len() + view.gpus.len();
    let gpus = if view.gpus.is_empty() { 0 } else { 2 };
    let height = u16::try_from(rows + gpus + 5).unwrap_or(u16::MAX).min(u16::MAX / width);
    let mut buffer = Buffer::empty(Rect::new(0, 0, width, height));
    draw(view, &State::default(), buffer.area, &mut buffer);
    let line = |cells: &[ratatui::buffer::Cell]| {
        let line: String = cells.iter().map(|cell| cell.symbol()).collect();
        format!("{}\n", line.trim_end())
    };
    let text: String = buffer.content.chunks(width.into()).map(line).collect();
    format!("{}\n", text.trim_end())
}

/// Draws a frame.
pub(super) fn draw(view: &View, state: &State, area: Rect, buffer: &mut Buffer) {
    let reasons = reasons(view);
    let models = view.models.len().max(1) as u16 + 1;
    let gpus = if view.gpus.is_empty() { 0 } else { view.gpus.len() as u16 + 2 };
    let others = 4 + reasons.len() as u16 + gpus;
    let trend = if area.height >= others + models + TREND_LINES { TREND_LINES } else { 0 };
    let [head, _, table, why, gpu, _, chart, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Max(models),
        Constraint::Length(reasons.len() as u16),
        Constraint::Length(gpus),
        Constraint::Fill(1),
        Constraint::Length(trend),
        Constraint::Length(1),
    ])
    .areas(area);
    header(view, area.width).render(head, buffer);
    models_table(view, state.first, table, buffer);
    Paragraph::new(reasons).render(why, buffer);
    gpu_table(&view.gpus, gpu, buffer);
    chart_of(&view.trend, chart, buffer);
    footer(view, state, usize::from(table.height)).render(foot, buffer);
}

fn header(view: &View, width: u16) -> Line<'static> {
    let count = |state| view.models.iter().filter(|model| model.state == state).count();
    let ready = count(ModelState::Ready);
    let rest = view.models.len() - ready;
    let mut spans = vec![
        Span::from(format!("minisgld {}", view.version)).bold(),
        format!("  up {}", render::seconds(view.uptime_s)).into(),
    ];
    if width >= WIDE {
        spans.push(format!("  serving {}", view.listen).into());
    }
    spans.push(format!("   {} ready", render::plural(ready as u64, "model")).into());
    if rest > 0 {
        spans.push(format!(", {rest} not").yellow());
    }
    let sum = |of: fn(&Model) -> Option<u32>| view.models.iter().filter_map(of).sum::<u32>();
    spans.push(
        format!(
            "   {} running, {} waiting, {:.0} tok/s",
            sum(|model| model.running),
            sum(|model| model.waiting),
            view.tokens_per_s
        )
        .into(),
    );
    spans.into()
}

/// A column: head, width, whether it is for wide terminals only, and a model's cell.
type Column = (&'static str, u16, bool, fn(&Model) -> String);

const COLUMNS: [Column; 15] = [
    ("STATE", 10, false, |model| render::state(model.state).to_string()),
    ("RUN", 4, false, |model| number(model.running.map(f64::from), "")),
    ("WAIT", 4, false, |model| number(model.waiting.map(f64::from), "")),
    ("TOK/S", 6, false, |model| number(model.tokens_per_s, "")),
    ("TTFT", 5, false, |model| time(model.first_token.p50)),
    ("p95", 5, false, |model| time(model.first_token.p95)),
    ("ITL", 5, false, |model| time(model.inter_token.p50)),
    ("p95", 5, false, |model| time(model.inter_token.p95)),
    ("QUEUE", 5, true, |model| time(model.queue.p50)),
    ("p95", 5, true, |model| time(model.queue.p95)),
    ("E2E", 5, true, |model| time(model.request.p50)),
    ("p95", 5, true, |model| time(model.request.p95)),
    ("KV", 4, false, |model| share(model.kv_in_use)),
    ("CACHE", 5, false, |model| share(model.kv_cached)),
    ("HITS", 4, false, |model| share(model.hits)),
];

fn models_table(view: &View, first: usize, area: Rect, buffer: &mut Buffer) {
    let columns: Vec<&Column> =
        COLUMNS.iter().filter(|column| !column.2 || area.width >= WIDE).collect();
    let heads = columns.iter().enumerate().map(|(at, column)| aligned(at, column.1, column.0));
    let heads = std::iter::once("MODEL".to_string()).chain(heads);
    let taken: u16 = columns.iter().map(|column| column.1 + 1).sum();
    let room = usize::from(area.width.saturating_sub(taken));
    let widths = columns.iter().map(|column| Constraint::Length(column.1));
    let widths = std::iter::once(Constraint::Fill(1)).chain(widths);
    let first = first.min(view.models.len().saturating_sub(1));
    let rows = view.models.iter().skip(first).map(|model| {
        let cells =
            columns.iter().enumerate().map(|(at, column)| aligned(at, column.1, &column.3(model)));
        let row = Row::new(std::iter::once(tail(&model.name, room)).chain(cells));
        row.style(Style::new().fg(colour(model.state)))
    });
    let table = Table::new(rows, widths).column_spacing(1);
    Widget::render(table.header(Row::new(heads).bold().reversed()), area, buffer);
    if view.models.is_empty() {
        let below = Rect { y: area.y + 1, ..area }.intersection(area);
        Line::from("no model is loaded").dim().render(below, buffer);
    }
}

/// Words to the left, numbers to the right.
fn aligned(column: usize, width: u16, text: &str) -> String {
    let width = usize::from(width);
    if column == 0 { text.to_string() } else { format!("{text:>width$}") }
}

/// The end of a name that is too long: models of one family differ there.
fn tail(name: &str, width: usize) -> String {
    let excess = name.chars().count().saturating_sub(width);
    if excess == 0 {
        return name.to_string();
    }
    std::iter::once('…').chain(name.chars().skip(excess + 1)).collect()
}

fn colour(state: ModelState) -> Color {
    match state {
        ModelState::Ready => Color::Reset,
        ModelState::Loading | ModelState::Unloading => Color::Cyan,
        ModelState::Stalled | ModelState::Restarting => Color::Yellow,
        ModelState::Failed => Color::Red,
    }
}

fn reasons(view: &View) -> Vec<Line<'static>> {
    let line = |model: &Model| {
        let reason = model.reason.as_ref()?;
        let words: Vec<&str> = reason.split_whitespace().collect();
        Some(Line::from(format!("{}: {}", model.name, words.join(" "))).dim())
    };
    view.models.iter().filter_map(line).take(REASONS_MAX).collect()
}

fn gpu_table(gpus: &[Gpu], area: Rect, buffer: &mut Buffer) {
    if gpus.is_empty() || area.height < 2 {
        return;
    }
    let area = Rect { y: area.y + 1, height: area.height - 1, ..area };
    let gib =
        |bytes: Option<f64>| bytes.map_or("-".into(), |b| format!("{:.1}", b / f64::from(1 << 30)));
    let rows = gpus.iter().map(|gpu| {
        Row::new([
            gpu.index.clone(),
            gpu.name.clone(),
            format!(
                "{:>17}",
                format!("{} of {} GiB", gib(gpu.memory_used_bytes), gib(gpu.memory_bytes))
            ),
            format!("{:>5}", share(gpu.utilization)),
            format!(
                "{:>12}",
                format!("{} of {} W", number(gpu.power_w, ""), number(gpu.power_limit_w, ""))
            ),
            format!("{:>6}", number(gpu.temperature_c, " C")),
        ])
    });
    let heads = [
        "GPU".into(),
        "NAME".into(),
        format!("{:>17}", "MEMORY"),
        format!("{:>5}", "UTIL"),
        format!("{:>12}", "POWER"),
        format!("{:>6}", "TEMP"),
    ];
    let name = gpus.iter().map(|gpu| gpu.name.chars().count() as u16).max().unwrap_or(0);
    let widths = [3, name.min(area.width.saturating_sub(48)), 17, 5, 12, 6];
    let widths = widths.map(Constraint::Length);
    let table = Table::new(rows, widths).column_spacing(1);
    Widget::render(table.header(Row::new(heads).bold().reversed()), area, buffer);
}

fn chart_of(trend: &[f64], area: Rect, buffer: &mut Buffer) {
    if area.height == 0 {
        return;
    }
    let [title, bars] = Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(area);
    let shown = &trend[trend.len().saturating_sub(area.width.into())..];
    let peak = shown.iter().copied().fold(0.0, f64::max);
    Line::from(format!("tokens a second, {peak:.0} at most")).dim().render(title, buffer);
    // In tenths, so that a slow model is seen to move.
    let bars_of = shown.iter().map(|tokens| (tokens * 10.0) as u64).collect::<Vec<_>>();
    Sparkline::default().data(bars_of).style(Style::new().fg(Color::Green)).render(bars, buffer);
}

fn footer(view: &View, state: &State, lines: usize) -> Line<'static> {
    if let Some(trouble) = &state.trouble {
        return Line::from(trouble.lines().next().unwrap_or_default().to_string()).red();
    }
    let since = match view.window {
        Some(window) => format!("over {}", render::seconds(window.as_secs_f64().round())),
        None => "since the load".to_string(),
    };
    let hidden = view.models.len().saturating_sub(lines.saturating_sub(1));
    let mut words = match hidden {
        0 => format!("TTFT: first token, ITL: between tokens; p50 and p95 {since}"),
        _ => format!("p50 and p95 {since}   arrows: {hidden} more"),
    };
    if state.live {
        words.push_str("   q quits");
    }
    Line::from(words).dim()
}

fn number(value: Option<f64>, unit: &str) -> String {
    value.map_or("-".to_string(), |value| format!("{value:.0}{unit}"))
}

fn share(value: Option<f64>) -> String {
    value.map_or("-".to_string(), |value| format!("{:.0}%", value * 100.0))
}

/// Five characters at most.
fn time(seconds: Option<f64>) -> String {
    let Some(seconds) = seconds else { return "-".to_string() };
    match seconds {
        ..0.00995 => format!("{:.1}ms", seconds * 1e3),
        ..0.9995 => format!("{:.0}ms", seconds * 1e3),
        ..9.95 => format!("{seconds:.1}s"),
        ..999.5 => format!("{seconds:.0}s"),
        _ => format!("{:.0}m", seconds / 60.0),
    }
}
