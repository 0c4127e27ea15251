//! The state of this machine's GPUs, for Prometheus: memory, utilisation, power, temperature.
//!
//! Owns: a thread that asks the driver every few seconds, from the first scrape on and for as long as
//! somebody scrapes. Must never: make a scrape wait. What is old is left out, so that the lines of a driver
//! that hangs vanish; where there is no GPU there are none.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, Opts};

use super::Gpus;

/// One GPU at one moment. What the driver does not say is `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GpuReading {
    /// NVML's number, in the order of slots; `nvidia-smi` has the same.
    pub index: u32,
    /// Survives a change of slots.
    pub uuid: String,
    /// The product.
    pub name: String,
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
    /// Bytes of memory that are taken, by whomever.
    pub memory_used_bytes: Option<u64>,
    /// Share of the driver's last sample period in which a kernel ran.
    pub utilization: Option<f64>,
    /// Watts.
    pub power_w: Option<f64>,
    /// Watts that it is held to.
    pub power_limit_w: Option<f64>,
    /// Degrees Celsius.
    pub temperature_c: Option<f64>,
}

/// How often the driver is asked, for how long an answer is true, and when nobody seems to want it any more.
#[derive(Clone, Copy)]
struct Times {
    pause: Duration,
    fresh: Duration,
    wanted: Duration,
}

const TIMES: Times = Times {
    pause: Duration::from_secs(2),
    fresh: Duration::from_secs(15),
    wanted: Duration::from_secs(300),
};

/// What of a GPU a metric shows.
type Of = fn(&GpuReading) -> Option<f64>;

/// Metrics by GPU.
pub(crate) struct GpuMetrics {
    gpus: Gpus,
    times: Times,
    shared: Arc<Mutex<Shared>>,
    info: GaugeVec,
    values: Vec<(GaugeVec, Of)>,
}

#[derive(Default)]
struct Shared {
    readings: Vec<GpuReading>,
    read_at: Option<Instant>,
    wanted_at: Option<Instant>,
    running: bool,
}

impl GpuMetrics {
    pub(crate) fn new(gpus: Gpus) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            GaugeVec::new(Opts::new(format!("minisgl_gpu_{name}"), help), labels)
        };
        let value =
            |name, help, of: Of| Ok::<_, prometheus::Error>((gauge(name, help, &["gpu"])?, of));
        Ok(GpuMetrics {
            gpus,
            times: TIMES,
            shared: Arc::default(),
            info: gauge("info", "1; the GPU's product and identity.", &["gpu", "uuid", "name"])?,
            values: vec![
                value("memory_bytes", "Bytes of GPU memory.", |gpu| {
                    gpu.memory_bytes.map(|bytes| bytes as f64)
                })?,
                value("memory_used_bytes", "Bytes of GPU memory taken, by whomever.", |gpu| {
                    gpu.memory_used_bytes.map(|bytes| bytes as f64)
                })?,
                value("utilization_ratio", "Share of time in which a kernel ran.", |gpu| {
                    gpu.utilization
                })?,
                value("power_watts", "Watts drawn.", |gpu| gpu.power_w)?,
                value("power_limit_watts", "Watts that the GPU is held to.", |gpu| {
                    gpu.power_limit_w
                })?,
                value("temperature_celsius", "Temperature of the GPU.", |gpu| gpu.temperature_c)?,
            ],
        })
    }

    /// Sees to it that somebody asks the driver.
    fn want(&self) {
        let mut shared = lock(&self.shared);
        shared.wanted_at = Some(Instant::now());
        if shared.running {
            return;
        }
        let (gpus, times, theirs) = (self.gpus.clone(), self.times, Arc::clone(&self.shared));
        // A thread of its own: a driver that hangs holds up neither the runtime nor its end.
        let thread = std::thread::Builder::new().name("gpu-metrics".to_string());
        shared.running = thread.spawn(move || watch(&gpus, times, &theirs)).is_ok();
    }
}

