//! SiLU-and-multiply.

use minisgl_kernels::ops::SiluMul;

use crate::support::{Gpu, assert_close};

pub fn silu_mul(gpu: &mut Gpu) {
    let widths: &[usize] = if gpu.small { &[8, 1536] } else { &[8, 1536, 3072, 12_288] };
    for &width in widths {
        for &rows in gpu.row_counts() {
            let rows = rows.min((1 << 23) / width);
            // Wide enough that exp under- and overflows.
            let scale = gpu.random.of(&[1.0, 40.0]);
            let (x, x_gpu) = gpu.normal(rows * 2 * width, scale);
            let mut out = gpu.poisoned(rows * width);
            SiluMul { gate_up: (&x_gpu).into(), out: (&mut out).into(), rows, width }
                .launch(&gpu.device)
                .unwrap();
            let mut expected = Vec::with_capacity(rows * width);
            for row in x.chunks_exact(2 * width) {
                for (gate, up) in row[..width].iter().zip(&row[width..]) {
                    let gate = gate.to_f64();
                    expected.push(gate / (1.0 + (-gate).exp()) * up.to_f64());
                }
            }
            assert_close(&format!("{rows} x {width}"), &gpu.download(&out), &expected, 1e-5);
        }
    }
}
