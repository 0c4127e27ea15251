//! Coding agents from npm, unmodified and headless, against a real daemon: node/agents.
//!
//! The model has 40,960 tokens of context, and weights that are random: what it calls and says, a grammar makes.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use minisgl_proto::{Device, LoadOptions};
use minisgl_tests::{Daemon, model_options, npm, paths};

const KEY: &str = "sk-minisgl-tests-0123456789";

/// Runs an agent that speaks one of the APIs, `chat`, `responses` or `messages`, against a daemon of its own.
fn run(agent: &str, form: &str) {
    let keys = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(&keys, KEY).expect("a temporary file is writable");
    let daemon = Daemon::start_configured(&format!("[http]\napi_keys_file = {:?}\n", keys.path()));
    let model = paths::dummy_folder_with("agent", &paths::tokenizer("qwen3"), &daemon.dir());
    let options = LoadOptions {
        dummy_weights: true,
        // A shape so small that no GPU needs to have a kernel for it.
        device: Device::Cpu,
        tp: 1,
        kv_tokens: Some(81_920),
        // Such weights would open a thought, and never end it.
        dialect: Some("plain".to_owned()),
        ..model_options()
    };
    daemon.load("agent", &model, options);
    // Node looks for packages beside the file that names them, and nowhere else.
    let dir = daemon.dir().join("node");
    std::fs::create_dir(&dir).expect("a temporary folder is writable");
    symlink(npm::modules("agents"), dir.join("node_modules")).expect("a link");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("node/agents");
    for file in ["package.json", "proxy.mjs", "run.mjs"] {
        std::fs::copy(source.join(file), dir.join(file)).expect("a file of the tests");
    }
    let status = Command::new(npm::node())
        .current_dir(&dir)
        .args(["run.mjs", agent, form])
        .env("MINISGL_ROOT_URL", format!("http://{}", daemon.listen))
        .env("MINISGL_API_KEY", KEY)
        .status()
        .expect("Node.js starts");
    assert!(status.success(), "{agent}: {status}");
    daemon.assert_all_pages_back("agent");
}

#[test]
fn codex_calls_and_ends_over_responses() {
    run("codex", "responses");
}

#[test]
fn pi_calls_and_ends_over_chats() {
    run("pi", "chat");
}

#[test]
fn pi_calls_and_ends_over_responses() {
    run("pi", "responses");
}

#[test]
fn pi_calls_and_ends_over_messages() {
    run("pi", "messages");
}

#[test]
fn claude_code_calls_and_ends_over_messages() {
    run("claude-code", "messages");
}

#[test]
fn qwen_code_calls_and_ends_over_chats() {
    run("qwen-code", "chat");
}

#[test]
fn opencode_calls_and_ends_over_chats() {
    run("opencode", "chat");
}

#[test]
fn opencode_calls_and_ends_over_responses() {
    run("opencode", "responses");
}

#[test]
fn opencode_calls_and_ends_over_messages() {
    run("opencode", "messages");
}
