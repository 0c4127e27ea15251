//! The weights of a layer of experts, packed and as they were, and what they give by plain loops.

use cudarc::driver::CudaSlice;
use half::bf16;
use minisgl_kernels::fp8::BLOCK;
use minisgl_kernels::ops::*;

use crate::fp8::rounded;
use crate::gate_mul::gate_of;
use crate::support::Gpu;

/// Weights of a layer, as files have them and as kernels take them.
pub struct Layer {
    pub shape: ExpertsShape,
    pub gate: Gate,
    pub router: (Vec<bf16>, CudaSlice<bf16>),
    /// `[experts, width, hidden]`, twice.
    pub gates: Vec<bf16>,
    pub ups: Vec<bf16>,
    /// `[experts, hidden, width]`.
    pub downs: Vec<bf16>,
    pub gate_up: CudaSlice<bf16>,
    pub down: CudaSlice<bf16>,
    pub biases: Option<Biases>,
    /// Rows are made e4m3 before each product, 128 columns by their largest.
    pub rounds: bool,
}

pub struct Biases {
    pub router: (Vec<bf16>, CudaSlice<bf16>),
    pub gate_up: (Vec<bf16>, CudaSlice<bf16>),
    pub down: (Vec<bf16>, CudaSlice<bf16>),
}

pub fn shape(experts: usize, top: usize, hidden: usize, width: usize) -> ExpertsShape {
    ExpertsShape { experts, top, hidden, width }
}

pub fn floats(gpu: &mut Gpu, len: usize, scale: f32) -> (Vec<f32>, CudaSlice<f32>) {
    let values: Vec<f32> = (0..len).map(|_| gpu.random.normal() * scale).collect();
    let slice = gpu.upload(&values);
    (values, slice)
}

/// An element of what experts make, and what its bounds are made of.
#[derive(Clone, Copy)]
pub struct Sum {
    pub value: f64,
    /// How large the terms of all experts are together.
    pub terms: f64,
    /// What the largest product in it changes by if its activation is the next bf16.
    pub step: f64,
}

impl Layer {
    /// `by_turns`: with weights, gate and biases as gpt-oss has them.
    pub fn new(gpu: &mut Gpu, shape: ExpertsShape, by_turns: bool) -> Layer {
        let ExpertsShape { experts, hidden, width, .. } = shape;
        let router = gpu.normal(experts * hidden, (hidden as f32).powf(-0.5));
        let gates = gpu.normal(experts * width * hidden, (hidden as f32).powf(-0.5)).0;
        let ups = gpu.normal(experts * width * hidden, (hidden as f32).powf(-0.5)).0;
        let downs = gpu.normal(experts * hidden * width, (width as f32).powf(-0.5)).0;
        let mut gate_up = gpu.poisoned(experts * expert_slabs_len(2 * width, hidden));
        let mut down = gpu.poisoned(experts * expert_slabs_len(hidden, width));
        for expert in 0..experts {
            let part = |of: &[bf16]| of[expert * width * hidden..][..width * hidden].to_vec();
            let (gates, ups, downs) = (part(&gates), part(&ups), part(&downs));
            let len = expert_slabs_len(2 * width, hidden);
            let to = &mut gate_up.slice_mut(expert * len..(expert + 1) * len);
            let mut pack = |from: &[bf16], rows_are, rows, (row_stride, column_stride)| {
                PackExpert {
                    from: (&gpu.upload(from)).into(),
                    to: (&mut *to).into(),
                    rows_are,
                    rows,
                    columns: hidden,
                    row_stride,
                    column_stride,
                }
                .launch(&gpu.device)
                .unwrap();
            };
            if by_turns {
                // Inputs first, gate and up by turns: [hidden, 2 * width].
                let mut both = vec![bf16::ZERO; 2 * width * hidden];
                for row in 0..width {
                    for column in 0..hidden {
                        both[column * 2 * width + 2 * row] = gates[row * hidden + column];
                        both[column * 2 * width + 2 * row + 1] = ups[row * hidden + column];
                    }
                }
                pack(&both, ExpertRows::GateUpByTurns, 2 * width, (1, 2 * width));
            } else {
                pack(&gates, ExpertRows::Gate, width, (hidden, 1));
                pack(&ups, ExpertRows::Up, width, (hidden, 1));
            }
            let len = expert_slabs_len(hidden, width);
            PackExpert {
                from: (&gpu.upload(&downs)).into(),
                to: (&mut down.slice_mut(expert * len..(expert + 1) * len)).into(),
                rows_are: ExpertRows::Whole,
                rows: hidden,
                columns: width,
                row_stride: width,
                column_stride: 1,
            }
            .launch(&gpu.device)
            .unwrap();
        }
        let biases = by_turns.then(|| Biases {
            router: gpu.normal(experts, 0.5),
            gate_up: gpu.normal(experts * 2 * width, 3.0),
            down: gpu.normal(experts * hidden, 1.0),
        });
        let gate = if by_turns { Gate::Clamped } else { Gate::Silu };
        Layer { shape, gate, router, gates, ups, downs, gate_up, down, biases, rounds: false }
    }

