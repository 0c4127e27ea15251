//! A mixture of experts: packing, routing, and both ways of multiplying, against plain loops.

pub mod fp8;
pub mod mxfp4;

use cudarc::driver::CudaSlice;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use half::bf16;
use minisgl_kernels::LaunchError;
use minisgl_kernels::fp8::{BLOCK, ScaleForm};
use minisgl_kernels::ops::*;

use crate::experts_layer::{Layer, Sum, floats, shape};
use crate::support::{Gpu, ROUNDING_SHARE, assert_close, assert_same, assert_together};

/// How rows are routed.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    pub sigmoid: bool,
    pub renormalise: bool,
    pub normed: bool,
    pub padding: bool,
    /// From logits alone.
    pub from_logits: bool,
}

pub const PLAIN: Way =
    Way { sigmoid: false, renormalise: true, normed: false, padding: false, from_logits: false };

const SCALE: f32 = 1.5;
const EPS: f32 = 1e-6;

/// What a step's routing reads and writes.
struct Step {
    rows: usize,
    batch: usize,
    way: Way,
    /// From a row of logits to the next.
    stride: usize,
    /// Results are added to what is there.
    adds: bool,
    x: (Vec<bf16>, CudaSlice<bf16>),
    norm: (Vec<bf16>, CudaSlice<bf16>),
    normed: CudaSlice<bf16>,
    correction: (Vec<f32>, CudaSlice<f32>),
    there: (Vec<i32>, CudaSlice<i32>),
    logits: CudaSlice<f32>,
    ids: CudaSlice<i32>,
    weights: CudaSlice<f32>,
    plan: CudaSlice<i32>,
    workspace: CudaSlice<u32>,
    act: CudaSlice<bf16>,
    y: CudaSlice<bf16>,
    counts: CudaSlice<u32>,
}

impl Step {
    fn new(gpu: &mut Gpu, layer: &Layer, rows: usize, batch: usize, way: Way) -> Step {
        let shape = layer.shape;
        let ExpertsShape { experts, top, hidden, .. } = shape;
        let there: Vec<i32> = (0..rows)
            .map(|row| if way.padding && gpu.random.below(3) == 0 { -1 } else { row as i32 })
            .collect();
        let x = gpu.normal(rows * hidden, 1.0);
        let norm = gpu.normal(hidden, 1.0);
        let correction = floats(gpu, experts, 0.2);
        let (logits, _) = floats(gpu, rows * experts, 1.0);
        let workspace = Router::workspace_len(shape, rows);
        Step {
            rows,
            batch,
            way,
            stride: experts,
            adds: gpu.random.below(2) == 0,
            x,
            norm,
            normed: gpu.poisoned(rows * hidden),
            correction,
            there: (there.clone(), gpu.upload(&there)),
            logits: gpu.upload(&logits),
            ids: gpu.upload(&vec![-9; rows * top]),
            weights: gpu.upload(&vec![f32::NAN; rows * top]),
            plan: gpu.upload(&vec![-7; Routed::plan_len(shape, rows, batch)]),
            workspace: gpu.upload(&vec![0; workspace]),
            act: gpu.poisoned(ExpertsMany::act_len(shape, rows)),
            y: gpu.poisoned(ExpertsMany::y_len(shape, rows)),
            counts: gpu.upload(&[0; ExpertsFew::WORKSPACE_LEN]),
        }
    }

    fn route(&mut self, gpu: &Gpu, layer: &Layer) -> Result<(), LaunchError> {
        let way = self.way;
        Router {
            input: match way.from_logits {
                true => RouterInput::Logits { stride: self.stride },
                false => RouterInput::Rows {
                    x: (&self.x.1).into(),
                    norm: way.normed.then(|| RouterNorm {
                        weight: (&self.norm.1).into(),
                        eps: EPS,
                        normed: (&mut self.normed).into(),
                    }),
                    weight: (&layer.router.1).into(),
                },
            },
            bias: layer.biases.as_ref().map(|biases| (&biases.router.1).into()),
            logits: (&mut self.logits).into(),
            choice: Choice {
                score: match way.sigmoid {
                    true => Score::Sigmoid { correction: Some((&self.correction.1).into()) },
                    false => Score::Softmax,
                },
                renormalise: way.renormalise,
                scale: SCALE,
                there: way.padding.then(|| (&self.there.1).into()),
            },
            ids: (&mut self.ids).into(),
            weights: (&mut self.weights).into(),
            plan: (&mut self.plan).into(),
            workspace: (&mut self.workspace).into(),
            batch: self.batch,
            shape: layer.shape,
            rows: self.rows,
        }
        .launch(&gpu.device)
    }

