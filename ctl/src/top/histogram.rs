//! A Prometheus histogram, and percentiles from its buckets.

/// Cumulative counts by upper bound, in rising order; the last bound is infinite.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Histogram(Vec<(f64, f64)>);

impl Histogram {
    /// The next bucket, in rising order of bounds.
    pub(super) fn push(&mut self, bound: f64, count: f64) {
        self.0.push((bound, count));
    }

    fn count(&self) -> f64 {
        self.0.last().map_or(0.0, |bucket| bucket.1)
    }

    /// What came since `before`; all of it if that was another one, which a smaller count shows.
    pub(super) fn since(&self, before: &Histogram) -> Histogram {
        let bounds = |histogram: &Histogram| histogram.0.iter().map(|b| b.0).collect::<Vec<_>>();
        if self.count() < before.count() || bounds(self) != bounds(before) {
            return self.clone();
        }
        let pairs = self.0.iter().zip(&before.0);
        Histogram(pairs.map(|(now, then)| (now.0, (now.1 - then.1).max(0.0))).collect())
    }

    /// The value below which the share `q` lies, by linear interpolation in its bucket, as Prometheus'
    /// `histogram_quantile` has it; `None` of an empty one. Above the last finite bound it is that bound.
    pub(super) fn quantile(&self, q: f64) -> Option<f64> {
        let rank = q * self.count();
        if rank <= 0.0 {
            return None;
        }
        let at = self.0.iter().position(|bucket| bucket.1 >= rank)?;
        let (below, counted) = if at == 0 { (0.0, 0.0) } else { self.0[at - 1] };
        let (bound, count) = self.0[at];
        if bound.is_infinite() {
            return Some(below);
        }
        Some(below + (bound - below) * (rank - counted) / (count - counted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(counts: [f64; 3]) -> Histogram {
        Histogram([1.0, 2.0, f64::INFINITY].into_iter().zip(counts).collect())
    }

    #[test]
    fn percentiles_are_those_of_prometheus() {
        let all = histogram([4.0, 8.0, 10.0]);
        assert_eq!(all.quantile(0.2), Some(0.5));
        assert_eq!(all.quantile(0.5), Some(1.25));
        assert_eq!(all.quantile(0.8), Some(2.0));
        assert_eq!(all.quantile(0.95), Some(2.0), "beyond the last bound");
        assert_eq!(histogram([0.0; 3]).quantile(0.5), None);
        assert_eq!(Histogram::default().quantile(0.5), None);
    }

    #[test]
    fn a_difference_is_what_came_since() {
        let (before, now) = (histogram([4.0, 8.0, 10.0]), histogram([4.0, 12.0, 14.0]));
        assert_eq!(now.since(&before), histogram([0.0, 4.0, 4.0]));
        assert_eq!(now.since(&before).quantile(0.5), Some(1.5));
        // Unloaded and loaded again in between.
        assert_eq!(histogram([1.0, 1.0, 1.0]).since(&before), histogram([1.0, 1.0, 1.0]));
        assert_eq!(now.since(&Histogram::default()), now);
    }
}
