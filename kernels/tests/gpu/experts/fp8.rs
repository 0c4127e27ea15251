//! Experts in e4m3: packing byte by byte, and both ways of multiplying against plain loops over what codes and scales stand for.

use super::*;
use crate::experts_layer::Biases;
use crate::fp8::widened;

/// A layer in e4m3. `numbers` has what codes and scales stand for, which bf16 has exactly: a scale has four bits.
struct Fp8 {
    numbers: Layer,
    gate_up: Matrix,
    down: Matrix,
}

/// One matrix of all experts as the kernels take it.
struct Matrix {
    codes: CudaSlice<u8>,
    scales: CudaSlice<f32>,
    form: ScaleForm,
}

impl Matrix {
    fn view(&self) -> ExpertMatrixFp8<'_> {
        let form = self.form;
        ExpertMatrixFp8 { codes: (&self.codes).into(), scales: (&self.scales).into(), form }
    }
}

/// One matrix of one expert as files have it: the scale of eight rows and 128 columns, or of a row.
struct Coded {
    columns: usize,
    codes: Vec<u8>,
    scales: Vec<f32>,
    form: ScaleForm,
}

impl Coded {
    /// Numbers of about `size`.
    fn new(gpu: &mut Gpu, rows: usize, columns: usize, form: ScaleForm, size: f32) -> Coded {
        let len = match form {
            ScaleForm::Block => rows.div_ceil(8) * columns.div_ceil(BLOCK),
            ScaleForm::Row => rows,
        };
        // Codes are about 60 on average; in every third block of columns small ones, subnormals among them, which shall count too.
        let exponent = (size / 64.0).log2().round();
        let blocks = columns.div_ceil(BLOCK);
        let mut scale = |at: usize| {
            let (bits, shift) = (8 + gpu.random.below(8), gpu.random.below(3) as f32 - 1.0);
            let up = if form == ScaleForm::Block && at % blocks % 3 == 1 { 11.0 } else { 0.0 };
            bits as f32 / 8.0 * (exponent + shift + up).exp2()
        };
        let scales = (0..len).map(&mut scale).collect();
        let codes = crate::fp8::bytes(gpu, rows, columns);
        Coded { columns, codes, scales, form }
    }

    fn scale(&self, row: usize, column: usize) -> f32 {
        match self.form {
            ScaleForm::Block => {
                self.scales[row / 8 * self.columns.div_ceil(BLOCK) + column / BLOCK]
            }
            ScaleForm::Row => self.scales[row],
        }
    }

    fn values(&self) -> Vec<bf16> {
        let value = |(at, &code): (usize, &u8)| {
            let exact = widened(code) * f64::from(self.scale(at / self.columns, at % self.columns));
            let value = bf16::from_f64(exact);
            assert_eq!(value.to_f64(), exact, "bf16 has it");
            value
        };
        self.codes.iter().enumerate().map(value).collect()
    }

    /// The scale of each row and step of slabs whose rows `row_of` knows.
    fn laid_out(
        form: ScaleForm,
        rows: usize,
        columns: usize,
        of: impl Fn(usize, usize) -> f32,
    ) -> Vec<f32> {
        let steps = columns.div_ceil(BLOCK);
        match form {
            ScaleForm::Row => (0..rows).map(|row| of(row, 0)).collect(),
            ScaleForm::Block => {
                let mut all = vec![f32::NAN; expert_scales_len(form, rows, columns)];
                let slabs = all.chunks_exact_mut(2 * steps.next_multiple_of(2));
                for (slab, all) in slabs.enumerate() {
                    for (at, scale) in all.iter_mut().take(2 * steps).enumerate() {
                        *scale = of(slab * 16 + at % 2 * 8, at / 2 * BLOCK);
                    }
                }
                all
            }
        }
    }
}

fn pack(
    gpu: &Gpu,
    (from, columns): (&[u8], usize),
    rows_are: ExpertRows,
    to: &mut CudaSlice<u8>,
    at: std::ops::Range<usize>,
) -> Result<(), LaunchError> {
    PackExpertFp8 {
        from: (&gpu.upload(from)).into(),
        to: (&mut to.slice_mut(at)).into(),
        rows_are,
        rows: from.len() / columns,
        columns,
    }
    .launch(&gpu.device)
}

