//! Every architecture and scheme, held to the CPU.

use super::*;

/// Weights of e4m3, as checkpoints have them and made at load: in steps of so few rows that none is quantised as on the CPU, in
/// larger ones as near as e4m3 is, on two ranks where there are two GPUs; the same bits each time.
#[test]
fn models_of_e4m3_are_the_cpus() {
    let Some(_gpu) = gpu() else { return };
    let compressed = |strategy: &str| {
        let weights = json!({"num_bits": 8, "type": "float", "strategy": strategy});
        json!({"quant_method": "compressed-tensors", "format": "float-quantized",
               "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
               "ignore": ["lm_head"]})
    };
    let block = json!({"quant_method": "fp8", "weight_block_size": [128, 128]});
    // The head too.
    let head = json!({"quant_method": "fp8", "weight_block_size": [128, 128],
                      "modules_to_not_convert": ["model.embed_tokens"]});
    let ranks = if minisgl_kernels::Device::count() > 1 { vec![1, 2] } else { vec![1] };
    let (dense, biased) = ("Qwen3ForCausalLM", "Qwen2ForCausalLM");
    let (mixture, shared, large) =
        ("Qwen3MoeForCausalLM", "Qwen2MoeForCausalLM", "MixtralForCausalLM");
    for (name, quantization, architecture) in [
        ("block", Some(block.clone()), dense),
        ("block with the head", Some(head), dense),
        ("channel", Some(compressed("channel")), biased),
        ("tensor", Some(compressed("tensor")), dense),
        ("quantised at load", None, biased),
        ("experts, block", Some(block.clone()), mixture),
        ("experts beside a shared one, block", Some(block), shared),
        ("experts, channel", Some(compressed("channel")), mixture),
        ("experts, tensor", Some(compressed("tensor")), large),
        ("experts, quantised at load", None, shared),
    ] {
        let mut config: Value = config(architecture, 8, 2, 128);
        let experts = [mixture, shared, large].contains(&architecture);
        for (key, value) in [
            ("hidden_size", json!(256)),
            ("intermediate_size", json!(512)),
            ("vocab_size", json!(VOCAB)),
            ("tie_word_embeddings", json!(false)),
            ("sliding_window", Value::Null),
        ] {
            config[key] = value;
        }
        // A token goes to all experts: to which of two that are nearly as likely would hang on how activations are rounded.
        if experts {
            config["moe_intermediate_size"] = json!(256);
            config["shared_expert_intermediate_size"] = json!(256);
            config["num_experts"] = json!(5);
            config["num_local_experts"] = json!(5);
            config["num_experts_per_tok"] = json!(5);
        }
        let dir = tempfile::tempdir().unwrap();
        let quantize = if quantization.is_none() { Quantize::Fp8 } else { Quantize::None };
        match quantization {
            Some(quantization) => {
                config["quantization_config"] = quantization;
                write_coded_model(dir.path(), &config, 7);
            }
            None => drop(write_model(dir.path(), &config, Dtype::BF16, 7)),
        }
        // Of mixtures, and of one dense model, so many that steps of decode rows are many rows, too.
        let mut prompts = prompts(3);
        let mut random = Random(19);
        prompts.extend(
            (0..if experts || name == "block" { 20 } else { 0 }).map(|_| random.tokens(5, VOCAB)),
        );
        let drive = Drive { new_tokens: 12, ..Drive::default() };
        let on = |device| LoadOptions { quantize, ..on(device) };
        let expected = run(dir.path(), on(Device::Cpu), &drive, &prompts);
        for &tp in &ranks {
            for (chunk, bounds) in [
                (8, (MEAN_ERROR_MAX, P99_ERROR_MAX)),
                (40, (CODED_MEAN_ERROR_MAX, CODED_P99_ERROR_MAX)),
                (512, (CODED_MEAN_ERROR_MAX, CODED_P99_ERROR_MAX)),
            ] {
                let count = prompts.len().min(chunk);
                let (prompts, expected) = (&prompts[..count], &expected[..count]);
                let forced = Some(tokens(expected));
                let drive = Drive { forced, chunk, ..drive.clone() };
                let options = || LoadOptions { tp, ..on(Device::Cuda) };
                let got = run(dir.path(), options(), &drive, prompts);
                let what = format!("e4m3, {name}, in chunks of {chunk}, on {tp}");
                assert_within(&what, &got, expected, bounds);
                assert_eq!(run(dir.path(), options(), &drive, prompts), got, "{what}: twice");
            }
        }
    }
}

