//! Times of a layer of experts in e4m3 in the shape of Qwen3-30B-A3B-FP8, over cold weights.

use cudarc::driver::CudaSlice;
use half::bf16;
use minisgl_kernels::fp8::ScaleForm;
use minisgl_kernels::ops::*;

use crate::bench::{Show, fill, time};
use crate::support::Gpu;

const SHAPE: ExpertsShape = ExpertsShape { experts: 128, top: 8, hidden: 2048, width: 768 };
/// Layers with weights of their own: two and a half gigabytes.
const LAYERS: usize = 4;

struct Layer {
    router: CudaSlice<bf16>,
    gate_up: (CudaSlice<u8>, CudaSlice<f32>),
    down: (CudaSlice<u8>, CudaSlice<f32>),
}

/// Codes without NaN, and scales of one.
fn matrix(
    gpu: &mut Gpu,
    form: ScaleForm,
    [experts, rows, columns]: [usize; 3],
) -> (CudaSlice<u8>, CudaSlice<f32>) {
    // A megabyte, over and over.
    let some: Vec<u8> = (0..1 << 20).map(|_| gpu.random.bits() as u8 & 0xbf).collect();
    let stream = gpu.device.stream().clone();
    let some = gpu.upload(&some);
    let mut all = stream.alloc_zeros::<u8>(experts * expert_slabs_fp8_len(rows, columns)).unwrap();
    for at in (0..all.len()).step_by(some.len()) {
        let end = all.len().min(at + some.len());
        stream.memcpy_dtod(&some.slice(..end - at), &mut all.slice_mut(at..end)).unwrap();
    }
    (all, gpu.upload(&vec![1.0; experts * expert_scales_len(form, rows, columns)]))
}

pub fn bench(gpu: &mut Gpu, show: Show<'_>) {
    for form in [ScaleForm::Block, ScaleForm::Row] {
        bench_form(gpu, form, show);
    }
}

fn bench_form(gpu: &mut Gpu, form: ScaleForm, show: Show<'_>) {
    let ExpertsShape { experts, top, hidden, width } = SHAPE;
    let layers: Vec<Layer> = (0..LAYERS)
        .map(|_| Layer {
            router: fill(gpu, experts * hidden),
            gate_up: matrix(gpu, form, [experts, 2 * width, hidden]),
            down: matrix(gpu, form, [experts, hidden, width]),
        })
        .collect();
    for rows in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 8192] {
        for few in [true, false] {
            if few && !ExpertsFewFp8::takes(&gpu.device, SHAPE, rows) || !few && rows < 16 {
                continue;
            }
            if !few && !ExpertsManyFp8::takes(&gpu.device) {
                continue;
            }
            let batch = if few { ExpertsFewFp8::BATCH } else { ExpertsManyFp8::batch(SHAPE, rows) };
            let (x, norm) = (fill(gpu, rows * hidden), fill(gpu, hidden));
            // One set for each launch: every layer's rows go elsewhere.
            let logits: Vec<f32> = (0..rows * experts).map(|_| gpu.random.normal()).collect();
            let mut logits = gpu.upload(&logits);
            let (mut normed, mut out) = (gpu.poisoned(rows * hidden), fill(gpu, rows * hidden));
            let mut ids = gpu.upload(&vec![0; rows * top]);
            let mut weights = gpu.upload(&vec![0.0_f32; rows * top]);
            let mut plan = gpu.upload(&vec![0; Routed::plan_len(SHAPE, rows, batch)]);
            let mut workspace = gpu.upload(&vec![0; Router::workspace_len(SHAPE, rows)]);
            let mut counts = gpu.upload(&[0; ExpertsFewFp8::WORKSPACE_LEN]);
            let mut act = gpu.poisoned(ExpertsManyFp8::act_len(SHAPE, rows));
            let mut y = gpu.poisoned(if few { 0 } else { ExpertsManyFp8::y_len(SHAPE, rows) });
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
                let experts = ExpertWeightsFp8 {
                    gate_up: ExpertMatrixFp8 {
                        codes: (&layer.gate_up.0).into(),
                        scales: (&layer.gate_up.1).into(),
                        form,
                    },
                    down: ExpertMatrixFp8 {
                        codes: (&layer.down.0).into(),
                        scales: (&layer.down.1).into(),
                        form,
                    },
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
                    ExpertsFewFp8 {
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
                    ExpertsManyFp8 {
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
            let bytes = chosen.len() * 3 * hidden * width;
            let way = if few { "few" } else { "many" };
            let name = format!("experts, e4m3 {form:?}, {way}, {} of 128", chosen.len());
            show(&name, rows, bytes, seconds);
            let flops = (6 * rows * top * hidden * width) as f64;
            if rows >= 512 {
                println!("{:>34} {rows:>6} {:>10.0} TFLOP/s", "", flops / seconds / 1e12);
            }
        }
    }
}
