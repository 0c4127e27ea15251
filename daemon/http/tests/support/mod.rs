//! A scripted model behind the real router: the tokens of each request are decided by the test.
//!
//! The tokenizer has one token a byte, so every character outside ASCII is split over tokens, and
//! three special tokens. Its ids are the bytes, then `<s>`, `<|im_start|>` and `<|im_end|>`.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod anthropic;
pub mod events;
mod text;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use futures_util::future::BoxFuture;
use http_body_util::BodyExt;
use minisgl_http::backend::{
    Backend, Generate, Generation, Model, ModelEntry, TextService, Unavailable,
};
use minisgl_http::{Front, Keys, Settings, keyed_router, router};
use minisgl_proto::{Finish, ModelInfo, RequestId, Sampled, StepStats, TokenEvent, TokenLogprob};
use serde_json::{Value, json};
use tokio::sync::{Notify, Semaphore, mpsc};
use tower::ServiceExt;

#[allow(unused_imports, reason = "each test file uses a part of it")]
pub use minisgl_text::tiny::{BOS, IM_END, IM_START};

/// What never happens is told after that long; how long what happens may take is nobody's promise.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub const VOCAB: u32 = 259;
pub const MAX_LEN: u32 = 512;

pub const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}{% if tools %}[{{ tools | tojson }}]{% endif %}{% if messages[0].role == 'bad' %}{{ raise_exception('no bad roles') }}{% endif %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// What the scripted model does next.
#[derive(Clone, Debug)]
pub enum Step {
    /// One token.
    Token(u32),
    /// The last token.
    Last(u32, Finish),
    /// The end, without a token.
    End(Finish),
    /// Nothing for so long.
    Pause(Duration),
    /// Nothing until the test says so.
    Until(Arc<Notify>),
    /// Nothing until the request is aborted.
    Hang,
    /// The channel closes although nothing has ended.
    Cut,
}

/// A text as one token a byte, then the end-of-sequence token.
pub fn say(text: &str) -> Vec<Step> {
    let mut steps: Vec<_> = text.bytes().map(|byte| Step::Token(byte.into())).collect();
    steps.push(Step::Last(IM_END, Finish::Stop));
    steps
}

type Script = Box<dyn Fn(&Generate) -> Result<Vec<Step>, Unavailable> + Send + Sync>;

pub struct Scripted {
    info: ModelInfo,
    script: Script,
    /// Requests as they were submitted.
    pub submitted: Mutex<Vec<Generate>>,
    /// Generations whose guard lives.
    pub alive: Arc<AtomicUsize>,
    /// Events sent so far.
    pub sent: Arc<AtomicUsize>,
    /// What its worker last said.
    pub stats: Mutex<Option<StepStats>>,
    /// Places for jobs of its text side.
    pub text_gate: Arc<Semaphore>,
    /// Jobs that came to the gate and are not through.
    pub text_waiting: Arc<AtomicUsize>,
}

struct Guard(Arc<AtomicUsize>, tokio::task::AbortHandle);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
        self.1.abort();
    }
}

/// The scripted model, as it is loaded now.
struct Loaded {
    name: String,
    generation: u64,
    model: Arc<Scripted>,
}

impl Model for Loaded {
    fn name(&self) -> &str {
        &self.name
    }

    fn generation(&self) -> u64 {
        self.generation
    }

    fn info(&self) -> &ModelInfo {
        &self.model.info
    }

    fn stats(&self) -> Option<StepStats> {
        *self.model.stats.lock().unwrap()
    }

    fn text(&self) -> Arc<dyn TextService> {
        let model = &self.model;
        text::read(&model.info.dir, &model.text_gate, &model.text_waiting)
    }

    fn submit(&self, request: Generate) -> Result<Generation, Unavailable> {
        let model = &self.model;
        let steps = (model.script)(&request)?;
        let id = {
            let mut submitted = model.submitted.lock().unwrap();
            submitted.push(request.clone());
            RequestId(submitted.len() as u64)
        };
        let (sender, events) = mpsc::channel(64);
        let task = tokio::spawn(play(id, request, steps, sender, Arc::clone(&model.sent)));
        model.alive.fetch_add(1, Ordering::SeqCst);
        let guard = Box::new(Guard(Arc::clone(&model.alive), task.abort_handle()));
        Ok(Generation { id, events, guard })
    }
}