/// Prefill and decode, fed the CPU's tokens.
#[test]
fn every_architecture_is_the_cpus() {
    let Some(_gpu) = gpu() else { return };
    for (dir, config) in models() {
        let prompts = prompts(3);
        let drive = Drive { new_tokens: 12, ..Drive::default() };
        let expected = run(dir.path(), on(Device::Cpu), &drive, &prompts);
        let drive = Drive { forced: Some(tokens(&expected)), ..drive };
        let name = config["architectures"][0].as_str().unwrap();
        let auto = Attn::default();
        let fi = Attn { prefill: AttnBackend::Fi, decode: AttnBackend::Fi };
        for (what, chunk, page_size, attn) in [
            ("in chunks of 64", 64, 16, auto),
            ("whole", 512, 16, auto),
            ("page size 1", 100, 1, auto),
            ("by fi", 64, 16, fi),
        ] {
            let options = LoadOptions { page_size, attn, ..on(Device::Cuda) };
            let drive = Drive { chunk, ..drive.clone() };
            let got = run(dir.path(), options, &drive, &prompts);
            assert_close(&format!("{name} {what}"), &got, &expected);
        }
    }
}

/// Prefill and decode of mixtures of experts, fed the CPU's tokens, on one rank and on two; batches that mix prompts and decode rows,
/// few and many rows, and steps that are replayed. The same again gives the same bits.
#[test]
fn mixtures_of_experts_are_the_cpus() {
    let Some(_gpu) = gpu() else { return };
    let ranks = if minisgl_kernels::Device::count() > 1 { vec![1, 2] } else { vec![1] };
    for (dir, config) in mixtures() {
        let name = config["architectures"][0].as_str().unwrap();
        let mut random = Random(17);
        let crowd: Vec<_> = (0..90).map(|_| random.tokens(5, VOCAB)).collect();
        for (prompts, new_tokens) in [(prompts(3), 12), (crowd, 5)] {
            let drive = Drive { new_tokens, ..Drive::default() };
            let expected = run(dir.path(), on(Device::Cpu), &drive, &prompts);
            let drive = Drive { forced: Some(tokens(&expected)), ..drive };
            for (chunk, &tp) in
                [64, 512].into_iter().flat_map(|chunk| ranks.iter().map(move |tp| (chunk, tp)))
            {
                let drive = Drive { chunk, ..drive.clone() };
                let options = || LoadOptions { tp, ..on(Device::Cuda) };
                let got = run(dir.path(), options(), &drive, &prompts);
                let what =
                    format!("{name}, {} prompts in chunks of {chunk} on {tp}", prompts.len());
                assert_within(&what, &got, &expected, MIXTURE_ERROR_MAX);
                assert_eq!(run(dir.path(), options(), &drive, &prompts), got, "{what}: twice");
                let waiting = Drive { overlap: false, ..drive.clone() };
                assert_eq!(run(dir.path(), options(), &waiting, &prompts), got, "{what}: waiting");
            }
        }
    }
}

/// Steps of more rows than logits are held of at once, recorded like others: sampled in parts.
#[test]
fn a_crowd_of_many_rows_is_the_cpus() {
    let Some(_gpu) = gpu() else { return };
    let (dir, _) = models().swap_remove(3);
    let mut random = Random(23);
    let prompts: Vec<_> = (0..410).map(|_| random.tokens(3, VOCAB)).collect();
    let drive = Drive { new_tokens: 6, chunk: 2048, ..Drive::default() };
    let of = |device| {
        let (kv_tokens, chunk_tokens) = (Some(1 << 13), Some(2048));
        LoadOptions { max_running: 600, kv_tokens, chunk_tokens, ..on(device) }
    };
    let expected = run(dir.path(), of(Device::Cpu), &drive, &prompts);
    let drive = Drive { forced: Some(tokens(&expected)), ..drive };
    let got = run(dir.path(), of(Device::Cuda), &drive, &prompts);
    assert_close("410 rows", &got, &expected);
    // More masks than are sent at a time.
    let masked = Drive { masked: true, forced: None, ..drive.clone() };
    let expected = run(dir.path(), of(Device::Cpu), &masked, &prompts);
    let masked = Drive { forced: Some(tokens(&expected)), ..masked };
    assert_close(
        "410 rows, 273 masks",
        &run(dir.path(), of(Device::Cuda), &masked, &prompts),
        &expected,
    );
    assert_eq!(run(dir.path(), of(Device::Cuda), &drive, &prompts), got, "twice");
}
