//! Blocks of experts against the CPU's.

use super::*;
use crate::config::{Activation, ExpertsSpec, Router, SharedExpert};
use crate::ops::{Shared, StackOf, Stacked};

pub(super) const HIDDEN: usize = 208;

/// Rows in which the CPU's choice does not hang on a rounding: the last chosen is this much more likely than the next.
const GAP: f64 = 0.02;

/// Errors together: five roundings lie one after the other. Where all rows are alike, so are their errors, and if one of the few
/// values between the products is most of what they give, a whole row is off by its rounding.
pub(super) const SHARE: f64 = 6e-3;
const SHARE_ALIKE: f64 = 1.2e-2;

/// Everything that a block of experts is made of, in numbers.
pub(super) struct Block {
    pub(super) spec: ExpertsSpec,
    norm: Vec<f32>,
    router: Vec<f32>,
    gate_up: Vec<f32>,
    down: Vec<f32>,
    /// Of the router, of gate and up, of down.
    biases: Option<[Vec<f32>; 3]>,
    /// Gate and up, down, and the gate of what comes of it.
    shared: Option<[Vec<f32>; 3]>,
}

impl Block {
    pub(super) fn new(spec: ExpertsSpec, random: &mut Random) -> Block {
        let ExpertsSpec { count, width, shared, .. } = spec;
        let mut scaled = |len: usize, inputs: usize| -> Vec<f32> {
            let scale = 2.0 / (inputs as f32).sqrt();
            random.floats(len).iter().map(|x| bf16::from_f32(x * scale).to_f32()).collect()
        };
        Block {
            norm: scaled(HIDDEN, 4),
            router: scaled(count * HIDDEN, HIDDEN),
            gate_up: scaled(count * 2 * width * HIDDEN, HIDDEN),
            down: scaled(count * HIDDEN * width, width),
            biases: spec.bias.then(|| {
                [scaled(count, 4), scaled(count * 2 * width, 4), scaled(count * HIDDEN, 4)]
            }),
            shared: shared.map(|shared| {
                let len = shared.width * HIDDEN;
                [scaled(2 * len, HIDDEN), scaled(len, shared.width), scaled(HIDDEN, HIDDEN)]
            }),
            spec,
        }
    }

