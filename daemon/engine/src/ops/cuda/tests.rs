//! Every op against the CPU's, on odd shapes, into poisoned buffers. Without a GPU nothing runs.

mod experts;
mod experts_fp8;
mod fp8;

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

/// With a bias and without, and with what is fused around it.
#[test]
fn products_are_the_cpus() {
    let Some((mut cpu, mut cuda)) = pair(&wide(), 16) else { return };
    let mut random = Random(2);
    for (rows, n, k) in [
        (1, 16, 8),
        (2, 208, 328),
        (9, 16, 8),
        (16, 1024, 328),
        (3, 48, 200),
        (8, 336, 64),
        (17, 336, 64),
        (31, 400, 1000),
        (300, 1008, 200),
        (CHUNK, 64, 328),
    ] {
        let x = random.floats(rows * k);
        let (weight, bias, norm) = (random.floats(n * k), random.floats(n), random.floats(k));
        fn run<O: Visible>(ops: &mut O, rows: usize, given: [&[f32]; 4]) -> [Vec<f32>; 3] {
            let [x, weight, bias, norm] = given;
            let (n, k) = (bias.len(), weight.len() / bias.len());
            let matrix = || ops.weights(weight, k);
            let plain = Linear { weight: matrix(), bias: None };
            let bias = Some(ops.weight(bias));
            let biased = Linear { weight: matrix(), bias };
            let norm = Norm { id: NormId(0), weight: ops.weight(norm) };
            let stream = |ops: &O| Stream::new(ops.fill(k, x), ops.poisoned(rows, k));
            let mut scratch = Scratch { gate_up: ops.poisoned(rows, n) };
            let mut out = [(); 2].map(|()| ops.poisoned(rows, n));
            let [normed, with_norm] = &mut out;
            let mut fresh = stream(ops);
            ops.norm_linear(rows, &mut fresh, &norm, &plain, normed).unwrap();
            // The norm may be there already, or not.
            ops.norm_linear(rows, &mut fresh, &norm, &biased, with_norm).unwrap();
            let mut gated = ops.poisoned(rows, n / 2);
            let mut fresh = stream(ops);
            ops.norm_gated(rows, &mut fresh, &norm, [&plain; 2], &mut scratch, &mut gated).unwrap();
            let [normed, with_norm] = out;
            [normed, with_norm, gated].map(|buffer| ops.values(&buffer, rows))
        }
        let given = [&x[..], &weight, &bias, &norm];
        let (expected, got) = (run(&mut cpu, rows, given), run(&mut cuda, rows, given));
        let names = ["of a norm", "of a norm, with bias", "gated"];
        for ((name, got), expected) in names.iter().zip(&got).zip(&expected) {
            // What is gated was rounded twice on its way.
            let ulps = if *name == "gated" { 10.0 } else { 3.5 };
            assert_close(&format!("{name}, {rows} x {k} by {n}"), got, expected, ulps);
        }
    }
}

