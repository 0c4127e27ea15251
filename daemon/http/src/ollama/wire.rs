//! Ollama's answers: a line of JSON for each piece, the last with `done`, why, and counts.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::error::ApiError;
use crate::json::put;
use crate::part::{Call, Delta, Part, Usage, Whole};
use crate::timestamp::rfc3339;
use crate::wire::Wire;

/// The time now.
pub fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    rfc3339(since.as_secs(), since.subsec_micros())
}

/// The answer where nothing was to be generated.
pub fn idle<const CHAT: bool>(model: &str, reason: &str) -> Value {
    let mut answer = json!({"model": model, "created_at": now()});
    if CHAT {
        answer["message"] = json!({"role": "assistant", "content": ""});
    } else {
        answer["response"] = "".into();
    }
    answer["done"] = true.into();
    answer["done_reason"] = reason.into();
    answer
}

/// How an answer is written: of `/api/chat`, or of `/api/generate`.
pub struct LineWire<const CHAT: bool> {
    /// `{"model":NAME`.
    head: Vec<u8>,
    began: Instant,
    /// When the first piece was there.
    first: Option<Instant>,
    /// The call that is open.
    call: Call,
    reason: &'static str,
}

/// What one line says.
#[derive(Default)]
struct Said<'a> {
    text: &'a str,
    thought: &'a str,
    calls: &'a [Call],
}

impl<const CHAT: bool> LineWire<CHAT> {
    /// Of a model by the name it was asked for, on a request that came at `began`.
    pub fn new(model: &str, began: Instant) -> LineWire<CHAT> {
        let mut head = b"{\"model\":".to_vec();
        put(&mut head, model);
        LineWire { head, began, first: None, call: Call::default(), reason: "stop" }
    }

    /// A line without what comes behind the message.
    fn say(&self, out: &mut Vec<u8>, said: &Said<'_>) {
        out.extend_from_slice(&self.head);
        out.extend_from_slice(b",\"created_at\":");
        put(out, &now());
        let content: &[u8] = if CHAT {
            b",\"message\":{\"role\":\"assistant\",\"content\":"
        } else {
            b",\"response\":"
        };
        out.extend_from_slice(content);
        put(out, said.text);
        if !said.thought.is_empty() {
            out.extend_from_slice(b",\"thinking\":");
            put(out, said.thought);
        }
        let mut before: &[u8] = b",\"tool_calls\":[";
        for call in said.calls.iter().filter(|call| call.whole) {
            out.extend_from_slice(before);
            out.extend_from_slice(b"{\"function\":{\"name\":");
            put(out, &call.name);
            out.extend_from_slice(b",\"arguments\":");
            // A whole object, in which a line break can only stand between values.
            out.extend(
                call.arguments.bytes().map(|b| if b == b'\n' || b == b'\r' { b' ' } else { b }),
            );
            out.extend_from_slice(b"}}");
            before = b",";
        }
        if before == b"," {
            out.push(b']');
        }
        if CHAT {
            out.push(b'}');
        }
    }

    fn line(&self, out: &mut Vec<u8>, said: &Said<'_>) {
        self.say(out, said);
        out.extend_from_slice(b",\"done\":false}\n");
    }

    /// Why it ended, and counts: a whole answer does not know when its first token came.
    fn end(&self, out: &mut Vec<u8>, usage: Usage) {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let total = self.began.elapsed();
        let prompt = self.first.map(|first| first - self.began);
        out.extend_from_slice(b",\"done\":true,\"done_reason\":");
        put(out, self.reason);
        out.extend_from_slice(b",\"total_duration\":");
        put(out, &nanos(total));
        out.extend_from_slice(b",\"load_duration\":0,\"prompt_eval_count\":");
        put(out, &usage.prompt);
        if let Some(prompt) = prompt {
            out.extend_from_slice(b",\"prompt_eval_duration\":");
            put(out, &nanos(prompt));
        }
        out.extend_from_slice(b",\"eval_count\":");
        put(out, &usage.completion);
        out.extend_from_slice(b",\"eval_duration\":");
        put(out, &nanos(total.saturating_sub(prompt.unwrap_or_default())));
        out.push(b'}');
    }
}

impl<const CHAT: bool> Wire for LineWire<CHAT> {
    const STREAM_TYPE: &'static str = "application/x-ndjson";

    /// Every line must be an answer, so it is one that says nothing.
    fn ping(&self, out: &mut Vec<u8>) {
        self.line(out, &Said::default());
    }

    fn open(&mut self, _: &mut Vec<u8>, _: Usage) {
        self.first = Some(Instant::now());
    }

    fn delta(&mut self, out: &mut Vec<u8>, delta: &Delta<'_>) {
        match delta.part {
            Part::Text("") | Part::Reasoning("") => {}
            Part::Text(text) => self.line(out, &Said { text, ..Said::default() }),
            Part::Reasoning(thought) => self.line(out, &Said { thought, ..Said::default() }),
            Part::ToolCall { start, arguments, .. } => {
                if let Some((id, name)) = start {
                    self.call = Call { id: id.into(), name: name.into(), ..Call::default() };
                }
                self.call.arguments.push_str(arguments);
            }
            // One that was cut off is no object.
            Part::CallEnd { whole, .. } => {
                let call = [Call { whole, ..std::mem::take(&mut self.call) }];
                if whole {
                    self.line(out, &Said { calls: &call, ..Said::default() });
                }
            }
        }
        if let Some(ended) = delta.ended {
            self.reason = ended.reason();
        }
    }

    fn close(&mut self, out: &mut Vec<u8>, total: Usage) {
        self.say(out, &Said::default());
        self.end(out, total);
        out.push(b'\n');
    }

    fn fail(&mut self, out: &mut Vec<u8>, error: &ApiError) {
        put(out, &json!({"error": error.message}));
        out.push(b'\n');
    }

    fn whole(mut self, out: &mut Vec<u8>, wholes: Vec<Whole>, total: Usage) {
        let whole = wholes.into_iter().next().unwrap_or_default();
        if let Some(ended) = &whole.ended {
            self.reason = ended.reason();
        }
        let said = Said { text: &whole.text, thought: &whole.reasoning, calls: &whole.calls };
        self.say(out, &said);
        self.end(out, total);
    }
}
