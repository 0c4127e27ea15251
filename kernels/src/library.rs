//! Finding NVIDIA's shared libraries, which come with the driver, a CUDA toolkit or Python packages.
//!
//! Owns: which libraries there are, where to look, and loading what was found before cudarc asks for it
//! by name. Must never: run a program to find out.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Names a folder that is looked into before all others. The daemon sets it for its workers from the
/// configuration.
pub const FOLDER_VARIABLE: &str = "MINISGL_CUDA_LIBRARIES";

/// A library that is loaded at run time.
#[derive(Clone, Copy, Debug)]
pub struct Library {
    /// File name, with the version of its interface.
    pub name: &'static str,
    /// What to install where it is missing.
    pub install: &'static str,
}

/// The driver.
pub const DRIVER: Library = Library {
    name: "libcuda.so.1",
    install: "install NVIDIA's driver, 580 or newer (a container needs `--gpus all`)",
};

/// Matrix products.
pub const CUBLASLT: Library = Library {
    name: "libcublasLt.so.13",
    install: "install the libraries of CUDA 13 or `pip install nvidia-cublas`",
};

/// Collectives between GPUs.
pub const NCCL: Library = Library {
    name: "libnccl.so.2",
    install: "install NCCL 2 (libnccl2) or `pip install nvidia-nccl-cu13`",
};

/// Where drivers are that the loader was not told of: containers of Kubernetes, WSL, NixOS.
const DRIVER_FOLDERS: [&str; 3] =
    ["/usr/local/nvidia/lib64", "/usr/lib/wsl/lib", "/run/opengl-driver/lib"];

/// Folders that an error lists.
const SHOWN_MAX: usize = 6;

/// A library that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} {}: {}, or name its folder with [gpu] libraries or {FOLDER_VARIABLE}",
    .library.name, found(.tried, .broken), .library.install
)]
pub struct LibraryError {
    /// Which.
    pub library: Library,
    /// Folders that were looked into.
    pub tried: Vec<PathBuf>,
    /// Files that are there and do not load, and what the loader said.
    pub broken: Vec<(PathBuf, String)>,
}

fn found(tried: &[PathBuf], broken: &[(PathBuf, String)]) -> String {
    if let Some((path, why)) = broken.first() {
        return format!("does not load from {} ({why})", path.display());
    }
    let mut shown: Vec<String> =
        tried.iter().take(SHOWN_MAX).map(|folder| folder.display().to_string()).collect();
    match tried.len() {
        0 => shown.push("any other folder".into()),
        n if n > SHOWN_MAX => shown.push(format!("{} more", n - SHOWN_MAX)),
        _ => {}
    }
    let shown = shown.join(", ");
    format!("was found neither by the system's loader nor in {shown}")
}

static CONFIGURED: OnceLock<PathBuf> = OnceLock::new();

/// Sets what [`configured`] answers in this process, over the environment. The first call counts.
pub fn configure(folder: PathBuf) {
    let _ = CONFIGURED.set(folder);
}

/// The folder of [`configure`], else the one that [`FOLDER_VARIABLE`] names.
pub fn configured() -> Option<PathBuf> {
    if let Some(folder) = CONFIGURED.get() {
        return Some(folder.clone());
    }
    env::var_os(FOLDER_VARIABLE).filter(|folder| !folder.is_empty()).map(PathBuf::from)
}

/// Loads a library for the rest of the process and says where it is. `configured` is looked into
/// first: a folder of libraries, a CUDA toolkit, a Python environment, or its `site-packages`.
///
/// # Errors
/// It is nowhere, or no file that is there loads.
pub fn load(library: &Library, configured: Option<&Path>) -> Result<PathBuf, LibraryError> {
    let own: Vec<PathBuf> = configured
        .map(|folder| [vec![folder.to_path_buf()], inside(folder)].concat())
        .unwrap_or_default();
    let others = folders();
    let in_folders = |folders: &[PathBuf]| -> Vec<PathBuf> {
        let paths = folders.iter().map(|folder| folder.join(library.name));
        paths.filter(|path| path.is_file()).collect()
    };
    let mut broken = Vec::new();
    let by_loader = PathBuf::from(library.name);
    for path in in_folders(&own).into_iter().chain([by_loader]).chain(in_folders(&others)) {
        match stays_loaded(&path) {
            Ok(()) => return Ok(loaded_file(library.name).unwrap_or(path)),
            // The loader's answer to a mere name is that there is no such file.
            Err(why) if path.is_absolute() => broken.push((path, why)),
            Err(_) => {}
        }
    }
    Err(LibraryError { library: *library, tried: [own, others].concat(), broken })
}

/// Loads and leaves loaded: from now on the loader gives this file for its name.
fn stays_loaded(path: &Path) -> Result<(), String> {
    // SAFETY: runs the initialisers of a library that the operator installed as NVIDIA's.
    let library = unsafe { libloading::Library::new(path) };
    // The loader's own words are the error's source.
    library.map(std::mem::forget).map_err(|error| {
        std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string)
    })
}

