//! `bench front`: what the daemon itself spends on a token, and on a stream that waits.
//!
//! ```text
//!   this process: clients over loopback <── daemon (measured) <── echo worker (not counted)
//! ```
//!
//! The figure that counts is the daemon's processor time, which another program on the machine disturbs little;
//! tokens a second are those of the whole arrangement on this machine's cores.
//!
//! Owns: the daemon it starts, the clients, the clock. Must never: count what the clients spend.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::args::{Api, FrontArgs};
use super::echo::STEP_US;
use super::memory::HostMemory;

/// Time that a daemon gets to be ready.
const READY_MAX: Duration = Duration::from_secs(60);
/// Microseconds between the tokens of streams that say nothing while they are measured.
const SILENT_US: u64 = 600_000_000;
/// Requests that are sent and not answered yet, while thousands of streams are opened.
const OPENING_MAX: usize = 64;

/// What one number of streams cost.
#[derive(Debug, Serialize)]
struct Row {
    streams: u32,
    tokens: u64,
    wall_s: f64,
    /// Processor time of the daemon over all its threads, in the kernel too.
    cpu_s: f64,
    cpu_us_a_token: f64,
    tokens_per_s: f64,
    bytes_a_token: f64,
    daemon_rss_mib: f64,
}

/// What streams take that wait.
#[derive(Debug, Serialize)]
struct Idle {
    streams: u32,
    before_mib: f64,
    daemon_rss_mib: f64,
    kib_a_stream: f64,
    /// Processor time in ten seconds of silence.
    cpu_ms_in_10_s: f64,
}

/// Measures and prints.
///
/// # Errors
/// The daemon does not start or loses a token.
pub fn run(args: &FrontArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    if let Some(streams) = args.idle {
        let idle = runtime.block_on(measure_idle(args, streams))?;
        if args.json {
            println!("{}", serde_json::to_string(&idle)?);
        } else {
            println!(
                "{} silent streams: {:.1} MiB (before {:.1}), {:.1} KiB a stream, {:.0} ms of processor in 10 s",
                idle.streams,
                idle.daemon_rss_mib,
                idle.before_mib,
                idle.kib_a_stream,
                idle.cpu_ms_in_10_s
            );
        }
        return Ok(());
    }
    if !args.json {
        println!(
            "streams     tokens   wall s    cpu s  cpu us/token    tokens/s  bytes/token  RSS MiB"
        );
    }
    for &streams in &args.streams {
        let row = runtime.block_on(measure(args, streams))?;
        if args.json {
            println!("{}", serde_json::to_string(&row)?);
        } else {
            println!(
                "{:>7} {:>10} {:>8.2} {:>8.2} {:>13.2} {:>11.0} {:>12.0} {:>8.1}",
                row.streams,
                row.tokens,
                row.wall_s,
                row.cpu_s,
                row.cpu_us_a_token,
                row.tokens_per_s,
                row.bytes_a_token,
                row.daemon_rss_mib
            );
        }
    }
    Ok(())
}

async fn measure(args: &FrontArgs, streams: u32) -> anyhow::Result<Row> {
    let daemon = Daemon::start(&args.model, streams, args.step_us).await?;
    // Once before, so that tokenizer and buffers are there.
    let warm = Request { tokens: 8, ..Request::of(args) };
    ensure!(warm.read(&daemon).await?.tokens == 8, "the daemon lost tokens of its first stream");
    let request = Request::of(args);
    let cpu = daemon.cpu_s()?;
    let began = Instant::now();
    let mut clients = JoinSet::new();
    for _ in 0..streams {
        let (request, address) = (request.clone(), daemon.address.clone());
        clients.spawn(async move { request.read_from(&address).await });
    }
    let (mut tokens, mut bytes) = (0, 0);
    while let Some(read) = clients.join_next().await {
        let read = read??;
        ensure!(read.tokens == u64::from(args.tokens), "a stream had {} tokens", read.tokens);
        tokens += read.tokens;
        bytes += read.bytes;
    }
    let wall_s = began.elapsed().as_secs_f64();
    let cpu_s = daemon.cpu_s()? - cpu;
    Ok(Row {
        streams,
        tokens,
        wall_s,
        cpu_s,
        cpu_us_a_token: cpu_s * 1e6 / tokens as f64,
        tokens_per_s: tokens as f64 / wall_s,
        bytes_a_token: bytes as f64 / tokens as f64,
        daemon_rss_mib: daemon.rss_mib()?,
    })
}