impl Fp8 {
    /// With biases and gate of gpt-oss, or without.
    fn new(gpu: &mut Gpu, shape: ExpertsShape, forms: [ScaleForm; 2], biased: bool) -> Fp8 {
        let ExpertsShape { experts, hidden, width, .. } = shape;
        let lens = [expert_slabs_fp8_len(2 * width, hidden), expert_slabs_fp8_len(hidden, width)];
        let mut codes = lens.map(|len| gpu.upload(&vec![0x55_u8; experts * len]));
        let mut scales = [Vec::new(), Vec::new()];
        let (mut gates, mut ups, mut downs) = (Vec::new(), Vec::new(), Vec::new());
        for expert in 0..experts {
            let of = |which: usize| expert * lens[which]..(expert + 1) * lens[which];
            let size = (hidden as f32).powf(-0.5);
            let gate = Coded::new(gpu, width, hidden, forms[0], size);
            let up = Coded::new(gpu, width, hidden, forms[0], size);
            let down = Coded::new(gpu, hidden, width, forms[1], (width as f32).powf(-0.5));
            pack(gpu, (&gate.codes, hidden), ExpertRows::Gate, &mut codes[0], of(0)).unwrap();
            pack(gpu, (&up.codes, hidden), ExpertRows::Up, &mut codes[0], of(0)).unwrap();
            pack(gpu, (&down.codes, width), ExpertRows::Whole, &mut codes[1], of(1)).unwrap();
            scales[0].extend(Coded::laid_out(forms[0], 2 * width, hidden, |row, column| {
                let half = if row % 16 < 8 { &gate } else { &up };
                half.scale(row / 16 * 8 + row % 8, column)
            }));
            let of_down = |row, column| down.scale(row, column);
            scales[1].extend(Coded::laid_out(forms[1], hidden, width, of_down));
            gates.extend(gate.values());
            ups.extend(up.values());
            downs.extend(down.values());
        }
        let biases = biased.then(|| Biases {
            router: gpu.normal(experts, 0.5),
            gate_up: gpu.normal(experts * 2 * width, 3.0),
            down: gpu.normal(experts * hidden, 1.0),
        });
        let router = gpu.normal(experts * hidden, (hidden as f32).powf(-0.5));
        let numbers = Layer {
            shape,
            gate: if biased { Gate::Clamped } else { Gate::Silu },
            router,
            gates,
            ups,
            downs,
            gate_up: gpu.poisoned(1),
            down: gpu.poisoned(1),
            biases,
            rounds: false,
        };
        let mut matrices = codes
            .into_iter()
            .zip(scales)
            .zip(forms)
            .map(|((codes, scales), form)| Matrix { codes, scales: gpu.upload(&scales), form });
        let (gate_up, down) = (matrices.next().unwrap(), matrices.next().unwrap());
        drop(matrices);
        Fp8 { numbers, gate_up, down }
    }

    fn weights(&self) -> ExpertWeightsFp8<'_> {
        let plain = self.numbers.weights();
        ExpertWeightsFp8 {
            gate_up: self.gate_up.view(),
            down: self.down.view(),
            gate_up_bias: plain.gate_up_bias,
            down_bias: plain.down_bias,
        }
    }

    fn step(&self, gpu: &mut Gpu, rows: usize, batch: usize, way: Way) -> Step {
        let mut step = Step::new(gpu, &self.numbers, rows, batch, way);
        let shape = self.numbers.shape;
        step.act = gpu.poisoned(ExpertsManyFp8::act_len(shape, rows));
        step.y = gpu.poisoned(ExpertsManyFp8::y_len(shape, rows));
        step
    }

    fn few(
        &self,
        step: &mut Step,
        gpu: &Gpu,
        out: &mut CudaSlice<bf16>,
    ) -> Result<(), LaunchError> {
        ExpertsFewFp8 {
            x: if step.way.normed { (&step.normed).into() } else { (&step.x.1).into() },
            weights: self.weights(),
            routed: Routed {
                ids: (&step.ids).into(),
                weights: (&step.weights).into(),
                plan: (&step.plan).into(),
                batch: step.batch,
            },
            gate: self.numbers.gate,
            act: (&mut step.act).into(),
            out: out.into(),
            adds: step.adds,
            workspace: (&mut step.counts).into(),
            shape: self.numbers.shape,
            rows: step.rows,
        }
        .launch(&gpu.device)
    }

    fn many(
        &self,
        step: &mut Step,
        gpu: &Gpu,
        out: &mut CudaSlice<bf16>,
    ) -> Result<(), LaunchError> {
        ExpertsManyFp8 {
            x: if step.way.normed { (&step.normed).into() } else { (&step.x.1).into() },
            weights: self.weights(),
            routed: Routed {
                ids: (&step.ids).into(),
                weights: (&step.weights).into(),
                plan: (&step.plan).into(),
                batch: step.batch,
            },
            gate: self.numbers.gate,
            act: (&mut step.act).into(),
            y: (&mut step.y).into(),
            out: out.into(),
            adds: step.adds,
            shape: self.numbers.shape,
            rows: step.rows,
        }
        .launch(&gpu.device)
    }
}

