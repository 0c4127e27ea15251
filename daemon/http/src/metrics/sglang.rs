//! The names that SGLang gives to what is measured here, for dashboards and routers that read those.
//!
//! Owns: the list of names. Nothing is counted twice: at each scrape a family is repeated under the other
//! name, with the label `model_name` for `model`. Buckets stay ours. Names, help and meaning are those of
//! SGLang's `metrics_collector.py` (2026).

use prometheus::proto::{LabelPair, MetricFamily};

/// Our name, SGLang's, and its help.
const NAMES: [(&str, &str, &str); 12] = [
    (
        "minisgl_worker_requests_running",
        "sglang:num_running_reqs",
        "The number of running requests.",
    ),
    (
        "minisgl_worker_requests_waiting",
        "sglang:num_queue_reqs",
        "The number of requests in the waiting queue.",
    ),
    (
        "minisgl_worker_kv_pages_in_use_ratio",
        "sglang:token_usage",
        "The share of KV cache that running requests use.",
    ),
    (
        "minisgl_worker_generation_tokens_per_second",
        "sglang:gen_throughput",
        "The generation throughput (token/s).",
    ),
    ("minisgl_worker_cache_hit_ratio", "sglang:cache_hit_rate", "The prefix cache hit rate."),
    (
        "minisgl_time_to_first_token_seconds",
        "sglang:time_to_first_token_seconds",
        "Histogram of time to first token in seconds.",
    ),
    (
        "minisgl_inter_token_seconds",
        "sglang:inter_token_latency_seconds",
        "Histogram of inter-token latency in seconds.",
    ),
    (
        "minisgl_request_seconds",
        "sglang:e2e_request_latency_seconds",
        "Histogram of end-to-end request latency in seconds.",
    ),
    (
        "minisgl_queue_seconds",
        "sglang:queue_time_seconds",
        "Histogram of queueing time in seconds.",
    ),
    (
        "minisgl_prompt_tokens_total",
        "sglang:prompt_tokens_total",
        "Number of prefill tokens processed.",
    ),
    (
        "minisgl_generated_tokens_total",
        "sglang:generation_tokens_total",
        "Number of generation tokens processed.",
    ),
    (
        "minisgl_cached_tokens_total",
        "sglang:cached_tokens_total",
        "Number of cached prompt tokens.",
    ),
];

/// The families of `gathered` that SGLang has a name for, under that name.
pub(super) fn aliases(gathered: &[MetricFamily]) -> Vec<MetricFamily> {
    let alias = |family: &MetricFamily| {
        let (_, name, help) = NAMES.iter().find(|(ours, ..)| *ours == family.name())?;
        let mut alias = family.clone();
        alias.set_name((*name).to_string());
        alias.set_help((*help).to_string());
        for line in alias.mut_metric() {
            let labels = line.take_label().into_iter().map(rename).collect();
            line.set_label(labels);
        }
        Some(alias)
    };
    gathered.iter().filter_map(alias).collect()
}

fn rename(mut label: LabelPair) -> LabelPair {
    if label.name() == "model" {
        label.set_name("model_name".to_string());
    }
    label
}

#[cfg(test)]
mod tests {
    use prometheus::{HistogramOpts, HistogramVec, IntCounter, Registry, TextEncoder};

    use super::*;

    #[test]
    fn a_family_is_repeated_with_its_values_and_the_others_are_not() {
        let registry = Registry::new();
        let opts = HistogramOpts::new("minisgl_request_seconds", "x").buckets(vec![0.5]);
        let histogram = HistogramVec::new(opts, &["model"]).unwrap();
        histogram.with_label_values(&["a/b"]).observe(0.25);
        registry.register(Box::new(histogram)).unwrap();
        let other = IntCounter::new("minisgl_other_total", "x").unwrap();
        registry.register(Box::new(other)).unwrap();
        let text = TextEncoder::new().encode_to_string(&aliases(&registry.gather())).unwrap();
        assert_eq!(
            text,
            "# HELP sglang:e2e_request_latency_seconds Histogram of end-to-end request latency in seconds.\n\
             # TYPE sglang:e2e_request_latency_seconds histogram\n\
             sglang:e2e_request_latency_seconds_bucket{model_name=\"a/b\",le=\"0.5\"} 1\n\
             sglang:e2e_request_latency_seconds_bucket{model_name=\"a/b\",le=\"+Inf\"} 1\n\
             sglang:e2e_request_latency_seconds_sum{model_name=\"a/b\"} 0.25\n\
             sglang:e2e_request_latency_seconds_count{model_name=\"a/b\"} 1\n"
        );
    }
}
