//! The least time that a run could have taken on its hardware.
//!
//! Owns: the measured rates of known GPUs, and the model's bytes and FLOPs. Must never: look at a
//! clock.
//!
//! A step reads every weight but the embedding table once (a tied table is the head, and read), and
//! the keys and values of all tokens before its rows; a prompt's tokens are computed. So
//!
//! ```text
//!   floor = sum over steps of weight bytes / read bandwidth
//!         + sum over rows of tokens before the row * KV bytes a token / read bandwidth
//!         + FLOPs of prompt tokens / matmul rate
//! ```
//!
//! Of experts a step reads those that its tokens chose: as many different ones as there are on average if each token
//! draws its own evenly, and a prompt's token computes those that it chose.
//!
//! A decode token's own FLOPs hide behind the weights; what a prompt computes is taken not to. Coded weights count as the
//! bytes that they take; products with those of e4m3 are taken to go at twice the rate, as tensor cores do at best.

use anyhow::bail;
use minisgl_engine::config::{ExpertsSpec, Ffn, ModelConfig};
use minisgl_engine::model;
use minisgl_engine::scheme::Code;
use minisgl_engine::shard::Shard;
use serde::Serialize;

use super::args::FloorArgs;
use super::timed::StepRecord;

/// What a GPU's name has after the maker's, its read bandwidth in GB/s and its bf16 matmul rate in TFLOP/s, both as
/// measured (a read-only kernel over cold buffers; the best of large cuBLASLt products), 2026-11-21.
const MEASURED: [(&str, f64, f64); 2] =
    [("H100 80GB HBM3", 3_140.0, 800.0), ("H200", 4_600.0, 822.0)];

/// What a device can do.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Hardware {
    /// Bytes a second that a kernel can read from memory.
    pub read_bytes_per_s: f64,
    /// Floating-point operations a second in large matrix products.
    pub matmul_flop_per_s: f64,
}

impl Hardware {
    /// As given by flags, else as measured for `device`; `None` where neither is there.
    ///
    /// # Errors
    /// A rate that is not positive, or one flag without the other on an unknown device.
    pub fn choose(args: &FloorArgs, device: &str) -> anyhow::Result<Option<Hardware>> {
        for (flag, value) in [("--read-bandwidth", args.read_bandwidth), ("--matmul", args.matmul)]
        {
            if let Some(value) = value
                && !(value > 0.0 && value.is_finite())
            {
                bail!("{flag} is {value}: it must be above 0");
            }
        }
        let known = MEASURED.into_iter().find(|(name, _, _)| is_of(device, name));
        let read = args.read_bandwidth.or(known.map(|(_, read, _)| read));
        let matmul = args.matmul.or(known.map(|(_, _, matmul)| matmul));
        match (read, matmul) {
            (Some(read), Some(matmul)) => Ok(Some(Hardware {
                read_bytes_per_s: read * 1e9,
                matmul_flop_per_s: matmul * 1e12,
            })),
            (None, None) => Ok(None),
            (Some(_), None) => bail!("the matmul rate of \"{device}\" is not known: add --matmul"),
            (None, Some(_)) => {
                bail!("the read bandwidth of \"{device}\" is not known: add --read-bandwidth")
            }
        }
    }
}

/// Whether `device`, one GPU or several (`2 x NVIDIA H200`), is a `name`, as a word: a GH200 is no H200, though an
/// `H200 NVL` is one.
fn is_of(device: &str, name: &str) -> bool {
    device.match_indices(name).any(|(at, _)| {
        let before = device[..at].chars().next_back();
        let after = device[at + name.len()..].chars().next();
        [before, after].into_iter().flatten().all(|next| !next.is_alphanumeric())
    })
}

impl Hardware {
    /// Of `count` such devices that divide the work.
    pub fn times(self, count: usize) -> Hardware {
        Hardware {
            read_bytes_per_s: self.read_bytes_per_s * count as f64,
            matmul_flop_per_s: self.matmul_flop_per_s * count as f64,
        }
    }
}

/// Of the embedding, which is never coded, as most checkpoints have it.
const TABLE_ELEMENT_BYTES: f64 = 2.0;

/// The experts of layers that are alike.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpertCosts {
    /// Experts of a layer.
    pub count: usize,
    /// Of those, how many a token goes through.
    pub chosen: usize,
    /// Weights of one expert, of all these layers together.
    pub bytes: f64,
}

impl ExpertCosts {
    /// How many different experts of a layer `tokens` draw on average, each `chosen` different ones evenly.
    fn drawn(&self, tokens: f64) -> f64 {
        let (count, chosen) = (self.count as f64, self.chosen as f64);
        count * (1.0 - (1.0 - chosen / count).powf(tokens))
    }
}

