//! What `doctor` found, as text for people. Pure functions: data in, text out.

use std::path::Path;

use minisgl_proto::admin::VersionInfo;
use minisgl_proto::doctor::{
    DoctorReport, DriverReport, GpuReport, HubReport, LibraryReport, LinkReport, MachineReport,
    Verdict,
};

use crate::error::CtlError;
use crate::render::{bytes, pairs, plural, seconds};

/// Pairs of GPUs that are named.
const PAIRS_MAX: usize = 6;

/// What was found, and who was asked.
pub fn text(
    socket: &Path,
    daemon: Result<&VersionInfo, &CtlError>,
    found: Option<(&str, &DoctorReport)>,
) -> String {
    let daemon = match daemon {
        Ok(info) => {
            format!("{} on {}, up {}", info.version, socket.display(), seconds(info.uptime_s))
        }
        Err(error) => {
            let error = error.to_string();
            error.lines().next().unwrap_or_default().to_string()
        }
    };
    let mut lines: Vec<(String, String)> = vec![("daemon".into(), daemon)];
    let Some((by, report)) = found else { return named(&lines) };
    lines.push(("asked".into(), format!("{by}, minisgld {}", report.version)));
    let DoctorReport { machine, hub, .. } = report;
    if let Some(path) = &report.config {
        lines.push(("configuration".into(), path.display().to_string()));
    }
    if let Some(error) = &report.config_error {
        let name = if report.config.is_some() { "" } else { "configuration" };
        lines.push((name.into(), format!("cannot be used, the defaults are: {error}")));
    }
    if let Some(folder) = &machine.libraries_folder {
        lines.push(("libraries in".into(), folder.display().to_string()));
    }
    lines.push(("driver".into(), driver(&machine.driver)));
    lines.extend(machine.gpus.iter().map(|at| (format!("GPU {}", at.ordinal), gpu(at))));
    lines.extend(links(machine).into_iter().map(|line| ("GPUs".into(), line)));
    lines.extend(machine.libraries.iter().map(|at| (at.name.clone(), library(at))));
    lines.push(("models".into(), models(hub)));
    lines.push(("hub".into(), hub_line(hub)));
    let verdict = match (machine.verdict, machine.gpus.first()) {
        (Verdict::Ready, Some(gpu)) => format!("ready: models load onto {}", gpu.name),
        _ => "models run on the CPU here".into(),
    };
    lines.push(("verdict".into(), verdict));
    named(&lines)
}

fn driver(driver: &DriverReport) -> String {
    let mut parts: Vec<String> = driver.version.iter().cloned().collect();
    parts.extend(driver.cuda.map(|(major, minor)| format!("supports CUDA {major}.{minor}")));
    parts.extend(driver.path.iter().map(|path| path.display().to_string()));
    match (&driver.error, parts.is_empty()) {
        (Some(error), true) => return error.clone(),
        (None, true) => return "none".to_owned(),
        // The verdict says why.
        (Some(_), false) => parts.push("cannot be used".to_owned()),
        (None, false) => {}
    }
    parts.join(", ")
}

fn gpu(gpu: &GpuReport) -> String {
    let (major, minor) = gpu.capability;
    let code = match (&gpu.code, gpu.native) {
        (Some(code), true) => format!("runs our {code} code"),
        (Some(code), false) => format!("compiles our {code} PTX at the first start"),
        (None, _) => "too old: 8.0 is the least".into(),
    };
    let memory = match (gpu.free_bytes, &gpu.error) {
        (Some(free), _) => format!("{} of {} free", bytes(free), bytes(gpu.memory_bytes)),
        (None, Some(error)) => format!("{}, cannot be opened: {error}", bytes(gpu.memory_bytes)),
        (None, None) => bytes(gpu.memory_bytes),
    };
    format!("{}, capability {major}.{minor}, {code}, {memory}", gpu.name)
}

