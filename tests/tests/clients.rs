//! Clients of others, unmodified, against a real daemon that asks for a key: python/clients.

use std::path::Path;
use std::process::Command;

use minisgl_tests::{Daemon, model_options, paths};

const KEY: &str = "sk-minisgl-tests-0123456789";

/// Runs one of `python/clients` against a daemon of its own.
fn run(test: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = match std::env::var_os("MINISGL_CLIENTS_PYTHON") {
        Some(python) => python.into(),
        None => root.join("../target/venv-clients/bin/python"),
    };
    assert!(python.exists(), "no {}; `cargo xtask test` makes it", python.display());
    run_by(&python, test);
}

fn run_by(python: &Path, test: &str) {
    let keys = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(&keys, KEY).expect("a temporary file is writable");
    let daemon = Daemon::start_configured(&format!("[http]\napi_keys_file = {:?}\n", keys.path()));
    daemon.load("smollm2", &paths::smollm2(), model_options());
    let clients = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/clients");
    let status = Command::new(python)
        .arg(clients.join(test))
        .env("MINISGL_ROOT_URL", format!("http://{}", daemon.listen))
        .env("MINISGL_API_KEY", KEY)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .status()
        .expect("Python starts");
    assert!(status.success(), "{test}: {status}");
    daemon.assert_all_pages_back("smollm2");
}

#[test]
fn openai_has_its_forms_calls_and_responses() {
    run("test_openai.py");
}

#[test]
fn anthropic_has_its_messages() {
    run("test_anthropic.py");
}

#[test]
fn langchain_is_content() {
    run("test_langchain.py");
}

#[test]
fn pydantic_ai_is_content() {
    run("test_pydantic_ai.py");
}

#[test]
fn openai_agents_are_content() {
    run("test_agents.py");
}

#[test]
fn litellm_is_content() {
    run("test_litellm.py");
}

#[test]
fn instructor_is_content() {
    run_by(&paths::venv_program("venv-instructor", "python"), "test_instructor.py");
}
