//! Workers are killed while streams and plain requests run: every answer is that of an undisturbed run.

#![allow(clippy::unwrap_used)] // Helpers outside of #[test] functions are tests too.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use minisgl_proto::LoadOptions;
use minisgl_proto::admin::{ModelState, RequestStatus};
use minisgl_tests::daemon::number;
use minisgl_tests::random::Random;
use minisgl_tests::{Daemon, dummy_folder, is_exact, model_options};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

const STREAMS: u64 = 64;
const WHOLE: u64 = 16;
const KILLS: u32 = 5;
/// Tokens of a request, at most.
const TOKENS: u64 = 96;

/// Opens a thought where it is asked to.
const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n{% if enable_thinking %}<think>\n{% endif %}";

/// A request of some surface, and what of its answer has to be the same.
struct Ask {
    path: &'static str,
    body: Value,
    stream: bool,
}

/// Asks of all surfaces, greedy and seeded, with all that a worker's death could disturb.
fn ask(n: u64, stream: bool) -> Ask {
    let mut random = Random::new(7 + n);
    let tokens = TOKENS - random.below(TOKENS / 4);
    let seed = 1000 + n;
    let prompt: Vec<u64> = (0..3 + random.below(40)).map(|_| 3 + random.below(40_000)).collect();
    let schema = json!({"type": "array", "items": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "number"}},
                        "required": ["a", "b"], "additionalProperties": false}});
    // Random weights never close a text by themselves.
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {
        "s": {"type": "string", "maxLength": 40}, "n": {"type": "integer", "maximum": 99999, "minimum": 10000}},
        "required": ["s", "n"], "additionalProperties": false}}});
    let (path, mut body) = match n % 12 {
        0 => ("/v1/chat/completions", json!({"max_tokens": tokens, "temperature": 0})),
        1 => (
            "/v1/chat/completions",
            json!({"max_tokens": tokens / 2, "temperature": 0.9, "seed": seed, "n": 2, "logprobs": true,
                   "top_logprobs": 3}),
        ),
        2 => (
            "/v1/completions",
            json!({"max_tokens": tokens, "temperature": 0.8, "seed": seed, "presence_penalty": 0.7,
                   "frequency_penalty": 0.4, "top_p": 0.9}),
        ),
        3 => (
            "/v1/completions",
            // Stop strings of one letter are met sooner or later, not before `min_tokens`.
            json!({"max_tokens": tokens, "temperature": 1.0, "seed": seed, "stop": ["e", "zq"],
                   "min_tokens": tokens / 2}),
        ),
        4 => (
            "/v1/completions",
            json!({"max_tokens": tokens, "temperature": 0, "logprobs": 2, "repetition_penalty": 1.3}),
        ),
        5 => (
            "/v1/completions",
            json!({"max_tokens": tokens, "temperature": 1.0, "seed": seed, "top_k": 50, "n": 2}),
        ),
        6 => (
            "/generate",
            json!({"sampling_params": {"max_new_tokens": tokens, "temperature": 1.0,
                                       "seed": seed, "min_p": 0.01},
                   "return_logprob": true, "top_logprobs_num": 2}),
        ),
        7 => (
            "/v1/chat/completions",
            // Seldom ends before it is cut off.
            json!({"max_tokens": tokens, "temperature": 1.2, "seed": seed, "guided_json": schema, "n": 2}),
        ),
        8 => (
            "/v1/chat/completions",
            // A thought, cut short, then calls.
            json!({"max_tokens": tokens, "temperature": 1.0, "seed": seed, "tools": [tool], "tool_choice": "required",
                   "enable_thinking": true, "thinking_token_budget": tokens / 4}),
        ),
        9 => (
            "/v1/messages",
            json!({"max_tokens": tokens, "temperature": 1.0, "top_k": 40, "seed": seed, "tool_choice": {"type": "any"},
                   "tools": [{"name": "f", "input_schema": tool["function"]["parameters"]}],
                   "thinking": {"type": "enabled", "budget_tokens": tokens / 4}}),
        ),
        10 => (
            "/v1/responses",
            json!({"max_output_tokens": tokens, "temperature": 1.0, "seed": seed, "store": false, "enable_thinking": true,
                   "thinking_token_budget": tokens / 3,
                   "text": {"format": {"type": "json_schema", "name": "n", "strict": true, "schema": schema}}}),
        ),
        _ => (
            "/generate",
            json!({"sampling_params": {"max_new_tokens": tokens, "temperature": 0,
                                       "frequency_penalty": 0.5, "min_new_tokens": tokens / 2}}),
        ),
    };
    body["model"] = json!("dummy");
    match path {
        "/v1/responses" => body["input"] = json!(format!("Tell me of {n}.")),
        "/v1/chat/completions" | "/v1/messages" => {
            body["messages"] = json!([{"role": "user", "content": format!("Tell me of {n}.")}]);
        }
        "/v1/completions" => body["prompt"] = json!(prompt),
        _ => body["input_ids"] = json!(prompt),
    }
    if stream {
        body["stream"] = json!(true);
        if matches!(path, "/v1/chat/completions" | "/v1/completions") {
            body["stream_options"] = json!({"include_usage": true});
        }
    }
    Ask { path, body, stream }
}

