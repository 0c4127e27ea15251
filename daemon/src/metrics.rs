//! What the daemon says of itself to Prometheus: which build it is, and how its own process does.
//!
//! Owns: `minisgl_build_info` and the conventional `process_*`, which are of the daemon alone: a worker's
//! memory is a process of its own. `process_start_time_seconds` tells the uptime.

use minisgl_proto::VERSION;
use prometheus::process_collector::ProcessCollector;
use prometheus::{IntGaugeVec, Opts, Registry};

/// Adds them to `registry`.
///
/// # Errors
/// A name is taken.
pub fn register(registry: &Registry) -> Result<(), prometheus::Error> {
    let opts = Opts::new("minisgl_build_info", "1; the daemon's version, and its backend.");
    let build = IntGaugeVec::new(opts, &["version", "backend"])?;
    let backend = if cfg!(feature = "cuda") { "cuda" } else { "cpu" };
    build.with_label_values(&[VERSION, backend]).set(1);
    registry.register(Box::new(build))?;
    registry.register(Box::new(ProcessCollector::for_self()))
}
