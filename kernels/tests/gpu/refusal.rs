//! Arguments that do not fit are refused before anything reaches the GPU.

use std::ops::Range;

use minisgl_kernels::ops::{Gate, GateMul, HIDDEN_MAX, RmsNorm};
use minisgl_kernels::{Device, LaunchError};

use crate::support::{Gpu, assert_same};

pub fn refusals(gpu: &mut Gpu) {
    let (x, x_gpu) = gpu.normal(2 * 24, 1.0);
    let mut out = gpu.upload(&x);
    let refused = |result: Result<(), LaunchError>, why: &str| {
        let said = result.expect_err(why).to_string();
        assert!(said.contains(why), "{said:?} does not say {why:?}");
    };

    // The part of `out` that is offered, the shape that is claimed, and what is wrong with it.
    let mut silu = |part: Range<usize>, rows, width, device: &Device| {
        let mut out = out.slice_mut(part);
        GateMul { gate_up: (&x_gpu).into(), out: (&mut out).into(), rows, width, gate: Gate::Silu }
            .launch(device)
    };
    refused(silu(0..48, 1, 24, &gpu.device), "out has 48 elements");
    refused(silu(0..24, 2, 12, &gpu.device), "multiple of 8");
    refused(silu(1..25, 1, 24, &gpu.device), "16-byte aligned");
    refused(silu(0..24, 1, 24, &Device::open(0).unwrap()), "another stream");

    let wide = RmsNorm {
        x: (&x_gpu).into(),
        index: None,
        weight: (&x_gpu).into(),
        out: (&mut out).into(),
        rows: 1,
        x_rows: 1,
        hidden: HIDDEN_MAX + 8,
        eps: 1e-6,
        plus_one: false,
    };
    refused(wide.launch(&gpu.device), "the limit is 16384");
    gpu.device.synchronize().unwrap();
    assert_same("nothing ran", &gpu.download(&out), &x);

    // Nothing to do is no error.
    let (from, mut to) = (x_gpu.slice(..0), out.slice_mut(..0));
    GateMul { gate_up: (&from).into(), out: (&mut to).into(), rows: 0, width: 8, gate: Gate::Silu }
        .launch(&gpu.device)
        .unwrap();
}
