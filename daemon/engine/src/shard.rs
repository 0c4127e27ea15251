//! Which part of a model a rank holds.
//!
//! Owns: the division (Shoeybi et al., Megatron-LM, 2019): heads and columns of feed-forward blocks, of each
//! expert too, are divided, the
//! projections behind them are divided along their inputs and summed; the vocabulary is divided as evenly
//! as whole units of eight go. With more ranks than KV heads, each KV head is held by several ranks.

use std::ops::Range;

use crate::config::{ExpertsSpec, Ffn, LayerSpec, ModelConfig};
use crate::error::EngineError;
use crate::scheme::{Scales, Scheme};

/// One rank's share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// This rank, in `0..tp`.
    pub rank: usize,
    /// Ranks.
    pub tp: usize,
    /// Query heads.
    pub heads: Range<usize>,
    /// KV heads; `heads` divides evenly among them.
    pub kv_heads: Range<usize>,
    /// Rows of embedding and head.
    pub vocab: Range<usize>,
}

impl Shard {
    /// All of the model.
    pub fn whole(config: &ModelConfig) -> Shard {
        Shard {
            rank: 0,
            tp: 1,
            heads: 0..config.heads,
            kv_heads: 0..config.kv_heads,
            vocab: 0..config.vocab_size,
        }
    }

    /// This rank's columns of a feed-forward block of `width`.
    pub fn columns(&self, width: usize) -> Range<usize> {
        share(width, self.tp, self.rank)
    }

    /// This rank's columns of each expert: as even as whole units go of codes that share a scale, if experts may have such.
    pub fn expert_columns(&self, config: &ModelConfig, experts: &ExpertsSpec) -> Range<usize> {
        share_of_units(experts.width, expert_unit(config), self.tp, self.rank)
    }

    /// Outputs of the widest product in a feed-forward block of this rank.
    pub fn ffn_outputs(&self, config: &ModelConfig) -> usize {
        let outputs = |layer: &LayerSpec| match &layer.ffn {
            Ffn::Dense { width } => 2 * self.columns(*width).len(),
            Ffn::Experts(experts) => {
                let shared = experts.shared.map_or(0, |shared| shared.width);
                let width =
                    self.expert_columns(config, experts).len().max(self.columns(shared).len());
                (2 * width).max(experts.count)
            }
        };
        config.layers.iter().map(outputs).max().unwrap_or(0)
    }

    /// The widest of this rank's shares of dense feed-forward blocks.
    pub fn dense_width(&self, config: &ModelConfig) -> usize {
        let width = |layer: &LayerSpec| match layer.ffn {
            Ffn::Dense { width } => self.columns(width).len(),
            Ffn::Experts(_) => 0,
        };
        config.layers.iter().map(width).max().unwrap_or(0)
    }

    /// The share of `rank` of `tp`.
    ///
    /// # Errors
    /// `tp` does not divide the heads; the error lists what does.
    pub fn new(config: &ModelConfig, tp: usize, rank: usize) -> Result<Shard, EngineError> {
        let (heads, kv_heads) = (config.heads, config.kv_heads);
        if !divides(config, tp) {
            let possible = (1..=heads).filter(|&tp| divides(config, tp)).collect();
            return Err(EngineError::TensorParallel { tp, heads, kv_heads, possible });
        }
        let kv = if tp <= kv_heads {
            share(kv_heads, tp, rank)
        } else {
            let head = rank * kv_heads / tp;
            head..head + 1
        };
        Ok(Shard {
            rank,
            tp,
            heads: share(heads, tp, rank),
            kv_heads: kv,
            vocab: vocab_share(config.vocab_size, tp, rank),
        })
    }
}

/// A rank's part of an expert begins at a multiple of so many columns, if there are as many of them as ranks.
pub fn expert_unit(config: &ModelConfig) -> usize {
    match config.expert_scheme() {
        scheme @ Scheme::Mxfp4 => scheme.block([1, 1])[1],
        // Columns of `down`, and rows of gate and up.
        Scheme::Fp8 { scales: Scales::Block { rows, cols } } => rows.max(cols),
        Scheme::Fp8 { .. } | Scheme::Plain => 1,
    }
}

/// Part `rank` of `0..count` divided among `tp`, as evenly as it goes.
pub fn share(count: usize, tp: usize, rank: usize) -> Range<usize> {
    rank * count / tp..(rank + 1) * count / tp
}

/// Rows of embedding and head that begin at a multiple of this many, so that a device can copy logits in
/// vectors.
const VOCAB_UNIT: usize = 8;

