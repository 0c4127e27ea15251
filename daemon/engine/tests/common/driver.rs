//! Plays the scheduler: greedy generation for many requests at once, chunked, with scattered pages. Pages before a window go to
//! whoever needs one next.

use std::collections::VecDeque;
use std::path::Path;

use minisgl_engine::{Engine, EngineInfo};
use minisgl_proto::{Device, LoadOptions, Sampled, SamplingParams};
use minisgl_sched::guide::mask_words;
use minisgl_sched::{Executor, Grown, Install, Late, Plan, Row, SAMPLED_LAST, Want, Windows};

use super::Random;

/// How requests are run.
#[derive(Clone, Debug)]
pub struct Drive {
    /// Tokens of a step.
    pub chunk: usize,
    /// Launch a step before the one before has been waited for.
    pub overlap: bool,
    /// Tokens to generate for each request.
    pub new_tokens: usize,
    /// Most likely tokens to report.
    pub logprobs: Option<u32>,
    /// Of page scattering.
    pub seed: u64,
    /// Tokens to feed instead of those that are sampled, for each request.
    pub forced: Option<Vec<Vec<u32>>>,
    /// How tokens are sampled, but for `logprobs`.
    pub sampling: SamplingParams,
    /// Whether two of three requests have masks, which come late: [`allowed`].
    pub masked: bool,
}

/// Whether the mask of request `slot` allows `token` at `position`, where requests have masks: a quarter of the tokens.
pub fn allowed(slot: usize, position: usize, token: u32) -> bool {
    let seed = (slot as u64) << 40 ^ (position as u64) << 20 ^ u64::from(token);
    !has_mask(slot) || Random(seed).below(4) == 0
}

fn has_mask(slot: usize) -> bool {
    slot % 3 != 1
}

impl Default for Drive {
    fn default() -> Self {
        Drive {
            chunk: 64,
            overlap: true,
            new_tokens: 8,
            logprobs: Some(50),
            seed: 1,
            forced: None,
            sampling: SamplingParams::default(),
            masked: false,
        }
    }
}

/// Loads with small, sensible options where `options` leaves the default; on the CPU if nothing else
/// is said.
pub fn load(dir: &Path, options: LoadOptions) -> (Engine, EngineInfo) {
    let device = if options.device == Device::Auto { Device::Cpu } else { options.device };
    let kv_tokens = options.kv_tokens.or(Some(2048));
    let options = LoadOptions { device, kv_tokens, threads: 2, ..options };
    Engine::load(dir, &options, &mut |_| ()).unwrap()
}

struct Request {
    prompt: Vec<u32>,
    /// Of the group of layers that sees everything.
    pages: Vec<u32>,
    /// Of each window group, from entry `given_up` on.
    window_pages: Vec<VecDeque<u32>>,
    given_up: usize,
    /// Positions fed by launched plans.
    fed: usize,
    /// It was sampled in the last launched plan.
    is_in_flight: bool,
    /// Pages that the engine knows.
    told: usize,
    output: Vec<Sampled>,
    scores: Vec<Sampled>,
}

/// Whose logits a plan wants, and whether they are sampled.
type Owner = (usize, bool);

/// Generates `new_tokens` for every prompt; all run together.
pub fn generate(
    engine: &mut Engine,
    info: &EngineInfo,
    first_step: &mut u64,
    prompts: &[Vec<u32>],
    drive: &Drive,
) -> Vec<Vec<Sampled>> {
    let requests = run(engine, info, first_step, prompts, drive);
    requests.into_iter().map(|request| request.output).collect()
}

/// What every prompt's own tokens get, as `drive.sampling.prompt_logprobs` asks; all run together.
pub fn score(
    engine: &mut Engine,
    info: &EngineInfo,
    first_step: &mut u64,
    prompts: &[Vec<u32>],
    drive: &Drive,
) -> Vec<Vec<Sampled>> {
    let requests = run(engine, info, first_step, prompts, drive);
    requests.into_iter().map(|request| request.scores).collect()
}

fn run(
    engine: &mut Engine,
    info: &EngineInfo,
    first_step: &mut u64,
    prompts: &[Vec<u32>],
    drive: &Drive,
) -> Vec<Request> {
    let mut random = Random(drive.seed);
    let page_size = info.page_size as usize;
    let mut free: Vec<u32> = (0..info.kv_pages).collect();
    let windows = info.groups.windows();
    for i in (1..free.len()).rev() {
        free.swap(i, random.below(i + 1));
    }
    let mut requests: Vec<Request> = prompts
        .iter()
        .map(|prompt| {
            let all = (prompt.len() + drive.new_tokens).div_ceil(page_size);
            Request {
                prompt: prompt.clone(),
                pages: free.split_off(free.len() - all),
                window_pages: vec![VecDeque::new(); windows.groups],
                given_up: 0,
                fed: 0,
                is_in_flight: false,
                told: 0,
                output: Vec::new(),
                scores: Vec::new(),
            }
        })
        .collect();

    let mut free = VecDeque::from(free);
    let mut in_flight: Vec<Vec<Owner>> = Vec::new();
    let mut late: Option<Late> = None;
    loop {
        let (plan, sampled) =
            next_plan((&mut requests, &mut free), drive, (page_size, windows), *first_step);
        let idle = plan.rows.is_empty();
        // As late as may be: the forward pass has run, or runs.
        if let Some(late) = late.take() {
            engine.complete(late).unwrap();
        }
        if !idle {
            late = masks_of(&plan, info.vocab_size);
            engine.launch(plan).unwrap();
            *first_step += 1;
            in_flight.push(sampled);
        }
        let keep = usize::from(drive.overlap && !idle);
        if let Some(late) = late.take_if(|_| keep == 0) {
            engine.complete(late).unwrap();
        }
        while in_flight.len() > keep {
            let output = engine.wait().unwrap();
            let owners = in_flight.remove(0);
            assert_eq!(output.sampled.len(), owners.len());
            for ((owner, is_sampled), sampled) in owners.into_iter().zip(output.sampled) {
                let Request { output, scores, .. } = &mut requests[owner];
                if is_sampled { output.push(sampled) } else { scores.push(sampled) }
            }
        }
        if idle {
            return requests;
        }
    }
}

