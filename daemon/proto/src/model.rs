//! How a model is loaded and what it is once loaded.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::gpus::{BadGpus, GpuList, one_a_gpu};

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

/// What a checkpoint's matrices become while they are loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quantize {
    /// They stay what they are.
    #[default]
    None,
    /// Projections of layers become 8-bit floats (E4M3) with a scale for each output; embedding, head, routers and
    /// norms stay what they are.
    Fp8,
}

/// A family of attention kernels on a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttnBackend {
    /// The one that measured fastest for the shape.
    #[default]
    Auto,
    /// FlashInfer.
    Fi,
    /// In the style of FlashAttention 3.
    Fa,
}

impl AttnBackend {
    /// Every backend with its name.
    const NAMES: [(&str, AttnBackend); 3] =
        [("auto", AttnBackend::Auto), ("fi", AttnBackend::Fi), ("fa", AttnBackend::Fa)];

    /// As it is written in options.
    pub fn name(self) -> &'static str {
        let named = AttnBackend::NAMES.iter().find(|(_, backend)| *backend == self);
        named.map_or("auto", |(name, _)| name)
    }
}

/// Which attention kernels run on a GPU. Written `PREFILL,DECODE`, or as one name for both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Attn {
    /// In steps that feed prompt tokens.
    pub prefill: AttnBackend,
    /// In steps of one token a request.
    pub decode: AttnBackend,
}

impl FromStr for Attn {
    type Err = String;

    fn from_str(text: &str) -> Result<Attn, String> {
        let backend = |name: &str| {
            let named = AttnBackend::NAMES.iter().find(|(known, _)| *known == name.trim());
            named.map(|&(_, backend)| backend).ok_or_else(|| {
                format!(
                    "{text:?} is no choice of attention: give one of auto, fi and fa, or two of them, \
                     PREFILL,DECODE"
                )
            })
        };
        let (prefill, decode) = text.split_once(',').unwrap_or((text, text));
        Ok(Attn { prefill: backend(prefill)?, decode: backend(decode)? })
    }
}

impl fmt::Display for Attn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.prefill.name(), self.decode.name())
    }
}

impl TryFrom<String> for Attn {
    type Error = String;

    fn try_from(text: String) -> Result<Attn, String> {
        text.parse()
    }
}

impl From<Attn> for String {
    fn from(attn: Attn) -> String {
        attn.to_string()
    }
}

/// Everything that can be chosen when a model is loaded. `None`, and 0 `threads`, mean "decide for
/// me"; every other count must be at least 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self", default, deny_unknown_fields)]
pub struct LoadOptions {
    /// Tensor-parallel ranks; where it is not given, one a GPU of `gpus`, or 1.
    #[serde(default = "tp_not_given")]
    pub tp: u32,
    /// What to run on.
    pub device: Device,
    /// The driver's numbers of the GPUs, one a rank; empty: those that suit best are found.
    pub gpus: Vec<u32>,
    /// GPUs that other models have: none of them is found when `gpus` is empty. The daemon says it to its
    /// worker; what anybody else says is not heard.
    pub gpus_taken: Vec<u32>,
    /// Compute threads over all ranks (CPU); 0 means one a core.
    pub threads: u32,
    /// Tokens a KV page.
    pub page_size: u32,
    /// Tokens of KV cache; `None` derives it from `memory_ratio`.
    pub kv_tokens: Option<u64>,
    /// Share of the memory free at the start of the load that weights, workspaces and KV pages may use,
    /// in (0, 1]; `None` is 0.5 on the CPU and 0.9 on a GPU.
    pub memory_ratio: Option<f32>,
    /// Element type of the KV cache.
    pub kv_dtype: KvDtype,
    /// What the weights of a checkpoint of plain numbers become.
    pub quantize: Quantize,
    /// Requests running at once, at most.
    pub max_running: u32,
    /// Requests waiting, at most; one more is refused.
    pub max_waiting: u32,
    /// Tokens a step feeds at most: the chunk of chunked prefill, decode rows included. Activations are
    /// sized by it. `None` is 512 on the CPU and 8192 on a GPU.
    pub chunk_tokens: Option<u32>,
    /// Prompt plus generated tokens at most; `None` takes the model's own context length.
    pub max_len: Option<u32>,
    /// Prefix cache.
    pub cache: CacheMode,
    /// Attention kernels (GPU).
    pub attn: Attn,
    /// How it writes tool calls and thoughts, by a dialect's name; `None` finds it by the checkpoint.
    pub dialect: Option<String>,
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
            gpus: Vec::new(),
            gpus_taken: Vec::new(),
            threads: 0,
            page_size: 16,
            kv_tokens: None,
            memory_ratio: None,
            kv_dtype: KvDtype::Auto,
            quantize: Quantize::None,
            max_running: 256,
            max_waiting: 1024,
            chunk_tokens: None,
            max_len: None,
            cache: CacheMode::Radix,
            attn: Attn::default(),
            dialect: None,
            dummy_weights: false,
            overlap: true,
        }
    }
}

