//! Load options that no model can be loaded with, on any device.
//!
//! Owns: the ranges, which the configuration is checked against, and a load before a worker starts and in it.

use crate::LoadOptions;

/// An option outside its range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("option {option} is {value}: {expected}")]
pub struct OutOfRange {
    /// Which.
    pub option: &'static str,
    /// What it is.
    pub value: String,
    /// What it may be.
    pub expected: String,
}

impl LoadOptions {
    /// Whether every number is in its range.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check_ranges(&self) -> Result<(), OutOfRange> {
        let ranges = [
            ("tp", u64::from(self.tp), 1..=1024),
            ("threads", u64::from(self.threads), 0..=1024),
            ("page_size", u64::from(self.page_size), 1..=1 << 16),
            ("max_running", u64::from(self.max_running), 1..=1 << 16),
            ("chunk_tokens", self.chunk_tokens.map_or(1, u64::from), 1..=1 << 16),
            ("max_waiting", u64::from(self.max_waiting), 1..=u64::MAX),
            // A request is one prompt token and one generated token at least.
            ("kv_tokens", self.kv_tokens.unwrap_or(2), 2..=u64::MAX),
            ("max_len", self.max_len.map_or(2, u64::from), 2..=u64::MAX),
        ];
        for (option, value, range) in ranges {
            if !range.contains(&value) {
                let expected = match *range.end() {
                    u64::MAX => format!("at least {}", range.start()),
                    end => format!("{} to {end}", range.start()),
                };
                return Err(OutOfRange { option, value: value.to_string(), expected });
            }
        }
        match self.memory_ratio {
            Some(ratio) if !(ratio > 0.0 && ratio <= 1.0) => Err(OutOfRange {
                option: "memory_ratio",
                value: ratio.to_string(),
                expected: "above 0 and at most 1".to_owned(),
            }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_a_range_are_in_it_and_what_is_beyond_is_named() {
        let check = |change: fn(&mut LoadOptions)| {
            let mut options = LoadOptions::default();
            change(&mut options);
            options.check_ranges().map_err(|error| error.to_string())
        };
        assert_eq!(check(|_| {}), Ok(()));
        assert_eq!(check(|o| (o.max_running, o.kv_tokens) = (65536, Some(2))), Ok(()));
        let refused = |text: &str| Err(text.to_owned());
        assert_eq!(check(|o| o.max_running = 0), refused("option max_running is 0: 1 to 65536"));
        assert_eq!(check(|o| o.max_waiting = 0), refused("option max_waiting is 0: at least 1"));
        assert_eq!(check(|o| o.kv_tokens = Some(1)), refused("option kv_tokens is 1: at least 2"));
        let ratio = refused("option memory_ratio is NaN: above 0 and at most 1");
        assert_eq!(check(|o| o.memory_ratio = Some(f32::NAN)), ratio);
    }
}