/// Token `t` has log-probability `-t / 100`; the most likely ones are `t`, `t + 1`, ...
fn sampled(token: u32, top: Option<u32>) -> Sampled {
    let logprob = |token: u32| -(token as f32) / 100.0;
    let tops = (0..top.unwrap_or(0)).map(|i| token + i);
    Sampled {
        token,
        logprob: top.map(|_| logprob(token)),
        top: tops.map(|token| TokenLogprob { token, logprob: logprob(token) }).collect(),
    }
}

async fn play(
    id: RequestId,
    request: Generate,
    steps: Vec<Step>,
    sender: mpsc::Sender<TokenEvent>,
    sent: Arc<AtomicUsize>,
) {
    let top = request.sampling.logprobs;
    if request.stop.max_tokens == 0 && request.sampling.prompt_logprobs.is_none() {
        let finish = Some(Finish::Length);
        let event = TokenEvent {
            id,
            sampled: None,
            prompt_logprobs: Vec::new(),
            cached_tokens: None,
            queue_s: None,
            finish,
        };
        let _ = sender.send(event).await;
        return;
    }
    if let Some(top) = request.sampling.prompt_logprobs {
        // As the engine does, in two chunks; position 0 has none.
        let from = request.sampling.prompt_logprobs_from.max(1) as usize;
        let scored = request.prompt.iter().skip(from).map(|&token| sampled(token, Some(top)));
        let scored: Vec<Sampled> = scored.collect();
        let ends = request.stop.max_tokens == 0;
        let (one, two) = scored.split_at(scored.len() / 2);
        for (at, chunk) in [one, two].into_iter().enumerate() {
            // Other choices are quicker.
            tokio::time::sleep(Duration::from_millis(20)).await;
            let last = at == 1 && ends;
            let event = TokenEvent {
                id,
                sampled: None,
                prompt_logprobs: chunk.to_vec(),
                cached_tokens: last.then_some(0),
                queue_s: last.then_some(0.001),
                finish: last.then_some(Finish::Length),
            };
            if sender.send(event).await.is_err() {
                return;
            }
        }
        if ends {
            return;
        }
    }
    let mut first = true;
    for step in steps {
        let (token, finish) = match step {
            Step::Token(token) => (Some(token), None),
            Step::Last(token, finish) => (Some(token), Some(finish)),
            Step::End(finish) => (None, Some(finish)),
            Step::Pause(time) => {
                tokio::time::sleep(time).await;
                continue;
            }
            Step::Until(said) => {
                said.notified().await;
                continue;
            }
            Step::Hang => std::future::pending().await,
            Step::Cut => return,
        };
        let is_first = token.is_some() && std::mem::take(&mut first);
        let event = TokenEvent {
            id,
            sampled: token.map(|token| sampled(token, top)),
            prompt_logprobs: Vec::new(),
            cached_tokens: is_first.then_some(3),
            queue_s: is_first.then_some(0.001),
            finish,
        };
        if sender.send(event).await.is_err() {
            return;
        }
        sent.fetch_add(1, Ordering::SeqCst);
    }
}

pub struct OneModel {
    pub model: Arc<Scripted>,
    /// What it is loaded as.
    pub name: Mutex<String>,
    pub health: Mutex<(bool, String)>,
    pub not_ready: Mutex<Option<String>>,
    pub generation: AtomicU64,
    /// What was asked to be ended: by which key, and which id.
    pub aborts: Mutex<Vec<(Option<String>, Option<String>)>>,
    /// Whether it is not there any more.
    pub gone: AtomicBool,
}

impl Backend for OneModel {
    fn models(&self) -> Arc<[ModelEntry]> {
        if self.gone.load(Ordering::SeqCst) {
            return Arc::new([]);
        }
        Arc::new([ModelEntry {
            name: self.name.lock().unwrap().clone(),
            source: "/models/tiny".into(),
            created_s: 1_700_000_000,
            generation: self.generation.load(Ordering::SeqCst),
            ready: self.not_ready.lock().unwrap().is_none(),
            max_len: Some(MAX_LEN),
        }])
    }

