//! The line that `systemctl status` shows.
//!
//! Owns: its words. Must never: be longer than systemd reads.

use std::time::Duration;

use minisgl_proto::admin::{ModelState, ModelStatus};
use minisgl_proto::worker::{LoadProgress, LoadStage};

use super::Report;

/// Bytes of a status at most; systemd drops messages above 4096.
const STATUS_BYTES_MAX: usize = 1024;

/// One line: what is served, what is not and why; while stopping how much of the time is `left`.
pub(super) fn status(report: &Report, left: Option<Duration>) -> String {
    let mut parts = Vec::new();
    parts.extend(report.hung.clone());
    let running: u64 = report.models.iter().map(|model| u64::from(model.in_flight)).sum();
    match left {
        Some(left) if running > 0 => {
            let requests = plural(running, "request");
            parts.push(format!("stopping: {requests} running, {} s left", left.as_secs()));
        }
        Some(_) => parts.push("stopping".to_owned()),
        None => {
            parts.extend(models(report));
            parts.extend(report.note.clone());
        }
    }
    let mut line = parts.join(", ");
    if line.len() > STATUS_BYTES_MAX {
        let end = STATUS_BYTES_MAX - '…'.len_utf8();
        let whole = (0..=end).rev().find(|&at| line.is_char_boundary(at)).unwrap_or(0);
        line.truncate(whole);
        line.push('…');
    }
    line
}

fn models(report: &Report) -> Vec<String> {
    let ready = report.models.iter().filter(|model| model.state == ModelState::Ready).count();
    let mut parts = Vec::new();
    if ready > 0 {
        parts.push(format!("{} ready", plural(ready as u64, "model")));
    }
    for ModelStatus { name, state, progress, .. } in &report.models {
        let loading = || progress.as_ref().map(|at| format!("loading {name}: {}", describe(at)));
        parts.extend(match state {
            ModelState::Ready => None,
            ModelState::Loading => Some(loading().unwrap_or_else(|| format!("loading {name}"))),
            ModelState::Stalled => Some(format!("{name} is stalled")),
            ModelState::Restarting => Some(format!("{name} is restarting")),
            ModelState::Failed => Some(format!("{name} has failed")),
            ModelState::Unloading => Some(format!("unloading {name}")),
        });
    }
    if parts.is_empty() {
        parts.push("no model is loaded".to_owned());
    }
    parts
}

/// How far a load is, without what changes with every byte.
fn describe(progress: &LoadProgress) -> String {
    let stage = match progress.stage {
        LoadStage::Resolve => "finding it",
        LoadStage::Download => "download",
        LoadStage::Place => "waiting for its GPUs",
        LoadStage::Read => "weights",
        LoadStage::WarmUp => "warm-up",
        LoadStage::KvPages => "KV pages",
    };
    match u128::from(progress.total) {
        0 => stage.to_owned(),
        total => format!("{stage} {} %", u128::from(progress.done) * 100 / total),
    }
}

fn plural(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

#[cfg(test)]
pub(super) mod tests {
    use minisgl_proto::LoadOptions;
    use minisgl_proto::admin::Origin;

    use super::*;

    pub fn model(name: &str, state: ModelState) -> ModelStatus {
        ModelStatus {
            name: name.to_owned(),
            source: String::new(),
            state,
            reason: None,
            pid: None,
            gpus: Vec::new(),
            gpu_memory_bytes: None,
            restarts: 0,
            state_s: 0.0,
            in_flight: 0,
            progress: None,
            info: None,
            stats: None,
            options: LoadOptions::default(),
            persisted: false,
            aliases: vec![],
            origin: Origin::Loaded,
            retry_in_s: None,
            dialect: None,
            notes: vec![],
        }
    }

    pub fn loading(name: &str, stage: LoadStage, done: u64, total: u64) -> ModelStatus {
        let progress = Some(LoadProgress { stage, done, total, detail: "a.weight".to_owned() });
        ModelStatus { progress, ..model(name, ModelState::Loading) }
    }

    fn line(models: Vec<ModelStatus>) -> String {
        status(&Report { models, hung: None, note: None }, None)
    }

    #[test]
    fn the_status_is_one_line_for_people() {
        assert_eq!(line(vec![]), "no model is loaded");
        let a = || model("a", ModelState::Ready);
        assert_eq!(line(vec![a()]), "1 model ready");
        assert_eq!(line(vec![a(), a()]), "2 models ready");
        let big = loading("Qwen/Qwen3-8B", LoadStage::Read, 43_999, 100_000);
        assert_eq!(line(vec![big]), "loading Qwen/Qwen3-8B: weights 43 %");
        let huge = loading("b", LoadStage::Download, u64::MAX / 2, u64::MAX);
        assert_eq!(line(vec![a(), huge]), "1 model ready, loading b: download 49 %");
        let found = loading("b", LoadStage::Resolve, 0, 0);
        assert_eq!(line(vec![found]), "loading b: finding it");
        assert_eq!(line(vec![model("b", ModelState::Loading)]), "loading b");
        let note = Some("restart to apply [http] listen".to_owned());
        let report = Report { models: vec![a()], hung: None, note };
        assert_eq!(status(&report, None), "1 model ready, restart to apply [http] listen");
        let ill = [ModelState::Stalled, ModelState::Restarting, ModelState::Failed];
        let ill = ill.map(|state| model("b", state)).to_vec();
        assert_eq!(line(ill), "b is stalled, b is restarting, b has failed");
    }

    #[test]
    fn the_status_while_stopping_counts_down() {
        let models = vec![ModelStatus { in_flight: 3, ..model("a", ModelState::Unloading) }];
        let hung = Some("a hangs".to_owned());
        let report = Report { models, hung, note: Some("x".to_owned()) };
        let left = Some(Duration::from_millis(27_900));
        assert_eq!(status(&report, left), "a hangs, stopping: 3 requests running, 27 s left");
        let report = Report { models: vec![], hung: None, note: None };
        assert_eq!(status(&report, left), "stopping");
    }

    #[test]
    fn a_long_status_is_cut_between_two_letters() {
        let models = (0..64).map(|_| model(&"é".repeat(100), ModelState::Failed)).collect();
        let line = line(models);
        assert!(line.len() <= STATUS_BYTES_MAX && line.ends_with('…'), "{}", line.len());
    }
}
