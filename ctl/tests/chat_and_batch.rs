//! `chat` and `batch` against a scripted daemon.

#![allow(clippy::unwrap_used)] // a test's way to fail

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{Call, Daemon, End, Reply, Run};
use serde_json::{Value, json};

fn models(names: &[&str]) -> Reply {
    let model = |name: &&str| {
        json!({
            "name": name, "source": "x", "state": "ready", "reason": null, "pid": 1, "restarts": 0,
            "state_s": 1.0, "in_flight": 0, "progress": null, "info": null, "stats": null,
            "options": {}
        })
    };
    Reply::json(200, &names.iter().map(model).collect::<Vec<_>>().into())
}

fn version() -> Reply {
    let version = json!({"version": "1", "pid": 1, "uptime_s": 1.0, "listen": "x"});
    Reply::json(200, &version)
}

fn stream(parts: &[&str], end: &str) -> Reply {
    let chunk = |part: &&str| json!({"choices": [{"index": 0, "delta": {"content": part}}]});
    let chunks: String = parts.iter().map(|part| format!("data: {}\n\n", chunk(part))).collect();
    Reply::text(format!(": hello\n\n{chunks}{end}"))
}

/// Says back how many messages it was given, and the last of them.
fn echo(call: &Call) -> Reply {
    if call.path == "/admin/v1/models" {
        return models(&["only"]);
    }
    let messages = call.body["messages"].as_array().unwrap();
    let last = messages.last().unwrap()["content"].as_str().unwrap();
    if call.body["stream"] == true {
        stream(&[&messages.len().to_string(), ": ", last], "data: [DONE]\n\n")
    } else {
        Reply::json(200, &json!({"choices": [{"message": {"content": last}}]}))
    }
}

#[test]
fn a_prompt_is_answered_from_the_command_line_and_from_a_pipe() {
    let daemon = Daemon::start(echo);
    let args =
        ["chat", "--prompt", "hi", "--system", "be brief", "--max-tokens", "5", "--seed", "3"];
    let run = daemon.run(&args);
    assert_eq!((run.code, run.out.as_str(), run.err.as_str()), (0, "2: hi\n", ""));
    let sent = &daemon.calls()[1].body;
    assert_eq!(sent["model"], "only");
    assert_eq!(sent["messages"][0], json!({"role": "system", "content": "be brief"}));
    assert_eq!((&sent["max_tokens"], &sent["seed"]), (&json!(5), &json!(3)));
    assert_eq!(sent.get("temperature"), None, "what was not chosen is the daemon's to choose");

    let run = daemon.run_with_input(&["chat", "m"], "two\nlines\n");
    assert_eq!((run.code, run.out.as_str()), (0, "1: two\nlines\n\n"));
    assert_eq!(daemon.calls()[2].body["model"], "m");

    let run = daemon.run(&["chat", "m", "-p", "hi", "-o", "json"]);
    let answer: Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!(answer["choices"][0]["message"]["content"], "hi");
    assert_eq!(daemon.run(&["chat", "m"]).code, 2, "an empty pipe is no prompt");
}

/// Calls a tool where there are some and no result yet, and thinks before it answers.
fn caller(call: &Call) -> Reply {
    let messages = call.body["messages"].as_array().unwrap();
    let last = messages.last().unwrap();
    let chunk =
        |delta: Value| format!("data: {}\n\n", json!({"choices": [{"index": 0, "delta": delta}]}));
    let thought = chunk(json!({"reasoning_content": "hm", "reasoning": "hm"}));
    let said = if last["role"] == "tool" {
        chunk(json!({"content": format!("It says {}", last["content"].as_str().unwrap())}))
    } else {
        let begin = json!({"index": 0, "id": "call_1", "type": "function", "function": {"name": "cat", "arguments": ""}});
        let rest = json!({"index": 0, "function": {"arguments": "{\"a\": 1}"}});
        let reason = if call.body["model"] == "cuts" { "length" } else { "tool_calls" };
        let end = json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]});
        chunk(json!({"tool_calls": [begin]}))
            + &chunk(json!({"tool_calls": [rest]}))
            + &format!("data: {end}\n\n")
    };
    Reply::text(format!("{thought}{said}data: [DONE]\n\n"))
}

