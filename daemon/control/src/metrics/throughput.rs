//! Tokens a second, over the last few seconds.
//!
//! Owns: what each model generated in each of these seconds. It is read when somebody scrapes, so that a
//! model at rest goes back to zero although nothing is reported of it any more.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, Opts};

/// Whole seconds that are looked back on.
const SECONDS: usize = 5;

/// All models' throughput; clones are the same.
#[derive(Clone)]
pub(super) struct Throughput {
    began: Instant,
    windows: Arc<Mutex<HashMap<String, Window>>>,
    gauge: GaugeVec,
}

impl Throughput {
    pub(super) fn new() -> Result<Self, prometheus::Error> {
        let help = format!("Tokens generated a second, over the last {SECONDS} s.");
        let opts = Opts::new("minisgl_worker_generation_tokens_per_second", help);
        Ok(Throughput {
            began: Instant::now(),
            windows: Arc::default(),
            gauge: GaugeVec::new(opts, &["model"])?,
        })
    }

    /// The model generated so many tokens just now.
    pub(super) fn add(&self, model: &str, tokens: u64) {
        let now = self.second();
        let mut windows = self.lock();
        match windows.get_mut(model) {
            Some(window) => window.add(now, tokens),
            None => windows.entry(model.to_string()).or_default().add(now, tokens),
        }
    }

    /// The model is no more.
    pub(super) fn forget(&self, model: &str) {
        self.lock().remove(model);
        let _ = self.gauge.remove_label_values(&[model]);
    }

    fn second(&self) -> u64 {
        self.began.elapsed().as_secs()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Window>> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for Throughput {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let now = self.second();
        // Held to the end: `forget` must not come between a value and its line.
        let windows = self.lock();
        for (model, window) in windows.iter() {
            self.gauge.with_label_values(&[model]).set(window.per_second(now));
        }
        self.gauge.collect()
    }
}

/// Tokens by second, the last whole seconds and the one that runs; a second has the place of its number.
#[derive(Default)]
struct Window([(u64, u64); SECONDS + 1]);

impl Window {
    fn add(&mut self, now: u64, tokens: u64) {
        let place = &mut self.0[now as usize % (SECONDS + 1)];
        if place.0 != now {
            *place = (now, 0);
        }
        place.1 += tokens;
    }

    /// Of the whole seconds before `now`.
    fn per_second(&self, now: u64) -> f64 {
        let whole = now.saturating_sub(SECONDS as u64)..now;
        let tokens: u64 = self.0.iter().filter(|p| whole.contains(&p.0)).map(|p| p.1).sum();
        tokens as f64 / SECONDS as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_seconds_count_until_they_are_too_long_ago() {
        let mut window = Window::default();
        window.add(100, 30);
        window.add(100, 20);
        assert_eq!(window.per_second(100), 0.0, "this second is not over");
        for now in 101..=105 {
            assert_eq!(window.per_second(now), 10.0, "at {now}");
        }
        window.add(105, 5);
        assert_eq!(window.per_second(106), 1.0, "only second 105 is left");
        assert_eq!(window.per_second(1000), 0.0);
        window.add(106, 5); // in the place that second 100 had
        assert_eq!(window.per_second(107), 2.0);
    }

    #[test]
    fn a_model_has_a_line_until_it_is_forgotten() {
        let throughput = Throughput::new().unwrap();
        throughput.add("m", 5);
        assert_eq!(throughput.collect()[0].get_metric().len(), 1);
        throughput.forget("m");
        assert_eq!(throughput.collect()[0].get_metric().len(), 0);
    }
}
