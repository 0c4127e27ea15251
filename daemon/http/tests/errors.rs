//! What cannot be answered: each mistake has its status, its `param` and its `code`.

#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod support;

use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::http::Request;
use axum::response::IntoResponse;
use futures_util::FutureExt;
use minisgl_http::backend::Unavailable;
use minisgl_http::{ApiError, Settings};
use minisgl_proto::{Finish, Reject};
use serde_json::{Value, json};
use support::{House, Step, chat_body, say};

async fn check(house: &House, more: Value, status: u16, param: Value, code: Value) {
    let answer = house.chat(more.clone()).await;
    assert_eq!(answer.error(), (status, param, code), "{more}: {}", answer.body);
}

/// OpenAI's and Anthropic's clients try a 409 again, unless they hear that they should not.
#[test]
fn what_somebody_cancelled_is_not_tried_again() {
    let answer = ApiError::cancelled().into_response();
    let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap());
    assert_eq!((answer.status().as_u16(), header("x-should-retry")), (409, Some("false")));
    assert_eq!(header("retry-after"), None);
    let stopped = ApiError::from_finish(&Finish::Aborted, 7).unwrap().into_response();
    assert_eq!(stopped.headers().get("retry-after").unwrap(), "7", "the model may be back");
    assert!(stopped.headers().get("x-should-retry").is_none());
}

#[tokio::test]
async fn fields_out_of_range_are_named() {
    let house = House::saying("a");
    for (field, value) in [
        ("temperature", json!(-0.1)),
        ("temperature", json!(1e300)),
        ("top_p", json!(0)),
        ("top_p", json!(1.5)),
        ("top_k", json!(-2)),
        ("min_p", json!(-1)),
        ("repetition_penalty", json!(0)),
        ("presence_penalty", json!(3)),
        ("frequency_penalty", json!(-3)),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(-5)),
        ("max_completion_tokens", json!(0)),
        ("n", json!(0)),
        ("n", json!(100_000)),
        ("top_logprobs", json!(21)),
        ("top_logprobs", json!(2)),
        ("stop", json!(["a", ""])),
        ("stop", json!(vec!["a"; 1000])),
        ("stop_token_ids", json!([100_000])),
        ("stop_token_ids", json!([-1])),
        ("min_tokens", json!(-1)),
        ("messages", json!([])),
    ] {
        check(&house, json!({field: value}), 400, json!(field), json!("invalid_value")).await;
    }
    let ids = json!({"allowed_token_ids": [5, 100_000]});
    check(&house, ids, 400, json!("allowed_token_ids"), json!("invalid_value")).await;
    for words in [json!([" "]), json!(["x".repeat(257)]), json!(vec!["x"; 129])] {
        let words = json!({"bad_words": words});
        check(&house, words, 400, json!("bad_words"), json!("invalid_value")).await;
    }
    let bias = json!({"logit_bias": {"5": 101}});
    check(&house, bias, 400, json!("logit_bias.5"), json!("invalid_value")).await;
    let bias = json!({"logit_bias": {"100000": 1}});
    check(&house, bias, 400, json!("logit_bias.100000"), json!("invalid_value")).await;
    assert_eq!(house.model.submitted.lock().unwrap().len(), 0);
}

#[tokio::test]
async fn wrong_types_are_named() {
    let house = House::saying("a");
    for (more, param) in [
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"max_tokens": 1.5}), "max_tokens"),
        (json!({"max_tokens": 1e30}), "max_tokens"),
        (json!({"messages": "hi"}), "messages"),
        (json!({"messages": ["hi"]}), "messages[0]"),
        (json!({"stop": 5}), "stop"),
        (json!({"stream": "yes"}), "stream"),
        (json!({"stream_options": {"include_usage": 3}}), "stream_options.include_usage"),
        (json!({"model": 7}), "model"),
        (json!({"stop_token_ids": [1.5]}), "stop_token_ids[0]"),
    ] {
        check(&house, more, 400, json!(param), json!("invalid_type")).await;
    }
}

