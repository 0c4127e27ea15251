//! What a worker may still do once it knows its model: weights are parsed and prompts computed here, so whatever
//! goes wrong in that finds no secrets, nothing to write to, and no network.
//!
//! | | may |
//! |---|---|
//! | Landlock | read the model, the system's libraries, `/proc`, `/sys`; write to devices, and nothing else |
//! | seccomp | make sockets of this machine (`AF_UNIX`) alone; those of the network where NCCL sums over GPUs |
//!
//! A kernel without one of them does without; the log says so.
//!
//! Owns: the lists. Must never: be undone, or be called when there are other threads already.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus,
    path_beneath_rules,
};
use minisgl_proto::{Device, WorkerSpec};
use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// The newest rules that are known here; an older kernel heeds what it knows.
const LANDLOCK: ABI = ABI::V5;
/// What every program reads: libraries, and what the kernel tells.
const READ: [&str; 14] = [
    "/usr",
    "/lib",
    "/lib32",
    "/lib64",
    "/bin",
    "/sbin",
    "/opt",
    "/nix",
    "/proc",
    "/sys",
    "/run/opengl-driver",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/nccl.conf",
];
/// Devices and shared memory; threads write their names into `/proc`.
const WRITE: [&str; 2] = ["/dev", "/proc"];
/// Variables with folders of libraries, for a GPU.
const LIBRARIES: [&str; 5] =
    ["MINISGL_CUDA_LIBRARIES", "CUDA_HOME", "VIRTUAL_ENV", "CONDA_PREFIX", "LD_LIBRARY_PATH"];
/// Files of a model's folder that are looked at: more are no model.
const MODEL_FILES_MAX: usize = 4096;

/// Whether a model loaded like this may open a GPU.
fn may_use_gpu(spec: &WorkerSpec) -> bool {
    let devices = ["/dev/nvidiactl", "/dev/dxg"];
    let is_there = || devices.iter().any(|device| Path::new(device).exists());
    cfg!(feature = "cuda") && spec.options.device != Device::Cpu && is_there()
}

/// Gives up what the worker of `spec` does not need; with a GPU unless `confine_gpu` is off.
pub(super) fn confine(spec: &WorkerSpec, confine_gpu: bool) {
    let gpu = may_use_gpu(spec);
    if gpu && !confine_gpu {
        tracing::debug!("not confined: [workers] confine_gpu is off");
        return;
    }
    let network = gpu && spec.options.tp > 1;
    let files = Some(restrict_files(&spec.dir, gpu));
    let sockets = (!network).then(restrict_sockets);
    for (what, done) in [("files (Landlock)", files), ("sockets (seccomp)", sockets)] {
        let Some(done) = done else { continue };
        match done {
            Ok(()) => tracing::debug!("confined: {what}"),
            Err(why) => tracing::warn!("not confined: {what}: {why}"),
        }
    }
}

