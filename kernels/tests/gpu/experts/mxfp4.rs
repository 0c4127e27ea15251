//! Experts in MXFP4: packing bit by bit, and both ways of multiplying against plain loops over what the codes stand for.

use super::*;
use crate::experts_layer::Biases;

/// What codes stand for (OCP Microscaling Formats 1.0, table 5).
const VALUES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
const BLOCK: usize = 32;
/// Bytes of the codes of a slab over a step, and of its scales.
const CODES_BYTES: usize = 512;
const SCALES_BYTES: usize = 32;
/// No code is this: a byte that no packing may read.
const OUTSIDE: u8 = 0xee;

/// One matrix of an expert as files have it.
struct Coded {
    rows: usize,
    columns: usize,
    codes: Vec<u8>,
    scales: Vec<u8>,
}

impl Coded {
    /// Numbers of about `scale`.
    fn new(gpu: &mut Gpu, rows: usize, columns: usize, scale: f32) -> Coded {
        let middle = 127 + scale.log2().round() as i32 - 1;
        let codes = (0..rows * columns.div_ceil(2)).map(|_| gpu.random.bits() as u8).collect();
        let scales = (0..rows * columns.div_ceil(BLOCK))
            .map(|_| (middle + gpu.random.below(5) as i32 - 2) as u8)
            .collect();
        Coded { rows, columns, codes, scales }
    }

    fn code(&self, row: usize, column: usize) -> u8 {
        self.codes[row * self.columns.div_ceil(2) + column / 2] >> (column % 2 * 4) & 15
    }

    fn scale(&self, row: usize, column: usize) -> u8 {
        self.scales[row * self.columns.div_ceil(BLOCK) + column / BLOCK]
    }

    fn value(&self, row: usize, column: usize) -> bf16 {
        let (code, exponent) = (self.code(row, column), i32::from(self.scale(row, column)) - 127);
        let size = VALUES[usize::from(code & 7)] * 2.0_f32.powi(exponent);
        bf16::from_f32(if code & 8 == 0 { size } else { -size })
    }
}

/// A part of a matrix, and where it goes.
#[derive(Clone, Copy, Debug)]
struct Part {
    first_row: usize,
    rows: usize,
    first_column: usize,
    columns: usize,
    above: usize,
    to_rows: usize,
    to_columns: usize,
}

impl Part {
    fn left(&self) -> usize {
        self.first_column % BLOCK
    }

    /// Bytes of the slabs that it goes to.
    fn len(&self, rows_are: ExpertRows) -> usize {
        match rows_are {
            ExpertRows::Whole => expert_down_mxfp4_len(self.to_rows, self.to_columns),
            ExpertRows::Gate | ExpertRows::Up => {
                expert_gate_up_mxfp4_len(self.to_rows, self.to_columns)
            }
            ExpertRows::GateUpByTurns => {
                expert_gate_up_mxfp4_len(self.to_rows / 2, self.to_columns)
            }
        }
    }

    /// `row_step`: rows of the matrix from one of the part to the next.
    fn pack(
        &self,
        gpu: &Gpu,
        from: &Coded,
        rows_are: ExpertRows,
        row_step: usize,
        to: &mut CudaSlice<u8>,
        at: usize,
    ) -> Result<(), LaunchError> {
        let (row_bytes, blocks) = (from.columns.div_ceil(2), from.columns.div_ceil(BLOCK));
        let (codes, scales) = (gpu.upload(&from.codes), gpu.upload(&from.scales));
        let first_code = self.first_row * row_bytes + self.first_column / 2;
        let first_scale = self.first_row * blocks + self.first_column / BLOCK;
        let len = self.len(rows_are);
        PackExpertMxfp4 {
            codes: (&codes.slice(first_code..)).into(),
            scales: (&scales.slice(first_scale..)).into(),
            to: (&mut to.slice_mut(at..at + len)).into(),
            rows_are,
            rows: self.rows,
            columns: self.columns,
            row_bytes: row_step * row_bytes,
            scales_stride: row_step * blocks,
            above: self.above,
            left: self.left(),
            to_rows: self.to_rows,
            to_columns: self.to_columns,
        }
        .launch(&gpu.device)
    }
}

