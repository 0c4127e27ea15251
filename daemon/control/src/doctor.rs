//! What this machine has, for `GET /admin/v1/doctor`: asked of a child process, `minisgld probe`.
//!
//! The child opens every GPU, so it is run seldom: one at a time, and a report is passed on again for a while.
//!
//! Owns: that child, the time it gets, and its last report. Must never: load the driver into the daemon, or run two
//! children at once.

use std::process::Stdio;
use std::time::{Duration, Instant};

use minisgl_proto::admin::{AdminError, AdminErrorCode};
use minisgl_proto::doctor::DoctorReport;
use tokio::process::Command;
use tokio::sync::Mutex;

use crate::config::WorkerCommand;

/// Letters of a failed child's words that are passed on.
const WORDS_MAX: usize = 2000;

/// How long a report is passed on again.
const FRESH: Duration = Duration::from_secs(5);

/// Asks `minisgld probe`, one caller at a time.
#[derive(Debug)]
pub struct Doctor {
    command: WorkerCommand,
    patience: Duration,
    last: Mutex<Option<(Instant, DoctorReport)>>,
}

impl Doctor {
    /// Will run `command`, and kill it when it takes longer than `patience`.
    pub fn new(command: WorkerCommand, patience: Duration) -> Self {
        Doctor { command, patience, last: Mutex::default() }
    }

    /// What the child found, now or a few seconds ago. Who waited for another's child gets its report.
    ///
    /// # Errors
    /// `Failed`: it did not start, broke, hung, or said something else than a report.
    pub async fn ask(&self) -> Result<DoctorReport, AdminError> {
        let mut last = self.last.lock().await;
        if let Some((when, report)) = last.as_ref()
            && when.elapsed() < FRESH
        {
            return Ok(report.clone());
        }
        let report = self.probe().await?;
        *last = Some((Instant::now(), report.clone()));
        Ok(report)
    }

    async fn probe(&self) -> Result<DoctorReport, AdminError> {
        let failed = |message: String| AdminError { code: AdminErrorCode::Failed, message };
        let WorkerCommand { program, args, env } = &self.command;
        let child = Command::new(program)
            .args(args)
            .envs(env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(self.patience, child).await;
        let output = output.map_err(|_| {
            failed(format!(
                "`minisgld probe` gave no answer in {} s: NVIDIA's driver may hang; try nvidia-smi and dmesg",
                self.patience.as_secs_f32()
            ))
        })?;
        let output = output
            .map_err(|error| failed(format!("{} does not start: {error}", program.display())))?;
        let said = String::from_utf8_lossy(&output.stderr);
        let said: String = said.trim().chars().take(WORDS_MAX).collect();
        if !output.status.success() {
            return Err(failed(format!("`minisgld probe` failed ({}): {said}", output.status)));
        }
        serde_json::from_slice(&output.stdout)
            .map_err(|error| failed(format!("`minisgld probe` made no report ({error}): {said}")))
    }
}
