//! The flags of `minisgld bench`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use minisgl_proto::{Attn, BadGpus, CacheMode, Device, GpuList, KvDtype, LoadOptions, Quantize};

/// `bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// What to measure.
    #[command(subcommand)]
    pub what: What,
}

/// What can be measured.
#[derive(Debug, Subcommand)]
pub enum What {
    /// A model, in this process.
    #[command(flatten)]
    Model(ModelBench),
    /// The front alone: a daemon whose worker computes nothing, and clients that read its streams.
    Front(FrontArgs),
}

/// What can be measured of a model.
#[derive(Debug, Subcommand)]
pub enum ModelBench {
    /// Throughput: 256 requests at once, 100 to 1,024 tokens in and out, temperature 0.6.
    Offline(OfflineArgs),
    /// Milliseconds a token: batches of short prompts, greedy, decode steps only.
    Latency(LatencyArgs),
    /// Prompt tokens a second: long prompts, one after the other.
    Prefill(PrefillArgs),
}

impl ModelBench {
    /// What all benchmarks of a model are told.
    pub fn common(&self) -> &CommonArgs {
        match self {
            ModelBench::Offline(args) => &args.common,
            ModelBench::Latency(args) => &args.common,
            ModelBench::Prefill(args) => &args.common,
        }
    }

    /// The file with what outputs are held to.
    pub fn schema(&self) -> Option<&Path> {
        match self {
            ModelBench::Offline(args) => args.form.schema.as_deref(),
            ModelBench::Latency(args) => args.form.schema.as_deref(),
            ModelBench::Prefill(_) => None,
        }
    }
}

/// `bench front`.
#[derive(Debug, Args)]
pub struct FrontArgs {
    /// Folder with config.json and the tokenizer that the streams' text is made with
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Streams at once; several numbers measure one after the other
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_value = "1,256,2048",
          value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub streams: Vec<u32>,
    /// Tokens of each stream
    #[arg(long, value_name = "TOKENS", default_value_t = 200,
          value_parser = clap::value_parser!(u32).range(2..=100_000))]
    pub tokens: u32,
    /// Microseconds from one token of a stream to the next; 0 sends all of them at once
    #[arg(long, value_name = "US", default_value_t = 20_000)]
    pub step_us: u64,
    /// The API whose streams are read
    #[arg(long, value_enum, default_value_t = Api::Chat)]
    pub api: Api,
    /// Instead, this many streams that say nothing for a minute: how much memory they take
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub idle: Option<u32>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// An API with streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Api {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
    /// `/generate`
    Generate,
}

/// `bench offline`.
#[derive(Debug, Args)]
pub struct OfflineArgs {
    #[command(flatten)]
    pub common: CommonArgs,
    /// JSON file with "prompt_lens" and "output_lens" [default: 256 requests of 100 to 1,024 tokens]
    #[arg(long, value_name = "FILE")]
    pub workload: Option<PathBuf>,
    /// Only the first N requests of the workload
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub requests: Option<u32>,
    /// Sampling temperature; 0 is greedy
    #[arg(long, value_name = "T", default_value_t = 0.6)]
    pub temperature: f32,
    #[command(flatten)]
    pub form: FormArgs,
}

impl OfflineArgs {
    /// Requests that may wait at once.
    pub fn requests_max(&self) -> u32 {
        self.requests.unwrap_or(1 << 16)
    }
}

/// `bench latency`.
#[derive(Debug, Args)]
pub struct LatencyArgs {
    #[command(flatten)]
    pub common: CommonArgs,
    /// Requests at once; several numbers measure one batch after the other
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_value = "1,32",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub batch: Vec<u32>,
    /// Tokens of each prompt
    #[arg(long, value_name = "TOKENS", default_value_t = 128,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub prompt: u32,
    /// Tokens that each request generates
    #[arg(long, value_name = "TOKENS", default_value_t = 256,
          value_parser = clap::value_parser!(u32).range(2..))]
    pub output: u32,
    /// Runs of each batch, of which the best counts
    #[arg(long, value_name = "N", default_value_t = 3,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: u32,
    #[command(flatten)]
    pub form: FormArgs,
}

/// What outputs are held to.
#[derive(Debug, Args)]
pub struct FormArgs {
    /// Measure each run again with every output held to the JSON schema in FILE, by turns; the model's folder needs tokenizer.json
    #[arg(long, value_name = "FILE")]
    pub schema: Option<PathBuf>,
}

