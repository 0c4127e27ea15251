//! A model's text side, as the handlers see it: text is made here, from a table; tokens are made by the model's text
//! process, over [`TextService`].
//!
//! Owns: the tables of the models that are loaded, and what a failure over there means to a client. Must never: run a
//! tokenizer or a template.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::StatusCode;
use minisgl_dialect::{Dialect, by_name};
pub use minisgl_proto::text::{Conversation, GenerationDefaults};
use minisgl_proto::text::{JOB_TOKENS_MAX, TextAnswer, TextFault, TextInfo, TextJob, Vocabulary};
use tokio::sync::OnceCell;

use crate::backend::TextService;
use crate::detokenize::{Detokenizer, Show, Table};
use crate::error::{ApiError, Tokens};
use crate::room::Room;

/// Seconds after which it is worth trying again when too much waits to be tokenized.
const RETRY_AFTER_S: u32 = 1;

/// The text side of one model.
pub struct TextModel {
    service: Arc<dyn TextService>,
    info: Arc<TextInfo>,
    table: Option<Table>,
    dialect: &'static Dialect,
    /// The dialect's markers that are tokens.
    markers: HashMap<&'static str, u32>,
}

impl TextModel {
    /// Makes the table; takes some milliseconds.
    fn new(service: Arc<dyn TextService>) -> TextModel {
        let info = service.info();
        // A text process of this version knows no other names.
        let dialect = by_name(&info.dialect).unwrap_or_else(|_| minisgl_dialect::plain());
        let keeps = dialect.keeps();
        let table = info.vocabulary.as_ref().map(|known| Table::new(known, &keeps));
        let tokens = info.vocabulary.iter().flat_map(|known| &known.tokens).zip(0..);
        let markers = tokens.filter_map(|(token, id)| {
            let spelling = &*token.as_ref()?.spelling;
            Some((*keeps.iter().find(|marker| **marker == spelling)?, id))
        });
        let markers = markers.collect();
        TextModel { service, info, table, dialect, markers }
    }

    /// What its text process says of it.
    pub fn info(&self) -> &TextInfo {
        &self.info
    }

