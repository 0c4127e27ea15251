//! What a model needs to turn text into tokens and back, read once for each loaded model.
//!
//! Owns: tokenizer, chat template and sampling defaults of a model folder, and their cache. Must never:
//! render or tokenize on the threads that serve connections; that happens on the [`Pool`].

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Deserialize;
use tokenizers::Tokenizer;
use tokenizers::models::ModelWrapper;
use tokio::sync::OnceCell;

use crate::detokenize::{self, Detokenizer, Scheme};
use crate::error::ApiError;
use crate::pool::Pool;
use crate::template::{ChatTemplate, Conversation, TemplateError};

/// Sampling values that a model's `generation_config.json` recommends.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct GenerationDefaults {
    /// See [`minisgl_proto::SamplingParams`], as all of these.
    pub temperature: Option<f64>,
    /// `top_k`.
    pub top_k: Option<i64>,
    /// `top_p`.
    pub top_p: Option<f64>,
    /// `min_p`.
    pub min_p: Option<f64>,
    /// `repetition_penalty`.
    pub repetition_penalty: Option<f64>,
}

/// The text side of one model.
pub struct TextModel {
    files: Arc<Files>,
    pool: Arc<Pool>,
}

/// What was read from a model folder.
struct Files {
    /// `None` for a folder without `tokenizer.json`, which a model of dummy weights may be.
    vocabulary: Option<Vocabulary>,
    /// Its chat template, if it is a chat model.
    template: Option<ChatTemplate>,
    /// Its recommended sampling.
    defaults: GenerationDefaults,
}

struct Vocabulary {
    tokenizer: Tokenizer,
    scheme: Scheme,
    /// Bytes that one token stands for at most; `None` when a token can stand for any number.
    token_bytes_max: Option<usize>,
    /// The spelling of each token id.
    spellings: Vec<Option<Box<str>>>,
}

