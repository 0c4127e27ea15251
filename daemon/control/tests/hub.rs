//! Resolution against a small hub on this machine.

#![allow(clippy::unwrap_used)] // a test's way to fail

#[path = "common/hub.rs"]
mod hub;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hub::{Hub, SHA, weights};
use minisgl_control::resolve::{ResolveError, Retry, resolve};
use minisgl_proto::LoadStage;
use minisgl_proto::admin::AdminErrorCode;
use minisgl_proto::worker::LoadProgress;

async fn find(hub: &Hub, cache: &Path) -> Result<PathBuf, ResolveError> {
    resolve(&hub.config(cache), "org/name", false, &mut |_| ()).await
}

fn is_right(dir: &Path) -> bool {
    std::fs::read(dir.join("model.safetensors")).unwrap() == weights()
}

/// The blobs of the cache, whole or not.
fn blobs(cache: &Path) -> Vec<String> {
    let names = std::fs::read_dir(cache.join("models--org--name/blobs")).unwrap();
    names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test]
async fn a_repo_is_downloaded_once_and_only_what_is_needed() {
    let weights = weights();
    let hub = Hub::start(
        &[
            ("config.json", b"{}"),
            ("generation_config.json", b"{}"),
            ("tokenizer.json", b"{\"x\": 1}"),
            ("tokenizer_config.json", b"{\"x\": 2}"),
            ("additional_chat_templates/tool_use.jinja", b"tools"),
            ("model.safetensors", &weights),
            ("README.md", b"hello"),
            ("pytorch_model.bin", b"old"),
            ("onnx/model.safetensors", b"no"),
            ("../tokenizer.json", b"evil"),
            ("additional_chat_templates/../x.jinja", b"evil"),
        ],
        |_| (),
    );
    let cache = tempfile::tempdir().unwrap();
    let mut progress: Vec<LoadProgress> = Vec::new();
    let config = hub.config(cache.path());
    let dir = resolve(&config, "org/name", false, &mut |at| progress.push(at)).await.unwrap();
    assert!(dir.ends_with(format!("models--org--name/snapshots/{SHA}")), "{}", dir.display());
    assert!(is_right(&dir));
    let mut names: Vec<String> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "additional_chat_templates",
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
    let template = dir.join("additional_chat_templates/tool_use.jinja");
    assert_eq!(std::fs::read(template).unwrap(), b"tools", "the link leads up two folders more");
    let last = progress.last().unwrap();
    assert_eq!((last.stage, last.done, last.total), (LoadStage::Download, 50_000, 50_000));

    let requests = hub.asked("").len();
    assert_eq!(find(&hub, cache.path()).await.unwrap(), dir);
    assert_eq!(hub.asked("").len(), requests, "a complete snapshot needs no hub");
}

#[tokio::test]
async fn a_cut_download_goes_on_where_it_was_cut() {
    let hub = Hub::model(|state| {
        state.cut_after = 20_000;
        state.cuts = AtomicUsize::new(2);
    });
    let cache = tempfile::tempdir().unwrap();
    assert!(is_right(&find(&hub, cache.path()).await.unwrap()));
    let asked: Vec<String> = hub
        .asked(&format!("GET /org/name/resolve/{SHA}/model.safetensors"))
        .iter()
        .map(|line| line.rsplit(' ').next().unwrap().to_string())
        .collect();
    assert_eq!(asked, ["", "bytes=20000-", "bytes=40000-"]);
}

#[tokio::test]
async fn a_later_load_goes_on_too() {
    let hub = Hub::model(|_| ());
    let cache = tempfile::tempdir().unwrap();
    let dir = find(&hub, cache.path()).await.unwrap();
    let blob = dir.join("model.safetensors").canonicalize().unwrap();
    let forget = || {
        std::fs::remove_file(dir.join("model.safetensors")).unwrap();
        std::fs::remove_file(&blob).unwrap();
    };
    let part = blob.with_extension("incomplete");
    // The first daemon died in the middle.
    forget();
    std::fs::write(&part, &weights()[..30_000]).unwrap();
    find(&hub, cache.path()).await.unwrap();
    assert!(is_right(&dir));
    assert_eq!(hub.asked("model.safetensors bytes=30000-").len(), 1);
    let requests = || hub.asked("GET /org/name/resolve").len();
    // It died before the file got its name: nothing is to come any more.
    forget();
    std::fs::write(&part, weights()).unwrap();
    let before = requests();
    find(&hub, cache.path()).await.unwrap();
    assert!(is_right(&dir) && requests() == before);
    // What is there is the start of something else, or too much.
    for wrong in [vec![7; 30_000], vec![7; 60_000]] {
        forget();
        std::fs::write(&part, wrong).unwrap();
        find(&hub, cache.path()).await.unwrap();
        assert!(is_right(&dir));
    }
}

