//! RMSNorm, of all rows and of some.

use minisgl_kernels::ops::RmsNorm;

use crate::support::{Gpu, POISON, assert_close};

pub fn rmsnorm(gpu: &mut Gpu) {
    let hiddens: &[usize] = if gpu.small {
        &[8, 576, 1024, 8200, 16_384]
    } else {
        &[8, 64, 576, 1024, 4096, 5120, 8192, 8200, 16_384]
    };
    for &hidden in hiddens {
        for &x_rows in gpu.row_counts() {
            let x_rows = x_rows.min((1 << 24) / hidden);
            // Every row, or some in any order, with padding between.
            let index: Option<Vec<i32>> = (gpu.random.below(2) == 0).then(|| {
                let count = 1 + gpu.random.below(x_rows + 2);
                (0..count).map(|_| gpu.random.below(x_rows + 2) as i32 - 1).collect()
            });
            let rows = index.as_ref().map_or(x_rows, Vec::len);
            let eps = gpu.random.of(&[1e-6, 1e-5]);
            let scale = gpu.random.of(&[1e-3, 1.0, 100.0]);
            let (x, x_gpu) = gpu.normal(x_rows * hidden, scale);
            let (weight, weight_gpu) = gpu.normal(hidden, 1.0);
            let index_gpu = index.as_ref().map(|index| gpu.upload(index));
            let mut out = gpu.poisoned(rows * hidden);
            RmsNorm {
                x: (&x_gpu).into(),
                index: index_gpu.as_ref().map(Into::into),
                weight: (&weight_gpu).into(),
                out: (&mut out).into(),
                rows,
                x_rows,
                hidden,
                eps,
            }
            .launch(&gpu.device)
            .unwrap();

            let out = gpu.download(&out);
            let what = format!("{rows} of {x_rows} x {hidden}");
            for row in 0..rows {
                let from = index.as_ref().map_or(row as i32, |index| index[row]);
                let got = &out[row * hidden..][..hidden];
                if !(0..x_rows as i32).contains(&from) {
                    assert!(got.iter().all(|v| v.to_bits() == POISON), "{what}: padding {row}");
                    continue;
                }
                let x = &x[from as usize * hidden..][..hidden];
                let mean = x.iter().map(|v| v.to_f64() * v.to_f64()).sum::<f64>() / hidden as f64;
                let scale = 1.0 / (mean + f64::from(eps)).sqrt();
                let normed = x.iter().zip(&weight).map(|(v, w)| v.to_f64() * scale * w.to_f64());
                let expected: Vec<f64> = normed.collect();
                assert_close(&format!("{what}, row {row}"), got, &expected, 1e-6);
            }
        }
    }
}
