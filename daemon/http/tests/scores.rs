//! Log-probabilities of prompts and of generated tokens, in the shapes that clients read.

#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod support;

use minisgl_proto::Finish;
use serde_json::{Value, json};
use support::{BOS, House, Step};

/// What the scripted model says of a token.
fn score(token: u32) -> f64 {
    f64::from(-(token as f32) / 100.0)
}

#[track_caller]
fn near(value: &Value, expected: f64) {
    assert!((value.as_f64().unwrap() - expected).abs() < 1e-6, "{value} {expected}");
}

#[tokio::test]
async fn echo_with_logprobs_as_lm_eval_reads_it() {
    let house = House::playing(vec![Step::Last(99, Finish::Length)]);
    let body =
        json!({"prompt": [[97, 98], [98, 97, 97]], "echo": true, "logprobs": 1, "max_tokens": 1});
    let answer = house.post("/v1/completions", body).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let json = answer.json();
    // lm-eval sums token_logprobs[context:-1], and compares each with the largest of top_logprobs.
    let choice = &json["choices"][1];
    assert_eq!(choice["text"], "baac");
    let logprobs = &choice["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["b", "a", "a", "c"]));
    assert_eq!(logprobs["text_offset"], json!([0, 1, 2, 3]));
    let own = logprobs["token_logprobs"].as_array().unwrap();
    assert_eq!((own.len(), &own[0]), (4, &Value::Null));
    near(&own[1], score(97));
    near(&own[3], score(99));
    assert_eq!(logprobs["top_logprobs"][0], Value::Null);
    near(&logprobs["top_logprobs"][2]["a"], score(97));
    let sampling = house.last().sampling;
    assert_eq!((sampling.prompt_logprobs, sampling.prompt_logprobs_from), (Some(1), 0));
}

#[tokio::test]
async fn nothing_is_generated_when_only_the_prompt_is_scored() {
    let house = House::playing(Vec::new());
    let body = json!({"prompt": "aé", "echo": true, "logprobs": 0, "max_tokens": 0});
    let json = house.post("/v1/completions", body).await.json();
    let choice = &json["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("aé"), &json!("length")));
    let logprobs = &choice["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["<s>", "a", "bytes:\\xc3", "bytes:\\xa9"]));
    assert_eq!(logprobs["text_offset"], json!([0, 0, 1, 1]), "where its text begins in `text`");
    assert_eq!(logprobs["token_logprobs"].as_array().unwrap().len(), 4);
    assert_eq!(
        (&json["usage"]["prompt_tokens"], &json["usage"]["completion_tokens"]),
        (&json!(4), &json!(0))
    );
    assert_eq!(house.last().stop.max_tokens, 0);
    // A prompt that fills the context can be scored, though nothing can follow it.
    let body = json!({"prompt": vec![97; 512], "echo": true, "logprobs": 0, "max_tokens": 0});
    assert_eq!(house.post("/v1/completions", body).await.status, 200);
    let answer = house.post("/v1/completions", json!({"prompt": "a", "max_tokens": 0})).await;
    assert_eq!(answer.error(), (400, json!("max_tokens"), json!("invalid_value")));
}

#[tokio::test]
async fn a_stream_echoes_the_prompt_with_its_scores_first() {
    let house = House::saying("b");
    let body = json!({"prompt": [97, 98], "echo": true, "logprobs": 0, "stream": true, "n": 2});
    let (events, done) = house.post("/v1/completions", body).await.events();
    assert!(done);
    for choice in 0..2 {
        let of_it: Vec<&Value> =
            events.iter().map(|e| &e["choices"][0]).filter(|c| c["index"] == choice).collect();
        assert_eq!((&of_it[0]["text"], &of_it[1]["text"]), (&json!("ab"), &json!("b")));
        assert_eq!(of_it[0]["logprobs"]["text_offset"], json!([0, 1]));
        assert_eq!(of_it[1]["logprobs"]["text_offset"], json!([2]));
        near(&of_it[0]["logprobs"]["token_logprobs"][1], score(98));
    }
}

#[tokio::test]
async fn prompt_logprobs_as_vllm_writes_them() {
    let house = House::saying("c");
    let body = json!({"prompt": "ab", "prompt_logprobs": 2});
    let json = house.post("/v1/completions", body).await.json();
    let told = &json["choices"][0]["prompt_logprobs"];
    assert_eq!((told.as_array().unwrap().len(), &told[0]), (3, &Value::Null));
    assert_eq!(told[1]["97"]["decoded_token"], "a");
    assert_eq!((&told[1]["97"]["rank"], &told[1]["98"]["rank"]), (&json!(1), &json!(2)));
    near(&told[1]["98"]["logprob"], score(98));
    let json = house.chat(json!({"prompt_logprobs": 0})).await.json();
    let tokens = house.last().prompt;
    let told = json["prompt_logprobs"].as_array().unwrap();
    assert_eq!((told.len(), &told[0], tokens[0]), (tokens.len(), &Value::Null, BOS));
    near(&told[1][tokens[1].to_string()]["logprob"], score(tokens[1]));
    assert_eq!(told[1][tokens[1].to_string()]["rank"], Value::Null, "it was not looked for");
    let answer = house.chat(json!({"prompt_logprobs": 1, "stream": true})).await;
    assert_eq!(answer.error(), (400, json!("prompt_logprobs"), json!("invalid_value")));
    let answer = house.chat(json!({"prompt_logprobs": 21})).await;
    assert_eq!(answer.error(), (400, json!("prompt_logprobs"), json!("invalid_value")));
}

#[tokio::test]
async fn logprob_start_len_as_sglang_writes_it() {
    let house = House::saying("c");
    let body = json!({"input_ids": [97, 98, 99, 100], "return_logprob": true, "logprob_start_len": 1,
                      "top_logprobs_num": 1, "return_text_in_logprobs": true});
    for stream in [false, true] {
        let mut body = body.clone();
        body["stream"] = stream.into();
        let answer = house.post("/generate", body).await;
        let json = if stream { answer.events().0.remove(0) } else { answer.json() };
        let told = &json["meta_info"]["input_token_logprobs"];
        assert_eq!(told.as_array().unwrap().len(), 3);
        assert_eq!(told[0], json!([null, 98, "b"]), "SGLang has none for the first");
        near(&told[1][0], score(99));
        assert_eq!((&told[2][1], &told[2][2]), (&json!(100), &json!("d")));
        let tops = &json["meta_info"]["input_top_logprobs"];
        assert_eq!((&tops[0], &tops[1][0][1]), (&Value::Null, &json!(99)));
        assert_eq!(house.last().sampling.prompt_logprobs_from, 2);
    }
    let mut scored = body;
    scored["sampling_params"] = json!({"max_new_tokens": 0});
    let json = house.post("/generate", scored).await.json();
    assert_eq!((&json["text"], &json["output_ids"]), (&json!(""), &json!([])));
    let json = house.post("/generate", json!({"input_ids": [97], "logprob_start_len": 0})).await;
    assert_eq!(json.json()["meta_info"].get("input_token_logprobs"), None, "return_logprob asks");
}

#[tokio::test]
async fn tokens_of_a_stop_string_are_not_among_the_logprobs() {
    for stream in [false, true] {
        let house = House::saying("ab STOPx");
        let more = json!({"stop": "STOP", "logprobs": true, "stream": stream});
        let answer = house.chat(more).await;
        let (text, tokens): (String, String) = if stream {
            let (events, _) = answer.events();
            let choices: Vec<&Value> = events.iter().map(|event| &event["choices"][0]).collect();
            let content = choices.iter().filter_map(|choice| choice["delta"]["content"].as_str());
            let tokens =
                choices.iter().filter_map(|choice| choice["logprobs"]["content"].as_array());
            (
                content.collect(),
                tokens.flatten().map(|token| token["token"].as_str().unwrap()).collect(),
            )
        } else {
            let json = answer.json();
            let choice = &json["choices"][0];
            let tokens = choice["logprobs"]["content"].as_array().unwrap();
            let text = choice["message"]["content"].as_str().unwrap().to_string();
            (text, tokens.iter().map(|token| token["token"].as_str().unwrap()).collect())
        };
        assert_eq!((text.as_str(), tokens.as_str()), ("ab ", "ab "));
    }
    let house = House::saying("ab STOPx");
    let more = json!({"stop": "STOP", "logprobs": true, "include_stop_str_in_output": true});
    let json = house.chat(more).await.json();
    assert_eq!(json["choices"][0]["logprobs"]["content"].as_array().unwrap().len(), 7);
}

#[tokio::test]
async fn the_scores_of_a_prompt_are_computed_once_and_are_those_of_all_its_choices() {
    let house = House::saying("b");
    let body = json!({"prompt": [[97, 98, 99], [100, 101]], "n": 3, "echo": true, "logprobs": 1});
    for stream in [false, true] {
        for max_tokens in [0, 5] {
            house.model.submitted.lock().unwrap().clear();
            let mut body = body.clone();
            body["stream"] = stream.into();
            body["max_tokens"] = max_tokens.into();
            let answer = house.post("/v1/completions", body).await;
            assert_eq!(answer.status, 200, "{}", answer.body);
            let scored: Vec<Option<u32>> = {
                let submitted = house.model.submitted.lock().unwrap();
                submitted.iter().map(|request| request.sampling.prompt_logprobs).collect()
            };
            assert_eq!(scored, [Some(1), None, None, Some(1), None, None]);
            let pieces = if stream { answer.events().0 } else { vec![answer.json()] };
            let pieces: Vec<&Value> =
                pieces.iter().flat_map(|piece| piece["choices"].as_array().unwrap()).collect();
            for choice in 0..6 {
                let prompt: &[u32] = if choice < 3 { &[97, 98, 99] } else { &[100, 101] };
                let first = pieces.iter().find(|piece| piece["index"] == choice).unwrap();
                let told = first["logprobs"]["token_logprobs"].as_array().unwrap();
                assert_eq!(told[0], Value::Null, "{first}");
                for (at, &token) in prompt.iter().enumerate().skip(1) {
                    near(&told[at], score(token));
                }
                let text: String = pieces
                    .iter()
                    .filter(|piece| piece["index"] == choice)
                    .map(|piece| piece["text"].as_str().unwrap())
                    .collect();
                let own = if max_tokens == 0 { "" } else { "b" };
                let prompt: String = prompt.iter().map(|&byte| char::from(byte as u8)).collect();
                assert_eq!(text, format!("{prompt}{own}"));
            }
        }
    }
}

#[tokio::test]
async fn a_choice_that_fails_while_the_prompt_is_scored_ends_the_others() {
    let house = House::new(|request| {
        Ok(match request.sampling.prompt_logprobs {
            Some(_) => vec![Step::Hang],
            None => vec![Step::Token(97), Step::End(Finish::Failed("it broke".into()))],
        })
    });
    let body = json!({"prompt": [97, 98], "n": 2, "echo": true, "logprobs": 1, "max_tokens": 5});
    let answer = house.post("/v1/completions", body).await;
    assert_eq!(answer.status, 500, "{}", answer.body);
    house.quiet().await;
}
