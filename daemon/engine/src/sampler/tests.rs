mod reference;

use super::*;
use reference::Request;

fn greedy() -> SamplingParams {
    SamplingParams::default()
}

fn hot(temperature: f32) -> SamplingParams {
    SamplingParams { temperature, ..SamplingParams::default() }
}

fn install(slot: u32, sampling: &SamplingParams) -> Install {
    Install {
        slot,
        counts: sampling.needs_history().then_some(slot),
        sampling: sampling.clone(),
        history: vec![],
        prompt_len: 0,
        banned: vec![],
        banned_below: 0,
    }
}

fn draw(sampling: &SamplingParams, logits: &[f32], position: u32) -> u32 {
    let mut sampler = Sampler::new(1, 1, logits.len());
    sampler.install(&install(0, sampling));
    sampler.sample(0, logits, position, None).token
}

/// Random bits for the tests themselves.
struct Bits(u64, u32);

impl Bits {
    fn next(&mut self) -> u64 {
        self.1 += 1;
        philox::uniform(self.0, self.1)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn one_of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize].clone()
    }

    fn logits(&mut self, vocab_size: usize) -> Vec<f32> {
        let coarse = self.below(2) == 0;
        (0..vocab_size)
            .map(|_| match (self.below(60), coarse) {
                (0 | 1, _) => f32::NEG_INFINITY,
                (2, _) if self.below(20) == 0 => f32::INFINITY,
                // Many ties, some between 0 and -0.
                (_, true) => {
                    (self.below(9) as f32 - 4.0) * if self.below(2) == 0 { 1.0 } else { -1.0 }
                }
                (_, false) => self.below(1 << 20) as f32 / (1 << 15) as f32 - 20.0,
            })
            .collect()
    }

    fn request(&mut self, vocab_size: usize) -> Request {
        let token = |bits: &mut Bits| bits.below(vocab_size as u64 + 2) as u32;
        let tokens = |bits: &mut Bits, most: u64| {
            (0..bits.below(most)).map(|_| token(bits)).collect::<Vec<_>>()
        };
        let sampling = SamplingParams {
            temperature: self.one_of(&[0.0, 0.1, 0.7, 1.0, 1.0, 2.0, 1e-20]),
            top_k: self.one_of(&[0, 0, 1, 2, 3, 7, 1000]),
            top_p: self.one_of(&[1.0, 1.0, 0.95, 0.5, 0.1, 1e-9, 0.0]),
            min_p: self.one_of(&[0.0, 0.0, 0.05, 0.5, 1.0]),
            repetition_penalty: self.one_of(&[1.0, 1.0, 1.3, 0.8]),
            presence_penalty: self.one_of(&[0.0, 0.0, 0.5, -2.0]),
            frequency_penalty: self.one_of(&[0.0, 0.0, 0.3, -0.7]),
            logit_bias: tokens(self, 4)
                .into_iter()
                .map(|t| (t, self.below(9) as f32 - 4.0))
                .collect(),
            seed: self.next(),
            logprobs: self.one_of(&[None, Some(0), Some(3), Some(1000)]),
            prompt_logprobs: self.one_of(&[Some(0), Some(3), Some(1000)]),
            ..SamplingParams::default()
        };
        Request {
            sampling,
            prompt: tokens(self, 6),
            output: tokens(self, 6),
            banned: tokens(self, 3),
            banned_below: self.below(4) as u32,
        }
    }
}

#[test]
fn equals_the_reference_that_sorts_everything() {
    let mut bits = Bits(20_111, 0);
    let (mut temperatures, mut broken) = (0, 0);
    for case in 0..20_000 {
        let vocab_size = 1 + bits.below(if case % 100 == 0 { 3000 } else { 40 }) as usize;
        let mut request = bits.request(vocab_size);
        let mut sampler = Sampler::new(3, 3, vocab_size);
        sampler.install(&request.install(2));
        for position in 0..3 {
            let mut logits = bits.logits(vocab_size);
            match bits.below(40) {
                0 => logits[bits.below(vocab_size as u64) as usize] = f32::NAN,
                1 => logits.fill(f32::NEG_INFINITY),
                _ => {}
            }
            // Much, little or nothing is allowed.
            let sparse = bits.below(3);
            let mask: Option<Vec<u32>> = (bits.below(3) == 0).then(|| {
                let word = |bits: &mut Bits| match sparse {
                    0 => bits.next() as u32,
                    1 => (bits.next() & bits.next() & bits.next()) as u32,
                    _ => 0,
                };
                (0..vocab_size.div_ceil(32)).map(|_| word(&mut bits)).collect()
            });
            let expected = request.sample(&logits, position, mask.as_deref());
            broken += u32::from(expected.token == NO_TOKEN);
            // A score is what a sampled token gets, and leaves nothing behind.
            let token = if expected.token == NO_TOKEN { 0 } else { expected.token };
            let scored = sampler.score(2, &logits, token);
            let count = request.sampling.prompt_logprobs;
            if request.sampling.logprobs == count {
                assert_eq!(scored, expected, "case {case} at {position}, scored: {request:?}");
            }
            let tops = vocab_size.min(count.unwrap_or(0) as usize);
            assert_eq!(scored.top.len(), if expected.token == NO_TOKEN { 0 } else { tops });
            let found = sampler.sample(2, &logits, position, mask.as_deref());
            assert_eq!(found, expected, "case {case} at {position}: {request:?} {logits:?}");
        }
        temperatures += u32::from(request.sampling.temperature > 0.0);
    }
    assert!(temperatures > 10_000 && broken > 2_000, "{temperatures} {broken}");
}

