//! What requests leave in pages, and to whom it may not matter.

use super::*;

/// Of layers that see a window a request keeps the pages of a window, which the driver gives it again and again: what they held
/// before is not seen, by any kernel, in steps that are replayed or not.
#[test]
fn pages_behind_a_window_serve_other_tokens() {
    let Some(_gpu) = gpu() else { return };
    let ranks = if minisgl_kernels::Device::count() > 1 { vec![1, 2] } else { vec![1] };
    let windowed = models().into_iter().skip(4).take(2).chain(mixtures().into_iter().skip(3));
    for (dir, mut config) in windowed {
        config["max_position_embeddings"] = json!(2048);
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let name = config["architectures"][0].as_str().unwrap();
        let bounds = match name {
            "GptOssForCausalLM" => MIXTURE_ERROR_MAX,
            _ => (MEAN_ERROR_MAX, P99_ERROR_MAX),
        };
        let mut random = Random(29);
        let prompts: Vec<_> =
            [1, 700, 33, 431].iter().map(|&len| random.tokens(len, VOCAB)).collect();
        let drive = Drive { new_tokens: 40, ..Drive::default() };
        let expected = run(dir.path(), on(Device::Cpu), &drive, &prompts);
        let drive = Drive { forced: Some(tokens(&expected)), ..drive };
        let by = |backend| Attn { prefill: backend, decode: backend };
        for (what, chunk, page_size, attn) in [
            ("in chunks of 64", 64, 16, Attn::default()),
            ("in chunks of 200", 200, 16, Attn::default()),
            ("page size 1", 64, 1, Attn::default()),
            ("by fa", 100, 16, by(AttnBackend::Fa)),
            ("by fi", 64, 16, by(AttnBackend::Fi)),
        ] {
            for &tp in &ranks {
                let options = LoadOptions { page_size, attn, tp, ..on(Device::Cuda) };
                let drive = Drive { chunk, ..drive.clone() };
                let (mut engine, info) = load(dir.path(), options);
                let windows = info.groups.windows();
                assert!(windows.groups > 0 && windows.keep + chunk < 600, "{windows:?}");
                let got = generate(&mut engine, &info, &mut 0, &prompts, &drive);
                assert_within(&format!("{name} {what} on {tp}"), &got, &expected, bounds);
            }
        }
    }
}

/// A token whose embedding is NaN, and so are keys and values of all that see it.
const BROKEN: u32 = 3;

/// What a request that is broken leaves in pages, and writes beside others that run with it, reaches none of these: not where they
/// take its pages, nor where it takes theirs.
#[test]
fn a_broken_request_harms_no_other() {
    let Some(_gpu) = gpu() else { return };
    let mixture = mixtures().remove(3);
    for (dir, mut config) in models().into_iter().skip(4).step_by(3).chain([mixture]) {
        config["tie_word_embeddings"] = json!(false);
        config["max_position_embeddings"] = json!(2048);
        let name = config["architectures"][0].as_str().unwrap();
        let bounds = match name {
            "GptOssForCausalLM" => MIXTURE_ERROR_MAX,
            _ => (MEAN_ERROR_MAX, P99_ERROR_MAX),
        };
        let hidden = config["hidden_size"].as_u64().unwrap() as usize;
        write_model(dir.path(), &config, Dtype::BF16, 7);
        let row = BROKEN as usize * hidden;
        break_tensor(dir.path(), "model.embed_tokens.weight", row..row + hidden);
        let mut random = Random(31);
        let mut draw = |len: usize, is_broken: bool| -> Vec<u32> {
            let tokens = random.tokens(len, VOCAB).into_iter().enumerate();
            let token = |(at, token): (usize, u32)| match is_broken && at % 8 == 0 {
                true => BROKEN,
                false => token.max(BROKEN + 1),
            };
            tokens.map(token).collect()
        };
        // In turn: requests at odd places are broken.
        let lens = [701, 300, 17, 433, 350, 96, 430, 33];
        let mixed: Vec<_> =
            lens.iter().enumerate().map(|(i, &len)| draw(len, i % 2 == 1)).collect();
        let every_other = |from: usize| mixed.iter().skip(from).step_by(2).cloned().collect();
        let (good, broken): (Vec<_>, Vec<_>) = (every_other(0), every_other(1));
        let forced: Vec<_> = (0..4).map(|_| draw(40, false)).collect();
        let kv_tokens = Some(4096);
        let drive = Drive { new_tokens: 40, forced: Some(forced.clone()), ..Drive::default() };
        let expected = run(dir.path(), LoadOptions { kv_tokens, ..on(Device::Cpu) }, &drive, &good);
        let by = |backend| Attn { prefill: backend, decode: backend };
        for (what, chunk, page_size, attn) in [
            ("in chunks of 200", 200, 16, Attn::default()),
            ("page size 1", 64, 1, Attn::default()),
            ("by fa", 150, 16, by(AttnBackend::Fa)),
            ("by fi", 150, 16, by(AttnBackend::Fi)),
        ] {
            let options = LoadOptions { page_size, attn, kv_tokens, ..on(Device::Cuda) };
            let (mut engine, info) = load(dir.path(), options);
            let mut step = 0;
            let mut generate = |prompts: &[Vec<u32>], forced: Vec<Vec<u32>>| {
                let drive = Drive { chunk, forced: Some(forced), ..drive.clone() };
                generate(&mut engine, &info, &mut step, prompts, &drive)
            };
            let nans = vec![vec![BROKEN; 40]; 4];
            assert_broken(&generate(&broken, nans.clone()), 40);
            let after = generate(&good, forced.clone());
            assert_within(&format!("{name} {what}, after broken ones"), &after, &expected, bounds);
            let both = forced.iter().zip(&nans).flat_map(|(a, b)| [a.clone(), b.clone()]).collect();
            let all = generate(&mixed, both);
            let of =
                |from: usize| -> Vec<_> { all.iter().skip(from).step_by(2).cloned().collect() };
            assert_broken(&of(1), 40);
            assert_within(&format!("{name} {what}, beside broken ones"), &of(0), &expected, bounds);
        }
    }
}

