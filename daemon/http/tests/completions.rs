//! Completions, `/generate`, the tokenizer endpoints and the metrics, on a scripted model.

#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod support;

use std::sync::atomic::Ordering;

use minisgl_http::Settings;
use minisgl_proto::Finish;
use serde_json::{Value, json};
use support::{BOS, House, IM_END, Step, say, text_of};

#[tokio::test]
async fn prompts_come_in_four_forms() {
    let house = House::new(|request| Ok(say(if request.prompt.contains(&98) { "B" } else { "A" })));
    for (prompt, prompts, texts) in [
        (json!("a"), vec![vec![BOS, 97]], vec!["A"]),
        (json!([97, 98]), vec![vec![97, 98]], vec!["B"]),
        (json!(["a", "b"]), vec![vec![BOS, 97], vec![BOS, 98]], vec!["A", "B"]),
        (json!([[97], [98]]), vec![vec![97], vec![98]], vec!["A", "B"]),
    ] {
        house.model.submitted.lock().unwrap().clear();
        let answer =
            house.post("/v1/completions", json!({"model": "org/tiny", "prompt": prompt})).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let json = answer.json();
        assert_eq!(json["object"], "text_completion");
        let choices = json["choices"].as_array().unwrap();
        let got: Vec<_> = choices.iter().map(|choice| choice["text"].as_str().unwrap()).collect();
        assert_eq!(got, texts);
        let submitted = house.model.submitted.lock().unwrap();
        assert_eq!(submitted.iter().map(|r| r.prompt.clone()).collect::<Vec<_>>(), prompts);
        assert!(submitted.iter().all(|request| request.stop.max_tokens == 16));
        assert_eq!(json["usage"]["prompt_tokens"], prompts.concat().len());
        assert_eq!(json["usage"]["prompt_tokens_details"]["cached_tokens"], 3 * prompts.len());
    }
}

