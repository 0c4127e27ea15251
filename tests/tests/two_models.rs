//! Two models at once, each by its name; one leaves while the other speaks.

#![allow(clippy::unwrap_used)] // Helpers outside of #[test] functions are tests too.

use minisgl_proto::LoadOptions;
use minisgl_tests::generate::{output_ids, request};
use minisgl_tests::{Daemon, greedy, greedy_with_rivals, model_options, paths};
use serde_json::json;

#[test]
fn one_is_unloaded_while_the_other_streams() {
    let options = || LoadOptions { kv_tokens: Some(4096), threads: 1, ..model_options() };
    let daemon = Daemon::start();
    daemon.load("first", &paths::smollm2(), options());
    daemon.load("org/second", &paths::smollm2(), options());

    let models = daemon.get("/v1/models").ok();
    let names: Vec<_> =
        models["data"].as_array().unwrap().iter().map(|m| m["id"].clone()).collect();
    assert_eq!(names, ["first", "org/second"]);
    let prompt: Vec<u32> = (500..540).collect();
    let expected = greedy_with_rivals(&daemon, "first", &prompt, 100);
    let second = greedy(&daemon, "org/second", &prompt, 100);
    expected.assert_same(&second, "the same model by another name");
    // With two models loaded, a request has to say which.
    let nameless = daemon.post("/generate", &json!({"input_ids": prompt}));
    assert_eq!(nameless.status, 400, "{}", nameless.text());

    let sampling = json!({"temperature": 0, "max_new_tokens": 100, "ignore_eos": true});
    let mut body = request("first", &prompt, &sampling);
    body["stream"] = true.into();
    let mut events = daemon.events("/generate", &body);
    events.next_event().unwrap().expect("the first token");
    let worker = daemon.status("org/second").pid.unwrap();
    daemon.unload("org/second", false);
    assert!(!is_running(worker), "the worker of an unloaded model is gone");
    let last = events.rest().unwrap().pop().expect("the stream goes on");
    let ids = output_ids(&last);
    assert_eq!(ids.len(), 100, "{last}");
    expected.assert_same(&ids, "streamed while the other model left");
    assert_eq!(last["meta_info"]["finish_reason"]["type"], "length", "{last}");

    let gone = daemon.post("/generate", &json!({"model": "org/second", "input_ids": prompt}));
    assert_eq!(
        (gone.status, gone.json()["error"]["code"].as_str()),
        (404, Some("model_not_found"))
    );
    daemon.assert_all_pages_back("first");
}

fn is_running(pid: u32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}