#[tokio::test]
async fn a_hub_that_ignores_ranges_never_leaves_a_wrong_file() {
    let hub = Hub::model(|state| {
        state.cut_after = 20_000;
        state.cuts = AtomicUsize::new(1);
        state.ignores_ranges = true;
    });
    let cache = tempfile::tempdir().unwrap();
    assert!(is_right(&find(&hub, cache.path()).await.unwrap()));
    assert_eq!(hub.asked("model.safetensors bytes=20000-").len(), 1);
    let asked = hub.asked(&format!("GET /org/name/resolve/{SHA}/model.safetensors"));
    assert_eq!(asked.len(), 2, "what came from the start was taken: {asked:?}");
}

#[tokio::test]
async fn shards_come_as_the_index_names_them() {
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
    let dir = find(&Hub::start(&files, |_| ()), cache.path()).await.unwrap();
    assert!(dir.join("m-2.safetensors").exists());
    assert!(!dir.join("consolidated.safetensors").exists());

    files[2].1 = br#"{"weight_map": {"a": "../../../../evil.safetensors"}}"#;
    let cache = tempfile::tempdir().unwrap();
    let error = find(&Hub::start(&files, |_| ()), cache.path()).await.unwrap_err();
    assert!(error.message.contains("no file beside it"), "{error}");
}

#[tokio::test]
async fn errors_say_what_was_tried_and_what_to_do() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::start(&[("config.json", b"{}"), ("tokenizer.json", b"{ }")], |state| {
        state.token = Some("secret".into());
    });
    let error = find(&hub, cache.path()).await.unwrap_err();
    assert_eq!((error.code, error.retry), (AdminErrorCode::NotFound, Retry::Never));
    for part in ["it has no such repo", hub.endpoint.as_str(), "401", "private, gated"] {
        assert!(error.message.contains(part), "{part} is not in: {error}");
    }
    let mut config = hub.config(cache.path());
    let token = cache.path().join("token");
    config.token_file = Some(token.clone());
    let ask = async |model: &str| {
        resolve(&config, model, false, &mut |_| ()).await.unwrap_err().to_string()
    };
    let error = ask("org/name").await;
    assert!(error.contains("token is unreadable"), "{error}");
    std::fs::write(&token, "secret\n").unwrap();
    let error = ask("org/name").await;
    assert!(error.contains("no model.safetensors and no model.safetensors.index.json"), "{error}");
    hub.state.files.lock().unwrap().insert("q4.gguf".into(), vec![1]);
    let error = ask("org/name").await;
    assert!(error.contains("GGUF, which is not read"), "{error}");
    let error = ask("org/other").await;
    assert!(error.contains("404"), "{error}");
    let dummy = resolve(&config, "org/name", true, &mut |_| ()).await;
    assert!(dummy.is_ok(), "dummy weights need none");
}

#[tokio::test]
async fn a_hub_that_is_silent_in_any_phase_is_given_up_and_may_be_tried_again() {
    for (phase, part) in [
        ("its answer about the repo: no answer came", "GET /api/models"),
        ("tokenizer.json: no answer came", "HEAD /org/name/resolve"),
        ("model.safetensors: no answer came", "GET /org/name/resolve"),
    ] {
        let hub = Hub::model(|_| ());
        let cache = tempfile::tempdir().unwrap();
        if part.contains("/resolve") {
            let names: &[&str] = if part.starts_with("HEAD") { &["config.json"] } else { &[] };
            // What comes before the phase is not held up.
            let dir = cache.path().join(format!("models--org--name/snapshots/{SHA}"));
            std::fs::create_dir_all(&dir).unwrap();
            let all = ["config.json", "tokenizer.json"];
            for name in if names.is_empty() { &all[..] } else { names } {
                std::fs::write(dir.join(name), "{}").unwrap();
            }
        }
        *hub.state.silent.lock().unwrap() = Some(part);
        let impatient = hub.config_within(Duration::from_millis(400), cache.path());
        let error = resolve(&impatient, "org/name", false, &mut |_| ()).await.unwrap_err();
        assert!(error.message.contains(phase), "{phase} is not in: {error}");
        assert_eq!((error.code, error.retry), (AdminErrorCode::Failed, Retry::Backoff));
        assert_eq!(hub.asked(part).len(), 3, "attempts");
        *hub.state.silent.lock().unwrap() = None;
        assert!(is_right(&find(&hub, cache.path()).await.unwrap()), "once it speaks again");
    }
}

