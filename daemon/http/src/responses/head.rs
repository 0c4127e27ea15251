//! A response's JSON around what was said.
//!
//! Owns: which fields of its request a response repeats. Must never: repeat more than a bounded number of bytes: a stream
//! holds them until its end.

use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::json::put;
use crate::part::Usage;
use crate::store::Begun;

/// Bytes of the request that a response repeats, at most; of a larger one tools, instructions and the like are left out.
const ECHO_BYTES_MAX: usize = 128 << 10;

/// All that is known of a response before its first token.
#[derive(Debug, Default)]
pub struct Head {
    /// Its id.
    pub id: String,
    /// Unix time.
    pub created_s: u64,
    /// Name of the model.
    pub model: String,
    /// Sampling temperature and `top_p`.
    pub sampling: (f64, f64),
    /// Whether it will be kept.
    pub store: bool,
    /// Fields of the request.
    pub echo: Echo,
}

/// Fields of a request as its response repeats them: JSON, each behind a comma.
#[derive(Debug, Default)]
pub struct Echo(Vec<u8>);

/// How a response stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status<'a> {
    /// It is being generated.
    InProgress,
    /// The model ended it, at this Unix time.
    Completed(u64),
    /// The limit of tokens ended it.
    Incomplete,
    /// Another request ended it.
    Cancelled,
    /// It broke off: code and message.
    Failed(&'a str, &'a str),
}

impl Status<'_> {
    fn name(self) -> &'static str {
        match self {
            Status::InProgress => "in_progress",
            Status::Completed(_) => "completed",
            Status::Incomplete => "incomplete",
            Status::Cancelled => "cancelled",
            Status::Failed(..) => "failed",
        }
    }

    /// The event that tells it.
    pub fn event(self) -> &'static str {
        match self {
            Status::InProgress => "response.in_progress",
            Status::Completed(_) => "response.completed",
            // There is no event for what was cancelled, and clients try a failed one again.
            Status::Incomplete | Status::Cancelled => "response.incomplete",
            Status::Failed(..) => "response.failed",
        }
    }
}

impl Echo {
    /// Of these fields; those whose absence must be said are null, or empty.
    pub fn new(mut fields: Map<String, Value>) -> Echo {
        let written = write(&fields);
        if written.len() <= ECHO_BYTES_MAX {
            return Echo(written);
        }
        for (name, bare) in [
            ("instructions", Value::Null),
            ("tools", json!([])),
            ("tool_choice", json!("auto")),
            ("text", json!({"format": {"type": "text"}})),
            ("reasoning", json!({"effort": null, "summary": null})),
            ("metadata", json!({})),
            ("user", Value::Null),
        ] {
            fields.insert(name.into(), bare);
        }
        Echo(write(&fields))
    }
}

fn write(fields: &Map<String, Value>) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(b',');
        put(&mut out, name);
        out.push(b':');
        put(&mut out, value);
    }
    out
}

impl Head {
    /// The response; `output` writes the list of items.
    pub fn write(
        &self,
        out: &mut Vec<u8>,
        status: Status<'_>,
        output: impl FnOnce(&mut Vec<u8>),
        usage: Option<Usage>,
    ) {
        let mut field = |name: &str, value: &Value| {
            out.extend_from_slice(name.as_bytes());
            put(out, value);
        };
        field("{\"id\":", &json!(self.id));
        field(",\"object\":", &json!("response"));
        field(",\"created_at\":", &json!(self.created_s));
        field(",\"status\":", &json!(status.name()));
        let completed_at = match status {
            Status::Completed(at) => json!(at),
            _ => Value::Null,
        };
        field(",\"completed_at\":", &completed_at);
        field(",\"background\":", &json!(false));
        let error = match status {
            Status::Failed(code, message) => json!({"code": code, "message": message}),
            _ => Value::Null,
        };
        field(",\"error\":", &error);
        let why = match status {
            Status::Incomplete => json!({"reason": "max_output_tokens"}),
            Status::Cancelled => json!({"reason": "cancelled"}),
            _ => Value::Null,
        };
        field(",\"incomplete_details\":", &why);
        field(",\"model\":", &json!(self.model));
        let (temperature, top_p) = self.sampling;
        field(",\"temperature\":", &json!(temperature));
        field(",\"top_p\":", &json!(top_p));
        field(",\"store\":", &json!(self.store));
        field(",\"truncation\":", &json!("disabled"));
        field(",\"service_tier\":", &json!("default"));
        out.extend_from_slice(&self.echo.0);
        out.extend_from_slice(b",\"output\":");
        output(out);
        out.extend_from_slice(b",\"usage\":");
        match usage {
            Some(usage) => write_usage(out, usage),
            None => out.extend_from_slice(b"null"),
        }
        out.push(b'}');
    }
}

impl Begun for Head {
    fn id(&self) -> &str {
        &self.id
    }

    fn json(&self, is_cancelled: bool) -> Vec<u8> {
        let status = if is_cancelled { Status::Cancelled } else { Status::InProgress };
        let mut out = Vec::new();
        self.write(&mut out, status, |out| out.extend_from_slice(b"[]"), None);
        out
    }
}

fn write_usage(out: &mut Vec<u8>, usage: Usage) {
    let json = json!({
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.completion,
    });
    put(out, &json);
}

/// Code and message by which clients know what to do.
pub fn failure(error: &ApiError) -> (&'static str, String) {
    let code = match (error.code, error.status.as_u16()) {
        (Some("context_length_exceeded"), _) => "context_length_exceeded",
        (_, 429) => "rate_limit_exceeded",
        (_, 400..=499) => "invalid_prompt",
        _ => "server_error",
    };
    let mut message = error.message.clone();
    if let Some(seconds) = error.retry_after_s {
        message += &format!("; try again in {seconds}s");
    }
    (code, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use minisgl_proto::{Finish, Reject};

    #[test]
    fn failures_have_codes_that_clients_act_on() {
        let of = |finish: Finish| failure(&ApiError::from_finish(&finish, 7).unwrap());
        let (code, message) = of(Finish::Rejected(Reject::QueueFull { limit: 1 }));
        assert_eq!(code, "rate_limit_exceeded");
        assert!(message.ends_with("try again in 7s"), "{message}");
        let (code, message) = of(Finish::Failed("a shard is gone".into()));
        assert_eq!(code, "server_error");
        assert!(!message.contains("try again"), "{message}");
        let error = ApiError::context_length("input", "too long".into());
        assert_eq!(failure(&error).0, "context_length_exceeded");
        assert_eq!(failure(&ApiError::invalid("no")).0, "invalid_prompt");
    }

    #[test]
    fn what_is_repeated_is_bounded() {
        let mut fields = Map::new();
        fields.insert("tools".into(), json!(["x".repeat(ECHO_BYTES_MAX)]));
        fields.insert("metadata".into(), json!({"a": "b"}));
        fields.insert("top_logprobs".into(), json!(0));
        let head = Head { echo: Echo::new(fields), ..Head::default() };
        let mut out = Vec::new();
        head.write(&mut out, Status::InProgress, |out| out.extend_from_slice(b"[]"), None);
        assert!(out.len() < 2000);
        let json: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!((&json["tools"], &json["top_logprobs"]), (&json!([]), &json!(0)));
    }
}
