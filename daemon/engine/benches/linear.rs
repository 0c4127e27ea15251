//! The product of activations and weights, shape by shape, beside what the machine can do: reading
//! memory.
//!
//! `cargo bench -p minisgl-engine --bench linear [-- SHAPE]`; `RAYON_NUM_THREADS` sets the threads.

use std::hint::black_box;
use std::time::Instant;

use half::bf16;
use minisgl_engine::ops::cpu::{Matrix, linear};
use minisgl_engine::weights::HostTensor;
use pulp::Arch;
use rayon::prelude::*;

/// Outputs and inputs of SmolLM2-135M's products and of an 8B model's largest.
const SHAPES: [(&str, usize, usize); 6] = [
    ("qkv", 960, 576),
    ("o", 576, 576),
    ("gate_up", 3072, 576),
    ("down", 576, 1536),
    ("lm_head", 49152, 576),
    ("8B down", 4096, 14336),
];

fn main() {
    let threads = rayon::current_num_threads();
    println!("{threads} threads, {:?}", Arch::new());
    let block = vec![1u64; 64 << 20];
    let seconds = best(5, || {
        black_box(block.par_chunks(1 << 20).map(|chunk| chunk.iter().sum::<u64>()).sum::<u64>());
    });
    println!("reading memory: {:.1} GB/s", size_of_val(block.as_slice()) as f64 / seconds / 1e9);
    drop(block);

    let arch = Arch::new();
    let mut scratch = Vec::new();
    // Cargo adds flags of its own.
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    for (name, outputs, inputs) in SHAPES {
        if wanted.as_ref().is_some_and(|wanted| wanted != name) {
            continue;
        }
        let weights: Vec<f32> = (0..outputs * inputs).map(|i| (i % 251) as f32 - 125.0).collect();
        let half = weights.iter().map(|&weight| bf16::from_f32(weight)).collect();
        // Several copies, so that few rows find their weights in memory as a model of many layers does.
        let bytes = outputs * inputs * 2;
        let copies = ((256 << 20) / bytes).clamp(1, 64);
        let first = Matrix::new(vec![HostTensor::Bf16(half)], inputs, arch);
        let matrices: Vec<Matrix> = (0..copies).map(|_| first.clone()).collect();
        for rows in [1, 2, 4, 8, 16, 64, 512] {
            let x: Vec<f32> = (0..rows * inputs).map(|i| (i % 17) as f32 - 8.0).collect();
            let mut out = vec![0.0; rows * outputs];
            let repeats = 5;
            let count = if rows > 16 { 1.max(copies / 16) } else { copies };
            let seconds = best(repeats, || {
                for matrix in &matrices[..count] {
                    linear(arch, matrix, None, &x, &mut out, &mut scratch);
                }
            }) / count as f64;
            let flops = 2.0 * (rows * outputs * inputs) as f64;
            println!(
                "{name} [{outputs}, {inputs}], {rows} rows: {:.1} us, {:.1} GB/s, {:.1} GFLOP/s",
                seconds * 1e6,
                bytes as f64 / seconds / 1e9,
                flops / seconds / 1e9
            );
        }
    }
}

fn best(repeats: usize, mut run: impl FnMut()) -> f64 {
    run();
    let time = |_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    };
    (0..repeats).map(time).fold(f64::INFINITY, f64::min)
}
