//! Matrix products: the wrapper's idea of rows and columns, bias, output types, tuning and its memory.

use std::time::Duration;

use half::bf16;
use minisgl_kernels::gemm::{Gemm, GemmArgs, GemmOut};

use crate::support::{Gpu, assert_close};

/// Inputs and what must come out.
struct Case {
    m: usize,
    n: usize,
    k: usize,
    x: Vec<bf16>,
    weight: Vec<bf16>,
    bias: Option<Vec<bf16>>,
    /// What is there before, to be added to.
    residual: Option<Vec<bf16>>,
}

impl Case {
    fn new(gpu: &mut Gpu, (m, n, k): (usize, usize, usize), bias: bool) -> Case {
        let (x, _) = gpu.normal(m * k, 1.0);
        let (weight, _) = gpu.normal(n * k, 1.0);
        let bias = bias.then(|| gpu.normal(n, 10.0).0);
        Case { m, n, k, x, weight, bias, residual: None }
    }

    /// Adds to a residual, with a bias or without.
    fn adding(gpu: &mut Gpu, (m, n, k): (usize, usize, usize)) -> Case {
        let residual = Some(gpu.normal(m * n, 10.0).0);
        let bias = gpu.random.below(2) == 0;
        Case { residual, ..Case::new(gpu, (m, n, k), bias) }
    }

    fn expected(&self) -> Vec<f64> {
        let widen = |values: &[bf16]| -> Vec<f32> { values.iter().map(|v| v.to_f32()).collect() };
        let (x, weight) = (widen(&self.x), widen(&self.weight));
        let mut expected = Vec::with_capacity(self.m * self.n);
        for row in x.chunks_exact(self.k) {
            for (column, weight) in weight.chunks_exact(self.k).enumerate() {
                let product = |(x, w): (&f32, &f32)| f64::from(*x) * f64::from(*w);
                let sum: f64 = row.iter().zip(weight).map(product).sum();
                let bias = self.bias.as_ref().map_or(0.0, |bias| bias[column].to_f64());
                let at = expected.len();
                let residual = self.residual.as_ref().map_or(0.0, |values| values[at].to_f64());
                expected.push(sum + bias + residual);
            }
        }
        expected
    }

    /// Launches, or tunes and launches, and returns the output; an f32 output rounded to bf16.
    fn run(&self, gpu: &Gpu, gemm: &mut Gemm, f32_out: bool, tune: bool) -> Vec<bf16> {
        let (x, weight) = (gpu.upload(&self.x), gpu.upload(&self.weight));
        let bias = self.bias.as_ref().map(|bias| gpu.upload(bias));
        let mut out_f32 = gpu.upload(&vec![f32::NAN; self.m * self.n]);
        let mut out = gpu.poisoned(self.m * self.n);
        for tuning in [true, false] {
            if let Some(residual) = &self.residual {
                out = gpu.upload(residual);
            }
            let args = GemmArgs {
                x: (&x).into(),
                weight: (&weight).into(),
                bias: bias.as_ref().map(Into::into),
                out: match (f32_out, &self.residual) {
                    (true, _) => GemmOut::F32((&mut out_f32).into()),
                    (false, None) => GemmOut::Bf16((&mut out).into()),
                    (false, Some(_)) => GemmOut::AddTo((&mut out).into()),
                },
                m: self.m,
                n: self.n,
                k: self.k,
            };
            match (tuning, tune) {
                (true, false) => {}
                (true, true) => {
                    let budget = Duration::from_secs(1);
                    let shape = args.shape();
                    let found = gemm.tune(&gpu.device, args, &[], budget).unwrap();
                    assert!(found.best_s > 0.0 && found.best_s <= found.first_s, "{found:?}");
                    assert!(gemm.is_tuned(shape));
                }
                (false, _) => gemm.launch(&gpu.device, args).unwrap(),
            }
        }
        match f32_out {
            true => gpu.download(&out_f32).into_iter().map(bf16::from_f32).collect(),
            false => gpu.download(&out),
        }
    }
}

pub fn gemm(gpu: &mut Gpu) {
    let mut gemm = Gemm::open(&gpu.device, None).unwrap();
    for &m in gpu.row_counts() {
        for shape in [(m, 8, 8), (m, 24, 136), (m, 520, 264)] {
            for (bias, f32_out) in [(false, false), (true, false), (false, true)] {
                let case = Case::new(gpu, shape, bias);
                let out = case.run(gpu, &mut gemm, f32_out, false);
                let what = format!("{shape:?}, bias {bias}, f32 {f32_out}");
                // Sums of `k` products cancel: their f32 rounding is against the size of the terms.
                assert_close(&what, &out, &case.expected(), 2e-4);
            }
            let case = Case::adding(gpu, shape);
            let out = case.run(gpu, &mut gemm, false, false);
            // Some algorithms round the product before they add: half a unit of it more.
            assert_close(&format!("{shape:?}, adding"), &out, &case.expected(), 0.3);
        }
    }
}

pub fn tuned(gpu: &mut Gpu) {
    let mut gemm = Gemm::open(&gpu.device, None).unwrap();
    let cases = [Case::new(gpu, (33, 1024, 512), true), Case::adding(gpu, (130, 512, 1024))];
    let outs = cases.each_ref().map(|case| case.run(gpu, &mut gemm, false, true));
    for (case, out) in cases.iter().zip(&outs) {
        let rounded = if case.residual.is_some() { 0.5 } else { 1e-3 };
        assert_close("tuned", out, &case.expected(), rounded);
    }

    // Another start takes over what was found, and computes the same bits.
    let saved = gemm.save(&gpu.device);
    let mut again = Gemm::open(&gpu.device, None).unwrap();
    assert_eq!(again.restore(&gpu.device, &saved), 2, "{saved}");
    for (case, out) in cases.iter().zip(&outs) {
        assert_eq!(&case.run(gpu, &mut again, false, false), out);
    }
    assert_eq!(again.save(&gpu.device), saved);
    // Not from another library or GPU, nor half a file.
    assert_eq!(again.restore(&gpu.device, &saved.replacen("cublasLt", "cublasLt 1", 1)), 0);
    assert_eq!(again.restore(&gpu.device, saved.trim_end_matches(|c| c != ' ')), 0);
}
