//! The edge of the API: web pages as clients, probes, and what routers ask of a server.

#![allow(clippy::unwrap_used, reason = "a failed test is a panic")]

mod support;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use minisgl_http::{KeyList, Keys, Rule};
use serde_json::json;
use support::{Answer, House, send};

const KEY: &str = "sk-0123456789abcdef";

fn rule(keys: &str, pages: &[&str]) -> Keys {
    let cors_origins = pages.iter().map(|&page| page.to_owned()).collect();
    Keys::new(Rule { keys: KeyList::parse(keys).unwrap(), cors_origins, ..Rule::default() })
}

/// The answer to a request with these headers.
async fn ask(router: &axum::Router, method: Method, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::builder().method(method).uri("/v1/models");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    send(router, request.body(Body::empty()).unwrap()).await
}

fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.headers.get(name).map(|value| value.to_str().unwrap())
}

#[tokio::test]
async fn a_listed_page_may_ask_and_read_and_no_other_can() {
    let house = House::saying("a");
    let page = ("origin", "https://ui.example");
    let router = house.keyed(rule(KEY, &["https://ui.example"]));
    // A browser asks without the key what the page may do with it.
    let asks = [
        page,
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization,content-type"),
    ];
    let answer = ask(&router, Method::OPTIONS, &asks).await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    assert_eq!(header(&answer, "access-control-allow-origin"), Some("https://ui.example"));
    assert_eq!(header(&answer, "access-control-allow-methods"), Some("GET, POST, DELETE"));
    let headers = header(&answer, "access-control-allow-headers");
    assert_eq!(headers, Some("authorization,content-type"));
    let bearer = format!("Bearer {KEY}");
    for (key, status) in [(bearer.as_str(), 200), ("Bearer no", 401)] {
        let answer = ask(&router, Method::GET, &[page, ("authorization", key)]).await;
        assert_eq!(answer.status, status);
        assert_eq!(header(&answer, "access-control-allow-origin"), Some("https://ui.example"));
        assert_eq!(
            header(&answer, "access-control-expose-headers"),
            Some("x-request-id, request-id, retry-after, x-should-retry, x-max-tokens")
        );
        assert_eq!(header(&answer, "vary"), Some("origin"));
    }
    let other = ("origin", "https://other.example");
    let answer = ask(&router, Method::OPTIONS, &[other, asks[1]]).await;
    assert!(
        !answer.status.is_success() && header(&answer, "access-control-allow-origin").is_none()
    );
    let answer = ask(&router, Method::GET, &[other, ("authorization", &bearer)]).await;
    assert_eq!(
        (answer.status, header(&answer, "access-control-allow-origin")),
        (StatusCode::OK, None)
    );
    let every = house.keyed(rule(KEY, &["*"]));
    let answer = ask(&every, Method::GET, &[other, ("authorization", &bearer)]).await;
    assert_eq!(header(&answer, "access-control-allow-origin"), Some("https://other.example"));
}

#[tokio::test]
async fn without_keys_a_strangers_page_is_refused_whatever_it_calls_this_machine() {
    let router = House::saying("a").keyed(rule("", &["https://ui.example"]));
    for (headers, code) in [
        (&[("host", "evil.example")][..], "unknown_host"),
        (&[("host", "localhost:8000"), ("origin", "https://evil.example")], "foreign_origin"),
    ] {
        let answer = ask(&router, Method::GET, headers).await;
        assert_eq!(
            (answer.status, answer.json()["error"]["code"].as_str()),
            (StatusCode::FORBIDDEN, Some(code))
        );
    }
    for headers in [
        &[("host", "localhost:8000")][..],
        &[("host", "localhost:8000"), ("origin", "http://localhost:8000")],
        &[("host", "127.0.0.1"), ("origin", "https://ui.example")],
    ] {
        assert_eq!(ask(&router, Method::GET, headers).await.status, 200, "{headers:?}");
    }
}

#[tokio::test]
async fn probes_tell_the_process_from_its_models() {
    let house = House::saying("a");
    for path in ["/livez", "/readyz", "/ping", "/health", "/readyz?model=org/tiny"] {
        assert_eq!(house.get(path).await.status, 200, "{path}");
    }
    assert_eq!(house.get("/readyz?model=nobody").await.status, 404);
    *house.backend.not_ready.lock().unwrap() = Some("loading".into());
    *house.backend.health.lock().unwrap() = (false, "org/tiny is loading".into());
    assert_eq!(house.get("/livez").await.status, 200);
    for path in ["/readyz", "/ping", "/readyz?model=org/tiny", "/server_info"] {
        assert_eq!(house.get(path).await.status, 503, "{path}");
    }
}

#[tokio::test]
async fn routers_learn_name_source_and_limits() {
    let house = House::saying("a");
    for path in ["/server_info", "/get_server_info", "/server_info?model=org/tiny"] {
        let info = house.get(path).await.json();
        assert_eq!(
            (&info["served_model_name"], &info["model_path"], &info["context_length"]),
            (&json!("org/tiny"), &json!("/models/tiny"), &json!(support::MAX_LEN)),
            "{path}"
        );
    }
    for path in ["/model_info", "/get_model_info"] {
        let info = house.get(path).await.json();
        assert_eq!(
            (&info["tokenizer_path"], &info["is_generation"]),
            (&json!("/models/tiny"), &json!(true))
        );
    }
    assert_eq!(house.get("/v1/models").await.json()["data"][0]["root"], "/models/tiny");
    // Who has it is taken for vLLM.
    assert_eq!(house.get("/version").await.status, 404);
    assert_eq!(house.get("/model_info?model=x").await.status, 404);
}
