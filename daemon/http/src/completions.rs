//! `POST /v1/completions`: text, token ids, or batches of either.

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
use crate::front::{Found, Front, unix_s};
use crate::input::{Input, Prompt};
use crate::sampling::{self, Endpoint, SamplingFields, whole};
use crate::sse;
use crate::tokenizer::TextModel;
use crate::usage::{self, StreamOptions, Telling};
use crate::{body, logprobs};

#[derive(Deserialize)]
struct CompletionFields {
    model: Option<String>,
    prompt: Option<Input>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    max_tokens: Option<i64>,
    logprobs: Option<i64>,
    echo: Option<bool>,
    add_special_tokens: Option<bool>,
}

const REFUSED: &[Refusal] = &[Refusal {
    field: "suffix",
    harmless: body::never,
    instead: "write the model's own fill-in-the-middle tokens into the prompt",
}];

/// Tokens generated when the client does not say: OpenAI's number for this endpoint.
const MAX_TOKENS_DEFAULT: u32 = 16;

/// Handles a request.
pub async fn completions(
    State(front): State<Arc<Front>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let (bytes, record) = front.receive(request).await?;
    let fields: CompletionFields = parse(&bytes)?;
    let sampling: SamplingFields = parse(&bytes)?;
    for refused in [REFUSED, sampling::REFUSED] {
        refuse(&bytes, refused)?;
    }
    drop(bytes);
    let found = front.find(fields.model, &record).await?;
    let echo = fields.echo.unwrap_or(false);
    let logprobs = match fields.logprobs {
        Some(_) if echo => {
            let message = "logprobs of the prompt are not computed; leave out echo or logprobs";
            return Err(ApiError::unsupported("logprobs", message));
        }
        Some(top) => Some(whole("logprobs", top, 0, TOP_LOGPROBS_MAX.into())? as u32),
        None => None,
    };
    let endpoint = Endpoint {
        max_tokens: fields.max_tokens.map(|max| ("max_tokens", max)),
        max_tokens_default: Some(MAX_TOKENS_DEFAULT),
        logprobs,
    };
    let vocab_size = found.model.info().vocab_size;
    let wanted = sampling.validate(endpoint, found.text.defaults(), vocab_size, &front.settings)?;
    let Some(input) = fields.prompt else {
        return Err(ApiError::field("prompt", "prompt is missing"));
    };
    let inputs = input.checked("prompt", vocab_size, front.settings.choices_max)?;
    let add_special = fields.add_special_tokens.unwrap_or(true);
    let (prompts, echoes) = tokenize(&found, inputs, "prompt", add_special, echo).await?;
    let per_prompt = wanted.n as usize;
    let job = Job {
        model: found.model,
        text: Arc::clone(&found.text),
        prompts,
        wanted,
        at_start: false,
        param: "prompt",
    };
    let choices = front.begin(job, Arc::clone(&record)).await?;
    let echoes = echoes.into_iter().flat_map(|echo| std::iter::repeat_n(echo, per_prompt));
    let answer = Answer {
        id: format!("cmpl-{}", record.id),
        created_s: unix_s(),
        model: found.name,
        text: found.text,
        logprobs: logprobs.is_some(),
        telling: Telling::of(fields.stream_options),
        offsets: vec![0; choices.len()],
        echoes: echoes.collect(),
    };
    if fields.stream.unwrap_or(false) {
        return Ok(sse::respond(choices, answer, record));
    }
    Ok(Json(answer.whole(choices).await?).into_response())
}

/// Tokenizes every prompt, of the field `param`, on the pool; with `echo`, their texts too.
pub async fn tokenize(
    found: &Found,
    inputs: Vec<Prompt>,
    param: &'static str,
    add_special: bool,
    echo: bool,
) -> Result<(Vec<Vec<u32>>, Vec<String>), ApiError> {
    let room = found.model.info().max_len;
    let (mut prompts, mut echoes) = (Vec::new(), Vec::new());
    for input in inputs {
        let (tokens, own_text) = match input {
            Prompt::Text(own) => {
                let kept = echo.then(|| own.clone());
                let mut lists =
                    found.text.encode(vec![own], param, add_special, Some(room)).await?;
                (lists.pop().unwrap_or_default(), kept)
            }
            Prompt::Tokens(tokens) => (tokens, None),
        };
        if echo {
            let decoded = match own_text {
                Some(own) => own,
                None => found.text.decode(vec![tokens.clone()], true).await?.concat(),
            };
            echoes.push(decoded);
        }
        prompts.push(tokens);
    }
    Ok((prompts, echoes))
}

/// How a completion is written.
struct Answer {
    id: String,
    created_s: u64,
    model: String,
    text: Arc<TextModel>,
    logprobs: bool,
    telling: Telling,
    /// Characters of each choice whose log-probabilities are written.
    offsets: Vec<usize>,
    /// The prompt of each choice, if it is to be echoed.
    echoes: Vec<String>,
}

impl Answer {
    fn choice(&mut self, delta: Delta) -> Value {
        let logprobs = if self.logprobs {
            logprobs::completion(&delta.tokens, &self.text, &mut self.offsets[delta.choice])
        } else {
            Value::Null
        };
        json!({
            "index": delta.choice,
            "text": delta.text,
            "logprobs": logprobs,
            "finish_reason": delta.ended.map(|ended| ended.reason()),
        })
    }

    fn object(&self, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": "text_completion",
            "created": self.created_s,
            "model": self.model,
            "choices": choices,
        })
    }

    async fn whole(mut self, mut choices: Choices) -> Result<Value, ApiError> {
        let mut list = Vec::with_capacity(choices.len());
        for mut delta in choices.gather().await? {
            if let Some(echo) = self.echoes.get(delta.choice) {
                delta.text.insert_str(0, echo);
            }
            list.push(self.choice(delta));
        }
        let mut object = self.object(list.into());
        object["usage"] = usage::to_json(choices.total());
        Ok(object)
    }
}

impl sse::Format for Answer {
    fn open(&mut self, choices: &Choices) -> Vec<Value> {
        let echoes = std::mem::take(&mut self.echoes).into_iter().enumerate();
        let echo = |(choice, text)| Delta { choice, text, tokens: Vec::new(), ended: None };
        echoes.map(echo).flat_map(|delta| self.delta(delta, choices)).collect()
    }

    fn delta(&mut self, delta: Delta, choices: &Choices) -> Vec<Value> {
        let choice = self.choice(delta);
        let mut chunk = self.object(json!([choice]));
        self.telling.write(&mut chunk, choices.total());
        vec![chunk]
    }

    fn close(&mut self, choices: &Choices) -> Vec<Value> {
        if self.telling == Telling::Silent {
            return Vec::new();
        }
        let mut chunk = self.object(json!([]));
        chunk["usage"] = usage::to_json(choices.total());
        vec![chunk]
    }
}