/// Leaves this thread, and those it starts, the files that a model needs.
fn restrict_files(model: &Path, gpu: bool) -> Result<(), String> {
    let mut read: Vec<PathBuf> = READ.iter().map(PathBuf::from).collect();
    read.extend(model_files(model));
    let mut write: Vec<PathBuf> = WRITE.iter().map(PathBuf::from).collect();
    if gpu {
        let folders = LIBRARIES.iter().filter_map(std::env::var_os);
        read.extend(folders.flat_map(|list| std::env::split_paths(&list).collect::<Vec<_>>()));
        let home = std::env::var_os("HOME").map(PathBuf::from);
        read.extend(home.iter().map(|home| home.join(".local")));
        // What the driver compiles, and cuBLASLt's timings, in a folder of their own.
        write.extend(home.iter().map(|home| home.join(".nv")));
        write.extend(timings());
        write.push("/tmp/nvidia-mps".into());
    }
    let restrict = || {
        let all = AccessFs::from_all(LANDLOCK);
        Ruleset::default()
            .handle_access(all)?
            .create()?
            .add_rules(path_beneath_rules(&read, AccessFs::from_read(LANDLOCK)))?
            .add_rules(path_beneath_rules(&write, all))?
            .restrict_self()
    };
    match restrict() {
        Ok(status) if status.ruleset == RulesetStatus::NotEnforced => {
            Err("there is no Landlock (before Linux 5.13, or in a container that forbids it)"
                .to_owned())
        }
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// The folder of cuBLASLt's timings, made while that is still allowed.
fn timings() -> Option<PathBuf> {
    #[cfg(feature = "cuda")]
    let folder = minisgl_engine::ops::cuda::tuned_folder();
    #[cfg(not(feature = "cuda"))]
    let folder: Option<PathBuf> = None;
    // What cannot be made cannot be written to later, and the log says so then.
    folder.inspect(|folder| drop(std::fs::create_dir_all(folder)))
}

/// A model's folder, and what the links in it lead to: the hub's cache keeps files elsewhere.
fn model_files(model: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(model).into_iter().flatten().flatten();
    let links = entries.take(MODEL_FILES_MAX).filter_map(|entry| entry.path().canonicalize().ok());
    std::iter::once(model.to_path_buf()).chain(links).collect()
}

/// Leaves this thread, and those it starts, no sockets but those of this machine.
fn restrict_sockets() -> Result<(), String> {
    let restrict = || -> Result<(), Box<dyn std::error::Error>> {
        let unix = libc::AF_UNIX as u64;
        let condition = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, unix)?;
        let rules = [
            (libc::SYS_socket, vec![SeccompRule::new(vec![condition])?]),
            // Would make sockets behind the filter's back.
            (libc::SYS_io_uring_setup, Vec::new()),
        ];
        let refuse = SeccompAction::Errno(libc::EACCES as u32);
        let arch = std::env::consts::ARCH.try_into()?;
        let filter =
            SeccompFilter::new(rules.into_iter().collect(), SeccompAction::Allow, refuse, arch)?;
        let program: BpfProgram = filter.try_into()?;
        Ok(seccompiler::apply_filter(&program)?)
    };
    restrict().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::ErrorKind;
    use std::net::{TcpStream, UdpSocket};
    use std::os::unix::net::UnixStream;

    use minisgl_proto::LoadOptions;

    use super::*;

    #[test]
    fn a_confined_thread_reads_its_model_and_finds_no_secrets_and_no_network() {
        let dir = tempfile::tempdir().unwrap();
        let (model, blobs) = (dir.path().join("model"), dir.path().join("blobs"));
        std::fs::create_dir(&model).unwrap();
        std::fs::create_dir(&blobs).unwrap();
        for file in [model.join("config.json"), blobs.join("weights"), blobs.join("other")] {
            std::fs::write(file, "x").unwrap();
        }
        std::os::unix::fs::symlink("../blobs/weights", model.join("model.safetensors")).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let spec = WorkerSpec {
            protocol: minisgl_proto::PROTOCOL,
            name: "m".to_owned(),
            dir: model.clone(),
            options: LoadOptions { device: Device::Cpu, ..LoadOptions::default() },
        };
        let before = TcpStream::connect(address);
        assert!(before.is_ok() && File::open("/etc/passwd").is_ok());
        // A thread's rules are its own and its children's.
        std::thread::spawn(move || {
            confine(&spec, false);
            let refused = |result: std::io::Result<()>| {
                result.map_err(|error| error.kind()) == Err(ErrorKind::PermissionDenied)
            };
            assert!(File::open(model.join("config.json")).is_ok());
            assert!(File::open(model.join("model.safetensors")).is_ok(), "where a link leads to");
            assert!(std::fs::read_to_string("/proc/meminfo").is_ok());
            assert!(refused(File::open("/etc/passwd").map(drop)));
            assert!(refused(File::open(blobs.join("other")).map(drop)));
            assert!(refused(std::fs::write(model.join("config.json"), "y")));
            assert!(refused(std::fs::write(model.join("new"), "y")));
            let inherited = std::thread::spawn(move || {
                assert!(refused(TcpStream::connect(address).map(drop)));
                assert!(refused(UdpSocket::bind("127.0.0.1:0").map(drop)));
                assert!(refused(File::open("/etc/passwd").map(drop)));
                assert!(UnixStream::pair().is_ok());
            });
            inherited.join().unwrap();
        })
        .join()
        .unwrap();
        assert!(File::open("/etc/passwd").is_ok(), "the others are as they were");
    }
}