#[tokio::test]
async fn a_hub_that_stops_in_the_middle_of_a_file_is_given_up() {
    let hub = Hub::model(|state| state.hold_after = Some(0).into());
    let cache = tempfile::tempdir().unwrap();
    let impatient = hub.config_within(Duration::from_millis(400), cache.path());
    let error = resolve(&impatient, "org/name", false, &mut |_| ()).await.unwrap_err();
    assert!(error.message.contains("model.safetensors: no byte came in 0.4 s"), "{error}");
    assert_eq!(error.retry, Retry::Backoff);
}

#[tokio::test]
async fn a_hub_that_is_not_there_may_be_tried_again() {
    let hub = Hub::model(|_| ());
    let cache = tempfile::tempdir().unwrap();
    // A port that is taken, so that nobody else listens on it, and that refuses.
    let deaf = tokio::net::TcpSocket::new_v4().unwrap();
    deaf.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let mut config = hub.config(cache.path());
    config.endpoint = Some(format!("http://{}", deaf.local_addr().unwrap()));
    let error = resolve(&config, "org/name", false, &mut |_| ()).await.unwrap_err();
    assert!(error.message.contains("no connection"), "{error}");
    assert!(error.message.contains("refused"), "{error}");
    assert_eq!((error.code, error.retry), (AdminErrorCode::Failed, Retry::Backoff));
}

