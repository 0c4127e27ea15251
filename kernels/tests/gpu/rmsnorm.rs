//! Residual add and RMSNorm.

use half::bf16;
use minisgl_kernels::ops::RmsNorm;

use crate::support::{Gpu, assert_close, assert_same};

pub fn rmsnorm(gpu: &mut Gpu) {
    let hiddens: &[usize] = if gpu.small {
        &[8, 576, 1024, 8200, 16_384]
    } else {
        &[8, 64, 576, 1024, 4096, 5120, 8192, 8200, 16_384]
    };
    for &hidden in hiddens {
        for &rows in gpu.row_counts() {
            let rows = rows.min((1 << 24) / hidden);
            let with_residual = gpu.random.below(3) > 0;
            let eps = gpu.random.of(&[1e-6, 1e-5]);
            let scale = gpu.random.of(&[1e-3, 1.0, 100.0]);
            let (x, x_gpu) = gpu.normal(rows * hidden, scale);
            let (residual, mut residual_gpu) = gpu.normal(rows * hidden, scale);
            let (weight, weight_gpu) = gpu.normal(hidden, 1.0);
            let mut out = gpu.poisoned(rows * hidden);
            RmsNorm {
                x: (&x_gpu).into(),
                residual: with_residual.then_some((&mut residual_gpu).into()),
                weight: (&weight_gpu).into(),
                out: (&mut out).into(),
                rows,
                hidden,
                eps,
            }
            .launch(&gpu.device)
            .unwrap();

            let add = |(x, r): (&bf16, &bf16)| bf16::from_f32(x.to_f32() + r.to_f32());
            let sum: Vec<bf16> =
                if with_residual { x.iter().zip(&residual).map(add).collect() } else { x };
            let mut expected = Vec::with_capacity(rows * hidden);
            for row in sum.chunks_exact(hidden) {
                let square = |v: &bf16| v.to_f64() * v.to_f64();
                let mean = row.iter().map(square).sum::<f64>() / hidden as f64;
                let scale = 1.0 / (mean + f64::from(eps)).sqrt();
                expected
                    .extend(row.iter().zip(&weight).map(|(v, w)| v.to_f64() * scale * w.to_f64()));
            }
            let what = format!("{rows} x {hidden}, residual {with_residual}");
            assert_close(&what, &gpu.download(&out), &expected, 1e-6);
            let stored = if with_residual { &sum } else { &residual };
            assert_same(&what, &gpu.download(&residual_gpu), stored);
        }
    }
}
