//! `minisgld probe`: what this machine has and what the configuration makes of it, as JSON. Run by the daemon
//! and by `minisglctl doctor`, in a process of its own because it loads the driver.
//!
//! Must never: print a token, or take longer than the network's few seconds beside the driver's.

use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::Context;
use minisgl_control::HubConfig;
use minisgl_proto::doctor::{DoctorReport, HubReport};
use url::{Host, Url};

use crate::cli::ServeArgs;
use crate::config::{CONFIG_PATH, Config};

/// How long the hub's address may take to be found and to answer.
const NETWORK_MAX: Duration = Duration::from_secs(4);

/// Prints the report.
///
/// # Errors
/// Standard output is closed.
pub fn run(args: &ServeArgs) -> anyhow::Result<()> {
    let (config, config_error) = match Config::load(args) {
        Ok(config) => (config, None),
        Err(error) => (Config::default(), Some(format!("{error:#}"))),
    };
    let default = Path::new(CONFIG_PATH);
    let file = args.config.clone().or_else(|| default.exists().then(|| default.to_path_buf()));
    let report = DoctorReport {
        version: minisgl_proto::VERSION.to_owned(),
        machine: minisgl_engine::probe::probe(config.gpu.libraries.as_deref()),
        config: file,
        config_error,
        hub: hub(&config.hub_config()),
    };
    let text = serde_json::to_string(&report).context("the report does not encode")?;
    println!("{text}");
    Ok(())
}

fn hub(config: &HubConfig) -> HubReport {
    let cache = config.cache();
    let offline = config.is_offline();
    let endpoint = config.endpoint();
    HubReport {
        models: cache.as_deref().map_or(0, models_in),
        free_bytes: cache.as_deref().and_then(free_bytes),
        cache,
        error: if offline { None } else { reach(&endpoint).err() },
        offline,
        endpoint,
        token: config.token_place(),
    }
}

/// Repos in a Hugging Face cache.
fn models_in(cache: &Path) -> u32 {
    let entries = std::fs::read_dir(cache).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("models--")).count()
        as u32
}

/// Bytes that this user may still write where `folder` is, or will be.
fn free_bytes(folder: &Path) -> Option<u64> {
    let there: PathBuf = folder.ancestors().find(|path| path.is_dir())?.to_path_buf();
    let disk = nix::sys::statvfs::statvfs(&there).ok()?;
    Some(disk.blocks_available() as u64 * disk.fragment_size() as u64)
}

/// Whether somebody listens at the host of a URL. Behind a proxy nothing is tried.
fn reach(endpoint: &str) -> Result<(), String> {
    let proxy = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
    if proxy
        .iter()
        .any(|variable| std::env::var_os(variable).is_some_and(|value| !value.is_empty()))
    {
        return Ok(());
    }
    let (host, port) = host_and_port(endpoint).ok_or("it is no URL of a server")?;
    let (sender, receiver) = mpsc::channel();
    let name = host.clone();
    // Finding an address has no limit of its own; the thread ends with the process.
    std::thread::spawn(move || {
        let found = (host.as_str(), port).to_socket_addrs().map_err(|error| error.to_string());
        let answer = found.and_then(|addresses| {
            let mut last = "it has no address".to_owned();
            for address in addresses {
                match TcpStream::connect_timeout(&address, NETWORK_MAX) {
                    Ok(_) => return Ok(()),
                    Err(error) => last = error.to_string(),
                }
            }
            Err(last)
        });
        let _ = sender.send(answer);
    });
    let answer = receiver.recv_timeout(NETWORK_MAX);
    answer
        .unwrap_or_else(|_| Err(format!("no answer in {} s", NETWORK_MAX.as_secs())))
        .map_err(|why| format!("{name}:{port} cannot be reached ({why})"))
}

fn host_and_port(address: &str) -> Option<(String, u16)> {
    let url = Url::parse(address).ok()?;
    let host = match url.host()? {
        Host::Ipv6(host) => host.to_string(), // without its brackets
        host => host.to_string(),
    };
    Some((host, url.port_or_known_default()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_ports_of_urls() {
        let read = |url| host_and_port(url).map(|(host, port)| format!("{host} {port}"));
        assert_eq!(read("https://huggingface.co").as_deref(), Some("huggingface.co 443"));
        assert_eq!(read("http://127.0.0.1:8080/x").as_deref(), Some("127.0.0.1 8080"));
        assert_eq!(read("http://[::1]:81").as_deref(), Some("::1 81"));
        assert_eq!(read("http://u:p@mirror/").as_deref(), Some("mirror 80"));
        for bad in ["mirror", "https://", "https://x:port"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_hub_is_reached_where_somebody_listens() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        assert_eq!(reach(&url), Ok(()));
        // A port that is taken, so that nobody else listens on it, and that refuses.
        let deaf = tokio::net::TcpSocket::new_v4().unwrap();
        deaf.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let error = reach(&format!("http://{}", deaf.local_addr().unwrap())).unwrap_err();
        assert!(error.contains("127.0.0.1:") && error.contains("cannot be reached"), "{error}");
    }

    #[test]
    fn the_cache_is_looked_at_whether_it_is_there_or_not() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["models--a--b", "models--c", "datasets--d", "version.txt"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        assert_eq!(models_in(dir.path()), 2);
        let absent = dir.path().join("not/yet");
        assert_eq!(models_in(&absent), 0);
        assert!(free_bytes(&absent).unwrap() > 0);
    }
}