    /// Puts logits that belong to no expert behind those of each row, larger than all.
    fn widen(&mut self, gpu: &Gpu, experts: usize, stride: usize) {
        let logits = gpu.download(&self.logits);
        let mut wide = vec![1e9; self.rows * stride];
        for (wide, row) in wide.chunks_exact_mut(stride).zip(logits.chunks_exact(experts)) {
            wide[..experts].copy_from_slice(row);
        }
        (self.logits, self.stride) = (gpu.upload(&wide), stride);
    }

    /// Rows as the experts read them.
    fn input(&self, gpu: &Gpu) -> Vec<bf16> {
        if self.way.normed { gpu.download(&self.normed) } else { self.x.0.clone() }
    }

    fn few(
        &mut self,
        gpu: &Gpu,
        layer: &Layer,
        out: &mut CudaSlice<bf16>,
    ) -> Result<(), LaunchError> {
        ExpertsFew {
            x: if self.way.normed { (&self.normed).into() } else { (&self.x.1).into() },
            weights: layer.weights(),
            routed: Routed {
                ids: (&self.ids).into(),
                weights: (&self.weights).into(),
                plan: (&self.plan).into(),
                batch: self.batch,
            },
            gate: layer.gate,
            act: (&mut self.act).into(),
            out: out.into(),
            adds: self.adds,
            workspace: (&mut self.counts).into(),
            shape: layer.shape,
            rows: self.rows,
        }
        .launch(&gpu.device)
    }

    fn many(
        &mut self,
        gpu: &Gpu,
        layer: &Layer,
        out: &mut CudaSlice<bf16>,
    ) -> Result<(), LaunchError> {
        ExpertsMany {
            x: if self.way.normed { (&self.normed).into() } else { (&self.x.1).into() },
            weights: layer.weights(),
            routed: Routed {
                ids: (&self.ids).into(),
                weights: (&self.weights).into(),
                plan: (&self.plan).into(),
                batch: self.batch,
            },
            gate: layer.gate,
            act: (&mut self.act).into(),
            y: (&mut self.y).into(),
            out: out.into(),
            adds: self.adds,
            shape: layer.shape,
            rows: self.rows,
        }
        .launch(&gpu.device)
    }

    /// Logits against a plain product, the choice against a sort of the GPU's own logits.
    fn check_route(&self, gpu: &Gpu, layer: &Layer, what: &str) -> (Vec<i32>, Vec<f32>) {
        let ExpertsShape { experts, top, hidden, .. } = layer.shape;
        let mut logits = gpu.download(&self.logits);
        let x = self.input(gpu);
        if self.way.normed {
            check_norm(&self.x.0, &self.norm.0, &x, what);
        }
        let bias =
            |e: usize| layer.biases.as_ref().map_or(0.0, |biases| biases.router.0[e].to_f32());
        if self.way.from_logits {
            let rows = logits.chunks_exact_mut(self.stride);
            rows.for_each(|row| (0..experts).for_each(|e| row[e] += bias(e)));
        } else {
            for (i, logit) in logits.iter().enumerate() {
                let (row, e) = (&x[i / experts * hidden..][..hidden], i % experts);
                let weight = &layer.router.0[e * hidden..][..hidden];
                let product =
                    |(a, b): (&bf16, &bf16)| f64::from(a.to_f32()) * f64::from(b.to_f32());
                let sum: f64 = row.iter().zip(weight).map(product).sum();
                let difference = (f64::from(*logit) - sum - f64::from(bias(e))).abs();
                assert!(difference < 1e-4, "{what}: logit {i} is {logit}, expected {sum}");
            }
        }
        let (ids, weights) = (gpu.download(&self.ids), gpu.download(&self.weights));
        for row in 0..self.rows {
            let at = row * top..(row + 1) * top;
            let (ids, weights) = (&ids[at.clone()], &weights[at]);
            if self.way.padding && self.there.0[row] < 0 {
                assert!(ids.iter().all(|&id| id == -1), "{what}: padding row {row} chose {ids:?}");
                assert!(weights.iter().all(|&weight| weight == 0.0), "{what}: {weights:?}");
                continue;
            }
            let logits = &logits[row * self.stride..][..experts];
            self.check_choice(logits, ids, weights, &format!("{what}, row {row}"));
        }
        self.check_plan(gpu, layer.shape, &ids, what);
        (ids, weights)
    }

