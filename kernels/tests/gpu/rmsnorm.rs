//! RMSNorm, of all rows and of some; and the norm of what a block gives, added to the residual stream.

use half::bf16;
use minisgl_kernels::ops::{AddNorm, RmsNorm};

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
            let (plus_one, of_weight) = gpu.random.of(&[(false, 1.0), (true, 0.01)]);
            let (weight, weight_gpu) = gpu.normal(hidden, of_weight);
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
                plus_one,
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
                let more = f64::from(u8::from(plus_one));
                let normed =
                    x.iter().zip(&weight).map(|(v, w)| v.to_f64() * scale * (more + w.to_f64()));
                let expected: Vec<f64> = normed.collect();
                assert_close(&format!("{what}, row {row}"), got, &expected, 1e-6);
            }
        }
    }
}

/// `residual += norm(x) * after`, then the norm of that by `next`.
pub fn add_norm(gpu: &mut Gpu) {
    let hiddens: &[usize] =
        if gpu.small { &[8, 576, 8200] } else { &[8, 64, 1152, 3840, 5376, 8192, 8200, 16_384] };
    for &hidden in hiddens {
        for &rows in gpu.row_counts() {
            let rows = rows.min((1 << 23) / hidden);
            let (eps, plus_one, wanted) = (1e-6, gpu.random.below(2) == 0, gpu.random.below(3) > 0);
            let of_weight = if plus_one { 0.01 } else { 1.0 };
            let scale = gpu.random.of(&[1e-2, 1.0, 100.0]);
            let (x, x_gpu) = gpu.normal(rows * hidden, scale);
            let (residual, mut residual_gpu) = gpu.normal(rows * hidden, 3.0);
            let (after, after_gpu) = gpu.normal(hidden, of_weight);
            let (next, next_gpu) = gpu.normal(hidden, of_weight);
            let mut normed = gpu.poisoned(rows * hidden);
            AddNorm {
                x: (&x_gpu).into(),
                after: (&after_gpu).into(),
                residual: (&mut residual_gpu).into(),
                next: wanted.then(|| ((&next_gpu).into(), (&mut normed).into())),
                rows,
                hidden,
                eps,
                plus_one,
            }
            .launch(&gpu.device)
            .unwrap();
            let (sums, normed) = (gpu.download(&residual_gpu), gpu.download(&normed));
            let more = f64::from(u8::from(plus_one));
            let norm = |x: &[bf16], weight: &[bf16]| -> Vec<f64> {
                let mean = x.iter().map(|v| v.to_f64() * v.to_f64()).sum::<f64>() / hidden as f64;
                let scale = 1.0 / (mean + f64::from(eps)).sqrt();
                x.iter()
                    .zip(weight)
                    .map(|(v, w)| v.to_f64() * scale * (more + w.to_f64()))
                    .collect()
            };
            for row in 0..rows {
                let what = format!("row {row} of {rows} x {hidden}, less 1 {plus_one}");
                let of = row * hidden..(row + 1) * hidden;
                let old = residual[of.clone()].iter().map(|old| old.to_f64());
                let expected: Vec<f64> =
                    norm(&x[of.clone()], &after).into_iter().zip(old).map(|(a, b)| a + b).collect();
                // The two may all but cancel: what f32 loses then is of their own size.
                assert_close(&format!("{what}, sum"), &sums[of.clone()], &expected, 1e-5);
                if wanted {
                    // Of the sum as it was rounded.
                    let expected = norm(&sums[of.clone()], &next);
                    assert_close(&format!("{what}, its norm"), &normed[of], &expected, 1e-6);
                } else {
                    assert!(normed[of].iter().all(|v| v.to_bits() == POISON), "{what}");
                }
            }
        }
    }
}
