//! `POST /generate`, in SGLang's native form.
//!
//! `text` or `input_ids`, one or a list, with `sampling_params`; the text of a stream is cumulative.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use axum::response::{IntoResponse, Response};
use minisgl_proto::Sampled;
use minisgl_proto::limits::TOP_LOGPROBS_MAX;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::body::{Refusal, never, parse, refuse};
use crate::choices::{Choices, Delta, Ended, Job};
use crate::completions::tokenize;
use crate::error::ApiError;
use crate::front::Front;
use crate::input::Input;
use crate::logprobs::finite;
use crate::sampling::{self, Endpoint, SamplingFields, whole};
use crate::sse;
use crate::tokenizer::TextModel;

#[derive(Deserialize)]
struct GenerateFields {
    model: Option<String>,
    text: Option<Input>,
    input_ids: Option<Input>,
    sampling_params: Option<Value>,
    stream: Option<bool>,
    return_logprob: Option<bool>,
    top_logprobs_num: Option<i64>,
    return_text_in_logprobs: Option<bool>,
    rid: Option<String>,
    /// SGLang has it here, the other endpoints among the sampling fields.
    priority: Option<i32>,
}

/// Fields that would change the output, were they built.
const REFUSED: &[Refusal] = &[
    Refusal {
        field: "logprob_start_len",
        harmless: |value| *value == -1,
        instead: "only -1 is: log-probabilities of the prompt are not computed",
    },
    Refusal { field: "image_data", harmless: never, instead: "models here take text only" },
    Refusal { field: "audio_data", harmless: never, instead: "models here take text only" },
    Refusal { field: "video_data", harmless: never, instead: "models here take text only" },
    Refusal { field: "session_params", harmless: never, instead: "send the whole prompt" },
];

/// Tokens generated when the client does not say: SGLang's number.
const MAX_TOKENS_DEFAULT: u32 = 128;

impl GenerateFields {
    /// The prompt and the field it is in.
    fn input(&mut self) -> Result<(Input, &'static str), ApiError> {
        match (self.text.take(), self.input_ids.take()) {
            (Some(Input::Tokens(_) | Input::TokenLists(_)), None) => {
                Err(ApiError::field("text", "text: token ids go into input_ids"))
            }
            (Some(text), None) => Ok((text, "text")),
            (None, Some(Input::Text(_) | Input::Texts(_))) => {
                Err(ApiError::field("input_ids", "input_ids: text goes into text"))
            }
            (None, Some(ids)) => Ok((ids, "input_ids")),
            (Some(_), Some(_)) => {
                Err(ApiError::field("input_ids", "text and input_ids exclude each other"))
            }
            (None, None) => Err(ApiError::field("text", "text or input_ids is needed")),
        }
    }

    /// The shared sampling fields and `max_new_tokens`, from `sampling_params`.
    fn sampling(&mut self) -> Result<(SamplingFields, Option<i64>), ApiError> {
        #[derive(Default, Deserialize)]
        struct Own {
            max_new_tokens: Option<i64>,
        }
        let params = match self.sampling_params.take() {
            None => return Ok((SamplingFields::default(), None)),
            Some(params @ Value::Object(_)) => params.to_string().into_bytes(),
            Some(_) => {
                let message = "sampling_params: expected an object, which counts for all prompts";
                return Err(ApiError::field("sampling_params", message));
            }
        };
        let inside = |mut error: ApiError| {
            error.param = error.param.map(|param| format!("sampling_params.{param}"));
            error
        };
        refuse(&params, sampling::REFUSED).map_err(inside)?;
        let own: Own = parse(&params).map_err(inside)?;
        Ok((parse(&params).map_err(inside)?, own.max_new_tokens))
    }
}

