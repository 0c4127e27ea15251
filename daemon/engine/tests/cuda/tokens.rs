//! Which tokens come, and that the same come again.

use super::*;

/// Twice the same is the same bits; overlapped or not too; alone or chunked otherwise is close.
#[test]
fn overlap_changes_no_bit_and_batches_little() {
    let Some(_gpu) = gpu() else { return };
    for (dir, config) in models() {
        let name = config["architectures"][0].as_str().unwrap();
        let prompts = prompts(5);
        let drive = Drive { new_tokens: 10, ..Drive::default() };
        // The driver orders rows by the number of the step: each run starts anew.
        let again =
            |drive: &Drive, prompts: &[Vec<u32>]| run(dir.path(), on(Device::Cuda), drive, prompts);
        let crowd = again(&drive, &prompts);
        assert_eq!(again(&drive, &prompts), crowd, "{name}: twice");
        let waiting = Drive { overlap: false, ..drive.clone() };
        assert_eq!(again(&waiting, &prompts), crowd, "{name}: without overlap");
        let forced = Drive { forced: Some(tokens(&crowd)), ..drive.clone() };
        let whole = again(&Drive { chunk: 500, ..forced.clone() }, &prompts);
        assert_close(&format!("{name} whole against chunked"), &whole, &crowd);
        for (at, prompt) in prompts.iter().enumerate() {
            let own = Drive { forced: Some(vec![tokens(&crowd)[at].clone()]), ..drive.clone() };
            let alone = again(&own, std::slice::from_ref(prompt));
            assert_close(&format!("{name} prompt {at} alone"), &alone, &crowd[at..=at]);
            assert_eq!(again(&own, std::slice::from_ref(prompt)), alone, "alone, twice");
        }
    }
}

/// Masks come between two halves of a step: as on the CPU, with graphs and eagerly, and on two ranks where there are two
/// GPUs. Of rows that have none nothing changes.
#[test]
fn tokens_under_masks_are_the_cpus() {
    let Some(_gpu) = gpu() else { return };
    let (dir, _) = models().swap_remove(3);
    let prompts = prompts(31);
    let drive = Drive { new_tokens: 12, masked: true, ..Drive::default() };
    let expected = run(dir.path(), on(Device::Cpu), &drive, &prompts);
    let drive = Drive { forced: Some(tokens(&expected)), ..drive };
    let ranks = if minisgl_kernels::Device::count() > 1 { 2 } else { 1 };
    for (tp, overlap) in [(1, true), (1, false), (ranks, true)] {
        let drive = Drive { overlap, ..drive.clone() };
        let options = LoadOptions { tp, ..on(Device::Cuda) };
        let got = run(dir.path(), options.clone(), &drive, &prompts);
        for (slot, (prompt, output)) in prompts.iter().zip(&got).enumerate() {
            for (at, sampled) in output.iter().enumerate() {
                let allows = |token: u32| allowed(slot, prompt.len() + at, token);
                let best = sampled.top.iter().find(|top| allows(top.token));
                assert!(best.is_none_or(|best| best.token == sampled.token), "{slot} at {at}");
                assert!(allows(sampled.token), "request {slot}, token {at}");
            }
        }
        assert_close(&format!("tp {tp}, overlap {overlap}"), &got, &expected);
        assert_eq!(run(dir.path(), options, &drive, &prompts), got, "twice");
    }
}

/// Prompts score what they score on the CPU: in chunks, beside requests that decode, with few rows of logits held
/// at once, and on two ranks where there are two GPUs. Tokens are those that come without a score.
#[test]
fn prompts_get_the_cpus_log_probabilities() {
    let Some(_gpu) = gpu() else { return };
    for (dir, config) in models() {
        let name = config["architectures"][0].as_str().unwrap();
        let prompts = prompts(21);
        let sampling = |from| SamplingParams {
            prompt_logprobs: Some(50),
            prompt_logprobs_from: from,
            ..SamplingParams::default()
        };
        let scores = |options: LoadOptions, drive: &Drive| {
            let (mut engine, info) = load(dir.path(), options);
            let first = score(&mut engine, &info, &mut 0, &prompts, drive);
            drop(engine);
            first
        };
        let divides = config["num_key_value_heads"].as_u64().unwrap() % 2 == 0;
        let ranks = if divides && minisgl_kernels::Device::count() > 1 { 2 } else { 1 };
        for (from, chunk, new_tokens, max_running, tp) in
            [(0, 64, 0, 256, 1), (9, 200, 0, 8, 1), (0, 100, 4, 256, 1), (0, 200, 0, 16, ranks)]
        {
            let drive = Drive { sampling: sampling(from), chunk, new_tokens, ..Drive::default() };
            let options = |device| LoadOptions { max_running, ..on(device) };
            let expected = scores(options(Device::Cpu), &drive);
            let on_gpu = || LoadOptions { tp, ..options(Device::Cuda) };
            let got = scores(on_gpu(), &drive);
            let what = format!("{name} from {from} in chunks of {chunk} on {tp}");
            assert_eq!(tokens(&got), tokens(&expected), "{what}");
            assert_close(&what, &got, &expected);
            assert_eq!(scores(on_gpu(), &drive), got, "{what}: twice");
        }
        let plain = Drive { new_tokens: 6, ..Drive::default() };
        let scored = Drive { sampling: sampling(0), ..plain.clone() };
        let run = |drive: &Drive| run(dir.path(), on(Device::Cuda), drive, &prompts);
        assert_eq!(tokens(&run(&scored)), tokens(&run(&plain)), "{name}: scores change no token");
    }
}

/// Every setting of the sampler at once, over and over: a request is reproducible from its seed.
#[test]
fn sampled_requests_repeat_with_their_seed() {
    let Some(_gpu) = gpu() else { return };
    let (dir, _) = models().remove(0);
    let sampling = SamplingParams {
        temperature: 0.9,
        top_k: 40,
        top_p: 0.95,
        min_p: 0.01,
        repetition_penalty: 1.1,
        presence_penalty: 0.3,
        frequency_penalty: 0.2,
        logit_bias: vec![(3, 1.5), (77, -2.0)],
        seed: 11,
        ..SamplingParams::default()
    };
    let drive = Drive { sampling, new_tokens: 20, ..Drive::default() };
    let first = run(dir.path(), on(Device::Cuda), &drive, &prompts(9));
    assert_eq!(run(dir.path(), on(Device::Cuda), &drive, &prompts(9)), first);
    let other = SamplingParams { seed: 12, ..drive.sampling.clone() };
    let other = run(dir.path(), on(Device::Cuda), &Drive { sampling: other, ..drive }, &prompts(9));
    assert_ne!(tokens(&other), tokens(&first));
}