#[tokio::test]
async fn what_is_not_built_is_refused() {
    let house = House::saying("a");
    for (more, param) in [
        (json!({"modalities": ["audio"]}), "modalities"),
        (json!({"best_of": 2}), "best_of"),
        (json!({"chat_template": "x"}), "chat_template"),
        (json!({"functions": [{}]}), "functions"),
        (json!({"stop_regex": "a+"}), "stop_regex"),
        (json!({"truncate_prompt_tokens": 1}), "truncate_prompt_tokens"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}),
            "messages[0].content[0]",
        ),
    ] {
        check(&house, more, 400, json!(param), json!("unsupported_parameter")).await;
    }
    let harmless = json!({"allowed_token_ids": [], "truncate_prompt_tokens": null});
    assert_eq!(house.chat(harmless).await.status, 200);
    let harmless =
        json!({"best_of": 1, "guided_json": null, "functions": [], "modalities": ["text"]});
    assert_eq!(house.chat(harmless).await.status, 200);
}

#[tokio::test]
async fn bodies_that_are_no_json() {
    let house = House::saying("a");
    let answer = house.post_bytes("/v1/chat/completions", b"{\"model\": \n oops}".to_vec()).await;
    assert_eq!(answer.error(), (400, Value::Null, json!("invalid_json")));
    assert!(answer.body.contains("line 2 column 2"), "{}", answer.body);
    let answer = house.post_bytes("/v1/chat/completions", b"{\"model\": \"\xff\"}".to_vec()).await;
    assert_eq!(answer.error(), (400, Value::Null, json!("invalid_json")));
    assert!(answer.body.contains("byte 11"), "{}", answer.body);
    for body in ["", "[]", "3", "{} x"] {
        let answer = house.post_bytes("/v1/chat/completions", body.into()).await;
        assert_eq!(answer.status, 400, "{body:?}: {}", answer.body);
        answer.error();
    }
}

#[tokio::test]
async fn the_context_has_an_end() {
    let house = House::saying("a");
    let long = json!([{"role": "user", "content": "x".repeat(600)}]);
    let answer = house.chat(json!({"messages": long})).await;
    assert_eq!(answer.error(), (400, json!("messages"), json!("context_length_exceeded")));
    assert!(answer.body.contains("512"), "{}", answer.body);
    let huge = json!([{"role": "user", "content": "x".repeat(1 << 20)}]);
    let answer = house.chat(json!({"messages": huge})).await;
    assert_eq!(answer.error(), (400, json!("messages"), json!("context_length_exceeded")));
    let settings = Settings { clamp_max_tokens: false, ..Settings::default() };
    let strict = House::with(|_| Ok(say("a")), settings, json!({}));
    let answer = strict.chat(json!({"max_tokens": 510})).await;
    assert_eq!(answer.error(), (400, json!("max_tokens"), json!("context_length_exceeded")));
    assert!(answer.body.contains("This model's maximum context length is 512 tokens"));
    // 54 tokens are the template's: the prompt is one short of the context.
    let house = House::saying("a");
    let prompt = vec![97; 511];
    let answer = house.post("/v1/completions", json!({"prompt": prompt})).await;
    assert_eq!((answer.status.as_u16(), house.last().stop.max_tokens), (200, 1));
    let answer = house.post("/v1/completions", json!({"prompt": vec![97; 512]})).await;
    assert_eq!(answer.error(), (400, json!("prompt"), json!("context_length_exceeded")));
}

#[tokio::test]
async fn more_than_a_model_ever_takes_is_no_reason_to_retry() {
    let house = House::saying("a");
    let answer = house.chat(json!({"n": 17})).await;
    assert_eq!(answer.error(), (400, json!("n"), json!("invalid_value")));
    assert!(answer.body.contains("at most 16"), "{}", answer.body);
    let body = json!({"prompt": vec!["a"; 9], "n": 2});
    assert_eq!(house.post("/v1/completions", body).await.error().0, 400);
    assert_eq!(house.model.submitted.lock().unwrap().len(), 0);
    assert_eq!(house.chat(json!({"n": 16})).await.status, 200);
}

#[tokio::test]
async fn bodies_have_a_limit() {
    let settings = Settings { body_bytes_max: 1000, ..Settings::default() };
    let house = House::with(|_| Ok(say("a")), settings, json!({}));
    let answer = house.chat(json!({"user": "x".repeat(1000)})).await;
    assert_eq!(answer.error(), (413, Value::Null, json!("request_too_large")));
    let chunks = (0..100).map(|_| Ok::<_, std::io::Error>("x".repeat(100)));
    let body = Body::from_stream(futures_util::stream::iter(chunks));
    let request = Request::post("/v1/chat/completions").body(body).unwrap();
    assert_eq!(house.send(request).await.error().0, 413);
    assert_eq!(house.chat(json!({})).await.status, 200);
}

