//! `POST /tokenize` and `POST /detokenize`: the tokenizer itself, for clients that count or debug.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::fields::Route;
use crate::front::Front;
use crate::input::{Ids, Input, Prompt};
use crate::json::fields;
use crate::prompt::PromptFields;

fields! {
    /// The fields of `/tokenize`.
    pub struct TokenizeFields {
        model: String,
        prompt: Input,
        add_special_tokens: bool,
        return_token_strs: bool,
    }
    with {
        messages: PromptFields,
    }
}

/// Handles `/tokenize`: of a `prompt` (a string, or a list of strings for a list of results) or of
/// the prompt that `messages` make. It counts texts of any length, whatever the model's context.
pub async fn tokenize(
    State(front): State<Arc<Front>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let incoming = front.receive(request).await?;
    let record = Arc::clone(&incoming.record);
    let (fields, mut share) =
        front.read::<TokenizeFields, _>(incoming, Route::Tokenize, Ok).await?;
    let found = front.find(fields.model.as_deref(), &record).await?;
    let (vocab_size, max_len) = (found.model.info().vocab_size, found.model.info().max_len);
    let is_batch = fields.prompt.as_ref().is_some_and(Input::is_batch);
    let lists = match fields.prompt {
        Some(_) if fields.messages.has_messages() => {
            return Err(ApiError::field("prompt", "prompt and messages exclude each other"));
        }
        None => {
            let dialogue = fields.messages.dialogue()?;
            vec![dialogue.tokenize(&front.pool, &found.text, None, &mut share).await?.ids]
        }
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
        let list = |list: &Vec<u32>| list.iter().map(spell).collect();
        OneOrList::of(lists.iter().map(list).collect(), is_batch)
    });
    let answer = Tokenized {
        count: OneOrList::of(counts, is_batch),
        max_model_len: max_len,
        token_strs: spelled,
        tokens: OneOrList::of(lists, is_batch),
    };
    Ok(Json(answer).into_response())
}

/// The answer of `/tokenize`. A text may have millions of tokens, so there is no tree of JSON values of it.
#[derive(Serialize)]
struct Tokenized<'a> {
    tokens: OneOrList<Vec<u32>>,
    count: OneOrList<usize>,
    max_model_len: u32,
    token_strs: Option<OneOrList<Vec<&'a str>>>,
}

/// A list for a list of prompts.
#[derive(Serialize)]
#[serde(untagged)]
enum OneOrList<T> {
    One(Option<T>),
    List(Vec<T>),
}

impl<T> OneOrList<T> {
    fn of(mut list: Vec<T>, is_batch: bool) -> OneOrList<T> {
        if is_batch { OneOrList::List(list) } else { OneOrList::One(list.pop()) }
    }
}

fields! {
    /// The fields of `/detokenize`.
    pub struct DetokenizeFields {
        model: String,
        tokens: Ids,
        skip_special_tokens: bool,
    }
}

/// Handles `/detokenize`. The text is there under vLLM's name, `prompt`, and SGLang's, `text`.
pub async fn detokenize(
    State(front): State<Arc<Front>>,
    request: Request<Body>,
) -> Result<Json<Value>, ApiError> {
    let incoming = front.receive(request).await?;
    let record = Arc::clone(&incoming.record);
    let (fields, _share) =
        front.read::<DetokenizeFields, _>(incoming, Route::Detokenize, Ok).await?;
    let found = front.find(fields.model.as_deref(), &record).await?;
    found.text.need_tokenizer("tokens")?;
    let Some(ids) = fields.tokens else {
        return Err(ApiError::field("tokens", "tokens is missing: a list of token ids"));
    };
    let tokens = ids.checked("tokens", found.model.info().vocab_size)?;
    // vLLM keeps special tokens here, so that nothing is hidden.
    let skip_special = fields.skip_special_tokens.unwrap_or(false);
    let text = found.text.decode(vec![tokens], skip_special).await?.concat();
    Ok(Json(json!({"prompt": text, "text": text})))
}
