//! The sampler, held to its definition token by token.

use cudarc::driver::CudaSlice;
use minisgl_kernels::Device;
use minisgl_kernels::abi::{SampleParams, SampleRow};
use minisgl_kernels::ops::{HistoryReset, Sample, VOCAB_MAX, sample_scratch_len};
use minisgl_kernels::peers::{PeerShape, Peers, RANKS_MAX};

use crate::peers::Group;
use crate::reference::{self, Extras, NO_TOKEN};
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
        &[1, 2, 7, 511, 512, 513, 4097, 8193, 32_000, 49_152, 128_256, 151_936, 262_208, VOCAB_MAX]
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

/// Logits in the shapes that matter: peaked, flat, tied, with values no model should give, and with those that leave
/// nothing to sample from: one NaN somewhere, or -inf alone.
fn logits(random: &mut Random, vocab: usize) -> Vec<f32> {
    let kind = random.below(8);
    let broken_at = random.below(vocab);
    let scale = random.of(&[0.5, 3.0, 10.0]);
    let constant = random.normal();
    (0..vocab)
        .map(|at| match kind {
            0 => constant,
            1 => (random.normal() * 2.0).round() / 2.0,
            2 => match random.below(8) {
                0 => random.of(&[f32::NEG_INFINITY, -0.0, f32::MIN, 1e-40]),
                1 if random.below(20) == 0 => random.of(&[f32::INFINITY, f32::MAX]),
                _ => random.normal() * scale,
            },
            3 if random.below(200) > 0 => f32::NEG_INFINITY,
            6 if at == broken_at => f32::NAN,
            7 => f32::NEG_INFINITY,
            _ => random.normal() * scale,
        })
        .collect()
}

fn params(random: &mut Random, vocab: usize) -> SampleParams {
    let maybe = |random: &mut Random| random.below(2) == 0;
    SampleParams {
        seed: random.bits(),
        temperature: random.of(&[0.0, 0.6, 1.0, 1.7, 1e-6, 50.0, f32::NAN, f32::INFINITY]),
        top_k: if maybe(random) { random.of(&[1, 2, 20, 50, vocab as u32, u32::MAX]) } else { 0 },
        top_p: if maybe(random) { random.of(&[0.0, 1e-6, 0.5, 0.9, 0.999_999]) } else { 1.0 },
        min_p: if maybe(random) { random.of(&[1e-7, 0.05, 0.5, 1.0]) } else { 0.0 },
        repetition_penalty: random.of(&[1.0, 1.3, 0.8]),
        presence_penalty: random.of(&[0.0, 1.5, -2.0]),
        frequency_penalty: random.of(&[0.0, 0.7, -0.1]),
        ..SampleParams::default()
    }
}

fn row(random: &mut Random, vocab: usize, slot: u32, out: i32) -> SampleRow {
    SampleRow {
        logprobs: random.of(&[-1, 0, 1, 5, TOP_MAX as i32]),
        given: if random.below(4) == 0 { random.below(vocab) as i32 } else { -1 },
        ..SampleRow::drawn(slot, random.below(1 << 20) as u32, out)
    }
}

/// A mask that leaves much, little or nothing.
fn mask(random: &mut Random, vocab: usize) -> Vec<u32> {
    let sparse = random.below(3);
    let word = |random: &mut Random| match sparse {
        0 => random.bits() as u32,
        1 => (random.bits() & random.bits() & random.bits()) as u32,
        _ if random.below(vocab.div_ceil(64)) == 0 => 1 << random.below(32),
        _ => 0,
    };
    (0..vocab.div_ceil(32)).map(|_| word(random)).collect()
}

/// Rows that want a token and nothing else.
pub struct Launch<'a> {
    pub logits: &'a [f32],
    pub draws: &'a [SampleRow],
    pub rows: usize,
    pub vocab: usize,
    pub stride: usize,
}