/// How the GPUs reach each other; nothing where there are fewer than two.
fn links(machine: &MachineReport) -> Vec<String> {
    let all = &machine.links;
    let apart: Vec<&LinkReport> =
        all.iter().filter(|link| link.rank.is_none() && link.error.is_none()).collect();
    let unknown: Vec<&LinkReport> = all.iter().filter(|link| link.error.is_some()).collect();
    let mut lines = Vec::new();
    if !apart.is_empty() {
        let who = match apart.len() == all.len() {
            true => "no GPU reads another's memory".to_owned(),
            false => format!("{} cannot read each other's memory", named_pairs(&apart)),
        };
        let nccl = machine.libraries.iter().find(|library| library.name.starts_with("libnccl"));
        let missing = nccl.is_none_or(|library| library.path.is_none());
        let then = if missing {
            "sums over ranks there need NCCL, which is missing"
        } else {
            "sums over ranks there by NCCL alone: slower"
        };
        lines.push(format!("{who}: {then}"));
    } else if !all.is_empty() && unknown.is_empty() {
        lines.push("read each other's memory: sums over ranks by our own kernels".to_owned());
    }
    if let Some(error) = unknown.first().and_then(|link| link.error.as_ref()) {
        let who = named_pairs(&unknown);
        lines.push(format!("{who}: it is not known whether they reach each other: {error}"));
    }
    lines
}

/// `0 and 1, 0 and 2`, and how many more.
fn named_pairs(links: &[&LinkReport]) -> String {
    let pair = |link: &&LinkReport| format!("{} and {}", link.gpus.0, link.gpus.1);
    let pairs: Vec<String> = links.iter().take(PAIRS_MAX).map(pair).collect();
    let more = match links.len().saturating_sub(PAIRS_MAX) {
        0 => String::new(),
        more => format!(" and {}", plural(more as u32, "more pair")),
    };
    format!("{}{more}", pairs.join(", "))
}

fn library(library: &LibraryReport) -> String {
    match (&library.path, &library.error) {
        (Some(path), _) => {
            let version = library.version.iter().map(|version| format!("{version}, "));
            format!("{}{}", version.collect::<String>(), path.display())
        }
        (None, _) if !library.required => {
            format!("missing, and only for {}", library.purpose)
        }
        (None, Some(error)) => {
            error.strip_prefix(&library.name).unwrap_or(error).trim_start().into()
        }
        (None, None) => "missing".into(),
    }
}

fn models(hub: &HubReport) -> String {
    let Some(cache) = &hub.cache else { return "no cache folder: set [hub] cache_dir".into() };
    let free = hub.free_bytes.map(|free| format!(", {} free", bytes(free))).unwrap_or_default();
    format!("{} in {}{free}", plural(hub.models, "repo"), cache.display())
}

fn hub_line(hub: &HubReport) -> String {
    let reach = match (hub.offline, &hub.error) {
        (true, _) => "downloads are switched off".to_string(),
        (false, Some(error)) => error.clone(),
        (false, None) => "reachable".to_string(),
    };
    let token = match &hub.token {
        Some(place) => format!("token from {place}"),
        None => "no token".to_string(),
    };
    format!("{}: {reach}, {token}", hub.endpoint)
}

