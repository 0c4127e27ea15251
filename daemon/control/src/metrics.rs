//! What Prometheus sees of the workers. Label `model` is the model's name; an unloaded model takes
//! its lines with it. Counters go on counting over a worker's restart.

mod throughput;

use minisgl_proto::StepStats;
use prometheus::{
    Counter, CounterVec, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter,
    IntCounterVec, IntGauge, IntGaugeVec, Opts,
};

use self::throughput::Throughput;

/// Seconds of a step: from a decode of one row on a fast GPU to a prefill chunk on a CPU.
const STEP_BUCKETS_S: [f64; 14] =
    [0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0];
/// Rows of a step.
const BATCH_BUCKETS: [f64; 11] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 192.0, 256.0, 512.0];

/// All of them; clones are the same.
#[derive(Clone)]
pub(crate) struct Metrics {
    up: IntGaugeVec,
    running: IntGaugeVec,
    waiting: IntGaugeVec,
    parked: IntGaugeVec,
    pages: IntGaugeVec,
    pages_capacity: IntGaugeVec,
    pages_evictable: IntGaugeVec,
    page_use: GaugeVec,
    pages_in_use: GaugeVec,
    throughput: Throughput,
    hit_rate: GaugeVec,
    load_s: GaugeVec,
    restarts: IntCounterVec,
    resumed: IntCounterVec,
    given_up: IntCounterVec,
    prompt_tokens: IntCounterVec,
    cached_tokens: IntCounterVec,
    generated_tokens: IntCounterVec,
    preemptions: IntCounterVec,
    broken_logits: IntCounterVec,
    steps: IntCounterVec,
    busy_s: CounterVec,
    step_s: HistogramVec,
    batch: HistogramVec,
}

impl Metrics {
    /// Makes them and adds them to `registry`.
    ///
    /// # Errors
    /// One of the names is taken.
    pub(crate) fn new(registry: &prometheus::Registry) -> Result<Self, prometheus::Error> {
        let add = Add(registry);
        Ok(Metrics {
            up: add.int_gauge("up", "1 while the model takes requests, else 0.", &[])?,
            running: add.int_gauge("requests_running", "Requests in the running batch.", &[])?,
            waiting: add.int_gauge("requests_waiting", "Requests in the waiting queue.", &[])?,
            parked: add.int_gauge("requests_parked", "Requests that wait for a worker.", &[])?,
            pages: add.int_gauge("kv_pages", "KV pages by state.", &["state"])?,
            pages_capacity: add.int_gauge("kv_pages_capacity", "KV pages in all.", &[])?,
            pages_evictable: add.int_gauge(
                "kv_pages_evictable",
                "Cached KV pages that no running request uses.",
                &[],
            )?,
            page_use: add.gauge("kv_page_use_ratio", "Share of KV pages that are not free.")?,
            pages_in_use: add.gauge(
                "kv_pages_in_use_ratio",
                "Share of KV pages that running requests use: neither free nor evictable.",
            )?,
            throughput: add.register(Throughput::new()?)?,
            hit_rate: add
                .gauge("cache_hit_ratio", "Share of prompt tokens found in the prefix cache.")?,
            load_s: add.gauge(
                "load_seconds",
                "Seconds from the worker's start to ready, the last time.",
            )?,
            restarts: add.counter("restarts_total", "Dead workers that were replaced.")?,
            resumed: add
                .counter("requests_moved_total", "Requests whose worker died, left to the next.")?,
            given_up: add.counter(
                "requests_given_up_total",
                "Requests that ended because workers died with them again and again.",
            )?,
            prompt_tokens: add.counter("prompt_tokens_total", "Prompt tokens taken in.")?,
            cached_tokens: add
                .counter("cached_tokens_total", "Prompt tokens found in the prefix cache.")?,
            generated_tokens: add.counter("generated_tokens_total", "Tokens sampled.")?,
            preemptions: add.counter("preemptions_total", "Requests preempted for pages.")?,
            broken_logits: add.counter(
                "broken_logits_total",
                "Requests that ended because the model's logits for them were no numbers.",
            )?,
            steps: add.counter("steps_total", "Steps run.")?,
            busy_s: add.counter_s(
                "busy_seconds_total",
                "Seconds that the device spent on steps, at most those that have passed.",
            )?,
            step_s: add.histogram(
                "step_seconds",
                "Seconds of a step on the device.",
                &STEP_BUCKETS_S,
            )?,
            batch: add.histogram("batch_size", "Rows (requests) of a step.", &BATCH_BUCKETS)?,
        })
    }

    /// Whether the model takes requests.
    pub(crate) fn up(&self, model: &str, up: bool) {
        self.up.with_label_values(&[model]).set(i64::from(up));
        // There from the first load on, so that the first restart is an increase.
        self.restarts.with_label_values(&[model]);
    }

    /// It became ready that long after its load began.
    pub(crate) fn loaded(&self, model: &str, seconds: f64) {
        self.load_s.with_label_values(&[model]).set(seconds);
    }

