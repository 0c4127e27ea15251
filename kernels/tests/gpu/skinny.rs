//! Products of few rows: every way in and out, every way of cutting them up.

use cudarc::driver::CudaSlice;
use half::bf16;
use minisgl_kernels::ops::{Gate, RmsNorm, SkinnyGemm, SkinnyInput, SkinnyOut};

use crate::gate_mul::gate_of;
use crate::support::{Gpu, assert_near, assert_same};

/// What becomes of the result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Out {
    Plain,
    Bias,
    F32,
    Add,
    /// Two summands, the bias behind the rows that are there.
    AddBias,
    Gated(Gate),
}

pub const OUTS: [Out; 8] = [
    Out::Plain,
    Out::Bias,
    Out::F32,
    Out::Add,
    Out::AddBias,
    Out::Gated(Gate::Silu),
    Out::Gated(Gate::Clamped),
    Out::Gated(Gate::GeluTanh),
];

impl Out {
    pub fn is_gated(self) -> bool {
        matches!(self, Out::Gated(_))
    }

    /// How far an element that was rounded to bf16 before may be off, whatever it is. What is clamped is the gate, 7 at most, times
    /// 1 more than the other half: where that is near 0 it is still a unit in the last place of 1 off, after a tie that
    /// was rounded to the other side.
    pub fn off(self, otherwise: f64) -> f64 {
        if matches!(self, Out::Gated(Gate::Clamped)) { 0.055 } else { otherwise }
    }

    /// Elements of what is added: rows, a bias, or rows and then a bias.
    pub fn add_len(self, m: usize, n: usize) -> usize {
        match self {
            Out::Add => m * n,
            Out::AddBias => m * n + n,
            _ => n,
        }
    }

    /// Where a product goes, with what was there before.
    pub fn before(self, gpu: &Gpu, add: &[bf16], m: usize, n: usize) -> CudaSlice<bf16> {
        match self {
            Out::Add | Out::AddBias => gpu.upload(&add[..m * n]),
            Out::Gated(_) => gpu.poisoned(m * n / 2),
            _ => gpu.poisoned(m * n),
        }
    }

    /// What it makes of the sums of a product, `[rows, n]`.
    pub fn of(self, sums: Vec<f64>, add: &[bf16], n: usize) -> Vec<f64> {
        match self {
            Out::Plain | Out::F32 => sums,
            Out::Bias => {
                sums.iter().enumerate().map(|(i, sum)| sum + add[i % n].to_f64()).collect()
            }
            Out::Add => sums.iter().zip(add).map(|(sum, add)| sum + add.to_f64()).collect(),
            Out::AddBias => {
                let bias = &add[sums.len()..];
                let all = sums.iter().zip(add).zip(bias.iter().cycle());
                all.map(|((sum, add), bias)| sum + add.to_f64() + bias.to_f64()).collect()
            }
            Out::Gated(gate) => {
                let round = |sum: f64| bf16::from_f64(sum).to_f64();
                let row = |row: &[f64]| -> Vec<f64> {
                    let (gates, up) = row.split_at(n / 2);
                    let both = gates.iter().zip(up);
                    both.map(|(&g, &u)| gate_of(gate, round(g), round(u))).collect()
                };
                sums.chunks_exact(n).flat_map(row).collect()
            }
        }
    }
}

/// Inputs of a product, on both sides.
struct Case {
    m: usize,
    n: usize,
    k: usize,
    out: Out,
    /// As the product sees it: after the norm, if there is one.
    x: Vec<bf16>,
    x_gpu: CudaSlice<bf16>,
    norm: Option<CudaSlice<bf16>>,
    weight: (Vec<bf16>, CudaSlice<bf16>),
    /// Bias, or what is added to.
    add: (Vec<bf16>, CudaSlice<bf16>),
}

const EPS: f32 = 1e-5;

impl Case {
    fn new(gpu: &mut Gpu, (m, n, k): (usize, usize, usize), out: Out, normed: bool) -> Case {
        let (x, x_gpu) = gpu.normal(m * k, 1.0);
        // Sums of about 1.
        let weight = gpu.normal(n * k, (k as f32).powf(-0.5));
        let add = gpu.normal(out.add_len(m, n), 2.0);
        let norm = normed.then(|| gpu.normal(k, 1.0).1);
        let x = match &norm {
            None => x,
            Some(weight) => {
                let mut normed = gpu.poisoned(m * k);
                RmsNorm {
                    x: (&x_gpu).into(),
                    index: None,
                    weight: weight.into(),
                    out: (&mut normed).into(),
                    rows: m,
                    x_rows: m,
                    hidden: k,
                    eps: EPS,
                    plus_one: false,
                }
                .launch(&gpu.device)
                .unwrap();
                gpu.download(&normed)
            }
        };
        Case { m, n, k, out, x, x_gpu, norm, weight, add }
    }

