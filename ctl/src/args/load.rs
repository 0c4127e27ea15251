//! How a model is loaded, on the command line.

use clap::Args;
use minisgl_proto::{Attn, BadGpus, CacheMode, Device, GpuList, KvDtype, LoadOptions, Quantize};

/// Load options.
#[derive(Debug, Args)]
pub struct OptionArgs {
    /// Tensor-parallel ranks [default: one a GPU of --gpus, or 1]
    #[arg(long, value_name = "N")]
    pub tp: Option<u32>,
    /// The driver's numbers of the GPUs, one a rank [default: those that suit best and that no other
    /// model has]
    #[arg(long, value_name = "N,N")]
    pub gpus: Option<GpuList>,
    /// What to run on: auto, cpu or cuda
    #[arg(long, value_parser = lowercase::<Device>)]
    pub device: Option<Device>,
    /// Compute threads over all ranks; 0 means one a core
    #[arg(long, value_name = "N")]
    pub threads: Option<u32>,
    /// Tokens a KV page
    #[arg(long, value_name = "TOKENS")]
    pub page_size: Option<u32>,
    /// Tokens of KV cache [default: from --memory-ratio]
    #[arg(long, value_name = "TOKENS")]
    pub kv_tokens: Option<u64>,
    /// Share of the free memory for weights and KV pages, in (0, 1] [default: 0.5, on a GPU 0.9]
    #[arg(long, value_name = "SHARE")]
    pub memory_ratio: Option<f32>,
    /// Element type of the KV cache: auto, f32, bf16, fp16 or fp8
    #[arg(long, value_parser = lowercase::<KvDtype>)]
    pub kv_dtype: Option<KvDtype>,
    /// What projections of a checkpoint of plain numbers become while they are loaded: none or fp8
    #[arg(long, value_parser = lowercase::<Quantize>)]
    pub quantize: Option<Quantize>,
    /// Requests running at once, at most
    #[arg(long, value_name = "N")]
    pub max_running: Option<u32>,
    /// Requests waiting, at most
    #[arg(long, value_name = "N")]
    pub max_waiting: Option<u32>,
    /// Tokens a step feeds at most: the chunk of chunked prefill [default: 512, on a GPU 8192]
    #[arg(long, value_name = "TOKENS")]
    pub chunk_tokens: Option<u32>,
    /// Prompt plus generated tokens at most [default: the model's context]
    #[arg(long, value_name = "TOKENS")]
    pub max_len: Option<u32>,
    /// Prefix cache: radix or naive
    #[arg(long, value_parser = lowercase::<CacheMode>)]
    pub cache: Option<CacheMode>,
    /// Attention kernels of a GPU for prefill and decode: two of auto, fi and fa, or one for both
    #[arg(long, value_name = "PREFILL,DECODE")]
    pub attn: Option<Attn>,
    /// How the model writes tool calls and thoughts [default: found by its template; see docs/features.md]
    #[arg(long, value_name = "NAME")]
    pub dialect: Option<String>,
    /// Seeded random weights; needs only config.json
    #[arg(long)]
    pub dummy_weights: bool,
    /// Schedule each step after the one before, not during it
    #[arg(long)]
    pub no_overlap: bool,
}

impl OptionArgs {
    /// Those given, and `base` for the rest.
    ///
    /// # Errors
    /// `--gpus` does not go with `--tp` or `--device`.
    pub fn over(&self, base: LoadOptions) -> Result<LoadOptions, BadGpus> {
        let options = LoadOptions {
            tp: base.tp,
            device: self.device.unwrap_or(base.device),
            gpus: base.gpus,
            gpus_taken: base.gpus_taken,
            threads: self.threads.unwrap_or(base.threads),
            page_size: self.page_size.unwrap_or(base.page_size),
            kv_tokens: self.kv_tokens.or(base.kv_tokens),
            memory_ratio: self.memory_ratio.or(base.memory_ratio),
            kv_dtype: self.kv_dtype.unwrap_or(base.kv_dtype),
            quantize: self.quantize.unwrap_or(base.quantize),
            max_running: self.max_running.unwrap_or(base.max_running),
            max_waiting: self.max_waiting.unwrap_or(base.max_waiting),
            chunk_tokens: self.chunk_tokens.or(base.chunk_tokens),
            max_len: self.max_len.or(base.max_len),
            cache: self.cache.unwrap_or(base.cache),
            attn: self.attn.unwrap_or(base.attn),
            dialect: self.dialect.clone().or(base.dialect),
            dummy_weights: self.dummy_weights || base.dummy_weights,
            overlap: !self.no_overlap && base.overlap,
        };
        if self.tp.is_none() && self.gpus.is_none() {
            return options.check_gpus().map(|()| options);
        }
        // Other ranks than before are on other GPUs.
        LoadOptions { gpus: Vec::new(), ..options }.with_ranks(self.tp, self.gpus.as_ref())
    }
}