    /// Its worker was replaced; nothing runs, waits or is cached.
    pub(crate) fn restarted(&self, model: &str) {
        self.restarts.with_label_values(&[model]).inc();
    }

    /// So many of its requests wait for a worker.
    pub(crate) fn parked(&self, model: &str, requests: usize) {
        self.parked.with_label_values(&[model]).set(signed(requests as u64));
    }

    /// Its worker died: so many requests are left to the next one, so many are given up.
    pub(crate) fn moved(&self, model: &str, requests: usize, given_up: usize) {
        self.resumed.with_label_values(&[model]).inc_by(requests as u64);
        self.given_up.with_label_values(&[model]).inc_by(given_up as u64);
    }

    /// The lines that each step changes, found once.
    pub(crate) fn steps_of(&self, model: &str) -> StepMetrics {
        let label = [model];
        let pages = |state: &str| self.pages.with_label_values(&[model, state]);
        StepMetrics {
            model: model.to_string(),
            running: self.running.with_label_values(&label),
            waiting: self.waiting.with_label_values(&label),
            pages_free: pages("free"),
            pages_cached: pages("cached"),
            pages_owned: pages("owned"),
            pages_capacity: self.pages_capacity.with_label_values(&label),
            pages_evictable: self.pages_evictable.with_label_values(&label),
            page_use: self.page_use.with_label_values(&label),
            pages_in_use: self.pages_in_use.with_label_values(&label),
            throughput: self.throughput.clone(),
            hit_rate: self.hit_rate.with_label_values(&label),
            prompt_tokens: self.prompt_tokens.with_label_values(&label),
            cached_tokens: self.cached_tokens.with_label_values(&label),
            generated_tokens: self.generated_tokens.with_label_values(&label),
            preemptions: self.preemptions.with_label_values(&label),
            broken_logits: self.broken_logits.with_label_values(&label),
            steps: self.steps.with_label_values(&label),
            busy_s: self.busy_s.with_label_values(&label),
            step_s: self.step_s.with_label_values(&label),
            batch: self.batch.with_label_values(&label),
        }
    }

    /// Nothing runs, waits or is cached: its worker is dead.
    pub(crate) fn nothing_runs(&self, model: &str) {
        self.steps_of(model).gauges(&StepStats::default());
    }

    /// The model is no more.
    pub(crate) fn forget(&self, model: &str) {
        let label = [model];
        let int_gauges = [
            &self.up,
            &self.running,
            &self.waiting,
            &self.parked,
            &self.pages_capacity,
            &self.pages_evictable,
        ];
        for gauge in int_gauges {
            let _ = gauge.remove_label_values(&label);
        }
        for state in ["free", "cached", "owned"] {
            let _ = self.pages.remove_label_values(&[model, state]);
        }
        self.throughput.forget(model);
        for gauge in [&self.page_use, &self.pages_in_use, &self.hit_rate, &self.load_s] {
            let _ = gauge.remove_label_values(&label);
        }
        let counters = [
            &self.restarts,
            &self.resumed,
            &self.given_up,
            &self.prompt_tokens,
            &self.cached_tokens,
            &self.generated_tokens,
            &self.preemptions,
            &self.broken_logits,
            &self.steps,
        ];
        for counter in counters {
            let _ = counter.remove_label_values(&label);
        }
        let _ = self.busy_s.remove_label_values(&label);
        for histogram in [&self.step_s, &self.batch] {
            let _ = histogram.remove_label_values(&label);
        }
    }
}

/// What each step of one model changes.
pub(crate) struct StepMetrics {
    model: String,
    running: IntGauge,
    waiting: IntGauge,
    pages_free: IntGauge,
    pages_cached: IntGauge,
    pages_owned: IntGauge,
    pages_capacity: IntGauge,
    pages_evictable: IntGauge,
    page_use: Gauge,
    pages_in_use: Gauge,
    throughput: Throughput,
    hit_rate: Gauge,
    prompt_tokens: IntCounter,
    cached_tokens: IntCounter,
    generated_tokens: IntCounter,
    preemptions: IntCounter,
    broken_logits: IntCounter,
    steps: IntCounter,
    busy_s: Counter,
    step_s: Histogram,
    batch: Histogram,
}

impl StepMetrics {
    /// The counters went from `before` to `now`.
    pub(crate) fn step(&self, before: &StepStats, now: &StepStats) {
        self.gauges(now);
        let count = |counter: &IntCounter, before: u64, now: u64| {
            counter.inc_by(now.saturating_sub(before));
        };
        count(&self.prompt_tokens, before.prompt_tokens, now.prompt_tokens);
        count(&self.cached_tokens, before.cached_tokens, now.cached_tokens);
        count(&self.generated_tokens, before.generated_tokens, now.generated_tokens);
        let generated = now.generated_tokens.saturating_sub(before.generated_tokens);
        self.throughput.add(&self.model, generated);
        count(&self.preemptions, before.preemptions, now.preemptions);
        count(&self.broken_logits, before.broken_logits, now.broken_logits);
        count(&self.steps, before.steps, now.steps);
        if now.steps > before.steps {
            let seconds = f64::from(now.step_s).max(0.0);
            self.busy_s.inc_by(seconds);
            self.step_s.observe(seconds);
            self.batch.observe(f64::from(now.rows));
        }
    }