pub fn launch(gpu: &Gpu, what: &Launch<'_>, tokens: &mut CudaSlice<i32>) {
    let &Launch { logits, draws, rows, vocab, stride } = what;
    let (none_u32, none_f32) = (gpu.upload(&[0_u32]), gpu.upload(&[0_f32]));
    let mut unused = gpu.upload(&[0_f32]);
    let (mut none, mut logprob) = (gpu.upload(&[0_i32]), gpu.upload(&vec![0_f32; rows]));
    let mut no_scratch = gpu.upload(&[0_f32]);
    let mut marks = gpu.upload(&[0_u32]);
    Sample {
        draws: (&gpu.upload(draws)).into(),
        params: (&gpu.upload(&[SampleParams::default()])).into(),
        masks: (&none_u32.slice(..0)).into(),
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
        top_max: 0,
    }
    .launch(&gpu.device, (&gpu.upload(logits)).into(), stride)
    .unwrap();
}

/// Rows of every kind, one after the other: logits, settings, and what they refer to.
struct Case {
    vocab: usize,
    stride: usize,
    /// `[rows, stride]`.
    logits: Vec<f32>,
    draws: Vec<SampleRow>,
    /// Of each row, in another order.
    params: Vec<SampleParams>,
    /// Of every third row, `[rows / 3, vocab / 32]`.
    masks: Vec<u32>,
    /// Of each row.
    biases: Vec<Vec<(u32, f32)>>,
    bans: Vec<Vec<u32>>,
    /// Of all rows.
    bias_tokens: Vec<u32>,
    bias_values: Vec<f32>,
    banned: Vec<u32>,
    /// `[rows / 2, vocab]`.
    marks: Vec<u32>,
}

impl Case {
    fn random(random: &mut Random, vocab: usize, rows: usize) -> Case {
        let stride = vocab.next_multiple_of(4) + random.of(&[0, 4]);
        let tables = rows / 2;
        let mut z = Vec::with_capacity(rows * stride);
        let (mut draws, mut biases, mut bans) = (Vec::new(), Vec::new(), Vec::new());
        let mut all_params = vec![SampleParams::default(); rows];
        let mut masks = Vec::new();
        let (mut bias_tokens, mut bias_values, mut banned) = (Vec::new(), Vec::new(), Vec::new());
        for at in 0..rows {
            z.extend(logits(random, vocab));
            z.resize((at + 1) * stride, 1e30); // What is past the vocabulary must not count.
            let slot = rows - 1 - at;
            let mut row = row(random, vocab, slot as u32, (rows - at) as i32);
            let mut params = params(random, vocab);
            if at % 3 == 1 {
                row.mask = (masks.len() / vocab.div_ceil(32)) as i32;
                masks.extend(mask(random, vocab));
            }
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
            (params.bias_at, params.bias_len) = (bias_tokens.len() as u32, bias.len() as u32);
            (params.banned_at, params.banned_len) = (banned.len() as u32, ban.len() as u32);
            // At this position, or no more.
            params.banned_below = row.position + random.below(2) as u32;
            params.history = if at % 2 == 0 && at / 2 < tables { (at / 2) as i32 } else { -1 };
            let is_banned = row.position < params.banned_below;
            if at % 7 == 3 {
                row = SampleRow::padding();
            }
            bias_tokens.extend(bias.iter().map(|&(token, _)| token));
            bias_values.extend(bias.iter().map(|&(_, bias)| bias));
            banned.extend(&ban);
            draws.push(row);
            all_params[slot] = params;
            biases.push(bias);
            bans.push(if is_banned { ban } else { Vec::new() });
        }
        let marks = (0..tables * vocab)
            .map(|_| if random.below(5) == 0 { random.below(9) as u32 } else { 0 })
            .collect();
        // Nothing of a row's, but an array must not be empty to be put on the GPU.
        bias_tokens.push(0);
        bias_values.push(0.0);
        banned.push(0);
        masks.extend(vec![0; vocab.div_ceil(32)]);
        let logits = z;
        Case {
            vocab,
            stride,
            logits,
            draws,
            params: all_params,
            masks,
            biases,
            bans,
            bias_tokens,
            bias_values,
            banned,
            marks,
        }
    }