#[test]
fn equals_the_reference_on_a_whole_vocabulary() {
    let vocab_size = 151_936;
    let mut bits = Bits(7, 0);
    let logits: Vec<f32> = (0..vocab_size)
        .map(|_| (0..6).map(|_| bits.below(1 << 20) as f32 / (1 << 20) as f32).sum::<f32>() * 4.0)
        .collect();
    for sampling in [
        hot(1.0),
        SamplingParams { top_k: 50, top_p: 0.9, ..hot(0.8) },
        SamplingParams { top_p: 0.95, min_p: 0.01, ..hot(1.5) },
        SamplingParams { logprobs: Some(20), ..hot(0.6) },
    ] {
        let mut sampler = Sampler::new(1, 1, vocab_size);
        sampler.install(&install(0, &sampling));
        let mut request = Request { sampling, ..Request::default() };
        for position in 0..3 {
            let expected = request.sample(&logits, position, None);
            assert_eq!(sampler.sample(0, &logits, position, None), expected, "{request:?}");
        }
    }
}

/// Pearson's statistic of 200,000 draws against probabilities computed here in f64, under the
/// 0.9999 quantile for that many degrees of freedom. No draw may fall where `shares` is 0.
#[track_caller]
fn fits(sampling: &SamplingParams, logits: &[f32], shares: &[f64], quantile: f64) {
    const DRAWS: u32 = 200_000;
    let mut sampler = Sampler::new(1, 1, logits.len());
    sampler.install(&install(0, &SamplingParams { seed: 42, ..sampling.clone() }));
    let mut counts = vec![0_u32; logits.len()];
    for position in 0..DRAWS {
        counts[sampler.sample(0, logits, position, None).token as usize] += 1;
    }
    let sum: f64 = shares.iter().sum();
    let mut statistic = 0.0;
    for (&count, &share) in counts.iter().zip(shares) {
        if share == 0.0 {
            assert_eq!(count, 0, "{counts:?}");
            continue;
        }
        let expected = f64::from(DRAWS) * share / sum;
        statistic += (f64::from(count) - expected).powi(2) / expected;
    }
    assert!(statistic < quantile, "chi-square {statistic}, seed 42: {counts:?} for {shares:?}");
}

#[test]
fn draws_follow_the_softmax() {
    let logits = [1.0, -0.5, 2.0, 2.0, 0.0, f32::NEG_INFINITY, 3.0, -2.0];
    let softmax = |temperature: f64| logits.map(|z| (f64::from(z) / temperature).exp());
    for temperature in [0.5, 1.0, 1.7] {
        fits(&hot(temperature), &logits, &softmax(temperature.into()), 27.9);
    }
    // Sum of weights: 20.09 + 7.39 + 7.39 + 2.72 + 1 + 0.61 + 0.14 = 39.32.
    let [a, _, c, d, _, _, g, _] = softmax(1.0);
    let zero = 0.0;
    let top_k = SamplingParams { top_k: 2, ..hot(1.0) };
    fits(&top_k, &logits, &[zero, zero, c, zero, zero, zero, g, zero], 15.2);
    // 20.09 + 7.39 = 27.48 is 0.699 of the sum, 34.87 is 0.887, 37.58 is 0.956.
    let top_p = |top_p| SamplingParams { top_p, ..hot(1.0) };
    fits(&top_p(0.69), &logits, &[zero, zero, c, zero, zero, zero, g, zero], 15.2);
    fits(&top_p(0.71), &logits, &[zero, zero, c, d, zero, zero, g, zero], 18.5);
    fits(&top_p(0.95), &logits, &[a, zero, c, d, zero, zero, g, zero], 21.2);
    // exp(1 - 3) = 0.135.
    let min_p = SamplingParams { min_p: 0.13, ..hot(1.0) };
    fits(&min_p, &logits, &[a, zero, c, d, zero, zero, g, zero], 21.2);
    // After top-k has left 20.09 + 7.39 + 7.39, 0.75 of it needs two.
    let both = SamplingParams { top_k: 3, top_p: 0.75, ..hot(1.0) };
    fits(&both, &logits, &[zero, zero, c, zero, zero, zero, g, zero], 15.2);
}