    fn model(&self, name: Option<&str>) -> Result<Arc<dyn Model>, Unavailable> {
        let loaded = self.name.lock().unwrap().clone();
        let name = name.unwrap_or(&loaded);
        if name != loaded {
            let hint = format!("loaded is \"{loaded}\"");
            return Err(Unavailable::NotFound { name: name.into(), hint });
        }
        if let Some(reason) = self.not_ready.lock().unwrap().clone() {
            return Err(Unavailable::NotReady { name: name.into(), reason });
        }
        Ok(Arc::new(Loaded {
            generation: self.generation.load(Ordering::SeqCst),
            model: Arc::clone(&self.model),
            name: loaded,
        }))
    }

    fn health(&self) -> (bool, String) {
        self.health.lock().unwrap().clone()
    }

    fn flush(&self, name: &str) -> BoxFuture<'static, Result<u64, String>> {
        let name = name.to_owned();
        Box::pin(async move { if name == "org/tiny" { Ok(7) } else { Err(format!("no {name}")) } })
    }

    fn abort(&self, key: Option<&str>, request_id: Option<&str>) -> usize {
        let own = |text: Option<&str>| text.map(str::to_owned);
        self.aborts.lock().unwrap().push((own(key), own(request_id)));
        1
    }
}

/// The router with a scripted model, and what the test can see of it.
pub struct House {
    pub router: Router,
    pub backend: Arc<OneModel>,
    pub model: Arc<Scripted>,
    pub folder: tempfile::TempDir,
    pub metrics: prometheus::Registry,
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|why| panic!("{why}: {}", self.body))
    }

    /// The `data:` lines of a stream, without the final `[DONE]`, and whether it was there.
    pub fn events(&self) -> (Vec<Value>, bool) {
        let mut done = false;
        let mut events = Vec::new();
        for line in self.body.split("\n\n").filter(|line| !line.is_empty()) {
            let data = line.strip_prefix("data: ").unwrap_or_else(|| panic!("{line:?}"));
            assert!(!done, "nothing follows [DONE]");
            match data {
                "[DONE]" => done = true,
                data => events.push(serde_json::from_str(data).unwrap()),
            }
        }
        (events, done)
    }

    /// Status, `param` and `code` of an error object, whose other fields are checked.
    #[track_caller]
    pub fn error(&self) -> (u16, Value, Value) {
        let error = &self.json()["error"];
        assert!(error["message"].as_str().is_some_and(|text| text.len() > 5), "{}", self.body);
        assert!(error["type"].is_string(), "{}", self.body);
        (self.status.as_u16(), error["param"].clone(), error["code"].clone())
    }
}

impl House {
    pub fn new(
        script: impl Fn(&Generate) -> Result<Vec<Step>, Unavailable> + Send + Sync + 'static,
    ) -> House {
        House::with(script, Settings::default(), json!({}))
    }

    /// Every request is answered with this text.
    pub fn saying(text: &'static str) -> House {
        House::new(move |_| Ok(say(text)))
    }

    /// Every request goes through these steps.
    pub fn playing(steps: Vec<Step>) -> House {
        House::new(move |_| Ok(steps.clone()))
    }

