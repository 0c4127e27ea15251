//! What is asked: lengths from a file, token ids at random.
//!
//! Owns: the shipped lengths of the offline benchmark. Must never: ask the same prompt twice, which
//! the prefix cache would answer.

use std::path::Path;

use anyhow::{Context, bail};
use serde::Deserialize;

/// Prompts of the offline benchmarks of mini-SGLang and nano-vLLM have token ids up to this.
const TOKEN_ID_MAX: u32 = 10_000;

/// Lengths of 256 requests, prompts and outputs uniform in 100..=1024 as both peers' benchmarks draw
/// them, with Python's `random.seed(0)`: 142,827 prompt tokens, 133,966 output tokens.
const OFFLINE: &str = include_str!("offline-seed0.json");

/// Lengths of requests, in tokens.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Workload {
    /// Of each prompt.
    pub prompt_lens: Vec<u32>,
    /// Of each output.
    pub output_lens: Vec<u32>,
}

impl Workload {
    /// The shipped one, or that of a file.
    ///
    /// # Errors
    /// The file is missing, or does not hold as many prompt as output lengths, at least one of each
    /// and none of them 0.
    pub fn open(path: Option<&Path>) -> anyhow::Result<Workload> {
        let (text, name) = match path {
            None => (OFFLINE.to_owned(), "the shipped workload".to_owned()),
            Some(path) => {
                let name = path.display().to_string();
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("--workload: cannot read {name}"))?;
                (text, name)
            }
        };
        let workload: Workload = serde_json::from_str(&text)
            .with_context(|| format!("{name} must have \"prompt_lens\" and \"output_lens\""))?;
        let Workload { prompt_lens, output_lens } = &workload;
        let (prompts, outputs) = (prompt_lens.len(), output_lens.len());
        if prompts == 0 || prompts != outputs {
            bail!(
                "{name} has {prompts} prompt lengths and {outputs} output lengths: it needs as \
                   many of both, and at least one"
            );
        }
        if prompt_lens.iter().chain(output_lens).any(|&len| len == 0) {
            bail!("{name} has a length of 0: it must be at least 1");
        }
        Ok(workload)
    }

    /// Its first `count` requests.
    ///
    /// # Errors
    /// It has fewer.
    pub fn take(mut self, count: u32) -> anyhow::Result<Workload> {
        let have = self.prompt_lens.len();
        if count as usize > have {
            bail!("--requests is {count}, the workload has {have}");
        }
        self.prompt_lens.truncate(count as usize);
        self.output_lens.truncate(count as usize);
        Ok(self)
    }

    /// The same prompts with outputs of `tokens` at most.
    pub fn with_outputs_max(&self, tokens: u32) -> Workload {
        let output_lens = self.output_lens.iter().map(|&len| len.min(tokens)).collect();
        Workload { prompt_lens: self.prompt_lens.clone(), output_lens }
    }

    /// Requests of the same lengths.
    pub fn uniform(count: u32, prompt: u32, output: u32) -> Workload {
        let of = |len| vec![len; count as usize];
        Workload { prompt_lens: of(prompt), output_lens: of(output) }
    }

    /// Prompt tokens of all requests.
    pub fn prompt_tokens(&self) -> u64 {
        self.prompt_lens.iter().map(|&len| u64::from(len)).sum()
    }

    /// Output tokens of all requests.
    pub fn output_tokens(&self) -> u64 {
        self.output_lens.iter().map(|&len| u64::from(len)).sum()
    }

    /// Prompt plus output tokens of the longest request.
    pub fn len_max(&self) -> u64 {
        let lens = self.prompt_lens.iter().zip(&self.output_lens);
        lens.map(|(&prompt, &output)| u64::from(prompt) + u64::from(output)).max().unwrap_or(0)
    }
}

/// Token ids, uniform in `0..=10000` and below the vocabulary. SplitMix64 (Steele, Lea, Flood, "Fast
/// splittable pseudorandom number generators", 2014).
#[derive(Debug)]
pub struct Tokens {
    state: u64,
    below: u64,
}

impl Tokens {
    /// Always the same ones for a vocabulary.
    pub fn new(vocab_size: u32) -> Tokens {
        Tokens { state: 0, below: u64::from(vocab_size.min(TOKEN_ID_MAX + 1)) }
    }

    /// A prompt that was not drawn before.
    pub fn prompt(&mut self, len: u32) -> Vec<u32> {
        (0..len).map(|_| self.next()).collect()
    }

    fn next(&mut self) -> u32 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        // The high bits, scaled: as good as uniform for so few values.
        ((((z ^ (z >> 31)) >> 32) * self.below) >> 32) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_lengths_are_those_of_the_peers() {
        let workload = Workload::open(None).unwrap();
        assert_eq!(workload.prompt_lens.len(), 256);
        assert_eq!(workload.prompt_tokens(), 142_827);
        assert_eq!(workload.output_tokens(), 133_966);
        let lens = workload.prompt_lens.iter().chain(&workload.output_lens);
        assert!(lens.clone().all(|len| (100..=1024).contains(len)));
        assert_eq!(workload.prompt_lens[..3], [964, 724, 484]);
    }

    #[test]
    fn lengths_that_make_no_requests_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lens.json");
        for (text, expected) in [
            (r#"{"prompt_lens": [3]}"#, "\"prompt_lens\" and \"output_lens\""),
            (r#"{"prompt_lens": [3], "output_lens": [1, 2]}"#, "1 prompt lengths and 2 output"),
            (r#"{"prompt_lens": [], "output_lens": []}"#, "at least one"),
            (r#"{"prompt_lens": [3], "output_lens": [0]}"#, "length of 0"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Workload::open(Some(&path)).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        std::fs::write(&path, r#"{"prompt_lens": [3, 4], "output_lens": [1, 2]}"#).unwrap();
        let workload = Workload::open(Some(&path)).unwrap();
        assert_eq!((workload.len_max(), workload.with_outputs_max(1).output_tokens()), (6, 2));
        assert_eq!(workload.clone().take(1).unwrap(), Workload::uniform(1, 3, 1));
        let error = workload.take(3).unwrap_err().to_string();
        assert_eq!(error, "--requests is 3, the workload has 2");
    }

    #[test]
    fn token_ids_are_uniform_and_below_the_vocabulary() {
        let ids = Tokens::new(150_000).prompt(100_010);
        let mut counts = vec![0u32; 10_001];
        ids.iter().for_each(|&id| counts[id as usize] += 1);
        // Ten each on average; sums over tenths of the range have a deviation of about 95.
        for tenth in counts.chunks(1_000).take(10) {
            let sum: u32 = tenth.iter().sum();
            assert!((9_500..10_500).contains(&sum), "{sum}");
        }
        assert!(counts[10_000] > 0);
        assert!(Tokens::new(7).prompt(1_000).iter().all(|&id| id < 7));
        let mut tokens = Tokens::new(150_000);
        assert_ne!(tokens.prompt(16), tokens.prompt(16));
    }
}
