//! The account of one HTTP request: from it come its log line and its metrics.
//!
//! A record is shared by the middleware, the handler and, for a stream, the response body. When the
//! last of them lets go, the request is over, however it ended, and the record is settled. Must
//! never: hold a prompt or a generated text.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use minisgl_dialect::Counts;
use prometheus::local::LocalHistogram;

use crate::error::ApiError;
use crate::metrics::Metrics;

/// The name of the key that a request came with; handlers find it among the request's extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyName(pub Arc<str>);

/// One HTTP request's account.
pub struct Record {
    /// Its id: the client's `x-request-id`, or ours.
    pub id: String,
    endpoint: &'static str,
    arrived: Instant,
    metrics: Arc<Metrics>,
    facts: Mutex<Facts>,
}

#[derive(Default)]
struct Facts {
    model: Option<String>,
    key: Option<KeyName>,
    status: Option<u16>,
    error: Option<ApiError>,
    streaming: bool,
    complete: bool,
    prompt_tokens: u64,
    cached_tokens: u64,
    generated_tokens: u64,
    first_token: Option<Duration>,
    queue_s: Option<f32>,
}

impl Record {
    /// A request arrived.
    pub fn new(id: String, endpoint: &'static str, metrics: Arc<Metrics>) -> Arc<Record> {
        metrics.in_flight.inc();
        let facts = Mutex::new(Facts::default());
        Arc::new(Record { id, endpoint, arrived: Instant::now(), metrics, facts })
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is for this model, which exists.
    pub fn model(&self, name: &str) {
        self.facts().model = Some(name.to_string());
    }

    /// It came with the key of this name.
    pub fn key(&self, name: &KeyName) {
        self.facts().key = Some(name.clone());
    }

    /// Generations began on prompts of so many tokens.
    pub fn prompt(&self, tokens: usize) {
        let mut facts = self.facts();
        facts.prompt_tokens += tokens as u64;
        if let Some(model) = &facts.model {
            self.metrics.prompt_tokens.with_label_values(&[model]).inc_by(tokens as u64);
        }
    }

    /// A choice got its first token. `cached` are the prompt tokens from the cache, 0 for a choice
    /// whose prompt is another choice's already: as in [`Record::prompt`], a prompt counts once.
    pub fn first_token(&self, cached: u32, queue_s: Option<f32>) {
        let mut facts = self.facts();
        facts.cached_tokens += u64::from(cached);
        facts.queue_s = facts.queue_s.or(queue_s);
        let is_first = facts.first_token.is_none();
        let elapsed = *facts.first_token.get_or_insert_with(|| self.arrived.elapsed());
        let Some(model) = &facts.model else { return };
        self.metrics.cached_tokens.with_label_values(&[model]).inc_by(cached.into());
        if let Some(seconds) = queue_s {
            self.metrics.waited(model, seconds);
        }
        if is_first {
            self.metrics.first_token.with_label_values(&[model]).observe(elapsed.as_secs_f64());
        }
    }

    /// A choice ended with such calls.
    fn calls(&self, counts: Counts) {
        let facts = self.facts();
        let Some(model) = &facts.model else { return };
        for (outcome, count) in [
            ("whole", counts.whole),
            ("cut", counts.cut),
            ("broken", counts.broken),
            ("refused", counts.refused),
        ] {
            if count > 0 {
                let labels = [model.as_str(), outcome];
                self.metrics.calls.with_label_values(&labels).inc_by(count.into());
            }
        }
    }

    /// Choices got so many tokens.
    fn tokens(&self, count: u64) {
        let mut facts = self.facts();
        facts.generated_tokens += count;
        let Some(model) = &facts.model else { return };
        self.metrics.generated_tokens.with_label_values(&[model]).inc_by(count);
    }

    /// The answer's status is known. For a stream, that is only its beginning.
    pub fn answered(&self, status: u16, error: Option<&ApiError>) {
        let mut facts = self.facts();
        facts.status = Some(status);
        facts.error = error.cloned();
    }

    /// The answer is a stream, which may break off.
    pub fn streaming(&self) {
        self.facts().streaming = true;
    }

    /// The stream broke off with this error.
    pub fn failed(&self, error: &ApiError) {
        self.facts().error = Some(error.clone());
    }

    /// The stream got to its end.
    pub fn complete(&self) {
        self.facts().complete = true;
    }
}

/// Counts tokens for a record and tells it of many at once: metrics are shared by all threads.
pub struct Tally {
    record: Arc<Record>,
    tokens: u64,
    gaps: Option<LocalHistogram>,
    told: Instant,
}

/// Tokens after which the record is told.
const TALLY_TOKENS: u64 = 64;
/// Time after which the record is told with the next token.
const TALLY_TIME: Duration = Duration::from_secs(1);

impl Tally {
    /// For the tokens of this record's request, whose model is known.
    pub fn new(record: Arc<Record>) -> Tally {
        let inter_token = &record.metrics.inter_token;
        let model = record.facts().model.clone();
        let gaps = model.map(|model| inter_token.with_label_values(&[&model]).local());
        Tally { record, tokens: 0, gaps, told: Instant::now() }
    }

