//! What a frame shows, from what the daemon said.
//!
//! Owns: the looks of the last minute. Latencies are those of that minute, by the difference between two
//! looks; of the first look they are those since each model's load.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use minisgl_proto::admin::{ModelState, ModelStatus, VersionInfo};

use super::histogram::Histogram;
use crate::exposition::Sample;
use crate::render;

/// How far back latencies go.
const WINDOW: Duration = Duration::from_secs(60);
/// Points of the throughput's trend.
const TREND_MAX: usize = 600;

const FIRST_TOKEN: &str = "minisgl_time_to_first_token_seconds";
const INTER_TOKEN: &str = "minisgl_inter_token_seconds";
const REQUEST: &str = "minisgl_request_seconds";
const QUEUE: &str = "minisgl_queue_seconds";

/// Everything the daemon said at one moment.
#[derive(Clone, Debug)]
pub(super) struct Look {
    pub(super) at: Instant,
    pub(super) version: VersionInfo,
    pub(super) models: Vec<ModelStatus>,
    pub(super) samples: Vec<Sample>,
}

impl Look {
    /// Whether models are on GPUs of which nothing is known yet.
    pub(super) fn lacks_gpus(&self) -> bool {
        self.models.iter().any(|model| !model.gpus.is_empty()) && self.gpus().is_empty()
    }

    fn value(&self, name: &str, label: &str, is: &str) -> Option<f64> {
        let mut samples = self.samples.iter();
        samples.find(|s| s.name == name && s.label(label) == is).and_then(Sample::value)
    }

    fn histograms(&self) -> Histograms {
        let mut histograms = Histograms::new();
        for sample in &self.samples {
            let families = [FIRST_TOKEN, INTER_TOKEN, REQUEST, QUEUE];
            let is_of = |family: &&str| sample.name.strip_suffix("_bucket") == Some(family);
            let Some(family) = families.into_iter().find(is_of) else { continue };
            let (Ok(bound), Some(count)) = (sample.label("le").parse(), sample.value()) else {
                continue;
            };
            let key = (family, sample.label("model").to_string());
            histograms.entry(key).or_default().push(bound, count);
        }
        histograms
    }

    fn gpus(&self) -> Vec<Gpu> {
        let infos = self.samples.iter().filter(|sample| sample.name == "minisgl_gpu_info");
        let gpu = |info: &Sample| {
            let index = info.label("gpu");
            let value = |name: &str| self.value(&format!("minisgl_gpu_{name}"), "gpu", index);
            Gpu {
                index: index.to_string(),
                name: info.label("name").to_string(),
                memory_used_bytes: value("memory_used_bytes"),
                memory_bytes: value("memory_bytes"),
                utilization: value("utilization_ratio"),
                power_w: value("power_watts"),
                power_limit_w: value("power_limit_watts"),
                temperature_c: value("temperature_celsius"),
            }
        };
        let mut gpus: Vec<Gpu> = infos.map(gpu).collect();
        gpus.sort_by_key(|gpu| gpu.index.parse::<u32>().unwrap_or(u32::MAX));
        gpus
    }

