//! Load options with nothing left open.
//!
//! Owns: what a device does with options, and its defaults; their ranges are in `proto`. Must never: look at a model.

use minisgl_proto::{Attn, CacheMode, KvDtype, LoadOptions, OutOfRange};

use crate::batch::SCORED_MAX;
use crate::config::ModelConfig;
use crate::device::Chosen;
use crate::error::EngineError;
use crate::kv_groups::KvGroups;
use crate::memory::Wishes;

/// What "decide for me" means on one kind of device.
struct Defaults {
    /// A step should not take too long, nor leave the device half idle.
    chunk_tokens: u32,
    /// A machine has other uses for its memory; a GPU is the model's.
    memory_ratio: f32,
}

const CPU: Defaults = Defaults { chunk_tokens: 512, memory_ratio: 0.5 };
#[cfg(feature = "cuda")]
const GPU: Defaults = Defaults { chunk_tokens: 8192, memory_ratio: 0.9 };

/// Bytes that tables of token counts take at most, on each rank; requests with penalties for which none is left wait. Of a
/// vocabulary of 150,000 that is 890 tables.
const COUNTS_BYTES_MAX: usize = 512 << 20;

/// What is loaded with: sizes that are certain, and options that the device knows.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) tp: usize,
    /// Over all ranks; CPU.
    pub(super) threads: usize,
    /// Tokens of a step, at most.
    pub(super) chunk_tokens: usize,
    /// Requests running at once.
    pub(super) slots: usize,
    /// Tokens a KV page.
    pub(super) page_size: usize,
    /// Positions of a request, if less than the model has.
    pub(super) max_len: Option<usize>,
    pub(super) kv_tokens: Option<u64>,
    pub(super) memory_ratio: f32,
    pub(super) kv_dtype: KvDtype,
    pub(super) cache: CacheMode,
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "only a GPU has a choice"))]
    pub(super) attn: Attn,
}

impl Settings {
    /// Decides what `options` leave to `device`.
    ///
    /// # Errors
    /// `Option`: a value that is out of range, or that the device has no use for.
    pub(super) fn new(options: &LoadOptions, device: &Chosen) -> Result<Settings, EngineError> {
        let (defaults, kv_dtype) = match device {
            Chosen::Cpu => (CPU, cpu_kv_dtype(options)?),
            #[cfg(feature = "cuda")]
            Chosen::Cuda(_) => (GPU, gpu_kv_dtype(options)?),
        };
        let threads = match options.threads as usize {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        Ok(Settings {
            tp: options.tp as usize,
            threads,
            chunk_tokens: options.chunk_tokens.unwrap_or(defaults.chunk_tokens) as usize,
            slots: options.max_running as usize,
            page_size: options.page_size as usize,
            max_len: options.max_len.map(|len| len as usize),
            kv_tokens: options.kv_tokens,
            memory_ratio: options.memory_ratio.unwrap_or(defaults.memory_ratio),
            kv_dtype,
            cache: options.cache,
            attn: options.attn,
        })
    }

    /// Rows of a step, at most.
    pub(super) fn rows(&self) -> usize {
        self.slots.min(self.chunk_tokens)
    }

    /// Requests with penalties running at once, at most: of each, a table of a `u32` for each token of the vocabulary.
    pub(super) fn penalised_max(&self, vocab_size: usize) -> usize {
        let tables = COUNTS_BYTES_MAX / (vocab_size * size_of::<u32>());
        self.rows().min(tables.max(1))
    }

    /// Tokens of a step after which logits can be wanted, at most.
    pub(super) fn logit_rows(&self) -> usize {
        (self.rows() + SCORED_MAX).min(self.chunk_tokens)
    }

    /// Which of the model's layers share KV pages: by the longest request that was asked for, or that a cache of as many tokens as were
    /// asked for is meant for.
    pub(super) fn groups(&self, config: &ModelConfig) -> KvGroups {
        let cached = self.kv_tokens.map_or(usize::MAX, |tokens| tokens as usize);
        let max_len = self.max_len.unwrap_or(config.max_position.min(cached));
        KvGroups::of(config, max_len.min(config.max_position), self.page_size)
    }

    /// What the KV cache should be.
    pub(super) fn wishes(&self) -> Wishes {
        Wishes {
            kv_tokens: self.kv_tokens,
            memory_ratio: self.memory_ratio,
            page_size: self.page_size as u64,
            max_running: self.slots as u64,
            prefix_cache: self.cache == CacheMode::Radix,
            max_len: self.max_len.map(|len| len as u64),
        }
    }
}

/// The CPU computes in f32, and has one attention.
fn cpu_kv_dtype(options: &LoadOptions) -> Result<KvDtype, EngineError> {
    if options.attn != Attn::default() {
        return refuse("attn", &options.attn.to_string(), "auto on the CPU, which has one kind");
    }
    match options.kv_dtype {
        KvDtype::Auto | KvDtype::F32 => Ok(KvDtype::F32),
        KvDtype::Bf16 => Ok(KvDtype::Bf16),
        other => refuse("kv_dtype", dtype_name(other), "auto, f32 or bf16 on the CPU"),
    }
}

/// A GPU computes in bf16; there are no kernels for pages of f32.
#[cfg(feature = "cuda")]
fn gpu_kv_dtype(options: &LoadOptions) -> Result<KvDtype, EngineError> {
    match options.kv_dtype {
        KvDtype::Auto | KvDtype::Bf16 => Ok(KvDtype::Bf16),
        KvDtype::F32 => refuse("kv_dtype", "f32", "auto, bf16, fp16 or fp8 on a GPU"),
        other => Ok(other),
    }
}

/// As it is written in options.
pub(super) fn dtype_name(dtype: KvDtype) -> &'static str {
    match dtype {
        KvDtype::Auto => "auto",
        KvDtype::F32 => "f32",
        KvDtype::Bf16 => "bf16",
        KvDtype::Fp16 => "fp16",
        KvDtype::Fp8 => "fp8",
    }
}