/// What a model's steps must move and compute.
#[derive(Clone, Debug, PartialEq)]
pub struct Costs {
    /// Weights that each step reads, those of experts aside.
    pub weight_bytes: f64,
    /// Experts that tokens choose.
    pub experts: Vec<ExpertCosts>,
    /// Keys and values of one token, over all layers.
    pub kv_token_bytes: f64,
    /// Of one token in all layers, attention aside, and with the experts that it chose.
    pub layer_flop: f64,
    /// How many times as fast as bf16's these are computed at best.
    pub layer_speed: f64,
    /// Of one sampled row in the head.
    pub head_flop: f64,
    /// Of one token in attention, for each token that it attends to, over all layers.
    pub attention_flop: f64,
}

impl Costs {
    /// From the shape of a model, the bytes of its weights and those of a token's keys and values.
    pub fn of(config: &ModelConfig, weight_bytes: u64, kv_token_bytes: f64) -> Costs {
        let parameters = model::parameters(config) as f64;
        let table = (config.vocab_size * config.hidden_size) as f64;
        let (embedding, head) =
            if config.tie_word_embeddings { (0.0, table) } else { (table, table) };
        // What is in memory beside what is stored: padding, and what ranks hold twice.
        let stored_bytes = model::bytes_of(config, &Shard::whole(config)) as f64;
        let held = weight_bytes as f64 / stored_bytes;
        let mut experts: Vec<ExpertCosts> = Vec::new();
        let (mut stacked_bytes, mut left_out) = (0.0, 0.0);
        for (layer, stored) in config.layers.iter().zip(expert_bytes(config)) {
            let Ffn::Experts(ExpertsSpec { count, chosen, width, .. }) = layer.ffn else {
                continue;
            };
            stacked_bytes += stored;
            left_out += ((count - chosen) * 3 * width * config.hidden_size) as f64;
            let bytes = stored / count as f64 * held;
            match experts.iter_mut().find(|of| (of.count, of.chosen) == (count, chosen)) {
                Some(of) => of.bytes += bytes,
                None => experts.push(ExpertCosts { count, chosen, bytes }),
            }
        }
        let coded = config.quantization.schemes().any(|scheme| scheme.code() == Some(Code::E4m3));
        let unread = embedding * TABLE_ELEMENT_BYTES + stacked_bytes;
        Costs {
            weight_bytes: held * (stored_bytes - unread),
            experts,
            kv_token_bytes,
            layer_flop: 2.0 * (parameters - embedding - head - left_out),
            layer_speed: if coded { 2.0 } else { 1.0 },
            head_flop: 2.0 * head,
            // A product with the keys and one with the values.
            attention_flop: (4 * config.heads * config.head_dim * config.layers.len()) as f64,
        }
    }
}

/// Bytes of the experts of each layer as they are stored; 0 where a layer has none.
fn expert_bytes(config: &ModelConfig) -> Vec<f64> {
    let mut bytes = vec![0.0; config.layers.len()];
    for tensor in model::tensors(config) {
        let place = tensor.name.split_once(".layers.").and_then(|(_, rest)| rest.split_once('.'));
        let Some((layer, rest)) = place else { continue };
        let of = layer.parse().ok().and_then(|layer: usize| bytes.get_mut(layer));
        if let Some(of) = of.filter(|_| rest.contains(".experts.")) {
            *of += tensor.bytes() as f64;
        }
    }
    bytes
}

/// The least seconds for some steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Floor {
    /// Reading weights.
    pub weights_s: f64,
    /// Reading live keys and values.
    pub kv_s: f64,
    /// Computing prompts.
    pub prefill_s: f64,
}

impl Costs {
    /// Weights that a step of so many tokens reads.
    fn step_bytes(&self, tokens: f64) -> f64 {
        let experts = self.experts.iter().map(|experts| experts.drawn(tokens) * experts.bytes);
        self.weight_bytes + experts.sum::<f64>()
    }
}

impl Floor {
    /// Of `steps`, added up.
    pub fn of(steps: &[StepRecord], costs: &Costs, hardware: &Hardware) -> Floor {
        let (mut weight_bytes, mut kv_bytes, mut flop) = (0.0, 0.0, 0.0);
        for step in steps {
            weight_bytes += costs.step_bytes(f64::from(step.decode_rows + step.prefill_tokens));
            kv_bytes += step.kv_read_tokens * costs.kv_token_bytes;
            flop += step.prefill_tokens as f64 * costs.layer_flop / costs.layer_speed
                + step.prefill_sampled as f64 * costs.head_flop
                + step.prefill_pairs * costs.attention_flop;
        }
        Floor {
            weights_s: weight_bytes / hardware.read_bytes_per_s,
            kv_s: kv_bytes / hardware.read_bytes_per_s,
            prefill_s: flop / hardware.matmul_flop_per_s,
        }
    }

    /// All of it.
    pub fn seconds(&self) -> f64 {
        self.weights_s + self.kv_s + self.prefill_s
    }
}
