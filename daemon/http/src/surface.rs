//! The way of every request that generates, whatever its surface.
//!
//! ```text
//!   body -> Surface::Body -> Intent -> model, prompts, sampling -> Choices -> Part -> Wire
//!   \____ the pool _______________/    \___ token ids: the budget's share is given back
//! ```
//!
//! Owns: the order of these steps. A new surface is a [`Surface`] and a [`Wire`]. Must never: know one of them.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, Request, header};
use axum::response::{IntoResponse, Response};

use crate::body::Share;
use crate::choices::Job;
use crate::error::ApiError;
use crate::fields::Route;
use crate::front::{Found, Front, unix_s};
use crate::guide::guide;
use crate::input::Prompt;
use crate::intent::{Intent, Prompts};
use crate::json::Fields;
use crate::keys::Owner;
use crate::prompt::Rendered;
use crate::room::Room;
use crate::sampling::{Endpoint, Wanted};
use crate::sse;
use crate::talk::Talk;
use crate::wire::{Answer, Prompted, Wire};

/// A set of fields that asks for a generation, and the form of its answer.
pub trait Surface: Sized + Send + 'static {
    /// Its fields.
    type Body: Fields;
    /// Its answer's form.
    type Wire: Wire;
    /// Its column in the table of fields.
    const ROUTE: Route;

    /// What a body wants, and what of it concerns the form of the answer alone. May take a while: it is called on the pool.
    ///
    /// # Errors
    /// 400: fields exclude each other or are out of range.
    fn intent(body: Self::Body, front: &Front) -> Result<(Intent, Self), ApiError>;

    /// The same, where it matters whose the request is.
    ///
    /// # Errors
    /// As for [`Surface::intent`].
    fn intent_of(
        body: Self::Body,
        front: &Front,
        _owner: &Owner,
    ) -> Result<(Intent, Self), ApiError> {
        Self::intent(body, front)
    }

    /// The client's own id of this request, where one is among the fields.
    fn request_id(&self) -> Option<&str> {
        None
    }

    /// The form of this answer.
    fn wire(self, front: &Arc<Front>, answer: Answer) -> Self::Wire;
}

/// Says that `max_tokens` gave way, and to what.
static X_MAX_TOKENS: HeaderName = HeaderName::from_static("x-max-tokens");

/// Handles a request.
///
/// # Errors
/// Whatever is wrong with it, the model, or the generation before its first text.
pub async fn serve<S: Surface>(
    State(front): State<Arc<Front>>,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let incoming = front.receive(request).await?;
    let (record, key) = (Arc::clone(&incoming.record), incoming.key.clone());
    let (reader, owner) = (Arc::clone(&front), incoming.owner.clone());
    let make = move |body| S::intent_of(body, &reader, &owner);
    let (read, mut share) = front.read::<S::Body, _>(incoming, S::ROUTE, make).await?;
    let (mut intent, surface) = read;
    let found = front.find(intent.model.as_deref(), &record).await?;
    let mut wanted = wanted(&mut intent, &front, &found)?;
    if !wanted.bad_words.is_empty() {
        wanted.avoid(found.text.encode(wanted.bad_texts(), "bad_words", false, None).await?)?;
    }
    let (is_batch, stream, telling) = (is_batch(&intent), intent.stream, intent.telling);
    let (logprobs, param, ids) = (intent.logprobs.is_some(), intent.param, intent.ids);
    let (prompts, repeated, rendered) = tokenize(intent, &front, &found, &mut share).await?;
    let talk = match rendered {
        None => None,
        Some(rendered) => {
            let (dialect, seed) = (found.text.dialect(), front.random.next());
            let talk = Talk::new(dialect, rendered.wants.clone(), rendered.end.clone(), seed);
            let pool = (&front.pool, share.bytes());
            guide(&mut wanted, &talk, &rendered, &found.text, pool).await?;
            Some(talk)
        }
    };
    // What is left are token ids and a grammar, which the backend bounds.
    drop(share);
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let clamped = wanted.clamped(longest, found.model.info().max_len);
    let per_prompt = wanted.n as usize;
    let answer = Answer {
        id: front.random.id(),
        request_id: record.id.clone(),
        created_s: unix_s(),
        model: found.name,
        text: Arc::clone(&found.text),
        logprobs,
        telling,
        choices: prompts.len() * per_prompt,
        per_prompt,
        is_batch,
        prompts: repeated,
    };
    let job = Job {
        model: found.model,
        text: found.text,
        prompts,
        wanted,
        at_start: talk.is_some(),
        talk,
        ids,
        param,
        request_id: surface.request_id().unwrap_or(&record.id).to_owned(),
        key,
    };
    let mut choices = front.begin(job, Arc::clone(&record)).await?;
    let mut wire = surface.wire(&front, answer);
    choices.halt_at(wire.halt());
    let mut response = if stream {
        sse::respond(choices, wire, record, front.settings.ping_interval).await?
    } else {
        let wholes = choices.gather(|delta| wire.hear(delta)).await?;
        let mut out = Vec::with_capacity(1024);
        wire.whole(&mut out, wholes, choices.total());
        ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], out)
            .into_response()
    };
    if let Some(max_tokens) = clamped {
        response.headers_mut().insert(&X_MAX_TOKENS, HeaderValue::from(max_tokens));
    }
    Ok(response)
}

