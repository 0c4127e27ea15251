//! Greedy sampling: ties and values that no model should give.

use minisgl_kernels::abi::SampleRow;

use crate::reference;
use crate::sampler::{Launch, launch};
use crate::support::Gpu;

/// Ties go to the lowest id.
pub fn greedy(gpu: &mut Gpu) {
    let vocabs: &[usize] =
        if gpu.small { &[1, 5, 4099] } else { &[1, 3, 130, 4099, 49_152, 151_936] };
    for &vocab in vocabs {
        for rows in [1, 3, 64] {
            // Few distinct values: ties everywhere.
            let levels = gpu.random.of(&[3, 100, 1 << 20]);
            let logits: Vec<f32> = (0..rows * vocab.next_multiple_of(4))
                .map(|_| gpu.random.below(levels) as f32 / 8.0 - 5.0)
                .collect();
            check(gpu, rows, vocab, &logits);
        }
    }
}

/// +inf is the largest finite float, -0 is +0; a NaN, or -inf alone, leaves nothing to sample from.
pub fn special_values(gpu: &mut Gpu) {
    let choices = [
        f32::NAN,
        -f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::MAX,
        f32::MIN,
        0.0,
        -0.0,
        1e-45,
    ];
    for vocab in [1_usize, 2, 37, 5000] {
        let rows = 200;
        let stride = vocab.next_multiple_of(4);
        let mut logits = vec![0.0; rows * stride];
        for row in logits.chunks_exact_mut(stride) {
            // Some of the special values in each row, often one only.
            let from = gpu.random.below(choices.len());
            let some = &choices[from..(from + 1 + gpu.random.below(3)).min(choices.len())];
            row.fill_with(|| gpu.random.of(some));
        }
        check(gpu, rows, vocab, &logits);
    }
}

fn check(gpu: &mut Gpu, rows: usize, vocab: usize, logits: &[f32]) {
    let stride = vocab.next_multiple_of(4);
    let mut out_index: Vec<i32> = (0..rows as i32 + 3).collect();
    gpu.random.shuffle(&mut out_index);
    out_index.truncate(rows);
    if rows > 2 {
        out_index[1] = gpu.random.of(&[-1, rows as i32 + 3]);
    }
    let draws: Vec<SampleRow> = out_index.iter().map(|&out| SampleRow::drawn(0, 0, out)).collect();
    let mut tokens = gpu.upload(&vec![-7_i32; rows + 3]);
    launch(gpu, &Launch { logits, draws: &draws, rows, vocab, stride }, &mut tokens);
    let mut expected = vec![-7; rows + 3];
    for (row, &out) in out_index.iter().enumerate() {
        if (0..rows as i32 + 3).contains(&out) {
            let logits = &logits[row * stride..][..vocab];
            let (token, highest) = reference::first(&reference::cleaned(logits));
            let broken = logits.iter().any(|z| z.is_nan()) || highest == f32::NEG_INFINITY;
            expected[out as usize] = if broken { -1 } else { token as i32 };
        }
    }
    assert_eq!(gpu.download(&tokens), expected, "{rows} rows of {vocab}");
}
