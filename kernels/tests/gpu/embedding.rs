//! Embedding lookup: exact copies, or copies times a scale, rounded once.

use half::bf16;
use minisgl_kernels::ops::Embedding;

use crate::support::{Gpu, assert_same};

pub fn embedding(gpu: &mut Gpu) {
    for hidden in [8, 576, 1024, 4096] {
        for &rows in gpu.row_counts() {
            let (vocab, vocab_start, vocab_len) = gpu.random.of(&[(300, 0, 300), (300, 100, 77)]);
            let (table, table_gpu) = gpu.normal(vocab_len * hidden, 1.0);
            // What the step before sampled, one of them not sampled at all.
            let mut fed: Vec<i32> = (0..50).map(|_| gpu.random.below(vocab) as i32).collect();
            fed[7] = -1;
            // Literal ids, references, and what must not be followed.
            let tokens: Vec<i32> = (0..rows)
                .map(|_| match gpu.random.below(10) {
                    0 => gpu.random.of(&[i32::MIN, i32::MAX, -51, vocab as i32]),
                    1..5 => -(gpu.random.below(50) as i32) - 1,
                    _ => gpu.random.below(vocab) as i32,
                })
                .collect();
            let scale = gpu.random.of(&[1.0, 33.75]);
            let mut out = gpu.poisoned(rows * hidden);
            Embedding {
                tokens: (&gpu.upload(&tokens)).into(),
                fed: (&gpu.upload(&fed)).into(),
                table: (&table_gpu).into(),
                out: (&mut out).into(),
                rows,
                hidden,
                vocab_start,
                vocab_len,
                scale,
            }
            .launch(&gpu.device)
            .unwrap();

            let zeros = vec![bf16::ZERO; hidden];
            let expected = tokens.iter().flat_map(|&token| {
                let fed = |at: i64| fed.get(at as usize).map_or(-1, |&id| i64::from(id));
                let id = if token < 0 { fed(-i64::from(token) - 1) } else { i64::from(token) };
                let local = usize::try_from(id - vocab_start as i64).unwrap_or(usize::MAX);
                match local < vocab_len {
                    true => &table[local * hidden..][..hidden],
                    false => &zeros[..],
                }
            });
            let expected: Vec<bf16> =
                expected.map(|x| bf16::from_f32(x.to_f32() * scale)).collect();
            assert_same(&format!("{rows} rows of {hidden}"), &gpu.download(&out), &expected);
        }
    }
}
