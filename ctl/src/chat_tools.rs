//! The tools of `chat --tools FILE`: what the model is told of them, and the programs that they are.
//!
//! A file is a JSON list of tools in OpenAI's form; `command` beside `function` is the program of one, with its arguments. A
//! call's arguments reach it as JSON on standard input, and what it prints is the result.
//!
//! Owns: running them. Must never: run what the file does not name, or wait for one without an end.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::error::CtlError;

/// Bytes of a file of tools at most.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Bytes of a result at most; what is beyond is left out, and said so.
const RESULT_BYTES_MAX: usize = 64 << 10;
/// Time in which the output of a program that has ended is still read.
const GRACE: Duration = Duration::from_millis(100);
/// Time for one call.
const TIME_MAX: Duration = Duration::from_secs(60);

/// See the file's head.
#[derive(Debug, Default)]
pub struct Tools {
    /// As the model is told.
    pub told: Vec<Value>,
    commands: BTreeMap<String, Vec<String>>,
}

/// A call that a model made, in pieces.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Call {
    id: String,
    /// Name of the function.
    pub name: String,
    /// Its arguments' JSON.
    pub arguments: String,
}

impl Call {
    /// Puts the pieces of a delta to the calls that there are.
    pub fn join(calls: &mut Vec<Call>, delta: &Value) {
        for piece in delta["tool_calls"].as_array().into_iter().flatten() {
            let index = piece["index"].as_u64().unwrap_or(0) as usize;
            if index > calls.len() {
                continue; // No daemon of ours counts so.
            }
            if index == calls.len() {
                calls.push(Call::default());
            }
            let call = &mut calls[index];
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            call.id += &text(&piece["id"]);
            call.name += &text(&piece["function"]["name"]);
            call.arguments += &text(&piece["function"]["arguments"]);
        }
    }

    /// As it stands in the conversation.
    pub fn to_json(&self) -> Value {
        json!({"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}})
    }

    /// Its result's message.
    pub fn result(&self, content: &str) -> Value {
        json!({"role": "tool", "tool_call_id": self.id, "name": self.name, "content": content})
    }
}

impl Tools {
    /// Reads a file.
    ///
    /// # Errors
    /// It is none; names what is wrong.
    pub fn read(path: &Path) -> Result<Tools, CtlError> {
        let usage = |why: String| CtlError::Usage(format!("--tools {}: {why}", path.display()));
        let bytes = std::fs::metadata(path).map_err(|why| usage(why.to_string()))?.len();
        if bytes > FILE_BYTES_MAX {
            return Err(usage(format!("it has {bytes} bytes, the limit is {FILE_BYTES_MAX}")));
        }
        let text = std::fs::read_to_string(path).map_err(|why| usage(why.to_string()))?;
        let list: Value = serde_json::from_str(&text).map_err(|why| usage(why.to_string()))?;
        let Value::Array(list) = list else {
            return Err(usage("a JSON list of tools is needed".into()));
        };
        let mut tools = Tools::default();
        for (at, mut tool) in list.into_iter().enumerate() {
            let Some(name) = tool["function"]["name"].as_str().map(str::to_owned) else {
                let form = r#"{"type": "function", "function": {"name": .., "parameters": ..}, "command": ["PROGRAM", ..]}"#;
                return Err(usage(format!("tool {at} has no name; a tool is {form}")));
            };
            let command = tool.as_object_mut().and_then(|fields| fields.shift_remove("command"));
            let command: Option<Vec<String>> =
                command.and_then(|command| serde_json::from_value(command).ok());
            let Some(command) = command.filter(|words| !words.is_empty()) else {
                return Err(usage(format!(
                    "the tool {name:?} has no command; write \"command\": [\"PROGRAM\", \"ARGUMENT\", ..] beside its function"
                )));
            };
            if tools.commands.insert(name.clone(), command).is_some() {
                return Err(usage(format!("there are two tools {name:?}")));
            }
            tools.told.push(tool);
        }
        Ok(tools)
    }

    /// What a call comes to, in words for the model: also where it fails.
    pub async fn run(&self, call: &Call) -> String {
        let Some(words) = self.commands.get(&call.name) else {
            let known: Vec<&str> = self.commands.keys().map(String::as_str).collect();
            return format!(
                "Error: there is no tool {:?}; there are: {}",
                call.name,
                known.join(", ")
            );
        };
        let arguments = serde_json::from_str::<Value>(&call.arguments);
        if !arguments.is_ok_and(|arguments| arguments.is_object()) {
            return "Error: the arguments are no JSON object".to_owned();
        }
        match tokio::time::timeout(TIME_MAX, output(words, &call.arguments)).await {
            Ok(Ok(text)) => text,
            Ok(Err(why)) => format!("Error: {why}"),
            Err(_) => format!("Error: it took longer than {} s", TIME_MAX.as_secs()),
        }
    }
}

/// A program and all that it starts, which end with this.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let Some(id) = self.0.and_then(|id| i32::try_from(id).ok()) else { return };
        // Nobody is left where it has ended.
        let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(id), nix::sys::signal::SIGKILL);
    }
}

