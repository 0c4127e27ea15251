//! Clients from npm, unmodified, against a real daemon that asks for a key: node/clients.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use minisgl_tests::{Daemon, model_options, npm, paths};

const KEY: &str = "sk-minisgl-tests-0123456789";

/// Runs one of `node/clients` against a daemon of its own.
fn run(test: &str) {
    let keys = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(&keys, KEY).expect("a temporary file is writable");
    let daemon = Daemon::start_configured(&format!("[http]\napi_keys_file = {:?}\n", keys.path()));
    daemon.load("smollm2", &paths::smollm2(), model_options());
    // Node looks for packages beside the file that names them, and nowhere else.
    let dir = daemon.dir().join("node");
    std::fs::create_dir(&dir).expect("a temporary folder is writable");
    symlink(npm::modules("clients"), dir.join("node_modules")).expect("a link");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("node/clients");
    for file in ["package.json", "common.mjs", test] {
        std::fs::copy(source.join(file), dir.join(file)).expect("a file of the tests");
    }
    let status = Command::new(npm::node())
        .args(["--test", "--test-reporter=spec", "--test-timeout=600000"])
        .arg(dir.join(test))
        .env("MINISGL_ROOT_URL", format!("http://{}", daemon.listen))
        .env("MINISGL_API_KEY", KEY)
        .status()
        .expect("Node.js starts");
    assert!(status.success(), "{test}: {status}");
    daemon.assert_all_pages_back("smollm2");
}

#[test]
fn openai_from_npm_has_its_forms_calls_and_responses() {
    run("openai.test.mjs");
}

#[test]
fn vercels_ai_is_content_with_chats_responses_and_messages() {
    run("ai.test.mjs");
}
