//! A hub on this machine that serves one repo, `org/name`, over HTTP/1.1, a connection a request, and that can
//! be slow, rude and wrong.

#![allow(dead_code)] // each test binary uses its part of this

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use minisgl_control::{HubConfig, HubLimits};
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// What never happens is told after that long; how long what happens may take is nobody's promise.
const PATIENCE: Duration = Duration::from_secs(120);
/// The commit of `main`.
pub const SHA: &str = "0123456789abcdef0123456789abcdef01234567";

/// A running hub.
pub struct Hub {
    pub endpoint: String,
    pub state: Arc<State>,
}

/// How it behaves.
#[derive(Default)]
pub struct State {
    pub files: Mutex<BTreeMap<String, Vec<u8>>>,
    /// Requires this token.
    pub token: Option<String>,
    /// Cuts the connection after this many bytes of a body over 1,000 bytes, this many times.
    pub cut_after: usize,
    pub cuts: AtomicUsize,
    /// Sends whole files whatever range is asked for.
    pub ignores_ranges: bool,
    /// Requests whose `METHOD path` contains this get these answers first.
    pub answers: Mutex<Vec<(&'static str, &'static str)>>,
    /// Requests whose `METHOD path` contains this get no answer.
    pub silent: Mutex<Option<&'static str>>,
    /// Holds bodies over 1,000 bytes back after this many bytes, as long as it is set.
    pub hold_after: Mutex<Option<usize>>,
    /// Sends this file's bytes upside down, this many times.
    pub wrong: Mutex<Option<(&'static str, usize)>>,
    /// Names another commit with each file.
    pub other_commit: AtomicBool,
    /// Where the bytes of big files are: another hub's address.
    pub bytes_at: Option<String>,
    /// Requests that came with a token.
    pub with_token: AtomicUsize,
    /// `METHOD path range` of each request.
    pub log: Mutex<Vec<String>>,
    /// Connections that a client closed while they were held.
    pub left: AtomicUsize,
}

impl Hub {
    pub fn start(files: &[(&str, &[u8])], change: impl FnOnce(&mut State)) -> Hub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let mut state = State::default();
        for (name, bytes) in files {
            state.files.get_mut().unwrap().insert((*name).to_string(), bytes.to_vec());
        }
        change(&mut state);
        let state = Arc::new(state);
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let state = Arc::clone(&shared);
                std::thread::spawn(move || state.answer(stream.unwrap()));
            }
        });
        Hub { endpoint, state }
    }

    /// A model of 50,000 bytes of weights.
    pub fn model(change: impl FnOnce(&mut State)) -> Hub {
        let weights = weights();
        let files: &[(&str, &[u8])] =
            &[("config.json", b"{}"), ("tokenizer.json", b"{ }"), ("model.safetensors", &weights)];
        Hub::start(files, change)
    }

    /// Quick to ask again, and patient: a busy machine may take its time to answer.
    pub fn config(&self, cache: &Path) -> HubConfig {
        self.config_within(PATIENCE, cache)
    }

    /// The same with a limit to each wait.
    pub fn config_within(&self, limit: Duration, cache: &Path) -> HubConfig {
        let limits = HubLimits {
            connect: limit,
            response: limit,
            idle: limit,
            attempts: 3,
            pause: Duration::from_millis(10),
            pause_max: Duration::from_secs(2),
        };
        HubConfig {
            cache_dir: Some(cache.to_path_buf()),
            endpoint: Some(self.endpoint.clone()),
            limits,
            ..HubConfig::default()
        }
    }

    /// The requests that contain `part`.
    pub fn asked(&self, part: &str) -> Vec<String> {
        let log = self.state.log.lock().unwrap();
        log.iter().filter(|line| line.contains(part)).cloned().collect()
    }

    /// Waits until `is` true.
    pub async fn until(&self, is: impl Fn(&State) -> bool) {
        let since = Instant::now();
        while !is(&self.state) {
            assert!(since.elapsed() < PATIENCE, "{:?}", self.asked(""));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// What `model.safetensors` of [`Hub::model`] is.
pub fn weights() -> Vec<u8> {
    (0..50_000u32).map(|n| (n % 251) as u8).collect()
}

/// As the hub names it: big files are in LFS, small ones in Git.
pub fn etag(bytes: &[u8]) -> String {
    match bytes.len() {
        0..1000 => format!(
            "{:x}",
            Sha1::new()
                .chain_update(format!("blob {}\0", bytes.len()))
                .chain_update(bytes)
                .finalize()
        ),
        _ => format!("{:x}", Sha256::digest(bytes)),
    }
}

fn redirect(mut stream: &TcpStream, head: &str) {
    let _ = write!(stream, "HTTP/1.1 {head}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
}

impl State {
    fn answer(&self, stream: TcpStream) {
        let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
        let Some(first) = lines.next() else { return };
        let mut headers = BTreeMap::new();
        for line in lines.take_while(|line| !line.is_empty()) {
            let (name, value) = line.split_once(": ").unwrap();
            headers.insert(name.to_lowercase(), value.to_string());
        }
        let (method, rest) = first.split_once(' ').unwrap();
        let path = rest.split(' ').next().unwrap().to_string();
        let range = headers.get("range").cloned().unwrap_or_default();
        let request = format!("{method} {path}");
        self.log.lock().unwrap().push(format!("{request} {range}"));
        if self.silent.lock().unwrap().is_some_and(|part| request.contains(part)) {
            self.wait_for_the_client(&stream);
            return;
        }
        let prepared = {
            let mut answers = self.answers.lock().unwrap();
            let at = answers.iter().position(|(part, _)| request.contains(part));
            at.map(|at| answers.remove(at).1)
        };
        if let Some(head) = prepared {
            let _ = write!(
                &stream,
                "HTTP/1.1 {head}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
            return;
        }
        self.with_token
            .fetch_add(usize::from(headers.contains_key("authorization")), Ordering::SeqCst);
        if path.contains("/org/old/") {
            let to = path.replace("/org/old/", "/org/name/");
            redirect(&stream, &format!("307 Temporary Redirect\r\nLocation: {to}"));
            return;
        }
        let token = self.token.as_ref().map(|token| format!("Bearer {token}"));
        let (status, body) = if token.is_some() && headers.get("authorization") != token.as_ref() {
            ("401 Unauthorized", b"{}".to_vec())
        } else {
            self.find(&path)
        };
        match &self.bytes_at {
            Some(elsewhere) if body.len() > 1000 && path.contains("/resolve/") => redirect(
                &stream,
                &format!(
                    "302 Found\r\nLocation: {elsewhere}{path}\r\nETag: \"of the redirect\"\r\n\
                     X-Linked-ETag: \"{}\"\r\nX-Linked-Size: {}\r\nX-Repo-Commit: {SHA}",
                    etag(&body),
                    body.len()
                ),
            ),
            _ => self.send(&stream, method, &path, status, &body, &range),
        }
    }

    fn find(&self, path: &str) -> (&'static str, Vec<u8>) {
        let files = self.files.lock().unwrap();
        if path.starts_with("/api/models/org/name/revision/main") {
            let siblings: Vec<_> = files
                .iter()
                .map(|(name, bytes)| serde_json::json!({"rfilename": name, "size": bytes.len()}))
                .collect();
            let info = serde_json::json!({"sha": SHA, "siblings": siblings});
            return ("200 OK", info.to_string().into_bytes());
        }
        let file = path.strip_prefix(&format!("/org/name/resolve/{SHA}/"));
        match file.and_then(|file| files.get(file)) {
            Some(bytes) => ("200 OK", bytes.clone()),
            None => ("404 Not Found", b"{}".to_vec()),
        }
    }

    fn send(
        &self,
        mut stream: &TcpStream,
        method: &str,
        path: &str,
        status: &str,
        body: &[u8],
        range: &str,
    ) {
        let total = body.len();
        let from = range.strip_prefix("bytes=").and_then(|range| range.strip_suffix('-'));
        let from = from.filter(|_| !self.ignores_ranges).map(|from| from.parse::<usize>().unwrap());
        if from.is_some_and(|from| from >= total) {
            let _ =
                write!(stream, "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Length: 0\r\n\r\n");
            return;
        }
        let status = if from.is_some() { "206 Partial Content" } else { status };
        let range =
            from.map(|from| format!("Content-Range: bytes {from}-{}/{total}\r\n", total - 1));
        let from = from.unwrap_or(0);
        let commit = if self.other_commit.load(Ordering::SeqCst) { "another" } else { SHA };
        let _ = write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\n{}ETag: \"{}\"\r\nX-Repo-Commit: {commit}\r\n\
             Connection: close\r\n\r\n",
            total - from,
            range.unwrap_or_default(),
            etag(body),
        );
        if method == "HEAD" {
            return;
        }
        let mut body = body.to_vec();
        if let Some((_, left)) = self
            .wrong
            .lock()
            .unwrap()
            .as_mut()
            .filter(|(file, left)| path.ends_with(file) && *left > 0)
        {
            *left -= 1;
            body.reverse();
        }
        let big = total - from > 1000;
        let mut end = total;
        if big && self.cuts.load(Ordering::SeqCst) > 0 {
            self.cuts.fetch_sub(1, Ordering::SeqCst);
            end = (from + self.cut_after).min(total);
        }
        let hold = self.hold_after.lock().unwrap().filter(|_| big);
        let first = hold.map_or(end, |after| (from + after).min(end));
        let _ = stream.write_all(&body[from..first]);
        while self.hold_after.lock().unwrap().is_some() && hold.is_some() {
            if self.has_left(stream) {
                return;
            }
        }
        let _ = stream.write_all(&body[first..end]);
    }

    fn wait_for_the_client(&self, stream: &TcpStream) {
        while !self.has_left(stream) {}
    }

    /// Whether the client closed the connection; waits a moment.
    fn has_left(&self, mut stream: &TcpStream) -> bool {
        stream.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        let left = matches!(stream.read(&mut [0]), Ok(0))
            || stream.take_error().is_ok_and(|error| error.is_some());
        if left {
            self.left.fetch_add(1, Ordering::SeqCst);
        }
        left
    }
}