/// Why a model folder has no text side.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Unreadable or not a tokenizer.
    #[error("{path} is not a usable tokenizer: {why}")]
    Tokenizer {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The chat template is broken.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// Unreadable or of the wrong form.
    #[error("{path} cannot be used: {why}")]
    Defaults {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

impl Vocabulary {
    fn load(path: PathBuf) -> Result<Vocabulary, LoadError> {
        let mut tokenizer = Tokenizer::from_file(&path)
            .map_err(|why| LoadError::Tokenizer { path: path.clone(), why: why.to_string() })?;
        // Some folders carry the truncation and padding of their training.
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|why| LoadError::Tokenizer { path, why: why.to_string() })?;
        let scheme = Scheme::of(&tokenizer);
        let token_bytes_max = match tokenizer.get_model() {
            ModelWrapper::BPE(_) if scheme == Scheme::ByteLevel => {
                tokenizer.get_vocab(true).into_keys().map(|token| token.len()).max()
            }
            _ => None,
        };
        let ids = tokenizer.get_vocab(true).into_values().max().map_or(0, |last| last + 1);
        let spellings = (0..ids).map(|id| tokenizer.id_to_token(id).map(Into::into)).collect();
        Ok(Vocabulary { tokenizer, scheme, token_bytes_max, spellings })
    }
}

impl Files {
    /// Reads `tokenizer.json`, the chat template and `generation_config.json` of a folder, as far as
    /// they are there. Slow.
    ///
    /// # Errors
    /// A file is broken.
    fn load(dir: &Path) -> Result<Files, LoadError> {
        let path = dir.join("tokenizer.json");
        Ok(Files {
            vocabulary: if path.exists() { Some(Vocabulary::load(path)?) } else { None },
            template: ChatTemplate::load(dir)?,
            defaults: load_defaults(&dir.join("generation_config.json"))?,
        })
    }

    fn vocabulary(&self, param: &str) -> Result<&Vocabulary, ApiError> {
        self.vocabulary.as_ref().ok_or_else(|| {
            ApiError::field(
                param,
                format!(
                    "{param} needs a tokenizer, and the model's folder has no tokenizer.json; send \
                     token ids, as prompt of /v1/completions or input_ids of /generate"
                ),
            )
        })
    }

    fn encode(
        &self,
        text: &str,
        param: &str,
        add_special: bool,
        room: Option<u32>,
    ) -> Result<Vec<u32>, ApiError> {
        let vocabulary = self.vocabulary(param)?;
        if let (Some(bytes), Some(room)) = (vocabulary.token_bytes_max, room)
            && text.len() / bytes.max(1) > room as usize
        {
            let least = text.len() / bytes.max(1);
            return Err(ApiError::prompt_too_long(param, &format!("at least {least}"), room));
        }
        let encoding = vocabulary
            .tokenizer
            .encode_fast(text, add_special)
            .map_err(|why| ApiError::internal(format!("the tokenizer failed: {why}")))?;
        let ids = encoding.get_ids();
        match room {
            Some(room) if ids.len() > room as usize => {
                Err(ApiError::prompt_too_long(param, &ids.len().to_string(), room))
            }
            _ => Ok(ids.to_vec()),
        }
    }

    fn encode_chat(
        &self,
        conversation: &Conversation,
        room: Option<u32>,
    ) -> Result<Vec<u32>, ApiError> {
        self.vocabulary("messages")?;
        let Some(template) = &self.template else {
            let message = "the model has no chat template, so it is not a chat model; use \
                           /v1/completions";
            return Err(ApiError::field("messages", message));
        };
        let prompt = template.render(conversation).map_err(|why| match why {
            TemplateError::Refused(_) | TemplateError::Failed(_) => {
                ApiError::field("messages", why.to_string()).with_code("chat_template_error")
            }
            other => ApiError::internal(other.to_string()),
        })?;
        self.encode(&prompt, "messages", false, room)
    }

    fn detokenizer(&self, skip_special: bool, at_start: bool) -> Detokenizer {
        let scheme = self.vocabulary.as_ref().map_or(&Scheme::Window, |v| &v.scheme);
        Detokenizer::new(scheme, skip_special, at_start)
    }

    fn push(&self, detokenizer: &mut Detokenizer, token: u32, out: &mut String) {
        if let Some(v) = &self.vocabulary {
            out.push_str(&detokenizer.push(&v.tokenizer, &v.scheme, token));
        }
    }

    fn finish(&self, detokenizer: &mut Detokenizer, out: &mut String) {
        if let Some(v) = &self.vocabulary {
            out.push_str(&detokenizer.finish(&v.tokenizer));
        }
    }

    fn decode(&self, tokens: &[u32], skip_special: bool) -> String {
        let mut detokenizer = self.detokenizer(skip_special, true);
        let mut text = String::new();
        for &token in tokens {
            self.push(&mut detokenizer, token, &mut text);
        }
        self.finish(&mut detokenizer, &mut text);
        text
    }
}

impl TextModel {
    fn new(files: Arc<Files>, pool: Arc<Pool>) -> TextModel {
        TextModel { files, pool }
    }

    /// Whether there is a tokenizer; without one, tokens have no text.
    pub fn has_tokenizer(&self) -> bool {
        self.files.vocabulary.is_some()
    }

    /// For what cannot be done without a tokenizer, and the field that asks for it.
    ///
    /// # Errors
    /// 400: there is none.
    pub fn need_tokenizer(&self, param: &str) -> Result<(), ApiError> {
        self.files.vocabulary(param).map(drop)
    }

    /// Its recommended sampling.
    pub fn defaults(&self) -> &GenerationDefaults {
        &self.files.defaults
    }

    /// Token ids of each text of the field `param`. `add_special` is for bare prompts; a chat template has
    /// already written them. Texts of more than `room` tokens are refused, most of them before they are
    /// tokenized.
    ///
    /// # Errors
    /// 400: no tokenizer, or too long. 429: too much waits. 500: the tokenizer failed.
    pub async fn encode(
        &self,
        texts: Vec<String>,
        param: &'static str,
        add_special: bool,
        room: Option<u32>,
    ) -> Result<Vec<Vec<u32>>, ApiError> {
        self.need_tokenizer(param)?;
        let files = Arc::clone(&self.files);
        let bytes = texts.iter().map(String::len).sum();
        let work = move || {
            let encode = |text: &String| files.encode(text, param, add_special, room);
            texts.iter().map(encode).collect()
        };
        self.pool.run(bytes, work).await?
    }

    /// Renders a conversation and tokenizes what comes of it.
    ///
    /// # Errors
    /// As for `encode`; 400: no chat template, or one that refuses.
    pub async fn encode_chat(
        &self,
        conversation: Conversation,
        room: Option<u32>,
    ) -> Result<Vec<u32>, ApiError> {
        self.need_tokenizer("messages")?;
        let files = Arc::clone(&self.files);
        let bytes = conversation.bytes();
        self.pool.run(bytes, move || files.encode_chat(&conversation, room)).await?
    }

    /// Texts of some lists of token ids.
    ///
    /// # Errors
    /// 429: too much waits.
    pub async fn decode(
        &self,
        lists: Vec<Vec<u32>>,
        skip_special: bool,
    ) -> Result<Vec<String>, ApiError> {
        let files = Arc::clone(&self.files);
        let bytes = lists.iter().map(|list| list.len() * size_of::<u32>()).sum();
        let work = move || lists.iter().map(|list| files.decode(list, skip_special)).collect();
        self.pool.run(bytes, work).await
    }

    /// A detokenizer for one generation; see [`Detokenizer::new`].
    pub fn detokenizer(&self, skip_special: bool, at_start: bool) -> Detokenizer {
        self.files.detokenizer(skip_special, at_start)
    }

    /// Appends the text that a token completes.
    pub fn push(&self, detokenizer: &mut Detokenizer, token: u32, out: &mut String) {
        self.files.push(detokenizer, token, out);
    }

    /// Appends text that was still incomplete.
    pub fn finish(&self, detokenizer: &mut Detokenizer, out: &mut String) {
        self.files.finish(detokenizer, out);
    }

    /// The bytes a token stands for.
    pub fn token_bytes(&self, token: u32) -> Cow<'_, [u8]> {
        let bytes = |v: &Vocabulary| detokenize::token_bytes(&v.tokenizer, &v.scheme, token);
        self.files.vocabulary.as_ref().map(bytes).unwrap_or_default().into()
    }

    /// The vocabulary's own spelling of a token.
    pub fn token(&self, token: u32) -> Option<&str> {
        self.files.vocabulary.as_ref()?.spellings.get(token as usize)?.as_deref()
    }
}

