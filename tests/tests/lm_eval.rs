//! lm-eval, which scores what a model says of texts, against a real daemon: python/test_lm_eval.py.

use std::path::Path;
use std::process::Command;

use minisgl_tests::{Daemon, model_options, paths};

#[test]
fn log_likelihoods_are_those_of_transformers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = match std::env::var_os("MINISGL_LM_EVAL_PYTHON") {
        Some(python) => python.into(),
        None => root.join("../target/venv-lm-eval/bin/python"),
    };
    assert!(python.exists(), "no {}; `cargo xtask test` makes it", python.display());
    let daemon = Daemon::with_smollm2(model_options());
    let status = Command::new(&python)
        .arg(root.join("python/test_lm_eval.py"))
        .env("MINISGL_BASE_URL", format!("http://{}/v1", daemon.listen))
        .env("MINISGL_TOKENIZER", paths::smollm2())
        .env("MINISGL_FIXTURE", root.join("fixtures/smollm2_logits.json"))
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
    daemon.assert_all_pages_back("smollm2");
}