#[test]
fn tools_are_run_and_their_results_answered() {
    let daemon = Daemon::start(caller);
    let file = daemon.folder.path().join("tools.json");
    std::fs::write(
        &file,
        r#"[{"type": "function", "function": {"name": "cat"}, "command": ["cat"]}]"#,
    )
    .unwrap();
    let run = daemon.run(&["chat", "m", "-p", "hi", "--tools", file.to_str().unwrap()]);
    assert_eq!((run.code, run.out.as_str()), (0, "It says {\"a\": 1}\n"), "{run:?}");
    assert_eq!(run.err, "[cat({\"a\": 1})]\n");
    let calls = daemon.calls();
    let told = json!([{"type": "function", "function": {"name": "cat"}}]);
    assert_eq!(calls[0].body["tools"], told, "the command is nobody else's");
    let turns = calls[1].body["messages"].as_array().unwrap();
    assert_eq!((turns.len(), &turns[1]["reasoning_content"]), (3, &json!("hm")));
    assert_eq!(
        turns[1]["tool_calls"][0]["function"],
        json!({"name": "cat", "arguments": "{\"a\": 1}"})
    );
    assert_eq!(turns[2]["tool_call_id"], "call_1");
    let run = daemon.run(&["chat", "cuts", "-p", "hi", "--tools", file.to_str().unwrap()]);
    assert!(run.out.contains("It says Error: the call was cut off"), "{run:?}");
    let run = daemon.run(&["chat", "m", "-p", "hi", "--tools", "/no/such/file"]);
    assert!(run.code == 2 && run.err.contains("/no/such/file"), "{run:?}");
}

#[test]
fn a_chat_that_cannot_be_says_so() {
    let daemon = Daemon::start(|call| match (call.path.as_str(), call.body["model"].as_str()) {
        ("/admin/v1/models", _) => models(&["a", "b"]),
        (_, Some("cut")) => stream(&["half"], ""),
        (_, Some("dies")) => {
            stream(&["half"], "data: {\"error\": {\"message\": \"the worker died\"}}\n\n")
        }
        _ => Reply::json(404, &json!({"error": {"message": "no such model"}})),
    });
    let run = |args: &[&str]| daemon.run(&[&["chat", "-p", "hi"], args].concat());
    let cases: [(&[&str], i32, &str, &str); 4] = [
        (&[], 2, "", "ready are: a, b"),
        (&["cut"], 6, "half\n", "the answer was cut off"),
        (&["dies"], 6, "half\n", "the worker died"),
        (&["nothing"], 4, "", "no such model"),
    ];
    for (args, code, out, err) in cases {
        let run = run(args);
        assert_eq!((run.code, run.out.as_str()), (code, out), "{run:?}");
        assert!(run.err.contains(err), "{run:?}");
    }
    let daemon = Daemon::start(|_| models(&[]));
    assert_eq!(daemon.run(&["chat", "-p", "hi"]).code, 4);
}

/// Drives the interactive chat through a terminal of its own.
struct Terminal {
    child: std::process::Child,
    keys: File,
    seen: std::sync::mpsc::Receiver<String>,
    text: String,
}

impl Terminal {
    fn open(daemon: &Daemon, args: &[&str]) -> Terminal {
        let pty = nix::pty::openpty(None, None).unwrap();
        let end = || Stdio::from(pty.slave.try_clone().unwrap());
        let mut command = daemon.command(args);
        command.env("TERM", "xterm").stdin(end()).stdout(end()).stderr(end());
        let child = command.spawn().unwrap();
        let keys = File::from(pty.master);
        let mut screen = keys.try_clone().unwrap();
        let (sender, seen) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = screen.read(&mut bytes) {
                let _ = sender.send(String::from_utf8_lossy(&bytes[..count]).into_owned());
            }
        });
        Terminal { child, keys, seen, text: String::new() }
    }

    fn expect(&mut self, part: &str) {
        while !self.text.contains(part) {
            let more = self.seen.recv_timeout(Duration::from_secs(120));
            let more = more.unwrap_or_else(|_| panic!("no {part:?} in {:?}", self.text));
            self.text.push_str(&more);
        }
        let end = self.text.find(part).unwrap() + part.len();
        self.text.drain(..end);
    }

    fn enter(&mut self, line: &str) {
        self.expect(">>> ");
        write!(self.keys, "{line}\r").unwrap();
    }
}

