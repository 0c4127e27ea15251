//! How a model is loaded and what it is once loaded.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What the engine runs on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// The best there is on this machine.
    #[default]
    Auto,
    /// The readable reference, in f32, on all cores.
    Cpu,
    /// NVIDIA GPUs.
    Cuda,
}

/// How prefixes are kept after a request ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheMode {
    /// A radix tree over token ids: prompts share the pages of their common prefixes.
    #[default]
    Radix,
    /// Nothing is shared or kept; for ablation.
    Naive,
}

/// Element type of the KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvDtype {
    /// What the device computes in.
    #[default]
    Auto,
    /// 32-bit IEEE floats (CPU).
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    Fp16,
    /// 8-bit floats, 4 exponent bits.
    Fp8,
}

/// Everything that can be chosen when a model is loaded. `None`, and 0 `threads`, mean "decide for
/// me"; every other count must be at least 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoadOptions {
    /// Tensor-parallel ranks.
    pub tp: u32,
    /// What to run on.
    pub device: Device,
    /// Compute threads over all ranks (CPU); 0 means one a core.
    pub threads: u32,
    /// Tokens a KV page.
    pub page_size: u32,
    /// Tokens of KV cache; `None` derives it from `memory_ratio`.
    pub kv_tokens: Option<u64>,
    /// Share of the free memory that weights and KV pages may use, in (0, 1].
    pub memory_ratio: f32,
    /// Element type of the KV cache.
    pub kv_dtype: KvDtype,
    /// Requests running at once, at most.
    pub max_running: u32,
    /// Requests waiting, at most; one more is refused.
    pub max_waiting: u32,
    /// Tokens a step feeds at most: the chunk of chunked prefill, decode rows included.
    pub chunk_tokens: u32,
    /// Prompt plus generated tokens at most; `None` takes the model's own context length.
    pub max_len: Option<u32>,
    /// Prefix cache.
    pub cache: CacheMode,
    /// Seeded random weights instead of reading any; needs only `config.json`.
    pub dummy_weights: bool,
    /// Schedule step n + 1 while step n runs.
    pub overlap: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions {
            tp: 1,
            device: Device::Auto,
            threads: 0,
            page_size: 16,
            kv_tokens: None,
            memory_ratio: 0.5,
            kv_dtype: KvDtype::Auto,
            max_running: 256,
            max_waiting: 1024,
            chunk_tokens: 512,
            max_len: None,
            cache: CacheMode::Radix,
            dummy_weights: false,
            overlap: true,
        }
    }
}

/// A loaded model, as its worker reports it with `Ready`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// The name clients use.
    pub name: String,
    /// Folder with `config.json`, tokenizer and weights.
    pub dir: PathBuf,
    /// `architectures[0]` of `config.json`.
    pub architecture: String,
    /// What it runs on: `cpu`, or a GPU's name.
    pub device: String,
    /// Element type of the weights in memory.
    pub dtype: String,
    /// Number of parameters.
    pub parameters: u64,
    /// Bytes of weights in memory, over all ranks.
    pub weight_bytes: u64,
    /// Bytes of KV pages, over all ranks.
    pub kv_bytes: u64,
    /// Tokens that the KV pages hold.
    pub kv_tokens: u64,
    /// Tokens a page.
    pub page_size: u32,
    /// Valid token ids are below this.
    pub vocab_size: u32,
    /// Prompt plus generated tokens of one request, at most.
    pub max_len: u32,
    /// Requests running at once, at most.
    pub max_running: u32,
    /// Requests waiting, at most.
    pub max_waiting: u32,
    /// Tokens that end a request unless it ignores them.
    pub eos_token_ids: Vec<u32>,
    /// Tensor-parallel ranks.
    pub tp: u32,
    /// Seconds from `Load` to `Ready`.
    pub load_s: f64,
}