fn watch(gpus: &Gpus, times: Times, shared: &Mutex<Shared>) {
    loop {
        let readings = gpus.0.readings();
        {
            let mut shared = lock(shared);
            let is_wanted = shared.wanted_at.is_some_and(|at| at.elapsed() <= times.wanted);
            let has_none = readings.is_empty();
            shared.readings = readings;
            shared.read_at = Some(Instant::now());
            // Without GPUs the next scrape looks again.
            if has_none || !is_wanted {
                shared.running = false;
                return;
            }
        }
        std::thread::sleep(times.pause);
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Collector for GpuMetrics {
    fn desc(&self) -> Vec<&Desc> {
        let values = self.values.iter().flat_map(|(gauge, _)| gauge.desc());
        self.info.desc().into_iter().chain(values).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.want();
        // Held to the end: two scrapes at once must not reset each other's lines.
        let shared = lock(&self.shared);
        let is_fresh = shared.read_at.is_some_and(|at| at.elapsed() <= self.times.fresh);
        self.info.reset();
        self.values.iter().for_each(|(gauge, _)| gauge.reset());
        for gpu in shared.readings.iter().filter(|_| is_fresh) {
            let index = gpu.index.to_string();
            self.info.with_label_values(&[&index, &gpu.uuid, &gpu.name]).set(1.0);
            for (gauge, of) in &self.values {
                if let Some(value) = of(gpu) {
                    gauge.with_label_values(&[&index]).set(value);
                }
            }
        }
        let values = self.values.iter().flat_map(|(gauge, _)| gauge.collect());
        self.info.collect().into_iter().chain(values).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::super::GpuSource;
    use super::*;

    #[derive(Default)]
    struct Fake {
        hangs: AtomicBool,
        asked: AtomicUsize,
    }

    impl GpuSource for Fake {
        fn may_exist(&self) -> bool {
            true
        }

        fn memory_by_process(&self) -> HashMap<u32, u64> {
            HashMap::new()
        }

        fn readings(&self) -> Vec<GpuReading> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            while self.hangs.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
            }
            let gpu =
                GpuReading { name: "H100".into(), uuid: "GPU-1".into(), ..Default::default() };
            let power = GpuReading { power_w: Some(301.5), utilization: Some(0.5), ..gpu.clone() };
            vec![power, GpuReading { index: 1, memory_bytes: Some(80), ..gpu }]
        }
    }

    fn metrics(fake: &Arc<Fake>, times: Times) -> prometheus::Registry {
        metrics_and_thread(fake, times).0
    }

    /// The same with what the thread has to do with it.
    fn metrics_and_thread(
        fake: &Arc<Fake>,
        times: Times,
    ) -> (prometheus::Registry, Arc<Mutex<Shared>>) {
        let registry = prometheus::Registry::new();
        let source: Arc<dyn GpuSource> = Arc::<Fake>::clone(fake);
        let metrics = GpuMetrics { times, ..GpuMetrics::new(Gpus(source)).unwrap() };
        let shared = Arc::clone(&metrics.shared);
        registry.register(Box::new(metrics)).unwrap();
        (registry, shared)
    }

    fn text(registry: &prometheus::Registry) -> String {
        prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap()
    }

    /// Scrapes until `done`.
    fn until(registry: &prometheus::Registry, done: impl Fn(&str) -> bool) -> String {
        let began = Instant::now();
        loop {
            let text = text(registry);
            if done(&text) {
                return text;
            }
            assert!(began.elapsed() < PATIENCE, "{text}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    const MS: Duration = Duration::from_millis(1);
    /// What never happens is told after that long.
    const PATIENCE: Duration = Duration::from_secs(120);

    #[test]
    fn what_the_driver_says_has_a_line_and_nothing_else() {
        let fake = Arc::new(Fake::default());
        let registry = metrics(&fake, TIMES);
        let text = until(&registry, |text| !text.is_empty());
        for line in [
            "minisgl_gpu_info{gpu=\"0\",name=\"H100\",uuid=\"GPU-1\"} 1\n",
            "minisgl_gpu_power_watts{gpu=\"0\"} 301.5\n",
            "minisgl_gpu_utilization_ratio{gpu=\"0\"} 0.5\n",
            "minisgl_gpu_memory_bytes{gpu=\"1\"} 80\n",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("temperature"), "{text}");
        assert!(!text.contains("memory_bytes{gpu=\"0\"}"), "{text}");
    }

    #[test]
    fn a_driver_that_hangs_holds_up_nobody_and_its_lines_vanish() {
        let fake = Arc::new(Fake::default());
        let registry = metrics(&fake, Times { pause: 5 * MS, fresh: 100 * MS, wanted: 1000 * MS });
        until(&registry, |text| text.contains("301.5"));
        fake.hangs.store(true, Ordering::SeqCst);
        until(&registry, str::is_empty);
        assert_eq!(
            text(&registry),
            "",
            "and nobody waits for it: it hangs until it is told not to"
        );
        fake.hangs.store(false, Ordering::SeqCst);
        until(&registry, |text| text.contains("301.5"));
    }

    #[test]
    fn nobody_who_scrapes_means_nobody_who_asks() {
        let fake = Arc::new(Fake::default());
        let times = Times { pause: MS, fresh: 1000 * MS, wanted: 20 * MS };
        let (registry, thread) = metrics_and_thread(&fake, times);
        assert_eq!(fake.asked.load(Ordering::SeqCst), 0);
        text(&registry);
        let began = Instant::now();
        while lock(&thread).running {
            assert!(began.elapsed() < PATIENCE, "it asks on");
            std::thread::sleep(MS);
        }
        let asked = fake.asked.load(Ordering::SeqCst);
        assert!(asked > 0);
        std::thread::sleep(100 * MS);
        assert_eq!(fake.asked.load(Ordering::SeqCst), asked, "it asks on");
        until(&registry, |_| fake.asked.load(Ordering::SeqCst) > asked);
    }
}
