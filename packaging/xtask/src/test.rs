//! `cargo xtask test`: every test there is, in order of how fast they find something.
//!
//! Owns: the order, the headings, the thresholds' place in it. Must never: skip. What is missing is got first of
//! all, or named (`needs.rs`).

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::{bench, bench_clients, build, corpus, model, needs, node, paths, python, schemas, sh};

type Stage = fn() -> Result<()>;

/// Runs everything; stops at the first failure.
///
/// # Errors
/// The first stage that failed, and how to run it alone.
pub fn run() -> Result<()> {
    let stages: [(&str, Stage); 20] = [
        ("what the tests need", || needs::provide(&needs::TEST)),
        ("format", format),
        ("shell scripts", shell_scripts),
        ("CUDA compiler", build::prepare),
        ("clippy without CUDA", clippy_without_cuda),
        ("clippy", clippy),
        ("documentation", documentation),
        ("models", models),
        ("unit tests", unit_tests),
        ("documentation tests", doc_tests),
        ("release build", || build::release(build::Backend::Cuda)),
        ("Python clients", python_clients),
        ("npm clients", || node::CLIENTS.install()),
        ("routers", routers),
        ("SGLang's benchmark", bench_clients::fetch),
        ("coding agents", || node::AGENTS.install()),
        ("chat templates", chat_templates),
        ("JSON schemas", json_schemas),
        ("end-to-end tests", end_to_end),
        ("benchmarks", bench::run),
    ];
    let mut times = Vec::new();
    for (at, (name, stage)) in stages.iter().enumerate() {
        println!("\n==> [{}/{}] {name}", at + 1, stages.len());
        let start = Instant::now();
        let outcome = stage();
        times.push((*name, start.elapsed()));
        if let Err(error) = outcome {
            summary(&times);
            return Err(error.context(format!("{name} failed")));
        }
        println!("<== {name}: {:.1} s", start.elapsed().as_secs_f64());
    }
    summary(&times);
    println!("every test passed");
    Ok(())
}

fn summary(times: &[(&str, Duration)]) {
    println!("\n==> summary");
    for (name, time) in times {
        println!("{:>8.1} s  {name}", time.as_secs_f64());
    }
    let all: Duration = times.iter().map(|(_, time)| *time).sum();
    println!("{:>8.1} s  in all", all.as_secs_f64());
}

fn format() -> Result<()> {
    cargo(&["fmt", "--all", "--check"], "`cargo fmt --all` repairs it")
}

/// Real templates, rendered by Jinja2 and by the daemon's own engine.
fn chat_templates() -> Result<()> {
    let corpus = corpus::make()?;
    let mut command = sh::cargo();
    command.args(["test", "--locked", "-p", "minisgl-text", "--test", "corpus"]);
    sh::run(command.env("MINISGL_CORPUS", &corpus), "the first prompts that differ are above")?;
    // The calls in those prompts are what models write.
    let mut command = sh::cargo();
    command.args(["test", "--locked", "-p", "minisgl-dialect", "--test", "all", "real_templates"]);
    sh::run(command.env("MINISGL_CORPUS", &corpus), "the calls that are read otherwise are above")
}

/// What the test suite of JSON Schema says of our grammars.
fn json_schemas() -> Result<()> {
    let suite = schemas::suite()?;
    let mut command = sh::cargo();
    command.args(["test", "--locked", "-p", "minisgl-grammar", "--test", "suite"]);
    sh::run(
        command.env("MINISGL_SCHEMA_SUITE", &suite),
        "what differs is above; daemon/grammar/tests/suite/known.rs has what is known to",
    )
}

/// The build for the CPU alone must go on compiling. What does not depend on the feature is checked here
/// once, for both.
fn clippy_without_cuda() -> Result<()> {
    let lint = ["clippy", "--workspace", "--all-targets", "--locked", "--no-default-features"];
    cargo(&[&lint[..], &["--", "-D", "warnings"]].concat(), "every warning is an error here")
}

/// Compiles every kernel too.
fn clippy() -> Result<()> {
    cargo(
        &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"],
        "every warning is an error here",
    )
}

/// The project's own. Private items are not in it, and may be named.
fn documentation() -> Result<()> {
    let mut doc = sh::cargo();
    doc.args(["doc", "--workspace", "--no-deps", "--locked"])
        .env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links");
    sh::run(&mut doc, "every warning is an error here")
}

/// Maintainer scripts run as root on machines that are not ours.
fn shell_scripts() -> Result<()> {
    let shellcheck = python::SHELLCHECK.programs()?.join("shellcheck");
    for (shell, scripts) in [
        ("sh", &["packaging/deb/postrm"][..]),
        ("sh", &["packaging/rpm/post.sh", "packaging/rpm/preun.sh", "packaging/rpm/postun.sh"]),
        ("bash", &[".ci/run", "packaging/bundle/run.sh"]),
    ] {
        let mut check = Command::new(&shellcheck);
        check.current_dir(paths::root()).args(["--shell", shell]).args(scripts);
        sh::run(&mut check, "shellcheck.net has a page on each of its numbers")?;
    }
    Ok(())
}

fn python_clients() -> Result<()> {
    python::CLIENT.programs()?;
    python::CLIENTS.programs()?;
    python::INSTRUCTOR.programs()?;
    python::LM_EVAL.programs()?;
    Ok(())
}

fn routers() -> Result<()> {
    python::SGLANG_ROUTER.programs()?;
    python::SMG.programs()?;
    Ok(())
}

fn models() -> Result<()> {
    for model in [model::Model::SmolLm2, model::Model::Tokenizers] {
        println!("{}", model::fetch(model)?.display());
    }
    Ok(())
}

/// On a machine without a GPU the tests that need one say that they were not run.
fn unit_tests() -> Result<()> {
    let packages = ["--workspace", "--exclude", "minisgl-tests", "--locked", "--no-fail-fast"];
    let remedy = "`cargo test -p CRATE` runs one crate's";
    let test = |args: &[&str]| {
        let mut command = sh::cargo();
        // Tests that look at a model skip without this, and fail with it when the model is missing.
        command.args(args).args(packages).env("MINISGL_MODELS_DIR", paths::models());
        sh::run(&mut command, remedy)
    };
    if sh::has_cargo("nextest") {
        // The operations' test has a main of its own, which nextest cannot list.
        test(&["nextest", "run", "-E", "not binary(=gpu)"])?;
        return test(&["test", "--test", "gpu"]);
    }
    test(&["test", "--all-targets"])
}

fn doc_tests() -> Result<()> {
    cargo(&["test", "--workspace", "--locked", "--doc"], "the examples in the documentation failed")
}

fn end_to_end() -> Result<()> {
    let mut command = sh::cargo();
    if sh::has_cargo("nextest") {
        command.args(["nextest", "run", "--no-fail-fast", "-p", "minisgl-tests", "--locked"]);
    } else {
        command.args(["test", "--no-fail-fast", "-p", "minisgl-tests", "--locked"]);
    }
    sh::run(
        needs::with_environment(&mut command)?,
        "the daemon's log is in the failing test's output",
    )
}

fn cargo(args: &[&str], remedy: &str) -> Result<()> {
    sh::run(sh::cargo().args(args), remedy)
}
