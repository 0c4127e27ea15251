//! What routers, benchmarks and evaluations ask of a server beside generations.

#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod support;

use axum::body::Body;
use axum::http::Request;
use minisgl_http::{KeyList, Keys, Rule, Settings};
use minisgl_proto::StepStats;
use serde_json::{Value, json};
use support::{House, chat_body, say, send};

#[tokio::test]
async fn other_kinds_of_models_are_refused_in_words_that_say_so() {
    let house = House::saying("a");
    for path in ["/v1/embeddings", "/v1/rerank", "/v2/rerank", "/rerank", "/v1/score", "/score"] {
        let answer = house.post(path, json!({"model": "org/tiny", "input": ["x"]})).await;
        let error = (501, json!("model"), json!("unsupported_model"));
        assert_eq!(answer.error(), error, "{path}");
        assert!(answer.body.contains("org/tiny\\\" generates text"), "{}", answer.body);
    }
    for (body, words) in [
        (json!({"model": "bge"}), "bge\\\" is not served"),
        (json!({"input": "x"}), "models here generate text"),
        (json!("no object"), "models here generate text"),
    ] {
        let answer = house.post("/v1/embeddings", body).await;
        assert_eq!(answer.status, 501);
        assert!(answer.body.contains(words), "{}", answer.body);
        assert!(answer.body.contains("not served yet"), "{}", answer.body);
    }
}

#[tokio::test]
async fn a_client_empties_the_cache_only_where_the_operator_lets_it() {
    let house = House::saying("a");
    let answer = house.post("/flush_cache?timeout=60.0", json!(null)).await;
    assert_eq!(answer.error(), (403, Value::Null, json!("not_allowed")));
    assert!(answer.body.contains("[http] client_flush = true"), "{}", answer.body);

    let settings = Settings { client_flush: true, ..Settings::default() };
    let house = House::with(|_| Ok(say("a")), settings, json!({}));
    for path in [
        "/flush_cache",
        "/flush_cache?timeout=60.0",
        "/flush_cache?model=org/tiny",
        "/reset_prefix_cache",
    ] {
        let answer = house.post(path, json!(null)).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["pages_freed"]), (200, &json!(7)));
    }
    // A page of anybody's can have a browser send it.
    let answer = house.get("/flush_cache").await;
    assert_eq!(answer.error(), (405, Value::Null, json!("method_not_allowed")));
    assert_eq!(
        (&answer.headers["allow"], answer.body.contains("POST")),
        (&"POST".parse().unwrap(), true)
    );
    assert_eq!(house.get("/reset_prefix_cache").await.status, 405);
    let answer = house.post("/flush_cache?model=other", json!(null)).await;
    assert_eq!(answer.error(), (404, json!("model"), json!("model_not_found")));
    *house.backend.name.lock().unwrap() = "renamed".into();
    let answer = house.post("/flush_cache", json!(null)).await;
    assert_eq!(answer.error(), (409, Value::Null, json!("not_flushed")));
}