/// Every activation, between few rows and many; and norms whose weights are stored less 1 before it.
#[test]
fn gated_blocks_are_the_cpus() {
    let kinds = [
        (Activation::Silu, false),
        (Activation::GeluTanh, true),
        (Activation::ClampedSwish, false),
    ];
    for (activation, plus_one) in kinds {
        let mut config = config(4, 2, 64);
        config.activation = activation;
        config.norms.plus_one = plus_one;
        let Some((mut cpu, mut cuda)) = pair(&config, 16) else { return };
        let mut random = Random(8);
        let (k, width) = (200, 328);
        for rows in [1, 2, 9, 16, 17, 300] {
            let x: Vec<f32> = random.floats(rows * k).iter().map(|x| x * 4.0).collect();
            let (weight, norm) = (random.floats(2 * width * k), random.floats(k));
            fn run<O: Visible>(
                ops: &mut O,
                (rows, plus_one): (usize, bool),
                [x, weight, norm]: [&[f32]; 3],
            ) -> Vec<f32> {
                let (k, width) = (norm.len(), weight.len() / norm.len() / 2);
                let linear = Linear { weight: ops.weights(weight, k), bias: None };
                let norm = Norm { id: NormId(0), weight: ops.norm_weight(norm, plus_one) };
                let mut stream = Stream::new(ops.fill(k, x), ops.poisoned(rows, k));
                let mut scratch = Scratch { gate_up: ops.poisoned(rows, 2 * width) };
                let mut out = ops.poisoned(rows, width);
                ops.norm_gated(rows, &mut stream, &norm, [&linear; 2], &mut scratch, &mut out)
                    .unwrap();
                ops.values(&out, rows)
            }
            let given = [&x[..], &weight, &norm];
            let expected = run(&mut cpu, (rows, plus_one), given);
            let got = run(&mut cuda, (rows, plus_one), given);
            assert_close(&format!("{activation:?}, {rows} rows"), &got, &expected, 10.0);
        }
    }
}

/// With a bias on what is added, with a norm of it, and with both; and the norm that the next block begins with.
#[test]
fn blocks_end_as_the_cpus() {
    for (bias, after, plus_one) in
        [(false, false, false), (true, false, false), (false, true, true), (true, true, false)]
    {
        let mut config = config(4, 2, 64);
        config.attention_bias.output = bias;
        config.norms = NormSpec { plus_one, after_blocks: after };
        let Some((mut cpu, mut cuda)) = pair(&config, 16) else { return };
        let mut random = Random(9);
        let n = config.hidden_size;
        for (rows, k) in
            [(1, 328), (2, 8), (9, 64), (16, 1000), (17, 328), (300, 1000), (CHUNK, 64)]
        {
            let (x, residual) = (random.floats(rows * k), random.floats(rows * n));
            let (weight, biases) = (random.floats(n * k), random.floats(n));
            let (own, next, then) = (random.floats(n), random.floats(n), random.floats(64 * n));
            struct Given<'a>(usize, [bool; 3], [&'a [f32]; 7]);
            fn run<O: Visible>(ops: &mut O, given: &Given<'_>) -> [Vec<f32>; 2] {
                let &Given(rows, [bias, after, plus_one], arrays) = given;
                let [x, weight, biases, residual, own, next, then] = arrays;
                let (n, k) = (biases.len(), weight.len() / biases.len());
                let bias = bias.then(|| ops.weight(biases));
                let linear = Linear { weight: ops.weights(weight, k), bias };
                let norm = |id, weight| Norm { id: NormId(id), weight };
                let own = norm(0, ops.norm_weight(own, plus_one));
                let next = norm(1, ops.norm_weight(next, plus_one));
                let mut stream = Stream::new(ops.fill(n, residual), ops.poisoned(rows, n));
                let norms = Around { after: after.then_some(&own), next: Some(&next) };
                ops.linear_add(rows, &linear, &ops.fill(k, x), norms, &mut stream).unwrap();
                let then = Linear { weight: ops.weights(then, n), bias: None };
                let mut out = ops.poisoned(rows, 64);
                ops.norm_linear(rows, &mut stream, &next, &then, &mut out).unwrap();
                [ops.values(&stream.residual, rows), ops.values(&out, rows)]
            }
            let arrays = [&x[..], &weight, &biases, &residual, &own, &next, &then];
            let given = Given(rows, [bias, after, plus_one], arrays);
            let (expected, got) = (run(&mut cpu, &given), run(&mut cuda, &given));
            let what = format!("{rows} rows of {k}, bias {bias}, after {after}, less 1 {plus_one}");
            assert_close(&format!("{what}: sum"), &got[0], &expected[0], 4.0);
            assert_close(&format!("{what}: next block"), &got[1], &expected[1], 8.0);
        }
    }
}

