//! Times of a layer of experts in the shape of Qwen3-30B-A3B, over cold weights.

use cudarc::driver::CudaSlice;
use half::bf16;
use minisgl_kernels::ops::*;

use crate::bench::{Show, fill, time};
use crate::support::Gpu;

const SHAPE: ExpertsShape = ExpertsShape { experts: 128, top: 8, hidden: 2048, width: 768 };
/// Layers with weights of their own: five gigabytes.
const LAYERS: usize = 4;

struct Layer {
    router: CudaSlice<bf16>,
    gate_up: CudaSlice<bf16>,
    down: CudaSlice<bf16>,
}

pub fn bench(gpu: &mut Gpu, show: Show<'_>) {
    let ExpertsShape { experts, top, hidden, width } = SHAPE;
    let layers: Vec<Layer> = (0..LAYERS)
        .map(|_| Layer {
            router: fill(gpu, experts * hidden),
            gate_up: fill(gpu, experts * expert_slabs_len(2 * width, hidden)),
            down: fill(gpu, experts * expert_slabs_len(hidden, width)),
        })
        .collect();
    for rows in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 8192] {
        for few in [true, false] {
            if few && !ExpertsFew::takes(&gpu.device, SHAPE, rows) || !few && rows < 16 {
                continue;
            }
            if !few && !ExpertsMany::takes(&gpu.device) {
                continue;
            }
            let batch = if few { ExpertsFew::BATCH } else { ExpertsMany::batch(SHAPE, rows) };
            let (x, norm) = (fill(gpu, rows * hidden), fill(gpu, hidden));
            // One set for each launch: every layer's rows go elsewhere.
            let logits: Vec<f32> = (0..rows * experts).map(|_| gpu.random.normal()).collect();
            let mut logits = gpu.upload(&logits);
            let (mut normed, mut out) = (gpu.poisoned(rows * hidden), fill(gpu, rows * hidden));
            let mut ids = gpu.upload(&vec![0; rows * top]);
            let mut weights = gpu.upload(&vec![0.0_f32; rows * top]);
            let mut plan = gpu.upload(&vec![0; Routed::plan_len(SHAPE, rows, batch)]);
            let mut workspace = gpu.upload(&vec![0; Router::workspace_len(SHAPE, rows)]);
            let mut counts = gpu.upload(&[0; ExpertsFew::WORKSPACE_LEN]);
            let mut act = gpu.poisoned(ExpertsMany::act_len(SHAPE, rows));
            let mut y = gpu.poisoned(if few { 0 } else { ExpertsMany::y_len(SHAPE, rows) });
            let seconds = time(gpu, 4 * LAYERS, |i| {
                let layer = &layers[i % LAYERS];
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
                let experts = ExpertWeights {
                    gate_up: (&layer.gate_up).into(),
                    down: (&layer.down).into(),
                    gate_up_bias: None,
                    down_bias: None,
                };
                let routed = Routed {
                    ids: (&ids).into(),
                    weights: (&weights).into(),
                    plan: (&plan).into(),
                    batch,
                };
                if few {
                    ExpertsFew {
                        x: (&normed).into(),
                        weights: experts,
                        routed,
                        gate: Gate::Silu,
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
                    ExpertsMany {
                        x: (&x).into(),
                        weights: experts,
                        routed,
                        gate: Gate::Silu,
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
            let bytes = chosen.len() * 6 * hidden * width;
            let name =
                format!("experts, {}, {} of 128", if few { "few" } else { "many" }, chosen.len());
            show(&name, rows, bytes, seconds);
            let flops = (6 * rows * top * hidden * width) as f64;
            if rows >= 512 {
                println!("{:>34} {rows:>6} {:>10.0} TFLOP/s", "", flops / seconds / 1e12);
            }
        }
    }
}