/// Part `rank` of a vocabulary divided among `tp`, as evenly as whole units go.
pub fn vocab_share(vocab: usize, tp: usize, rank: usize) -> Range<usize> {
    share_of_units(vocab, VOCAB_UNIT, tp, rank)
}

/// Part `rank` of `0..count` divided among `tp`, as evenly as whole units of `unit` go, if there is one for each.
fn share_of_units(count: usize, unit: usize, tp: usize, rank: usize) -> Range<usize> {
    let units = count.div_ceil(unit);
    if units < tp {
        return share(count, tp, rank);
    }
    let part = share(units, tp, rank);
    part.start * unit..(part.end * unit).min(count)
}

fn divides(config: &ModelConfig, tp: usize) -> bool {
    let (heads, kv_heads) = (config.heads, config.kv_heads);
    tp > 0
        && heads.is_multiple_of(tp)
        && (kv_heads.is_multiple_of(tp) || tp.is_multiple_of(kv_heads))
        && config.layers.iter().all(|layer| tp <= layer.ffn.narrowest())
        && tp <= config.vocab_size
}

#[cfg(test)]
mod tests {
    use super::*;

    /// gpt-oss with experts of `width`, in MXFP4.
    fn gpt_oss(width: usize) -> (ModelConfig, ExpertsSpec) {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/tiny/gpt_oss_mxfp4");
        let config = ModelConfig::from_dir(std::path::Path::new(dir)).unwrap();
        let Ffn::Experts(spec) = &config.layers[0].ffn else { panic!("it has experts") };
        let spec = ExpertsSpec { width, ..spec.clone() };
        (config, spec)
    }

    #[test]
    fn experts_are_divided_between_blocks_that_share_a_scale() {
        let of = |width: usize, tp: usize| -> Vec<Range<usize>> {
            let (config, spec) = gpt_oss(width);
            let shard = |rank| Shard { rank, tp, ..Shard::whole(&config) };
            (0..tp).map(|rank| shard(rank).expert_columns(&config, &spec)).collect()
        };
        assert_eq!(of(2880, 4), [0..704, 704..1440, 1440..2144, 2144..2880]);
        assert_eq!(of(2880, 2), [0..1440, 1440..2880]);
        assert_eq!(of(2880, 1), [0..2880; 1]);
        // Too few blocks: the CPU takes any columns.
        assert_eq!(of(64, 4), [0..16, 16..32, 32..48, 48..64]);
    }

    #[test]
    fn experts_of_e4m3_are_divided_between_blocks_where_there_are_some() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 256, "intermediate_size": 512,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
            "vocab_size": 256, "max_position_embeddings": 64, "moe_intermediate_size": 768, "num_experts": 8,
            "num_experts_per_tok": 2,
            "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}"#;
        std::fs::write(dir.path().join("config.json"), text).unwrap();
        let mut config = ModelConfig::from_dir(dir.path()).unwrap();
        let Ffn::Experts(spec) = config.layers[0].ffn.clone() else { panic!("it has experts") };
        let of = |config: &ModelConfig, tp: usize| -> Vec<Range<usize>> {
            let shard = |rank| Shard { rank, tp, ..Shard::whole(config) };
            (0..tp).map(|rank| shard(rank).expert_columns(config, &spec)).collect()
        };
        assert_eq!(of(&config, 2), [0..384, 384..768]);
        assert_eq!(of(&config, 4), [0..128, 128..384, 384..512, 512..768]);
        // Rows and tensors have scales that no cut divides.
        config.quantization = crate::config::Quantization::default();
        let config = config.quantised_to_fp8().unwrap();
        assert_eq!(expert_unit(&config), 1);
        assert_eq!(of(&config, 3)[1], 256..512);
    }

    #[test]
    fn a_vocabulary_is_divided_in_whole_units_and_nothing_is_lost() {
        for (vocab, tp) in [(151_936, 2), (49_152, 3), (50_257, 4), (515, 8), (7, 3), (64, 8)] {
            let parts: Vec<_> = (0..tp).map(|rank| vocab_share(vocab, tp, rank)).collect();
            assert_eq!((parts[0].start, parts[tp - 1].end), (0, vocab));
            for pair in parts.windows(2) {
                assert_eq!(pair[0].end, pair[1].start, "{vocab} over {tp}");
            }
            let whole = vocab >= tp * VOCAB_UNIT;
            assert!(!whole || parts.iter().all(|part| part.start.is_multiple_of(VOCAB_UNIT)));
            let lens = || parts.iter().map(Range::len);
            let most = if whole { 2 * VOCAB_UNIT } else { 1 };
            assert!(lens().max() <= lens().min().map(|least| least + most), "{parts:?}");
            assert!(lens().all(|len| len > 0), "{parts:?}");
        }
    }
}
