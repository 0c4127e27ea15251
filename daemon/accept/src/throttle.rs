//! What many clients can cause many times a second is said once a while, with how often it came.
//!
//! Owns: one event's count. Must never: lose a count.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Time between two lines about the same.
const PERIOD: Duration = Duration::from_secs(10);

/// Counts one kind of event between the lines that tell of it.
#[derive(Debug, Default)]
pub struct Throttle(Mutex<Counted>);

#[derive(Debug, Default)]
struct Counted {
    told: Option<Instant>,
    since: u64,
}

impl Throttle {
    /// One that was never told of.
    pub const fn new() -> Self {
        Throttle(Mutex::new(Counted { told: None, since: 0 }))
    }

    /// It happened. How often since the line before, if it is time for a line.
    pub fn count(&self) -> Option<u64> {
        self.count_at(Instant::now())
    }

    fn count_at(&self, now: Instant) -> Option<u64> {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counted.since += 1;
        let is_time = counted.told.is_none_or(|told| now.saturating_duration_since(told) >= PERIOD);
        is_time.then(|| {
            counted.told = Some(now);
            std::mem::take(&mut counted.since)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_told_at_once_and_the_others_together() {
        let (throttle, began) = (Throttle::new(), Instant::now());
        assert_eq!(throttle.count_at(began), Some(1));
        for _ in 0..999 {
            assert_eq!(throttle.count_at(began + PERIOD / 2), None);
        }
        assert_eq!(throttle.count_at(began + PERIOD), Some(1000));
        assert_eq!(throttle.count_at(began + PERIOD), None);
    }
}