/// Steps over a few requests: prompts in chunks, decode rows, and both mixed; layers that see all, that have windows,
/// rotations of their own, and sinks.
#[test]
fn attention_and_pages_are_the_cpus() {
    for (heads, kv_heads, head_dim, page_size, window) in [
        (4, 2, 64, 16, 1),
        (5, 1, 128, 1, 40),
        (16, 8, 128, 16, 128),
        (3, 3, 64, 7, 17),
        (4, 1, 256, 64, 300),
        (64, 8, 64, 16, 128),
    ] {
        let mut config = config(heads, kv_heads, head_dim);
        let layer = config.layers[0].clone();
        config.layers = vec![layer; 3];
        config.layers[1].attention = AttentionSpec { window: Some(window), rope: 1 };
        let scaling = RopeScaling::Linear { factor: 8.0 };
        config.ropes.push(RopeConfig { still: 0, theta: 150_000.0, scaling });
        config.norms.plus_one = heads == 5;
        let Some((mut cpu, mut cuda)) = pair(&config, page_size) else { return };
        let specs: Vec<AttentionSpec> =
            config.layers.iter().map(|layer| layer.attention.clone()).collect();
        let mut random = Random(3);
        let pages = 4000 / page_size + 8;
        let mut free: Vec<u32> = (0..pages as u32).collect();
        for at in (1..free.len()).rev() {
            free.swap(at, random.below(at + 1));
        }
        let table =
            |len: usize, free: &mut Vec<u32>| free.split_off(free.len() - len.div_ceil(page_size));
        let lens = [1 + page_size, 3 * page_size + 1, 1600, 90, 2 * page_size];
        let tables: Vec<_> = lens.iter().map(|&len| table(len, &mut free)).collect();
        cpu.reserve_kv(pages).unwrap();
        cuda.reserve_kv(pages).unwrap();
        cuda.commit_kv(pages).unwrap();
        let steps: [Vec<Row>; 4] = [
            vec![row(0, 0, page_size), row(1, 0, 1), row(2, 0, 600)],
            vec![row(2, 600, 600), row(1, 1, 2 * page_size.min(40)), row(0, page_size, 1)],
            vec![row(2, 1200, 399), row(4, 0, page_size - 1 + usize::from(page_size == 1))],
            vec![row(2, 1599, 1), row(3, 0, 89)],
        ];
        let norms = [random.floats(head_dim), random.floats(head_dim)];
        let sinks: Vec<f32> = random.floats(heads).iter().map(|sink| 3.0 * sink).collect();
        let width = (heads + 2 * kv_heads) * head_dim;
        for rows in &steps {
            let batch = batch(&tables, rows, page_size, &mut random);
            let tokens = batch.tokens().len();
            let qkv = random.floats(tokens * width);
            for (layer, spec) in specs.iter().enumerate() {
                let case = Case {
                    batch: &batch,
                    layer,
                    spec,
                    norms: (layer != 2).then_some(&norms),
                    plus_one: config.norms.plus_one,
                    sinks: (layer > 0).then_some(&sinks),
                    qkv: &qkv,
                };
                let out_width = heads * head_dim;
                let expected = attend(&mut cpu, &case, out_width);
                let got = attend(&mut cuda, &case, out_width);
                let what = format!(
                    "{heads}/{kv_heads} heads of {head_dim}, pages of {page_size}, {spec:?}, {rows:?}"
                );
                assert_close(&what, &got, &expected, 8.0);
            }
        }
    }
}

struct Case<'a> {
    batch: &'a Batch,
    layer: usize,
    spec: &'a AttentionSpec,
    norms: Option<&'a [Vec<f32>; 2]>,
    plus_one: bool,
    sinks: Option<&'a Vec<f32>>,
    qkv: &'a [f32],
}