/// The masks that a plan waits for.
fn masks_of(plan: &Plan, vocab_size: u32) -> Option<Late> {
    let words = mask_words(vocab_size as usize);
    let mut masks = vec![0; plan.masked.len() * words];
    for (mask, &row) in masks.chunks_exact_mut(words).zip(&plan.masked) {
        let row = &plan.rows[row as usize];
        let (slot, position) = (row.slot as usize, row.next_position() as usize);
        for token in (0..vocab_size).filter(|&token| allowed(slot, position, token)) {
            mask[token as usize / 32] |= 1 << (token % 32);
        }
    }
    (!masks.is_empty()).then_some(Late { step: plan.step, masks })
}

/// A plan, and which request each row of logits belongs to.
fn next_plan(
    (requests, free): (&mut [Request], &mut VecDeque<u32>),
    drive: &Drive,
    (page_size, windows): (usize, Windows),
    step: u64,
) -> (Plan, Vec<Owner>) {
    let mut plan = Plan { step, ..Plan::default() };
    let mut owners = Vec::new();
    // Decode rows last or first, in turn.
    let mut order: Vec<usize> = (0..requests.len()).collect();
    if step % 2 == 1 {
        order.reverse();
    }
    for slot in order {
        let request = &mut requests[slot];
        let is_in_flight = std::mem::take(&mut request.is_in_flight);
        // The last token of all is never fed.
        let end = request.prompt.len() + drive.new_tokens - 1;
        let room = drive.chunk - plan.tokens.len();
        if request.fed >= end || room == 0 {
            continue;
        }
        if request.fed == 0 {
            plan.installs.push(Install {
                slot: slot as u32,
                counts: drive.sampling.needs_history().then_some(slot as u32),
                sampling: SamplingParams { logprobs: drive.logprobs, ..drive.sampling.clone() },
                history: if drive.sampling.needs_history() {
                    request.prompt.clone()
                } else {
                    Vec::new()
                },
                prompt_len: request.prompt.len() as u32,
                banned: Vec::new(),
                banned_below: 0,
            });
        }
        let start = request.fed;
        let (tokens, sample): (Vec<i32>, bool) = if start < request.prompt.len() {
            let stop = request.prompt.len().min(start + room).min(end);
            let tokens = request.prompt[start..stop].iter().map(|&token| token as i32).collect();
            (tokens, stop == request.prompt.len())
        } else {
            let generated = start - request.prompt.len();
            let forced = drive.forced.as_ref().map(|forced| forced[slot][generated]);
            let sampled = request.output.get(generated).map(|sampled| sampled.token);
            let token = match forced.or(sampled) {
                Some(token) => token as i32,
                None => {
                    assert!(is_in_flight, "sampled in the plan before");
                    SAMPLED_LAST
                }
            };
            (vec![token], true)
        };
        request.fed += tokens.len();
        let SamplingParams { prompt_logprobs, prompt_logprobs_from, .. } = drive.sampling;
        let first = (prompt_logprobs_from.max(1) as usize - 1).max(start);
        let want = if prompt_logprobs.is_some() && first < request.fed.min(request.prompt.len() - 1)
        {
            let next = (!sample).then(|| request.prompt[request.fed]);
            Want::Each { first: (first - start) as u32, next }
        } else if sample {
            Want::Last
        } else {
            Want::Nothing
        };
        let row = Row {
            slot: slot as u32,
            start: start as u32,
            len: tokens.len() as u32,
            tokens_at: plan.tokens.len() as u32,
            want,
        };
        owners.extend(std::iter::repeat_n((slot, false), row.scored() as usize));
        if sample {
            request.is_in_flight = true;
            owners.push((slot, true));
        }
        if sample && drive.masked && has_mask(slot) {
            plan.masked.push(plan.rows.len() as u32);
        }
        plan.rows.push(row);
        plan.tokens.extend(tokens);
        let pages = request.fed.div_ceil(page_size);
        if pages > request.told {
            let (at, len) = (request.told as u32, (pages - request.told) as u32);
            for group in 0..windows.all_groups() {
                plan.grown.push(Grown { slot: slot as u32, group: group as u32, at, len });
                if let Some(own) = group.checked_sub(1).map(|at| &mut request.window_pages[at]) {
                    let first = own.len();
                    own.extend(free.drain(..len as usize));
                    plan.pages.extend(own.range(first..));
                } else {
                    plan.pages.extend(&request.pages[request.told..pages]);
                }
            }
            request.told = pages;
        }
        // The next request that needs pages takes these, and writes them in this plan, which does not read them for this one.
        let read = start.saturating_sub(windows.keep) / page_size;
        for own in &mut request.window_pages {
            own.drain(..read - request.given_up).for_each(|page| free.push_front(page));
        }
        request.given_up = read;
    }
    (plan, owners)
}

/// The tokens alone.
pub fn tokens(outputs: &[Vec<Sampled>]) -> Vec<Vec<u32>> {
    let ids = |output: &Vec<Sampled>| output.iter().map(|sampled| sampled.token).collect();
    outputs.iter().map(ids).collect()
}