    pub fn weights(&self) -> ExpertWeights<'_> {
        ExpertWeights {
            gate_up: (&self.gate_up).into(),
            down: (&self.down).into(),
            gate_up_bias: self.biases.as_ref().map(|biases| (&biases.gate_up.1).into()),
            down_bias: self.biases.as_ref().map(|biases| (&biases.down.1).into()),
        }
    }

    /// What the experts make of `out`.
    pub fn expected(&self, x: &[bf16], ids: &[i32], weights: &[f32], out: &[bf16]) -> Vec<Sum> {
        let ExpertsShape { top, hidden, .. } = self.shape;
        let start = |value: &bf16| Sum { value: value.to_f64(), terms: 0.0, step: 0.0 };
        let mut sums: Vec<Sum> = out.iter().map(start).collect();
        let inputs = x.chunks(hidden).zip(ids.chunks(top).zip(weights.chunks(top)));
        let rows = sums.chunks_mut(hidden).zip(inputs);
        let rows = std::sync::Mutex::new(rows);
        let next = || rows.lock().unwrap().next();
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while let Some((sums, (row, (ids, weights)))) = next() {
                        self.add_row(row, ids, weights, sums);
                    }
                });
            }
        });
        sums
    }

    /// One row of it.
    fn add_row(&self, row: &[bf16], ids: &[i32], weights: &[f32], sums: &mut [Sum]) {
        let ExpertsShape { hidden, width, .. } = self.shape;
        let dot = |a: &[f64], b: &[bf16]| -> f64 {
            a.iter().zip(b).map(|(a, b)| a * f64::from(b.to_f32())).sum()
        };
        let round = |value: f64| bf16::from_f64(value).to_f64();
        let as_taken = |row: &[bf16]| -> Vec<f64> {
            match self.rounds {
                true => row.chunks(BLOCK).flat_map(rounded).collect(),
                false => row.iter().map(|x| x.to_f64()).collect(),
            }
        };
        // How far off the next value that an activation can be rounded to is, of its size; many are, if the largest of
        // them is, by which they are rounded.
        let next = if self.rounds { 0.25 } else { 1.0 / 128.0 };
        let row = &as_taken(row)[..];
        for (&id, &weight) in ids.iter().zip(weights) {
            let Ok(expert) = usize::try_from(id) else { continue };
            let act: Vec<bf16> = (0..width)
                .map(|i| {
                    let at = (expert * width + i) * hidden;
                    let bias = |half: usize| {
                        let biases = self.biases.as_ref();
                        let at = (2 * expert + half) * width + i;
                        biases.map_or(0.0, |biases| biases.gate_up.0[at].to_f64())
                    };
                    let gate = round(dot(row, &self.gates[at..at + hidden]) + bias(0));
                    let up = round(dot(row, &self.ups[at..at + hidden]) + bias(1));
                    bf16::from_f64(gate_of(self.gate, gate, up))
                })
                .collect();
            let act = as_taken(&act);
            for (column, sum) in sums.iter_mut().enumerate() {
                let at = (expert * hidden + column) * width;
                let bias = self.biases.as_ref();
                let bias = bias.map_or(0.0, |b| b.down.0[expert * hidden + column].to_f64());
                let down = &self.downs[at..at + width];
                let term = f64::from(weight) * (dot(&act, down) + bias);
                sum.value += term;
                sum.terms += term.abs();
                let size = |(a, b): (&f64, &bf16)| (a * b.to_f64()).abs();
                let largest = act.iter().zip(down).map(size).fold(0.0, f64::max);
                sum.step = sum.step.max(f64::from(weight) * largest * next);
            }
        }
    }
}
