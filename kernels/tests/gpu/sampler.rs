//! The sampler, held to its definition token by token.

use cudarc::driver::CudaSlice;
use minisgl_kernels::Device;
use minisgl_kernels::abi::SampleRow;
use minisgl_kernels::ops::{HistoryReset, Sample, sample_scratch_len};

use crate::reference::{self, Extras};
use crate::support::{Gpu, Random};

/// Most likely tokens that a row of these tests can ask for.
const TOP_MAX: usize = 20;

/// Every combination of settings, over a middling vocabulary.
pub fn settings(gpu: &mut Gpu) {
    for _ in 0..if gpu.small { 2 } else { 20 } {
        check(gpu, 5000, 64, true);
    }
}

/// From one token to the largest vocabulary there may be.
pub fn vocabularies(gpu: &mut Gpu) {
    let vocabs: &[usize] = if gpu.small {
        &[1, 2, 513, 4097]
    } else {
        &[1, 2, 7, 511, 512, 513, 4097, 8193, 32_000, 49_152, 128_256, 151_936, 262_144]
    };
    for &vocab in vocabs {
        check(gpu, vocab, if vocab > 100_000 { 24 } else { 48 }, true);
        check(gpu, vocab, 5, true); // Few rows are cut up otherwise.
    }
}

/// The path of GPUs without clusters, where long rows are worked on in memory.
pub fn scratch(gpu: &mut Gpu) {
    let vocabs: &[usize] = if gpu.small { &[700, 60_000] } else { &[700, 60_000, 151_936] };
    for &vocab in vocabs {
        check(gpu, vocab, 16, false);
    }
}

/// Token counts as a request starts, and as sampling adds to them.
pub fn history(gpu: &mut Gpu) {
    let vocab = 1000;
    for len in [0, 1, 300, 5000] {
        let tokens: Vec<u32> = (0..len).map(|_| gpu.random.below(vocab + 10) as u32).collect();
        let prompt_len = gpu.random.below(len + 1);
        let mut marks = gpu.upload(&vec![0_u32; vocab]);
        if len > 0 {
            HistoryReset {
                tokens: (&gpu.upload(&tokens)).into(),
                marks: (&mut marks).into(),
                prompt_len,
            }
            .launch(&gpu.device)
            .unwrap();
        }
        let mut expected = vec![0; vocab];
        for (at, &token) in tokens.iter().enumerate() {
            match expected.get_mut(token as usize) {
                Some(mark) if at < prompt_len => *mark |= 1,
                Some(mark) => *mark += 2,
                None => {}
            }
        }
        assert_eq!(gpu.download(&marks), expected, "{len} tokens, {prompt_len} of them prompt");
    }
}

/// Logits in the shapes that matter: peaked, flat, tied, and with values no model should give.
fn logits(random: &mut Random, vocab: usize) -> Vec<f32> {
    let kind = random.below(6);
    let scale = random.of(&[0.5, 3.0, 10.0]);
    let constant = random.normal();
    (0..vocab)
        .map(|_| match kind {
            0 => constant,
            1 => (random.normal() * 2.0).round() / 2.0,
            2 => match random.below(8) {
                0 => random.of(&[f32::NAN, f32::NEG_INFINITY, -0.0, f32::MIN, 1e-40]),
                1 if random.below(20) == 0 => random.of(&[f32::INFINITY, f32::MAX]),
                _ => random.normal() * scale,
            },
            3 if random.below(200) > 0 => f32::NEG_INFINITY,
            _ => random.normal() * scale,
        })
        .collect()
}

fn row(random: &mut Random, vocab: usize, out: i32) -> SampleRow {
    let maybe = |random: &mut Random| random.below(2) == 0;
    SampleRow {
        seed: random.bits(),
        position: random.below(1 << 20) as u32,
        temperature: random.of(&[0.0, 0.6, 1.0, 1.7, 1e-6, 50.0, f32::NAN, f32::INFINITY]),
        top_k: if maybe(random) { random.of(&[1, 2, 20, 50, vocab as u32, u32::MAX]) } else { 0 },
        top_p: if maybe(random) { random.of(&[0.0, 1e-6, 0.5, 0.9, 0.999_999]) } else { 1.0 },
        min_p: if maybe(random) { random.of(&[1e-7, 0.05, 0.5, 1.0]) } else { 0.0 },
        repetition_penalty: random.of(&[1.0, 1.3, 0.8]),
        presence_penalty: random.of(&[0.0, 1.5, -2.0]),
        frequency_penalty: random.of(&[0.0, 0.7, -0.1]),
        logprobs: random.of(&[-1, 0, 1, 5, TOP_MAX as i32]),
        ..SampleRow::greedy(0, out)
    }
}