/// Code and scale of every element of slabs, `[rows, columns to a multiple of 64]`.
fn unpack(slabs: &[u8], rows: usize, columns: usize, in_parts: bool) -> Vec<(u8, u8)> {
    let (slabs_len, steps) = (rows / 16, columns.div_ceil(64));
    let parts = if in_parts { steps.div_ceil(9) } else { 1 };
    let part = steps.div_ceil(parts);
    let mut elements = vec![(0, 0); rows * steps * 64];
    let mut bytes = slabs;
    for first in (0..steps).step_by(part) {
        let each = part.min(steps - first);
        for slab in 0..slabs_len {
            for quad in (0..each).step_by(4) {
                let count = 4.min(each - quad);
                let (codes, rest) = bytes.split_at(count * CODES_BYTES);
                let (scales, rest) = rest.split_at(4 * SCALES_BYTES);
                bytes = rest;
                let codes = codes.chunks_exact(CODES_BYTES).zip(scales.chunks_exact(SCALES_BYTES));
                for (step, (codes, scales)) in codes.enumerate() {
                    let mut set = |row: usize, column: usize, code: u32, scale: u8| {
                        let column = (first + quad + step) * 64 + column;
                        elements[(slab * 16 + row) * steps * 64 + column] = (code as u8, scale);
                    };
                    for (i, word) in codes.chunks_exact(4).enumerate() {
                        let word = u32::from_le_bytes(word.try_into().unwrap());
                        let (g, t, b, h) = (i / 16, i / 4 % 4, i / 2 % 2, i % 2);
                        for (pair, sign, size) in [(0, 15, 6), (1, 12, 3), (2, 14, 0), (3, 13, 9)] {
                            for odd in 0..2 {
                                let half = word >> (16 * odd);
                                let code = half >> size & 7 | (half >> sign & 1) << 3;
                                let column = b * 32 + 8 * pair + 2 * t + odd;
                                set(8 * h + g, column, code, scales[4 * g + 2 * b + h]);
                            }
                        }
                    }
                }
            }
        }
    }
    assert!(bytes.is_empty());
    elements
}

/// Every code and every scale is where the kernels look for it, and nothing else is.
pub fn packing(gpu: &mut Gpu) {
    for (rows, columns) in [(32, 64), (48, 96), (160, 2880), (16, 720), (64, 1440)] {
        for cut in [false, true] {
            let from = Coded::new(gpu, 2 * rows, 2 * columns, 1.0);
            let first_column = if cut { columns / 16 * 8 + 8 } else { 0 };
            let above = if cut { 8 } else { 0 };
            let part = Part {
                first_row: 3,
                rows: rows - 16,
                first_column,
                columns: columns - 8,
                above,
                to_rows: rows,
                to_columns: columns + BLOCK,
            };
            for rows_are in
                [ExpertRows::Whole, ExpertRows::Gate, ExpertRows::Up, ExpertRows::GateUpByTurns]
            {
                let halves = matches!(rows_are, ExpertRows::Gate | ExpertRows::Up);
                let step = if halves { 2 } else { 1 };
                let to_rows = step * rows;
                let mut to = gpu.upload(&vec![OUTSIDE; part.len(rows_are)]);
                part.pack(gpu, &from, rows_are, step, &mut to, 0).unwrap();
                let whole = rows_are == ExpertRows::Whole;
                let packed = gpu.download(&to);
                let elements = unpack(&packed, to_rows, part.to_columns, whole);
                let what = format!("{rows_are:?} {part:?}");
                let row_len = part.to_columns.next_multiple_of(64);
                for index in 0..rows {
                    let row = match rows_are {
                        ExpertRows::Whole => index,
                        ExpertRows::Gate => index / 8 * 16 + index % 8,
                        ExpertRows::Up => index / 8 * 16 + 8 + index % 8,
                        ExpertRows::GateUpByTurns => {
                            index / 16 * 16 + index % 2 * 8 + index / 2 % 8
                        }
                    };
                    for column in 0..row_len {
                        let (code, scale) = elements[row * row_len + column];
                        let here = (part.above..part.above + part.rows).contains(&index);
                        let inside = column.checked_sub(part.left());
                        let inside = inside.filter(|&column| here && column < part.columns);
                        let Some(inside) = inside else {
                            assert_eq!(code, 0, "{what}: row {index}, column {column}");
                            continue;
                        };
                        let row = part.first_row + (index - part.above) * step;
                        let of = part.first_column + inside;
                        let wanted = (from.code(row, of), from.scale(row, of) + 66);
                        assert_eq!((code, scale), wanted, "{what}: row {index}, column {column}");
                    }
                }
            }
        }
    }
}

