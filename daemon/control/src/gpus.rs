//! What the daemon itself asks of this machine's GPUs: whether there may be any, how they do, and how much
//! of their memory each worker holds.
//!
//! Owns: NVML, the driver's library for looking on. It is loaded when it is first asked, once, and only
//! where a model is on a GPU or somebody scrapes metrics. Must never: open a GPU, which is the workers' business, or let a driver that
//! hangs hold up the runtime or the daemon's end.

mod readings;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use minisgl_proto::admin::ModelStatus;
use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::enums::device::UsedGpuMemory;
use tokio::sync::{Semaphore, oneshot};

pub(crate) use readings::GpuMetrics;
pub use readings::GpuReading;

/// How long a status waits for the driver.
const PATIENCE: Duration = Duration::from_secs(3);

/// Where NVML is, as the driver's installers put it: the loader's places, containers, WSL, NixOS.
const LIBRARIES: [&str; 4] = [
    "libnvidia-ml.so.1",
    "/usr/local/nvidia/lib64/libnvidia-ml.so.1",
    "/usr/lib/wsl/lib/libnvidia-ml.so.1",
    "/run/opengl-driver/lib/libnvidia-ml.so.1",
];

/// What a driver of NVIDIA leaves in sight.
const TRACES: [&str; 3] = ["/dev/nvidiactl", "/proc/driver/nvidia/version", "/dev/dxg"];

/// Knows the GPUs of a machine.
pub trait GpuSource: Send + Sync {
    /// Whether a model with `device = auto` may end on a GPU. Asked at each load; must not block. Yes where
    /// it is not known.
    fn may_exist(&self) -> bool;

    /// Bytes of GPU memory by process id, over all GPUs. May block; empty where nobody knows.
    fn memory_by_process(&self) -> HashMap<u32, u64>;

    /// How every GPU does now. May block; empty where nobody knows.
    fn readings(&self) -> Vec<GpuReading> {
        Vec::new()
    }
}

/// The GPUs that a registry asks about.
#[derive(Clone)]
pub struct Gpus(pub Arc<dyn GpuSource>);

impl Gpus {
    /// A machine without any.
    pub fn none() -> Self {
        Gpus(Arc::new(NoGpus))
    }

    /// Those of this machine, in a build that cannot use them: it looks on.
    pub fn unusable() -> Self {
        Gpus(Arc::new(Onlooker::default()))
    }
}

impl Default for Gpus {
    /// Those of this machine.
    fn default() -> Self {
        Gpus(Arc::new(Machine::default()))
    }
}

impl fmt::Debug for Gpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gpus")
    }
}

struct NoGpus;

impl GpuSource for NoGpus {
    fn may_exist(&self) -> bool {
        false
    }

    fn memory_by_process(&self) -> HashMap<u32, u64> {
        HashMap::new()
    }
}

#[derive(Default)]
struct Onlooker(Machine);

impl GpuSource for Onlooker {
    fn may_exist(&self) -> bool {
        false
    }

    fn memory_by_process(&self) -> HashMap<u32, u64> {
        HashMap::new()
    }

    fn readings(&self) -> Vec<GpuReading> {
        self.0.readings()
    }
}

/// This machine.
#[derive(Default)]
struct Machine(OnceLock<Option<Nvml>>);

impl GpuSource for Machine {
    fn may_exist(&self) -> bool {
        TRACES.iter().any(|trace| Path::new(trace).exists())
    }

    fn memory_by_process(&self) -> HashMap<u32, u64> {
        let Some(nvml) = self.0.get_or_init(open) else { return HashMap::new() };
        let mut memory = HashMap::new();
        // Every GPU is asked: NVML counts them in the order of their slots, CUDA as CUDA_VISIBLE_DEVICES
        // and CUDA_DEVICE_ORDER say, so that a worker's numbers are not NVML's. Its process id is its own.
        for device in
            (0..nvml.device_count().unwrap_or(0)).flat_map(|gpu| nvml.device_by_index(gpu))
        {
            for process in device.running_compute_processes().unwrap_or_default() {
                if let UsedGpuMemory::Used(bytes) = process.used_gpu_memory {
                    *memory.entry(process.pid).or_insert(0) += bytes;
                }
            }
        }
        memory
    }

    fn readings(&self) -> Vec<GpuReading> {
        let Some(nvml) = self.0.get_or_init(open) else { return Vec::new() };
        let gpus = 0..nvml.device_count().unwrap_or(0);
        gpus.filter_map(|index| reading(&nvml.device_by_index(index).ok()?, index)).collect()
    }
}

/// A GPU that does not even tell who it is is left out.
fn reading(gpu: &nvml_wrapper::Device<'_>, index: u32) -> Option<GpuReading> {
    let memory = gpu.memory_info().ok();
    let watts = |milliwatts: u32| f64::from(milliwatts) / 1000.0;
    Some(GpuReading {
        index,
        uuid: gpu.uuid().ok()?,
        name: gpu.name().ok()?,
        memory_bytes: memory.as_ref().map(|memory| memory.total),
        memory_used_bytes: memory.map(|memory| memory.used),
        utilization: gpu.utilization_rates().ok().map(|rates| f64::from(rates.gpu) / 100.0),
        power_w: gpu.power_usage().ok().map(watts),
        power_limit_w: gpu.enforced_power_limit().ok().map(watts),
        temperature_c: gpu.temperature(TemperatureSensor::Gpu).ok().map(f64::from),
    })
}