/// Rows that want a token and nothing else.
pub struct Launch<'a> {
    pub logits: &'a [f32],
    pub params: &'a [SampleRow],
    pub rows: usize,
    pub vocab: usize,
    pub stride: usize,
}

pub fn launch(gpu: &Gpu, what: &Launch<'_>, tokens: &mut CudaSlice<i32>) {
    let &Launch { logits, params, rows, vocab, stride } = what;
    let (none_u32, none_f32) = (gpu.upload(&[0_u32]), gpu.upload(&[0_f32]));
    let mut unused = gpu.upload(&[0_f32]);
    let (mut none, mut logprob) = (gpu.upload(&[0_i32]), gpu.upload(&vec![0_f32; rows]));
    let mut no_scratch = gpu.upload(&[0_f32]);
    let mut marks = gpu.upload(&[0_u32]);
    Sample {
        logits: (&gpu.upload(logits)).into(),
        params: (&gpu.upload(params)).into(),
        bias_tokens: (&none_u32).into(),
        bias_values: (&none_f32).into(),
        banned: (&none_u32).into(),
        marks: (&mut marks.slice_mut(..0)).into(),
        scratch: (&mut no_scratch.slice_mut(..0)).into(),
        tokens: tokens.into(),
        logprob: (&mut logprob).into(),
        top_tokens: (&mut none.slice_mut(..0)).into(),
        top_logprobs: (&mut unused.slice_mut(..0)).into(),
        rows,
        vocab,
        stride,
        top_max: 0,
    }
    .launch(&gpu.device)
    .unwrap();
}