/// The file that is mapped into this process for a library: the real one, links followed. Its name may
/// have another version: `libcuda.so.1` is `libcuda.so.580.95.05`.
fn loaded_file(name: &str) -> Option<PathBuf> {
    let name = &name[..name.find(".so")? + ".so".len()];
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let paths = maps.lines().filter_map(|line| Some(Path::new(&line[line.find('/')?..])));
    let is_it = |path: &&Path| {
        path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name))
    };
    paths.into_iter().find(is_it).map(Path::to_path_buf)
}

/// Where libraries may be that the loader does not find; only folders that exist.
fn folders() -> Vec<PathBuf> {
    let named = |variable: &str| env::var_os(variable).map(PathBuf::from);
    let toolkit = named("CUDA_HOME").or_else(|| Some("/usr/local/cuda".into()));
    let environments = [
        toolkit,
        named("VIRTUAL_ENV"),
        named("CONDA_PREFIX"),
        named("HOME").map(|home| home.join(".local")),
        Some("/usr/local".into()),
        Some("/usr".into()),
    ];
    let mut folders: Vec<PathBuf> =
        environments.into_iter().flatten().flat_map(|root| inside(&root)).collect();
    folders.extend(DRIVER_FOLDERS.map(PathBuf::from).into_iter().filter(|path| path.is_dir()));
    folders
}

/// The folders that hold libraries in a toolkit, a Python environment or a folder of Python packages.
fn inside(root: &Path) -> Vec<PathBuf> {
    let mut folders = vec![root.join("lib64"), root.join("lib")];
    let mut packages = vec![root.to_path_buf()];
    for python in children(&root.join("lib"), "python3") {
        packages.extend(["site-packages", "dist-packages"].map(|name| python.join(name)));
    }
    for packages in packages {
        let nvidia = children(&packages.join("nvidia"), "");
        folders.extend(nvidia.into_iter().map(|package| package.join("lib")));
    }
    folders.retain(|folder| folder.is_dir());
    folders
}

/// What is in a folder under names with this beginning, in order.
fn children(folder: &Path, beginning: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(beginning))
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds a shared library that has this name inside, too.
    fn build(to: &Path, name: &str) {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("empty.c");
        std::fs::write(&source, "int minisgl_test(void) { return 7; }\n").unwrap();
        let built = std::process::Command::new("cc")
            .args(["-shared", "-fPIC", &format!("-Wl,-soname,{name}"), "-o"])
            .arg(to.join(name))
            .arg(&source)
            .status();
        assert!(built.expect("a C compiler, `cc`").success());
    }

    #[test]
    fn a_configured_folder_makes_a_name_known_to_the_loader() {
        let dir = tempfile::tempdir().unwrap();
        let library = Library { name: "libminisgl-test.so.13", install: "install some-package" };
        let missing = load(&library, Some(dir.path())).unwrap_err().to_string();
        for part in [library.name, library.install, dir.path().to_str().unwrap(), FOLDER_VARIABLE] {
            assert!(missing.contains(part), "{part} is not in: {missing}");
        }
        build(dir.path(), library.name);
        let path = dir.path().canonicalize().unwrap().join(library.name);
        assert_eq!(load(&library, Some(dir.path())).unwrap(), path);
        // Now the name alone is enough, as cudarc asks.
        assert_eq!(load(&library, None).unwrap(), path);
    }

    #[test]
    fn a_file_that_does_not_load_is_named_with_the_loaders_words() {
        let dir = tempfile::tempdir().unwrap();
        let library = Library { name: "libminisgl-broken.so.1", install: "install it" };
        let path = dir.path().join(library.name);
        std::fs::write(&path, "no library").unwrap();
        let error = load(&library, Some(dir.path())).unwrap_err().to_string();
        assert!(error.contains("does not load from") && error.contains("install it"), "{error}");
        assert!(error.contains(path.to_str().unwrap()), "{error}");
        assert!(error.contains("too short") || error.contains("ELF"), "{error}");
    }

    #[test]
    fn a_python_environment_is_searched_as_pip_fills_it() {
        let dir = tempfile::tempdir().unwrap();
        let packages = dir.path().join("lib/python3.12/site-packages");
        let lib = packages.join("nvidia/cu13/lib");
        std::fs::create_dir_all(&lib).unwrap();
        let library = Library { name: "libminisgl-pip.so.13", install: "" };
        build(&lib, library.name);
        assert!(inside(&packages).contains(&lib), "site-packages themselves may be configured");
        let found = load(&library, Some(dir.path())).unwrap();
        assert_eq!(found, lib.canonicalize().unwrap().join(library.name));
    }

    #[test]
    fn a_long_list_of_folders_is_cut() {
        let tried: Vec<PathBuf> = (0..20).map(|n| format!("/f{n}").into()).collect();
        let text = found(&tried, &[]);
        assert!(text.contains("/f5, 14 more") && !text.contains("/f6"), "{text}");
    }
}