    /// See [`Record::first_token`].
    pub fn first_token(&self, cached: u32, queue_s: Option<f32>) {
        self.record.first_token(cached, queue_s);
    }

    /// A choice ended with such calls.
    pub fn calls(&self, counts: Counts) {
        self.record.calls(counts);
    }

    /// A choice got a token now, so long after its one before.
    pub fn token(&mut self, gap: Option<Duration>, now: Instant) {
        self.tokens += 1;
        if let (Some(gap), Some(gaps)) = (gap, &self.gaps) {
            gaps.observe(gap.as_secs_f64());
        }
        if self.tokens >= TALLY_TOKENS || now.saturating_duration_since(self.told) > TALLY_TIME {
            self.tell();
            self.told = now;
        }
    }

    fn tell(&mut self) {
        self.record.tokens(std::mem::take(&mut self.tokens));
        if let Some(gaps) = &self.gaps {
            gaps.flush();
        }
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.tell();
    }
}

impl Facts {
    fn outcome(&self) -> &'static str {
        let status = match (&self.error, self.status) {
            (Some(error), _) if error.is_cancelled() => return "cancelled",
            (Some(error), _) => error.status.as_u16(),
            (None, Some(status)) => status,
            (None, None) => return "cancelled",
        };
        match status {
            429 => "overloaded",
            503 => "unavailable",
            500.. => "error",
            400.. => "client_error",
            _ if self.streaming && !self.complete => "cancelled",
            _ => "ok",
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.metrics.in_flight.dec();
        let elapsed_s = self.arrived.elapsed().as_secs_f64();
        let facts = self.facts();
        let outcome = facts.outcome();
        let model = facts.model.as_deref().unwrap_or("");
        self.metrics.requests.with_label_values(&[self.endpoint, model, outcome]).inc();
        if outcome == "ok" && facts.generated_tokens > 0 {
            self.metrics.end_to_end.with_label_values(&[model]).observe(elapsed_s);
        }
        let key = facts.key.as_ref().map(|key| &*key.0);
        if let Some(key) = key {
            self.metrics.of_key(key, outcome, facts.prompt_tokens, facts.generated_tokens);
        }
        // Who has no key can ask as often as they like; `keys` says how often that was.
        if facts.status == Some(401) {
            tracing::debug!(request_id = %self.id, endpoint = self.endpoint, elapsed_s, "no key");
            return;
        }
        // Health checks and scrapes are too frequent to be news.
        if outcome == "ok" && facts.generated_tokens == 0 {
            tracing::debug!(request_id = %self.id, endpoint = self.endpoint, model, elapsed_s, "request");
            return;
        }
        let error = facts.error.as_ref();
        tracing::info!(
            request_id = %self.id,
            endpoint = self.endpoint,
            model,
            key,
            outcome,
            status = facts.status,
            error = error.and_then(|error| error.code),
            prompt_tokens = facts.prompt_tokens,
            cached_tokens = facts.cached_tokens,
            generated_tokens = facts.generated_tokens,
            queue_s = facts.queue_s,
            first_token_s = facts.first_token.map(|after| after.as_secs_f64()),
            elapsed_s,
            "request"
        );
    }
}
