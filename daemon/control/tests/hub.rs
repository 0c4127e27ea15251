//! Resolution against a small hub on this machine.

#![allow(clippy::unwrap_used)] // a test's way to fail

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use minisgl_control::HubConfig;
use minisgl_control::resolve::{ResolveError, resolve};
use minisgl_proto::LoadStage;
use minisgl_proto::worker::LoadProgress;

const SHA: &str = "0123456789abcdef0123456789abcdef01234567";

/// Serves one repo, `org/name`, over HTTP/1.1, a connection a request.
struct Hub {
    endpoint: String,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    files: Mutex<BTreeMap<String, Vec<u8>>>,
    /// Requires this token.
    token: Option<String>,
    /// Cuts the connection after this many bytes of a body over 1,000 bytes, this many times.
    cut_after: usize,
    cuts: AtomicUsize,
    /// Sends whole files whatever range is asked for.
    ignores_ranges: bool,
    /// `METHOD path range` of each request.
    log: Mutex<Vec<String>>,
}

impl Hub {
    fn start(files: &[(&str, &[u8])], change: impl FnOnce(&mut State)) -> Hub {
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

    fn config(&self, cache: &Path) -> HubConfig {
        HubConfig {
            cache_dir: Some(cache.to_path_buf()),
            endpoint: Some(self.endpoint.clone()),
            token_file: None,
            offline: false,
        }
    }

    fn asked(&self, part: &str) -> Vec<String> {
        let log = self.state.log.lock().unwrap();
        log.iter().filter(|line| line.contains(part)).cloned().collect()
    }
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
        let path = first.split(' ').nth(1).unwrap().to_string();
        let range = headers.get("range").cloned().unwrap_or_default();
        self.log.lock().unwrap().push(format!("{path} {range}"));
        let token = self.token.as_ref().map(|token| format!("Bearer {token}"));
        let (status, body) = if token.is_some() && headers.get("authorization") != token.as_ref() {
            ("401 Unauthorized", b"{}".to_vec())
        } else {
            self.find(&path)
        };
        self.send(&stream, status, &body, &range);
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
            Some(bytes) => ("206 Partial Content", bytes.clone()),
            None => ("404 Not Found", b"{}".to_vec()),
        }
    }

    fn send(&self, mut stream: &TcpStream, status: &str, body: &[u8], range: &str) {
        let total = body.len();
        let (from, to) = match range.strip_prefix("bytes=").and_then(|range| range.split_once('-'))
        {
            Some(("0", "0")) => (0, 1.min(total)),
            Some((from, _)) if !self.ignores_ranges => (from.parse().unwrap(), total),
            _ => (0, total),
        };
        let etag =
            format!("{:016x}", body.iter().fold(7u64, |h, b| h * 31 % 1_000_003 + u64::from(*b)));
        if from > total || (from == total && total > 0) {
            let _ =
                write!(stream, "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Length: 0\r\n\r\n");
            return;
        }
        let _ = write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nContent-Range: bytes {from}-{to}/{total}\r\n\
             ETag: \"{etag}\"\r\nX-Repo-Commit: {SHA}\r\nConnection: close\r\n\r\n",
            to - from
        );
        let mut end = to;
        if to - from > 1000 && self.cuts.load(Ordering::SeqCst) > 0 {
            self.cuts.fetch_sub(1, Ordering::SeqCst);
            end = (from + self.cut_after).min(to);
        }
        let _ = stream.write_all(&body[from..end]);
    }
}

fn weights() -> Vec<u8> {
    (0..50_000u32).map(|n| (n % 251) as u8).collect()
}

fn find(hub: &Hub, cache: &Path) -> Result<std::path::PathBuf, ResolveError> {
    resolve(&hub.config(cache), "org/name", false, &mut |_| ())
}

#[test]
fn a_repo_is_downloaded_once_and_only_what_is_needed() {
    let weights = weights();
    let hub = Hub::start(
        &[
            ("config.json", b"{}"),
            ("generation_config.json", b"{}"),
            ("tokenizer.json", b"{\"x\": 1}"),
            ("tokenizer_config.json", b"{\"x\": 2}"),
            ("model.safetensors", &weights),
            ("README.md", b"hello"),
            ("pytorch_model.bin", b"old"),
            ("onnx/model.safetensors", b"no"),
            ("../tokenizer.json", b"evil"),
        ],
        |_| (),
    );
    let cache = tempfile::tempdir().unwrap();
    let mut progress: Vec<LoadProgress> = Vec::new();
    let config = hub.config(cache.path());
    let dir = resolve(&config, "org/name", false, &mut |at| progress.push(at)).unwrap();
    assert!(dir.ends_with(format!("models--org--name/snapshots/{SHA}")), "{}", dir.display());
    assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), weights);
    let mut names: Vec<String> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let needed = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"];
    assert_eq!(names[..4], needed);
    assert_eq!(names[4..], ["tokenizer_config.json"]);
    let last = progress.last().unwrap();
    assert_eq!((last.stage, last.done, last.total), (LoadStage::Download, 50_000, 50_000));

    let requests = hub.asked("").len();
    assert_eq!(find(&hub, cache.path()).unwrap(), dir);
    assert_eq!(hub.asked("").len(), requests, "a complete snapshot needs no hub");
}