/// Bytes of one element of KV pages.
pub(super) fn dtype_bytes(dtype: KvDtype) -> usize {
    match dtype {
        KvDtype::F32 => 4,
        KvDtype::Auto | KvDtype::Bf16 | KvDtype::Fp16 => 2,
        KvDtype::Fp8 => 1,
    }
}

fn refuse<T>(option: &'static str, value: &str, expected: &str) -> Result<T, EngineError> {
    Err(EngineError::Option { option, value: value.to_owned(), expected: expected.to_owned() })
}

/// Options that no model can be loaded with, on any device.
pub(super) fn check(options: &LoadOptions) -> Result<(), EngineError> {
    options.check_ranges().map_err(|OutOfRange { option, value, expected }| EngineError::Option {
        option,
        value,
        expected,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_cpu(options: &LoadOptions) -> Result<Settings, String> {
        Settings::new(options, &Chosen::Cpu).map_err(|error| error.to_string())
    }

    #[test]
    fn the_device_decides_what_is_left_to_it() {
        let settings = on_cpu(&LoadOptions::default()).unwrap();
        assert_eq!((settings.chunk_tokens, settings.memory_ratio), (512, 0.5));
        assert_eq!((settings.kv_dtype, settings.rows()), (KvDtype::F32, 256));
        assert!(settings.threads > 0);
        let options = LoadOptions {
            chunk_tokens: Some(7),
            memory_ratio: Some(0.25),
            kv_dtype: KvDtype::Bf16,
            threads: 3,
            max_len: Some(99),
            ..LoadOptions::default()
        };
        let settings = on_cpu(&options).unwrap();
        assert_eq!((settings.chunk_tokens, settings.memory_ratio), (7, 0.25));
        assert_eq!((settings.kv_dtype, settings.rows(), settings.threads), (KvDtype::Bf16, 7, 3));
        assert_eq!(settings.wishes().max_len, Some(99));
    }

    #[test]
    fn the_whole_share_is_of_use_to_a_prefix_cache() {
        let useful = |cache| {
            let options = LoadOptions { cache, ..LoadOptions::default() };
            on_cpu(&options).unwrap().wishes().prefix_cache
        };
        assert_eq!((useful(CacheMode::Radix), useful(CacheMode::Naive)), (true, false));
    }

    #[test]
    fn tables_of_token_counts_are_bounded_in_bytes() {
        let tables = |max_running, vocab_size| {
            let options =
                LoadOptions { max_running, chunk_tokens: Some(65_536), ..LoadOptions::default() };
            on_cpu(&options).unwrap().penalised_max(vocab_size)
        };
        assert_eq!(tables(256, 151_936), 256, "what is usual has one for each");
        assert_eq!(tables(65_536, 151_936), 883);
        for vocab_size in [1, 1000, 151_936, 1 << 19] {
            let bytes = tables(65_536, vocab_size) * vocab_size * 4;
            assert!(bytes <= 512 << 20, "{vocab_size}: {bytes}");
        }
        assert_eq!(tables(65_536, 1 << 22), 32);
        assert_eq!(tables(8, usize::MAX / 8), 1, "one at least");
    }

    #[test]
    fn the_cpu_has_one_attention() {
        let options = LoadOptions { attn: "fa,auto".parse().unwrap(), ..LoadOptions::default() };
        let refused = on_cpu(&options).unwrap_err();
        assert_eq!(refused, "option attn is fa,auto: auto on the CPU, which has one kind");
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn a_gpu_has_no_pages_of_f32() {
        let of = |kv_dtype| gpu_kv_dtype(&LoadOptions { kv_dtype, ..LoadOptions::default() });
        for kv_dtype in [KvDtype::Bf16, KvDtype::Fp16, KvDtype::Fp8] {
            assert_eq!(of(kv_dtype).unwrap(), kv_dtype);
        }
        assert_eq!(of(KvDtype::Auto).unwrap(), KvDtype::Bf16);
        let refused = of(KvDtype::F32).unwrap_err().to_string();
        assert_eq!(refused, "option kv_dtype is f32: auto, bf16, fp16 or fp8 on a GPU");
    }
}