fn load_defaults(path: &Path) -> Result<GenerationDefaults, LoadError> {
    let failed = |why: String| LoadError::Defaults { path: path.to_path_buf(), why };
    match std::fs::read(path) {
        Ok(json) => serde_json::from_slice(&json).map_err(|why| failed(why.to_string())),
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => Ok(GenerationDefaults::default()),
        Err(why) => Err(failed(why.to_string())),
    }
}

/// One load of a model, by name, folder and generation: the same folder loaded again may have other
/// files.
pub type LoadKey = (String, PathBuf, u64);

/// The text sides of the models that are loaded, and the pool that works with them.
pub struct TextModels {
    loaded: Mutex<HashMap<LoadKey, Arc<OnceCell<Arc<TextModel>>>>>,
    /// The folder inspected last and what was read there, until the model's first request takes it:
    /// reading a large vocabulary takes a second.
    inspected: Mutex<Option<(PathBuf, Arc<Files>)>>,
    pool: Arc<Pool>,
}

impl TextModels {
    /// With a pool of this many threads; 0 means one a core.
    pub fn new(threads: usize) -> TextModels {
        TextModels {
            loaded: Mutex::new(HashMap::new()),
            inspected: Mutex::new(None),
            pool: Arc::new(Pool::new(threads)),
        }
    }

    /// Whether the text side of a model folder can be read, before its model is loaded. A folder
    /// without a tokenizer passes: its model takes token ids. Slow, on the caller's thread.
    ///
    /// # Errors
    /// Which file is broken, and how.
    pub fn inspect(&self, dir: &Path) -> Result<(), String> {
        let files = Files::load(dir).map_err(|why| why.to_string())?;
        *self.inspected() = Some((dir.to_path_buf(), Arc::new(files)));
        Ok(())
    }

    fn inspected(&self) -> MutexGuard<'_, Option<(PathBuf, Arc<Files>)>> {
        self.inspected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_inspected(&self, dir: &Path) -> Option<Arc<Files>> {
        self.inspected().take_if(|(inspected, _)| inspected == dir).map(|(_, files)| files)
    }