/// Handles a request.
pub async fn generate(
    State(front): State<Arc<Front>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let (bytes, record) = front.receive(request).await?;
    let mut fields: GenerateFields = parse(&bytes)?;
    for refused in [REFUSED, sampling::REFUSED] {
        refuse(&bytes, refused)?;
    }
    drop(bytes);
    let (sampling, max_tokens) = fields.sampling()?;
    let found = front.find(fields.model.take(), &record).await?;
    let vocab_size = found.model.info().vocab_size;
    let logprobs = match fields.return_logprob {
        Some(true) => Some(whole(
            "top_logprobs_num",
            fields.top_logprobs_num.unwrap_or(0),
            0,
            TOP_LOGPROBS_MAX.into(),
        )? as u32),
        _ => None,
    };
    let endpoint = Endpoint {
        max_tokens: max_tokens.map(|max| ("max_new_tokens", max)),
        max_tokens_default: Some(MAX_TOKENS_DEFAULT),
        logprobs,
    };
    let mut wanted =
        sampling.validate(endpoint, found.text.defaults(), vocab_size, &front.settings)?;
    wanted.priority = fields.priority.unwrap_or(wanted.priority);
    let (input, param) = fields.input()?;
    let is_batch = wanted.n > 1 || input.is_batch();
    let inputs = input.checked(param, vocab_size, front.settings.choices_max)?;
    let (prompts, _) = tokenize(&found, inputs, param, true, false).await?;
    let job = Job {
        model: found.model,
        text: Arc::clone(&found.text),
        prompts,
        wanted,
        at_start: false,
        param,
    };
    let choices = front.begin(job, Arc::clone(&record)).await?;
    let answer = Answer {
        id: fields.rid.take().unwrap_or_else(|| record.id.clone()),
        text: found.text,
        logprobs: logprobs.is_some(),
        token_texts: fields.return_text_in_logprobs.unwrap_or(false),
        is_batch,
        so_far: vec![String::new(); choices.len()],
        so_far_tokens: vec![Vec::new(); choices.len()],
    };
    if fields.stream.unwrap_or(false) {
        return Ok(sse::respond(choices, answer, record));
    }
    Ok(Json(answer.whole(choices).await?).into_response())
}

/// How an answer is written.
struct Answer {
    id: String,
    text: Arc<TextModel>,
    logprobs: bool,
    token_texts: bool,
    is_batch: bool,
    /// Text of each choice so far; only streams keep it.
    so_far: Vec<String>,
    so_far_tokens: Vec<Vec<Sampled>>,
}

impl Answer {
    /// One choice with everything it has so far.
    fn object(&self, whole: &Delta, choices: &Choices) -> Value {
        let usage = choices.usage(whole.choice);
        let id =
            if self.is_batch { format!("{}-{}", self.id, whole.choice) } else { self.id.clone() };
        let mut meta = json!({
            "id": id,
            "finish_reason": whole.ended.as_ref().map(finish_reason),
            "prompt_tokens": usage.prompt,
            "completion_tokens": usage.completion,
            "cached_tokens": usage.cached,
        });
        if self.logprobs {
            let triple = |token: u32, logprob: f32| {
                let text = self
                    .token_texts
                    .then(|| String::from_utf8_lossy(&self.text.token_bytes(token)).into_owned());
                json!([finite(logprob), token, text])
            };
            let own = |s: &Sampled| triple(s.token, s.logprob.unwrap_or(f32::NEG_INFINITY));
            let top = |s: &Sampled| s.top.iter().map(|t| triple(t.token, t.logprob)).collect();
            meta["output_token_logprobs"] = whole.tokens.iter().map(own).collect();
            meta["output_top_logprobs"] =
                whole.tokens.iter().map(top).collect::<Vec<Value>>().into();
        }
        json!({
            "text": whole.text,
            "output_ids": choices.token_ids(whole.choice),
            "meta_info": meta,
            "index": whole.choice,
        })
    }

    async fn whole(self, mut choices: Choices) -> Result<Value, ApiError> {
        let gathered = choices.gather().await?;
        let mut objects: Vec<Value> =
            gathered.iter().map(|whole| self.object(whole, &choices)).collect();
        Ok(match objects.pop() {
            Some(only) if !self.is_batch => only,
            last => {
                objects.extend(last);
                objects.into()
            }
        })
    }
}

impl sse::Format for Answer {
    fn open(&mut self, _: &Choices) -> Vec<Value> {
        Vec::new()
    }

    fn delta(&mut self, mut delta: Delta, choices: &Choices) -> Vec<Value> {
        let text = &mut self.so_far[delta.choice];
        text.push_str(&delta.text);
        delta.text.clone_from(text);
        if self.logprobs {
            let tokens = &mut self.so_far_tokens[delta.choice];
            tokens.append(&mut delta.tokens);
            delta.tokens.clone_from(tokens);
        }
        vec![self.object(&delta, choices)]
    }

    fn close(&mut self, _: &Choices) -> Vec<Value> {
        Vec::new()
    }
}

fn finish_reason(ended: &Ended) -> Value {
    match ended {
        Ended::StopToken(token) => json!({"type": "stop", "matched": token}),
        Ended::StopString(text) => json!({"type": "stop", "matched": text}),
        Ended::Length { max_tokens } => json!({"type": "length", "length": max_tokens}),
    }
}