fn open() -> Option<Nvml> {
    let mut why = String::new();
    for library in LIBRARIES {
        match Nvml::builder().lib_path(OsStr::new(library)).init() {
            Ok(nvml) => return Some(nvml),
            Err(error) => why = format!("{why}; {library}: {error}"),
        }
    }
    let why = why.trim_start_matches("; ");
    tracing::info!(why, "no NVML: the GPU memory of models and the state of GPUs are not shown");
    None
}

/// Looks up the memory of workers, for one caller at a time.
pub(crate) struct Meter {
    gpus: Gpus,
    /// Held by the thread that asks, so that a driver that hangs has one thread and no more.
    turn: Arc<Semaphore>,
    patience: Duration,
}

impl Meter {
    pub(crate) fn new(gpus: Gpus) -> Self {
        Meter { gpus, turn: Arc::new(Semaphore::new(1)), patience: PATIENCE }
    }

    /// Fills in `gpu_memory_bytes` of the models that are on GPUs.
    pub(crate) async fn fill(&self, models: &mut [ModelStatus]) {
        if models.iter().all(|model| model.gpus.is_empty() || model.pid.is_none()) {
            return;
        }
        let Ok(memory) = tokio::time::timeout(self.patience, self.ask()).await else { return };
        for model in models.iter_mut().filter(|model| !model.gpus.is_empty()) {
            model.gpu_memory_bytes = model.pid.and_then(|pid| memory.get(&pid).copied());
        }
    }

    async fn ask(&self) -> HashMap<u32, u64> {
        let Ok(turn) = Arc::clone(&self.turn).acquire_owned().await else { return HashMap::new() };
        let (reply, answer) = oneshot::channel();
        let source = Arc::clone(&self.gpus.0);
        // A thread of its own: the runtime's end waits for the tasks of its blocking pool.
        let thread = std::thread::Builder::new().name("nvml".to_string()).spawn(move || {
            let memory = source.memory_by_process();
            drop(turn);
            let _ = reply.send(memory);
        });
        match thread {
            Ok(_) => answer.await.unwrap_or_default(),
            Err(_) => HashMap::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use minisgl_proto::LoadOptions;
    use minisgl_proto::admin::{ModelState, Origin};

    use super::*;

    /// Process 7 has 42 bytes, and process 8 what nobody knows.
    #[derive(Default)]
    struct Fake {
        asked: AtomicUsize,
        hangs: AtomicBool,
    }

    impl GpuSource for Fake {
        fn may_exist(&self) -> bool {
            true
        }

        fn memory_by_process(&self) -> HashMap<u32, u64> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            while self.hangs.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
            }
            HashMap::from([(7, 42)])
        }
    }

    fn model(pid: Option<u32>, gpus: &[u32]) -> ModelStatus {
        ModelStatus {
            name: "m".to_string(),
            source: "m".to_string(),
            state: ModelState::Ready,
            reason: None,
            pid,
            gpus: gpus.to_vec(),
            gpu_memory_bytes: None,
            restarts: 0,
            state_s: 0.0,
            in_flight: 0,
            progress: None,
            info: None,
            stats: None,
            options: LoadOptions::default(),
            persisted: false,
            aliases: vec![],
            origin: Origin::Loaded,
            retry_in_s: None,
            dialect: None,
            notes: vec![],
        }
    }

    fn meter(source: &Arc<Fake>, patience: Duration) -> Meter {
        let source: Arc<dyn GpuSource> = Arc::<Fake>::clone(source);
        Meter { patience, ..Meter::new(Gpus(source)) }
    }

    #[tokio::test]
    async fn workers_on_gpus_are_looked_up_by_process() {
        let source = Arc::new(Fake::default());
        let meter = meter(&source, PATIENCE);
        let mut models =
            [model(Some(7), &[0]), model(Some(8), &[1]), model(Some(7), &[]), model(None, &[0])];
        meter.fill(&mut models).await;
        assert_eq!(models.map(|model| model.gpu_memory_bytes), [Some(42), None, None, None]);
        let mut nobody = [model(Some(7), &[]), model(None, &[0])];
        meter.fill(&mut nobody).await;
        assert_eq!(source.asked.load(Ordering::SeqCst), 1, "there was nobody to ask for");
    }

    #[tokio::test]
    async fn a_driver_that_hangs_is_asked_once_and_holds_up_nobody() {
        let source = Arc::new(Fake { hangs: true.into(), ..Fake::default() });
        let meter = meter(&source, Duration::from_millis(50));
        // Whoever waited for the driver would wait until it no longer hangs, which is at the end of this.
        for _ in 0..3 {
            let mut models = [model(Some(7), &[0])];
            meter.fill(&mut models).await;
            assert_eq!(models[0].gpu_memory_bytes, None);
        }
        assert_eq!(source.asked.load(Ordering::SeqCst), 1);
        source.hangs.store(false, Ordering::SeqCst);
    }

    #[test]
    fn this_machine_is_asked_without_harm_whatever_it_has() {
        let machine = Machine::default();
        for _ in 0..2 {
            let memory = machine.memory_by_process();
            assert!(!memory.contains_key(&std::process::id()), "this test opens no GPU");
            // Without a driver there is nothing to tell of.
            let has_driver = std::path::Path::new("/proc/driver/nvidia").exists();
            assert!(has_driver || (memory.is_empty() && machine.readings().is_empty()));
            for gpu in machine.readings() {
                println!("{gpu:?}");
                assert!(gpu.memory_used_bytes <= gpu.memory_bytes, "{gpu:?}");
                assert!(
                    gpu.utilization.is_none_or(|share| (0.0..=1.0).contains(&share)),
                    "{gpu:?}"
                );
                assert!(gpu.power_w.is_none_or(|watts| (1.0..3000.0).contains(&watts)), "{gpu:?}");
            }
        }
    }
}