    /// How it writes tool calls and thoughts.
    pub fn dialect(&self) -> &'static Dialect {
        self.dialect
    }

    /// The token of just this marker of its dialect, if there is one.
    pub fn marker(&self, marker: &str) -> Option<u32> {
        self.markers.get(marker).copied()
    }

    /// Whether a token is a marker of its dialect.
    pub fn is_marker(&self, token: u32) -> bool {
        self.table.as_ref().is_some_and(|table| table.is_marker(token))
    }

    /// Whether there is a tokenizer; without one, tokens have no text.
    pub fn has_tokenizer(&self) -> bool {
        self.info.vocabulary.is_some()
    }

    /// For what cannot be done without a tokenizer, and the field that asks for it.
    ///
    /// # Errors
    /// 400: there is none.
    pub fn need_tokenizer(&self, param: &str) -> Result<(), ApiError> {
        if self.has_tokenizer() { Ok(()) } else { Err(no_tokenizer(param)) }
    }

    /// Its recommended sampling.
    pub fn defaults(&self) -> &GenerationDefaults {
        &self.info.defaults
    }

    /// The tokenizer's own end-of-sequence token, which a model may be trained to end its turn with though its
    /// configuration names another.
    pub fn eos(&self) -> Option<u32> {
        self.info.vocabulary.as_ref()?.eos
    }

    /// Token ids of each text of the field `param`. `add_special` is for bare prompts; a chat template has
    /// already written them. Texts for which there is no `room` are refused, most of them before they are
    /// tokenized.
    ///
    /// # Errors
    /// 400: no tokenizer, or too long. 429: too much waits. 500: the tokenizer failed.
    pub async fn encode(
        &self,
        texts: Vec<String>,
        param: &'static str,
        add_special: bool,
        room: Option<Room>,
    ) -> Result<Vec<Vec<u32>>, ApiError> {
        self.need_tokenizer(param)?;
        let per_token = self.info.vocabulary.as_ref().and_then(|v| v.token_bytes_max);
        if let (Some(bytes), Some(room)) = (per_token, room) {
            let least = |text: &String| text.len() / bytes.max(1) as usize;
            if let Some(least) = texts.iter().map(least).find(|least| *least > room.tokens as usize)
            {
                return Err(ApiError::prompt_too_long(param, Tokens::AtLeast(least), room));
            }
        }
        let tokens_max = room.map_or(JOB_TOKENS_MAX, |room| room.tokens);
        let job = TextJob::Encode { texts, add_special, tokens_max };
        match self.run(job, param, room).await? {
            TextAnswer::Tokens(lists) => Ok(lists),
            TextAnswer::Prompt { .. } | TextAnswer::Texts(_) => Err(wrong_answer()),
        }
    }

    /// Renders a conversation and tokenizes what comes of it. Also tells the end of its text.
    ///
    /// # Errors
    /// As for `encode`; 400: no chat template, or one that refuses.
    pub async fn encode_chat(
        &self,
        conversation: Conversation,
        room: Option<Room>,
    ) -> Result<(Vec<u32>, String), ApiError> {
        self.need_tokenizer("messages")?;
        if !self.info.has_template {
            return Err(no_template());
        }
        let json = serde_json::to_string(&conversation)
            .map_err(|why| ApiError::internal(format!("a conversation has no JSON form: {why}")))?;
        drop(conversation);
        let tokens_max = room.map_or(JOB_TOKENS_MAX, |room| room.tokens);
        let job = TextJob::EncodeChat { conversation: json, tokens_max };
        match self.run(job, "messages", room).await? {
            TextAnswer::Prompt { ids, end } => Ok((ids, end)),
            TextAnswer::Tokens(_) | TextAnswer::Texts(_) => Err(wrong_answer()),
        }
    }

    /// Texts of some lists of token ids.
    ///
    /// # Errors
    /// 429: too much waits. 500: the tokenizer failed.
    pub async fn decode(
        &self,
        lists: Vec<Vec<u32>>,
        skip_special: bool,
    ) -> Result<Vec<String>, ApiError> {
        if !self.has_tokenizer() {
            return Ok(lists.iter().map(|_| String::new()).collect());
        }
        match self.run(TextJob::Decode { lists, skip_special }, "tokens", None).await? {
            TextAnswer::Texts(texts) => Ok(texts),
            TextAnswer::Tokens(_) | TextAnswer::Prompt { .. } => Err(wrong_answer()),
        }
    }

    async fn run(
        &self,
        job: TextJob,
        param: &'static str,
        room: Option<Room>,
    ) -> Result<TextAnswer, ApiError> {
        self.service.run(job).await.map_err(|fault| refusal(&fault, param, room))
    }

    /// A detokenizer for one generation; see [`Detokenizer::new`].
    pub fn detokenizer(&self, show: Show, at_start: bool) -> Detokenizer {
        static NOTHING: std::sync::LazyLock<Table> =
            std::sync::LazyLock::new(|| Table::new(&Vocabulary::default(), &[]));
        Detokenizer::new(self.table.as_ref().unwrap_or(&NOTHING), show, at_start)
    }

    /// Appends the text that a token completes.
    pub fn push(&self, detokenizer: &mut Detokenizer, token: u32, out: &mut String) {
        if let (Some(table), Some(vocabulary)) = (&self.table, &self.info.vocabulary) {
            detokenizer.push(table, vocabulary, token, out);
        }
    }

    /// Appends text that was still incomplete.
    pub fn finish(&self, detokenizer: &mut Detokenizer, out: &mut String) {
        if let Some(vocabulary) = &self.info.vocabulary {
            detokenizer.finish(vocabulary, out);
        }
    }

    /// The bytes a token stands for.
    pub fn token_bytes(&self, token: u32) -> Cow<'_, [u8]> {
        self.table.as_ref().map(|table| table.bytes(token)).unwrap_or_default().into()
    }

    /// The vocabulary's own spelling of a token.
    pub fn token(&self, token: u32) -> Option<&str> {
        let tokens = &self.info.vocabulary.as_ref()?.tokens;
        Some(&tokens.get(token as usize)?.as_ref()?.spelling)
    }
}