fn attend<O: Visible>(ops: &mut O, case: &Case<'_>, out_width: usize) -> Vec<f32> {
    let (batch, tokens) = (case.batch, case.batch.tokens().len());
    let norms = case.norms.map(|norms| {
        let [query, key] = norms.each_ref().map(|norm| ops.norm_weight(norm, case.plus_one));
        HeadNorms { query, key }
    });
    let mut qkv = ops.fill(case.qkv.len() / tokens, case.qkv);
    let mut out = ops.poisoned(tokens, out_width);
    let sinks = case.sinks.map(|sinks| ops.weight(sinks));
    let attention = LayerAttention { layer: case.layer, spec: case.spec.clone(), norms, sinks };
    let pass = |ops: &mut O| ops.attention(batch, &attention, &mut qkv, &mut out, None);
    ops.step(batch, &mut Closure(pass)).unwrap();
    ops.values(&out, tokens)
}

/// Hidden states that pick a column of the head each: logits are the same bits on both devices, so
/// tokens must be too. Two steps, so that histories grow and tokens are fed back.
#[test]
fn tokens_are_the_cpus() {
    let config = config(4, 2, 64);
    let Some((mut cpu, mut cuda)) = pair(&config, 16) else { return };
    let seed = std::env::var("MINISGL_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    eprintln!("MINISGL_TEST_SEED={seed}");
    let mut random = Random(seed);
    cpu.reserve_kv(SLOTS).unwrap();
    cuda.reserve_kv(SLOTS).unwrap();
    cuda.commit_kv(SLOTS).unwrap();
    let hidden = config.hidden_size;
    let head: Vec<f32> = random.floats(VOCAB * hidden).iter().map(|value| value * 8.0).collect();
    let table = random.floats(VOCAB * hidden);
    let tables: Vec<_> = (0..SLOTS as u32).map(|page| vec![page]).collect();
    let installs: Vec<Install> = (0..SLOTS as u32).map(|slot| install(slot, &mut random)).collect();
    // Some rows are not sampled, and of some a token is given.
    let want = |slot: usize| match slot % 11 {
        5 => Want::Nothing,
        7 => Want::Each { first: 0, next: Some(slot as u32) },
        _ => Want::Last,
    };
    for step in 0..2 {
        let rows: Vec<Row> =
            (0..SLOTS).map(|slot| Row { want: want(slot), ..row(slot as u32, step, 1) }).collect();
        let mut batch = batch(&tables, &rows, 16, &mut random);
        let mut plan = batch.plan().clone();
        if step == 0 {
            plan.installs.clone_from(&installs);
        } else {
            // What was sampled is fed back, where it was.
            for (at, token) in plan.tokens.iter_mut().enumerate() {
                if want(at) == Want::Last {
                    *token = SAMPLED_LAST;
                }
            }
        }
        batch.prepare(Arc::new(plan), 1, 16);
        let mut picks = vec![0.0; SLOTS * hidden];
        (0..SLOTS).for_each(|row| picks[row * hidden + random.below(hidden)] = 1.0);
        let given = Given { batch: &batch, head: &head, table: &table, picks: &picks };
        let (expected, got) = (draw(&mut cpu, &given), draw(&mut cuda, &given));
        assert_eq!(got.embedded, expected.embedded, "step {step}: embeddings are copies");
        assert_close("norm of sampled rows", &got.normed, &expected.normed, 2.5);
        let (expected, got) = (expected.sampled, got.sampled);
        assert_eq!(got.len(), expected.len());
        for (at, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let slot = batch.rows()[batch.logit_rows()[at].row as usize].slot;
            assert_eq!(got.token, expected.token, "step {step}, slot {slot}");
            assert_eq!(got.logprob.is_some(), expected.logprob.is_some());
            let top = |sampled: &Sampled| -> Vec<u32> {
                sampled.top.iter().map(|top| top.token).collect()
            };
            assert_eq!(top(got), top(expected), "step {step}, slot {slot}");
            let logprobs = |sampled: &Sampled| -> Vec<f32> {
                sampled.top.iter().map(|top| top.logprob).chain(sampled.logprob).collect()
            };
            for (got, expected) in logprobs(got).iter().zip(logprobs(expected)) {
                assert!((got - expected).abs() <= 1e-5 * expected.abs().max(1.0));
            }
        }
    }
}

fn install(slot: u32, random: &mut Random) -> Install {
    let mut of = |choices: &[f32]| choices[random.below(choices.len())];
    let sampling = SamplingParams {
        temperature: of(&[0.0, 0.6, 1.0, 1.7]),
        top_k: of(&[0.0, 0.0, 1.0, 20.0]) as u32,
        top_p: of(&[1.0, 1.0, 0.5, 0.9]),
        min_p: of(&[0.0, 0.0, 0.05]),
        repetition_penalty: of(&[1.0, 1.0, 1.3]),
        presence_penalty: of(&[0.0, 0.0, 1.5]),
        frequency_penalty: of(&[0.0, 0.0, 0.7]),
        logprobs: [None, Some(0), Some(5), Some(20)][of(&[0.0, 1.0, 2.0, 3.0]) as usize],
        prompt_logprobs: Some(of(&[0.0, 3.0]) as u32),
        ..SamplingParams::default()
    };
    let biased = random.below(3) == 0;
    let tokens = |count: usize, random: &mut Random| -> Vec<u32> {
        (0..count).map(|_| random.below(VOCAB) as u32).collect()
    };
    let mut bias = if biased { tokens(40, random) } else { Vec::new() };
    bias.sort_unstable();
    bias.dedup();
    let logit_bias = bias.into_iter().map(|token| (token, 2.0)).collect();
    let history = if sampling.needs_history() {
        tokens(50 * (slot as usize % 3), random)
    } else {
        Vec::new()
    };
    Install {
        slot,
        counts: sampling.needs_history().then_some(slot),
        prompt_len: history.len() as u32 / 2,
        history,
        banned: tokens(slot as usize % 4, random),
        banned_below: 8 * (slot % 3),
        sampling: SamplingParams { logit_bias, seed: random.next(), ..sampling },
    }
}

struct Given<'a> {
    batch: &'a Batch,
    head: &'a [f32],
    table: &'a [f32],
    picks: &'a [f32],
}