/// Every code is where the kernels look for it, and all else is zeros.
pub fn packing(gpu: &mut Gpu) {
    for (rows, columns) in [(32, 128), (16, 8), (48, 264), (160, 1000)] {
        for rows_are in [ExpertRows::Whole, ExpertRows::Gate, ExpertRows::Up] {
            let codes = crate::fp8::bytes(gpu, rows, columns);
            let halves = rows_are != ExpertRows::Whole;
            let to_rows = if halves { 2 * rows } else { rows };
            let len = expert_slabs_fp8_len(to_rows, columns);
            let mut to = gpu.upload(&vec![0x55_u8; len]);
            pack(gpu, (&codes, columns), rows_are, &mut to, 0..len).unwrap();
            let (packed, steps) = (gpu.download(&to), columns.div_ceil(BLOCK));
            for row in 0..to_rows {
                let from = match rows_are {
                    ExpertRows::Whole => Some(row),
                    _ => ((row % 16 < 8) == (rows_are == ExpertRows::Gate))
                        .then_some(row / 16 * 8 + row % 8),
                };
                for column in 0..steps * BLOCK {
                    let (slab, step, unit) = (row / 16, column / BLOCK, column % BLOCK / 16);
                    let at = (slab * steps + step) * 2048 + row % 16 * 128;
                    let got = packed[at + (unit ^ (row % 8)) * 16 + column % 16];
                    let wanted = match from {
                        None => 0x55,
                        Some(_) if column >= columns => 0,
                        Some(from) => codes[from * columns + column],
                    };
                    assert_eq!(got, wanted, "{rows_are:?} {rows} x {columns}: {row}, {column}");
                }
            }
        }
    }
}

const FORMS: [[ScaleForm; 2]; 3] = [
    [ScaleForm::Block; 2],
    [ScaleForm::Row; 2],
    // Experts no wider than a block have one scale a row in `down`.
    [ScaleForm::Block, ScaleForm::Row],
];

pub fn few(gpu: &mut Gpu) {
    for &(experts, top, hidden, width) in &SHAPES[..if gpu.small { 2 } else { SHAPES.len() }] {
        for (forms, biased) in FORMS.into_iter().zip([false, true, true]) {
            let layer = Fp8::new(gpu, shape(experts, top, hidden, width), forms, biased);
            let rows: &[usize] = if hidden > 1000 { &[1, 3, 17] } else { &[1, 2, 8, 9, 17, 64] };
            for &rows in rows {
                let normed = gpu.random.below(2) == 0;
                let way = Way { normed, padding: gpu.random.below(2) == 0, ..PLAIN };
                let step = layer.step(gpu, rows, ExpertsFewFp8::BATCH, way);
                let run = |step: &mut Step, gpu: &Gpu, _: &Layer, out: &mut CudaSlice<bf16>| {
                    layer.few(step, gpu, out)
                };
                check(gpu, &layer.numbers, step, run, "few, e4m3");
            }
        }
    }
    // All rows to the same experts: several batches of each. Then none to any.
    let layer = Fp8::new(gpu, shape(16, 4, 528, 264), FORMS[0], true);
    let way = Way { from_logits: true, ..PLAIN };
    for rows in [61, 64] {
        let padding = rows == 64;
        let mut step = layer.step(gpu, rows, ExpertsFewFp8::BATCH, Way { padding, ..way });
        let logits: Vec<f32> = (0..rows * 16).map(|i| (i % 16) as f32 * 0.1).collect();
        step.logits = gpu.upload(&logits);
        if padding {
            step.there = (vec![-1; rows], gpu.upload(&vec![-1; rows]));
        }
        let run = |step: &mut Step, gpu: &Gpu, _: &Layer, out: &mut CudaSlice<bf16>| {
            layer.few(step, gpu, out)
        };
        check(gpu, &layer.numbers, step, run, "few, e4m3, alike");
    }
}

/// A row alone has the bits that it has among others.
pub fn few_alone(gpu: &mut Gpu) {
    let layer = Fp8::new(gpu, shape(16, 4, 528, 1160), FORMS[0], false);
    let ExpertsShape { experts, hidden, .. } = layer.numbers.shape;
    let way = Way { from_logits: true, ..PLAIN };
    let mut all = layer.step(gpu, 13, ExpertsFewFp8::BATCH, way);
    all.route(gpu, &layer.numbers).unwrap();
    let logits = gpu.download(&all.logits);
    all.adds = false;
    let mut out = gpu.poisoned(13 * hidden);
    layer.few(&mut all, gpu, &mut out).unwrap();
    let out = gpu.download(&out);
    for row in 0..13 {
        let mut one = layer.step(gpu, 1, ExpertsFewFp8::BATCH, way);
        one.adds = false;
        one.logits = gpu.upload(&logits[row * experts..(row + 1) * experts]);
        let x = &all.x.0[row * hidden..(row + 1) * hidden];
        one.x = (x.to_vec(), gpu.upload(x));
        one.route(gpu, &layer.numbers).unwrap();
        let mut alone = gpu.poisoned(hidden);
        layer.few(&mut one, gpu, &mut alone).unwrap();
        let among = &out[row * hidden..(row + 1) * hidden];
        assert_same(&format!("row {row}"), &gpu.download(&alone), among);
    }
}

