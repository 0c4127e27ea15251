//! How long a step may take before it is given up.
//!
//! Owns: the limit, which grows with the work of the plan; the same for one GPU and for several. Must never: wait, or
//! know a device.
//!
//! `base + FLOPs / FLOPS_LEAST + bytes read / READ_LEAST + bytes summed over ranks / SUM_LEAST`, and no more than
//! [`STEP_PATIENCE_MAX_S`]. The rates are far below those of any GPU that is served on, so a step that takes longer
//! is not slow: it will not end.

use std::time::Duration;

use minisgl_proto::limits::STEP_PATIENCE_MAX_S;
use minisgl_sched::Plan;

use crate::config::ModelConfig;

/// The limit of a step without work: what a host that swaps, a driver that loads a kernel and a peer that is late may
/// take. A collective of our own that waits on the GPU gives up earlier.
pub(crate) const STEP_PATIENCE: Duration = Duration::from_millis(7500);

/// FLOPs in a second of the slowest GPU, in products and attention: a sixth of an L4's peak in bf16.
const FLOPS_LEAST: f64 = 20e12;
/// Bytes in a second that the slowest GPU reads from its memory, where every row reads its own keys and values.
const READ_LEAST: f64 = 100e9;
/// Bytes in a second that ranks add up over the slowest link.
const SUM_LEAST: f64 = 1e9;

/// What the work of a step is counted by, on one rank.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepCosts {
    /// The limit of a step without work.
    pub(crate) base: Duration,
    /// FLOPs of the products of a token.
    pub(crate) token_flops: f64,
    /// FLOPs of attention for a token and one that it attends to.
    pub(crate) pair_flops: f64,
    /// Bytes of the keys and values of a token.
    pub(crate) kv_token_bytes: f64,
    /// Bytes of a token that are summed over ranks.
    pub(crate) token_sum_bytes: f64,
    /// Bytes of a row of logits that ranks join.
    pub(crate) logit_sum_bytes: f64,
}

impl StepCosts {
    /// Of `config` with as many parameters on `tp` ranks, with KV pages of elements of `kv_element_bytes`. Experts count
    /// as if every token went to all of them.
    #[cfg_attr(
        not(any(feature = "cuda", test)),
        expect(dead_code, reason = "only a GPU has a limit")
    )]
    pub(crate) fn of(
        config: &ModelConfig,
        parameters: u64,
        tp: usize,
        kv_element_bytes: usize,
    ) -> StepCosts {
        let layers = config.layers.len() as f64;
        let heads = config.heads.div_ceil(tp) * config.head_dim;
        let kv_heads = config.kv_heads.div_ceil(tp) * config.head_dim;
        let joins = if tp > 1 { 1.0 } else { 0.0 };
        StepCosts {
            base: STEP_PATIENCE,
            token_flops: 2.0 * parameters as f64 / tp as f64,
            pair_flops: 4.0 * layers * heads as f64,
            kv_token_bytes: 2.0 * layers * (kv_heads * kv_element_bytes) as f64,
            // The embedding, and two sums a layer, of bf16, there and back.
            token_sum_bytes: joins * 4.0 * (2.0 * layers + 1.0) * config.hidden_size as f64,
            logit_sum_bytes: joins * 4.0 * config.vocab_size as f64,
        }
    }

    /// How long a step of `plan` may take, from the end of the step before.
    pub(crate) fn patience(&self, plan: &Plan) -> Duration {
        let (mut tokens, mut pairs, mut read, mut logits) = (0.0, 0.0, 0.0, 0.0);
        for row in &plan.rows {
            let (start, len) = (f64::from(row.start), f64::from(row.len));
            tokens += len;
            pairs += len * start + len * (len + 1.0) / 2.0;
            read += start + len;
            logits += f64::from(row.logits());
        }
        let flops = tokens * self.token_flops + pairs * self.pair_flops;
        let summed = tokens * self.token_sum_bytes + logits * self.logit_sum_bytes;
        let seconds =
            flops / FLOPS_LEAST + read * self.kv_token_bytes / READ_LEAST + summed / SUM_LEAST;
        let most = Duration::from_secs(STEP_PATIENCE_MAX_S);
        // Below the most, so that no plan is too large for a duration.
        let work = Duration::from_secs_f64(seconds.min(most.as_secs_f64()));
        (self.base + work).min(most)
    }
}

#[cfg(test)]
mod tests {
    use minisgl_sched::{Row, Want};

    use super::*;

    /// Llama 3 70B.
    fn costs(tp: usize) -> StepCosts {
        let config = ModelConfig {
            vocab_size: 128_256,
            hidden_size: 8192,
            heads: 64,
            kv_heads: 8,
            head_dim: 128,
            tie_word_embeddings: false,
            ..ModelConfig::small(80, 28_672)
        };
        StepCosts::of(&config, 70_553_706_496, tp, 2)
    }

    fn plan(rows: u32, start: u32, len: u32) -> Plan {
        let row = Row { slot: 0, start, len, tokens_at: 0, want: Want::Last };
        Plan { rows: vec![row; rows as usize], ..Plan::default() }
    }

    fn patience(tp: usize, rows: u32, start: u32, len: u32) -> f64 {
        costs(tp).patience(&plan(rows, start, len)).as_secs_f64()
    }

    #[test]
    fn a_step_without_work_has_the_base() {
        assert_eq!(costs(4).patience(&Plan::default()), STEP_PATIENCE);
        let base_s = STEP_PATIENCE.as_secs_f64();
        assert!(patience(4, 1, 100, 1) < base_s + 0.1, "nor has a decode step much");
    }

    #[test]
    fn the_limit_grows_with_tokens_context_and_rows_up_to_the_most() {
        for (less, more) in [
            ((1, 0, 512), (1, 0, 8192)),
            ((1, 0, 4096), (1, 100_000, 4096)),
            ((16, 30_000, 1), (256, 30_000, 1)),
            ((1, 30_000, 1), (1, 60_000, 1)),
        ] {
            let of = |(rows, start, len)| patience(4, rows, start, len);
            assert!(of(less) < of(more), "{less:?} {more:?}");
        }
        // Of a long context it is attention that takes the time, on ranks also the sums.
        assert!(patience(1, 1, 100_000, 8192) - patience(1, 1, 0, 8192) > 50.0);
        let work = |tp| patience(tp, 1, 0, 8192) - STEP_PATIENCE.as_secs_f64();
        assert!(work(4) < work(2), "ranks share the work");
        assert!(work(2) > work(1) / 2.0 + 10.0, "and add it up");
        let most_s = STEP_PATIENCE_MAX_S as f64;
        assert_eq!(patience(1, 4096, u32::MAX - 65_536, 65_536), most_s);
    }

    #[test]
    fn what_is_slow_and_legal_is_waited_for() {
        // 6 to 9 s on four L40S: 8,192 tokens over a context of 100,000.
        assert!(patience(4, 1, 100_000, 8192) > 30.0);
        // 32,768 tokens at once on the same cards, some 10 s of products and 5 of sums.
        assert!(patience(4, 1, 0, 32_768) > 60.0);
        // 2,048 rows that share a long prefix: 20 TB of keys and values of a rank, 23 s on an L40S.
        assert!(patience(4, 2048, 120_000, 1) > 100.0);
    }
}