/// Reads an enum by the name it has in JSON, so that both have the same words.
fn lowercase<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(serde_json::Value::from(text)).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use minisgl_proto::AttnBackend;

    use super::*;
    use crate::args::{Cli, Command};

    #[test]
    fn no_option_means_the_daemons_default() {
        let cli = Cli::parse_from(["minisglctl", "load", "org/name"]);
        let Command::Load(load) = cli.command else { panic!("{cli:?}") };
        assert_eq!(load.options.over(LoadOptions::default()), Ok(LoadOptions::default()));
    }

    #[test]
    fn enums_have_the_names_of_the_api() {
        let line = "minisglctl load m --device cpu --kv-dtype bf16 --quantize fp8 --cache naive \
                    --attn fa,fi --no-overlap";
        let cli = Cli::parse_from(line.split_whitespace());
        let Command::Load(load) = cli.command else { panic!("{cli:?}") };
        let options = load.options.over(LoadOptions::default()).unwrap();
        assert_eq!(options.device, Device::Cpu);
        assert_eq!(options.kv_dtype, KvDtype::Bf16);
        assert_eq!(options.quantize, Quantize::Fp8);
        assert!(Cli::try_parse_from(["minisglctl", "load", "m", "--quantize", "int4"]).is_err());
        assert_eq!(options.cache, CacheMode::Naive);
        assert_eq!(options.attn, Attn { prefill: AttnBackend::Fa, decode: AttnBackend::Fi });
        assert!(!options.overlap);
        assert!(Cli::try_parse_from(["minisglctl", "load", "m", "--attn", "fa,fb"]).is_err());
        assert!(Cli::try_parse_from(["minisglctl", "load", "m", "--device", "tpu"]).is_err());
    }

    #[test]
    fn ranks_are_as_many_as_gpus_unless_given() {
        let options = |flags: &str| {
            let line = format!("minisglctl load m {flags}");
            let cli = Cli::parse_from(line.split_whitespace());
            let Command::Load(load) = cli.command else { panic!("{cli:?}") };
            load.options.over(LoadOptions::default()).map(|options| (options.gpus, options.tp))
        };
        assert_eq!(options("--gpus 2,3"), Ok((vec![2, 3], 2)));
        assert_eq!(options("--gpus 7 --tp 1"), Ok((vec![7], 1)));
        assert_eq!(options("--tp 2"), Ok((vec![], 2)));
        assert!(options("--gpus 2,3 --tp 1").is_err());
        assert!(options("--gpus 2 --device cpu").is_err());
    }

    #[test]
    fn options_go_over_those_that_a_model_has() {
        let line = "minisglctl restart m --kv-tokens 4096 --no-overlap";
        let cli = Cli::parse_from(line.split(' '));
        let Command::Restart { options, .. } = cli.command else { panic!("{cli:?}") };
        let base =
            LoadOptions { tp: 2, gpus: vec![4, 5], max_running: 7, ..LoadOptions::default() };
        let over = options.over(base.clone()).unwrap();
        assert_eq!((over.kv_tokens, over.overlap), (Some(4096), false));
        assert_eq!((over.tp, &over.gpus[..], over.max_running), (2, &[4, 5][..], 7));
        let line = "minisglctl restart m --tp 1";
        let cli = Cli::parse_from(line.split(' '));
        let Command::Restart { options, .. } = cli.command else { panic!("{cli:?}") };
        assert!(options.over(base).unwrap().gpus.is_empty(), "one rank is not on two GPUs");
    }
}
