//! What `doctor` found, as text for people. Pure functions: data in, text out.

use std::path::Path;

use minisgl_proto::admin::VersionInfo;
use minisgl_proto::doctor::{
    DoctorReport, DriverReport, GpuReport, HubReport, LibraryReport, Verdict,
};

use crate::error::CtlError;
use crate::render::{bytes, pairs, plural, seconds};

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

fn library(library: &LibraryReport) -> String {
    match (&library.path, &library.error) {
        (Some(path), _) => {
            let version = library.version.iter().map(|version| format!("{version}, "));
            format!("{}{}", version.collect::<String>(), path.display())
        }
        (None, _) if !library.required => {
            format!("missing, and needed for {} only", library.purpose)
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
    use minisgl_proto::doctor::MachineReport;

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
                        purpose: "several GPUs".into(),
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
            libcublasLt.so.13  13.0.2, /opt/cuda/libcublasLt.so.13.0.2
            libnccl.so.2       missing, and needed for several GPUs only
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