    /// What is now.
    fn gauges(&self, now: &StepStats) {
        self.running.set(i64::from(now.running));
        self.waiting.set(i64::from(now.waiting));
        self.pages_free.set(signed(now.pages_free));
        self.pages_cached.set(signed(now.pages_cached));
        self.pages_owned.set(signed(now.pages_owned));
        self.pages_capacity.set(signed(now.pages_total));
        self.pages_evictable.set(signed(now.pages_evictable));
        let used = now.pages_total.saturating_sub(now.pages_free);
        let in_use = ratio(used.saturating_sub(now.pages_evictable), now.pages_total);
        self.pages_in_use.set(in_use);
        self.page_use.set(ratio(used, now.pages_total));
        self.hit_rate.set(ratio(now.cached_tokens, now.prompt_tokens));
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Makes a metric of the family `minisgl_worker_*` and registers it.
struct Add<'a>(&'a prometheus::Registry);

impl Add<'_> {
    fn register<C>(&self, collector: C) -> Result<C, prometheus::Error>
    where
        C: Clone + prometheus::core::Collector + 'static,
    {
        self.0.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    fn opts(name: &str, help: &str) -> Opts {
        Opts::new(format!("minisgl_worker_{name}"), help)
    }

    fn int_gauge(
        &self,
        name: &str,
        help: &str,
        more_labels: &[&str],
    ) -> Result<IntGaugeVec, prometheus::Error> {
        let labels: Vec<&str> =
            std::iter::once("model").chain(more_labels.iter().copied()).collect();
        self.register(IntGaugeVec::new(Self::opts(name, help), &labels)?)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<GaugeVec, prometheus::Error> {
        self.register(GaugeVec::new(Self::opts(name, help), &["model"])?)
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounterVec, prometheus::Error> {
        self.register(IntCounterVec::new(Self::opts(name, help), &["model"])?)
    }

    fn counter_s(&self, name: &str, help: &str) -> Result<CounterVec, prometheus::Error> {
        self.register(CounterVec::new(Self::opts(name, help), &["model"])?)
    }

    fn histogram(
        &self,
        name: &str,
        help: &str,
        buckets: &[f64],
    ) -> Result<HistogramVec, prometheus::Error> {
        let opts = HistogramOpts::from(Self::opts(name, help)).buckets(buckets.to_vec());
        self.register(HistogramVec::new(opts, &["model"])?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(registry: &prometheus::Registry) -> String {
        prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap()
    }

    fn after(steps: u64, generated: u64) -> StepStats {
        StepStats {
            steps,
            step_s: 0.02,
            rows: 3,
            pages_total: 10,
            pages_free: 4,
            pages_cached: 5,
            pages_evictable: 2,
            pages_owned: 1,
            prompt_tokens: 100,
            cached_tokens: 25,
            generated_tokens: generated,
            broken_logits: generated / 5,
            ..StepStats::default()
        }
    }

    #[test]
    fn counters_survive_a_restart_and_lines_leave_with_the_model() {
        let registry = prometheus::Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        metrics.up("m", true);
        let steps = metrics.steps_of("m");
        steps.step(&StepStats::default(), &after(1, 7));
        steps.step(&after(1, 7), &after(1, 7)); // counters only, no step
        metrics.restarted("m");
        metrics.steps_of("m").step(&StepStats::default(), &after(1, 5));
        let lines = text(&registry);
        for line in [
            "minisgl_worker_generated_tokens_total{model=\"m\"} 12",
            "minisgl_worker_broken_logits_total{model=\"m\"} 2",
            "minisgl_worker_restarts_total{model=\"m\"} 1",
            "minisgl_worker_step_seconds_count{model=\"m\"} 2",
            "minisgl_worker_batch_size_bucket{model=\"m\",le=\"4\"} 2",
            "minisgl_worker_kv_pages{model=\"m\",state=\"cached\"} 5",
            "minisgl_worker_kv_page_use_ratio{model=\"m\"} 0.6",
            "minisgl_worker_kv_pages_in_use_ratio{model=\"m\"} 0.4",
            "minisgl_worker_generation_tokens_per_second{model=\"m\"} ",
            "minisgl_worker_cache_hit_ratio{model=\"m\"} 0.25",
        ] {
            assert!(lines.contains(line), "{line} is not in\n{lines}");
        }
        metrics.forget("m");
        assert_eq!(text(&registry), "");
        steps.gauges(&after(2, 9));
        assert_eq!(text(&registry), "", "who still has its lines does not bring them back");
    }
}