/// What a step makes of tokens and hidden states.
struct Drawn {
    embedded: Vec<f32>,
    /// Of the embedding of each sampled row's last token.
    normed: Vec<f32>,
    sampled: Vec<Sampled>,
}

/// Embeds, takes the norm of sampled rows, and samples; `picks` are the hidden states.
fn draw<O: Visible>(ops: &mut O, given: &Given<'_>) -> Drawn {
    let (batch, tokens) = (given.batch, given.batch.tokens().len());
    let hidden = given.head.len() / VOCAB;
    let head = ops.weights(given.head, hidden);
    let table = ops.weights(given.table, hidden);
    let norm = Norm { id: NormId(0), weight: ops.weight(&given.table[..hidden]) };
    let mut picks = ops.fill(hidden, given.picks);
    let mut stream = Stream::new(ops.poisoned(tokens, hidden), ops.poisoned(tokens, hidden));
    let mut last = ops.poisoned(tokens, hidden);
    let pass = |ops: &mut O| {
        // Buffers are Send, and need not be Sync.
        let picks = &mut picks;
        ops.embed(batch, &table, 1.0, &mut stream)?;
        ops.norm_wanted(batch, &stream, &norm, &mut last)?;
        ops.sample(batch, &head, picks)
    };
    let pending = ops.step(batch, &mut Closure(pass));
    Drawn {
        embedded: ops.values(&stream.residual, tokens),
        normed: ops.values(&last, batch.logit_rows().len()),
        sampled: pending.unwrap().expect("it waits for nothing").wait().unwrap(),
    }
}