    fn on<O: Visible>(&self, ops: &O) -> Experts<O> {
        let numbers =
            |values: &[f32]| -> Vec<bf16> { values.iter().copied().map(bf16::from_f32).collect() };
        let [gate_up, down] = [numbers(&self.gate_up), numbers(&self.down)];
        let part_len = self.spec.width * HIDDEN;
        let parts = |values| -> Vec<MatrixPart<'_>> {
            let parts = <[bf16]>::chunks_exact(values, part_len);
            parts.map(|part| MatrixPart::Plain(TensorPart::of(part))).collect()
        };
        self.with(ops, [&parts(&gate_up), &parts(&down)])
    }

    /// The same with other matrices of experts.
    pub(super) fn with<O: Visible>(
        &self,
        ops: &O,
        [gate_up, down]: [&[MatrixPart<'_>]; 2],
    ) -> Experts<O> {
        let ExpertsSpec { count, width, .. } = self.spec;
        let bias = |which: usize| self.biases.as_ref().map(|all| ops.weight(&all[which]));
        let stacked = |of, parts: &[MatrixPart<'_>], rows: usize, inputs: usize, which| {
            let shape = StackShape { of, count, rows, inputs };
            Stacked { weight: ops.stack(parts, shape).unwrap(), bias: bias(which) }
        };
        let linear = |values: &[f32], inputs| Linear::<O> {
            weight: ops.weights(values, inputs),
            bias: None,
        };
        let shared = self.spec.shared.zip(self.shared.as_ref()).map(|(spec, shared)| {
            let [gate_up, down, gate] = shared;
            Shared {
                width: spec.width,
                gate_up: linear(gate_up, HIDDEN),
                down: linear(down, spec.width),
                gate: spec.gated.then(|| linear(gate, HIDDEN)),
            }
        });
        Experts {
            spec: self.spec.clone(),
            width,
            router: Linear { weight: ops.weights(&self.router, HIDDEN), bias: bias(0) },
            gate_up: stacked(StackOf::GateUp, gate_up, 2 * width, HIDDEN, 1),
            down: stacked(StackOf::Down, down, HIDDEN, width, 2),
            shared,
        }
    }

    /// Whether a row's choice is the same whoever rounds: by the gap, or since equals are chosen in their order.
    pub(super) fn is_clear(&self, x: &[f32], eps: f64) -> bool {
        let squares: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum();
        let scale = (squares / HIDDEN as f64 + eps).sqrt().recip();
        let row: Vec<f64> =
            x.iter().zip(&self.norm).map(|(&x, &w)| f64::from(x) * scale * f64::from(w)).collect();
        let bias = |e: usize| self.biases.as_ref().map_or(0.0, |all| f64::from(all[0][e]));
        let mut logits: Vec<f64> = self
            .router
            .chunks_exact(HIDDEN)
            .enumerate()
            .map(|(e, w)| row.iter().zip(w).map(|(x, &w)| x * f64::from(w)).sum::<f64>() + bias(e))
            .collect();
        logits.sort_by(|a, b| b.total_cmp(a));
        let gap = logits[self.spec.chosen - 1] - logits[self.spec.chosen];
        gap == 0.0 || gap > GAP
    }
}

/// `residual` after the block, and after it once more with the norm already there.
fn run<O: Visible>(ops: &mut O, block: &Block, residual: &[f32]) -> [Vec<f32>; 2] {
    let experts = block.on(ops);
    run_with(ops, block, &experts, residual)
}

/// The same with experts that are there.
pub(super) fn run_with<O: Visible>(
    ops: &mut O,
    block: &Block,
    experts: &Experts<O>,
    residual: &[f32],
) -> [Vec<f32>; 2] {
    let rows = residual.len() / HIDDEN;
    let norm = Norm { id: NormId(3), weight: ops.weight(&block.norm) };
    let plain = || Around { after: None, next: None };
    let mut stream = Stream::new(ops.fill(HIDDEN, residual), ops.poisoned(rows, HIDDEN));
    ops.experts_add(rows, &norm, experts, plain(), &mut stream).unwrap();
    let fresh = ops.values(&stream.residual, rows);

    let mut stream = Stream::new(ops.fill(HIDDEN, residual), ops.poisoned(rows, HIDDEN));
    let same: Vec<f32> =
        (0..HIDDEN * HIDDEN).map(|i| f32::from(u8::from(i % (HIDDEN + 1) == 0))).collect();
    let same = Linear { weight: ops.weights(&same, HIDDEN), bias: None };
    let mut out = ops.poisoned(rows, HIDDEN);
    ops.norm_linear(rows, &mut stream, &norm, &same, &mut out).unwrap();
    ops.experts_add(rows, &norm, experts, plain(), &mut stream).unwrap();
    assert!(!stream.has(&norm), "the residual stream has changed");
    [fresh, ops.values(&stream.residual, rows)]
}

pub(super) fn spec(count: usize, chosen: usize, width: usize, router: Router) -> ExpertsSpec {
    ExpertsSpec { count, chosen, width, router, bias: false, shared: None }
}

pub(super) fn model(spec: &ExpertsSpec, activation: Activation) -> ModelConfig {
    let mut config = config(4, 2, 64);
    config.hidden_size = HIDDEN;
    config.activation = activation;
    for layer in &mut config.layers {
        layer.ffn = Ffn::Experts(spec.clone());
    }
    config
}

/// Each architecture's kind, for few rows and many; all rows to the same experts; and equal logits.
#[test]
fn blocks_of_experts_are_the_cpus() {
    let all = Router::Softmax { renormalised: false };
    let renormalised = Router::Softmax { renormalised: true };
    let gated = Some(SharedExpert { width: 56, gated: true });
    let specs = [
        ("Qwen3-MoE", spec(24, 4, 40, renormalised), Activation::Silu),
        ("Qwen2-MoE", ExpertsSpec { shared: gated, ..spec(60, 4, 24, all) }, Activation::Silu),
        (
            "a shared expert without a gate",
            ExpertsSpec {
                shared: Some(SharedExpert { width: 136, gated: false }),
                ..spec(9, 1, 72, all)
            },
            Activation::Silu,
        ),
        ("Mixtral", spec(8, 2, 120, renormalised), Activation::Silu),
        (
            "gpt-oss",
            ExpertsSpec { bias: true, ..spec(32, 4, 64, Router::SoftmaxOfChosen) },
            Activation::ClampedSwish,
        ),
    ];
    for (name, spec, activation) in specs {
        let Some((mut cpu, mut cuda)) = pair(&model(&spec, activation), 16) else { return };
        let mut random = Random(11);
        let block = Block::new(spec, &mut random);
        let ties = Block {
            router: vec![0.0; block.router.len()],
            ..Block::new(block.spec.clone(), &mut random)
        };
        for rows in [1, 3, 31, 64, 65, 200, CHUNK] {
            for (what, block, alike) in
                [("", &block, false), (", all alike", &block, true), (", ties", &ties, false)]
            {
                let residual = match alike {
                    true => random.floats(HIDDEN).repeat(rows),
                    false => random.floats(rows * HIDDEN),
                };
                let eps = f64::from(model(&block.spec, activation).rms_norm_eps);
                let clear: Vec<usize> = (0..rows)
                    .filter(|&row| block.is_clear(&residual[row * HIDDEN..][..HIDDEN], eps))
                    .collect();
                let enough = rows < 31 || alike || clear.len() * 10 >= rows * 6;
                assert!(enough, "{name}{what}: {} of {rows} rows are clear", clear.len());
                if clear.is_empty() {
                    continue;
                }
                let (expected, got) =
                    (run(&mut cpu, block, &residual), run(&mut cuda, block, &residual));
                for (got, expected) in got.iter().zip(&expected) {
                    assert!(got.iter().all(|x| x.is_finite()), "{name}{what}, {rows} rows");
                    let of = |all: &[f32]| -> Vec<f32> {
                        clear
                            .iter()
                            .flat_map(|&row| &all[row * HIDDEN..][..HIDDEN])
                            .copied()
                            .collect()
                    };
                    assert_within(
                        (10.0, if alike { SHARE_ALIKE } else { SHARE }),
                        &format!("{name}{what}, {rows} rows"),
                        &of(got),
                        &of(expected),
                    );
                }
            }
        }
    }
}

#[test]
fn experts_without_kernels_are_refused_by_what_they_lack() {
    let refusal = |change: fn(&mut ModelConfig, &mut ExpertsSpec), tp| {
        let mut spec = spec(8, 2, 64, Router::SoftmaxOfChosen);
        let mut config = model(&spec, Activation::Silu);
        change(&mut config, &mut spec);
        for layer in &mut config.layers {
            layer.ffn = Ffn::Experts(spec.clone());
        }
        let shard = Shard::new(&config, tp, 0).unwrap();
        check(&config, &shard).err().map(|error| error.reason).unwrap_or_default()
    };
    assert_eq!(refusal(|_, _| (), 1), "");
    assert_eq!(refusal(|_, _| (), 2), "");
    assert!(refusal(|_, spec| spec.count = 513, 1).starts_with("there are 513 experts, "));
    assert!(refusal(|_, spec| (spec.count, spec.chosen) = (40, 17), 1).contains("of a token"));
    assert!(refusal(|config, _| config.hidden_size = 200, 1).contains("a multiple of 16"));
    let narrow = refusal(|_, spec| spec.width = 40, 2);
    assert!(narrow.contains("20 wide (40 over tp 2)"), "{narrow}");
    assert!(narrow.contains("another tp") && narrow.contains("--device cpu"), "{narrow}");
    let shared = |_: &mut ModelConfig, spec: &mut ExpertsSpec| {
        spec.shared = Some(SharedExpert { width: 36, gated: true });
    };
    assert!(refusal(shared, 1).contains("the shared expert is 36 wide"));
    let clamped = |config: &mut ModelConfig, _: &mut ExpertsSpec| {
        config.activation = Activation::ClampedSwish;
    };
    assert_eq!(refusal(clamped, 1), "");
    let both = |config: &mut ModelConfig, spec: &mut ExpertsSpec| {
        config.activation = Activation::ClampedSwish;
        spec.shared = Some(SharedExpert { width: 32, gated: true });
    };
    assert_eq!(refusal(both, 1), "", "a dense block has it too");
    let after = |config: &mut ModelConfig, _: &mut ExpertsSpec| config.norms.after_blocks = true;
    assert!(refusal(after, 1).contains("norms after blocks"));
    // Codes, of which 32 columns share a scale: 90 blocks over 4 ranks, or 2.
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/tiny/gpt_oss_mxfp4");
    let coded = |width: usize, tp: usize| {
        let mut config = ModelConfig::from_dir(std::path::Path::new(dir)).unwrap();
        (config.hidden_size, config.head_dim) = (HIDDEN, 64);
        for layer in &mut config.layers {
            let Ffn::Experts(spec) = &mut layer.ffn else { panic!("all have experts") };
            spec.width = width;
        }
        let shard = Shard { tp, ..Shard::whole(&config) };
        check(&config, &shard).err().map(|error| error.reason).unwrap_or_default()
    };
    assert_eq!([coded(2880, 4), coded(64, 2)], ["", ""]);
    assert!(coded(64, 4).contains("of which 32 columns share a scale"), "{}", coded(64, 4));
    // Layers that are not alike.
    let mut config = model(&spec(8, 2, 64, Router::SoftmaxOfChosen), Activation::Silu);
    config.layers[1].ffn = Ffn::Experts(spec(8, 2, 72, Router::SoftmaxOfChosen));
    let shard = Shard::new(&config, 1, 0).unwrap();
    assert!(check(&config, &shard).unwrap_err().reason.contains("differ between layers"));
}
