//! What confined threads may read and write (Landlock), and whom they may signal or call where the kernel knows that
//! too: ABI 6 has signals and abstract sockets, ABI 9 sockets with a path.
//!
//! Owns: the lists of paths. Must never: open a folder that has more in it than its reader needs.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, BitFlags, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus,
    Scope, path_beneath_rules,
};

/// The newest rules that are known here; an older kernel heeds what it knows.
const LANDLOCK: ABI = ABI::V9;
/// Libraries of the system.
const SYSTEM: [&str; 10] = [
    "/usr",
    "/lib",
    "/lib32",
    "/lib64",
    "/bin",
    "/sbin",
    "/opt",
    "/nix",
    "/run/opengl-driver",
    "/etc/ld.so.cache",
];
/// What the kernel tells of the machine and of the process itself, and the time zone.
const MACHINE: [&str; 10] = [
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/filesystems",
    "/proc/sys/vm/overcommit_memory",
    "/sys/devices/system",
    "/sys/fs/cgroup",
    "/sys/kernel/mm/transparent_hugepage",
    "/etc/localtime",
];
/// The same where a driver and NCCL look for GPUs, buses and settings.
const MACHINE_OF_GPU: [&str; 3] = ["/proc", "/sys", "/etc/nccl.conf"];
/// Threads write their names here.
const NAMES: &str = "/proc/self/task";
/// Devices that tell nothing and keep nothing.
const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];
/// Those of a GPU besides the nodes that begin with [`NODES`].
const DEVICES_OF_GPU: [&str; 4] = ["/dev/dxg", "/dev/dri", "/dev/infiniband", "/dev/shm"];
/// NVIDIA's nodes and folders of nodes in `/dev`.
const NODES: &str = "nvidia";
/// Entries of `/dev` that are looked at.
const NODES_MAX: usize = 65_536;
/// Where a server for several processes a GPU (MPS) listens.
pub(super) const MPS: &str = "/tmp/nvidia-mps";
/// Variables with folders of libraries, for a GPU.
const LIBRARIES: [&str; 5] =
    ["MINISGL_CUDA_LIBRARIES", "CUDA_HOME", "VIRTUAL_ENV", "CONDA_PREFIX", "LD_LIBRARY_PATH"];
/// Files of a model's folder that are looked at: more are no model.
const MODEL_FILES_MAX: usize = 4096;

/// What may be read, listed and written.
#[derive(Default)]
pub(super) struct Files {
    read: Vec<PathBuf>,
    list: Vec<PathBuf>,
    write: Vec<PathBuf>,
}

impl Files {
    /// A model's files and what any process reads of its machine.
    pub(super) fn of_model(dir: &Path) -> Files {
        let mut read: Vec<PathBuf> = MACHINE.iter().map(PathBuf::from).collect();
        read.extend(model_files(dir));
        let write = DEVICES.iter().map(PathBuf::from).chain([NAMES.into()]).collect();
        Files { read, list: Vec::new(), write }
    }

    /// The same with the system's libraries.
    pub(super) fn with_libraries(mut self) -> Files {
        self.read.extend(SYSTEM.iter().map(PathBuf::from));
        self
    }

    /// The same with GPUs, their driver's libraries and caches.
    pub(super) fn with_gpus(mut self) -> Files {
        self.read.extend(MACHINE_OF_GPU.iter().map(PathBuf::from));
        let folders = LIBRARIES.iter().filter_map(std::env::var_os);
        self.read.extend(folders.flat_map(|list| std::env::split_paths(&list).collect::<Vec<_>>()));
        let home = std::env::var_os("HOME").map(PathBuf::from);
        // Packages of Python, among them NVIDIA's libraries; beside that folder programs keep what is private.
        let packages = |home: &PathBuf| [".local/lib", ".local/lib64"].map(|at| home.join(at));
        self.read.extend(home.iter().flat_map(packages));
        self.list.push("/dev".into());
        self.write.extend(DEVICES_OF_GPU.iter().map(PathBuf::from));
        let nodes = std::fs::read_dir("/dev").into_iter().flatten().flatten().take(NODES_MAX);
        let nodes = nodes.filter(|node| node.file_name().to_string_lossy().starts_with(NODES));
        self.write.extend(nodes.map(|node| node.path()));
        // What the driver compiles, and cuBLASLt's timings, in a folder of their own.
        self.write.extend(home.iter().map(|home| home.join(".nv")));
        self.write.extend(timings());
        self.write.push(MPS.into());
        self
    }

    /// Leaves this thread, and those it starts, these and no others; no signals and no abstract sockets but their own.
    pub(super) fn restrict(&self) -> Result<(), String> {
        let restrict = || {
            let all = AccessFs::from_all(LANDLOCK);
            let read = AccessFs::from_read(LANDLOCK);
            Ruleset::default()
                .handle_access(all)?
                .scope(Scope::from_all(LANDLOCK))?
                .create()?
                .add_rules(path_beneath_rules(&self.read, read))?
                .add_rules(path_beneath_rules(&self.list, BitFlags::from(AccessFs::ReadDir)))?
                .add_rules(path_beneath_rules(&self.write, all))?
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
}

/// The folder of cuBLASLt's timings, made while that is still allowed.
fn timings() -> Option<PathBuf> {
    #[cfg(feature = "cuda")]
    let folder = minisgl_engine::ops::cuda::tuned_folder();
    #[cfg(not(feature = "cuda"))]
    let folder: Option<PathBuf> = None;
    // If it cannot be made, writing to it fails later, and the log says so then.
    folder.inspect(|folder| drop(std::fs::create_dir_all(folder)))
}

/// A model's folder, and what the links in it lead to: the hub's cache keeps files elsewhere.
fn model_files(model: &Path) -> Vec<PathBuf> {
    let entries = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten();
    let templates = model.join("additional_chat_templates");
    let entries = entries(model).chain(entries(&templates)).take(MODEL_FILES_MAX);
    let links = entries.filter_map(|entry| entry.path().canonicalize().ok());
    std::iter::once(model.to_path_buf()).chain(links).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_opens_no_folder_in_which_others_keep_what_is_private() {
        let files = Files::of_model(Path::new("/model")).with_libraries().with_gpus();
        let home = PathBuf::from(std::env::var_os("HOME").expect("tests have a home"));
        let opened: Vec<&PathBuf> = files.read.iter().chain(&files.write).collect();
        // Keyrings, cookies, shells' histories; and all devices.
        for private in [".local/share/keyrings", ".config", ".ssh", ".cache", ".bash_history"] {
            let path = home.join(private);
            // A home below a folder of the system, as a service's may be, is the operator's choice.
            let own = opened.iter().filter(|folder| folder.starts_with(&home));
            assert!(own.clone().all(|folder| !path.starts_with(folder)), "{private}: {opened:?}");
        }
        assert!(opened.contains(&&home.join(".local/lib")), "{opened:?}");
        for device in ["/dev/sda", "/dev/mem", "/dev/kmsg", "/dev/tty"] {
            assert!(opened.iter().all(|folder| !Path::new(device).starts_with(folder)), "{device}");
        }
        assert_eq!(files.list, [PathBuf::from("/dev")], "its names alone");
    }
}