async fn measure_idle(args: &FrontArgs, streams: u32) -> anyhow::Result<Idle> {
    let daemon = Daemon::start(&args.model, streams, SILENT_US).await?;
    let before_mib = daemon.rss_mib()?;
    let request = Request { tokens: 4, ..Request::of(args) };
    let mut open = Vec::new();
    let mut opening = JoinSet::new();
    for _ in 0..streams {
        while opening.len() >= OPENING_MAX {
            open.extend(opening.join_next().await.transpose()?.transpose()?);
        }
        let (request, address) = (request.clone(), daemon.address.clone());
        opening.spawn(async move { request.send(&address).await });
    }
    while let Some(stream) = opening.join_next().await {
        open.push(stream??);
    }
    let all = Instant::now();
    while daemon.in_flight().await? < streams {
        ensure!(all.elapsed() < READY_MAX, "not all {streams} streams were taken");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    tokio::time::sleep(Duration::from_secs(3)).await; // freed memory goes back after a second
    let cpu = daemon.cpu_s()?;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let (cpu_ms, rss) = ((daemon.cpu_s()? - cpu) * 1e3, daemon.rss_mib()?);
    drop(open);
    Ok(Idle {
        streams,
        before_mib,
        daemon_rss_mib: rss,
        kib_a_stream: (rss - before_mib) * 1024.0 / f64::from(streams),
        cpu_ms_in_10_s: cpu_ms,
    })
}

/// A daemon with an echo worker, ended when dropped.
struct Daemon {
    child: Child,
    address: String,
    _dir: TempDir,
}

/// A folder that is removed when dropped.
struct TempDir(std::path::PathBuf);

impl TempDir {
    fn new() -> anyhow::Result<TempDir> {
        let unix_time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        let name = format!("minisgl-front-{}-{}", std::process::id(), unix_time.as_nanos());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(TempDir(path))
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Daemon {
    async fn start(model: &Path, streams: u32, step_us: u64) -> anyhow::Result<Daemon> {
        let model = model.canonicalize().with_context(|| model.display().to_string())?;
        let dir = TempDir::new()?;
        let (config, socket) = (dir.0.join("minisgld.toml"), dir.0.join("admin.sock"));
        let text = format!(
            "[http]\nlisten = \"127.0.0.1:0\"\nconnections_max = {connections}\n\
             [workers]\nstream_buffer_tokens = 100000\nstall_s = 3600\nstall_kill_s = 7200\n\
             [[model]]\nmodel = {model:?}\nname = \"front\"\noptions = {{ device = \"cpu\", max_running = {running} }}\n",
            connections = streams + 64,
            running = streams.max(16),
        );
        std::fs::write(&config, text)?;
        let child = Command::new("/proc/self/exe")
            .args(["serve", "--worker", "echo-worker", "--log", "info", "--socket"])
            .arg(&socket)
            .arg("--config")
            .arg(&config)
            .env(STEP_US, step_us.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.0.join("log"))?)
            .spawn()
            .context("cannot start a daemon")?;
        let log = dir.0.join("log");
        let mut daemon = Daemon { child, address: String::new(), _dir: dir };
        let began = Instant::now();
        while !daemon.is_ready(&log).await {
            if let Some(status) = daemon.child.try_wait()? {
                bail!("the daemon ended ({status}):\n{}", std::fs::read_to_string(&log)?);
            }
            ensure!(
                began.elapsed() < READY_MAX,
                "the daemon is not ready:\n{}",
                std::fs::read_to_string(&log)?
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(daemon)
    }

    /// Whether it listens, which its log says where, and has its model.
    async fn is_ready(&mut self, log: &Path) -> bool {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        let Some((_, rest)) = text.split_once("OpenAI API on http://") else { return false };
        let end = rest.find(|c: char| c != '.' && c != ':' && !c.is_ascii_digit());
        let Some(address) = end.map(|end| &rest[..end]) else { return false };
        self.address = address.to_owned();
        get(address, "/health").await.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }

    /// Seconds of processor time so far, in user and kernel mode.
    fn cpu_s(&self) -> anyhow::Result<f64> {
        let path = format!("/proc/{}/stat", self.child.id());
        let stat = std::fs::read_to_string(&path).with_context(|| path.clone())?;
        // The second field, a name in parentheses, may have spaces.
        let fields = stat.rsplit_once(") ").with_context(|| path.clone())?.1;
        let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<u64>);
        let ticks: u64 = ticks.sum::<Result<_, _>>().with_context(|| path.clone())?;
        let per_s = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.unwrap_or(100);
        Ok(ticks as f64 / per_s as f64)
    }

    fn rss_mib(&self) -> anyhow::Result<f64> {
        Ok(HostMemory::of(self.child.id())?.rss_bytes as f64 / f64::from(1 << 20))
    }

    /// Requests that the worker holds, as the metrics say.
    async fn in_flight(&self) -> anyhow::Result<u32> {
        let metrics = get(&self.address, "/metrics").await?;
        let line = metrics.lines().find(|line| line.starts_with("minisgl_http_requests_in_flight"));
        let value = line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        Ok(value.unwrap_or(0.0) as u32)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn get(address: &str, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// What a client asks for.
#[derive(Clone)]
struct Request {
    api: Api,
    tokens: u32,
}

/// What a client got.
struct Read {
    tokens: u64,
    bytes: u64,
}

impl Request {
    fn of(args: &FrontArgs) -> Request {
        Request { api: args.api, tokens: args.tokens }
    }

    fn body(&self) -> (&'static str, String) {
        let tokens = self.tokens;
        match self.api {
            Api::Chat => (
                "/v1/chat/completions",
                format!(
                    r#"{{"model":"front","messages":[{{"role":"user","content":"Tell me something."}}],"stream":true,"stream_options":{{"include_usage":true}},"max_tokens":{tokens},"ignore_eos":true}}"#
                ),
            ),
            Api::Completions => (
                "/v1/completions",
                format!(
                    r#"{{"model":"front","prompt":"Tell me something.","stream":true,"stream_options":{{"include_usage":true}},"max_tokens":{tokens},"ignore_eos":true}}"#
                ),
            ),
            Api::Generate => (
                "/generate",
                format!(
                    r#"{{"model":"front","text":"Tell me something.","stream":true,"sampling_params":{{"max_new_tokens":{tokens},"ignore_eos":true}}}}"#
                ),
            ),
        }
    }

    async fn send(&self, address: &str) -> anyhow::Result<TcpStream> {
        let mut stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (path, body) = self.body();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await?;
        Ok(stream)
    }

    async fn read(&self, daemon: &Daemon) -> anyhow::Result<Read> {
        self.read_from(&daemon.address).await
    }

    /// Reads a stream to its end; the tokens are those that the last numbers of usage name.
    async fn read_from(&self, address: &str) -> anyhow::Result<Read> {
        let mut stream = BufReader::new(self.send(address).await?);
        let (mut read, mut line) = (Read { tokens: 0, bytes: 0 }, Vec::new());
        loop {
            line.clear();
            let length = stream.read_until(b'\n', &mut line).await?;
            ensure!(length > 0, "a stream broke off after {} bytes", read.bytes);
            read.bytes += length as u64;
            if line.starts_with(b"HTTP/1.1 ") && !line.starts_with(b"HTTP/1.1 200") {
                bail!("refused: {}", String::from_utf8_lossy(&line));
            }
            if !line.starts_with(b"data: ") {
                continue;
            }
            if line.starts_with(b"data: [DONE]") {
                return Ok(read);
            }
            if let Some(tokens) = number_after(&line, b"\"completion_tokens\":") {
                read.tokens = tokens;
            }
        }
    }
}

/// The number that follows `key` in a line.
fn number_after(line: &[u8], key: &[u8]) -> Option<u64> {
    let at = line.windows(key.len()).position(|window| window == key)? + key.len();
    let digits = line[at..].iter().take_while(|byte| byte.is_ascii_digit());
    Some(digits.fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_off_usage() {
        let line = br#"data: {"usage":{"prompt_tokens":5,"completion_tokens":204,"x":1}}"#;
        assert_eq!(number_after(line, b"\"completion_tokens\":"), Some(204));
        assert_eq!(number_after(line, b"\"total\":"), None);
    }
}
