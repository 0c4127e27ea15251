//! What a process may still do once it knows its model: weights, templates and tokenizers are parsed and prompts
//! computed there, so whatever goes wrong in that finds no secrets, nothing to write to, no network, and nobody to
//! give orders to.
//!
//! | | Landlock: read | Landlock: write | seccomp: sockets | both: other processes |
//! |---|---|---|---|---|
//! | text | its model | `/dev/null` and its like | none | none |
//! | worker on the CPU | its model, libraries | the same | none | none |
//! | worker on a GPU | the same, `/proc`, `/sys` | GPUs, caches of the driver | the driver's own (`SOCK_SEQPACKET`) | none |
//! | worker on several GPUs | the same | the same | the same, the network: NCCL | none |
//!
//! None starts a program. No process gets out of its process group, by which the daemon refuses it at the admin socket, too
//! (`minisgl_control::children`). A kernel without Landlock leaves it to seccomp, and the log says so.
//!
//! Owns: the rules of each kind. Must never: be undone, or be called when there are other threads already.

mod attempt;
mod calls;
mod files;
mod process;

use std::path::Path;

use minisgl_proto::{Device, WorkerSpec};

pub use self::attempt::{AttemptArgs, attempt};
use self::calls::Sockets;
use self::files::Files;

/// What the environment of a child must have: jemalloc's own thread would be there before the rules, and without them.
pub const ENVIRONMENT: (&str, &str) = ("_RJEM_MALLOC_CONF", "background_thread:false");

/// Hides the daemon's memory, environment and open files (`/proc/PID`) from processes of its own user, which its
/// workers are: where there is no Landlock nothing else does. It leaves no core, and a debugger needs root.
pub fn hide() {
    if let Err(error) = nix::sys::prctl::set_dumpable(false) {
        eprintln!("minisgld: other processes of this user may look into this one: {error}");
    }
}

/// Gives up what the worker of `spec` does not need; with a GPU unless `confine_gpu` is off.
pub fn worker(spec: &WorkerSpec, confine_gpu: bool) {
    say("first to go when memory is short", process::volunteer());
    let gpu = may_use_gpu(spec);
    if gpu && !confine_gpu {
        tracing::debug!("not confined: [workers] confine_gpu is off");
        return;
    }
    if gpu { gpus(&spec.dir, spec.options.tp) } else { cpu(&spec.dir) }
}

/// Gives up what reading a model's tokenizer and templates does not need.
pub fn text(dir: &Path) {
    say("first to go when memory is short", process::volunteer());
    all(&Files::of_model(dir), Sockets::None);
}

fn cpu(dir: &Path) {
    all(&Files::of_model(dir).with_libraries(), Sockets::None);
}

fn gpus(dir: &Path, tp: u32) {
    let sockets = if tp > 1 { Sockets::Ranks } else { Sockets::Driver { connect: has_mps() } };
    all(&Files::of_model(dir).with_libraries().with_gpus(), sockets);
}

fn all(files: &Files, sockets: Sockets) {
    say("confined: every thread", process::is_single());
    say("confined: capabilities", process::drop_capabilities());
    say("confined: files (Landlock)", files.restrict());
    say("confined: sockets, signals (seccomp)", calls::restrict(sockets));
}

fn say(what: &str, done: Result<(), String>) {
    match done {
        Ok(()) => tracing::debug!("{what}"),
        Err(why) => tracing::warn!("not {what}: {why}"),
    }
}

/// Whether a model loaded like this may open a GPU.
fn may_use_gpu(spec: &WorkerSpec) -> bool {
    let devices = ["/dev/nvidiactl", "/dev/dxg"];
    let is_there = || devices.iter().any(|device| Path::new(device).exists());
    cfg!(feature = "cuda") && spec.options.device != Device::Cpu && is_there()
}

/// Whether GPUs are shared by a server, to which the driver connects.
fn has_mps() -> bool {
    std::env::var_os("CUDA_MPS_PIPE_DIRECTORY").is_some() || Path::new(files::MPS).exists()
}

#[cfg(test)]
mod tests;
