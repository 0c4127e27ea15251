//! Compiles `cu/<op>/*.cu` with nvcc into fatbins that the crate embeds, and `cu/fa/*.cu` and `cu/fi/*.cu`,
//! whose launches are host code, into a static library.
//!
//! Only what changed: an output is kept in cargo's target folder, shared by all profiles, under a hash
//! of its source, its headers, the flags and the compiler's version. `MINISGL_CUDA_TARGET=sm_90a` compiles for
//! that one alone, to be quick while working on a kernel.

#[path = "build/find.rs"]
mod find;
#[path = "build/targets.rs"]
mod targets;

use std::collections::hash_map::DefaultHasher;
use std::error::Error;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, thread};

use targets::{is_host, jobs, targets};

const FLAGS: [&str; 3] = ["-std=c++17", "-O3", "-Icu"];
const FATBIN_FLAGS: [&str; 2] = ["-Werror=all-warnings", "-fatbin"];
/// FlashInfer's headers are not free of warnings.
const HOST_FLAGS: [&str; 6] =
    ["-c", "-DNDEBUG", "--expt-relaxed-constexpr", "-w", "-Xcompiler", "-fPIC"];
/// Include folders below FlashInfer's data folder.
const HEADERS: [&str; 5] =
    ["include", "cccl/libcudacxx/include", "cccl/cub", "cccl/thrust", "cutlass/include"];

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=cu");
    println!("cargo::rerun-if-env-changed=MINISGL_CUDA_TARGET");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    if let Err(error) = compile_all() {
        println!("cargo::error={error}");
    }
}

fn compile_all() -> Result<()> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // OUT_DIR is <target>/<profile>/build/<package>/out.
    let target =
        out.ancestors().nth(4).ok_or("OUT_DIR is not four folders below the target folder")?;
    let nvcc = find::nvcc(target)?;
    let cache = target.join("kernels");
    fs::create_dir_all(&cache)?;
    let flashinfer = find::flashinfer(target)?;

    let mut common = DefaultHasher::new();
    (FLAGS, FATBIN_FLAGS, HOST_FLAGS, &flashinfer).hash(&mut common);
    let version = Command::new(&nvcc).arg("--version").output()?;
    version.stdout.hash(&mut common);
    let mut sources = Vec::new();
    list(Path::new("cu"), &mut sources)?;
    sources.sort_by_key(|source| !is_host(source)); // What takes longest comes first.

    // Each worker takes the next source until none is left.
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut hash = common.clone();
            targets(source).hash(&mut hash);
            let mut files = Vec::new();
            with_headers(source.clone(), &mut files)?;
            files.hash(&mut hash);
            let kind = if is_host(source) { "o" } else { "fatbin" };
            let output = cache.join(format!("{}-{:016x}.{kind}", stem(source), hash.finish()));
            if !output.exists() {
                compile(&nvcc, &flashinfer, source, &output)?;
            }
            fs::copy(&output, out.join(stem(source)).with_extension(kind))?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs()).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().unwrap_or_else(|_| Err("a compile thread panicked".into()))
        })
    })?;

    let mut table = String::from("/// Every fatbin, by the name of its source.\n");
    table += "pub(crate) static FATBINS: &[(&str, &[u8])] = &[\n";
    for source in sources.iter().filter(|source| !is_host(source)) {
        let stem = stem(source);
        table += &format!(
            "    ({stem:?}, include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{stem}.fatbin\"))),\n"
        );
    }
    fs::write(out.join("fatbins.rs"), table + "];\n")?;
    let objects = sources.iter().filter(|source| is_host(source));
    archive(&nvcc, &out, objects.map(|source| out.join(stem(source)).with_extension("o")))
}

/// Makes a static library of the objects, and links it with CUDA's static runtime.
fn archive(nvcc: &Path, out: &Path, objects: impl Iterator<Item = PathBuf>) -> Result<()> {
    let library = out.join("libminisgl_attention.a");
    let _ = fs::remove_file(&library); // `ar` would add to it.
    let status = Command::new("ar").arg("crs").arg(&library).args(objects).status()?;
    if !status.success() {
        return Err(format!("`ar` failed to write {} ({status})", library.display()).into());
    }
    let toolkit = fs::canonicalize(nvcc)?;
    let toolkit = toolkit.ancestors().nth(2).ok_or("nvcc is not in a toolkit's bin folder")?;
    println!("cargo::rustc-link-search=native={}", out.display());
    for lib in ["lib", "lib64", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"] {
        println!("cargo::rustc-link-search=native={}", toolkit.join(lib).display());
    }
    for library in
        ["static=minisgl_attention", "static=cudart_static", "stdc++", "dl", "rt", "pthread"]
    {
        println!("cargo::rustc-link-lib={library}");
    }
    Ok(())
}

/// Compiles one source; replaces what older versions of it left in the cache.
fn compile(nvcc: &Path, flashinfer: &Path, source: &Path, to: &Path) -> Result<()> {
    let fresh = to.with_extension(format!("{}.tmp", std::process::id()));
    let mut command = Command::new(nvcc);
    command.args(FLAGS).args(targets(source)).arg("-o").arg(&fresh).arg(source);
    if is_host(source) {
        command.args(HOST_FLAGS);
        command.args(HEADERS.map(|dir| format!("-I{}", flashinfer.join(dir).display())));
    } else {
        command.args(FATBIN_FLAGS);
    }
    let output = command.output()?;
    if !output.status.success() {
        let _ = fs::remove_file(&fresh);
        // One line for each of the compiler's: cargo prints no more than one per message.
        let said = [output.stdout, output.stderr].concat();
        for line in String::from_utf8_lossy(&said).lines() {
            println!("cargo::error={line}");
        }
        return Err(format!("nvcc failed on kernels/{}: {command:?}", source.display()).into());
    }
    let cache = to.parent().unwrap_or(Path::new("."));
    for entry in fs::read_dir(cache)? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if name.rsplit_once('-').is_some_and(|(of, _)| of == stem(source)) && path != fresh {
            let _ = fs::remove_file(path); // Another build may have been faster.
        }
    }
    Ok(fs::rename(fresh, to)?)
}

/// Sources below `dir`, in a fixed order.
fn list(dir: &Path, sources: &mut Vec<PathBuf>) -> Result<()> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    paths.sort();
    for path in paths {
        if path.is_dir() {
            list(&path, sources)?;
        } else if path.extension().is_some_and(|extension| extension == "cu") {
            sources.push(path);
        }
    }
    Ok(())
}

/// A file and the headers of ours that it includes, directly or not, with what is in them.
fn with_headers(file: PathBuf, files: &mut Vec<(PathBuf, String)>) -> Result<()> {
    let text = fs::read_to_string(&file)?;
    let folder = file.parent().unwrap_or(Path::new("cu")).to_owned();
    let included = text.lines().filter_map(|line| line.strip_prefix("#include \""));
    let names: Vec<String> =
        included.filter_map(|rest| rest.split_once('"')).map(|(name, _)| name.into()).collect();
    files.push((file, text));
    for header in names.iter().map(|name| folder.join(name)) {
        if files.iter().all(|(known, _)| *known != header) {
            with_headers(header, files)?;
        }
    }
    Ok(())
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}