#[tokio::test]
async fn requests_are_ended_by_id_and_all_of_a_key_by_its_name() {
    let house = House::saying("a");
    let aborts = || std::mem::take(&mut *house.backend.aborts.lock().unwrap());
    let answer = house.post("/abort_request", json!({"rid": "r1", "abort_all": false})).await;
    assert_eq!((answer.status.as_u16(), answer.json()["aborted"].clone()), (200, json!(1)));
    assert_eq!(aborts(), [(None, Some("r1".to_owned()))]);
    let refused = |answer: support::Answer| answer.status.as_u16();
    assert_eq!(refused(house.post("/abort_request", json!({"abort_all": true})).await), 403);
    for body in [json!({}), json!({"rid": ""}), json!([]), json!({"rid": 5})] {
        assert_eq!(refused(house.post("/abort_request", body).await), 400);
    }
    let long = json!({"rid": "r".repeat(1 << 17)});
    assert_eq!(refused(house.post("/abort_request", long).await), 413);
    assert_eq!(aborts(), []);

    let keyed = |keys: &str| {
        let keys = KeyList::parse(keys).unwrap();
        house.keyed(Keys::new(Rule { keys, ..Rule::default() }))
    };
    let request = |body: &str| {
        let request = Request::post("/abort_request").header("host", "localhost");
        let request = request.header("authorization", "Bearer sk-0123456789abcdef");
        request.body(Body::from(body.to_owned())).unwrap()
    };
    // Theirs would be those of all other keys without a name.
    let nameless = keyed("sk-0123456789abcdef\nsk-fedcba9876543210\n");
    for body in [r#"{"abort_all": true}"#, r#"{"rid": "r2"}"#] {
        let answer = send(&nameless, request(body)).await;
        assert_eq!(answer.error(), (403, Value::Null, json!("not_allowed")));
        assert!(answer.body.contains("keys need a name"), "{}", answer.body);
    }
    assert_eq!(aborts(), []);
    let router = keyed("ann:sk-0123456789abcdef\n");
    assert_eq!(send(&router, request(r#"{"abort_all": true}"#)).await.status, 200);
    assert_eq!(send(&router, request(r#"{"rid": "r2"}"#)).await.status, 200);
    let ann = || Some("ann".to_owned());
    assert_eq!(aborts(), [(ann(), None), (ann(), Some("r2".to_owned()))]);
}

/// By the id that it is ended by.
#[tokio::test]
async fn a_request_is_known_by_the_rid_of_generate_else_by_its_header() {
    let house = House::saying("a");
    house.post("/generate", json!({"text": "x", "rid": "mine"})).await;
    assert_eq!(house.last().request_id, "mine");
    let request = Request::post("/v1/chat/completions").header("x-request-id", "r7");
    house.send(request.body(Body::from(chat_body(json!({})).to_string())).unwrap()).await;
    assert_eq!(house.last().request_id, "r7");
}

#[tokio::test]
async fn loads_are_those_of_the_last_step() {
    let house = House::saying("a");
    let answer = house.get("/v1/loads?include=core,disagg,queues,memory").await.json();
    let load = &answer["loads"][0];
    assert_eq!((&load["num_running_reqs"], &load["token_usage"]), (&json!(0), &json!(0.0)));
    *house.model.stats.lock().unwrap() = Some(StepStats {
        running: 2,
        waiting: 3,
        pages_total: 256,
        pages_free: 100,
        pages_cached: 120,
        pages_evictable: 92,
        ..StepStats::default()
    });
    for path in ["/v1/loads", "/loads?model=org/tiny"] {
        let load = house.get(path).await.json()["loads"][0].clone();
        assert_eq!(load["model"], "org/tiny");
        assert_eq!((&load["num_running_reqs"], &load["num_waiting_reqs"]), (&json!(2), &json!(3)));
        assert_eq!((&load["token_usage"], &load["num_used_tokens"]), (&json!(0.25), &json!(1024)));
        assert_eq!(
            (&load["max_total_num_tokens"], &load["utilization"]),
            (&json!(4096), &json!(0.25))
        );
    }
    let list = house.get("/get_load").await.json();
    assert_eq!((&list[0]["num_reqs"], &list[0]["num_tokens"]), (&json!(5), &json!(1024)));
    assert_eq!(house.get("/v1/loads?model=other").await.status, 404);
    *house.backend.not_ready.lock().unwrap() = Some("it is being loaded".into());
    assert_eq!(house.get("/v1/loads").await.json()["loads"], json!([]));
}

#[tokio::test]
async fn health_generate_is_that_of_the_model_and_generates_nothing() {
    let house = House::saying("a");
    assert_eq!(house.get("/health_generate").await.status, 200);
    assert_eq!(house.model.submitted.lock().unwrap().len(), 0);
    *house.backend.not_ready.lock().unwrap() = Some("it is being loaded".into());
    assert_eq!(house.get("/health_generate").await.status, 503);
    assert_eq!(house.get("/version").await.status, 404, "routers take who has it for vLLM");
}

#[tokio::test]
async fn the_tokenizer_is_told_as_far_as_it_is_known() {
    let house = House::saying("a");
    let info = house.get("/tokenizer_info").await.json();
    assert_eq!((&info["bos_token"], &info["eos_token"]), (&json!("<s>"), &json!("<|im_end|>")));
    assert_eq!(
        (&info["pad_token"], &info["chat_template"]),
        (&Value::Null, &support::TEMPLATE.into())
    );
    // lm-eval makes ids of them.
    let body = json!({"prompt": info["eos_token"], "add_special_tokens": false});
    assert_eq!(house.post("/tokenize", body).await.json()["tokens"], json!([support::IM_END]));
    assert_eq!(house.get("/tokenizer_info?model=other").await.status, 404);
}
