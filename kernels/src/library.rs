//! Finding NVIDIA's shared libraries, which come with the driver, a CUDA toolkit or Python packages.
//!
//! Owns: where to look, and loading what was found before cudarc asks for it by name. Must never: run a
//! program to find out.

use std::env;
use std::path::{Path, PathBuf};

/// A library that is in none of the places.
#[derive(Debug, thiserror::Error)]
#[error(
    "{name} was not found: not by the loader (LD_LIBRARY_PATH, ld.so.conf), nor in {}; install the \
     CUDA libraries or `pip install {package}`, or configure the folder that has them",
    list(.tried)
)]
pub struct LibraryError {
    /// File name.
    pub name: String,
    /// PyPI package that has it.
    pub package: &'static str,
    /// Folders that were looked into.
    pub tried: Vec<PathBuf>,
}

fn list(folders: &[PathBuf]) -> String {
    let shown: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
    if shown.is_empty() { "any other folder".into() } else { shown.join(", ") }
}

/// Loads the library `name` for the rest of the process and says where it was: the path, or just the name
/// if the loader found it. `configured` is looked into first.
///
/// # Errors
/// It is nowhere, or the file does not load.
pub fn load(
    name: &str,
    package: &'static str,
    configured: Option<&Path>,
) -> Result<PathBuf, LibraryError> {
    let folders = folders(configured);
    let in_configured = configured.map(|folder| folder.join(name));
    let by_loader = Some(PathBuf::from(name));
    let in_folders = folders.iter().map(|folder| folder.join(name)).filter(|path| path.is_file());
    in_configured
        .into_iter()
        .chain(by_loader)
        .chain(in_folders)
        .find(|path| stays_loaded(path))
        .ok_or_else(|| LibraryError { name: name.into(), package, tried: folders })
}

/// Loads and leaves loaded: from now on the loader gives this file for its name.
fn stays_loaded(path: &Path) -> bool {
    // SAFETY: runs the initialisers of a library that the operator installed as NVIDIA's.
    match unsafe { libloading::Library::new(path) } {
        Ok(library) => {
            std::mem::forget(library);
            true
        }
        Err(_) => false,
    }
}

/// Folders that may hold CUDA libraries and exist, the configured one first.
pub fn folders(configured: Option<&Path>) -> Vec<PathBuf> {
    let home = |variable: &str| env::var_os(variable).map(PathBuf::from);
    let toolkit = home("CUDA_HOME").or_else(|| Some("/usr/local/cuda".into()));
    let mut folders: Vec<PathBuf> = configured.map(Path::to_path_buf).into_iter().collect();
    folders.extend(toolkit.into_iter().flat_map(|at| [at.join("lib64"), at.join("lib")]));
    let environments = [
        home("VIRTUAL_ENV"),
        home("HOME").map(|home| home.join(".local")),
        Some("/usr/local".into()),
        Some("/usr".into()),
    ];
    for environment in environments.into_iter().flatten() {
        for python in children(&environment.join("lib"), "python3") {
            for packages in ["site-packages", "dist-packages"] {
                let nvidia = python.join(packages).join("nvidia");
                folders
                    .extend(children(&nvidia, "").into_iter().map(|package| package.join("lib")));
            }
        }
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

    #[test]
    fn a_configured_folder_makes_a_name_known_to_the_loader() {
        let dir = tempfile::tempdir().unwrap();
        let name = "libminisgl-test.so.13";
        let missing = load(name, "some-package", Some(dir.path())).unwrap_err().to_string();
        assert!(missing.contains(name) && missing.contains("some-package"), "{missing}");
        assert!(missing.contains(&dir.path().display().to_string()), "{missing}");

        let source = dir.path().join("empty.c");
        std::fs::write(&source, "int minisgl_test(void) { return 7; }\n").unwrap();
        let built = std::process::Command::new("cc")
            .args(["-shared", "-fPIC", &format!("-Wl,-soname,{name}"), "-o"])
            .arg(dir.path().join(name))
            .arg(&source)
            .status();
        assert!(built.expect("a C compiler, `cc`").success());
        assert_eq!(load(name, "some-package", Some(dir.path())).unwrap(), dir.path().join(name));
        // Now the name alone is enough, as cudarc asks.
        assert_eq!(load(name, "some-package", None).unwrap(), Path::new(name));
    }
}
