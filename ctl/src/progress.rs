//! How a load or a download goes, on standard error: bars on a terminal, lines elsewhere.

use std::time::Duration;

use minisgl_proto::LoadStage;
use minisgl_proto::worker::LoadProgress;

use crate::output::{self, Bar};
use crate::render;

/// Shows the stages of one load, each on its own line.
pub struct LoadView {
    terminal: bool,
    stage: Option<LoadStage>,
    bar: Option<Bar>,
    /// Tenths of the stage that were told (lines only).
    tenths: u64,
}

impl LoadView {
    /// Nothing is shown yet.
    pub fn new() -> Self {
        LoadView { terminal: output::notes_are_seen(), stage: None, bar: None, tenths: 0 }
    }

    /// Shows a point of the way.
    pub fn update(&mut self, at: &LoadProgress) {
        let new_stage = self.stage != Some(at.stage);
        self.stage = Some(at.stage);
        if self.terminal { self.draw(at, new_stage) } else { self.tell(at, new_stage) }
    }

    /// The last stage is over.
    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish();
        }
    }

    /// A line when a stage begins, and for each tenth of it.
    fn tell(&mut self, at: &LoadProgress, new_stage: bool) {
        let tenths = (at.done.saturating_mul(10)).checked_div(at.total).unwrap_or(0);
        if new_stage || tenths > self.tenths {
            self.tenths = tenths;
            output::note(&output::one_line(&render::progress(at)));
        }
    }

    fn draw(&mut self, at: &LoadProgress, new_stage: bool) {
        if new_stage || self.bar.is_none() {
            self.finish();
            let bar = Bar::new(at.total, template(at));
            bar.prefix(render::stage(at.stage));
            bar.tick(Duration::from_millis(120));
            self.bar = Some(bar);
        }
        let Some(bar) = &self.bar else { return };
        bar.resize(at.total, template(at));
        bar.at(at.done, &at.detail);
    }
}

fn template(at: &LoadProgress) -> &'static str {
    match (at.total, at.stage) {
        (0, _) => "{prefix:>12} {spinner} {wide_msg}",
        (_, LoadStage::WarmUp) => "{prefix:>12} [{bar:24}] {pos}/{len} {wide_msg}",
        // Taken, not moved: at no rate.
        (_, LoadStage::KvPages) => {
            "{prefix:>12} [{bar:24}] {binary_bytes:>10}/{binary_total_bytes:<10} {wide_msg}"
        }
        // 75 columns and the message: a line that wraps is drawn twice.
        _ => {
            "{prefix:>12} [{bar:24}] {binary_bytes:>10}/{binary_total_bytes:<10} \
             {binary_bytes_per_sec:>12} {wide_msg}"
        }
    }
}
