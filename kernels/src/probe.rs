//! What there is to compute on: the driver, its GPUs, and the libraries beside it.
//!
//! Owns: the oldest driver and GPU that the kernels run on. Must never: panic on a machine that lacks any of
//! it, or keep anything on a GPU.

use std::ffi::c_int;
use std::path::PathBuf;

use cudarc::driver::sys::{self, CUdevice_attribute, CUresult};
use cudarc::driver::{CudaContext, DriverError, result};

use crate::error::{CUDA_MIN, OpenError};
use crate::library::{self, Library};

/// The driver as it was found.
#[derive(Debug, Default)]
pub struct Driver {
    /// File of its library.
    pub path: Option<PathBuf>,
    /// Version of its kernel module.
    pub version: Option<String>,
    /// Latest CUDA version that it supports.
    pub cuda: Option<(u32, u32)>,
    /// GPUs that it shows.
    pub gpus: usize,
    /// Why it cannot be used.
    pub error: Option<String>,
}

/// One GPU as the driver tells of it.
#[derive(Debug)]
pub struct Gpu {
    /// The driver's number.
    pub ordinal: usize,
    /// The driver's name.
    pub name: String,
    /// Compute capability.
    pub capability: (u32, u32),
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes free, if a context could be made to ask.
    pub free_bytes: Option<u64>,
    /// Why not.
    pub error: Option<String>,
    /// That was for want of memory: others use it.
    pub full: bool,
}

/// Finds the driver's library, checks its version, and starts it.
///
/// # Errors
/// `NoDriver`, `OldDriver`, `NoDevice` when it works and has no GPU, or `Driver` when it does not start.
pub(crate) fn start_driver() -> Result<PathBuf, OpenError> {
    let path = library::load(&library::DRIVER, library::configured().as_deref())?;
    let failed = |what: &str| {
        let what = what.to_owned();
        move |source| OpenError::Driver { what, source }
    };
    let (major, minor) = supported().map_err(failed("tell its version"))?;
    if (major, minor) < CUDA_MIN {
        return Err(OpenError::OldDriver { major, minor });
    }
    match result::init() {
        Ok(()) => Ok(path),
        Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => {
            Err(OpenError::NoDevice { ordinal: 0, count: 0 })
        }
        Err(error) => Err(failed("start")(error)),
    }
}

/// The latest CUDA version that the driver supports. Its library must be loaded.
fn supported() -> Result<(u32, u32), DriverError> {
    let mut version: c_int = 0;
    // SAFETY: the library is loaded, so the call exists; it writes one integer.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result()?;
    let version = version.max(0) as u32;
    Ok((version / 1000, version % 1000 / 10))
}

/// Looks at the driver.
pub fn driver() -> Driver {
    let version = module_version();
    let found = library::load(&library::DRIVER, library::configured().as_deref());
    let cuda = found.as_ref().ok().and_then(|_| supported().ok());
    let mut driver = Driver { path: found.ok(), version, cuda, ..Driver::default() };
    match start_driver() {
        Ok(_) => driver.gpus = CudaContext::device_count().map_or(0, |count| count.max(0) as usize),
        Err(OpenError::NoDevice { .. }) => {} // nothing is wrong with the driver
        Err(OpenError::Driver { what, source }) => {
            driver.error = Some(format!("NVIDIA's driver does not {what}: {}", explain(source)));
        }
        Err(error) => driver.error = Some(error.to_string()),
    }
    driver
}

/// What the kernel says: `580.95.05`.
fn module_version() -> Option<String> {
    let text = std::fs::read_to_string("/sys/module/nvidia/version").ok();
    let own = text.map(|text| text.trim().to_owned());
    own.or_else(|| version_in(&std::fs::read_to_string("/proc/driver/nvidia/version").ok()?))
}

/// The version in `/proc/driver/nvidia/version`: the first word that is numbers and dots.
fn version_in(text: &str) -> Option<String> {
    let is_version =
        |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    text.split_whitespace().find(is_version).map(str::to_owned)
}

/// The driver's words, and what to do about the errors that operators meet.
fn explain(error: DriverError) -> String {
    let said = error.error_string().map_or_else(
        |_| format!("{:?}", error.0),
        |text| format!("{} ({:?})", text.to_string_lossy(), error.0),
    );
    let remedy = match error.0 {
        CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            "; libcuda.so.1 and the kernel module are of different versions: reboot after a driver upgrade"
        }
        CUresult::CUDA_ERROR_STUB_LIBRARY => {
            "; this is the toolkit's stub for linking: take its folder out of LD_LIBRARY_PATH"
        }
        CUresult::CUDA_ERROR_SYSTEM_NOT_READY => {
            "; on machines with NVSwitch the service nvidia-fabricmanager must run"
        }
        _ => "",
    };
    format!("{said}{remedy}")
}