fn is_batch(intent: &Intent) -> bool {
    match &intent.prompts {
        Prompts::Chat(_) => false,
        Prompts::Bare { input, .. } => input.is_batch(),
    }
}

fn wanted(intent: &mut Intent, front: &Front, found: &Found) -> Result<Wanted, ApiError> {
    let endpoint = Endpoint {
        max_tokens: intent.max_tokens,
        max_tokens_default: intent.max_tokens_default,
        logprobs: intent.logprobs,
        prompt_logprobs: intent.prompt_logprobs,
    };
    let vocab_size = found.model.info().vocab_size;
    let sampling = std::mem::take(&mut intent.sampling);
    let mut wanted =
        sampling.validate(endpoint, found.text.defaults(), vocab_size, &front.settings)?;
    let known = &found.model.info().eos_token_ids;
    // A model trained further often ends its turn with a token that its configuration does not name.
    if let Some(eos) = found.text.eos().filter(|eos| *eos < vocab_size && !known.contains(eos)) {
        wanted.end_with(eos);
    }
    Ok(wanted)
}

/// The token ids of all prompts, the prompts that the answer repeats, and what else is known of a conversation's.
async fn tokenize(
    intent: Intent,
    front: &Front,
    found: &Found,
    share: &mut Share,
) -> Result<(Vec<Vec<u32>>, Vec<Prompted>, Option<Rendered>), ApiError> {
    let Intent { prompts, param, echo, prompt_logprobs, .. } = intent;
    let info = found.model.info();
    let room = Some(Room::of(info));
    let (input, add_special) = match prompts {
        Prompts::Chat(dialogue) => {
            let rendered = dialogue.tokenize(&front.pool, &found.text, room, share).await;
            // Messages are what other surfaces' fields become.
            let mut rendered = rendered.map_err(|mut error| {
                if error.param.as_deref() == Some("messages") {
                    error.param = Some(param.to_owned());
                }
                error
            })?;
            let ids = std::mem::take(&mut rendered.ids);
            let repeated = prompt_logprobs.is_some().then(|| ids.clone());
            let repeated = repeated.map(|ids| Prompted { ids, text: String::new() });
            return Ok((vec![ids], repeated.into_iter().collect(), Some(rendered)));
        }
        Prompts::Bare { input, add_special } => (input, add_special),
    };
    let inputs = input.checked(param, info.vocab_size, front.settings.choices_max)?;
    let mut lists = Vec::with_capacity(inputs.len());
    let mut texts = Vec::new();
    for input in inputs {
        match input {
            Prompt::Text(text) => {
                texts.push((lists.len(), text));
                lists.push(Vec::new());
            }
            Prompt::Tokens(ids) => lists.push(ids),
        }
    }
    let mut own_texts = vec![None; if echo { lists.len() } else { 0 }];
    if !texts.is_empty() {
        let (places, texts): (Vec<usize>, Vec<String>) = texts.into_iter().unzip();
        if echo {
            for (&place, text) in places.iter().zip(&texts) {
                own_texts[place] = Some(text.clone());
            }
        }
        let encoded = found.text.encode(texts, param, add_special, room).await?;
        for (place, ids) in places.into_iter().zip(encoded) {
            lists[place] = ids;
        }
    }
    if !echo && prompt_logprobs.is_none() {
        return Ok((lists, Vec::new(), None));
    }
    let mut repeated: Vec<Prompted> =
        lists.iter().map(|ids| Prompted { ids: ids.clone(), text: String::new() }).collect();
    if echo {
        let unknown: Vec<usize> = (0..lists.len()).filter(|&at| own_texts[at].is_none()).collect();
        let ids = unknown.iter().map(|&at| lists[at].clone()).collect();
        let decoded =
            if unknown.is_empty() { Vec::new() } else { found.text.decode(ids, true).await? };
        for (at, text) in unknown.into_iter().zip(decoded) {
            own_texts[at] = Some(text);
        }
        for (prompted, text) in repeated.iter_mut().zip(own_texts) {
            prompted.text = text.unwrap_or_default();
        }
    }
    Ok((lists, repeated, None))
}
