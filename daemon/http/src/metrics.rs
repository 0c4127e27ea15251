//! What the front can measure, for Prometheus.
//!
//! Owns: requests by outcome, tokens in and out, latencies as a client feels them. What only a worker
//! knows (batches, pages, queues) is measured elsewhere and shares the registry. Labels are bounded:
//! endpoints and outcomes are fixed sets, names of API keys are the
//! operator's and so many at most, and a model name is a label only while the model is served.

mod sglang;

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use prometheus::core::{Collector, MetricVec, MetricVecBuilder};
use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};

/// Seconds to the first token and of whole requests: from a cache hit to a long queue.
const LONG_S: [f64; 15] =
    [0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3.0, 6.0, 12.0, 30.0, 60.0, 180.0, 600.0];
/// Seconds between tokens: from a small model on a large GPU to a large one on a CPU.
const TOKEN_S: [f64; 13] =
    [0.002, 0.004, 0.006, 0.01, 0.015, 0.025, 0.04, 0.06, 0.1, 0.2, 0.5, 1.0, 5.0];
/// Seconds in the queue.
const QUEUE_S: [f64; 11] = [0.001, 0.005, 0.02, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0];

/// Handles to all metrics of the front.
pub struct Metrics {
    registry: Registry,
    /// By endpoint, model and outcome.
    pub requests: IntCounterVec,
    /// HTTP requests being answered.
    pub in_flight: IntGauge,
    /// By model.
    pub prompt_tokens: IntCounterVec,
    /// By model.
    pub cached_tokens: IntCounterVec,
    /// By model.
    pub generated_tokens: IntCounterVec,
    /// Tool calls that models wrote, by model and outcome.
    pub calls: IntCounterVec,
    /// Seconds from the request's arrival to its first token, by model.
    pub first_token: HistogramVec,
    /// Seconds between two tokens of a choice, by model.
    pub inter_token: HistogramVec,
    /// Seconds from arrival to the end, by model, of requests that ended well.
    pub end_to_end: HistogramVec,
    /// Seconds from submission to the first plan, by model.
    pub queue: HistogramVec,
    /// The same as it was lately, by model.
    waits: Mutex<HashMap<String, f32>>,
    keys: Keys,
}

/// What each named API key asked for.
struct Keys {
    requests: IntCounterVec,
    prompt_tokens: IntCounterVec,
    generated_tokens: IntCounterVec,
    /// Names that have lines; more than [`KEY_NAMES_MAX`] come only of reloads.
    names: Mutex<HashSet<String>>,
}

/// Names of keys with lines of their own; the others' are together.
const KEY_NAMES_MAX: usize = 1024;
/// Whose name it is that have none of their own.
const OTHER_KEYS: &str = "other";
/// Share of the last wait in what is known of waits.
const LAST_WAIT: f32 = 0.25;
/// Seconds that a refused client is told to wait, at most.
const WAIT_S_MAX: f32 = 60.0;

