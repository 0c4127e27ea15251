//! What stands between the projections of a feed-forward block.

use minisgl_kernels::ops::{Gate, GateMul};

use crate::support::{Gpu, assert_close};

pub const GATES: [Gate; 3] = [Gate::Silu, Gate::Clamped, Gate::GeluTanh];

/// In f64.
pub fn gate_of(gate: Gate, x: f64, up: f64) -> f64 {
    match gate {
        Gate::Silu => x / (1.0 + (-x).exp()) * up,
        Gate::Clamped => {
            let (x, up) = (x.min(7.0), up.clamp(-7.0, 7.0));
            x / (1.0 + (-1.702 * x).exp()) * (up + 1.0)
        }
        Gate::GeluTanh => {
            let inner = std::f64::consts::FRAC_2_PI.sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh()) * up
        }
    }
}

pub fn gate_mul(gpu: &mut Gpu) {
    let widths: &[usize] = if gpu.small { &[8, 1536] } else { &[8, 1536, 3072, 12_288] };
    for (gate, &width) in
        GATES.iter().flat_map(|gate| widths.iter().map(move |width| (gate, width)))
    {
        for &rows in gpu.row_counts() {
            let rows = rows.min((1 << 23) / width);
            // Wide enough that exp under- and overflows, and that values are cut.
            let scale = gpu.random.of(&[1.0, 40.0]);
            let (x, x_gpu) = gpu.normal(rows * 2 * width, scale);
            let mut out = gpu.poisoned(rows * width);
            GateMul { gate_up: (&x_gpu).into(), out: (&mut out).into(), rows, width, gate: *gate }
                .launch(&gpu.device)
                .unwrap();
            let mut expected = Vec::with_capacity(rows * width);
            for row in x.chunks_exact(2 * width) {
                for (x, up) in row[..width].iter().zip(&row[width..]) {
                    expected.push(gate_of(*gate, x.to_f64(), up.to_f64()));
                }
            }
            // Where gelu's tail is all but 0, so is what f32 makes of it.
            let off = if *gate == Gate::GeluTanh { 1e-4 } else { 1e-5 };
            assert_close(
                &format!("{gate:?}, {rows} x {width}"),
                &gpu.download(&out),
                &expected,
                off,
            );
        }
    }
}