#[test]
fn a_cut_download_goes_on_where_it_was_cut() {
    let weights = weights();
    let files: &[(&str, &[u8])] =
        &[("config.json", b"{}"), ("tokenizer.json", b"{ }"), ("model.safetensors", &weights)];
    let hub = Hub::start(files, |state| {
        state.cut_after = 20_000;
        state.cuts = AtomicUsize::new(2);
    });
    let cache = tempfile::tempdir().unwrap();
    let dir = find(&hub, cache.path()).unwrap();
    assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), weights);
    let ranges: Vec<String> = hub
        .asked("model.safetensors")
        .iter()
        .filter_map(|line| line.split_once("bytes=").map(|(_, range)| range.to_string()))
        .filter(|range| range != "0-0")
        .collect();
    assert_eq!(ranges, ["0-", "20000-", "40000-"]);
}

#[test]
fn a_later_load_goes_on_too() {
    let weights = weights();
    let files: &[(&str, &[u8])] =
        &[("config.json", b"{}"), ("tokenizer.json", b"{ }"), ("model.safetensors", &weights)];
    let hub = Hub::start(files, |state| {
        state.cut_after = 20_000;
        state.cuts = AtomicUsize::new(1);
    });
    let cache = tempfile::tempdir().unwrap();
    // The first daemon dies after the cut: what it leaves is a part file of the first 20,000 bytes.
    let dir = find(&hub, cache.path()).unwrap();
    let blob = dir.join("model.safetensors").canonicalize().unwrap();
    std::fs::remove_file(dir.join("model.safetensors")).unwrap();
    std::fs::remove_file(&blob).unwrap();
    std::fs::write(blob.with_extension("part"), &weights[..30_000]).unwrap();
    find(&hub, cache.path()).unwrap();
    assert_eq!(std::fs::read(&blob).unwrap(), weights);
    assert_eq!(hub.asked("model.safetensors bytes=30000-").len(), 1);
    // A part that is whole but was never renamed.
    std::fs::remove_file(dir.join("model.safetensors")).unwrap();
    std::fs::rename(&blob, blob.with_extension("part")).unwrap();
    find(&hub, cache.path()).unwrap();
    assert_eq!(std::fs::read(&blob).unwrap(), weights);
}

#[test]
fn a_hub_that_ignores_ranges_never_leaves_a_wrong_file() {
    let weights = weights();
    let files: &[(&str, &[u8])] =
        &[("config.json", b"{}"), ("tokenizer.json", b"{ }"), ("model.safetensors", &weights)];
    let hub = Hub::start(files, |state| {
        state.cut_after = 20_000;
        state.cuts = AtomicUsize::new(1);
        state.ignores_ranges = true;
    });
    let cache = tempfile::tempdir().unwrap();
    let dir = find(&hub, cache.path()).unwrap();
    assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), weights);
}

#[test]
fn shards_come_as_the_index_names_them() {
    let index = br#"{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}"#;
    let mut files: Vec<(&str, &[u8])> = vec![
        ("config.json", b"{}"),
        ("tokenizer.json", b"{ }"),
        ("model.safetensors.index.json", index),
        ("m-1.safetensors", b"one"),
        ("m-2.safetensors", b"two"),
        ("consolidated.safetensors", b"the same again"),
    ];
    let cache = tempfile::tempdir().unwrap();
    let dir = find(&Hub::start(&files, |_| ()), cache.path()).unwrap();
    assert!(dir.join("m-2.safetensors").exists());
    assert!(!dir.join("consolidated.safetensors").exists());

    files[2].1 = br#"{"weight_map": {"a": "../../../../evil.safetensors"}}"#;
    let cache = tempfile::tempdir().unwrap();
    let error = find(&Hub::start(&files, |_| ()), cache.path()).unwrap_err().to_string();
    assert!(error.contains("no file beside it"), "{error}");
}

#[test]
fn errors_say_what_was_tried_and_what_to_do() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::start(&[("config.json", b"{}"), ("tokenizer.json", b"{ }")], |state| {
        state.token = Some("secret".into());
    });
    let error = find(&hub, cache.path()).unwrap_err().to_string();
    for part in ["it has no such repo", hub.endpoint.as_str(), "401", "private, gated"] {
        assert!(error.contains(part), "{part} is not in: {error}");
    }
    let mut config = hub.config(cache.path());
    let token = cache.path().join("token");
    config.token_file = Some(token.clone());
    let ask = |model: &str| resolve(&config, model, false, &mut |_| ()).unwrap_err().to_string();
    assert!(ask("org/name").contains("token is unreadable"), "{}", ask("org/name"));
    std::fs::write(&token, "secret\n").unwrap();
    let error = ask("org/name");
    assert!(error.contains("no model.safetensors and no model.safetensors.index.json"), "{error}");
    assert!(ask("org/other").contains("404"), "{}", ask("org/other"));
    assert!(resolve(&config, "org/name", true, &mut |_| ()).is_ok(), "dummy weights need none");
}