    /// The text side of a model, loaded by whoever asks first. `is_current` tells which loads are
    /// still served; the others are dropped.
    ///
    /// # Errors
    /// 500: it cannot be loaded; the next request tries again.
    pub async fn get(
        &self,
        key: LoadKey,
        is_current: impl Fn(&LoadKey) -> bool,
    ) -> Result<Arc<TextModel>, ApiError> {
        let (name, dir) = (key.0.clone(), key.1.clone());
        let cell = {
            let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
            if !loaded.contains_key(&key) {
                loaded.retain(|other, _| is_current(other));
            }
            loaded.entry(key).or_default().clone()
        };
        let load = || async {
            if let Some(files) = self.take_inspected(&dir) {
                return Ok(Arc::new(TextModel::new(files, Arc::clone(&self.pool))));
            }
            let started = std::time::Instant::now();
            let loaded = self.pool.run(0, move || Files::load(&dir)).await?;
            let files = loaded.map_err(|why| ApiError::internal(why.to_string()))?;
            let seconds = started.elapsed().as_secs_f64();
            tracing::info!(model = name, seconds, "loaded a tokenizer");
            Ok(Arc::new(TextModel::new(Arc::new(files), Arc::clone(&self.pool))))
        };
        cell.get_or_try_init(load).await.cloned()
    }

    /// Forgets the models that are gone; with `none_listed`, also what was inspected for one that
    /// never came.
    pub fn prune(&self, none_listed: bool, is_current: impl Fn(&LoadKey) -> bool) {
        if none_listed {
            *self.inspected() = None;
        }
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.retain(|key, _| is_current(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn beside_the_crate(path: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
    }

    /// Ids and texts that the Python package computed (tests/fixtures/encodings).
    fn check(fixture: &str, model: &str) {
        let told = std::env::var_os("MINISGL_MODELS_DIR");
        let models = told.clone().map_or_else(|| beside_the_crate("target/models"), PathBuf::from);
        let dir = models.join(model);
        if !dir.is_dir() {
            assert!(told.is_none(), "{} is missing", dir.display());
            eprintln!("skipped: {} is missing; `cargo xtask model` fetches it", dir.display());
            return;
        }
        let text = Files::load(&dir).unwrap();
        let path = beside_the_crate("tests/fixtures/encodings").join(fixture);
        let fixture: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let ids = |value: &Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap() };
        for case in fixture["encode"].as_array().unwrap() {
            let own = case["text"].as_str().unwrap();
            assert_eq!(
                text.encode(own, "prompt", false, Some(1 << 20)).unwrap(),
                ids(&case["ids"]),
                "{own:?}"
            );
            assert_eq!(
                text.encode(own, "prompt", true, None).unwrap(),
                ids(&case["ids_special"]),
                "{own:?}"
            );
        }
        for case in fixture["decode"].as_array().unwrap() {
            let mut detokenizer = text.detokenizer(false, true);
            let mut so_far = String::new();
            for (token, expected) in
                ids(&case["ids"]).into_iter().zip(case["texts"].as_array().unwrap())
            {
                text.push(&mut detokenizer, token, &mut so_far);
                let expected = expected.as_str().unwrap();
                assert!(expected.starts_with(&so_far), "{}: {so_far:?} {expected:?}", case["name"]);
                let held = &expected[so_far.len()..];
                assert!(held.chars().all(|c| c == char::REPLACEMENT_CHARACTER), "{held:?}");
            }
            let skipped = text.decode(&ids(&case["ids"]), true);
            assert_eq!(skipped, case["skipped"].as_str().unwrap(), "{}", case["name"]);
        }
    }

    #[tokio::test]
    async fn what_was_inspected_serves_the_first_request() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tokenizer.json");
        std::fs::write(&file, crate::tiny_tokenizer::byte_level().to_string()).unwrap();
        let key = |generation| ("m".to_string(), dir.path().to_path_buf(), generation);
        let texts = TextModels::new(1);
        let inspect_then_break = || {
            std::fs::write(&file, crate::tiny_tokenizer::byte_level().to_string()).unwrap();
            texts.inspect(dir.path()).unwrap();
            std::fs::write(&file, "broken").unwrap();
        };
        inspect_then_break();
        assert!(texts.get(key(1), |_| true).await.unwrap().has_tokenizer());
        assert!(texts.inspect(dir.path()).is_err());
        // It was taken: another load reads the folder.
        assert!(texts.get(key(2), |_| true).await.is_err());
        inspect_then_break();
        texts.prune(true, |_| false);
        assert!(texts.get(key(3), |_| true).await.is_err());
    }

    #[test]
    fn smollm2() {
        check("smollm2.json", "SmolLM2-135M-Instruct");
    }

    #[test]
    fn qwen3() {
        check("qwen3.json", "tokenizers/qwen3");
    }

    #[test]
    fn llama3_1() {
        check("llama3_1.json", "tokenizers/llama3_1");
    }
}