#[test]
fn a_draw_depends_on_seed_and_position_only() {
    let logits = [0.1, 0.2, 0.3, 0.0, 0.25, 0.15];
    let with_seed = |seed| SamplingParams { seed, ..hot(1.0) };
    let alone: Vec<u32> = (0..64).map(|p| draw(&with_seed(5), &logits, p)).collect();
    let mut crowd = Sampler::new(9, 9, logits.len());
    for slot in 0..9 {
        crowd.install(&install(
            slot,
            &with_seed(if slot % 2 == 0 { 5 } else { 6 + u64::from(slot) }),
        ));
    }
    for position in (0..64).rev() {
        for slot in 0..9 {
            let token = crowd.sample(slot, &logits, position, None).token;
            if slot % 2 == 0 {
                assert_eq!(token, alone[position as usize], "slot {slot} at {position}");
            }
        }
    }
    let other: Vec<u32> = (0..64).map(|p| draw(&with_seed(6), &logits, p)).collect();
    assert_ne!(alone, other);
}

#[test]
fn filters_that_leave_one_token_are_greedy() {
    let mut bits = Bits(3, 0);
    for case in 0..2000 {
        let vocab_size = 1 + bits.below(30) as usize;
        let logits = bits.logits(vocab_size);
        let best = draw(&greedy(), &logits, 0);
        let seed = bits.next();
        for sampling in [
            SamplingParams { top_k: 1, seed, ..hot(2.0) },
            SamplingParams { top_p: 1e-12, seed, ..hot(1.0) },
            SamplingParams { temperature: f32::NAN, seed, ..greedy() },
            SamplingParams { temperature: -1.0, seed, ..greedy() },
        ] {
            assert_eq!(draw(&sampling, &logits, 9), best, "case {case}: {sampling:?} {logits:?}");
        }
    }
}

#[test]
fn ties_go_to_the_lowest_id() {
    assert_eq!(draw(&greedy(), &[1.0, 3.0, 3.0, 2.0, 3.0], 0), 1);
    assert_eq!(draw(&greedy(), &[-0.0, 0.0], 0), 0);
    assert_eq!(draw(&SamplingParams { top_k: 1, ..hot(1.0) }, &[-0.0, 0.0], 0), 0);
    // Infinite and largest finite logits are equals.
    assert_eq!(draw(&greedy(), &[0.0, f32::MAX, f32::INFINITY], 0), 1);
}

#[test]
fn logits_that_are_no_numbers_give_no_token() {
    const NAN: f32 = f32::NAN;
    const INF: f32 = f32::INFINITY;
    for sampling in [greedy(), SamplingParams { top_k: 2, top_p: 0.9, min_p: 0.1, ..hot(1.0) }] {
        let sampling = SamplingParams { logprobs: Some(2), prompt_logprobs: Some(2), ..sampling };
        for broken in [[NAN, 1.0, 2.0], [9.0, 1.0, NAN], [NAN, INF, -INF], [NAN; 3], [-INF; 3]] {
            let mut sampler = Sampler::new(1, 1, 3);
            let install = Install {
                banned: vec![1],
                banned_below: 1,
                ..install(0, &SamplingParams { presence_penalty: 2.0, ..sampling.clone() })
            };
            sampler.install(&Install { counts: Some(0), ..install });
            assert_eq!(sampler.sample(0, &broken, 0, None), nothing(), "{broken:?}");
            assert_eq!(sampler.score(0, &broken, 1), nothing(), "{broken:?}");
            // It counts as nothing in the history.
            assert_eq!(sampler.sample(0, &[1.0, 9.0, -INF], 0, None).token, 0, "{broken:?}");
            assert_eq!(sampler.sample(0, &[1.0, 0.0, -INF], 1, None).token, 1, "{broken:?}");
        }
        // These are numbers.
        assert_eq!(draw(&sampling, &[-INF, 1.0, -INF], 0), 1);
        assert_eq!(draw(&sampling, &[0.0, INF, 1e30], 0), 1);
        assert_eq!(draw(&sampling, &[f32::MIN, -INF], 0), 0);
    }
    // An infinite temperature makes all finite logits equal.
    let mut seen = [0; 3];
    for position in 0..300 {
        seen[draw(&hot(INF), &[9.0, -INF, -9.0], position) as usize] += 1;
    }
    assert!(seen[0] > 100 && seen[1] == 0 && seen[2] > 100, "{seen:?}");
}