/// As [`pairs`], with names made at run time.
fn named(lines: &[(String, String)]) -> String {
    let lines: Vec<(&str, String)> =
        lines.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    pairs(&lines)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn hub() -> HubReport {
        HubReport {
            cache: Some("/var/lib/hub".into()),
            models: 3,
            free_bytes: Some(120 << 30),
            endpoint: "https://huggingface.co".into(),
            offline: false,
            token: Some("HF_TOKEN".into()),
            error: None,
        }
    }

    fn link(gpus: (u32, u32), rank: Option<u32>) -> LinkReport {
        LinkReport { gpus, rank, error: None }
    }

    /// What is said of these links, with NCCL and without.
    fn said(all: &[LinkReport], nccl: bool) -> Vec<String> {
        let library = LibraryReport {
            name: "libnccl.so.2".into(),
            purpose: String::new(),
            required: false,
            path: nccl.then(|| "/x/libnccl.so.2".into()),
            version: None,
            error: None,
        };
        links(&MachineReport {
            verdict: Verdict::Ready,
            problem: None,
            driver: DriverReport::default(),
            gpus: Vec::new(),
            links: all.to_vec(),
            libraries: vec![library],
            libraries_folder: None,
        })
    }

    #[test]
    fn gpus_that_reach_each_other_do_without_nccl() {
        let line = "read each other's memory: sums over ranks by our own kernels";
        let all = [link((0, 1), Some(0)), link((0, 2), Some(3)), link((1, 2), Some(0))];
        assert_eq!(said(&all, true), [line]);
        assert_eq!(said(&all, false), [line]);
        assert!(said(&[], true).is_empty(), "one GPU, or none");
    }

    #[test]
    fn pairs_that_need_nccl_are_named() {
        let some = [link((0, 1), Some(0)), link((0, 2), None), link((1, 2), None)];
        assert_eq!(
            said(&some, true),
            [
                "0 and 2, 1 and 2 cannot read each other's memory: sums over ranks there by NCCL alone: slower"
            ]
        );
        let none = [link((0, 1), None)];
        assert_eq!(
            said(&none, true),
            ["no GPU reads another's memory: sums over ranks there by NCCL alone: slower"]
        );
        assert_eq!(
            said(&none, false),
            ["no GPU reads another's memory: sums over ranks there need NCCL, which is missing"]
        );
        // Two islands of four: 16 of 28 pairs.
        let island = |a: u32, b: u32| (a / 4 == b / 4).then_some(0);
        let pairs = (0..8).flat_map(|a| (a + 1..8).map(move |b| (a, b)));
        let islands: Vec<_> = pairs.map(|(a, b)| link((a, b), island(a, b))).collect();
        let line = said(&islands, true).remove(0);
        let begin = "0 and 4, 0 and 5, 0 and 6, 0 and 7, 1 and 4, 1 and 5 and 10 more pairs cannot";
        assert!(line.starts_with(begin), "{line}");
    }

    #[test]
    fn a_driver_that_does_not_say_is_not_taken_for_a_link() {
        let broken = LinkReport { error: Some("asleep".into()), ..link((1, 2), None) };
        let all = [link((0, 1), Some(0)), link((0, 2), Some(0)), broken];
        assert_eq!(
            said(&all, true),
            ["1 and 2: it is not known whether they reach each other: asleep"]
        );
    }

    fn unreachable() -> CtlError {
        CtlError::Unreachable { socket: "/s".into(), why: "there is no such socket".into() }
    }

    #[test]
    fn a_machine_with_gpus() {
        let gpu = |ordinal, name: &str, capability, code: &str, native| GpuReport {
            ordinal,
            name: name.into(),
            capability,
            memory_bytes: 80 << 30,
            free_bytes: Some(79 << 30),
            code: Some(code.into()),
            native,
            error: None,
        };
        let broken = GpuReport {
            free_bytes: None,
            error: Some("it is in exclusive mode".into()),
            ..gpu(2, "NVIDIA A100", (8, 0), "sm_80", true)
        };
        let report = DoctorReport {
            version: "0.1.0".into(),
            machine: MachineReport {
                verdict: Verdict::Ready,
                problem: None,
                driver: DriverReport {
                    path: Some("/usr/lib/libcuda.so.580.95.05".into()),
                    version: Some("580.95.05".into()),
                    cuda: Some((13, 0)),
                    error: None,
                },
                gpus: vec![
                    gpu(0, "NVIDIA H100", (9, 0), "sm_90a", true),
                    gpu(1, "NVIDIA RTX 5090", (12, 0), "compute_80", false),
                    broken,
                ],
                links: vec![link((0, 1), None), link((0, 2), Some(0)), link((1, 2), None)],
                libraries: vec![
                    LibraryReport {
                        name: "libcublasLt.so.13".into(),
                        purpose: "matrix products".into(),
                        required: true,
                        path: Some("/opt/cuda/libcublasLt.so.13.0.2".into()),
                        version: Some("13.0.2".into()),
                        error: None,
                    },
                    LibraryReport {
                        name: "libnccl.so.2".into(),
                        purpose: "several GPUs: needed where they are far apart".into(),
                        required: false,
                        path: None,
                        version: None,
                        error: Some("libnccl.so.2 was not found".into()),
                    },
                ],
                libraries_folder: Some("/opt/cuda".into()),
            },
            config: Some("/etc/minisgld/minisgld.toml".into()),
            config_error: None,
            hub: hub(),
        };
        let daemon = VersionInfo {
            version: "0.1.0".into(),
            pid: 42,
            uptime_s: 190.0,
            listen: "127.0.0.1:8000".into(),
        };
        let text = text(Path::new("/run/s"), Ok(&daemon), Some(("the daemon", &report)));
        expect![[r#"
            daemon             0.1.0 on /run/s, up 3m10s
            asked              the daemon, minisgld 0.1.0
            configuration      /etc/minisgld/minisgld.toml
            libraries in       /opt/cuda
            driver             580.95.05, supports CUDA 13.0, /usr/lib/libcuda.so.580.95.05
            GPU 0              NVIDIA H100, capability 9.0, runs our sm_90a code, 79.0 GiB of 80.0 GiB free
            GPU 1              NVIDIA RTX 5090, capability 12.0, compiles our compute_80 PTX at the first start, 79.0 GiB of 80.0 GiB free
            GPU 2              NVIDIA A100, capability 8.0, runs our sm_80 code, 80.0 GiB, cannot be opened: it is in exclusive mode
            GPUs               0 and 1, 1 and 2 cannot read each other's memory: sums over ranks there need NCCL, which is missing
            libcublasLt.so.13  13.0.2, /opt/cuda/libcublasLt.so.13.0.2
            libnccl.so.2       missing, and only for several GPUs: needed where they are far apart
            models             3 repos in /var/lib/hub, 120.0 GiB free
            hub                https://huggingface.co: reachable, token from HF_TOKEN
            verdict            ready: models load onto NVIDIA H100
        "#]].assert_eq(&text);
    }

    #[test]
    fn a_machine_without_any() {
        let missing = "libcuda.so.1 was not found; install NVIDIA's driver";
        let report = DoctorReport {
            version: "0.1.0".into(),
            machine: MachineReport {
                verdict: Verdict::NoDriver,
                problem: Some(missing.into()),
                driver: DriverReport { error: Some(missing.into()), ..DriverReport::default() },
                gpus: Vec::new(),
                links: Vec::new(),
                libraries: Vec::new(),
                libraries_folder: None,
            },
            config: Some("/x.toml".into()),
            config_error: Some("in /x.toml: unknown field `port`".into()),
            hub: HubReport { cache: None, offline: true, token: None, error: None, ..hub() },
        };
        let found = Some(("/usr/bin/minisgld", &report));
        expect![[r#"
            daemon         no daemon answers on /s: there is no such socket
            asked          /usr/bin/minisgld, minisgld 0.1.0
            configuration  /x.toml
                           cannot be used, the defaults are: in /x.toml: unknown field `port`
            driver         libcuda.so.1 was not found; install NVIDIA's driver
            models         no cache folder: set [hub] cache_dir
            hub            https://huggingface.co: downloads are switched off, no token
            verdict        models run on the CPU here
        "#]]
        .assert_eq(&text(Path::new("/s"), Err(&unreachable()), found));
    }

    #[test]
    fn nobody_to_ask() {
        expect![[r#"
            daemon  no daemon answers on /s: there is no such socket
        "#]]
        .assert_eq(&text(Path::new("/s"), Err(&unreachable()), None));
    }
}
