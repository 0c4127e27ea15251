//! What this machine has for the engine: whether a model would load onto a GPU, and if not, why.
//!
//! Must never: guess. `Ready` is said only after the first GPU was opened as a load opens it, unless
//! others have filled its memory.

use std::path::{Path, PathBuf};

#[cfg(any(feature = "cuda", test))]
use minisgl_proto::doctor::LinkReport;
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
    let (gpus, links, libraries) = (Vec::new(), Vec::new(), Vec::new());
    MachineReport { verdict, problem, driver, gpus, links, libraries, libraries_folder }
}

/// Every pair of `gpus`, ascending, as `look` finds it: the driver's rank of its link, `None` for no link.
#[cfg(any(feature = "cuda", test))]
fn links(
    gpus: &[usize],
    look: impl Fn(usize, usize) -> Result<Option<u32>, String>,
) -> Vec<LinkReport> {
    let pairs = gpus.iter().enumerate().flat_map(|(at, &one)| {
        let others = &gpus[at + 1..];
        others.iter().map(move |&other| (one, other))
    });
    pairs
        .map(|(one, other)| {
            let gpus = (one as u32, other as u32);
            match look(one, other) {
                Ok(rank) => LinkReport { gpus, rank, error: None },
                Err(error) => LinkReport { gpus, rank: None, error: Some(error) },
            }
        })
        .collect()
}

#[cfg(feature = "cuda")]
mod cuda {
    use minisgl_kernels::library::{self, Library};
    use minisgl_kernels::peers;
    use minisgl_kernels::probe::{self, Gpu as Facts, machine_code};
    use minisgl_proto::doctor::{DriverReport, GpuReport, LibraryReport, MachineReport, Verdict};

    use crate::ops::cuda::Gpu;

    /// The libraries beside the driver's, what they are for, and whether one GPU needs them.
    const LIBRARIES: [(Library, &str, bool); 2] =
        [(library::CUBLASLT, "matrix products", true), (library::NCCL, NCCL_PURPOSE, false)];

    const NCCL_PURPOSE: &str = "several GPUs: needed where they cannot read each other's memory, used elsewhere \
                                for large sums if it is faster";

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
        // Others run no model, and so no ranks.
        let able = gpus.iter().filter(|gpu| machine_code(gpu.capability).is_some());
        let able: Vec<usize> = able.map(|gpu| gpu.ordinal).collect();
        let link = |one, other| peers::link(one, other).map_err(|error| error.to_string());
        let links = super::links(&able, link);
        let gpus = gpus.into_iter().map(gpu_report).collect();
        MachineReport { gpus, links, libraries, ..report }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_is_looked_at_once() {
        let look = |one: usize, other: usize| match (one, other) {
            (0, 1) => Ok(Some(0)),
            (0, 3) => Ok(None),
            (1, 3) => Err("asleep".to_owned()),
            other => panic!("{other:?} was asked for"),
        };
        let link = |gpus, rank, error: Option<&str>| {
            let error = error.map(str::to_owned);
            LinkReport { gpus, rank, error }
        };
        let expected = [
            link((0, 1), Some(0), None),
            link((0, 3), None, None),
            link((1, 3), None, Some("asleep")),
        ];
        assert_eq!(links(&[0, 1, 3], look), expected);
        assert_eq!(links(&[2], look), []);
        assert_eq!(links(&[], look), []);
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn a_build_without_a_backend_says_so_and_lists_nothing() {
        let report = probe(Some(Path::new("/opt/cuda")));
        assert_eq!(report.verdict, Verdict::NoBackend);
        assert!(report.problem.is_some_and(|why| why.contains("--no-default-features")));
        assert!(report.gpus.is_empty() && report.links.is_empty() && report.libraries.is_empty());
        assert_eq!(report.libraries_folder.as_deref(), Some(Path::new("/opt/cuda")));
    }
}