#[test]
fn banned_tokens_wait_for_the_minimum() {
    let logits = [5.0, 1.0, 4.0];
    let mut sampler = Sampler::new(1, 1, 3);
    let banned = Install { banned: vec![0, 2, 77], banned_below: 2, ..install(0, &greedy()) };
    sampler.install(&banned);
    let tokens: Vec<u32> = (0..4).map(|p| sampler.sample(0, &logits, p, None).token).collect();
    assert_eq!(tokens, [1, 1, 0, 0]);
    // Where all are banned, it is not the model that has failed.
    sampler.install(&Install { banned: vec![0, 1, 2], ..banned });
    assert_eq!(sampler.sample(0, &logits, 0, None).token, 0);
}

#[test]
fn penalties_and_bias_by_hand() {
    let sampling = SamplingParams {
        repetition_penalty: 2.0,
        presence_penalty: 0.5,
        frequency_penalty: 0.25,
        logit_bias: vec![(3, 10.0), (9, 1.0)],
        ..greedy()
    };
    let mut sampler = Sampler::new(1, 1, 4);
    let history = vec![0, 1, 1, 1];
    sampler.install(&Install { history, prompt_len: 2, ..install(0, &sampling) });
    sampler.sample(0, &[4.0, 4.0, 4.0, -6.0], 0, None);
    // 0 in the prompt; 1 in both, twice in the output; 2 unseen; 3 biased.
    assert_eq!(sampler.logits, [2.0, 2.0 - 0.5 - 2.0 * 0.25, 4.0, 4.0]);
    // The first of the best two was token 2: now it is once in the output.
    sampler.sample(0, &[-4.0, 4.0, 4.0, -6.0], 1, None);
    assert_eq!(sampler.logits, [-8.0, 1.0, 2.0 - 0.5 - 0.25, 4.0]);
}

#[test]
fn a_preempted_request_goes_on_as_if_it_had_not_been() {
    let mut bits = Bits(99, 0);
    let vocab_size = 12;
    for case in 0..300 {
        let request = Request { output: vec![], ..bits.request(vocab_size) };
        let logits: Vec<_> = (0..20).map(|_| bits.logits(vocab_size)).collect();
        let mut steady = Sampler::new(2, 2, vocab_size);
        let mut moved = Sampler::new(2, 2, vocab_size);
        steady.install(&request.install(0));
        moved.install(&request.install(0));
        let mut output = vec![];
        let mut slot = 0;
        for (position, logits) in (0..).zip(&logits) {
            if bits.below(4) == 0 {
                // Another request takes the slot, and this one a slot that others used before.
                moved.install(&bits.request(vocab_size).install(slot));
                slot = 1 - slot;
                moved.install(&Request { output: output.clone(), ..request.clone() }.install(slot));
            }
            let sampled = steady.sample(0, logits, position, None);
            assert_eq!(
                sampled,
                moved.sample(slot, logits, position, None),
                "case {case}: {request:?}"
            );
            output.push(sampled.token);
        }
    }
}

#[test]
fn logprobs_are_of_the_raw_logits() {
    let logits = [2.0, -1.0, 0.5, 0.5, -40.0];
    let sampling = SamplingParams {
        logit_bias: vec![(1, 100.0)],
        logprobs: Some(3),
        temperature: 0.5,
        ..greedy()
    };
    let mut sampler = Sampler::new(1, 1, 5);
    sampler.install(&install(0, &sampling));
    let sampled = sampler.sample(0, &logits, 0, None);
    let sum: f64 = logits.iter().map(|&z| f64::from(z).exp()).sum();
    let exact = |token: usize| f64::from(logits[token]) - sum.ln();
    assert_eq!(sampled.token, 1);
    assert!((f64::from(sampled.logprob.unwrap()) - exact(1)).abs() < 1e-6);
    assert_eq!(sampled.top.iter().map(|top| top.token).collect::<Vec<_>>(), [0, 2, 3]);
    for top in &sampled.top {
        assert!((f64::from(top.logprob) - exact(top.token as usize)).abs() < 1e-6, "{top:?}");
    }
    // A token too unlikely to be drawn still has its log-probability.
    sampler.install(&install(0, &SamplingParams { logprobs: Some(9), ..greedy() }));
    let all = sampler.sample(0, &logits, 0, None).top;
    assert_eq!(all.len(), 5);
    assert!((f64::from(all[4].logprob) - exact(4)).abs() < 1e-5);
}

#[test]
fn buffers_never_grow() {
    let mut bits = Bits(1, 0);
    let mut sampler = Sampler::new(1, 1, 50);
    let room = |s: &Sampler| (s.logits.capacity(), s.scaled.capacity(), s.candidates.capacity());
    let before = room(&sampler);
    for position in 0..500 {
        sampler.install(&bits.request(50).install(0));
        sampler.sample(0, &bits.logits(50), position, None);
    }
    assert_eq!(room(&sampler), before);
}