#[tokio::test]
async fn all_bodies_together_have_a_limit() {
    let (body_bytes_max, bodies_bytes_max) = (90_000, 100_000);
    let settings = Settings { body_bytes_max, bodies_bytes_max, ..Settings::default() };
    let house = House::with(|_| Ok(say("a")), settings, json!({}));
    // A body that is half there holds its share.
    let (sender, rest) = tokio::sync::mpsc::channel::<Result<String, std::io::Error>>(1);
    sender.send(Ok(" ".repeat(60_000))).await.unwrap();
    let body = Body::from_stream(futures_util::stream::unfold(rest, |mut rest| async {
        Some((rest.recv().await?, rest))
    }));
    let slow = house.send(Request::post("/v1/completions").body(body).unwrap());
    let mut slow = Box::pin(slow);
    assert!((&mut slow).now_or_never().is_none());
    let answer = house.chat(json!({"user": "x".repeat(60_000)})).await;
    assert_eq!(answer.error(), (503, Value::Null, json!("unavailable")));
    assert_eq!(answer.headers["retry-after"], "1");
    assert_eq!(house.chat(json!({})).await.status, 200);
    drop(slow);
    assert_eq!(house.chat(json!({"user": "x".repeat(60_000)})).await.status, 200);
}

#[tokio::test]
async fn models_and_paths_that_are_not_there() {
    let house = House::saying("a");
    let answer = house.chat(json!({"model": "gpt-4"})).await;
    assert_eq!(answer.error(), (404, json!("model"), json!("model_not_found")));
    assert!(answer.body.contains("org/tiny"));
    let answer = house.get("/v1/models/gpt-4").await;
    assert_eq!(answer.error(), (404, json!("model"), json!("model_not_found")));
    let answer = house.get("/v1/nothing").await;
    assert_eq!(answer.error(), (404, Value::Null, json!("unknown_url")));
    let answer = house.get("/v1/chat/completions").await;
    assert_eq!(answer.error(), (405, Value::Null, json!("method_not_allowed")));
    assert_eq!(answer.headers["allow"], "POST");
    assert_eq!(house.get("/v1/models/org/tiny").await.json()["id"], "org/tiny");
    let mut body = chat_body(json!({}));
    body.as_object_mut().unwrap().remove("model");
    let answer = house.post("/v1/chat/completions", body).await;
    assert_eq!(answer.status, 200, "the only model needs no name");
}

#[tokio::test]
async fn a_model_that_is_not_ready() {
    let house = House::saying("a");
    *house.backend.not_ready.lock().unwrap() = Some("loading".into());
    *house.backend.health.lock().unwrap() = (false, "org/tiny is loading".into());
    let answer = house.chat(json!({})).await;
    assert_eq!(answer.error(), (503, Value::Null, json!("model_not_ready")));
    assert_eq!(answer.headers["retry-after"], "1");
    let answer = house.get("/health").await;
    assert_eq!(answer.error(), (503, Value::Null, json!("not_ready")));
    assert!(answer.body.contains("org/tiny is loading"));
    *house.backend.health.lock().unwrap() = (true, "fine".into());
    assert_eq!(house.get("/health").await.status, 200);
    assert_eq!(house.get("/v1/models").await.json()["data"], json!([]));
}

#[tokio::test]
async fn failures_before_the_first_text_have_a_status() {
    for stream in [false, true] {
        for (finish, status, code) in [
            (Finish::Rejected(Reject::QueueFull { limit: 8 }), 429, "queue_full"),
            (Finish::Rejected(Reject::Draining), 503, "model_not_ready"),
            (
                Finish::Rejected(Reject::TooLong { prompt: 9, limit: 8 }),
                400,
                "context_length_exceeded",
            ),
            (
                Finish::Rejected(Reject::TooMany {
                    field: "logit_bias".into(),
                    count: 1025,
                    limit: 1024,
                }),
                400,
                "invalid_value",
            ),
            (Finish::Aborted, 503, "aborted"),
            (Finish::Failed("worker exited with signal 9".into()), 500, "model_failed"),
        ] {
            let house = House::playing(vec![Step::End(finish)]);
            let answer = house.chat(json!({"stream": stream})).await;
            let (got_status, _, got_code) = answer.error();
            assert_eq!((got_status, got_code), (status, json!(code)));
            assert_eq!(answer.headers.contains_key("retry-after"), status == 429 || status == 503);
        }
        let house = House::new(|_| Err(Unavailable::Busy { name: "org/tiny".into(), limit: 8 }));
        let answer = house.chat(json!({"stream": stream})).await;
        assert_eq!(answer.error(), (429, Value::Null, json!("queue_full")));
        assert_eq!(answer.headers["retry-after"], "1");
    }
}