    /// Every pair is in one batch of its expert, where the plan says that it is.
    fn check_plan(&self, gpu: &Gpu, shape: ExpertsShape, ids: &[i32], what: &str) {
        let plan: Vec<usize> =
            gpu.download(&self.plan).iter().map(|&word| word as isize as usize).collect();
        let batches_max = (plan.len() - 4 - 2 * ids.len()) / 4;
        let (batches, pairs) = plan[4..].split_at(4 * batches_max);
        let (pairs, places) = pairs.split_at(ids.len());
        let mut planned = 0;
        for batch in batches.chunks_exact(4).take(plan[0]) {
            let (expert, first, count) = (batch[0], batch[1], batch[2]);
            assert!(
                expert < shape.experts && (1..=self.batch).contains(&count),
                "{what}: {batch:?}"
            );
            for (place, &pair) in pairs.iter().enumerate().skip(first).take(count) {
                assert_eq!(ids[pair] as usize, expert, "{what}: pair {pair} at {place}");
                assert_eq!(places[pair], place, "{what}: pair {pair}");
            }
            planned += count;
        }
        let real = ids.iter().filter(|&&id| id >= 0).count();
        assert_eq!((planned, plan[1]), (real, real), "{what}: pairs in {} batches", plan[0]);
    }

    fn check_choice(&self, logits: &[f32], ids: &[i32], weights: &[f32], what: &str) {
        let clean = |z: f32| if z.is_nan() { f32::NEG_INFINITY } else { z.min(f32::MAX) + 0.0 };
        let logits: Vec<f64> = logits.iter().map(|&z| f64::from(clean(z))).collect();
        let sigmoid = |z: f64| 1.0 / (1.0 + (-z).exp());
        let score = |e: usize| match self.way.sigmoid {
            true => sigmoid(logits[e]) + f64::from(self.correction.0[e]),
            false => logits[e],
        };
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| score(b).total_cmp(&score(a)).then(a.cmp(&b)));
        for (choice, &id) in ids.iter().enumerate() {
            let (got, best) = (score(id as usize), score(order[choice]));
            // A sigmoid in f32 may order neighbours the other way round; nothing else may.
            let close = self.way.sigmoid && (got - best).abs() < 1e-6;
            assert!(id as usize == order[choice] || close, "{what}: {ids:?}, expected {order:?}");
        }
        let highest = logits[order[0]];
        let weigh = |e: usize| match (self.way.sigmoid, logits[e] == highest) {
            (true, _) => sigmoid(logits[e]),
            (false, true) => 1.0,
            (false, false) => (logits[e] - highest).exp(),
        };
        let sum: f64 = match (self.way.renormalise, self.way.sigmoid) {
            (true, _) => ids.iter().map(|&id| weigh(id as usize)).sum(),
            (false, true) => 1.0,
            (false, false) => (0..logits.len()).map(weigh).sum(),
        };
        for (&id, &weight) in ids.iter().zip(weights) {
            let expected = weigh(id as usize) / sum * f64::from(SCALE);
            assert!((f64::from(weight) - expected).abs() < 2e-5, "{what}: {weight}, {expected}");
        }
    }
}

fn check_norm(x: &[bf16], weight: &[bf16], normed: &[bf16], what: &str) {
    let hidden = weight.len();
    let mut expected = Vec::with_capacity(x.len());
    for row in x.chunks_exact(hidden) {
        let squares: f64 = row.iter().map(|x| x.to_f64().powi(2)).sum();
        let scale = (squares / hidden as f64 + f64::from(EPS)).sqrt().recip();
        expected.extend(row.iter().zip(weight).map(|(x, w)| x.to_f64() * scale * w.to_f64()));
    }
    assert_close(what, normed, &expected, 1e-5);
}

/// Experts, top, hidden.
const ROUTES: &[(usize, usize, usize)] =
    &[(8, 2, 64), (60, 4, 520), (128, 8, 2048), (200, 6, 2880), (256, 8, 7168), (512, 16, 1024)];

