//! The OpenAI error object, and the one error type every handler returns.
//!
//! Owns: status codes, `type`, `param` and `code`. Must never: carry a prompt or a generated text.

use std::fmt;

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use minisgl_proto::{Finish, Reject};
use serde_json::{Value, json};

use crate::backend::Unavailable;
use crate::room::Room;

/// What went wrong with one request, as the client is told.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status, when the answer has not begun yet.
    pub status: StatusCode,
    /// Names the thing and the remedy.
    pub message: String,
    /// The field at fault.
    pub param: Option<String>,
    /// Machine-readable reason.
    pub code: Option<&'static str>,
    /// Seconds after which it is worth trying again.
    pub retry_after_s: Option<u32>,
    /// What was too long, in numbers: Anthropic's clients look for them in words of their own.
    pub overflow: Option<Box<Overflow>>,
}

/// What does not fit into a context. Told in Anthropic's words, by which Claude Code knows what to do: it compacts its
/// conversation, or asks for less.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Overflow {
    /// The prompt alone.
    #[error("prompt is too long: {tokens} tokens > {most} maximum")]
    Prompt {
        /// Its tokens, or fewer, where they were not counted to the end.
        tokens: usize,
        /// Tokens that fit.
        most: usize,
    },
    /// Prompt and output together.
    #[error(
        "input length and `max_tokens` exceed context limit: {tokens} + {max_tokens} > {room}, decrease input length or \
         `max_tokens` and try again"
    )]
    Output {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens of the output that are asked for.
        max_tokens: u32,
        /// Tokens that both may have.
        room: usize,
    },
}

/// Tokens of a prompt that is too long, which need not have been counted to the end.
#[derive(Clone, Copy, Debug)]
pub enum Tokens {
    /// So many.
    Exactly(usize),
    /// So many or more.
    AtLeast(usize),
    /// More than so many.
    MoreThan(usize),
}

impl Tokens {
    /// There are no fewer.
    fn least(self) -> usize {
        match self {
            Tokens::Exactly(tokens) | Tokens::AtLeast(tokens) => tokens,
            Tokens::MoreThan(tokens) => tokens + 1,
        }
    }
}

impl fmt::Display for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Tokens::Exactly(tokens) => write!(f, "{tokens}"),
            Tokens::AtLeast(tokens) => write!(f, "at least {tokens}"),
            Tokens::MoreThan(tokens) => write!(f, "more than {tokens}"),
        }
    }
}

/// By which OpenAI's and Anthropic's clients know whether to try again, whatever the status.
static X_SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// The reason of an end at somebody else's word.
const CANCELLED: &str = "cancelled";

/// Bytes of a message, at most: what a client wrote may be in it.
const MESSAGE_BYTES_MAX: usize = 1024;
/// Bytes of the name of a field.
const PARAM_BYTES_MAX: usize = 200;

/// At most so many bytes of a text.
fn cut(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        let mut end = bytes_max - "...".len();
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str("...");
        text.shrink_to_fit();
    }
    text
}

impl ApiError {
    /// An error of this status, without `param` or `code`.
    pub fn new(status: StatusCode, message: impl Into<String>) -> ApiError {
        let message = cut(message.into(), MESSAGE_BYTES_MAX);
        ApiError { status, message, param: None, code: None, retry_after_s: None, overflow: None }
    }

