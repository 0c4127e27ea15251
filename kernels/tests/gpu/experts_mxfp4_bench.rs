//! Times of a layer of experts in MXFP4 in the shape of gpt-oss-20b, over cold weights.

use cudarc::driver::CudaSlice;
use half::bf16;
use minisgl_kernels::ops::*;

use crate::bench::{Show, fill, time};
use crate::support::Gpu;

const SHAPE: ExpertsShape = ExpertsShape { experts: 32, top: 4, hidden: 2880, width: 2880 };
/// Layers with weights of their own: two and a half gigabytes.
const LAYERS: usize = 6;

struct Layer {
    router: CudaSlice<bf16>,
    gate_up: CudaSlice<u8>,
    down: CudaSlice<u8>,
    gate_up_bias: CudaSlice<bf16>,
    down_bias: CudaSlice<bf16>,
}

/// Slabs of random bytes. Scales among them are 2^61 at most: no sum is NaN.
fn slabs(gpu: &mut Gpu, len: usize) -> CudaSlice<u8> {
    // A megabyte, over and over.
    let some: Vec<u8> = (0..1 << 20).map(|_| gpu.random.bits() as u8 & 0xbb).collect();
    let stream = gpu.device.stream().clone();
    let some = gpu.upload(&some);
    let mut all = stream.alloc_zeros::<u8>(len).unwrap();
    for at in (0..len).step_by(some.len()) {
        let end = len.min(at + some.len());
        stream.memcpy_dtod(&some.slice(..end - at), &mut all.slice_mut(at..end)).unwrap();
    }
    all
}

pub fn bench(gpu: &mut Gpu, show: Show<'_>) {
    let ExpertsShape { experts, top, hidden, width } = SHAPE;
    let layers: Vec<Layer> = (0..LAYERS)
        .map(|_| Layer {
            router: fill(gpu, experts * hidden),
            gate_up: slabs(gpu, experts * expert_gate_up_mxfp4_len(width, hidden)),
            down: slabs(gpu, experts * expert_down_mxfp4_len(hidden, width)),
            gate_up_bias: fill(gpu, experts * 2 * width),
            down_bias: fill(gpu, experts * hidden),
        })
        .collect();
    for rows in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 8192] {
        for few in [true, false] {
            if few && !ExpertsFewMxfp4::takes(&gpu.device, SHAPE, rows) || !few && rows < 4 {
                continue;
            }
            if !few && !ExpertsManyMxfp4::takes(&gpu.device) {
                continue;
            }
            let batch =
                if few { ExpertsFewMxfp4::BATCH } else { ExpertsManyMxfp4::batch(SHAPE, rows) };
            let (x, norm) = (fill(gpu, rows * hidden), fill(gpu, hidden));
            let logits: Vec<f32> = (0..rows * experts).map(|_| gpu.random.normal()).collect();
            let mut logits = gpu.upload(&logits);
            let (mut normed, mut out) = (gpu.poisoned(rows * hidden), fill(gpu, rows * hidden));
            let mut ids = gpu.upload(&vec![0; rows * top]);
            let mut weights = gpu.upload(&vec![0.0_f32; rows * top]);
            let mut plan = gpu.upload(&vec![0; Routed::plan_len(SHAPE, rows, batch)]);
            let mut workspace = gpu.upload(&vec![0; Router::workspace_len(SHAPE, rows)]);
            let counts_len = if few { ExpertsFewMxfp4::workspace_len(SHAPE, rows) } else { 4 };
            let mut counts = gpu.upload(&vec![0; counts_len]);
            let mut act = gpu.poisoned(ExpertsManyMxfp4::act_len(SHAPE, rows));
            let y_len = if few { 0 } else { ExpertsManyMxfp4::y_len(SHAPE, rows) };
            let mut y = gpu.poisoned(y_len);
            for routes in [true, false] {
                let seconds = time(gpu, 4 * LAYERS, |i| {
                    let layer = &layers[i % LAYERS];
                    if routes {
                        Router {
                            input: match few {
                                true => RouterInput::Rows {
                                    x: (&x).into(),
                                    norm: Some(RouterNorm {
                                        weight: (&norm).into(),
                                        eps: 1e-6,
                                        normed: (&mut normed).into(),
                                    }),
                                    weight: (&layer.router).into(),
                                },
                                false => RouterInput::Logits { stride: experts },
                            },
                            bias: None,
                            logits: (&mut logits).into(),
                            choice: Choice {
                                score: Score::Softmax,
                                renormalise: true,
                                scale: 1.0,
                                there: None,
                            },
                            ids: (&mut ids).into(),
                            weights: (&mut weights).into(),
                            plan: (&mut plan).into(),
                            workspace: (&mut workspace).into(),
                            batch,
                            shape: SHAPE,
                            rows,
                        }
                        .launch(&gpu.device)
                        .unwrap();
                    }
                    let stored = ExpertWeightsMxfp4 {
                        gate_up: (&layer.gate_up).into(),
                        down: (&layer.down).into(),
                        gate_up_bias: Some((&layer.gate_up_bias).into()),
                        down_bias: Some((&layer.down_bias).into()),
                    };
                    let routed = Routed {
                        ids: (&ids).into(),
                        weights: (&weights).into(),
                        plan: (&plan).into(),
                        batch,
                    };
                    if few {
                        ExpertsFewMxfp4 {
                            x: (&normed).into(),
                            weights: stored,
                            routed,
                            gate: Gate::Clamped,
                            act: (&mut act).into(),
                            out: (&mut out).into(),
                            adds: true,
                            workspace: (&mut counts).into(),
                            shape: SHAPE,
                            rows,
                        }
                        .launch(&gpu.device)
                        .unwrap();
                    } else {
                        ExpertsManyMxfp4 {
                            x: (&x).into(),
                            weights: stored,
                            routed,
                            gate: Gate::Clamped,
                            act: (&mut act).into(),
                            y: (&mut y).into(),
                            out: (&mut out).into(),
                            adds: true,
                            shape: SHAPE,
                            rows,
                        }
                        .launch(&gpu.device)
                        .unwrap();
                    }
                });
                let mut chosen: Vec<i32> = gpu.download(&ids);
                chosen.sort_unstable();
                chosen.dedup();
                let bytes = chosen.len() * 3 * hidden * width * 17 / 32;
                let name = format!(
                    "MXFP4, {}{}, {} of 32",
                    if few { "few" } else { "many" },
                    if routes { " and router" } else { "" },
                    chosen.len()
                );
                show(&name, rows, bytes, seconds);
                let flops = (6 * rows * top * hidden * width) as f64;
                if rows >= 512 {
                    println!("{:>34} {rows:>6} {:>10.0} TFLOP/s", "", flops / seconds / 1e12);
                }
            }
        }
    }
}
