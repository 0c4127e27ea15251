//! `POST /tokenize` and `POST /detokenize`: the tokenizer itself, for clients that count or debug.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::body::{parse, refuse};
use crate::error::ApiError;
use crate::front::Front;
use crate::input::{Input, Prompt, token_ids};
use crate::prompt::{self, PromptFields};

#[derive(Deserialize)]
struct TokenizeFields {
    model: Option<String>,
    prompt: Option<Input>,
    add_special_tokens: Option<bool>,
    return_token_strs: Option<bool>,
}

/// Handles `/tokenize`: of a `prompt` (a string, or a list of strings for a list of results) or of
/// the prompt that `messages` make.
pub async fn tokenize(
    State(front): State<Arc<Front>>,
    request: Request<Body>,
) -> Result<Json<Value>, ApiError> {
    let (bytes, record) = front.receive(request).await?;
    let fields: TokenizeFields = parse(&bytes)?;
    let prompt: PromptFields = parse(&bytes)?;
    refuse(&bytes, prompt::REFUSED)?;
    drop(bytes);
    let found = front.find(fields.model, &record).await?;
    let (vocab_size, max_len) = (found.model.info().vocab_size, found.model.info().max_len);
    let is_batch = fields.prompt.as_ref().is_some_and(Input::is_batch);
    let lists = match fields.prompt {
        Some(_) if prompt.has_messages() => {
            return Err(ApiError::field("prompt", "prompt and messages exclude each other"));
        }
        None => vec![prompt.tokenize(&found).await?],
        Some(input) => {
            let inputs = input.checked("prompt", vocab_size, front.settings.choices_max)?;
            let add_special = fields.add_special_tokens.unwrap_or(true);
            let texts = inputs.into_iter().map(|input| match input {
                Prompt::Text(own) => Ok(own),
                Prompt::Tokens(_) => {
                    Err(ApiError::field("prompt", "prompt: these are token ids already"))
                }
            });
            let texts = texts.collect::<Result<Vec<_>, _>>()?;
            found.text.encode(texts, "prompt", add_special, None).await?
        }
    };
    let counts: Vec<usize> = lists.iter().map(Vec::len).collect();
    let spelled = fields.return_token_strs.unwrap_or(false).then(|| {
        let spell = |&token: &u32| found.text.token(token).unwrap_or_default();
        lists.iter().map(|list| list.iter().map(spell).collect()).collect::<Vec<Vec<_>>>()
    });
    if is_batch {
        return Ok(Json(json!({
            "tokens": lists, "count": counts, "max_model_len": max_len, "token_strs": spelled,
        })));
    }
    Ok(Json(json!({
        "tokens": lists.first(),
        "count": counts.first(),
        "max_model_len": max_len,
        "token_strs": spelled.as_ref().and_then(|spelled| spelled.first()),
    })))
}

#[derive(Deserialize)]
struct DetokenizeFields {
    model: Option<String>,
    tokens: Option<Vec<i64>>,
    skip_special_tokens: Option<bool>,
}

/// Handles `/detokenize`. The text is there under vLLM's name, `prompt`, and SGLang's, `text`.
pub async fn detokenize(
    State(front): State<Arc<Front>>,
    request: Request<Body>,
) -> Result<Json<Value>, ApiError> {
    let (bytes, record) = front.receive(request).await?;
    let fields: DetokenizeFields = parse(&bytes)?;
    drop(bytes);
    let found = front.find(fields.model, &record).await?;
    found.text.need_tokenizer("tokens")?;
    let Some(ids) = fields.tokens else {
        return Err(ApiError::field("tokens", "tokens is missing: a list of token ids"));
    };
    let tokens = token_ids("tokens", &ids, found.model.info().vocab_size)?;
    // vLLM keeps special tokens here, so that nothing is hidden.
    let skip_special = fields.skip_special_tokens.unwrap_or(false);
    let text = found.text.decode(vec![tokens], skip_special).await?.concat();
    Ok(Json(json!({"prompt": text, "text": text})))
}
