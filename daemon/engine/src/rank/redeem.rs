//! Waits for a step, but not for good.
//!
//! Owns: how a thread waits for a device, and when it gives up. Must never: know which device.

use std::time::{Duration, Instant};

use minisgl_proto::Sampled;

use crate::ops::{OpResult, Pending};

/// Until then a step is asked for in a busy loop: what sleeps is woken late, and short steps come by the thousand.
const BUSY: Duration = Duration::from_millis(2);
/// Between two questions of the busy loop: each takes a lock of the driver, which the rank's own thread needs.
const BUSY_PAUSE: Duration = Duration::from_micros(4);
/// Later the thread sleeps, so that long steps take no core: for this part of what it has waited,
const SLEEP_SHARE: u32 = 64;
/// and between these.
const SLEEP_LEAST: Duration = Duration::from_micros(20);
/// See `SLEEP_LEAST`.
const SLEEP_MOST: Duration = Duration::from_micros(500);

/// What became of a step.
#[derive(Debug)]
pub struct Outcome {
    /// When its results were there.
    pub ended: Instant,
    /// Seconds on the device, where it measures them.
    pub device_s: Option<f32>,
    /// Its tokens.
    pub sampled: Vec<Sampled>,
}

/// Waits for a step that nothing of this rank runs before any more, `patience` at most.
///
/// # Errors
/// The device failed, or the step does not end.
pub fn redeem(pending: Box<dyn Pending>, patience: Duration) -> OpResult<Outcome> {
    let began = Instant::now();
    while !pending.is_over() {
        let waited = began.elapsed();
        if waited > patience {
            return Err(pending.overdue(patience));
        }
        pause(waited);
    }
    let device_s = pending.device_s();
    let sampled = pending.wait()?;
    Ok(Outcome { ended: Instant::now(), device_s, sampled })
}

fn pause(waited: Duration) {
    if waited > BUSY {
        return std::thread::sleep((waited / SLEEP_SHARE).clamp(SLEEP_LEAST, SLEEP_MOST));
    }
    let began = Instant::now();
    while began.elapsed() < BUSY_PAUSE {
        std::hint::spin_loop();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// Is over after so many questions, which it counts.
    struct Counting {
        asked: Arc<AtomicU32>,
        enough: u32,
    }

    impl Pending for Counting {
        fn is_over(&self) -> bool {
            self.asked.fetch_add(1, Ordering::Relaxed) + 1 >= self.enough
        }

        fn device_s(&self) -> Option<f32> {
            Some(0.5)
        }

        fn wait(self: Box<Self>) -> OpResult<Vec<Sampled>> {
            assert!(self.asked.load(Ordering::Relaxed) >= self.enough, "waited for before its end");
            Ok(Vec::new())
        }
    }

    #[test]
    fn a_step_is_read_once_it_is_over() {
        let asked = Arc::new(AtomicU32::new(0));
        let pending = Box::new(Counting { asked: asked.clone(), enough: 3 });
        let outcome = redeem(pending, Duration::from_secs(60)).unwrap();
        assert_eq!((outcome.device_s, outcome.sampled.len()), (Some(0.5), 0));
        assert_eq!(asked.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn a_step_that_does_not_end_is_given_up_and_is_not_asked_for_all_the_time() {
        let asked = Arc::new(AtomicU32::new(0));
        let pending = Box::new(Counting { asked: asked.clone(), enough: u32::MAX });
        let began = Instant::now();
        let error = redeem(pending, Duration::from_millis(300)).unwrap_err();
        assert!(began.elapsed() >= Duration::from_millis(300));
        assert!(error.to_string().contains("not end within 0.3 s"), "{error}");
        // 2 ms in a busy loop, then sleeps of 31 us at least.
        assert!(asked.load(Ordering::Relaxed) < 500 + 10_000, "{asked:?}");
    }
}