pub fn router(gpu: &mut Gpu) {
    for &(experts, top, hidden) in &ROUTES[..if gpu.small { 2 } else { ROUTES.len() }] {
        let hidden = hidden / 16 * 16;
        for by_turns in [false, true] {
            // Experts of one column: only the router matters.
            let layer = Layer::new(gpu, shape(experts, top, hidden, 8), by_turns);
            for rows in [1, 2, 8, 9, 16, 33, 64, 65, 300] {
                let way = Way {
                    sigmoid: gpu.random.below(3) == 0,
                    renormalise: gpu.random.below(2) == 0,
                    normed: gpu.random.below(2) == 0 && rows <= 64,
                    padding: gpu.random.below(2) == 0,
                    from_logits: rows > 64,
                };
                let mut step = Step::new(gpu, &layer, rows, 8, way);
                if way.from_logits && by_turns {
                    step.widen(gpu, experts, experts.next_multiple_of(8) + 8);
                }
                let what = format!("{:?} {rows} {way:?}", layer.shape);
                for _ in 0..2 {
                    step.route(gpu, &layer).unwrap();
                    step.check_route(gpu, &layer, &what);
                }
            }
        }
    }
}

/// Equal logits, and such as no product should have.
pub fn router_special_values(gpu: &mut Gpu) {
    let layer = Layer::new(gpu, shape(100, 7, 16, 8), false);
    let nan = f32::NAN;
    let few = [0.0, 1.0, 2.0];
    let strange = [nan, f32::INFINITY, f32::NEG_INFINITY, -0.0, 0.0, f32::MAX, f32::MIN];
    let alike = [[0.0; 3].as_slice(), &[nan], &few, &strange, &[f32::NEG_INFINITY], &[-1.5, nan]];
    for values in alike {
        let way = Way { from_logits: true, ..PLAIN };
        let mut step = Step::new(gpu, &layer, 70, 8, way);
        let logits: Vec<f32> = (0..70 * 100).map(|_| gpu.random.of(values)).collect();
        step.logits = gpu.upload(&logits);
        step.route(gpu, &layer).unwrap();
        step.check_route(gpu, &layer, &format!("logits of {values:?}"));
    }
}

/// `run` is one way of multiplying.
fn check(
    gpu: &mut Gpu,
    layer: &Layer,
    mut step: Step,
    run: impl Fn(&mut Step, &Gpu, &Layer, &mut CudaSlice<bf16>) -> Result<(), LaunchError>,
    name: &str,
) {
    let what = format!("{name} {:?} {} rows, batch {}", layer.shape, step.rows, step.batch);
    step.route(gpu, layer).unwrap();
    let (ids, weights) = step.check_route(gpu, layer, &what);
    let len = step.rows * layer.shape.hidden;
    let residual = if step.adds { gpu.normal(len, 1.0).0 } else { vec![bf16::ZERO; len] };
    let expected = layer.expected(&step.input(gpu), &ids, &weights, &residual);
    let rounds = name.starts_with("many");
    let mut first = None;
    for _ in 0..3 {
        let mut out = if step.adds { gpu.upload(&residual) } else { gpu.poisoned(len) };
        run(&mut step, gpu, layer, &mut out).unwrap();
        let out = gpu.download(&out);
        assert_sums(&what, &out, &expected, rounds, layer.rounds);
        for row in 0..step.rows {
            if step.way.padding && step.there.0[row] < 0 {
                let at = row * layer.shape.hidden..(row + 1) * layer.shape.hidden;
                assert_same(&format!("{what}, padding"), &out[at.clone()], &residual[at]);
            }
        }
        assert_same(&format!("{what}, again"), &out, first.get_or_insert(out.clone()));
    }
}

/// Each element within the rounding of itself, of its terms where those are rounded too, and of two activations that were
/// rounded to the other side of a tie. All errors together are a share of the norm. Where activations are made e4m3, a block whose
/// largest was rounded to the other side has another scale, and so other codes, in all columns of a row: 5.8e-3 of the norm were
/// seen with one seed.
fn assert_sums(
    what: &str,
    out: &[bf16],
    expected: &[Sum],
    terms_are_rounded: bool,
    codes_are_rounded: bool,
) {
    let limit = |sum: &Sum| {
        0.004 + 2.0 * sum.step + if terms_are_rounded { sum.terms / 256.0 } else { 0.0 }
    };
    for (i, (out, sum)) in out.iter().zip(expected).enumerate() {
        let (difference, limit) =
            ((out.to_f64() - sum.value).abs(), limit(sum) + sum.value.abs() * 0.0046);
        let value = sum.value;
        assert!(
            difference <= limit,
            "{what}: element {i} is {out}, expected {value} within {limit}"
        );
    }
    // All were written, and the errors together are no larger than roundings are.
    let values: Vec<f64> = expected.iter().map(|sum| sum.value).collect();
    let absolute = expected.iter().map(limit).fold(0.0, f64::max);
    let share = if codes_are_rounded { 1e-2 } else { ROUNDING_SHARE };
    assert_together(what, out, &values, share, absolute);
}