/// A layer in MXFP4. `numbers` has what the codes stand for, which bf16 has exactly.
struct Mxfp4 {
    numbers: Layer,
    gate_up: CudaSlice<u8>,
    down: CudaSlice<u8>,
}

impl Mxfp4 {
    /// The part of experts of `width` that rank `rank` of `tp` has; gate and up by turns, with biases and gate of gpt-oss, or
    /// one after the other without.
    fn new(
        gpu: &mut Gpu,
        (experts, top, hidden, width): (usize, usize, usize, usize),
        (rank, tp): (usize, usize),
        gpt_oss: bool,
    ) -> Mxfp4 {
        let (mine, first) = (width / tp, width / tp * rank);
        let left = first % BLOCK;
        // Eight more for whole slabs.
        let to_width = (left + mine).next_multiple_of(8);
        let gate_up_len = expert_gate_up_mxfp4_len(to_width, hidden);
        let down_len = expert_down_mxfp4_len(hidden, to_width);
        let mut gate_up = gpu.upload(&vec![OUTSIDE; experts * gate_up_len]);
        let mut down = gpu.upload(&vec![OUTSIDE; experts * down_len]);
        let zeros = vec![bf16::ZERO; experts * to_width * hidden];
        let (mut gates, mut ups, mut downs) = (zeros.clone(), zeros.clone(), zeros);
        for expert in 0..experts {
            let both = Coded::new(gpu, 2 * width, hidden, (hidden as f32).powf(-0.5));
            let of_down = Coded::new(gpu, hidden, width, (width as f32).powf(-0.5));
            assert_eq!((both.rows, of_down.rows), (2 * width, hidden));
            for (half, numbers) in [(0, &mut gates), (1, &mut ups)] {
                let row_of = |i: usize| match gpt_oss {
                    true => 2 * (first + i) + half,
                    false => half * width + first + i,
                };
                let part = Part {
                    first_row: row_of(0),
                    rows: mine,
                    first_column: 0,
                    columns: hidden,
                    above: left,
                    to_rows: to_width,
                    to_columns: hidden,
                };
                let rows_are = if half == 0 { ExpertRows::Gate } else { ExpertRows::Up };
                let step = if gpt_oss { 2 } else { 1 };
                part.pack(gpu, &both, rows_are, step, &mut gate_up, expert * gate_up_len).unwrap();
                for i in 0..mine {
                    let to = &mut numbers[(expert * to_width + left + i) * hidden..][..hidden];
                    let from = (0..hidden).map(|column| both.value(row_of(i), column));
                    to.iter_mut().zip(from).for_each(|(to, from)| *to = from);
                }
            }
            let part = Part {
                first_row: 0,
                rows: hidden,
                first_column: first,
                columns: mine,
                above: 0,
                to_rows: hidden,
                to_columns: to_width,
            };
            part.pack(gpu, &of_down, ExpertRows::Whole, 1, &mut down, expert * down_len).unwrap();
            for row in 0..hidden {
                for i in 0..mine {
                    let at = (expert * hidden + row) * to_width + left + i;
                    downs[at] = of_down.value(row, first + i);
                }
            }
        }
        let biases = gpt_oss.then(|| {
            let (mut bias, _) = gpu.normal(experts * 2 * to_width, 3.0);
            for row in bias.chunks_exact_mut(to_width) {
                row[..left].fill(bf16::ZERO);
                row[left + mine..].fill(bf16::ZERO);
            }
            let slice = gpu.upload(&bias);
            Biases {
                router: gpu.normal(experts, 0.5),
                gate_up: (bias, slice),
                down: gpu.normal(experts * hidden, 1.0),
            }
        });
        let router = gpu.normal(experts * hidden, (hidden as f32).powf(-0.5));
        let numbers = Layer {
            shape: shape(experts, top, hidden, to_width),
            gate: if gpt_oss { Gate::Clamped } else { Gate::Silu },
            router,
            gates,
            ups,
            downs,
            gate_up: gpu.poisoned(1),
            down: gpu.poisoned(1),
            biases,
            rounds: false,
        };
        Mxfp4 { numbers, gate_up, down }
    }

