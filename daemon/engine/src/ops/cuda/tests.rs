//! Every op against the CPU's, on odd shapes, into poisoned buffers. Without a GPU nothing runs.

mod attention;
mod experts;
mod experts_fp8;
mod fp8;
mod products;
mod tokens;

use half::bf16;
use minisgl_kernels::ops::{BroadGemm, Fp8Product, NarrowGemm};
use minisgl_proto::{Sampled, SamplingParams};
use minisgl_sched::{Grown, Install, Plan, Row, SAMPLED_LAST, Want};

use super::graphs::Part;
use super::linear::gemm_rows;
use super::*;
use crate::collective::Group;
use crate::config::{
    Activation, Architecture, AttentionBias, AttentionSpec, Ffn, NormSpec, RopeConfig, RopeScaling,
};
use crate::kv_groups::KvGroups;
use crate::ops::cpu::{self, CpuOps, CpuSpec, KvElement};
use crate::ops::{Closure, HeadNorms, NormId};

const SLOTS: usize = 300;
const CHUNK: usize = 1000;
const VOCAB: usize = 1003;

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// In [-1, 1), exact in bf16.
    fn floats(&mut self, count: usize) -> Vec<f32> {
        let float = |bits: u64| (bits >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        (0..count).map(|_| bf16::from_f32(float(self.next())).to_f32()).collect()
    }
}

/// Ops whose buffers a test can see.
trait Visible: Ops {
    fn fill(&self, width: usize, values: &[f32]) -> Self::Buffer;
    fn values(&self, buffer: &Self::Buffer, rows: usize) -> Vec<f32>;

    fn poisoned(&self, rows: usize, width: usize) -> Self::Buffer {
        self.fill(width, &vec![f32::NAN; rows * width])
    }

    fn weights(&self, values: &[f32], inputs: usize) -> Self::Matrix {
        let values: Vec<bf16> = values.iter().copied().map(bf16::from_f32).collect();
        self.matrix(&[MatrixPart::Plain(TensorPart::of(&values))], inputs).unwrap()
    }

    fn weight(&self, values: &[f32]) -> Self::Vector {
        let values: Vec<bf16> = values.iter().copied().map(bf16::from_f32).collect();
        self.vector(&[TensorPart::of(&values)]).unwrap()
    }

    /// A norm's weight, stored less 1 or as it is.
    fn norm_weight(&self, values: &[f32], plus_one: bool) -> Self::Vector {
        if !plus_one {
            return self.weight(values);
        }
        // So small that bf16 would lose most of it beside the 1.
        let values: Vec<bf16> = values.iter().map(|value| bf16::from_f32(value * 0.02)).collect();
        self.vector_plus_one(TensorPart::of(&values)).unwrap()
    }
}

impl Visible for CpuOps {
    fn fill(&self, width: usize, values: &[f32]) -> cpu::Buffer {
        cpu::Buffer { data: values.to_vec(), width }
    }

    fn values(&self, buffer: &cpu::Buffer, rows: usize) -> Vec<f32> {
        buffer.data[..rows * buffer.width].to_vec()
    }
}

impl Visible for CudaOps {
    fn fill(&self, width: usize, values: &[f32]) -> Buffer {
        let values: Vec<bf16> = values.iter().copied().map(bf16::from_f32).collect();
        let rows = values.len() / width;
        let padding = padded_tokens(rows) * width - values.len();
        let values = [values, vec![bf16::NAN; padding]].concat();
        Buffer::new(self.stream().clone_htod(&values).unwrap(), rows, width)
    }

    fn values(&self, buffer: &Buffer, rows: usize) -> Vec<f32> {
        let values = self.stream().clone_dtoh(&buffer.rows(rows)).unwrap();
        self.device.synchronize().unwrap();
        values.into_iter().map(bf16::to_f32).collect()
    }
}

fn config(heads: usize, kv_heads: usize, head_dim: usize) -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Qwen3,
        vocab_size: VOCAB,
        hidden_size: 200,
        heads,
        kv_heads,
        head_dim,
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
        attention_bias: AttentionBias { qkv: true, output: false },
        qk_norm: true,
        max_position: 4096,
        tie_word_embeddings: false,
        ..ModelConfig::small(2, 328)
    }
}

/// A model in which the widest sum of a test has room.
fn wide() -> ModelConfig {
    ModelConfig { hidden_size: 1536, ..config(4, 2, 64) }
}

/// The same rank on both devices; `None` without a GPU, which is said.
fn pair(config: &ModelConfig, page_size: usize) -> Option<(CpuOps, CudaOps)> {
    if !minisgl_kernels::testing::has_gpu() {
        return None;
    }
    let shard = Shard::new(config, 1, 0).unwrap();
    let cpu = CpuSpec {
        config,
        shard: &shard,
        member: Group::new(1).member(0),
        threads: 4,
        slots: SLOTS,
        penalised: SLOTS,
        chunk_tokens: CHUNK,
        logit_rows: SLOTS,
        page_size,
        groups: KvGroups::one(config.layers.len()),
        kv_element: KvElement::Bf16,
    };
    let cuda = CudaSpec {
        config,
        shard: &shard,
        gpu: Gpu::open(0).unwrap(),
        team: None,
        slots: SLOTS,
        penalised: SLOTS,
        chunk_tokens: CHUNK,
        logit_rows: SLOTS,
        page_size,
        groups: KvGroups::one(config.layers.len()),
        max_len: config.max_position,
        kv_dtype: KvDtype::Bf16,
        attn: Attn::default(),
    };
    Some((CpuOps::new(cpu).unwrap(), CudaOps::new(cuda).unwrap()))
}