/// Experts, top, hidden, width: cut steps, an odd number of slabs, several stages, more slabs than blocks.
const SHAPES: &[(usize, usize, usize, usize)] =
    &[(8, 2, 64, 16), (16, 4, 528, 264), (40, 8, 272, 72), (4, 2, 2880, 1096), (24, 3, 2304, 8)];

pub fn few(gpu: &mut Gpu) {
    for &(experts, top, hidden, width) in &SHAPES[..if gpu.small { 2 } else { SHAPES.len() }] {
        for by_turns in [false, true] {
            let layer = Layer::new(gpu, shape(experts, top, hidden, width), by_turns);
            let rows: &[usize] = if hidden > 1000 { &[1, 3, 17] } else { &[1, 2, 8, 9, 17, 64] };
            for &rows in rows {
                let normed = gpu.random.below(2) == 0;
                let way = Way { normed, padding: gpu.random.below(2) == 0, ..PLAIN };
                let step = Step::new(gpu, &layer, rows, ExpertsFew::BATCH, way);
                check(gpu, &layer, step, Step::few, "few");
            }
        }
    }
    // All rows to the same experts: several batches of each.
    let layer = Layer::new(gpu, shape(16, 4, 528, 264), false);
    let way = Way { from_logits: true, ..PLAIN };
    let mut step = Step::new(gpu, &layer, 61, ExpertsFew::BATCH, way);
    let logits: Vec<f32> = (0..61 * 16).map(|i| (i % 16) as f32 * 0.1).collect();
    step.logits = gpu.upload(&logits);
    check(gpu, &layer, step, Step::few, "few, alike");
}

/// A row alone has the bits that it has among others.
pub fn few_alone(gpu: &mut Gpu) {
    let layer = Layer::new(gpu, shape(16, 4, 528, 264), false);
    let ExpertsShape { experts, hidden, .. } = layer.shape;
    let way = Way { from_logits: true, ..PLAIN };
    let mut all = Step::new(gpu, &layer, 13, ExpertsFew::BATCH, way);
    all.route(gpu, &layer).unwrap();
    let logits = gpu.download(&all.logits);
    all.adds = false;
    let mut out = gpu.poisoned(13 * hidden);
    all.few(gpu, &layer, &mut out).unwrap();
    let out = gpu.download(&out);
    for row in 0..13 {
        let mut one = Step::new(gpu, &layer, 1, ExpertsFew::BATCH, way);
        one.logits = gpu.upload(&logits[row * experts..(row + 1) * experts]);
        let x = &all.x.0[row * hidden..(row + 1) * hidden];
        one.x = (x.to_vec(), gpu.upload(x));
        one.route(gpu, &layer).unwrap();
        let mut alone = gpu.upload(&vec![bf16::ZERO; hidden]);
        one.few(gpu, &layer, &mut alone).unwrap();
        let among = &out[row * hidden..(row + 1) * hidden];
        assert_same(&format!("row {row}"), &gpu.download(&alone), among);
    }
}

pub fn many(gpu: &mut Gpu) {
    if !ExpertsMany::takes(&gpu.device) {
        println!("experts_many: not on this GPU");
        return;
    }
    let shapes = &SHAPES[..if gpu.small { 1 } else { SHAPES.len() }];
    for &(experts, top, hidden, width) in shapes {
        for by_turns in [false, true] {
            let layer = Layer::new(gpu, shape(experts, top, hidden, width), by_turns);
            let rows: &[usize] = if hidden > 1000 { &[5, 70] } else { &[1, 31, 130, 700] };
            for &rows in rows {
                let batch = gpu.random.of(&[32, 64, 128, 256]);
                let padding = gpu.random.below(2) == 0;
                let way = Way { padding, from_logits: true, ..PLAIN };
                let step = Step::new(gpu, &layer, rows, batch, way);
                check(gpu, &layer, step, Step::many, "many");
            }
        }
    }
}