/// `bench prefill`.
#[derive(Debug, Args)]
pub struct PrefillArgs {
    #[command(flatten)]
    pub common: CommonArgs,
    /// Tokens of each prompt
    #[arg(long, value_name = "TOKENS", default_value_t = 8192,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub tokens: u32,
    /// Prompts, one after the other
    #[arg(long, value_name = "N", default_value_t = 4,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub count: u32,
}

/// What every benchmark is told.
#[derive(Debug, Args)]
pub struct CommonArgs {
    /// Folder with config.json, and weights unless --dummy-weights
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    #[command(flatten)]
    pub load: LoadFlags,
    #[command(flatten)]
    pub floor: FloorArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// How the model is loaded; as `minisglctl load`, but tuned for throughput.
#[derive(Debug, Args)]
pub struct LoadFlags {
    /// Seeded random weights; needs only config.json
    #[arg(long)]
    pub dummy_weights: bool,
    /// Tensor-parallel ranks [default: one a GPU of --gpus, or 1]
    #[arg(long, value_name = "N")]
    pub tp: Option<u32>,
    /// The driver's numbers of the GPUs, one a rank [default: those that suit best]
    #[arg(long, value_name = "N,N")]
    pub gpus: Option<GpuList>,
    /// What to run on: auto, cpu or cuda
    #[arg(long, value_parser = lowercase::<Device>, default_value = "auto")]
    pub device: Device,
    /// Compute threads over all ranks (CPU); 0 means one a core
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: u32,
    /// Tokens a KV page
    #[arg(long, value_name = "TOKENS", default_value_t = 16)]
    pub page_size: u32,
    /// Tokens of KV cache [default: from --memory-ratio]
    #[arg(long, value_name = "TOKENS")]
    pub kv_tokens: Option<u64>,
    /// Share of the free memory for weights and KV pages, in (0, 1] [default: 0.5, on a GPU 0.9]
    #[arg(long, value_name = "SHARE")]
    pub memory_ratio: Option<f32>,
    /// Element type of the KV cache: auto, f32, bf16, fp16 or fp8
    #[arg(long, value_parser = lowercase::<KvDtype>, default_value = "auto")]
    pub kv_dtype: KvDtype,
    /// What projections of a checkpoint of plain numbers become while they are loaded: none or fp8
    #[arg(long, value_parser = lowercase::<Quantize>, default_value = "none")]
    pub quantize: Quantize,
    /// Requests running at once, at most
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub max_running: u32,
    /// Tokens a step feeds at most: the chunk of chunked prefill [default: 512, on a GPU 8192]
    #[arg(long, value_name = "TOKENS")]
    pub chunk_tokens: Option<u32>,
    /// Attention kernels of a GPU for prefill and decode: two of auto, fi and fa, or one for both
    #[arg(long, value_name = "PREFILL,DECODE", default_value = "auto")]
    pub attn: Attn,
    /// Prompt plus generated tokens at most [default: the model's context]
    #[arg(long, value_name = "TOKENS")]
    pub max_len: Option<u32>,
    /// Prefix cache: radix or naive
    #[arg(long, value_parser = lowercase::<CacheMode>, default_value = "radix")]
    pub cache: CacheMode,
    /// Schedule each step after the one before, not during it
    #[arg(long)]
    pub no_overlap: bool,
}

impl LoadFlags {
    /// The same as the worker gets them.
    ///
    /// # Errors
    /// `--gpus` does not go with `--tp` or `--device`.
    pub fn options(&self) -> Result<LoadOptions, BadGpus> {
        let options = LoadOptions {
            device: self.device,
            threads: self.threads,
            page_size: self.page_size,
            kv_tokens: self.kv_tokens,
            memory_ratio: self.memory_ratio,
            kv_dtype: self.kv_dtype,
            quantize: self.quantize,
            max_running: self.max_running,
            chunk_tokens: self.chunk_tokens,
            attn: self.attn,
            max_len: self.max_len,
            cache: self.cache,
            dummy_weights: self.dummy_weights,
            overlap: !self.no_overlap,
            ..LoadOptions::default()
        };
        options.with_ranks(self.tp, self.gpus.as_ref())
    }
}

/// What the floor is computed from; known for some GPUs.
#[derive(Clone, Debug, Default, Args)]
pub struct FloorArgs {
    /// Measured read bandwidth of the device's memory, for the floor
    #[arg(long, value_name = "GB/s")]
    pub read_bandwidth: Option<f64>,
    /// Measured rate of large matrix products, for the floor
    #[arg(long, value_name = "TFLOP/s")]
    pub matmul: Option<f64>,
}

/// Reads an enum by the name it has in JSON, so that all programs have the same words.
fn lowercase<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(serde_json::Value::from(text)).map_err(|error| error.to_string())
}
