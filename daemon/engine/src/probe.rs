//! What this machine has for the engine: whether a model would load onto a GPU, and if not, why.
//!
//! Must never: guess. `Ready` is said only after the first GPU was opened as a load opens it, unless
//! others have filled its memory.

use std::path::{Path, PathBuf};

use minisgl_proto::doctor::{DriverReport, MachineReport, Verdict};

/// Looks at driver, GPUs and libraries; takes a moment of each GPU. `libraries` is the configured folder,
/// from now on that of the whole process.
#[cfg(feature = "cuda")]
pub fn probe(libraries: Option<&Path>) -> MachineReport {
    if let Some(folder) = libraries {
        minisgl_kernels::library::configure(folder.to_path_buf());
    }
    cuda::probe()
}

/// Says that this build looks at nothing.
#[cfg(not(feature = "cuda"))]
pub fn probe(libraries: Option<&Path>) -> MachineReport {
    let problem = "this minisgld was built without its CUDA backend (--no-default-features); build it \
                   with the default features to use a GPU";
    let libraries = libraries.map(Path::to_path_buf);
    report(Verdict::NoBackend, Some(problem.to_owned()), DriverReport::default(), libraries)
}

fn report(
    verdict: Verdict,
    problem: Option<String>,
    driver: DriverReport,
    libraries_folder: Option<PathBuf>,
) -> MachineReport {
    let (gpus, libraries) = (Vec::new(), Vec::new());
    MachineReport { verdict, problem, driver, gpus, libraries, libraries_folder }
}

#[cfg(feature = "cuda")]
mod cuda {
    use minisgl_kernels::library::{self, Library};
    use minisgl_kernels::probe::{self, Gpu as Facts, machine_code};
    use minisgl_proto::doctor::{DriverReport, GpuReport, LibraryReport, MachineReport, Verdict};

    use crate::ops::cuda::Gpu;

    /// The libraries beside the driver's, what they are for, and whether one GPU needs them.
    const LIBRARIES: [(Library, &str, bool); 2] =
        [(library::CUBLASLT, "matrix products", true), (library::NCCL, "several GPUs", false)];

    /// Free memory below which a GPU is not opened: a context, the kernels and a workspace take less.
    const OPEN_BYTES_MIN: u64 = 1 << 30;

    pub(super) fn probe() -> MachineReport {
        let found = probe::driver();
        let (gpus, lost): (Vec<_>, Vec<_>) =
            (0..found.gpus).map(probe::gpu).partition(Result::is_ok);
        let gpus: Vec<Facts> = gpus.into_iter().flatten().collect();
        let libraries: Vec<LibraryReport> = LIBRARIES.iter().map(look_for).collect();
        let driver = DriverReport {
            path: found.path,
            version: found.version,
            cuda: found.cuda,
            error: found.error,
        };
        let lost = lost.into_iter().find_map(Result::err);
        let (verdict, problem) = judge(&driver, &gpus, lost, &libraries);
        let report = super::report(verdict, problem, driver, library::configured());
        MachineReport { gpus: gpus.into_iter().map(gpu_report).collect(), libraries, ..report }
    }

    /// The first thing that keeps the first GPU, the one that models load onto, from being used.
    fn judge(
        driver: &DriverReport,
        gpus: &[Facts],
        lost: Option<String>,
        libraries: &[LibraryReport],
    ) -> (Verdict, Option<String>) {
        if let Some(error) = &driver.error {
            return (Verdict::NoDriver, Some(error.clone()));
        }
        let Some(first) = gpus.first() else {
            let why = lost.unwrap_or_else(|| {
                "see `nvidia-smi` and CUDA_VISIBLE_DEVICES; a container needs `--gpus all`".into()
            });
            return (Verdict::NoGpu, Some(format!("the driver shows no GPU: {why}")));
        };
        let (major, minor) = first.capability;
        if machine_code(first.capability).is_none() {
            let name = &first.name;
            let why = format!(
                "GPU 0 ({name}) has compute capability {major}.{minor}; 8.0 (Ampere) is the least"
            );
            return (Verdict::NoGpu, Some(why));
        }
        if let Some(missing) =
            libraries.iter().find(|library| library.required && library.path.is_none())
        {
            return (Verdict::NoLibrary, missing.error.clone());
        }
        // A GPU that a model fills is a GPU that works.
        let full = first.full || first.free_bytes.is_some_and(|bytes| bytes < OPEN_BYTES_MIN);
        if full {
            return (Verdict::Ready, None);
        }
        match Gpu::open(0) {
            Ok(_) => (Verdict::Ready, None),
            Err(error) => (Verdict::NoGpu, Some(format!("GPU 0 does not open: {error}"))),
        }
    }

    fn look_for((library, purpose, required): &(Library, &str, bool)) -> LibraryReport {
        let (path, version, error) = match probe::library(library) {
            Ok((path, version)) => (Some(path), version, None),
            Err(error) => (None, None, Some(error)),
        };
        LibraryReport {
            name: library.name.to_owned(),
            purpose: (*purpose).to_owned(),
            required: *required,
            path,
            version,
            error,
        }
    }

    fn gpu_report(gpu: Facts) -> GpuReport {
        let code = machine_code(gpu.capability);
        GpuReport {
            ordinal: gpu.ordinal as u32,
            name: gpu.name,
            capability: gpu.capability,
            memory_bytes: gpu.memory_bytes,
            free_bytes: gpu.free_bytes,
            code: code.map(|(name, _)| name.to_owned()),
            native: code.is_some_and(|(_, native)| native),
            error: gpu.error,
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        fn gpu(capability: (u32, u32)) -> Facts {
            Facts {
                ordinal: 0,
                name: "X".into(),
                capability,
                memory_bytes: 80 << 30,
                free_bytes: Some(0),
                error: None,
                full: false,
            }
        }

        fn libraries(present: bool) -> Vec<LibraryReport> {
            let library = |name: &str, required, there: bool| LibraryReport {
                name: name.into(),
                purpose: String::new(),
                required,
                path: there.then(|| "/x".into()),
                version: None,
                error: (!there).then(|| format!("{name} was not found")),
            };
            vec![library("blas", true, present), library("nccl", false, false)]
        }

        #[test]
        fn the_first_thing_in_the_way_is_told() {
            let fine = DriverReport::default();
            let broken = DriverReport { error: Some("asleep".into()), ..DriverReport::default() };
            let judge =
                |driver, gpus: &[Facts], there| judge(driver, gpus, None, &libraries(there));
            let (verdict, problem) = judge(&broken, &[], false);
            assert_eq!(verdict, Verdict::NoDriver);
            assert!(problem.unwrap().contains("asleep"));
            assert_eq!(judge(&fine, &[], false).0, Verdict::NoGpu);
            let (verdict, problem) = judge(&fine, &[gpu((7, 5))], true);
            assert_eq!(verdict, Verdict::NoGpu);
            assert!(problem.unwrap().contains("7.5"));
            let (verdict, problem) = judge(&fine, &[gpu((9, 0))], false);
            assert_eq!(
                (verdict, problem.as_deref()),
                (Verdict::NoLibrary, Some("blas was not found"))
            );
            // Full of a model: it cannot be opened once more, and is ready all the same.
            assert_eq!(judge(&fine, &[gpu((9, 0))], true), (Verdict::Ready, None));
        }
    }
}
