//! `batch`: a file of requests, some at a time, each until it has an answer.
//!
//! An answer is any status but those that say "later": 429 and 503, and 500, 502 and 504 while there
//! are attempts left. Requests without an answer are left for the next run of the same command.

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use hyper::{Method, StatusCode};
use minisgl_proto::admin::VersionInfo;
use serde::Serialize;
use serde_json::Value;

use crate::args::{BatchArgs, Format};
use crate::batch_file::{Answer, Item, Items, Out, Record, ids};
use crate::client::{Client, error_of, whole};
use crate::error::CtlError;
use crate::output::{Bar, note, notes_are_seen, print, print_json};
use crate::render;

/// Pause before the second attempt; doubles.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest pause, whatever `Retry-After` says.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How often progress is told where there is no terminal.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// How it went.
#[derive(Debug, Default, Serialize)]
struct Summary {
    /// Requests in the file.
    total: usize,
    /// Had an answer before.
    skipped: usize,
    /// Answered with a 2xx.
    succeeded: usize,
    /// Answered with an error.
    failed: usize,
    /// Without an answer.
    left: usize,
    seconds: f64,
    prompt_tokens: u64,
    completion_tokens: u64,
}

enum Outcome {
    Answered(Record),
    Left(CtlError),
}

/// Runs the command.
pub async fn run(
    client: &Client,
    args: &BatchArgs,
    path: &Path,
    format: Format,
) -> Result<(), CtlError> {
    if same_file(&args.input, path) {
        return Err(CtlError::Usage("input and output are the same file".to_string()));
    }
    let ids = ids(&args.input)?;
    let (mut out, done) = Out::open(path)?;
    let skipped = ids.intersection(&done).count();
    let mut summary = Summary { total: ids.len(), skipped, ..Summary::default() };
    drop(ids);
    let began = Instant::now();
    let mut first_error = None;
    if summary.total > skipped {
        // Nobody there is better said once, before the first request.
        client.get::<VersionInfo>("/admin/v1/version").await?;
        first_error = send_all(client, args, &done, &mut out, &mut summary).await?;
        out.sync()?;
    }
    summary.seconds = began.elapsed().as_secs_f64();
    if args.json || format == Format::Json {
        print_json(&summary)?;
    } else {
        print(&table(&summary))?;
    }
    match (summary.left, summary.failed, first_error) {
        (0, 0, _) => Ok(()),
        (0, failed, _) => Err(CtlError::Failed(format!(
            "{} answered with an error; see {}",
            render::plural(failed as u64, "request"),
            path.display()
        ))),
        (left, _, error) => Err(CtlError::Failed(format!(
            "{} without an answer{}; run the same command again to go on",
            render::plural(left as u64, "request"),
            error.map_or(String::new(), |error| format!(" (the first: {error})"))
        ))),
    }
}

fn same_file(input: &Path, out: &Path) -> bool {
    input.canonicalize().is_ok_and(|input| out.canonicalize().is_ok_and(|out| input == out))
}

/// Sends what has no answer yet; returns the first reason why one was left.
async fn send_all(
    client: &Client,
    args: &BatchArgs,
    done: &HashSet<String>,
    out: &mut Out,
    summary: &mut Summary,
) -> Result<Option<CtlError>, CtlError> {
    let items = Items::open(&args.input)?;
    let todo = items.filter(|item| !matches!(item, Ok(item) if done.contains(&item.custom_id)));
    let attempts =
        todo.map(|item| async { Ok::<_, CtlError>(send(client, item?, args.retries).await) });
    let mut outcomes = stream::iter(attempts).buffer_unordered(args.concurrency as usize);
    let mut view = View::new(summary);
    let mut first_error = None;
    while let Some(outcome) = outcomes.next().await {
        match outcome? {
            Outcome::Answered(record) => {
                count(summary, &record.response);
                out.append(&record)?;
            }
            Outcome::Left(error) => {
                summary.left += 1;
                first_error.get_or_insert(error);
            }
        }
        view.update(summary);
    }
    view.finish();
    Ok(first_error)
}