    fn weights(&self) -> ExpertWeightsMxfp4<'_> {
        let plain = self.numbers.weights();
        ExpertWeightsMxfp4 {
            gate_up: (&self.gate_up).into(),
            down: (&self.down).into(),
            gate_up_bias: plain.gate_up_bias,
            down_bias: plain.down_bias,
        }
    }

    fn step(&self, gpu: &mut Gpu, rows: usize, batch: usize, way: Way) -> Step {
        let mut step = Step::new(gpu, &self.numbers, rows, batch, way);
        let shape = self.numbers.shape;
        step.counts = gpu.upload(&vec![0; ExpertsFewMxfp4::workspace_len(shape, rows)]);
        step.act = gpu.poisoned(ExpertsManyMxfp4::act_len(shape, rows));
        step.y = gpu.poisoned(ExpertsManyMxfp4::y_len(shape, rows));
        step
    }

    fn few(
        &self,
        step: &mut Step,
        gpu: &Gpu,
        out: &mut CudaSlice<bf16>,
    ) -> Result<(), LaunchError> {
        ExpertsFewMxfp4 {
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
        ExpertsManyMxfp4 {
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

/// Experts, top, hidden, width, and which part of how many.
type Case = ((usize, usize, usize, usize), (usize, usize));

/// Cut steps, parts of several sizes, ranks that begin within a block, and gpt-oss's widths over 1, 2 and 4.
const CASES: &[Case] = &[
    ((8, 2, 64, 16), (0, 1)),
    ((16, 4, 544, 264), (0, 1)),
    ((12, 4, 96, 288), (1, 4)),
    ((12, 4, 96, 288), (3, 4)),
    ((24, 3, 2304, 32), (0, 1)),
    ((4, 2, 2880, 2880), (1, 4)),
    ((4, 2, 2880, 2880), (1, 2)),
    ((3, 2, 2880, 2880), (0, 1)),
];

fn cases(gpu: &Gpu) -> &'static [Case] {
    &CASES[..if gpu.small { 3 } else { CASES.len() }]
}

pub fn few(gpu: &mut Gpu) {
    for &(shape, part) in cases(gpu) {
        for gpt_oss in [false, true] {
            let layer = Mxfp4::new(gpu, shape, part, gpt_oss);
            let rows: &[usize] = if shape.2 > 1000 { &[1, 5, 17] } else { &[1, 2, 8, 9, 17, 64] };
            for &rows in rows {
                let normed = gpu.random.below(2) == 0;
                let way = Way { normed, padding: gpu.random.below(2) == 0, ..PLAIN };
                let step = layer.step(gpu, rows, ExpertsFewMxfp4::BATCH, way);
                let run = |step: &mut Step, gpu: &Gpu, _: &Layer, out: &mut CudaSlice<bf16>| {
                    layer.few(step, gpu, out)
                };
                check(gpu, &layer.numbers, step, run, "few, MXFP4");
            }
        }
    }
    // All rows to the same experts: several batches of each. Then none to any.
    let layer = Mxfp4::new(gpu, (16, 4, 544, 264), (0, 1), true);
    let way = Way { from_logits: true, ..PLAIN };
    for rows in [61, 64] {
        let mut step =
            layer.step(gpu, rows, ExpertsFewMxfp4::BATCH, Way { padding: rows == 64, ..way });
        let logits: Vec<f32> = (0..rows * 16).map(|i| (i % 16) as f32 * 0.1).collect();
        step.logits = gpu.upload(&logits);
        if rows == 64 {
            step.there = (vec![-1; rows], gpu.upload(&vec![-1; rows]));
        }
        let run = |step: &mut Step, gpu: &Gpu, _: &Layer, out: &mut CudaSlice<bf16>| {
            layer.few(step, gpu, out)
        };
        check(gpu, &layer.numbers, step, run, "few, MXFP4, alike");
    }
}

/// A row alone has the bits that it has among others.
pub fn few_alone(gpu: &mut Gpu) {
    let layer = Mxfp4::new(gpu, (16, 4, 544, 1152), (0, 1), true);
    let ExpertsShape { experts, hidden, .. } = layer.numbers.shape;
    let way = Way { from_logits: true, ..PLAIN };
    let mut all = layer.step(gpu, 13, ExpertsFewMxfp4::BATCH, way);
    all.route(gpu, &layer.numbers).unwrap();
    let logits = gpu.download(&all.logits);
    all.adds = false;
    let mut out = gpu.poisoned(13 * hidden);
    layer.few(&mut all, gpu, &mut out).unwrap();
    let out = gpu.download(&out);
    for row in 0..13 {
        let mut one = layer.step(gpu, 1, ExpertsFewMxfp4::BATCH, way);
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
    if !ExpertsManyMxfp4::takes(&gpu.device) {
        println!("experts_mxfp4_many: not on this GPU");
        return;
    }
    for &(shape, part) in cases(gpu) {
        for gpt_oss in [false, true] {
            let layer = Mxfp4::new(gpu, shape, part, gpt_oss);
            let rows: &[usize] = if shape.2 > 1000 { &[5, 70] } else { &[1, 31, 130, 700] };
            for &rows in rows {
                let batch = gpu.random.of(&[32, 64, 128]);
                let way = Way { padding: gpu.random.below(2) == 0, from_logits: true, ..PLAIN };
                let step = layer.step(gpu, rows, batch, way);
                let run = |step: &mut Step, gpu: &Gpu, _: &Layer, out: &mut CudaSlice<bf16>| {
                    layer.many(step, gpu, out)
                };
                check(gpu, &layer.numbers, step, run, "many, MXFP4");
            }
        }
    }
}

/// A graph takes whatever rows come, and counts are ready for the next launch.
pub fn graph(gpu: &mut Gpu) {
    let layer = Mxfp4::new(gpu, (16, 4, 544, 1152), (0, 1), true);
    let hidden = layer.numbers.shape.hidden;
    for rows in [1, 20] {
        let way = Way { normed: true, ..PLAIN };
        let mut step = layer.step(gpu, rows, ExpertsFewMxfp4::BATCH, way);
        step.adds = true;
        let mut out = gpu.upload(&vec![bf16::ZERO; rows * hidden]);
        let stream = gpu.device.stream().clone();
        gpu.device.synchronize().unwrap();
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(mode).unwrap();
        for _ in 0..3 {
            step.route(gpu, &layer.numbers).unwrap();
            layer.few(&mut step, gpu, &mut out).unwrap();
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
                layer.few(&mut step, gpu, &mut out).unwrap();
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
    let layer = Mxfp4::new(gpu, (16, 4, 544, 264), (0, 1), false);
    let mut out = gpu.poisoned(65 * 544);
    let mut step = layer.step(gpu, 65, 8, PLAIN);
    refused(layer.few(&mut step, gpu, &mut out), "rows is 65, the limit is 64");
    step.batch = 256;
    refused(layer.many(&mut step, gpu, &mut out), "batch is 256, it must be one of [32, 64, 128]");
    let mut out = gpu.poisoned(8 * 544);
    let mut step = layer.step(gpu, 8, 32, PLAIN);
    refused(layer.few(&mut step, gpu, &mut out), "batch is 32, it must be 8");
    let mut step = layer.step(gpu, 8, 8, PLAIN);
    step.counts = gpu.upload(&[0; 64]);
    refused(layer.few(&mut step, gpu, &mut out), "workspace has 64 elements");
    let mut step = layer.step(gpu, 8, 32, PLAIN);
    step.y = gpu.poisoned(8);
    refused(layer.many(&mut step, gpu, &mut out), "y has 8 elements");

    let from = Coded::new(gpu, 64, 96, 1.0);
    let mut to = gpu.upload(&vec![0; expert_down_mxfp4_len(64, 96)]);
    let part = Part {
        first_row: 0,
        rows: 64,
        first_column: 0,
        columns: 96,
        above: 0,
        to_rows: 64,
        to_columns: 96,
    };
    let mut pack = |part: Part| part.pack(gpu, &from, ExpertRows::Whole, 1, &mut to, 0);
    pack(part).unwrap();
    refused(pack(Part { above: 8, ..part }), "8 and 64 rows do not fit into 64");
    refused(pack(Part { first_column: 16, ..part }), "16 and 96 columns do not fit into 96");
    refused(pack(Part { first_row: 1, ..part }), "codes has 3024 elements, 3072 are needed");
    gpu.device.synchronize().unwrap();
}