impl LoadOptions {
    /// Whether `gpus`, `tp` and `device` go together.
    ///
    /// # Errors
    /// They do not.
    pub fn check_gpus(&self) -> Result<(), BadGpus> {
        if self.gpus.is_empty() {
            return Ok(());
        }
        let gpus = GpuList(self.gpus.clone());
        gpus.check()?;
        if self.device == Device::Cpu {
            return Err(BadGpus::OnCpu(gpus));
        }
        if usize::try_from(self.tp) != Ok(self.gpus.len()) {
            return Err(BadGpus::Ranks { tp: self.tp, gpus });
        }
        Ok(())
    }

    /// The same with `tp` and `gpus` as a command line gives them: ranks that are not given are as many as
    /// GPUs.
    ///
    /// # Errors
    /// `gpus`, `tp` and `device` do not go together.
    pub fn with_ranks(mut self, tp: Option<u32>, gpus: Option<&GpuList>) -> Result<Self, BadGpus> {
        self.gpus = gpus.map(|list| list.0.clone()).unwrap_or_default();
        self.tp = tp.unwrap_or_else(|| one_a_gpu(&self.gpus));
        self.check_gpus()?;
        Ok(self)
    }

    /// Whether it says itself how much memory it takes, and so may share a GPU with another model.
    pub fn states_memory(&self) -> bool {
        self.memory_ratio.is_some() || self.kv_tokens.is_some()
    }
}

/// What `tp` is read as where it is not given; no machine has as many GPUs.
const TP_NOT_GIVEN: u32 = u32::MAX;

fn tp_not_given() -> u32 {
    TP_NOT_GIVEN
}

impl<'de> Deserialize<'de> for LoadOptions {
    /// As derived, and `tp` follows from `gpus` where it is not given.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // What `remote` derives goes before this trait's.
        let mut options = LoadOptions::deserialize(deserializer)?;
        if options.tp == TP_NOT_GIVEN {
            options.tp = one_a_gpu(&options.gpus);
        }
        Ok(options)
    }
}

impl Serialize for LoadOptions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        LoadOptions::serialize(self, serializer)
    }
}

/// All layers are alike.
pub(crate) fn one() -> u32 {
    1
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
    /// Element type of the KV cache.
    pub kv_dtype: String,
    /// Bytes of KV pages, over all ranks.
    pub kv_bytes: u64,
    /// Tokens that the KV pages hold in all layers; of long requests more, where there are several `kv_groups`.
    pub kv_tokens: u64,
    /// Tokens a page, for the layers of one group.
    pub page_size: u32,
    /// Groups of layers with pages of their own: those that see all tokens, and others that keep a window's.
    #[serde(default = "one")]
    pub kv_groups: u32,
    /// Valid token ids are below this.
    pub vocab_size: u32,
    /// Prompt plus generated tokens of one request, at most.
    pub max_len: u32,
    /// What `max_len` would be in a KV cache large enough: the model's context, or the `max_len` that was asked for. 0: not known.
    #[serde(default)]
    pub context_len: u32,
    /// Requests running at once, at most.
    pub max_running: u32,
    /// Requests waiting, at most.
    pub max_waiting: u32,
    /// Tokens a step feeds at most.
    pub chunk_tokens: u32,
    /// Tokens that end a request unless it ignores them.
    pub eos_token_ids: Vec<u32>,
    /// Tensor-parallel ranks.
    pub tp: u32,
    /// The driver's numbers of the GPUs it is on, by rank; empty on the CPU.
    pub gpus: Vec<u32>,
    /// Bytes of weights that were read, as stored; with `dummy_weights`, that were made.
    pub read_bytes: u64,
    /// Seconds that took, until the last weight was in the device's memory.
    pub read_s: f64,
    /// Seconds from `Load` to `Ready`.
    pub load_s: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attention_is_one_name_or_two() {
        let read = |text: &str| text.parse::<Attn>();
        let of = |prefill, decode| Ok(Attn { prefill, decode });
        assert_eq!(read("fa"), of(AttnBackend::Fa, AttnBackend::Fa));
        assert_eq!(read("fa,fi"), of(AttnBackend::Fa, AttnBackend::Fi));
        assert_eq!(read("auto, fi"), of(AttnBackend::Auto, AttnBackend::Fi));
        for wrong in ["", "fa,", "fa,fi,fi", "FA", "triton"] {
            let error = read(wrong).unwrap_err();
            assert!(error.contains("one of auto, fi and fa"), "{wrong:?}: {error}");
        }
    }

    #[test]
    fn attention_is_a_string_in_json_and_in_frames() {
        let options: LoadOptions = serde_json::from_str(r#"{"attn": "fi,fa"}"#).unwrap();
        assert_eq!(options.attn.to_string(), "fi,fa");
        assert_eq!(serde_json::to_value(options.attn).unwrap(), "fi,fa");
        let bytes = postcard::to_stdvec(&options).unwrap();
        assert_eq!(postcard::from_bytes::<LoadOptions>(&bytes).unwrap(), options);
        let error = serde_json::from_str::<LoadOptions>(r#"{"attn": "fi fa"}"#).unwrap_err();
        assert!(error.to_string().contains("PREFILL,DECODE"), "{error}");
    }
}