    pub fn with(
        script: impl Fn(&Generate) -> Result<Vec<Step>, Unavailable> + Send + Sync + 'static,
        settings: Settings,
        generation_config: Value,
    ) -> House {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, value: Value| {
            std::fs::write(folder.path().join(name), value.to_string()).unwrap();
        };
        write("tokenizer.json", minisgl_text::tiny::byte_level());
        write("generation_config.json", generation_config);
        write(
            "tokenizer_config.json",
            json!({"bos_token": "<s>", "eos_token": {"content": "<|im_end|>"}, "chat_template": TEMPLATE}),
        );
        let model = Arc::new(Scripted {
            info: ModelInfo {
                name: "org/tiny".into(),
                dir: folder.path().to_path_buf(),
                architecture: "LlamaForCausalLM".into(),
                device: "cpu".into(),
                dtype: "f32".into(),
                parameters: 1,
                weight_bytes: 1,
                kv_dtype: "f32".into(),
                kv_bytes: 1,
                kv_tokens: 4096,
                page_size: 16,
                kv_groups: 1,
                vocab_size: VOCAB,
                max_len: MAX_LEN,
                context_len: MAX_LEN,
                max_running: 8,
                max_waiting: 8,
                chunk_tokens: 512,
                eos_token_ids: vec![IM_END],
                tp: 1,
                gpus: Vec::new(),
                read_bytes: 1 << 20,
                read_s: 0.05,
                load_s: 0.1,
            },
            script: Box::new(script),
            submitted: Mutex::default(),
            alive: Arc::default(),
            sent: Arc::default(),
            stats: Mutex::new(None),
            text_gate: Arc::new(Semaphore::new(8)),
            text_waiting: Arc::default(),
        });
        let backend = Arc::new(OneModel {
            model: Arc::clone(&model),
            name: Mutex::new(model.info.name.clone()),
            health: Mutex::new((true, "1 model ready".into())),
            not_ready: Mutex::new(None),
            generation: AtomicU64::new(1),
            aborts: Mutex::default(),
            gone: AtomicBool::new(false),
        });
        let metrics = prometheus::Registry::new();
        let front = Front::new(Arc::clone(&backend) as _, settings, &metrics).unwrap();
        House { router: router(front), backend, model, folder, metrics }
    }

    pub async fn send(&self, request: Request<Body>) -> Answer {
        send(&self.router, request).await
    }

    /// The same models behind keys.
    pub fn keyed(&self, keys: Keys) -> Router {
        let (backend, registry) = (Arc::clone(&self.backend), prometheus::Registry::new());
        let front = Front::new(backend as _, Settings::default(), &registry).unwrap();
        keyed_router(front, keys)
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.post_bytes(path, body.to_string().into_bytes()).await
    }

    pub async fn post_bytes(&self, path: &str, body: Vec<u8>) -> Answer {
        self.send(Request::post(path).body(Body::from(body)).unwrap()).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    /// A chat request with one message, and more fields.
    pub async fn chat(&self, more: Value) -> Answer {
        self.post("/v1/chat/completions", chat_body(more)).await
    }

    /// The last submitted request.
    pub fn last(&self) -> Generate {
        self.model.submitted.lock().unwrap().last().unwrap().clone()
    }

    pub fn alive(&self) -> usize {
        self.model.alive.load(Ordering::SeqCst)
    }

    /// Waits until no generation is alive.
    pub async fn quiet(&self) {
        until("generations are still alive", || self.alive() == 0).await;
    }
}

/// Waits until `condition` holds; `what` says what it means that it never does.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let began = std::time::Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The clock of a test whose time is paused does not even jump ahead while nothing can run, until this is dropped.
pub fn hold_time() -> std::sync::mpsc::Sender<()> {
    let (held, until_dropped) = std::sync::mpsc::channel();
    // Time does not advance by itself beside a task that blocks.
    tokio::task::spawn_blocking(move || until_dropped.recv());
    held
}

pub async fn send(router: &Router, request: Request<Body>) -> Answer {
    let response = router.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let body = String::from_utf8(body.to_vec()).unwrap();
    Answer { status: parts.status, headers: parts.headers, body }
}

pub fn chat_body(more: Value) -> Value {
    let mut body = json!({
        "model": "org/tiny",
        "messages": [{"role": "user", "content": "hi"}],
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// Text of some tokens below 256.
pub fn text_of(tokens: &[u32]) -> String {
    let special = ["<s>", "<|im_start|>", "<|im_end|>"];
    let bytes = tokens.iter().flat_map(|&token| match u8::try_from(token) {
        Ok(byte) => vec![byte],
        Err(_) => special[token as usize - 256].as_bytes().to_vec(),
    });
    String::from_utf8(bytes.collect()).unwrap()
}