#[tokio::test]
async fn prompts_that_are_none() {
    let house = House::saying("a");
    for prompt in [
        json!(null),
        json!([]),
        json!(5),
        json!([1.5]),
        json!(["a", 1]),
        json!([[]]),
        json!([-1]),
        json!([300]),
        json!([[97], [300]]),
        json!(vec!["a"; 1000]),
    ] {
        let answer = house.post("/v1/completions", json!({"prompt": prompt})).await;
        let (status, param, _) = answer.error();
        assert_eq!(status, 400, "{prompt}");
        assert!(param.as_str().unwrap().starts_with("prompt"), "{prompt}: {}", answer.body);
    }
    for (more, param) in [(json!({"suffix": "x"}), "suffix"), (json!({"best_of": 3}), "best_of")] {
        let mut body = json!({"prompt": "a"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = house.post("/v1/completions", body).await;
        assert_eq!(answer.error(), (400, json!(param), json!("unsupported_parameter")));
    }
}

#[tokio::test]
async fn echo_and_streams() {
    let house = House::saying("bé");
    for (prompt, expected) in [
        (json!(["a", "b"]), ["abé", "abé", "bbé", "bbé"]),
        (json!([[97], [120, IM_END]]), ["abé", "abé", "xbé", "xbé"]),
    ] {
        let body = json!({"prompt": prompt, "echo": true, "n": 2});
        let answer = house.post("/v1/completions", body).await.json();
        let texts: Vec<_> = (0..4).map(|i| answer["choices"][i]["text"].clone()).collect();
        assert_eq!(texts, expected);
    }
    let body = json!({"prompt": "a", "echo": true, "stream": true});
    let (events, done) = house.post("/v1/completions", body).await.events();
    assert!(done);
    let texts: Vec<_> =
        events.iter().map(|event| event["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["a", "b", "é", ""]);
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn log_probabilities() {
    let house = House::saying("aé");
    let answer = house.post("/v1/completions", json!({"prompt": "a", "logprobs": 2})).await.json();
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["a", "bytes:\\xc3", "bytes:\\xa9"]));
    assert_eq!(logprobs["text_offset"][1], 1);
    assert_eq!(logprobs["top_logprobs"][0].as_object().unwrap().len(), 2);
    assert!((logprobs["top_logprobs"][0]["b"].as_f64().unwrap() + 0.98).abs() < 1e-6);
}

#[tokio::test]
async fn generate_in_sglangs_form() {
    let house = House::saying("ab STOP");
    let params =
        json!({"max_new_tokens": 20, "temperature": 0, "stop": ["STOP"], "min_new_tokens": 1});
    let body = json!({"text": "hi", "sampling_params": params});
    let answer = house.post("/generate", body.clone()).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let json = answer.json();
    assert_eq!(json["text"], "ab ");
    let meta = &json["meta_info"];
    assert_eq!(meta["finish_reason"], json!({"type": "stop", "matched": "STOP"}));
    assert_eq!((&meta["prompt_tokens"], &meta["completion_tokens"]), (&json!(3), &json!(7)));
    assert_eq!(meta["cached_tokens"], 3);
    assert_eq!(house.last().stop.max_tokens, 20);
    assert_eq!(json["output_ids"], json!(b"ab STOP"), "as many as completion_tokens");

    let mut streaming = body;
    streaming["stream"] = true.into();
    let (events, done) = house.post("/generate", streaming).await.events();
    assert!(done);
    let texts: Vec<_> = events.iter().map(|event| event["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["a", "ab", "ab ", "ab "]);
    let ids: Vec<_> = events.iter().map(|event| event["output_ids"].clone()).collect();
    assert_eq!(ids, [json!(b"a"), json!(b"ab"), json!(b"ab "), json!(b"ab STOP")]);

    let body = json!({"input_ids": [[97], [98]], "return_logprob": true, "top_logprobs_num": 1});
    let json = house.post("/generate", body).await.json();
    assert_eq!(json.as_array().unwrap().len(), 2);
    let meta = &json[1]["meta_info"];
    assert_eq!(meta["finish_reason"], json!({"type": "stop", "matched": IM_END}));
    assert_eq!(meta["output_token_logprobs"][0][1], 97);
    assert_eq!(meta["output_top_logprobs"][0][0][1], 97);
    let ids = json[1]["output_ids"].as_array().unwrap();
    assert_eq!(ids.last(), Some(&json!(IM_END)), "a stop token is one of them");

    let settings = Settings { client_priority: true, ..Settings::default() };
    let house = House::with(|_| Ok(say("a")), settings, json!({}));
    let body = json!({"text": "a", "priority": 7, "logprob_start_len": -1,
                      "sampling_params": {"priority": 3}});
    assert_eq!(house.post("/generate", body).await.status, 200);
    assert_eq!(house.last().priority, 7);
    let body = json!({"text": "a", "sampling_params": {"priority": 3}});
    house.post("/generate", body).await;
    assert_eq!(house.last().priority, 3);

    let house = House::playing(vec![Step::Last(97, Finish::Length)]);
    let asks = json!({"input_ids": [97], "sampling_params": {"max_new_tokens": 1}});
    let json = house.post("/generate", asks).await.json();
    assert_eq!(json["meta_info"]["finish_reason"], json!({"type": "length", "length": 1}));
    // Before the end that it was promised: the number is that of its tokens, and the client is told of what there is room for.
    for (steps, length) in [
        (vec![Step::Last(97, Finish::Length)], 1),
        (vec![Step::Token(97), Step::Token(98), Step::End(Finish::Length)], 2),
    ] {
        let house = House::playing(steps);
        let json = house.post("/generate", json!({"input_ids": [97, 98, 99]})).await.json();
        let reason = &json["meta_info"]["finish_reason"];
        assert_eq!((&reason["type"], &reason["length"]), (&json!("length"), &json!(length)));
        let message = reason["message"].as_str().unwrap();
        assert!(message.contains(&format!("takes {} tokens", 3 + length)), "{message}");
        assert!(message.contains("kv_tokens"), "{message}");
    }

    for (body, param) in [
        (json!({}), "text"),
        (json!({"text": "a", "input_ids": [1]}), "input_ids"),
        (
            json!({"text": "a", "sampling_params": {"temperature": "x"}}),
            "sampling_params.temperature",
        ),
        (json!({"text": "a", "sampling_params": {"max_new_tokens": 0}}), "max_new_tokens"),
        (json!({"text": "a", "sampling_params": [{}]}), "sampling_params"),
        (json!({"text": "a", "regex": "a+"}), "regex"),
        (
            json!({"text": "a", "sampling_params": {"stop_regex": "a"}}),
            "sampling_params.stop_regex",
        ),
        (json!({"text": "a", "logprob_start_len": -2}), "logprob_start_len"),
        (json!({"text": "a", "image_data": "x"}), "image_data"),
        (json!({"text": "x".repeat(600)}), "text"),
    ] {
        let answer = house.post("/generate", body).await;
        let (status, got, _) = answer.error();
        assert_eq!((status, got), (400, json!(param)), "{}", answer.body);
    }
}

#[tokio::test]
async fn tokens_there_and_back() {
    let house = House::saying("a");
    let json = house.post("/tokenize", json!({"prompt": "é"})).await.json();
    assert_eq!(json["tokens"], json!([BOS, 0xc3, 0xa9]));
    assert_eq!((&json["count"], &json["max_model_len"]), (&json!(3), &json!(512)));
    let body = json!({"prompt": "a", "add_special_tokens": false, "return_token_strs": true});
    assert_eq!(house.post("/tokenize", body).await.json()["token_strs"], json!(["a"]));
    let body =
        json!({"messages": [{"role": "user", "content": "x"}], "add_generation_prompt": false});
    let json = house.post("/tokenize", body).await.json();
    let tokens: Vec<u32> = serde_json::from_value(json["tokens"].clone()).unwrap();
    assert_eq!(text_of(&tokens), "<s><|im_start|>user\nx<|im_end|>\n");
    let long = "x".repeat(2000);
    let json = house.post("/tokenize", json!({"prompt": long})).await.json();
    assert_eq!(json["count"], 2001, "counting has no context");
    let json = house.post("/detokenize", json!({"tokens": tokens})).await.json();
    assert_eq!(json["text"], "<s><|im_start|>user\nx<|im_end|>\n");
    assert_eq!(json["prompt"], json["text"]);
    let answer = house.post("/detokenize", json!({"tokens": [1, 1_000_000]})).await;
    assert_eq!(answer.error().1, json!("tokens"));
}

#[tokio::test]
async fn metrics_tell_what_happened() {
    let house = House::saying("abc");
    house.chat(json!({})).await;
    house.chat(json!({"stream": true})).await;
    house.chat(json!({"model": "someone-else's"})).await;
    house.chat(json!({"temperature": -1})).await;
    let answer = house.get("/metrics").await;
    assert_eq!(answer.headers["content-type"], "text/plain; version=0.0.4");
    let has =
        |line: &str| assert!(answer.body.lines().any(|l| l == line), "{line}\n{}", answer.body);
    let requests = |model: &str, outcome: &str, count: u32| {
        has(&format!(
            "minisgl_requests_total{{endpoint=\"/v1/chat/completions\",model=\"{model}\",\
             outcome=\"{outcome}\"}} {count}"
        ));
    };
    requests("org/tiny", "ok", 2);
    requests("org/tiny", "client_error", 1);
    requests("", "client_error", 1);
    assert!(!answer.body.contains("someone-else"));
    has("minisgl_generated_tokens_total{model=\"org/tiny\"} 8");
    has("minisgl_cached_tokens_total{model=\"org/tiny\"} 6");
    has("minisgl_time_to_first_token_seconds_count{model=\"org/tiny\"} 2");
    has("minisgl_inter_token_seconds_count{model=\"org/tiny\"} 6");
    has("minisgl_request_seconds_count{model=\"org/tiny\"} 2");
    has("minisgl_queue_seconds_count{model=\"org/tiny\"} 2");
    has("minisgl_http_requests_in_flight 1");
}

#[tokio::test]
async fn a_prompt_counts_once_in_both_counters() {
    let house = House::saying("abc");
    let body = json!({"prompt": [[97, 97, 97], [98, 98, 98]], "n": 4});
    assert_eq!(house.post("/v1/completions", body).await.status, 200);
    let metrics = house.get("/metrics").await.body;
    assert!(metrics.contains("minisgl_prompt_tokens_total{model=\"org/tiny\"} 6\n"), "{metrics}");
    assert!(metrics.contains("minisgl_cached_tokens_total{model=\"org/tiny\"} 6\n"), "{metrics}");
}

#[tokio::test]
async fn a_model_that_is_gone_takes_its_metrics_along() {
    let house = House::saying("abc");
    house.chat(json!({})).await;
    house.chat(json!({"temperature": -1})).await;
    house.chat(json!({"model": "unknown"})).await;
    let before = house.get("/metrics").await.body;
    assert!(before.matches("model=\"org/tiny\"").count() > 8, "{before}");
    house.backend.gone.store(true, Ordering::SeqCst);
    let after = house.get("/metrics").await.body;
    assert!(!after.contains("org/tiny"), "{after}");
    assert!(after.contains("model=\"\",outcome=\"client_error\"} 1"), "{after}");
}

#[tokio::test]
async fn models_that_come_and_go_do_not_pile_up_where_nobody_scrapes() {
    let house = House::saying("abc");
    let series = || {
        let families = house.metrics.gather();
        families.iter().map(|family| family.get_metric().len()).sum::<usize>()
    };
    let mut most = 0;
    for round in 0..50 {
        let name = format!("m{round}");
        (*house.backend.name.lock().unwrap()).clone_from(&name);
        house.backend.generation.fetch_add(1, Ordering::SeqCst);
        assert_eq!(house.chat(json!({"model": name})).await.status, 200);
        house.chat(json!({"model": format!("unknown-{round}")})).await;
        most = most.max(series());
    }
    assert!(most < 40, "{most} series");
}

#[tokio::test]
async fn a_model_has_lines_before_its_first_request() {
    let house = House::saying("abc");
    let metrics = house.get("/metrics").await.body;
    assert!(metrics.contains("minisgl_request_seconds_count{model=\"org/tiny\"} 0\n"), "{metrics}");
    let alias = "sglang:time_to_first_token_seconds_count{model_name=\"org/tiny\"} 0\n";
    assert!(metrics.contains(alias), "{metrics}");
}

#[tokio::test]
async fn without_a_tokenizer_tokens_go_in_and_come_out() {
    let house = House::saying("abc");
    std::fs::remove_file(house.folder.path().join("tokenizer.json")).unwrap();
    let all = json!([97, 98, 99, IM_END]);

    let body = json!({"input_ids": [97, 98], "sampling_params": {"max_new_tokens": 4}});
    let json = house.post("/generate", body).await.json();
    assert_eq!((&json["text"], &json["output_ids"]), (&json!(""), &all));
    assert_eq!(house.last().prompt, [97, 98]);
    let body = json!({"input_ids": [97], "stream": true});
    let (events, done) = house.post("/generate", body).await.events();
    assert!(done);
    let ids: Vec<_> = events.iter().map(|e| e["output_ids"].as_array().unwrap().len()).collect();
    assert_eq!(ids, [1, 2, 3, 4], "each token as it comes");

    let json = house.post("/v1/completions", json!({"prompt": [97], "logprobs": 1})).await.json();
    assert_eq!(json["choices"][0]["text"], "");
    assert_eq!(json["usage"]["completion_tokens"], 4);
    let tokens = &json["choices"][0]["logprobs"]["tokens"];
    assert_eq!(tokens, &json!(["token_id:97", "token_id:98", "token_id:99"]));

    let message = json!([{"role": "user", "content": "hi"}]);
    for (path, body, param) in [
        ("/v1/chat/completions", json!({"messages": message}), "messages"),
        ("/v1/completions", json!({"prompt": "a"}), "prompt"),
        ("/v1/completions", json!({"prompt": [97], "stop": "b"}), "stop"),
        ("/generate", json!({"text": "a"}), "text"),
        ("/tokenize", json!({"prompt": "a"}), "prompt"),
        ("/detokenize", json!({"tokens": [97]}), "tokens"),
    ] {
        let answer = house.post(path, body).await;
        assert_eq!(answer.error(), (400, json!(param), json!("invalid_value")), "{path}");
        assert!(answer.body.contains("tokenizer.json"), "{}", answer.body);
    }
}

#[tokio::test]
async fn models_are_listed() {
    let json: Value = House::saying("a").get("/v1/models").await.json();
    assert_eq!(json["object"], "list");
    assert_eq!(json["data"][0]["id"], "org/tiny");
    assert_eq!(json["data"][0]["created"], 1_700_000_000);
    assert_eq!(json["data"][0]["max_model_len"], 512);
}
