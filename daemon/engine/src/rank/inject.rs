//! A fault on purpose, to try what becomes of a model whose rank fails or hangs.
//!
//! Owns: `MINISGL_INJECT_FAULT`. Must never: do anything without it.

use std::time::Duration;

use crate::error::OpError;
use crate::ops::OpResult;

/// `RANK:STEP:fail` or `RANK:STEP:stall`.
const VARIABLE: &str = "MINISGL_INJECT_FAULT";

/// What a rank is to do in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    rank: usize,
    step: u64,
    stall: bool,
}

impl Fault {
    /// The one that the environment asks for.
    pub(super) fn asked_for() -> OpResult<Option<Fault>> {
        let Some(value) = std::env::var_os(VARIABLE) else { return Ok(None) };
        let value = value.to_string_lossy();
        Fault::parse(&value).map(Some).ok_or_else(|| OpError {
            operation: "read the environment",
            reason: format!("{VARIABLE} is {value:?}, expected RANK:STEP:fail or RANK:STEP:stall"),
        })
    }

    fn parse(text: &str) -> Option<Fault> {
        let mut parts = text.split(':');
        let (rank, step) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let stall = match parts.next()? {
            "fail" => false,
            "stall" => true,
            _ => return None,
        };
        parts.next().is_none().then_some(Fault { rank, step, stall })
    }

    /// Fails, or does not return, if this is the rank and the step.
    pub(super) fn strike(self, rank: usize, step: u64) -> OpResult {
        if (rank, step) != (self.rank, self.step) {
            return Ok(());
        }
        tracing::warn!("rank {rank}, step {step}: a fault, as {VARIABLE} asks for");
        if self.stall {
            loop {
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        Err(OpError { operation: "run the step", reason: format!("{VARIABLE} is set") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_a_rank_a_step_and_a_kind() {
        let fault = |rank, step, stall| Some(Fault { rank, step, stall });
        assert_eq!(Fault::parse("1:20:stall"), fault(1, 20, true));
        assert_eq!(Fault::parse("0:3:fail"), fault(0, 3, false));
        for wrong in ["", "1", "1:2", "1:2:burn", "a:2:fail", "1:2:fail:3"] {
            assert_eq!(Fault::parse(wrong), None, "{wrong}");
        }
        let fault = Fault::parse("0:3:fail").unwrap();
        assert!(fault.strike(1, 3).is_ok() && fault.strike(0, 2).is_ok());
        assert!(fault.strike(0, 3).is_err());
    }
}
