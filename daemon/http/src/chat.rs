//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use axum::response::{IntoResponse, Response};
use minisgl_proto::limits::TOP_LOGPROBS_MAX;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::body::{Refusal, parse, refuse};
use crate::choices::{Choices, Delta, Job};
use crate::error::ApiError;
use crate::front::{Front, unix_s};
use crate::prompt::{self, PromptFields};
use crate::sampling::{self, Endpoint, SamplingFields, whole};
use crate::sse;
use crate::tokenizer::TextModel;
use crate::usage::{self, StreamOptions, Telling};
use crate::{body, logprobs};

#[derive(Deserialize)]
struct ChatFields {
    model: Option<String>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
    logprobs: Option<bool>,
    top_logprobs: Option<i64>,
}

const REFUSED: &[Refusal] = &[
    Refusal {
        field: "modalities",
        harmless: |value| *value == json!(["text"]),
        instead: "models here write text only",
    },
    Refusal { field: "audio", harmless: body::never, instead: "models here write text only" },
];

impl ChatFields {
    fn endpoint(&self) -> Result<Endpoint, ApiError> {
        let max_tokens = self
            .max_completion_tokens
            .map(|max| ("max_completion_tokens", max))
            .or(self.max_tokens.map(|max| ("max_tokens", max)));
        let top = whole("top_logprobs", self.top_logprobs.unwrap_or(0), 0, TOP_LOGPROBS_MAX.into())?
            as u32;
        let wanted = self.logprobs.unwrap_or(false);
        if top > 0 && !wanted {
            return Err(ApiError::field("top_logprobs", "top_logprobs needs logprobs to be true"));
        }
        Ok(Endpoint { max_tokens, max_tokens_default: None, logprobs: wanted.then_some(top) })
    }
}

/// Handles a request.
pub async fn completions(
    State(front): State<Arc<Front>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let (bytes, record) = front.receive(request).await?;
    let fields: ChatFields = parse(&bytes)?;
    let prompt: PromptFields = parse(&bytes)?;
    let sampling: SamplingFields = parse(&bytes)?;
    for refused in [REFUSED, prompt::REFUSED, sampling::REFUSED] {
        refuse(&bytes, refused)?;
    }
    drop(bytes);
    let found = front.find(fields.model.clone(), &record).await?;
    let vocab_size = found.model.info().vocab_size;
    let wanted = sampling.validate(
        fields.endpoint()?,
        found.text.defaults(),
        vocab_size,
        &front.settings,
    )?;
    let logprobs = wanted.sampling.logprobs.is_some();
    let tokens = prompt.tokenize(&found).await?;
    let job = Job {
        model: found.model,
        text: Arc::clone(&found.text),
        prompts: vec![tokens],
        wanted,
        at_start: true,
        param: "messages",
    };
    let choices = front.begin(job, Arc::clone(&record)).await?;
    let answer = Answer {
        id: format!("chatcmpl-{}", record.id),
        created_s: unix_s(),
        model: found.name,
        text: found.text,
        logprobs,
        telling: Telling::of(fields.stream_options),
    };
    if fields.stream.unwrap_or(false) {
        return Ok(sse::respond(choices, answer, record));
    }
    Ok(Json(answer.whole(choices).await?).into_response())
}

/// How a chat completion is written.
struct Answer {
    id: String,
    created_s: u64,
    model: String,
    text: Arc<TextModel>,
    logprobs: bool,
    telling: Telling,
}

impl Answer {
    fn logprobs(&self, delta: &Delta) -> Value {
        if self.logprobs { logprobs::chat(&delta.tokens, &self.text) } else { Value::Null }
    }

    async fn whole(self, mut choices: Choices) -> Result<Value, ApiError> {
        let gathered = choices.gather().await?;
        let list: Vec<Value> = gathered
            .iter()
            .map(|whole| {
                json!({
                    "index": whole.choice,
                    "message": {"role": "assistant", "content": whole.text, "refusal": null},
                    "logprobs": self.logprobs(whole),
                    "finish_reason": whole.ended.as_ref().map(|ended| ended.reason()),
                })
            })
            .collect();
        Ok(json!({
            "id": self.id,
            "object": "chat.completion",
            "created": self.created_s,
            "model": self.model,
            "choices": list,
            "usage": usage::to_json(choices.total()),
        }))
    }

    fn chunk(&self, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created_s,
            "model": self.model,
            "choices": choices,
        })
    }

    fn choice(
        &self,
        index: usize,
        delta: Value,
        logprobs: Value,
        finish: Value,
        all: &Choices,
    ) -> Value {
        let mut chunk = self.chunk(json!([{
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish,
        }]));
        self.telling.write(&mut chunk, all.total());
        chunk
    }
}

impl sse::Format for Answer {
    fn open(&mut self, choices: &Choices) -> Vec<Value> {
        let role = json!({"role": "assistant", "content": ""});
        (0..choices.len())
            .map(|index| self.choice(index, role.clone(), Value::Null, Value::Null, choices))
            .collect()
    }

    fn delta(&mut self, delta: Delta, choices: &Choices) -> Vec<Value> {
        let mut chunks = Vec::with_capacity(2);
        if !delta.text.is_empty() || !delta.tokens.is_empty() {
            let content = json!({"content": delta.text});
            let logprobs = self.logprobs(&delta);
            chunks.push(self.choice(delta.choice, content, logprobs, Value::Null, choices));
        }
        if let Some(ended) = delta.ended {
            let reason = ended.reason().into();
            chunks.push(self.choice(delta.choice, json!({}), Value::Null, reason, choices));
        }
        chunks
    }

    fn close(&mut self, choices: &Choices) -> Vec<Value> {
        if self.telling == Telling::Silent {
            return Vec::new();
        }
        let mut chunk = self.chunk(json!([]));
        chunk["usage"] = usage::to_json(choices.total());
        vec![chunk]
    }
}
