//! `ps`, `wait` and `logs`: once, or again and again until something has happened.

use std::time::{Duration, Instant};

use minisgl_proto::admin::{HealthReport, LogLines, ModelState, ModelStatus};

use crate::args::{Format, Until};
use crate::client::{Client, segment};
use crate::error::CtlError;
use crate::output::{note, print, print_json, print_json_line, redraw};
use crate::render;

/// Between two looks of `wait`.
const WAIT_LOOK: Duration = Duration::from_millis(250);
/// Between two looks of `logs --follow`.
const LOG_LOOK: Duration = Duration::from_millis(500);
/// Lines that `logs --follow` looks back.
const LOG_LINES: u32 = 2000;

/// `ps`.
pub async fn ps(client: &Client, watch: Option<u64>, format: Format) -> Result<(), CtlError> {
    let Some(pause) = watch else {
        let models: Vec<ModelStatus> = client.get("/admin/v1/models").await?;
        return match format {
            Format::Json => print_json(&models),
            Format::Table => print(&render::ps(&models)),
        };
    };
    loop {
        let models: Vec<ModelStatus> = client.get("/admin/v1/models").await?;
        match format {
            Format::Json => print_json_line(&models)?,
            Format::Table => redraw(&render::ps(&models))?,
        }
        tokio::time::sleep(Duration::from_secs(pause)).await;
    }
}

/// `wait`.
pub async fn wait(
    client: &Client,
    name: Option<&str>,
    until: Until,
    timeout: Option<u64>,
    format: Format,
) -> Result<(), CtlError> {
    let deadline = timeout.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    loop {
        let look = match name {
            Some(name) => model_is(client, name, until, format).await?,
            None => all_are_ready(client, format).await?,
        };
        let Look::NotYet(how) = look else { return Ok(()) };
        if deadline.is_some_and(|at| Instant::now() >= at) {
            let seconds = timeout.unwrap_or_default();
            return Err(CtlError::Failed(format!("not within {seconds} s: {how}")));
        }
        tokio::time::sleep(WAIT_LOOK).await;
    }
}

enum Look {
    Done,
    /// How it is now.
    NotYet(String),
}

async fn model_is(
    client: &Client,
    name: &str,
    until: Until,
    format: Format,
) -> Result<Look, CtlError> {
    let path = format!("/admin/v1/models/{}", segment(name));
    let status: ModelStatus = match client.get(&path).await {
        Err(CtlError::NotFound(_)) if until == Until::Gone => {
            if format == Format::Table {
                print(&format!("{name} is gone\n"))?;
            }
            return Ok(Look::Done);
        }
        other => other?,
    };
    let how = render::state_line(&status);
    match (until, status.state) {
        (Until::Ready, ModelState::Ready) => {
            match format {
                Format::Json => print_json(&status)?,
                Format::Table => print(&format!("{name} is ready\n"))?,
            }
            Ok(Look::Done)
        }
        // Nobody tries it again.
        (Until::Ready, ModelState::Failed) if status.retry_in_s.is_none() => {
            Err(CtlError::Failed(how))
        }
        (Until::Ready, ModelState::Unloading) => Err(CtlError::Failed(how)),
        _ => Ok(Look::NotYet(how)),
    }
}

async fn all_are_ready(client: &Client, format: Format) -> Result<Look, CtlError> {
    let report: HealthReport = client.get("/admin/v1/health").await?;
    if !report.ready {
        return Ok(Look::NotYet(report.summary));
    }
    match format {
        Format::Json => print_json(&report)?,
        Format::Table => print(&render::health(&report))?,
    }
    Ok(Look::Done)
}

/// `logs`.
pub async fn logs(
    client: &Client,
    name: &str,
    lines: u32,
    follow: bool,
    format: Format,
) -> Result<(), CtlError> {
    let path = |lines: u32| format!("/admin/v1/models/{}/logs?lines={lines}", segment(name));
    let LogLines { lines: first } = client.get(&path(lines)).await?;
    show_lines(&first, format, follow)?;
    if !follow {
        return Ok(());
    }
    let mut seen = first;
    loop {
        tokio::time::sleep(LOG_LOOK).await;
        let LogLines { lines: now } = client.get(&path(LOG_LINES)).await?;
        let (new, lost) = what_is_new(&seen, &now);
        if lost {
            note("(some lines went by unseen)");
        }
        show_lines(new, format, true)?;
        seen = now;
    }
}

fn show_lines(lines: &[String], format: Format, one_by_one: bool) -> Result<(), CtlError> {
    match format {
        Format::Json if one_by_one => lines.iter().try_for_each(print_json_line),
        Format::Json => print_json(&LogLines { lines: lines.to_vec() }),
        Format::Table => lines.iter().try_for_each(|line| print(&format!("{line}\n"))),
    }
}

/// The lines of `now` that are not in `seen`, of which the oldest may have gone, and whether some may be missing
/// between both.
fn what_is_new<'a>(seen: &[String], now: &'a [String]) -> (&'a [String], bool) {
    if seen.is_empty() {
        return (now, false);
    }
    // `seen` was cut to other lines at its start than `now`: the end of the one is somewhere in the other.
    for end in (1..=now.len()).rev() {
        let both = end.min(seen.len());
        if now[end - both..end] == seen[seen.len() - both..] {
            return (&now[end..], false);
        }
    }
    (now, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_new_lines_are_shown() {
        let lines = |text: &str| text.chars().map(String::from).collect::<Vec<String>>();
        let new = |seen: &str, now: &str| {
            let now = lines(now);
            let (new, lost) = what_is_new(&lines(seen), &now);
            (new.concat(), lost)
        };
        assert_eq!(new("", "ab"), ("ab".into(), false));
        assert_eq!(new("ab", "ab"), (String::new(), false));
        assert_eq!(new("ab", "abc"), ("c".into(), false));
        assert_eq!(new("abcd", "cdef"), ("ef".into(), false), "the oldest went");
        assert_eq!(new("cd", "abcdef"), ("ef".into(), false), "more was asked for");
        assert_eq!(new("ab", "xyz"), ("xyz".into(), true), "too many at once");
        assert_eq!(new("aa", "aaa"), (String::new(), false));
        assert_eq!(new("ab", ""), (String::new(), true));
    }
}