#[tokio::test]
async fn a_busy_hub_is_asked_again_and_not_before_it_wants_to_be() {
    let hub = Hub::model(|state| {
        state.answers = vec![
            ("GET /api/models", "429 Too Many Requests\r\nRetry-After: 1"),
            ("HEAD /org/name", "503 Service Unavailable"),
            ("GET /org/name", "408 Request Timeout"),
            ("model.safetensors", "500 Internal Server Error"),
            ("model.safetensors", "500 Internal Server Error"),
        ]
        .into();
    });
    let cache = tempfile::tempdir().unwrap();
    let since = Instant::now();
    let mut told = Vec::new();
    let config = hub.config(cache.path());
    let found = resolve(&config, "org/name", false, &mut |at| told.push(at.detail)).await;
    assert!(is_right(&found.unwrap()));
    assert!(since.elapsed() >= Duration::from_secs(1), "Retry-After was not heeded");
    let waits = |detail: &String| detail.contains("429") && detail.contains("asked again in 1.0 s");
    assert!(told.iter().any(waits), "{told:?}");
    assert!(hub.state.answers.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_long_retry_after_ends_the_download_and_is_passed_on() {
    let hub = Hub::model(|_| ());
    let cache = tempfile::tempdir().unwrap();
    let answers = [
        ("429 Too Many Requests\r\nRetry-After: 900", 900),
        // A quarter of an hour after the answer, by the hub's own clock.
        (
            "503 Service Unavailable\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
             Retry-After: Sun, 06 Nov 1994 09:04:37 GMT",
            900,
        ),
        ("429 Too Many Requests\r\nRetry-After: Fri, 31 Dec 9999 23:59:59 GMT", 86_400),
        ("429 Too Many Requests\r\nRetry-After: 18446744073709551615", 86_400),
        ("429 Too Many Requests\r\nRetry-After: 99999999999999999999", 86_400),
    ];
    for (at, (answer, seconds)) in answers.into_iter().enumerate() {
        hub.state.answers.lock().unwrap().push(("GET /api/models", answer));
        let error = find(&hub, cache.path()).await.unwrap_err();
        assert_eq!(error.retry, Retry::After(Duration::from_secs(seconds)), "{answer}: {error}");
        assert_eq!(hub.asked("GET /api/models").len(), at + 1, "{answer}");
    }
    for status in ["400 Bad Request", "410 Gone"] {
        hub.state.answers.lock().unwrap().push(("GET /api/models", status));
        let error = find(&hub, cache.path()).await.unwrap_err();
        assert_eq!(error.retry, Retry::Never, "{error}");
    }
}

#[tokio::test]
async fn wrong_content_of_the_right_size_is_fetched_once_more() {
    for file in ["model.safetensors", "tokenizer.json"] {
        let hub = Hub::model(|state| state.wrong = Some((file, 1)).into());
        let cache = tempfile::tempdir().unwrap();
        let dir = find(&hub, cache.path()).await.unwrap();
        assert!(is_right(&dir) && std::fs::read(dir.join("tokenizer.json")).unwrap() == b"{ }");
        let asked = hub.asked(&format!("GET /org/name/resolve/{SHA}/{file}"));
        assert_eq!(asked.len(), 2, "{asked:?}");
    }
}

#[tokio::test]
async fn wrong_content_twice_is_an_error_and_leaves_nothing() {
    for (file, hash) in [("model.safetensors", "SHA-256"), ("tokenizer.json", "Git SHA-1")] {
        let hub = Hub::model(|state| state.wrong = Some((file, usize::MAX)).into());
        let cache = tempfile::tempdir().unwrap();
        let error = find(&hub, cache.path()).await.unwrap_err();
        let told = format!("{file}: what came has the {hash}");
        assert!(error.message.contains(&told), "{told} is not in: {error}");
        assert_eq!((error.code, error.retry), (AdminErrorCode::Failed, Retry::Never));
        let right = if file == "tokenizer.json" { 1 } else { 2 };
        assert_eq!(blobs(cache.path()).len(), right, "{:?}", blobs(cache.path()));
    }
}

#[tokio::test]
async fn files_come_from_where_the_hub_points_and_its_token_stays_behind() {
    let elsewhere = Hub::model(|_| ());
    let hub = Hub::model(|state| {
        state.bytes_at = Some(elsewhere.endpoint.clone());
        state.token = Some("secret".into());
    });
    let cache = tempfile::tempdir().unwrap();
    let mut config = hub.config(cache.path());
    let token = cache.path().join("token");
    std::fs::write(&token, "secret").unwrap();
    config.token_file = Some(token);
    let dir = resolve(&config, "org/name", false, &mut |_| ()).await.unwrap();
    assert!(is_right(&dir));
    assert_eq!(elsewhere.asked("").len(), 1, "the bytes of the weights: {:?}", elsewhere.asked(""));
    assert_eq!(
        elsewhere.state.with_token.load(Ordering::SeqCst),
        0,
        "the token was sent elsewhere"
    );
    assert!(hub.state.with_token.load(Ordering::SeqCst) > 0);
}

#[tokio::test]
async fn a_repo_that_was_renamed_is_found() {
    let hub = Hub::model(|_| ());
    let cache = tempfile::tempdir().unwrap();
    let found = resolve(&hub.config(cache.path()), "org/old", false, &mut |_| ()).await.unwrap();
    assert!(is_right(&found) && found.to_string_lossy().contains("models--org--old"));
}

#[tokio::test]
async fn files_of_another_commit_are_refused() {
    let hub = Hub::model(|state| state.other_commit = true.into());
    let cache = tempfile::tempdir().unwrap();
    let error = find(&hub, cache.path()).await.unwrap_err();
    assert!(error.message.contains("comes from another"), "{error}");
}

#[tokio::test]
async fn a_cache_that_leads_elsewhere_gets_no_link_to_it() {
    let hub = Hub::model(|_| ());
    let (cache, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let repo = cache.path().join("models--org--name");
    std::fs::create_dir_all(repo.join("snapshots")).unwrap();
    // The snapshot is a link to a folder elsewhere, from where its links lead to somebody else's files.
    let (snapshot, blobs) = (elsewhere.path().join("x/y"), elsewhere.path().join("blobs"));
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(blobs.join(hub::etag(b"{}")), "evil").unwrap();
    std::os::unix::fs::symlink(&snapshot, repo.join("snapshots").join(SHA)).unwrap();
    let error = find(&hub, cache.path()).await.unwrap_err();
    assert!(error.message.contains("config.json is not where it is"), "{error}");
    assert_eq!(error.code, AdminErrorCode::Failed);
}