    fn upload(&self, device: &Device, scratch_len: usize) -> OnGpu {
        let stream = device.stream();
        let rows = self.draws.len();
        OnGpu {
            draws: stream.clone_htod(&self.draws).unwrap(),
            params: stream.clone_htod(&self.params).unwrap(),
            masks: stream.clone_htod(&self.masks).unwrap(),
            bias_tokens: stream.clone_htod(&self.bias_tokens).unwrap(),
            bias_values: stream.clone_htod(&self.bias_values).unwrap(),
            banned: stream.clone_htod(&self.banned).unwrap(),
            // A token count for nobody, so that there is an array.
            marks: stream.clone_htod(&[&self.marks[..], &[0]].concat()).unwrap(),
            scratch: stream.clone_htod(&vec![f32::NAN; scratch_len.max(1)]).unwrap(),
            scratch_len,
            tokens: stream.clone_htod(&vec![-7_i32; rows + 1]).unwrap(),
            logprob: stream.clone_htod(&vec![7.0_f32; rows]).unwrap(),
            top_tokens: stream.clone_htod(&vec![-7_i32; rows * TOP_MAX]).unwrap(),
            top_logprobs: stream.clone_htod(&vec![7.0_f32; rows * TOP_MAX]).unwrap(),
        }
    }

    /// Holds what was drawn to the reference.
    fn verify(&self, device: &Device, on_gpu: &OnGpu, what: &str) {
        let (vocab, rows, stream) = (self.vocab, self.draws.len(), device.stream());
        let mut marks = self.marks.clone();
        let tokens = stream.clone_dtoh(&on_gpu.tokens).unwrap();
        let logprob = stream.clone_dtoh(&on_gpu.logprob).unwrap();
        let top_tokens = stream.clone_dtoh(&on_gpu.top_tokens).unwrap();
        let top_logprobs = stream.clone_dtoh(&on_gpu.top_logprobs).unwrap();
        let same = |a: f32, b: f32| a == b || a.is_nan() && b.is_nan();
        let close = |a: f32, b: f32| same(a, b) || (a - b).abs() <= 1e-6 * b.abs().max(1.0);
        let mut expected_tokens = vec![-7; rows + 1];
        for (at, row) in self.draws.iter().enumerate() {
            let params = &self.params[row.slot as usize];
            let what = format!("{what}, row {at}: {row:?} {params:?}");
            let top_at = at * TOP_MAX..(at + 1) * TOP_MAX;
            let mut expected_top = [(-7, 7.0); TOP_MAX];
            let mut expected_logprob = 7.0;
            if row.out >= 0 {
                let table = (params.history >= 0).then(|| params.history as usize * vocab..);
                let words = vocab.div_ceil(32);
                let extras = Extras {
                    bias: &self.biases[at],
                    banned: &self.bans[at],
                    marks: table.clone().map(|table| &marks[table][..vocab]),
                    mask: (row.mask >= 0)
                        .then(|| &self.masks[row.mask as usize * words..][..words]),
                };
                let logits = &self.logits[at * self.stride..][..vocab];
                let sampled = reference::sample(logits, (row, params), &extras);
                // What is given is neither drawn nor counted.
                if row.given < 0 {
                    expected_tokens[row.out as usize] = sampled.token as i32;
                    assert_eq!(tokens[row.out as usize], sampled.token as i32, "{what}");
                    if let Some(table) = table.filter(|_| sampled.token != NO_TOKEN) {
                        marks[table][sampled.token as usize] += 2;
                    }
                }
                // Where there is nothing to sample from, the log-probability says so and the rest is left as it was.
                if row.logprobs >= 0 {
                    expected_logprob = sampled.logprob;
                    if sampled.token != NO_TOKEN {
                        expected_top[..row.logprobs as usize].fill((-1, f32::NEG_INFINITY));
                    }
                    for (to, (token, logprob)) in expected_top.iter_mut().zip(sampled.top) {
                        *to = (token as i32, logprob);
                    }
                }
            }
            let got = logprob[at];
            assert!(close(got, expected_logprob), "{what}: {got} {expected_logprob}");
            for (i, &(token, expected)) in expected_top.iter().enumerate() {
                assert_eq!(top_tokens[top_at.clone()][i], token, "{what}: top {i}");
                assert!(close(top_logprobs[top_at.clone()][i], expected), "{what}: top {i}");
            }
        }
        assert_eq!(tokens, expected_tokens, "{what}: rows that draw none write none");
        let got = stream.clone_dtoh(&on_gpu.marks).unwrap();
        assert_eq!(got[..marks.len()], marks, "{what}: token counts");
    }
}