impl Metrics {
    /// Registers all of them.
    ///
    /// # Errors
    /// A name is taken: two fronts share a registry.
    pub fn new(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            let histogram = HistogramVec::new(options, &["model"])?;
            registry.register(Box::new(histogram.clone()))?;
            Ok::<_, prometheus::Error>(histogram)
        };
        let in_flight =
            IntGauge::new("minisgl_http_requests_in_flight", "HTTP requests being answered.")?;
        registry.register(Box::new(in_flight.clone()))?;
        Ok(Metrics {
            requests: counter(
                "minisgl_requests_total",
                "HTTP requests answered, by outcome.",
                &["endpoint", "model", "outcome"],
            )?,
            in_flight,
            prompt_tokens: counter(
                "minisgl_prompt_tokens_total",
                "Prompt tokens of generations that began.",
                &["model"],
            )?,
            cached_tokens: counter(
                "minisgl_cached_tokens_total",
                "Prompt tokens found in the prefix cache.",
                &["model"],
            )?,
            generated_tokens: counter(
                "minisgl_generated_tokens_total",
                "Tokens generated.",
                &["model"],
            )?,
            calls: counter(
                "minisgl_tool_calls_total",
                "Tool calls that models wrote: whole, cut off with the output, broken off, or refused, which are text that began as one.",
                &["model", "outcome"],
            )?,
            first_token: histogram(
                "minisgl_time_to_first_token_seconds",
                "From a request's arrival to its first token.",
                &LONG_S,
            )?,
            inter_token: histogram(
                "minisgl_inter_token_seconds",
                "Between two tokens of one choice.",
                &TOKEN_S,
            )?,
            end_to_end: histogram(
                "minisgl_request_seconds",
                "From a request's arrival to its end.",
                &LONG_S,
            )?,
            queue: histogram(
                "minisgl_queue_seconds",
                "From submission to the first step a request is part of.",
                &QUEUE_S,
            )?,
            keys: Keys {
                requests: counter(
                    "minisgl_key_requests_total",
                    "HTTP requests answered, by name of the API key and outcome.",
                    &["key", "outcome"],
                )?,
                prompt_tokens: counter(
                    "minisgl_key_prompt_tokens_total",
                    "Prompt tokens of requests that ended, by name of the API key.",
                    &["key"],
                )?,
                generated_tokens: counter(
                    "minisgl_key_generated_tokens_total",
                    "Tokens generated for requests that ended, by name of the API key.",
                    &["key"],
                )?,
                names: Mutex::default(),
            },
            registry: registry.clone(),
            waits: Mutex::default(),
        })
    }

    /// A request with the key of this name ended.
    pub fn of_key(&self, name: &str, outcome: &str, prompt_tokens: u64, generated_tokens: u64) {
        let keys = &self.keys;
        let mut names = keys.names.lock().unwrap_or_else(PoisonError::into_inner);
        let name = if names.contains(name) || names.len() < KEY_NAMES_MAX {
            names.insert(name.to_owned());
            name
        } else {
            OTHER_KEYS
        };
        drop(names);
        keys.requests.with_label_values(&[name, outcome]).inc();
        keys.prompt_tokens.with_label_values(&[name]).inc_by(prompt_tokens);
        keys.generated_tokens.with_label_values(&[name]).inc_by(generated_tokens);
    }

    fn waits(&self) -> MutexGuard<'_, HashMap<String, f32>> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request of this model waited so long in the queue.
    pub fn waited(&self, model: &str, seconds: f32) {
        self.queue.with_label_values(&[model]).observe(seconds.into());
        let mut waits = self.waits();
        match waits.get_mut(model) {
            Some(lately) => *lately += LAST_WAIT * (seconds - *lately),
            None => drop(waits.insert(model.to_string(), seconds)),
        }
    }

    /// Whole seconds that requests of this model waited lately: for a client that finds the queue full.
    pub fn queue_s(&self, model: &str) -> u32 {
        let lately = self.waits().get(model).copied().unwrap_or(0.0);
        lately.ceil().clamp(0.0, WAIT_S_MAX) as u32
    }

    /// Gives a model that was not asked anything yet its lines: rates begin at zero.
    pub fn introduce(&self, model: &str) {
        for counter in [&self.prompt_tokens, &self.cached_tokens, &self.generated_tokens] {
            counter.with_label_values(&[model]);
        }
        for histogram in [&self.first_token, &self.inter_token, &self.end_to_end, &self.queue] {
            histogram.with_label_values(&[model]);
        }
    }

    /// Removes the lines of models that are not served any more.
    pub fn prune(&self, is_served: impl Fn(&str) -> bool) {
        self.waits().retain(|model, _| is_served(model));
        retain(&self.requests, &is_served);
        retain(&self.calls, &is_served);
        for counter in [&self.prompt_tokens, &self.cached_tokens, &self.generated_tokens] {
            retain(counter, &is_served);
        }
        for histogram in [&self.first_token, &self.inter_token, &self.end_to_end, &self.queue] {
            retain(histogram, &is_served);
        }
    }

    /// Everything in the registry, in text format 0.0.4, and again by SGLang's names what has one.
    ///
    /// # Errors
    /// Another part of the program registered something inconsistent.
    pub fn render(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut text = Vec::new();
        let gathered = self.registry.gather();
        TextEncoder::new().encode(&gathered, &mut text)?;
        TextEncoder::new().encode(&sglang::aliases(&gathered), &mut text)?;
        Ok(text)
    }
}

/// Keeps the lines whose model is served, and those of no model.
fn retain<T: MetricVecBuilder>(metrics: &MetricVec<T>, is_served: impl Fn(&str) -> bool) {
    for family in metrics.collect() {
        for line in family.get_metric() {
            let labels: HashMap<&str, &str> =
                line.get_label().iter().map(|label| (label.name(), label.value())).collect();
            if labels.get("model").is_some_and(|model| !model.is_empty() && !is_served(model)) {
                // Gone already when another scrape was quicker.
                let _ = metrics.remove(&labels);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_to_come_back_follows_the_queue() {
        let metrics = Metrics::new(&Registry::new()).unwrap();
        assert_eq!(metrics.queue_s("m"), 0);
        metrics.waited("m", 0.2);
        assert_eq!(metrics.queue_s("m"), 1);
        for _ in 0..20 {
            metrics.waited("m", 12.0);
        }
        assert_eq!((metrics.queue_s("m"), metrics.queue_s("other")), (12, 0));
        metrics.waited("m", 1e9);
        assert_eq!(metrics.queue_s("m"), 60);
        metrics.prune(|_| false);
        assert_eq!(metrics.queue_s("m"), 0);
    }
}