pub fn many(gpu: &mut Gpu) {
    if !ExpertsManyFp8::takes(&gpu.device) {
        println!("experts_fp8_many: not on this GPU");
        return;
    }
    for &(experts, top, hidden, width) in &SHAPES[..if gpu.small { 2 } else { SHAPES.len() }] {
        for (forms, biased) in FORMS.into_iter().zip([false, true, true]) {
            let mut layer = Fp8::new(gpu, shape(experts, top, hidden, width), forms, biased);
            layer.numbers.rounds = true;
            let rows: &[usize] = if hidden > 1000 { &[5, 70] } else { &[1, 31, 130, 700] };
            for &rows in &rows[..if gpu.small { rows.len() - 1 } else { rows.len() }] {
                let batch = gpu.random.of(&[32, 64, 128]);
                let way = Way { padding: gpu.random.below(2) == 0, from_logits: true, ..PLAIN };
                let step = layer.step(gpu, rows, batch, way);
                let run = |step: &mut Step, gpu: &Gpu, _: &Layer, out: &mut CudaSlice<bf16>| {
                    layer.many(step, gpu, out)
                };
                check(gpu, &layer.numbers, step, run, "many, e4m3");
            }
        }
    }
}

/// A graph takes whatever rows come, and counts are ready for the next launch.
pub fn graph(gpu: &mut Gpu) {
    let layer = Fp8::new(gpu, shape(16, 4, 528, 264), FORMS[0], false);
    let hidden = layer.numbers.shape.hidden;
    for rows in [1, 20, 100] {
        let few = rows <= ExpertsFewFp8::ROWS_MAX;
        let way = Way { normed: few, from_logits: !few, ..PLAIN };
        let mut step = layer.step(gpu, rows, if few { ExpertsFewFp8::BATCH } else { 64 }, way);
        step.adds = true;
        let multiply = |step: &mut Step, gpu: &Gpu, out: &mut CudaSlice<bf16>| match few {
            true => layer.few(step, gpu, out),
            false => layer.many(step, gpu, out),
        };
        let mut out = gpu.upload(&vec![bf16::ZERO; rows * hidden]);
        let stream = gpu.device.stream().clone();
        gpu.device.synchronize().unwrap();
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(mode).unwrap();
        for _ in 0..3 {
            step.route(gpu, &layer.numbers).unwrap();
            multiply(&mut step, gpu, &mut out).unwrap();
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
                step.route(gpu, &layer.numbers).unwrap();
                multiply(&mut step, gpu, &mut out).unwrap();
            }
            let direct = gpu.download(&out);
            assert_same(&format!("{rows} rows"), &replayed, &direct);
            assert!(direct.iter().any(|value| *value != bf16::ZERO));
        }
        assert!(gpu.download(&step.counts).iter().all(|&count| count == 0));
    }
}

pub fn refusals(gpu: &mut Gpu) {
    let refused = |result: Result<(), LaunchError>, why: &str| {
        let said = result.expect_err(why).to_string();
        assert!(said.contains(why), "{said:?} does not say {why:?}");
    };
    let mut layer = Fp8::new(gpu, shape(16, 4, 528, 264), FORMS[0], false);
    let mut out = gpu.poisoned(65 * 528);
    let mut step = layer.step(gpu, 65, 8, PLAIN);
    refused(layer.few(&mut step, gpu, &mut out), "rows is 65, the limit is 64");
    step.batch = 256;
    refused(layer.many(&mut step, gpu, &mut out), "batch is 256, it must be one of [32, 64, 128]");
    let mut out = gpu.poisoned(8 * 528);
    let mut step = layer.step(gpu, 8, 32, PLAIN);
    refused(layer.few(&mut step, gpu, &mut out), "batch is 32, it must be 8");
    step.act = gpu.poisoned(8 * 4 * 264);
    refused(layer.many(&mut step, gpu, &mut out), "act has 8448 elements");
    layer.down.form = ScaleForm::Row;
    refused(layer.many(&mut step, gpu, &mut out), "scales of experts");
    let mut to = gpu.upload(&vec![0; expert_slabs_fp8_len(16, 9)]);
    let len = to.len();
    let odd = pack(gpu, (&[0; 16 * 9], 9), ExpertRows::Whole, &mut to, 0..len);
    refused(odd, "columns is 9");
    gpu.device.synchronize().unwrap();
}