/// The block that all rows share.
pub fn shared(gpu: &mut Gpu) {
    for hidden in [8, 16, 528, 2048, 2880, 7168] {
        for rows in [1, 3, 64, 300] {
            for gated in [false, true] {
                let (x, x_gpu) = gpu.normal(rows * hidden, 1.0);
                let (gate, gate_gpu) = gpu.normal(hidden, 3.0 * (hidden as f32).powf(-0.5));
                let (y, y_gpu) = gpu.normal(rows * hidden, 2.0);
                let (residual, mut out) = gpu.normal(rows * hidden, 1.0);
                AddShared {
                    x: (&x_gpu).into(),
                    gate: gated.then(|| (&gate_gpu).into()),
                    y: (&y_gpu).into(),
                    out: (&mut out).into(),
                    rows,
                    hidden,
                }
                .launch(&gpu.device)
                .unwrap();
                let mut expected = Vec::with_capacity(rows * hidden);
                for row in 0..rows {
                    let at = row * hidden..(row + 1) * hidden;
                    let products = x[at.clone()].iter().zip(&gate);
                    let logit: f64 = products.map(|(x, w)| x.to_f64() * w.to_f64()).sum();
                    let factor = if gated { 1.0 / (1.0 + (-logit).exp()) } else { 1.0 };
                    let sums = residual[at.clone()].iter().zip(&y[at]);
                    expected.extend(sums.map(|(r, y)| r.to_f64() + factor * y.to_f64()));
                }
                let what = format!("{rows} rows of {hidden}, gated: {gated}");
                assert_close(&what, &gpu.download(&out), &expected, 1e-4);
            }
        }
    }
}

/// A graph takes whatever rows come, and counts are ready for the next launch.
pub fn graph(gpu: &mut Gpu) {
    let layer = Layer::new(gpu, shape(16, 4, 528, 264), false);
    let hidden = layer.shape.hidden;
    for rows in [1, 20] {
        let way = Way { normed: true, ..PLAIN };
        let mut step = Step::new(gpu, &layer, rows, ExpertsFew::BATCH, way);
        let mut out = gpu.upload(&vec![bf16::ZERO; rows * hidden]);
        let stream = gpu.device.stream().clone();
        gpu.device.synchronize().unwrap();
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(mode).unwrap();
        for _ in 0..3 {
            step.route(gpu, &layer).unwrap();
            step.few(gpu, &layer, &mut out).unwrap();
        }
        let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY;
        let graph = stream.end_capture(flags).unwrap().unwrap();
        for _ in 0..3 {
            let (x, _) = gpu.normal(rows * hidden, 1.0);
            stream.memcpy_htod(&x, &mut step.x.1).unwrap();
            step.x.0 = x;
            let zeros = vec![bf16::ZERO; rows * hidden];
            stream.memcpy_htod(&zeros, &mut out).unwrap();
            graph.launch().unwrap();
            let replayed = gpu.download(&out);
            stream.memcpy_htod(&zeros, &mut out).unwrap();
            for _ in 0..3 {
                step.route(gpu, &layer).unwrap();
                step.few(gpu, &layer, &mut out).unwrap();
            }
            let direct = gpu.download(&out);
            assert_same(&format!("{rows} rows"), &replayed, &direct);
            assert!(direct.iter().any(|value| *value != bf16::ZERO));
        }
    }
}

pub fn refusals(gpu: &mut Gpu) {
    let refused = |result: Result<(), LaunchError>, why: &str| {
        let said = result.expect_err(why).to_string();
        assert!(said.contains(why), "{said:?} does not say {why:?}");
    };
    let layer = Layer::new(gpu, shape(16, 4, 528, 264), false);
    let mut out = gpu.poisoned(65 * 528);
    let mut step = Step::new(gpu, &layer, 65, 8, PLAIN);
    refused(step.route(gpu, &layer), "rows is 65, the limit is 64");
    refused(step.few(gpu, &layer, &mut out), "rows is 65, the limit is 64");
    step.batch = 100;
    refused(step.many(gpu, &layer, &mut out), "batch is 100");
    let mut step = Step::new(gpu, &layer, 8, 32, PLAIN);
    let mut out = gpu.poisoned(8 * 528);
    refused(step.few(gpu, &layer, &mut out), "batch is 32, it must be 8");
    step.batch = 8;
    step.plan = gpu.upload(&[0; 16]);
    refused(step.route(gpu, &layer), "plan has 16 elements");
    step.act = gpu.poisoned(8);
    step.plan = gpu.upload(&vec![0; Routed::plan_len(layer.shape, 8, 8)]);
    refused(step.few(gpu, &layer, &mut out), "act has 8 elements");
    let mut wide = layer;
    wide.shape = shape(16, 17, 528, 264);
    refused(step.route(gpu, &wide), "17 of 16 experts");
    gpu.device.synchronize().unwrap();
}
