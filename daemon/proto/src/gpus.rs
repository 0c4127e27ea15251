//! Which GPUs a load asks for: how they are written, and what cannot be asked.
//!
//! Owns: the rules that hold on every machine, so that command line, configuration and admin API have the
//! same ones. Must never: know which GPUs there are.

use std::fmt;
use std::str::FromStr;

/// GPUs as they are written on a command line: `2,3`. None is there twice, and there is at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuList(pub Vec<u32>);

/// Why GPUs cannot be asked for like this.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadGpus {
    /// Something that is no number.
    #[error("{0:?} is no GPU's number; give numbers with commas between them, such as 2,3")]
    NoNumber(String),
    /// The same GPU for two ranks.
    #[error("gpus names GPU {0} twice; each rank needs a GPU of its own")]
    Twice(u32),
    /// More or fewer than there are ranks.
    #[error(
        "tp is {tp} and gpus is {gpus}: each rank needs a GPU of its own; give {tp} of them, or leave tp out"
    )]
    Ranks {
        /// Ranks asked for.
        tp: u32,
        /// GPUs asked for.
        gpus: GpuList,
    },
    /// The CPU has none.
    #[error("gpus is {0} and device is cpu; leave one of them out")]
    OnCpu(GpuList),
}

impl FromStr for GpuList {
    type Err = BadGpus;

    fn from_str(text: &str) -> Result<GpuList, BadGpus> {
        let number = |part: &str| {
            let part = part.trim();
            // `u32` would take a sign.
            let digits = part.bytes().all(|byte| byte.is_ascii_digit());
            let number = part.parse().ok().filter(|_| digits);
            number.ok_or_else(|| BadGpus::NoNumber(part.to_string()))
        };
        let list = GpuList(text.split(',').map(number).collect::<Result<_, _>>()?);
        list.check()?;
        Ok(list)
    }
}

impl GpuList {
    pub(crate) fn check(&self) -> Result<(), BadGpus> {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let twice = sorted.windows(2).find(|pair| pair[0] == pair[1]);
        twice.map_or(Ok(()), |pair| Err(BadGpus::Twice(pair[0])))
    }
}

impl fmt::Display for GpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<String> = self.0.iter().map(u32::to_string).collect();
        f.write_str(&numbers.join(","))
    }
}

/// Ranks where nobody says how many.
pub(crate) fn one_a_gpu(gpus: &[u32]) -> u32 {
    u32::try_from(gpus.len()).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, LoadOptions};

    fn read(text: &str) -> Result<Vec<u32>, String> {
        text.parse::<GpuList>().map(|list| list.0).map_err(|error| error.to_string())
    }

    #[test]
    fn gpus_are_numbers_with_commas() {
        assert_eq!(read("0"), Ok(vec![0]));
        assert_eq!(read("3, 1,2"), Ok(vec![3, 1, 2]), "the order is that of the ranks");
        for wrong in ["", "x", "1,", ",1", "1;2", "-1", "+1", "1.0", "4294967296", "0x1"] {
            let error = read(wrong).unwrap_err();
            assert!(error.contains("such as 2,3"), "{wrong:?}: {error}");
        }
        assert!(read("2,0,2").unwrap_err().contains("GPU 2 twice"));
    }

    #[test]
    fn gpus_go_with_ranks_and_device() {
        let check = |gpus: &[u32], tp, device| {
            let options = LoadOptions { gpus: gpus.to_vec(), tp, device, ..LoadOptions::default() };
            options.check_gpus()
        };
        assert_eq!(check(&[], 4, Device::Cpu), Ok(()));
        assert_eq!(check(&[2, 3], 2, Device::Auto), Ok(()));
        assert_eq!(check(&[7], 1, Device::Cuda), Ok(()));
        assert_eq!(check(&[2, 2], 2, Device::Auto), Err(BadGpus::Twice(2)));
        assert_eq!(check(&[2], 1, Device::Cpu), Err(BadGpus::OnCpu(GpuList(vec![2]))));
        for tp in [0, 1, 3] {
            let error = check(&[2, 3], tp, Device::Auto).unwrap_err().to_string();
            assert!(error.contains(&format!("tp is {tp} and gpus is 2,3")), "{error}");
        }
    }

    #[test]
    fn ranks_that_are_not_given_are_as_many_as_gpus() {
        let tp = |text: &str| serde_json::from_str::<LoadOptions>(text).unwrap().tp;
        assert_eq!(tp("{}"), 1);
        assert_eq!(tp(r#"{"gpus": []}"#), 1);
        assert_eq!(tp(r#"{"gpus": [2, 3]}"#), 2);
        assert_eq!(tp(r#"{"gpus": [2, 3], "tp": 1}"#), 1, "what is given is kept");
        assert_eq!(tp(r#"{"tp": 0}"#), 0, "what is given is kept");
        let error = serde_json::from_str::<LoadOptions>(r#"{"tpp": 2}"#).unwrap_err().to_string();
        assert!(error.contains("tpp"), "{error}");
    }
}
