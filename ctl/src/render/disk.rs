//! What is on disk, and what would fit, for people.

use minisgl_proto::GpuList;
use minisgl_proto::disk::{DiskRepo, DiskReport, DiskRevision, Fit, FitReport, SchemeShare};

use super::{bytes, count, pairs, plural, seconds, table};

/// Letters of a commit that tell it from others.
const COMMIT_LETTERS: usize = 12;

/// A line a revision, and the sum. `now` is the Unix time in seconds.
pub fn models(report: &DiskReport, now: f64) -> String {
    let mut rows = Vec::new();
    for repo in &report.repos {
        for revision in &repo.revisions {
            rows.push(row(repo, revision, now));
        }
        if repo.incomplete_bytes > 0 || repo.revisions.is_empty() {
            let how = if repo.downloading { "being downloaded" } else { "incomplete" };
            let (id, size) = (repo.id.clone(), bytes(repo.incomplete_bytes));
            rows.push(vec![id, "-".into(), size, "-".into(), "-".into(), how.into()]);
        }
    }
    let head = ["MODEL", "REVISION", "SIZE", "LAST USED", "USED BY", "STATE"];
    let mut text = table(&head, &rows);
    let Some(cache) = &report.cache else { return text };
    let free = report.free_bytes.map(|free| format!(", {} free", bytes(free)));
    text.push_str(&format!(
        "{} in {} of {}{}\n",
        bytes(report.bytes),
        plural(report.repos.len() as u64, "model"),
        cache.display(),
        free.unwrap_or_default()
    ));
    text
}

fn row(repo: &DiskRepo, revision: &DiskRevision, now: f64) -> Vec<String> {
    let commit: String = revision.commit.chars().take(COMMIT_LETTERS).collect();
    let used = repo.last_used.map(|at| format!("{} ago", seconds((now - at).max(0.0))));
    vec![
        repo.id.clone(),
        if revision.refs.is_empty() { commit } else { revision.refs.join(",") },
        bytes(revision.bytes),
        used.unwrap_or_else(|| "-".to_string()),
        if repo.in_use.is_empty() { "-".to_string() } else { repo.in_use.join(",") },
        match revision.missing.is_empty() {
            true => "complete".to_string(),
            false => format!("not complete: {}", revision.missing.join(", ")),
        },
    ]
}

/// `load --dry-run`.
pub fn fit(report: &FitReport) -> String {
    let verdict = if report.fits { "fits" } else { "does not fit" };
    let mut lines = vec![("model", report.name.clone()), ("verdict", verdict.to_string())];
    if let Some(fit) = &report.fit {
        lines.extend(details(fit));
    }
    lines.extend(report.notes.iter().map(|note| ("note", note.clone())));
    pairs(&lines)
}

fn stored(schemes: &[SchemeShare]) -> String {
    let share = |share: &SchemeShare| match share.scheme.as_str() {
        "plain" => format!("{} in 16 bits", bytes(share.bytes)),
        scheme => format!("{} in {scheme}", bytes(share.bytes)),
    };
    schemes.iter().map(share).collect::<Vec<_>>().join(", ")
}

fn details(fit: &Fit) -> Vec<(&'static str, String)> {
    let about = if fit.is_estimate { "about " } else { "" };
    let of_each = if fit.gpus.len() > 1 { " on each GPU" } else { "" };
    let mut lines = vec![
        ("architecture", format!("{}, {} parameters", fit.architecture, count(fit.parameters))),
        ("stored as", stored(&fit.schemes)),
        ("device", format!("{}, {}", fit.device, plural(fit.tp, "rank"))),
    ];
    if !fit.gpus.is_empty() {
        lines.push(("GPUs", GpuList(fit.gpus.clone()).to_string()));
    }
    lines.extend([
        ("free memory", format!("{}{of_each}", bytes(fit.available_bytes))),
        ("weights", format!("{about}{}{of_each}", bytes(fit.weight_bytes))),
    ]);
    if fit.other_bytes > 0 {
        let other = bytes(fit.other_bytes);
        lines.push(("workspaces", format!("{about}{other}{of_each}")));
    }
    let groups = match fit.kv_groups {
        ..=1 => String::new(),
        groups => format!(" in {groups} groups of layers"),
    };
    let kv_bytes = bytes(fit.kv_bytes);
    lines.extend([
        ("KV cache", format!("{about}{} tokens{groups}, {kv_bytes}{of_each}", fit.kv_tokens)),
        (
            "context",
            format!(
                "{} tokens; {} of that length fit at once",
                fit.max_len,
                plural(fit.full_requests, "request")
            ),
        ),
    ]);
    lines
}