fn check(gpu: &mut Gpu, vocab: usize, rows: usize, clusters: bool) {
    let own;
    let random = &mut gpu.random;
    let stride = vocab.next_multiple_of(4) + random.of(&[0, 4]);
    let tables = rows / 2;

    // One row after the other: logits, settings, and what they refer to.
    let mut z = Vec::with_capacity(rows * stride);
    let (mut params, mut biases, mut bans) = (Vec::new(), Vec::new(), Vec::new());
    let (mut bias_tokens, mut bias_values, mut banned) = (Vec::new(), Vec::new(), Vec::new());
    for at in 0..rows {
        z.extend(logits(random, vocab));
        z.resize((at + 1) * stride, 1e30); // What is past the vocabulary must not count.
        let mut row = row(random, vocab, (rows - at) as i32);
        let some = |random: &mut Random| -> Vec<u32> {
            let count = if random.below(3) == 0 { random.below(300) } else { 0 };
            let mut tokens: Vec<u32> = (0..count).map(|_| random.below(vocab) as u32).collect();
            tokens.sort_unstable();
            tokens.dedup();
            random.shuffle(&mut tokens);
            tokens
        };
        let bias: Vec<(u32, f32)> =
            some(random).into_iter().map(|token| (token, random.normal() * 30.0)).collect();
        let ban = some(random);
        (row.bias_at, row.bias_len) = (bias_tokens.len() as u32, bias.len() as u32);
        (row.banned_at, row.banned_len) = (banned.len() as u32, ban.len() as u32);
        row.history = if at % 2 == 0 && at / 2 < tables { (at / 2) as i32 } else { -1 };
        if at % 7 == 3 {
            row = SampleRow::padding();
        }
        bias_tokens.extend(bias.iter().map(|&(token, _)| token));
        bias_values.extend(bias.iter().map(|&(_, bias)| bias));
        banned.extend(&ban);
        params.push(row);
        biases.push(bias);
        bans.push(ban);
    }
    let mut marks: Vec<u32> = (0..tables * vocab)
        .map(|_| if random.below(5) == 0 { random.below(9) as u32 } else { 0 })
        .collect();
    // Nothing of a row's, but an array must not be empty to be put on the GPU.
    bias_tokens.push(0);
    bias_values.push(0.0);
    banned.push(0);

    let device: &Device = if clusters {
        &gpu.device
    } else {
        own = Device::open(0).unwrap().without_clusters();
        &own
    };
    let stream = device.stream();
    let mut tokens = stream.clone_htod(&vec![-7_i32; rows + 1]).unwrap();
    let mut logprob = stream.clone_htod(&vec![7.0_f32; rows]).unwrap();
    let mut top_tokens = stream.clone_htod(&vec![-7_i32; rows * TOP_MAX]).unwrap();
    let mut top_logprobs = stream.clone_htod(&vec![7.0_f32; rows * TOP_MAX]).unwrap();
    let mut marks_gpu = stream.clone_htod(&marks).unwrap();
    let scratch_len = sample_scratch_len(device, rows, vocab, stride);
    let mut scratch = stream.clone_htod(&vec![f32::NAN; scratch_len.max(1)]).unwrap();
    let z_gpu = stream.clone_htod(&z).unwrap();
    Sample {
        logits: (&z_gpu).into(),
        params: (&stream.clone_htod(&params).unwrap()).into(),
        bias_tokens: (&stream.clone_htod(&bias_tokens).unwrap()).into(),
        bias_values: (&stream.clone_htod(&bias_values).unwrap()).into(),
        banned: (&stream.clone_htod(&banned).unwrap()).into(),
        marks: (&mut marks_gpu).into(),
        scratch: (&mut scratch.slice_mut(..scratch_len)).into(),
        tokens: (&mut tokens).into(),
        logprob: (&mut logprob).into(),
        top_tokens: (&mut top_tokens).into(),
        top_logprobs: (&mut top_logprobs).into(),
        rows,
        vocab,
        stride,
        top_max: TOP_MAX,
    }
    .launch(device)
    .unwrap();

    let tokens = stream.clone_dtoh(&tokens).unwrap();
    let logprob = stream.clone_dtoh(&logprob).unwrap();
    let top_tokens = stream.clone_dtoh(&top_tokens).unwrap();
    let top_logprobs = stream.clone_dtoh(&top_logprobs).unwrap();
    let close = |a: f32, b: f32| a == b || (a - b).abs() <= 1e-6 * b.abs().max(1.0);
    let mut expected_tokens = vec![-7; rows + 1];
    for (at, row) in params.iter().enumerate() {
        let what = format!("vocabulary {vocab}, row {at}, clusters {clusters}: {row:?}");
        let top_at = at * TOP_MAX..(at + 1) * TOP_MAX;
        let mut expected_top = [(-7, 7.0); TOP_MAX];
        let mut expected_logprob = 7.0;
        if row.out >= 0 {
            let table = (row.history >= 0).then(|| row.history as usize * vocab..);
            let extras = Extras {
                bias: &biases[at],
                banned: &bans[at],
                marks: table.clone().map(|table| &marks[table][..vocab]),
            };
            let sampled = reference::sample(&z[at * stride..][..vocab], row, &extras);
            expected_tokens[row.out as usize] = sampled.token as i32;
            assert_eq!(tokens[row.out as usize], sampled.token as i32, "{what}");
            if let Some(table) = table {
                marks[table][sampled.token as usize] += 2;
            }
            if row.logprobs >= 0 {
                expected_logprob = sampled.logprob;
                expected_top[..row.logprobs as usize].fill((-1, f32::NEG_INFINITY));
                for (to, (token, logprob)) in expected_top.iter_mut().zip(sampled.top) {
                    *to = (token as i32, logprob);
                }
            }
        }
        assert!(close(logprob[at], expected_logprob), "{what}: {} {expected_logprob}", logprob[at]);
        for (i, &(token, expected)) in expected_top.iter().enumerate() {
            assert_eq!(top_tokens[top_at.clone()][i], token, "{what}: top {i}");
            assert!(close(top_logprobs[top_at.clone()][i], expected), "{what}: top {i}");
        }
    }
    assert_eq!(tokens, expected_tokens, "padding rows write nothing");
    assert_eq!(stream.clone_dtoh(&marks_gpu).unwrap(), marks, "vocabulary {vocab}: token counts");
}
