//! The last lines that a model's workers wrote to standard error.
//!
//! Owns: these lines, across workers, within a limit. Must never: judge what they say.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of all lines, at most.
const BYTES_MAX: usize = 256 << 10;
/// Lines at most.
const LINES_MAX: usize = 4096;

/// A bounded list of lines; the oldest leave first.
#[derive(Default)]
pub(crate) struct LogRing(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    lines: VecDeque<String>,
    bytes: usize,
    /// Lines ever written.
    written: u64,
}

impl LogRing {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a line.
    pub(crate) fn push(&self, line: String) {
        let mut inner = self.lock();
        inner.bytes += line.len();
        inner.written += 1;
        inner.lines.push_back(line);
        while inner.lines.len() > LINES_MAX || inner.bytes > BYTES_MAX {
            let Some(oldest) = inner.lines.pop_front() else { break };
            inner.bytes -= oldest.len();
        }
    }

    /// Lines ever written: a mark for [`LogRing::since`].
    pub(crate) fn mark(&self) -> u64 {
        self.lock().written
    }

    /// The lines after `mark` that are still there, `count` at most, oldest first.
    pub(crate) fn since(&self, mark: u64, count: usize) -> Vec<String> {
        let inner = self.lock();
        let new = usize::try_from(inner.written - mark).unwrap_or(usize::MAX);
        let count = count.min(new).min(inner.lines.len());
        inner.lines.iter().skip(inner.lines.len() - count).cloned().collect()
    }

    /// The last `count` lines, oldest first.
    pub(crate) fn last(&self, count: usize) -> Vec<String> {
        self.since(0, count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_lines_leave_first() {
        let ring = LogRing::default();
        for n in 0..LINES_MAX + 10 {
            ring.push(n.to_string());
        }
        assert_eq!(ring.last(2), [(LINES_MAX + 8).to_string(), (LINES_MAX + 9).to_string()]);
        assert_eq!(ring.last(usize::MAX).len(), LINES_MAX);
        let mark = ring.mark();
        assert!(ring.since(mark, 5).is_empty());
        ring.push("new".to_string());
        assert_eq!(ring.since(mark, 5), ["new"]);
        for _ in 0..100 {
            ring.push("x".repeat(BYTES_MAX / 50));
        }
        assert!(ring.lock().bytes <= BYTES_MAX && ring.last(usize::MAX).len() <= 50);
    }
}