#[test]
fn a_conversation_has_turns_commands_and_a_history() {
    let daemon = Daemon::start(echo);
    let mut terminal = Terminal::open(&daemon, &["chat"]);
    terminal.expect("Talking to only");
    terminal.enter("one");
    terminal.expect("1: one");
    terminal.enter("two");
    terminal.expect("3: two");
    terminal.enter("/system be brief");
    terminal.expect("forgotten");
    terminal.enter("three");
    terminal.expect("2: three");
    terminal.enter("/nonsense");
    terminal.expect("There is no /nonsense");
    terminal.enter("/reset");
    terminal.enter("four");
    terminal.expect("2: four");
    terminal.enter("/quit");
    assert_eq!(terminal.child.wait().unwrap().code(), Some(0));
    let history = daemon.folder.path().join("minisgl/chat_history");
    let history = std::fs::read_to_string(history).unwrap();
    assert!(history.contains("two\n") && history.contains("/reset\n"), "{history:?}");
}

#[test]
fn an_interrupt_stops_the_answer_and_not_the_program() {
    let daemon = Daemon::start(|call| {
        let is_first = call.body["messages"].as_array().is_some_and(|turns| turns.len() == 1);
        match is_first {
            true => Reply { end: End::Hang, ..stream(&["endless"], "") },
            false => echo(call),
        }
    });
    let mut terminal = Terminal::open(&daemon, &["chat", "m"]);
    terminal.enter("one");
    terminal.expect("endless");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(terminal.child.id() as i32),
        nix::sys::signal::Signal::SIGINT,
    )
    .unwrap();
    terminal.expect("[stopped]");
    terminal.enter("two");
    terminal.expect("3: two");
    terminal.expect(">>> ");
    // The fake daemon sees the end of the connection on a thread of its own.
    let began = std::time::Instant::now();
    while !daemon.calls().iter().any(|call| call.method == "gone") {
        assert!(began.elapsed() < Duration::from_secs(10), "the daemon was not told");
        std::thread::sleep(Duration::from_millis(5));
    }
    write!(terminal.keys, "\x04").unwrap();
    assert_eq!(terminal.child.wait().unwrap().code(), Some(0));
}

fn requests(count: usize) -> String {
    let line = |n| {
        let body =
            json!({"model": "m", "messages": [{"role": "user", "content": format!("q{n}")}]});
        let url = "/v1/chat/completions";
        json!({"custom_id": format!("c{n}"), "method": "POST", "url": url, "body": body})
    };
    (0..count).map(|n| format!("{}\n", line(n))).collect()
}

struct Files {
    input: PathBuf,
    out: PathBuf,
}

impl Files {
    fn new(daemon: &Daemon, input: &str) -> Files {
        let folder = daemon.folder.path();
        let files = Files { input: folder.join("in.jsonl"), out: folder.join("out.jsonl") };
        std::fs::write(&files.input, input).unwrap();
        files
    }

    fn run(&self, daemon: &Daemon, more: &[&str]) -> Run {
        let (input, out) = (self.input.to_str().unwrap(), self.out.to_str().unwrap());
        daemon.run(&[&["batch", input, "-o", out, "--json"], more].concat())
    }