fn count(summary: &mut Summary, answer: &Answer) {
    if answer.status_code < 300 {
        summary.succeeded += 1;
    } else {
        summary.failed += 1;
    }
    let tokens = |field: &str| answer.body["usage"][field].as_u64().unwrap_or(0);
    summary.prompt_tokens += tokens("prompt_tokens");
    summary.completion_tokens += tokens("completion_tokens");
}

/// Sends a request until it has an answer or no attempt is left.
async fn send(client: &Client, item: Item, retries: u32) -> Outcome {
    let body = match serde_json::to_vec(&item.body) {
        Ok(body) => Bytes::from(body),
        Err(error) => return Outcome::Left(CtlError::Failed(error.to_string())),
    };
    let mut attempt = 0;
    loop {
        let last = attempt >= retries;
        let (error, wait) = match once(client, &item, body.clone()).await {
            Ok((answer, wait)) => match answer.status_code {
                429 | 503 => (later(&answer), wait),
                500 | 502 | 504 if !last => (later(&answer), wait),
                _ => return Outcome::Answered(record(&item, answer)),
            },
            Err(error) => (error, Duration::ZERO),
        };
        if last {
            return Outcome::Left(error);
        }
        let pause = PAUSE.saturating_mul(1 << attempt.min(20));
        tokio::time::sleep(pause.max(wait).min(PAUSE_MAX)).await;
        attempt += 1;
    }
}

fn record(item: &Item, response: Answer) -> Record {
    let id = format!("batch_req_{}", item.line);
    Record { id, custom_id: item.custom_id.clone(), response, error: None }
}

fn later(answer: &Answer) -> CtlError {
    let status = StatusCode::from_u16(answer.status_code);
    let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    error_of(status, answer.body.to_string().as_bytes())
}

/// Sends a request once: its answer, and the pause that the server asks for.
async fn once(client: &Client, item: &Item, body: Bytes) -> Result<(Answer, Duration), CtlError> {
    let response = client.send(Method::POST, &item.url, body).await?;
    let status_code = response.status().as_u16();
    let header = |name: &str| Some(response.headers().get(name)?.to_str().ok()?.to_string());
    let wait = header("retry-after").and_then(|text| text.parse().ok()).unwrap_or(0);
    let request_id = header("x-request-id");
    let bytes = whole(response).await?;
    let body: Value = serde_json::from_slice(&bytes)
        .unwrap_or_else(|_| Value::from(String::from_utf8_lossy(&bytes)));
    let request_id = request_id.or_else(|| body["id"].as_str().map(str::to_string));
    let answer = Answer { status_code, request_id: request_id.unwrap_or_default(), body };
    Ok((answer, Duration::from_secs(wait)))
}

fn table(summary: &Summary) -> String {
    let rate = summary.completion_tokens as f64 / summary.seconds.max(1e-9);
    render::pairs(&[
        ("requests", summary.total.to_string()),
        ("skipped", format!("{} (answered before)", summary.skipped)),
        ("succeeded", summary.succeeded.to_string()),
        ("failed", summary.failed.to_string()),
        ("left", summary.left.to_string()),
        ("time", render::seconds(summary.seconds)),
        (
            "tokens",
            format!(
                "{} prompt, {} generated ({rate:.1} a second)",
                summary.prompt_tokens, summary.completion_tokens
            ),
        ),
    ])
}

/// Progress on standard error.
struct View {
    bar: Option<Bar>,
    told: Instant,
}

impl View {
    fn new(summary: &Summary) -> Self {
        let bar = notes_are_seen().then(|| {
            let template = "[{bar:30}] {pos}/{len} {per_sec} {eta} left {msg}";
            let bar = Bar::new(summary.total as u64, template);
            bar.at(summary.skipped as u64, "");
            bar
        });
        View { bar, told: Instant::now() }
    }

    fn update(&mut self, summary: &Summary) {
        let Summary { total, skipped, succeeded, failed, left, .. } = summary;
        let done = skipped + succeeded + failed;
        let ill = match failed + left {
            0 => String::new(),
            ill => format!("({ill} not well)"),
        };
        if let Some(bar) = &self.bar {
            bar.at(done as u64, &ill);
        } else if self.told.elapsed() >= TELL_EVERY {
            self.told = Instant::now();
            note(&format!("{done} of {total} requests done {ill}"));
        }
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish();
        }
    }
}