/// What a program prints that is given `input`.
async fn output(words: &[String], input: &str) -> std::io::Result<String> {
    let mut child = Command::new(&words[0])
        .args(&words[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|why| std::io::Error::other(format!("{} does not start: {why}", words[0])))?;
    let mut group = Group(child.id());
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let give = async {
        if let Some(mut stdin) = stdin {
            // One that does not read its arguments needs none.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    // What is there when the program has ended counts, though its output may be open still.
    let taken = RefCell::new((Vec::new(), 0));
    let take = async {
        let Some(mut stdout) = stdout else { return Ok(()) };
        let mut piece = [0; 8192];
        loop {
            let count = stdout.read(&mut piece).await?;
            if count == 0 {
                return Ok::<_, std::io::Error>(());
            }
            let (bytes, rest) = &mut *taken.borrow_mut();
            let kept = count.min(RESULT_BYTES_MAX - bytes.len());
            bytes.extend_from_slice(&piece[..kept]);
            *rest += count - kept;
        }
    };
    // Whatever it started and left holds its output open, and is not waited for.
    let end = async {
        let status = child.wait().await;
        tokio::time::sleep(GRACE).await;
        status
    };
    let talk = async { tokio::join!(give, take).1 };
    tokio::pin!(talk, end);
    let status = tokio::select! {
        all = &mut talk => {
            all?;
            end.await?
        }
        status = &mut end => status?,
    };
    group.0 = None;
    let (bytes, rest) = taken.take();
    let mut text = String::from_utf8_lossy(&bytes).into_owned();
    if rest > 0 {
        text += &format!("\n[{rest} more bytes are left out]");
    }
    if !status.success() {
        text = format!("Error: {status}\n{text}");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Tools, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Tools::read(file.path()).map_err(|why| why.to_string())
    }

    fn call(name: &str, arguments: &str) -> Call {
        Call { id: "1".into(), name: name.into(), arguments: arguments.into() }
    }

    #[test]
    fn files_that_are_none_say_what_is_wrong() {
        for (text, told) in [
            ("{}", "a JSON list"),
            ("[{}]", "tool 0 has no name"),
            (r#"[{"function": {"name": "f"}}]"#, "no command"),
            (r#"[{"function": {"name": "f"}, "command": []}]"#, "no command"),
            (
                r#"[{"function": {"name": "f"}, "command": ["a"]}, {"function": {"name": "f"}, "command": ["a"]}]"#,
                "two tools",
            ),
            ("no JSON", "expected"),
        ] {
            let why = read(text).unwrap_err();
            assert!(why.contains(told), "{text}: {why}");
        }
        let tools =
            read(r#"[{"type": "function", "function": {"name": "f"}, "command": ["cat"]}]"#)
                .unwrap();
        assert_eq!(tools.told, [json!({"type": "function", "function": {"name": "f"}})]);
    }

    #[tokio::test]
    async fn a_program_gets_its_arguments_and_its_failures_are_told() {
        let tools = read(
            r#"[{"function": {"name": "echo"}, "command": ["cat"]},
                {"function": {"name": "fail"}, "command": ["sh", "-c", "echo half; exit 3"]},
                {"function": {"name": "many"}, "command": ["sh", "-c", "head -c 70000 /dev/zero | tr '\\0' a"]},
                {"function": {"name": "leave"}, "command": ["sh", "-c", "sleep 30 & echo left"]},
                {"function": {"name": "none"}, "command": ["/no/such/program"]}]"#,
        )
        .unwrap();
        assert_eq!(tools.run(&call("echo", "{\"a\": 1}")).await, "{\"a\": 1}");
        let failed = tools.run(&call("fail", "{}")).await;
        assert!(failed.starts_with("Error: exit status: 3") && failed.contains("half"), "{failed}");
        let many = tools.run(&call("many", "{}")).await;
        assert!(many.ends_with("[4464 more bytes are left out]"), "{}", many.len());
        assert!(tools.run(&call("none", "{}")).await.contains("does not start"));
        let began = std::time::Instant::now();
        assert_eq!(tools.run(&call("leave", "{}")).await, "left\n");
        assert!(began.elapsed() < Duration::from_secs(20), "what it leaves is not waited for");
        let cut = tools.run(&call("echo", "{\"a\": ")).await;
        assert!(cut.contains("no JSON object"), "{cut}");
        assert!(tools.run(&call("other", "{}")).await.contains("there are: echo, fail"));
    }

    #[test]
    fn calls_are_joined_from_their_pieces() {
        let mut calls = Vec::new();
        for delta in [
            json!({"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}]}),
            json!({"tool_calls": [{"index": 0, "function": {"arguments": "{\"a\""}}]}),
            json!({"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]}),
            json!({"content": "text"}),
        ] {
            Call::join(&mut calls, &delta);
        }
        assert_eq!(
            calls,
            [Call { id: "c".into(), name: "f".into(), arguments: "{\"a\":1}".into() }]
        );
    }
}