/// Relative to the size of the whole, and each element within `ulps` roundings to bf16 of itself, or, where sums
/// cancel, of a fifth of the largest.
fn assert_close(what: &str, got: &[f32], expected: &[f32], ulps: f32) {
    assert_within((ulps, 4e-3), what, got, expected);
}

/// [`assert_close`] with the errors together within `share` of all.
fn assert_within((ulps, share): (f32, f64), what: &str, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let (mut error, mut norm) = (0.0, 0.0);
    let largest = expected.iter().fold(0.0f32, |max, value| max.max(value.abs()));
    for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
        let difference = (got - expected).abs();
        let limit = ulps / 256.0 * expected.abs().max(0.2 * largest);
        assert!(difference <= limit, "{what}, element {at}: {got}, not {expected}");
        error += f64::from(difference * difference);
        norm += f64::from(expected * expected);
    }
    // Of many elements fewer are off by so much: half a thousandth for each rounding.
    let share = (5e-4 * f64::from(ulps)).max(share);
    assert!(error.sqrt() <= share * norm.sqrt(), "{what}: {error} of {norm}");
}

fn row(slot: u32, start: usize, len: usize) -> Row {
    Row { slot, start: start as u32, len: len as u32, tokens_at: 0, want: Want::Last }
}

/// A batch of rows, each with pages of its own, scattered; row `i` is of request `i`.
fn batch(tables: &[Vec<u32>], rows: &[Row], page_size: usize, random: &mut Random) -> Batch {
    let mut plan = Plan::default();
    for &row in rows {
        let end = (row.start + row.len) as usize;
        let tokens_at = plan.tokens.len() as u32;
        plan.rows.push(Row { tokens_at, ..row });
        plan.tokens.extend((0..row.len).map(|_| random.below(VOCAB) as i32));
        let len = end.div_ceil(page_size);
        plan.grown.push(Grown { slot: row.slot, group: 0, at: 0, len: len as u32 });
        plan.pages.extend(&tables[row.slot as usize][..len]);
    }
    let mut batch = Batch::default();
    batch.prepare(Arc::new(plan), 1, page_size);
    batch
}

#[test]
fn products_are_run_for_few_numbers_of_rows() {
    let rounded = [0, 1, 3, 16, 17, 250, 257, 500].map(|rows| gemm_rows(rows, 8192));
    assert_eq!(rounded, [1, 1, 4, 16, 32, 256, 320, 512]);
    assert_eq!(gemm_rows(500, 500), 500);
    let mut all: Vec<usize> = (1..=512).map(|rows| gemm_rows(rows, 512)).collect();
    assert!(all.iter().zip(1..).all(|(&rounded, rows)| rounded >= rows));
    all.dedup();
    assert_eq!(all.len(), 24);
}

#[test]
fn a_decode_step_runs_twice_before_it_is_replayed() {
    let of = |rows: &[Row]| {
        let tables = vec![vec![0]; 5];
        batch(&tables, rows, 16, &mut Random(1))
    };
    let decode = of(&[row(0, 3, 1), row(1, 4, 1), row(2, 5, 1)]);
    let mut graphs = Graphs::new(256);
    assert_eq!(graphs.mode(&decode, Part::Whole), (Mode::Padded(4), false));
    graphs.ran(4, Part::Whole);
    assert_eq!(graphs.mode(&decode, Part::Whole), (Mode::Padded(4), true));
    assert_eq!(graphs.mode(&decode, Part::Forward), (Mode::Padded(4), false), "its own graph");
    graphs.ran(4, Part::Forward);
    graphs.give_up(4, Part::Forward);
    graphs.ran(4, Part::Forward);
    assert_eq!(graphs.mode(&decode, Part::Forward), (Mode::Padded(4), false), "not tried again");
    assert_eq!(graphs.mode(&of(&[row(0, 3, 1)]), Part::Whole), (Mode::Padded(1), false));
    let chunk = Row { want: Want::Nothing, ..row(1, 0, 1) };
    for eager in [&[row(0, 3, 1), row(1, 0, 2)][..], &[chunk], &[]] {
        let mode = graphs.mode(&of(eager), Part::Whole);
        assert_eq!(mode, (Mode::Eager, false), "{eager:?}");
    }
    assert_eq!(Graphs::new(2).mode(&decode, Part::Whole), (Mode::Eager, false));
    assert_eq!(decode_rows(3), [1, 1, 2, 2, 3, 3]);
    let many = decode_rows(5000);
    assert_eq!((many.len(), many[many.len() - 3..].to_vec()), (2 * 32, vec![960, 1024, 1024]));
}

#[test]
fn a_model_without_kernels_is_refused_by_what_it_lacks() {
    let refusal = |change: fn(&mut ModelConfig)| {
        let mut config = config(4, 2, 64);
        change(&mut config);
        let shard = Shard::new(&config, 1, 0).unwrap();
        check(&config, &shard).err().map(|error| error.reason).unwrap_or_default()
    };
    assert_eq!(refusal(|_| ()), "");
    assert!(refusal(|config| config.head_dim = 80).starts_with("head_dim is 80"));
    assert!(refusal(|config| config.hidden_size = 204).starts_with("hidden_size is 204"));
    let narrow = |config: &mut ModelConfig| config.layers[1].ffn = Ffn::Dense { width: 333 };
    assert!(refusal(narrow).contains("a multiple of 8"));
    assert!(refusal(|config| config.vocab_size = 1 << 20).starts_with("vocab_size is 1048576"));
}
