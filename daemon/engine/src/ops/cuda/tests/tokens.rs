//! Embedding and sampling, with what a step feeds the next.

use super::*;

/// Hidden states that pick a column of the head each: logits are the same bits on both devices, so
/// tokens must be too. Two steps, so that histories grow and tokens are fed back.
#[test]
fn tokens_are_the_cpus() {
    let config = config(4, 2, 64);
    let Some((mut cpu, mut cuda)) = pair(&config, 16) else { return };
    let seed = std::env::var("MINISGL_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    eprintln!("MINISGL_TEST_SEED={seed}");
    let mut random = Random(seed);
    cpu.reserve_kv(SLOTS).unwrap();
    cuda.reserve_kv(SLOTS).unwrap();
    cuda.commit_kv(SLOTS).unwrap();
    let hidden = config.hidden_size;
    let head: Vec<f32> = random.floats(VOCAB * hidden).iter().map(|value| value * 8.0).collect();
    let table = random.floats(VOCAB * hidden);
    let tables: Vec<_> = (0..SLOTS as u32).map(|page| vec![page]).collect();
    let installs: Vec<Install> = (0..SLOTS as u32).map(|slot| install(slot, &mut random)).collect();
    // Some rows are not sampled, and of some a token is given.
    let want = |slot: usize| match slot % 11 {
        5 => Want::Nothing,
        7 => Want::Each { first: 0, next: Some(slot as u32) },
        _ => Want::Last,
    };
    for step in 0..2 {
        let rows: Vec<Row> =
            (0..SLOTS).map(|slot| Row { want: want(slot), ..row(slot as u32, step, 1) }).collect();
        let mut batch = batch(&tables, &rows, 16, &mut random);
        let mut plan = batch.plan().clone();
        if step == 0 {
            plan.installs.clone_from(&installs);
        } else {
            // What was sampled is fed back, where it was.
            for (at, token) in plan.tokens.iter_mut().enumerate() {
                if want(at) == Want::Last {
                    *token = SAMPLED_LAST;
                }
            }
        }
        batch.prepare(Arc::new(plan), 1, 16);
        let mut picks = vec![0.0; SLOTS * hidden];
        (0..SLOTS).for_each(|row| picks[row * hidden + random.below(hidden)] = 1.0);
        let given = Given { batch: &batch, head: &head, table: &table, picks: &picks };
        let (expected, got) = (draw(&mut cpu, &given), draw(&mut cuda, &given));
        assert_eq!(got.embedded, expected.embedded, "step {step}: embeddings are copies");
        assert_close("norm of sampled rows", &got.normed, &expected.normed, 2.5);
        let (expected, got) = (expected.sampled, got.sampled);
        assert_eq!(got.len(), expected.len());
        for (at, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let slot = batch.rows()[batch.logit_rows()[at].row as usize].slot;
            assert_eq!(got.token, expected.token, "step {step}, slot {slot}");
            assert_eq!(got.logprob.is_some(), expected.logprob.is_some());
            let top = |sampled: &Sampled| -> Vec<u32> {
                sampled.top.iter().map(|top| top.token).collect()
            };
            assert_eq!(top(got), top(expected), "step {step}, slot {slot}");
            let logprobs = |sampled: &Sampled| -> Vec<f32> {
                sampled.top.iter().map(|top| top.logprob).chain(sampled.logprob).collect()
            };
            for (got, expected) in logprobs(got).iter().zip(logprobs(expected)) {
                assert!((got - expected).abs() <= 1e-5 * expected.abs().max(1.0));
            }
        }
    }
}

fn install(slot: u32, random: &mut Random) -> Install {
    let mut of = |choices: &[f32]| choices[random.below(choices.len())];
    let sampling = SamplingParams {
        temperature: of(&[0.0, 0.6, 1.0, 1.7]),
        top_k: of(&[0.0, 0.0, 1.0, 20.0]) as u32,
        top_p: of(&[1.0, 1.0, 0.5, 0.9]),
        min_p: of(&[0.0, 0.0, 0.05]),
        repetition_penalty: of(&[1.0, 1.0, 1.3]),
        presence_penalty: of(&[0.0, 0.0, 1.5]),
        frequency_penalty: of(&[0.0, 0.0, 0.7]),
        logprobs: [None, Some(0), Some(5), Some(20)][of(&[0.0, 1.0, 2.0, 3.0]) as usize],
        prompt_logprobs: Some(of(&[0.0, 3.0]) as u32),
        ..SamplingParams::default()
    };
    let biased = random.below(3) == 0;
    let tokens = |count: usize, random: &mut Random| -> Vec<u32> {
        (0..count).map(|_| random.below(VOCAB) as u32).collect()
    };
    let mut bias = if biased { tokens(40, random) } else { Vec::new() };
    bias.sort_unstable();
    bias.dedup();
    let logit_bias = bias.into_iter().map(|token| (token, 2.0)).collect();
    let history = if sampling.needs_history() {
        tokens(50 * (slot as usize % 3), random)
    } else {
        Vec::new()
    };
    Install {
        slot,
        counts: sampling.needs_history().then_some(slot),
        prompt_len: history.len() as u32 / 2,
        history,
        banned: tokens(slot as usize % 4, random),
        banned_below: 8 * (slot % 3),
        sampling: SamplingParams { logit_bias, seed: random.next(), ..sampling },
    }
}

struct Given<'a> {
    batch: &'a Batch,
    head: &'a [f32],
    table: &'a [f32],
    picks: &'a [f32],
}

/// What a step makes of tokens and hidden states.
struct Drawn {
    embedded: Vec<f32>,
    /// Of the embedding of each sampled row's last token.
    normed: Vec<f32>,
    sampled: Vec<Sampled>,
}

/// Embeds, takes the norm of sampled rows, and samples; `picks` are the hidden states.
fn draw<O: Visible>(ops: &mut O, given: &Given<'_>) -> Drawn {
    let (batch, tokens) = (given.batch, given.batch.tokens().len());
    let hidden = given.head.len() / VOCAB;
    let head = ops.weights(given.head, hidden);
    let table = ops.weights(given.table, hidden);
    let norm = Norm { id: NormId(0), weight: ops.weight(&given.table[..hidden]) };
    let mut picks = ops.fill(hidden, given.picks);
    let mut stream = Stream::new(ops.poisoned(tokens, hidden), ops.poisoned(tokens, hidden));
    let mut last = ops.poisoned(tokens, hidden);
    let pass = |ops: &mut O| {
        // Buffers are Send, and need not be Sync.
        let picks = &mut picks;
        ops.embed(batch, &table, 1.0, &mut stream)?;
        ops.norm_wanted(batch, &stream, &norm, &mut last)?;
        ops.sample(batch, &head, picks)
    };
    let pending = ops.step(batch, &mut Closure(pass));
    Drawn {
        embedded: ops.values(&stream.residual, tokens),
        normed: ops.values(&last, batch.logit_rows().len()),
        sampled: pending.unwrap().expect("it waits for nothing").wait().unwrap(),
    }
}
