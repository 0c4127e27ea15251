//! `minisgld fit`: what loading a model would come to, as JSON. Run by the daemon, in a process of its own because
//! it reads what a model's author wrote and opens GPUs.
//!
//! Must never: load weights, or outlive the daemon that asked.

use std::io::Read;

use anyhow::Context;
use minisgl_engine::Engine;
use minisgl_proto::disk::{FitAnswer, FitQuestion};
use nix::sys::signal::Signal;

use crate::worker::apply_environment;

/// Bytes of a question at most.
const QUESTION_BYTES_MAX: u64 = 1 << 20;

/// Reads the question, prints the answer.
///
/// # Errors
/// The question makes no sense, or nobody takes the answer.
pub fn run() -> anyhow::Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).context("cannot ask to die with the daemon")?;
    let mut text = String::new();
    std::io::stdin().take(QUESTION_BYTES_MAX).read_to_string(&mut text).context("no question")?;
    let question = serde_json::from_str(&text).context("the question makes no sense")?;
    let answer = serde_json::to_string(&answer(question)).context("the answer does not encode")?;
    println!("{answer}");
    Ok(())
}

fn answer(question: FitQuestion) -> FitAnswer {
    let FitQuestion { dir, mut options } = question;
    apply_environment(&mut options);
    match Engine::fit(&dir, &options) {
        Ok((fit, problem)) => {
            FitAnswer { fit: Some(fit), problem: problem.map(|error| error.to_string()) }
        }
        Err(error) => FitAnswer { fit: None, problem: Some(error.to_string()) },
    }
}

#[cfg(test)]
mod tests {
    use minisgl_proto::{Device, LoadOptions};

    use super::*;

    #[test]
    fn a_folder_that_is_no_model_has_a_problem_and_no_fit() {
        let dir = tempfile::tempdir().unwrap();
        let options = LoadOptions { device: Device::Cpu, ..LoadOptions::default() };
        let FitAnswer { fit, problem } =
            answer(FitQuestion { dir: dir.path().to_path_buf(), options });
        assert_eq!(fit, None);
        assert!(problem.unwrap().contains("config.json"));
    }
}