    fn run(&self, gpu: &Gpu) -> Vec<bf16> {
        let mut out = self.out.before(gpu, &self.add.0, self.m, self.n);
        let mut logits = gpu.upload(&vec![f32::NAN; self.m * self.n]);
        let bias = gpu.upload(&self.add.0[self.add.0.len() - self.n..]);
        SkinnyGemm {
            input: match &self.norm {
                None => SkinnyInput::Plain((&self.x_gpu).into()),
                Some(weight) => SkinnyInput::Normed {
                    residual: (&self.x_gpu).into(),
                    weight: weight.into(),
                    eps: EPS,
                },
            },
            weight: (&self.weight.1).into(),
            out: match self.out {
                Out::Plain => SkinnyOut::Bf16 { out: (&mut out).into(), bias: None },
                Out::Bias => {
                    SkinnyOut::Bf16 { out: (&mut out).into(), bias: Some((&self.add.1).into()) }
                }
                Out::F32 => SkinnyOut::F32((&mut logits).into()),
                Out::Add => SkinnyOut::AddTo { residual: (&mut out).into(), bias: None },
                Out::AddBias => {
                    SkinnyOut::AddTo { residual: (&mut out).into(), bias: Some((&bias).into()) }
                }
                Out::Gated(gate) => SkinnyOut::Gated((&mut out).into(), gate),
            },
            m: self.m,
            n: self.n,
            k: self.k,
        }
        .launch(&gpu.device)
        .unwrap();
        match self.out {
            Out::F32 => gpu.download(&logits).into_iter().map(bf16::from_f32).collect(),
            _ => gpu.download(&out),
        }
    }

    fn expected(&self) -> Vec<f64> {
        let (m, n, k) = (self.m, self.n, self.k);
        let widen = |values: &[bf16]| -> Vec<f32> { values.iter().map(|v| v.to_f32()).collect() };
        let (x, weight) = (widen(&self.x), widen(&self.weight.0));
        let mut sums = Vec::with_capacity(m * n);
        for row in x.chunks_exact(k) {
            for weight in weight.chunks_exact(k) {
                let product = |(x, w): (&f32, &f32)| f64::from(*x) * f64::from(*w);
                sums.push(row.iter().zip(weight).map(product).sum::<f64>());
            }
        }
        self.out.of(sums, &self.add.0, n)
    }

    fn check(&self, gpu: &Gpu) {
        let Case { m, n, k, out, .. } = self;
        let what = format!("[{m}, {k}] x [{n}, {k}], {out:?}, norm {}", self.norm.is_some());
        let result = self.run(gpu);
        // Rounding before the end may go to the other side of a tie, for x and for both halves.
        let twice = out.is_gated() || self.norm.is_some();
        let ties = if self.out.is_gated() { 2.0 } else { 0.0 };
        let off = self.out.off(if twice { 0.03 } else { 1e-4 });
        assert_near(&what, &result, &self.expected(), off, ties);
        assert_same(&format!("{what}, again"), &self.run(gpu), &result);
    }
}

/// Outputs, inputs; shapes with cut tiles, several passes, and rings that wrap around.
const SHAPES: &[(usize, usize)] = &[
    (8, 8),
    (16, 40),
    (24, 136),
    (528, 264),
    (520, 1032),
    (64, 4104),
    (56, 2312),
    (16, 9000),
    (2112, 1056),
    (4224, 96),
    (8464, 72),
    (17_008, 40),
];

/// Elements of x up to which every block has room to keep it, which a norm needs.
const NORMED_MAX: usize = 64_000;

pub fn skinny(gpu: &mut Gpu) {
    let shapes = if gpu.small { &SHAPES[..8] } else { SHAPES };
    for &(n, k) in shapes {
        let rows: &[usize] = match (gpu.small, n * k > 500_000) {
            (true, _) => &[1, 9, 16],
            (_, true) => &[1, 4, 11],
            _ => &[1, 2, 3, 7, 8, 9, 15, 16],
        };
        for &m in rows {
            for out in OUTS.into_iter().filter(|out| !out.is_gated() || n % 16 == 0) {
                let normed = m * k <= NORMED_MAX && gpu.random.below(2) > 0;
                Case::new(gpu, (m, n, k), out, normed).check(gpu);
            }
        }
    }
}

/// The shapes of real models at one row, where the cut differs from that of many.
pub fn models(gpu: &mut Gpu) {
    let shapes = [(1152, 896), (4096, 1024), (1024, 2048), (6144, 1024), (1024, 3072), (896, 4864)];
    for (n, k) in &shapes[..if gpu.small { 1 } else { shapes.len() }] {
        for (m, normed) in [(1, false), (1, true), (5, true), (5, false)] {
            let out = gpu.random.of(&OUTS);
            Case::new(gpu, (m, *n, *k), out, normed).check(gpu);
        }
    }
}