    fn model(&self, status: &ModelStatus, window: &impl Fn(&'static str) -> Histogram) -> Model {
        let worker =
            |name: &str| self.value(&format!("minisgl_worker_{name}"), "model", &status.name);
        let pages = status.stats.map(|stats| (stats.pages_evictable, stats.pages_total));
        let reason = status.reason.clone().or(status.progress.as_ref().map(render::progress));
        Model {
            name: status.name.clone(),
            state: status.state,
            reason: reason.filter(|_| status.state != ModelState::Ready),
            running: status.stats.map(|stats| stats.running),
            waiting: status.stats.map(|stats| stats.waiting),
            tokens_per_s: worker("generation_tokens_per_second"),
            first_token: Percentiles::of(&window(FIRST_TOKEN)),
            inter_token: Percentiles::of(&window(INTER_TOKEN)),
            request: Percentiles::of(&window(REQUEST)),
            queue: Percentiles::of(&window(QUEUE)),
            kv_in_use: worker("kv_pages_in_use_ratio"),
            kv_cached: pages.filter(|p| p.1 > 0).map(|(cached, all)| cached as f64 / all as f64),
            hits: worker("cache_hit_ratio"),
        }
    }
}

/// By family and model.
type Histograms = HashMap<(&'static str, String), Histogram>;

/// The looks of the last minute, as far as later ones need them.
#[derive(Default)]
pub(super) struct History {
    looks: VecDeque<(Instant, Histograms)>,
    trend: VecDeque<f64>,
}

impl History {
    /// What is to be seen after this look.
    pub(super) fn add(&mut self, look: Look) -> View {
        while self.looks.len() > 1 && look.at - self.looks[1].0 >= WINDOW {
            self.looks.pop_front();
        }
        let now = look.histograms();
        let before = self.looks.front();
        let model = |status: &ModelStatus| {
            let window = |family: &'static str| {
                let key = (family, status.name.clone());
                let now = now.get(&key).cloned().unwrap_or_default();
                match before.and_then(|(_, histograms)| histograms.get(&key)) {
                    Some(before) => now.since(before),
                    None => now,
                }
            };
            look.model(status, &window)
        };
        let models: Vec<Model> = look.models.iter().map(model).collect();
        let tokens_per_s = models.iter().filter_map(|model| model.tokens_per_s).sum();
        if self.trend.len() == TREND_MAX {
            self.trend.pop_front();
        }
        self.trend.push_back(tokens_per_s);
        let view = View {
            version: look.version.version.clone(),
            listen: look.version.listen.clone(),
            uptime_s: look.version.uptime_s,
            window: before.map(|(at, _)| look.at - *at),
            gpus: look.gpus(),
            trend: self.trend.iter().copied().collect(),
            models,
            tokens_per_s,
        };
        self.looks.push_back((look.at, now));
        view
    }
}

/// A frame's content.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct View {
    pub(super) version: String,
    pub(super) listen: String,
    pub(super) uptime_s: f64,
    /// Latencies are of so long; `None`: since each model's load.
    pub(super) window: Option<Duration>,
    pub(super) models: Vec<Model>,
    pub(super) gpus: Vec<Gpu>,
    /// Over all models.
    pub(super) tokens_per_s: f64,
    /// The same at each look, oldest first.
    pub(super) trend: Vec<f64>,
}

/// A model's row. What is not known is `None`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Model {
    pub(super) name: String,
    pub(super) state: ModelState,
    /// Why it is not ready, or how far it is.
    pub(super) reason: Option<String>,
    pub(super) running: Option<u32>,
    pub(super) waiting: Option<u32>,
    pub(super) tokens_per_s: Option<f64>,
    pub(super) first_token: Percentiles,
    pub(super) inter_token: Percentiles,
    pub(super) request: Percentiles,
    pub(super) queue: Percentiles,
    /// Share of KV pages that running requests use.
    pub(super) kv_in_use: Option<f64>,
    /// Share of KV pages that the prefix cache keeps beside them.
    pub(super) kv_cached: Option<f64>,
    /// Share of prompt tokens that the cache had.
    pub(super) hits: Option<f64>,
}

/// Seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Percentiles {
    pub(super) p50: Option<f64>,
    pub(super) p95: Option<f64>,
}

impl Percentiles {
    fn of(histogram: &Histogram) -> Self {
        Percentiles { p50: histogram.quantile(0.5), p95: histogram.quantile(0.95) }
    }
}

/// A GPU's row.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Gpu {
    pub(super) index: String,
    pub(super) name: String,
    pub(super) memory_used_bytes: Option<f64>,
    pub(super) memory_bytes: Option<f64>,
    pub(super) utilization: Option<f64>,
    pub(super) power_w: Option<f64>,
    pub(super) power_limit_w: Option<f64>,
    pub(super) temperature_c: Option<f64>,
}