fn no_tokenizer(param: &str) -> ApiError {
    ApiError::field(
        param,
        format!(
            "{param} needs a tokenizer, and the model's folder has no tokenizer.json; send token ids, as prompt of \
             /v1/completions or input_ids of /generate"
        ),
    )
}

fn no_template() -> ApiError {
    let message = "the model has no chat template, so it is not a chat model; use /v1/completions";
    ApiError::field("messages", message)
}

fn wrong_answer() -> ApiError {
    ApiError::internal("the model's text process answered another question")
}

/// What a failure of the text process means to the client whose field `param` it was.
fn refusal(fault: &TextFault, param: &str, room: Option<Room>) -> ApiError {
    match fault {
        TextFault::NoTokenizer => no_tokenizer(param),
        TextFault::NoTemplate => no_template(),
        TextFault::TooLong { tokens_max } => match room {
            Some(room) => {
                ApiError::prompt_too_long(param, Tokens::MoreThan(*tokens_max as usize), room)
            }
            None => {
                ApiError::context_length(param, format!("{param}: {fault}, which is the limit"))
            }
        },
        TextFault::Unbroken { .. } | TextFault::Killed(_) => {
            ApiError::field(param, format!("{param}: {fault}"))
        }
        TextFault::Refused(_) | TextFault::TemplateFailed(_) => {
            ApiError::field(param, fault.to_string()).with_code("chat_template_error")
        }
        TextFault::TokenizerFailed(_) | TextFault::Abandoned => {
            ApiError::internal(fault.to_string())
        }
        TextFault::Busy(_) => ApiError::new(StatusCode::TOO_MANY_REQUESTS, fault.to_string())
            .with_code("queue_full")
            .with_retry_after(RETRY_AFTER_S),
        TextFault::Gone(_) => {
            ApiError::unavailable(fault.to_string()).with_retry_after(RETRY_AFTER_S)
        }
    }
}

/// The text sides of the models that are loaded, each by the number of its load.
#[derive(Default)]
pub struct TextModels {
    loaded: Mutex<HashMap<u64, Arc<OnceCell<Arc<TextModel>>>>>,
}

impl TextModels {
    /// The text side of the load `generation` of a model; the first caller makes its table. `is_current`
    /// tells which loads are still served; the others are dropped.
    ///
    /// # Errors
    /// 500: the table cannot be made.
    pub async fn get(
        &self,
        generation: u64,
        service: Arc<dyn TextService>,
        is_current: impl Fn(u64) -> bool,
    ) -> Result<Arc<TextModel>, ApiError> {
        let cell = {
            let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
            if !loaded.contains_key(&generation) {
                loaded.retain(|other, _| is_current(*other));
            }
            loaded.entry(generation).or_default().clone()
        };
        let make = || async {
            let made = tokio::task::spawn_blocking(move || Arc::new(TextModel::new(service))).await;
            made.map_err(|_| ApiError::internal("making the table of tokens panicked"))
        };
        cell.get_or_try_init(make).await.cloned()
    }

    /// Forgets the models that are gone.
    pub fn prune(&self, is_current: impl Fn(u64) -> bool) {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.retain(|generation, _| is_current(*generation));
    }
}

#[cfg(test)]
impl TextModel {
    /// Of a folder without a tokenizer.
    pub fn without_tokenizer() -> Arc<TextModel> {
        struct Nothing;
        impl TextService for Nothing {
            fn info(&self) -> Arc<TextInfo> {
                Arc::default()
            }
            fn run(
                &self,
                _: TextJob,
            ) -> futures_util::future::BoxFuture<'static, Result<TextAnswer, TextFault>>
            {
                Box::pin(async { Err(TextFault::NoTokenizer) })
            }
        }
        Arc::new(TextModel::new(Arc::new(Nothing)))
    }
}