    fn answers(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.out).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn question(call: &Call) -> String {
    call.body["messages"][0]["content"].as_str().unwrap_or_default().to_string()
}

fn complete(call: &Call) -> Reply {
    let usage = json!({"prompt_tokens": 2, "completion_tokens": 3});
    let body = json!({"id": format!("r-{}", question(call)), "usage": usage});
    Reply { headers: "X-Request-Id: req-7\r\n".into(), ..Reply::json(200, &body) }
}

#[test]
fn a_batch_is_answered_and_resumed() {
    let daemon = Daemon::start(|call| match call.path.as_str() {
        "/admin/v1/version" => version(),
        _ if question(call) == "q3" => Reply::json(400, &json!({"error": {"message": "bad"}})),
        _ => complete(call),
    });
    let files = Files::new(&daemon, &requests(10));
    // Two were answered by a run that died in the middle of a third line.
    let before = "{\"custom_id\": \"c0\"}\n{\"custom_id\": \"c7\"}\n{\"custom_id\": \"c8\", \"resp";
    std::fs::write(&files.out, before).unwrap();
    let run = files.run(&daemon, &["--concurrency", "3"]);
    assert_eq!(run.code, 6, "{run:?}");
    assert!(run.err.contains("1 request answered with an error"), "{run:?}");
    let summary: Value = serde_json::from_str(&run.out).unwrap();
    let count = |field: &str| summary[field].as_u64().unwrap();
    assert_eq!(["total", "skipped", "succeeded", "failed", "left"].map(count), [10, 2, 7, 1, 0]);
    assert_eq!(count("completion_tokens"), 21);
    let answers = files.answers();
    let mut ids: Vec<&str> = answers.iter().map(|a| a["custom_id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..10).map(|n| format!("c{n}")).collect::<Vec<_>>());
    let of = |id: &str| answers.iter().find(|answer| answer["custom_id"] == id).unwrap();
    assert_eq!(of("c8")["response"]["status_code"], 200);
    assert_eq!(of("c8")["response"]["request_id"], "req-7");
    assert_eq!(of("c8")["response"]["body"]["id"], "r-q8");
    assert_eq!(of("c8")["error"], Value::Null);
    assert_eq!(of("c3")["response"]["body"]["error"]["message"], "bad");

    let asked = daemon.calls().len();
    assert_eq!(files.run(&daemon, &[]).code, 0);
    assert_eq!(daemon.calls().len(), asked, "all had an answer");
}

#[test]
fn later_is_heard_and_no_answer_is_left_for_the_next_run() {
    let busy = AtomicUsize::new(0);
    let daemon = Daemon::start(move |call| match question(call).as_str() {
        "q0" if busy.fetch_add(1, Ordering::SeqCst) == 0 => Reply {
            headers: "Retry-After: 1\r\n".into(),
            ..Reply::json(429, &json!({"error": {"message": "the queue is full"}}))
        },
        "q1" => Reply::json(503, &json!({"error": {"message": "being restarted"}})),
        "q2" => Reply::json(500, &json!({"error": {"message": "a bug"}})),
        _ if call.path == "/admin/v1/version" => version(),
        _ => complete(call),
    });
    let files = Files::new(&daemon, &requests(3));
    let began = std::time::Instant::now();
    let run = files.run(&daemon, &["--retries", "2"]);
    assert!(began.elapsed() >= Duration::from_secs(1), "Retry-After was not heard");
    assert_eq!(run.code, 6);
    assert!(
        run.err.contains("1 request without an answer (the first: being restarted)"),
        "{run:?}"
    );
    let mut statuses: Vec<(String, u64)> = files
        .answers()
        .iter()
        .map(|a| (a["custom_id"].to_string(), a["response"]["status_code"].as_u64().unwrap()))
        .collect();
    statuses.sort();
    assert_eq!(statuses, [("\"c0\"".to_string(), 200), ("\"c2\"".to_string(), 500)]);
    let asked = |q: &str| daemon.calls().iter().filter(|call| question(call) == q).count();
    assert_eq!((asked("q0"), asked("q1"), asked("q2")), (2, 3, 3));
}

#[test]
fn a_batch_that_cannot_be_is_refused_before_anything_is_sent() {
    let daemon = Daemon::start(complete);
    let files = Files::new(&daemon, &requests(2).replace("c1", "c0"));
    let run = files.run(&daemon, &[]);
    assert_eq!(run.code, 2);
    assert!(run.err.contains("line 2 has the custom_id \"c0\", which was there before"), "{run:?}");
    let same = files.input.to_str().unwrap();
    assert_eq!(daemon.run(&["batch", same, "-o", same]).code, 2);
    assert_eq!(daemon.run(&["batch", "/no/such", "-o", "/tmp/x"]).code, 2);
    assert!(daemon.calls().is_empty());
    assert!(!files.out.exists());
}