/// Looks at GPU `ordinal` of a driver that works. Makes a context for a moment to ask for free memory.
///
/// # Errors
/// The driver's words.
pub fn gpu(ordinal: usize) -> Result<Gpu, String> {
    let look = || -> Result<Gpu, DriverError> {
        let device = result::device::get(ordinal as c_int)?;
        // SAFETY: `device` is the driver's own answer to the line before, here and below.
        let attribute = |which| unsafe { result::device::get_attribute(device, which) };
        let major = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        Ok(Gpu {
            ordinal,
            name: result::device::get_name(device)?,
            capability: (major.max(0) as u32, minor.max(0) as u32),
            // SAFETY: as above.
            memory_bytes: unsafe { result::device::total_mem(device) }? as u64,
            free_bytes: None,
            error: None,
            full: false,
        })
    };
    let mut gpu = look().map_err(explain)?;
    match CudaContext::new(ordinal).and_then(|context| context.mem_get_info()) {
        Ok((free, _)) => gpu.free_bytes = Some(free as u64),
        Err(error) => {
            gpu.full = error.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY;
            gpu.error = Some(explain(error));
        }
    }
    Ok(gpu)
}

/// Which of the machine code in this build a GPU runs, and whether that is code for this very GPU; `None`
/// when it is too old. Mirrors `TARGETS` of `build/targets.rs`.
///
/// Code for sm_80 runs on every 8.x; code with an `a` on no other GPU than its own.
pub fn machine_code(capability: (u32, u32)) -> Option<(&'static str, bool)> {
    match capability {
        (8, 9) => Some(("sm_89", true)),
        (8, _) => Some(("sm_80", true)),
        (9, 0) => Some(("sm_90a", true)),
        (10, 0) => Some(("sm_100a", true)),
        (major, _) if major > 8 => Some(("compute_80", false)),
        _ => None,
    }
}

/// Finds a library that is used beside the driver's: where it is, and its version if it tells one.
///
/// # Errors
/// What was looked for and what to install.
pub fn library(wanted: &Library) -> Result<(PathBuf, Option<String>), String> {
    let path = library::load(wanted, library::configured().as_deref());
    let path = path.map_err(|error| error.to_string())?;
    let version = match wanted.name {
        name if name == library::CUBLASLT.name => cublaslt_version(name),
        name if name == library::NCCL.name => nccl_version(name),
        _ => None,
    };
    Ok((path, version))
}

fn cublaslt_version(name: &str) -> Option<String> {
    // SAFETY: the library is loaded already; this only finds it again.
    let library = unsafe { libloading::Library::new(name) }.ok()?;
    // SAFETY: `size_t cublasLtGetVersion(void)`, cublasLt.h.
    let version =
        unsafe { library.get::<unsafe extern "C" fn() -> usize>(b"cublasLtGetVersion\0") };
    // SAFETY: as above; `library` lives until the end of the function.
    let version = unsafe { version.ok()?() };
    // CUBLAS_VERSION: major * 10000 + minor * 100 + patch.
    Some(format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100))
}

fn nccl_version(name: &str) -> Option<String> {
    // SAFETY: the library is loaded already; this only finds it again.
    let library = unsafe { libloading::Library::new(name) }.ok()?;
    // SAFETY: `ncclResult_t ncclGetVersion(int *version)`, nccl.h; the result is an enum, 0 is success.
    let get =
        unsafe { library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(b"ncclGetVersion\0") };
    let mut version: c_int = 0;
    // SAFETY: as above, and it writes one integer.
    let status = unsafe { get.ok()?(&mut version) };
    // NCCL_VERSION since 2.9: major * 10000 + minor * 100 + patch.
    let text = format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100);
    (status == 0).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_gpu_gets_the_code_that_runs_on_it() {
        let code = |major, minor| machine_code((major, minor));
        assert_eq!(code(7, 5), None);
        for (minor, name) in [(0, "sm_80"), (6, "sm_80"), (7, "sm_80"), (9, "sm_89")] {
            assert_eq!(code(8, minor), Some((name, true)));
        }
        assert_eq!(code(9, 0), Some(("sm_90a", true)));
        assert_eq!(code(10, 0), Some(("sm_100a", true)));
        // Code with an `a` does not run on the next minor version.
        for newer in [(10, 3), (12, 0), (13, 0)] {
            assert_eq!(machine_code(newer), Some(("compute_80", false)));
        }
    }

    #[test]
    fn every_target_of_the_build_is_named() {
        let build = include_str!("../build/targets.rs");
        let named = |code: &str| build.contains(&format!("code={code}\""));
        for capability in [(8, 0), (8, 9), (9, 0), (10, 0), (12, 0)] {
            let (code, _) = machine_code(capability).unwrap();
            assert!(named(code), "{code} is not built");
        }
        assert_eq!(
            build.matches("-gencode=").count(),
            5,
            "a target that machine_code does not know"
        );
    }

    #[test]
    fn the_drivers_version_is_found_in_proc() {
        let text =
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build";
        assert_eq!(version_in(text).as_deref(), Some("580.95.05"));
        assert_eq!(version_in("NVRM version: none"), None);
    }

    #[test]
    fn without_a_driver_the_reason_is_told_and_nothing_panics() {
        let driver = driver();
        match (&driver.path, &driver.error) {
            (None, Some(error)) => {
                assert!(error.contains("libcuda.so.1") && error.contains("install"), "{error}");
                assert_eq!((driver.gpus, driver.cuda), (0, None));
            }
            (Some(_), _) => {} // there is a driver here: tests/gpu looks at it
            other => panic!("{other:?}"),
        }
    }
}