    /// 400: the request itself is wrong.
    pub fn invalid(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, message)
    }

    /// 400: this field is wrong.
    pub fn field(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        let mut error = ApiError::invalid(message);
        error.param = Some(cut(param.into(), PARAM_BYTES_MAX));
        error.code = Some("invalid_value");
        error
    }

    /// 400: this field asks for something that is not built.
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> ApiError {
        let mut error = ApiError::field(param, message);
        error.code = Some("unsupported_parameter");
        error
    }

    /// 400: prompt and output do not fit into the context.
    pub fn context_length(param: &str, message: String) -> ApiError {
        let mut error = ApiError::field(param, message);
        error.code = Some("context_length_exceeded");
        error
    }

    /// 400: a prompt is longer than the context. Clients look for "prompt is too long", too.
    pub fn prompt_too_long(param: &str, tokens: Tokens, room: Room) -> ApiError {
        let text = format!(
            "{}, and the prompt is too long: it has {tokens} tokens, of which at least one must be left to generate",
            room.describe()
        );
        ApiError::context_length(param, text).too_long(tokens.least(), room.tokens as usize)
    }

    /// The same error of a prompt of `tokens`, which are more than the context takes.
    fn too_long(mut self, tokens: usize, room: usize) -> ApiError {
        // One must be left: a prompt that just fills the context is too long as well.
        let most = room.min(tokens.saturating_sub(1));
        self.overflow = Some(Box::new(Overflow::Prompt { tokens, most }));
        self
    }

    /// 400: a prompt of `tokens` leaves less than `max_tokens`, the value of the field `name`.
    pub fn no_room(name: &str, max_tokens: u32, tokens: usize, room: Room) -> ApiError {
        let left = (room.tokens as usize).saturating_sub(tokens);
        let text = format!(
            "{}; the prompt has {tokens} and {name} is {max_tokens}, together more than that; {name} can be at most {left} \
             here",
            room.describe()
        );
        let mut error = ApiError::context_length(name, text);
        let room = room.tokens as usize;
        error.overflow = Some(Box::new(Overflow::Output { tokens, max_tokens, room }));
        error
    }

    /// 500: this is on us.
    pub fn internal(message: impl Into<String>) -> ApiError {
        let mut error = ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message);
        error.code = Some("internal_error");
        error
    }

    /// 503: not now.
    pub fn unavailable(message: impl Into<String>) -> ApiError {
        let mut error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message);
        error.code = Some("unavailable");
        error
    }

    /// 409: another request ended this one. What was said is not an error of the model's. It is not to be tried again.
    pub fn cancelled() -> ApiError {
        ApiError::new(StatusCode::CONFLICT, "the response was cancelled by another request")
            .with_code(CANCELLED)
    }

    /// Whether it is [`ApiError::cancelled`].
    pub fn is_cancelled(&self) -> bool {
        self.code == Some(CANCELLED)
    }

    /// The same error with another machine-readable reason.
    pub fn with_code(mut self, code: &'static str) -> ApiError {
        self.code = Some(code);
        self
    }

    /// The same error, worth retrying after this many seconds.
    pub fn with_retry_after(mut self, seconds: u32) -> ApiError {
        self.retry_after_s = Some(seconds);
        self
    }

    /// What the backend's refusal means to a client.
    pub fn from_unavailable(refusal: &Unavailable, retry_after_s: u32) -> ApiError {
        let message = refusal.to_string();
        match refusal {
            Unavailable::NotFound { .. } => {
                let mut error =
                    ApiError::new(StatusCode::NOT_FOUND, message).with_code("model_not_found");
                error.param = Some("model".into());
                error
            }
            Unavailable::NotReady { .. } => ApiError::unavailable(message)
                .with_code("model_not_ready")
                .with_retry_after(retry_after_s),
            Unavailable::Busy { .. } => ApiError::busy(message, retry_after_s),
        }
    }

    /// What an end that is not `Stop` or `Length` means to a client; `None` for those two.
    pub fn from_finish(finish: &Finish, retry_after_s: u32) -> Option<ApiError> {
        Some(match finish {
            Finish::Stop | Finish::Length => return None,
            Finish::Aborted => ApiError::unavailable(
                "the request was aborted: somebody ended it, or the model is being stopped",
            )
            .with_code("aborted")
            .with_retry_after(retry_after_s),
            Finish::Failed(why) => {
                ApiError::internal(format!("the model failed: {why}")).with_code("model_failed")
            }
            Finish::Rejected(reject) => match reject {
                Reject::QueueFull { .. } => ApiError::busy(reject.to_string(), retry_after_s),
                Reject::Draining => ApiError::unavailable(reject.to_string())
                    .with_code("model_not_ready")
                    .with_retry_after(retry_after_s),
                Reject::TooLong { prompt, limit } => {
                    ApiError::context_length("prompt", reject.to_string())
                        .too_long(*prompt as usize, *limit as usize)
                }
                Reject::Grammar { field, reason } => {
                    let message = format!("{field}: {reason}");
                    ApiError::field(field, message)
                }
                Reject::Empty | Reject::BadToken { .. } => {
                    ApiError::field("prompt", reject.to_string())
                }
                Reject::NothingAllowed { field } | Reject::TooMany { field, .. } => {
                    ApiError::field(field, reject.to_string())
                }
            },
        })
    }

    fn busy(message: String, retry_after_s: u32) -> ApiError {
        ApiError::new(StatusCode::TOO_MANY_REQUESTS, message)
            .with_code("queue_full")
            .with_retry_after(retry_after_s)
    }

    /// OpenAI's `type`, which follows from the status.
    pub fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::SERVICE_UNAVAILABLE => "service_unavailable_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// The body: `{"error": {message, type, param, code}}`.
    pub fn to_json(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind(),
            "param": self.param,
            "code": self.code,
        }})
    }
}

/// Whose clients read an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// OpenAI's: `{"error": {message, type, param, code}}`.
    OpenAi,
    /// Anthropic's: `{"type": "error", "error": {type, message}}`.
    Anthropic,
    /// Ollama's: `{"error": message}`.
    Ollama,
}

impl Form {
    /// That of a path's clients.
    pub fn of(path: &str) -> Form {
        let is_below = |root: &str| {
            path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if is_below("/v1/messages") {
            Form::Anthropic
        } else if is_below("/api") {
            Form::Ollama
        } else {
            Form::OpenAi
        }
    }
}

impl ApiError {
    /// The body in this form.
    pub fn to_json_as(&self, form: Form) -> Value {
        match form {
            Form::OpenAi => self.to_json(),
            Form::Anthropic => json!({
                "type": "error",
                "error": {
                    "type": self.anthropic_kind(),
                    "message": match &self.overflow {
                        Some(overflow) => overflow.to_string(),
                        None => self.message.clone(),
                    },
                },
            }),
            Form::Ollama => json!({"error": self.message}),
        }
    }

    /// Anthropic's `type`.
    fn anthropic_kind(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            503 => "overloaded_error",
            500.. => "api_error",
            _ => "invalid_request_error",
        }
    }

    /// The answer in this form.
    pub fn respond(self, form: Form) -> Response {
        let mut response = (self.status, axum::Json(self.to_json_as(form))).into_response();
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.is_cancelled() {
            response.headers_mut().insert(&X_SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        // For the log line and the metrics, which see only the response.
        response.extensions_mut().insert(self);
        response
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.respond(Form::OpenAi)
    }
}
