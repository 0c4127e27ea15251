//! What this process holds of the host's memory.

use anyhow::Context;
use serde::Serialize;

/// Resident bytes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct HostMemory {
    /// Now.
    pub rss_bytes: u64,
    /// At most since the process started.
    pub rss_peak_bytes: u64,
}

impl HostMemory {
    /// Of this process.
    ///
    /// # Errors
    /// There is no `/proc`, or its file lacks the lines VmRSS and VmHWM.
    pub fn now() -> anyhow::Result<HostMemory> {
        HostMemory::of(std::process::id())
    }

    /// Of another process of this user's.
    ///
    /// # Errors
    /// As `now`.
    pub fn of(pid: u32) -> anyhow::Result<HostMemory> {
        let path = format!("/proc/{pid}/status");
        let status =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        HostMemory::parse(&status).with_context(|| format!("{path} has no lines VmRSS and VmHWM"))
    }

    fn parse(status: &str) -> Option<HostMemory> {
        let bytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            let kib: u64 =
                line.strip_prefix(':')?.trim().strip_suffix("kB")?.trim().parse().ok()?;
            Some(kib * 1024)
        };
        Some(HostMemory { rss_bytes: bytes("VmRSS")?, rss_peak_bytes: bytes("VmHWM")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_in_kib() {
        let status = "Name:\tminisgld\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        let memory = HostMemory { rss_bytes: 1 << 20, rss_peak_bytes: 2 << 20 };
        assert_eq!(HostMemory::parse(status), Some(memory));
        assert_eq!(HostMemory::parse("VmRSS:\t 1 kB\n"), None);
        let now = HostMemory::now().unwrap();
        assert!(now.rss_bytes > 1 << 20 && now.rss_peak_bytes >= now.rss_bytes);
    }
}