/// What a client got in the end, without what is another's each time: ids, times, and how much was cached.
fn run(daemon: &Daemon, ask: &Ask) -> Value {
    if !ask.stream {
        return sum_up(ask.path, [daemon.post(ask.path, &ask.body).ok()]);
    }
    let mut events = daemon.events(ask.path, &ask.body);
    let mut all = Vec::new();
    while let Some(event) = events.next_event().unwrap() {
        assert!(event.get("error").is_none(), "{event}");
        all.push(event);
    }
    sum_up(ask.path, all)
}

fn sum_up(path: &str, parts: impl IntoIterator<Item = Value>) -> Value {
    if path == "/generate" {
        // Each part has all of the text so far.
        let last = parts.into_iter().last().unwrap();
        let meta = &last["meta_info"];
        let keep = ["finish_reason", "prompt_tokens", "completion_tokens", "output_token_logprobs"];
        let kept: BTreeMap<&str, &Value> = keep.iter().map(|key| (*key, &meta[*key])).collect();
        return json!({"text": last["text"], "ids": last["output_ids"], "meta": kept});
    }
    if matches!(path, "/v1/messages" | "/v1/responses") {
        return json!(parts.into_iter().map(|part| said(&part)).collect::<String>());
    }
    let mut texts: BTreeMap<u64, (String, Vec<Value>, Value)> = BTreeMap::new();
    let mut usage = Value::Null;
    for part in parts {
        for choice in part["choices"].as_array().unwrap() {
            let (text, logprobs, finish) =
                texts.entry(choice["index"].as_u64().unwrap()).or_default();
            let holders =
                [&choice["delta"]["content"], &choice["message"]["content"], &choice["text"]];
            text.extend(holders.iter().filter_map(|value| value.as_str()));
            let said =
                if choice["delta"].is_object() { &choice["delta"] } else { &choice["message"] };
            text.extend(said["reasoning"].as_str());
            for call in said["tool_calls"].as_array().into_iter().flatten() {
                let function = &call["function"];
                text.extend(
                    function["name"].as_str().into_iter().chain(function["arguments"].as_str()),
                );
            }
            match &choice["logprobs"] {
                Value::Null => {}
                shape if shape["content"].is_array() => {
                    logprobs.extend(shape["content"].as_array().unwrap().iter().cloned());
                }
                shape => {
                    for key in ["tokens", "token_logprobs", "top_logprobs"] {
                        for (at, value) in shape[key].as_array().unwrap().iter().enumerate() {
                            logprobs.push(json!([key, at, value]));
                        }
                    }
                }
            }
            if !choice["finish_reason"].is_null() {
                *finish = choice["finish_reason"].clone();
            }
        }
        if part["usage"].is_object() {
            usage = part["usage"].clone();
        }
    }
    for value in texts.values_mut() {
        // In a stream each part counts from its own begin.
        value.1.iter_mut().filter(|v| v.is_array()).for_each(|v| v[1] = Value::Null);
        value.1.sort_by_key(|v| v[0].as_str().map(str::to_owned));
    }
    let counts =
        ["prompt_tokens", "completion_tokens", "total_tokens"].map(|key| usage[key].clone());
    json!({"choices": texts, "usage": counts})
}

