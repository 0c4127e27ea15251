//! The official `openai` Python client against a real daemon: python/test_openai.py.

use std::path::Path;
use std::process::Command;

use minisgl_tests::{Daemon, model_options};

#[test]
fn the_official_client_is_content() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = match std::env::var_os("MINISGL_PYTHON") {
        Some(python) => python.into(),
        None => root.join("../target/venv/bin/python"),
    };
    assert!(python.exists(), "no {}; `cargo xtask test` makes it", python.display());
    let daemon = Daemon::with_smollm2(model_options());
    let status = Command::new(&python)
        .arg(root.join("python/test_openai.py"))
        .env("MINISGL_BASE_URL", format!("http://{}/v1", daemon.listen))
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
    daemon.assert_all_pages_back("smollm2");
}
