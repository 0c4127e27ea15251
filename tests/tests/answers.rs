//! SmolLM2 says what it has to: greedy answers and log-probabilities against transformers.

use minisgl_tests::{Daemon, fixture, greedy_with_rivals, is_exact, model_options};
use serde_json::json;

/// How far log-probabilities may be off on average, in nats: in f32, and where activations are bf16, which
/// costs transformers itself 0.06 with this model.
const MEAN_ERROR_MAX: f64 = 0.01;
const MEAN_ERROR_BF16_MAX: f64 = 0.08;
/// Log-probabilities asked for at each position.
const TOP: usize = 20;

#[test]
fn greedy_answers_are_those_of_transformers() {
    let daemon = Daemon::with_smollm2(model_options());
    for answer in fixture::smollm2().greedy {
        let count = answer.output_ids.len() as u32;
        let own = greedy_with_rivals(&daemon, "smollm2", &answer.prompt_ids, count);
        own.assert_same(&answer.output_ids, &answer.question);
        if own.ids != answer.output_ids {
            continue; // A tie fell otherwise.
        }
        daemon.flush("smollm2");
        let body = json!({
            "model": "smollm2",
            "messages": [{"role": "user", "content": answer.question}],
            "temperature": 0,
            "max_tokens": 40,
        });
        let reply = daemon.post("/v1/chat/completions", &body).ok();
        let choice = &reply["choices"][0];
        assert_eq!(choice["message"]["content"], answer.text.as_str(), "{}", answer.question);
        let stopped = answer.output_ids.len() < 40;
        assert_eq!(choice["finish_reason"], if stopped { "stop" } else { "length" });
        let usage = &reply["usage"];
        assert_eq!(usage["prompt_tokens"], answer.prompt_ids.len(), "{usage}");
        assert_eq!(usage["completion_tokens"], answer.output_ids.len(), "{usage}");
    }
}

#[test]
fn answers_make_sense() {
    let daemon = Daemon::with_smollm2(model_options());
    let words = [
        ("What is the capital of France?", "Paris"),
        ("Name three primary colors.", "Red"),
        ("What do bees make?", "Bees"),
    ];
    for (question, word) in words {
        let body = json!({
            "model": "smollm2",
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": 40,
        });
        let reply = daemon.post("/v1/chat/completions", &body).ok();
        let text = reply["choices"][0]["message"]["content"].as_str().unwrap();
        assert!(text.contains(word), "{question} {text}");
    }
}

/// A bad word is kept out of an answer that would have it, and of its stream; alone an allowed token comes again and again,
/// and where both leave nothing the client is told so. Answers beside them stay what they are.
#[test]
fn bad_words_do_not_come_and_allowed_tokens_alone_do() {
    let daemon = Daemon::with_smollm2(model_options());
    let ask = |more: serde_json::Value| {
        let mut body = json!({
            "model": "smollm2",
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
            "temperature": 0,
            "max_tokens": 24,
        });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        daemon.post("/v1/chat/completions", &body)
    };
    let text = |more| {
        let reply = ask(more).ok();
        reply["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    };
    let plain = text(json!({}));
    assert!(plain.contains("capital of France is Paris"), "{plain}");
    let both = std::thread::scope(|scope| {
        let beside = scope.spawn(|| text(json!({})));
        let without = text(json!({"bad_words": ["Paris", "capital of France is"]}));
        (without, beside.join().unwrap())
    });
    assert!(!both.0.contains("Paris") && !both.0.contains("capital of France is"), "{}", both.0);
    assert_eq!(both.1, plain);
    let first = text(json!({"max_tokens": 1}));
    let ids = daemon.post("/tokenize", &json!({"model": "smollm2", "prompt": first})).ok();
    let id = ids["tokens"][0].as_u64().unwrap();
    let again = text(json!({"allowed_token_ids": [id], "max_tokens": 5}));
    assert_eq!(again, first.repeat(5));
    let nothing = ask(json!({"allowed_token_ids": [id], "bad_words": [first.repeat(2)], "n": 1}));
    assert_eq!(nothing.status, 400, "{}", nothing.text());
    assert!(nothing.text().contains("no token may come next"), "{}", nothing.text());
    // An end token is no way out before its time, whichever it is.
    for end in [0, 2] {
        let more = json!({"allowed_token_ids": [end], "stop_token_ids": [end], "min_tokens": 3});
        let stuck = ask(more);
        assert_eq!(stuck.status, 400, "{}", stuck.text());
        assert_eq!(stuck.json()["error"]["param"], "allowed_token_ids");
    }
}

#[test]
fn log_probabilities_are_those_of_transformers() {
    let daemon = Daemon::with_smollm2(model_options());
    let (mut sum, mut count, mut worst) = (0.0, 0, 0.0f64);
    for prompt in fixture::smollm2().prompts {
        for position in &prompt.positions {
            let body = json!({
                "model": "smollm2",
                "input_ids": prompt.ids[..=position.position],
                "sampling_params": {"temperature": 0, "max_new_tokens": 1, "ignore_eos": true},
                "return_logprob": true,
                "top_logprobs_num": TOP,
            });
            let reply = daemon.post("/generate", &body).ok();
            let top = reply["meta_info"]["output_top_logprobs"][0].as_array().unwrap();
            assert_eq!(top.len(), TOP, "{reply}");
            for entry in top {
                let (ours, id) = (entry[0].as_f64().unwrap(), entry[1].as_u64().unwrap() as u32);
                // Rounding may swap neighbours, and so a token in or out at the very end.
                let Some((_, theirs)) = position.top.iter().find(|(token, _)| *token == id) else {
                    panic!("{} at {}: {id} is not in the top 50", prompt.name, position.position);
                };
                let error = (ours - f64::from(*theirs)).abs();
                (sum, count, worst) = (sum + error, count + 1, worst.max(error));
            }
        }
    }
    let mean = sum / f64::from(count);
    println!("{count} log-probabilities: mean error {mean:.6}, worst {worst:.6}");
    let max = if is_exact() { MEAN_ERROR_MAX } else { MEAN_ERROR_BF16_MAX };
    assert!(mean < max, "mean error {mean}, worst {worst}");
}