/// What an event, or a whole answer, of Anthropic's or OpenAI's responses says, and why it ends.
fn said(part: &Value) -> String {
    let mut all = String::new();
    let mut put = |value: &Value| match value {
        Value::String(text) => all.push_str(text),
        Value::Null => {}
        other => all.push_str(&other.to_string()),
    };
    let delta = &part["delta"];
    for text in ["text", "thinking", "partial_json", "stop_reason"] {
        put(&delta[text]);
    }
    if delta.is_string() {
        put(delta);
    }
    put(&part["response"]["incomplete_details"]);
    put(&part["response"]["usage"]["output_tokens"]);
    // Of a whole answer.
    for block in part["content"].as_array().into_iter().flatten() {
        for key in ["text", "thinking", "name", "input"] {
            put(&block[key]);
        }
    }
    for item in part["output"].as_array().into_iter().flatten() {
        put(&item["arguments"]);
        for content in item["content"].as_array().into_iter().flatten() {
            put(&content["text"]);
        }
    }
    put(&part["stop_reason"]);
    all
}

#[test]
fn every_answer_is_that_of_an_undisturbed_run() {
    let daemon = Daemon::start_configured("[workers]\nfailures_max = 50\n");
    let dir = dummy_folder("qwen3", &daemon.dir());
    std::fs::write(dir.join("chat_template.jinja"), TEMPLATE).unwrap();
    // Some of them wait in the queue.
    let options =
        LoadOptions { max_running: 48, max_len: Some(512), dummy_weights: true, ..model_options() };
    daemon.load("dummy", &dir, LoadOptions { kv_tokens: Some(24_576), ..options });
    let asks: Vec<Ask> = (0..STREAMS + WHOLE).map(|n| ask(n, n < STREAMS)).collect();
    let undisturbed = run_all(&daemon, &asks);
    assert_eq!(daemon.status("dummy").restarts, 0);

    let seed = number("MINISGL_TEST_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let disturbed = std::thread::scope(|scope| {
        let killer = scope.spawn(|| kill_at_random(&daemon, seed));
        let answers = run_all(&daemon, &asks);
        assert_eq!(killer.join().unwrap(), KILLS, "the requests were done before the last kill");
        answers
    });
    for (n, (expected, got)) in undisturbed.iter().zip(&disturbed).enumerate() {
        assert!(!is_exact() || expected == got, "request {n}:\n{expected:#}\n{got:#}");
    }
    let status = daemon.wait_for("dummy", "ready", |status| status.state == ModelState::Ready);
    assert!(status.restarts >= KILLS, "{status:?}");
    daemon.assert_all_pages_back("dummy");
    let metrics = daemon.get("/metrics").text();
    let given_up = "minisgl_worker_requests_given_up_total{model=\"dummy\"} 0";
    assert!(metrics.contains(given_up), "{metrics}");
}

fn run_all(daemon: &Daemon, asks: &[Ask]) -> Vec<Value> {
    std::thread::scope(|scope| {
        let running: Vec<_> =
            asks.iter().map(|ask| scope.spawn(move || run(daemon, ask))).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Kills workers while there are requests: while they load, while they serve. Returns how many.
fn kill_at_random(daemon: &Daemon, seed: u64) -> u32 {
    let mut random = Random::new(seed);
    let mut kills = 0;
    // Tokens of each request at the last kill. One that is there at two deaths in a row without a token between them is
    // given up, which is another test's business.
    let mut tokens: HashMap<u64, u32> = HashMap::new();
    while kills < KILLS {
        let status = daemon.status("dummy");
        if kills > 0 && status.in_flight == 0 && status.state == ModelState::Ready {
            return kills;
        }
        // Two while a worker loads, the others while tokens flow.
        let loads = status.state != ModelState::Ready;
        let flows = status.stats.is_some_and(|stats| stats.generated_tokens > random.below(400));
        let requests = daemon.requests();
        let went_on = |request: &RequestStatus| {
            tokens.get(&request.id).is_none_or(|&before| request.generated_tokens > before)
        };
        let may = match loads {
            true => kills % 3 == 1 && random.below(4) == 0,
            false => flows && requests.iter().all(went_on),
        };
        if let Some(pid) = status.pid.filter(|_| may) {
            tokens = requests.iter().map(|one| (one.id, one.generated_tokens)).collect();
            let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
            kills += 1;
            daemon.wait_for("dummy", "reaped", |status| status.pid != Some(pid));
        }
        std::thread::sleep(Duration::from_millis(random.below(60)));
    }
    kills
}