#[tokio::test]
async fn failures_inside_a_stream_are_its_last_event() {
    for (end, code) in [
        (Step::End(Finish::Failed("worker exited with signal 9".into())), "model_failed"),
        (Step::Cut, "client_too_slow"),
    ] {
        let house = House::playing(vec![Step::Token(97), end]);
        let answer = house.chat(json!({"stream": true})).await;
        assert_eq!(answer.status, 200);
        let (events, done) = answer.events();
        assert!(!done);
        assert_eq!(events.last().unwrap()["error"]["code"], code);
        assert_eq!(house.chat(json!({})).await.error().0, 500);
        house.quiet().await;
    }
}

#[tokio::test]
async fn one_failed_choice_ends_the_others() {
    let house = House::new(|request| {
        Ok(match request.sampling.seed {
            5 => vec![Step::Token(97), Step::Hang],
            _ => vec![Step::Token(97), Step::End(Finish::Failed("gone".into()))],
        })
    });
    assert_eq!(house.chat(json!({"n": 2, "seed": 5})).await.error().0, 500);
    assert_eq!(house.model.alive.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_template_can_refuse() {
    let house = House::saying("a");
    let answer = house.chat(json!({"messages": [{"role": "bad", "content": "x"}]})).await;
    assert_eq!(answer.error(), (400, json!("messages"), json!("chat_template_error")));
    assert!(answer.body.contains("no bad roles"), "{}", answer.body);
    let answer = house.chat(json!({"messages": [{"content": "x"}]})).await;
    assert_eq!(answer.error().1, json!("messages[0].role"));
}

#[tokio::test]
async fn request_ids() {
    let house = House::saying("a");
    let ask = |id: &str| Request::get("/health").header("x-request-id", id).body(Body::empty());
    let answer = house.send(ask("job-7.b").unwrap()).await;
    assert_eq!(answer.headers["x-request-id"], "job-7.b");
    for bad in ["", "a b", &"x".repeat(200)] {
        let answer = house.send(ask(bad).unwrap()).await;
        let id = answer.headers["x-request-id"].to_str().unwrap();
        assert!(id != bad && id.len() == 32, "{id}");
    }
}

#[tokio::test]
async fn without_a_key_of_the_list_the_answer_is_401_in_openais_shape() {
    let house = House::saying("a");
    let keys = minisgl_http::Keys::default();
    let router = house.keyed(keys.clone());
    let ask = async |path: &str, key: Option<&str>| {
        let mut request = Request::get(path);
        if let Some(key) = key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        support::send(&router, request.body(Body::empty()).unwrap()).await
    };
    assert_eq!(ask("/v1/models", None).await.status, 200, "no keys, no question");
    let list = minisgl_http::KeyList::parse("sk-0123456789abcdef").unwrap();
    keys.set(minisgl_http::Rule { keys: list, ..minisgl_http::Rule::default() });
    assert_eq!(ask("/v1/models", Some("sk-0123456789abcdef")).await.status, 200);
    for (path, key) in
        [("/v1/models", None), ("/v1/models", Some("sk-wrong")), ("/metrics", None), ("/x", None)]
    {
        let answer = ask(path, key).await;
        assert_eq!(answer.error(), (401, Value::Null, json!("invalid_api_key")), "{path}");
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
        assert!(answer.headers.contains_key("x-request-id"));
        let body: Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(body["error"]["type"], "invalid_request_error");
    }
    assert_eq!(ask("/health", None).await.status, 200);
}

/// Their clients read no other.
#[tokio::test]
async fn errors_have_the_form_of_their_paths_clients() {
    let house = House::saying("a");
    let answer = house.get("/v1/messages/none").await;
    assert_eq!(answer.status, 404);
    let json = answer.json();
    assert_eq!(
        (&json["type"], &json["error"]["type"]),
        (&json!("error"), &json!("not_found_error"))
    );
    assert!(json["error"]["message"].is_string() && answer.headers.contains_key("x-request-id"));
    assert!(house.get("/api/none").await.json()["error"].is_string());
    assert!(house.get("/apis").await.json()["error"]["type"].is_string());
}