/// What the sampler reads of a [`Case`] besides logits, and what it writes.
struct OnGpu {
    draws: CudaSlice<SampleRow>,
    params: CudaSlice<SampleParams>,
    masks: CudaSlice<u32>,
    bias_tokens: CudaSlice<u32>,
    bias_values: CudaSlice<f32>,
    banned: CudaSlice<u32>,
    marks: CudaSlice<u32>,
    scratch: CudaSlice<f32>,
    scratch_len: usize,
    tokens: CudaSlice<i32>,
    logprob: CudaSlice<f32>,
    top_tokens: CudaSlice<i32>,
    top_logprobs: CudaSlice<f32>,
}

impl OnGpu {
    /// Calls `launch` with the op.
    fn with<R>(&mut self, case: &Case, launch: impl FnOnce(Sample<'_>) -> R) -> R {
        launch(Sample {
            draws: (&self.draws).into(),
            params: (&self.params).into(),
            masks: (&self.masks).into(),
            bias_tokens: (&self.bias_tokens).into(),
            bias_values: (&self.bias_values).into(),
            banned: (&self.banned).into(),
            marks: (&mut self.marks.slice_mut(..case.marks.len())).into(),
            scratch: (&mut self.scratch.slice_mut(..self.scratch_len)).into(),
            tokens: (&mut self.tokens).into(),
            logprob: (&mut self.logprob).into(),
            top_tokens: (&mut self.top_tokens).into(),
            top_logprobs: (&mut self.top_logprobs).into(),
            rows: case.draws.len(),
            vocab: case.vocab,
            top_max: TOP_MAX,
        })
    }
}

fn check(gpu: &mut Gpu, vocab: usize, rows: usize, clusters: bool) {
    let case = Case::random(&mut gpu.random, vocab, rows);
    let own;
    let device: &Device = if clusters {
        &gpu.device
    } else {
        own = Device::open(0).unwrap().without_clusters();
        &own
    };
    let stride = case.stride;
    let mut on_gpu = case.upload(device, sample_scratch_len(device, rows, vocab, stride));
    let logits = device.stream().clone_htod(&case.logits).unwrap();
    on_gpu.with(&case, |sample| sample.launch(device, (&logits).into(), stride)).unwrap();
    case.verify(device, &on_gpu, &format!("vocabulary {vocab}, clusters {clusters}"));
}

/// Ranks that draw together draw what one would from whole rows, in vocabularies of even parts and uneven ones;
/// several times in a row.
pub fn ranks(gpu: &mut Gpu) {
    for clusters in [true, false] {
        for ranks in [2, 3, RANKS_MAX] {
            let mut group = Group::of(ranks);
            if !clusters {
                group.devices = group.devices.into_iter().map(Device::without_clusters).collect();
            }
            let vocabs: &[usize] =
                if gpu.small { &[24, 5000] } else { &[24, 4097, 60_000, 151_936] };
            for &vocab in vocabs {
                // On a GPU that they share, the clusters of all ranks must have room at once.
                let most = if group.apart() { 100 } else { 48 / ranks };
                let rows = if gpu.small { 10 } else { most };
                draw_together(gpu, &group, vocab, 16 / ranks);
                if rows > 8 && rows <= most {
                    draw_together(gpu, &group, vocab, rows);
                }
            }
        }
    }
}

fn draw_together(gpu: &mut Gpu, group: &Group, vocab: usize, rows: usize) {
    let ranks = group.devices.len();
    let unit = gpu.random.of(&[1, 8]);
    let at = |rank: usize| (rank * vocab.div_ceil(unit) / ranks * unit).min(vocab);
    let columns: Vec<_> = (0..ranks).map(|rank| at(rank)..at(rank + 1)).collect();
    let shape = PeerShape { hidden: 8, rows: 1, logit_rows: rows, columns };
    let mut peers = group.peers(&shape);
    let stride = vocab.next_multiple_of(8);
    let mut launched = Vec::new();
    for _ in 0..if gpu.small { 2 } else { 3 } {
        let case = Case::random(&mut gpu.random, vocab, rows);
        let mut all = Vec::new();
        for (peers, device) in peers.iter_mut().zip(&group.devices) {
            let whole = vec![f32::NAN; Peers::whole_rows_len(rows, stride)];
            let scratch_len = peers.sample_scratch_len(rows);
            all.push((
                case.upload(device, scratch_len),
                device.stream().clone_htod(&whole).unwrap(),
            ));
        }
        group.wait();
        for (rank, peers) in peers.iter_mut().enumerate() {
            let (part, part_stride) = (&shape.columns[rank], shape.part_stride(rank));
            let mut logits = vec![1e30; rows * part_stride];
            for row in 0..rows {
                logits[row * part_stride..][..part.len()]
                    .copy_from_slice(&case.logits[row * case.stride..][part.clone()]);
            }
            let device = &group.devices[rank];
            let mut to = peers.logits().slice_mut(..logits.len());
            device.stream().memcpy_htod(&logits, &mut to).unwrap();
        }
        group.wait();
        for ((peers, device), (on_gpu, whole)) in peers.iter_mut().zip(&group.devices).zip(&mut all)
        {
            on_gpu
                .with(&case, |sample| peers.sample(device, sample, whole.into(), stride))
                .unwrap();
        }
        for (peers, device) in peers.iter_mut().zip(&group.devices) {
            peers.meet(device).unwrap();
        }
        launched.push((case, all));
    }
    group.wait();
    for (turn, (case, all)) in launched.iter().enumerate() {
        for (rank, (device, (on_gpu, _))) in group.devices.iter().zip(all).enumerate() {
            let what = format!("vocabulary {vocab}, turn {turn}, rank {rank} of {ranks}");
            case.verify(device, on_gpu, &what);
        }
    }
    assert!(peers.iter().all(|peers| peers.fault().read().is_none()));
}

/// Microseconds of a draw by all GPUs together, by settings.
pub fn bench_ranks(gpu: &mut Gpu) {
    let ranks = Device::count().min(RANKS_MAX);
    if ranks < 2 {
        println!("sample over ranks: one GPU, nothing to time");
        return;
    }
    let (vocab, group) = (151_936, Group::of(ranks));
    let columns: Vec<_> =
        (0..ranks).map(|rank| rank * vocab / ranks..(rank + 1) * vocab / ranks).collect();
    let shape = PeerShape { hidden: 8, rows: 1, logit_rows: 256, columns };
    let mut peers = group.peers(&shape);
    println!("{:<32} {:>6} {:>10}", format!("sample, {ranks} ranks"), "rows", "time/us");
    for (name, params, logprobs) in crate::bench::settings() {
        for rows in [1, 32, 256] {
            let mut case = Case::random(&mut gpu.random, vocab, rows);
            case.marks.clear();
            (case.draws, case.params) = crate::bench::draws(rows, params, logprobs);
            for (peers, device) in peers.iter_mut().zip(&group.devices) {
                let logits = crate::bench::likely(gpu, peers.logits().len());
                device.stream().memcpy_htod(&logits, peers.logits()).unwrap();
            }
            group.wait();
            let mut times: Vec<f64> = (0..5).map(|_| time(&group, &mut peers, &case)).collect();
            times.sort_by(f64::total_cmp);
            println!("{name:<32} {rows:>6} {:>10.2}", times[2] * 1e6);
        }
    }
}

/// Seconds of one draw among many.
fn time(group: &Group, peers: &mut [Peers], case: &Case) -> f64 {
    let (turns, rows, stride) = (50, case.draws.len(), case.vocab);
    std::thread::scope(|scope| {
        let threads: Vec<_> = peers
            .iter_mut()
            .zip(&group.devices)
            .map(|(peers, device)| {
                scope.spawn(move || {
                    let stream = device.stream();
                    let mut on_gpu = case.upload(device, peers.sample_scratch_len(rows));
                    let whole = vec![0.0; Peers::whole_rows_len(rows, stride)];
                    let mut whole = stream.clone_htod(&whole).unwrap();
                    let flags = cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
                    let event = || stream.context().new_event(Some(flags)).unwrap();
                    let (began, ended) = (event(), event());
                    for turn in 0..turns + 10 {
                        if turn == 10 {
                            began.record(stream).unwrap();
                        }
                        on_gpu
                            .with(case, |sample| {
                                peers.sample(device, sample, (&mut whole).into(), stride)
                            })
                            .unwrap();
                    }
                    ended.record(stream).unwrap();
                    f64::from(began.elapsed_ms(&ended).unwrap()) / 1e3 / f64::from(turns)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).fold(0.0, f64::max)
    })
}