/// A checkpoint with a NaN gives no token: with one request and with more than a product of few rows takes, alone and over
/// ranks, eagerly and in a graph.
#[test]
fn a_model_whose_logits_are_nan_gives_no_token() {
    let Some(_gpu) = gpu() else { return };
    let (dir, _) = models().remove(3);
    break_model(dir.path());
    let ranks = if minisgl_kernels::Device::count() > 1 { vec![1, 2] } else { vec![1] };
    for tp in ranks {
        let options = LoadOptions { tp, kv_tokens: Some(1 << 14), ..on(Device::Cuda) };
        let (mut engine, info) = load(dir.path(), options);
        let mut step = 0;
        for count in [1, 40] {
            let mut random = Random(count);
            let prompts: Vec<_> = (0..count).map(|_| random.tokens(9, VOCAB)).collect();
            for sampling in [
                SamplingParams::default(),
                SamplingParams { temperature: 0.8, top_p: 0.9, ..SamplingParams::default() },
                SamplingParams { presence_penalty: 0.5, ..SamplingParams::default() },
            ] {
                let drive = Drive { chunk: 512, new_tokens: 2, sampling, ..Drive::default() };
                assert_broken(&generate(&mut engine, &info, &mut step, &prompts, &drive), 2);
                let asks = SamplingParams { prompt_logprobs: Some(3), ..drive.sampling.clone() };
                let scored = Drive { new_tokens: 1, sampling: asks, ..drive };
                let all = score(&mut engine, &info, &mut step, &prompts[..1], &scored);
                assert_broken(&all, 8);
            }
        }
    }
}

/// Decode attention begins before the kernels ahead of it have ended. With one layer as few of them as there can be lie between the
/// page that a step writes, or the table that it changes, and the next step's reads: one row and few, page after page.
#[test]
fn what_is_read_early_was_written() {
    let Some(_gpu) = gpu() else { return };
    for page_size in [1, 16] {
        for (architecture, heads, kv_heads, head_dim) in
            [("Qwen3ForCausalLM", 8, 2, 128), ("LlamaForCausalLM", 4, 2, 64)]
        {
            let mut config: Value = config(architecture, heads, kv_heads, head_dim);
            config["num_hidden_layers"] = json!(1);
            config["hidden_size"] = json!(64);
            config["intermediate_size"] = json!(64);
            config["vocab_size"] = json!(VOCAB);
            let dir = tempfile::tempdir().unwrap();
            write_model(dir.path(), &config, Dtype::BF16, 7);
            let mut random = Random(29);
            for lens in [&[5][..], &[1, 33, 2, 70, 16]] {
                let prompts: Vec<_> = lens.iter().map(|&len| random.tokens(len, VOCAB)).collect();
                let drive = Drive { new_tokens: 120, ..Drive::default() };
                let of = |device| LoadOptions { page_size, ..on(device) };
                let expected = run(dir.path(), of(Device::Cpu), &drive, &prompts);
                let drive = Drive { forced: Some(tokens(&expected)), ..drive };
                let got = run(dir.path(), of(Device::Cuda), &drive, &prompts);
                let what = format!("{architecture}, one layer, pages of {page_size}, {lens:?}");
                assert_close(&what, &got, &expected);
                assert_eq!(
                    run(dir.path(), of(Device::Cuda), &drive, &prompts),
                    got,
                    "{what}: twice"
                );
            }
        }
    }
}
