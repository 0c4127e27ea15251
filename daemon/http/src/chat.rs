//! `POST /v1/chat/completions`.

use std::sync::Arc;

use minisgl_proto::Sampled;

use crate::error::ApiError;
use crate::fields::Route;
use crate::front::Front;
use crate::intent::{Intent, Prompts};
use crate::json::{Inner, Int, fields, put};
use crate::logprobs;
use crate::part::{Delta, Part, Scored, Usage, Whole};
use crate::prompt::{Dialogue, PromptFields};
use crate::sampling::{SamplingFields, top, whole};
use crate::settings::Thoughts;
use crate::surface::Surface;
use crate::tokenizer::TextModel;
use crate::usage::{self, StreamOptions, Telling};
use crate::wire::{Answer, DONE, END, Head, Prompted, Wire};

fields! {
    /// The fields of this surface.
    pub struct ChatFields {
        model: String,
        stream: bool,
        stream_options: Inner<StreamOptions>,
        max_tokens: Int,
        max_completion_tokens: Int,
        logprobs: bool,
        top_logprobs: Int,
        prompt_logprobs: Int,
    }
    with {
        prompt: PromptFields,
        talk: TalkFields,
        sampling: SamplingFields,
    }
}

fields! {
    /// The fields that say how an answer is told apart.
    pub struct TalkFields {
        parallel_tool_calls: bool,
        /// SGLang's.
        separate_reasoning: bool,
        /// vLLM's.
        include_reasoning: bool,
        thinking_token_budget: Int,
        /// A variable of many templates, which some clients write beside them.
        enable_thinking: bool,
    }
}

impl TalkFields {
    /// Whether several calls may come at once.
    pub fn parallel(&self) -> bool {
        self.parallel_tool_calls.unwrap_or(true)
    }

    /// Puts what they say into the dialogue.
    ///
    /// # Errors
    /// 400: a budget below 0.
    pub fn apply(self, dialogue: &mut Dialogue) -> Result<(), ApiError> {
        dialogue.parallel = self.parallel();
        dialogue.separate = self.separate_reasoning.unwrap_or(true);
        dialogue.shown = self.include_reasoning.unwrap_or(true);
        dialogue.budget = match self.thinking_token_budget {
            // vLLM's word for none.
            None | Some(Int(-1)) => None,
            Some(Int(tokens)) => {
                let field = "thinking_token_budget";
                Some((field, whole(field, tokens, 0, u32::MAX.into())? as u32))
            }
        };
        if let Some(thinks) = self.enable_thinking {
            dialogue.think(thinks);
        }
        Ok(())
    }
}

/// OpenAI's chat completions.
pub struct Chat;

impl Surface for Chat {
    type Body = ChatFields;
    type Wire = ChatWire;
    const ROUTE: Route = Route::Chat;

    fn intent(f: ChatFields, _: &Front) -> Result<(Intent, Chat), ApiError> {
        let max_tokens = f
            .max_completion_tokens
            .map(|max| ("max_completion_tokens", max))
            .or(f.max_tokens.map(|max| ("max_tokens", max)));
        let tops = top("top_logprobs", f.top_logprobs.unwrap_or(Int(0)))?;
        let logprobs = f.logprobs.unwrap_or(false);
        if tops > 0 && !logprobs {
            return Err(ApiError::field("top_logprobs", "top_logprobs needs logprobs to be true"));
        }
        let mut dialogue = f.prompt.dialogue()?;
        f.talk.apply(&mut dialogue)?;
        let intent = Intent {
            model: f.model,
            prompts: Prompts::Chat(Box::new(dialogue)),
            param: "messages",
            sampling: f.sampling,
            max_tokens,
            max_tokens_default: None,
            logprobs: logprobs.then_some(tops),
            prompt_logprobs: prompt_logprobs(f.prompt_logprobs, f.stream)?,
            stream: f.stream.unwrap_or(false),
            telling: Telling::of(f.stream_options),
            echo: false,
            ids: false,
        };
        Ok((intent, Chat))
    }

    fn wire(self, front: &Arc<Front>, answer: Answer) -> ChatWire {
        ChatWire::new(answer, front.settings.thoughts)
    }
}

/// vLLM's `prompt_logprobs`, which counts from the first token.
///
/// # Errors
/// 400: out of range, or in a stream, which has no place for them.
pub fn prompt_logprobs(
    given: Option<Int>,
    stream: Option<bool>,
) -> Result<Option<(u32, u32)>, ApiError> {
    let Some(given) = given else { return Ok(None) };
    if stream == Some(true) {
        let message = "prompt_logprobs are not part of streams; leave out one of both";
        return Err(ApiError::field("prompt_logprobs", message));
    }
    Ok(Some((top("prompt_logprobs", given)?, 0)))
}

/// How a chat completion is written.
pub struct ChatWire {
    chunk: Head,
    whole: Head,
    text: Arc<TextModel>,
    logprobs: bool,
    telling: Telling,
    thoughts: Thoughts,
    /// Whether a choice has called a tool, to the call's end.
    called: Vec<bool>,
    /// The prompt, if its log-probabilities are wanted.
    prompted: Option<Prompted>,
}

impl ChatWire {
    fn new(answer: Answer, thoughts: Thoughts) -> ChatWire {
        let id = format!("chatcmpl-{}", answer.id);
        ChatWire {
            chunk: Head::new(&answer, &id, "chat.completion.chunk"),
            whole: Head::new(&answer, &id, "chat.completion"),
            text: Arc::clone(&answer.text),
            logprobs: answer.logprobs,
            telling: answer.telling,
            thoughts,
            called: vec![false; answer.choices],
            prompted: answer.prompts.into_iter().next(),
        }
    }

    /// A chunk of one choice; `delta` writes its delta's fields.
    fn chunk(
        &self,
        out: &mut Vec<u8>,
        choice: usize,
        delta: impl FnOnce(&mut Vec<u8>),
        (tokens, finish): (Option<&[Scored]>, Option<&str>),
        total: Usage,
    ) {
        self.chunk.event(out);
        out.extend_from_slice(b"{\"index\":");
        put(out, &choice);
        out.extend_from_slice(b",\"delta\":{");
        delta(out);
        out.push(b'}');
        self.rest(out, tokens, finish);
        out.push(b']');
        self.telling.write(out, total);
        out.push(b'}');
        out.extend_from_slice(END);
    }

    /// What a choice ends with, streamed or not.
    fn rest(&self, out: &mut Vec<u8>, tokens: Option<&[Scored]>, finish: Option<&str>) {
        out.extend_from_slice(b",\"logprobs\":");
        match tokens {
            Some(tokens) if self.logprobs => logprobs::chat(out, tokens, &self.text),
            _ => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(b",\"finish_reason\":");
        put(out, &finish);
        out.push(b'}');
    }

    fn prompt_logprobs(&self, out: &mut Vec<u8>, scores: &[Sampled]) {
        if let Some(prompted) = &self.prompted {
            out.extend_from_slice(b",\"prompt_logprobs\":");
            logprobs::prompt(out, &prompted.ids, scores, &self.text);
        }
    }
}

/// A thought, under the names that clients look for.
fn reasoning(out: &mut Vec<u8>, text: &str, thoughts: Thoughts) {
    let names: &[&[u8]] = match thoughts {
        Thoughts::Both => &[b"\"reasoning_content\":", b",\"reasoning\":"],
        Thoughts::ReasoningContent => &[b"\"reasoning_content\":"],
        Thoughts::Reasoning => &[b"\"reasoning\":"],
    };
    for name in names {
        out.extend_from_slice(name);
        put(out, text);
    }
}

/// Why a choice ended, if it did; one that called tools says so.
fn reason(ended: &crate::part::Ended, called: bool) -> &'static str {
    match ended.reason() {
        "stop" if called => "tool_calls",
        reason => reason,
    }
}

impl Wire for ChatWire {
    fn open(&mut self, out: &mut Vec<u8>, total: Usage) {
        for choice in 0..self.called.len() {
            let role = |out: &mut Vec<u8>| {
                out.extend_from_slice(b"\"role\":\"assistant\",\"content\":\"\"");
            };
            self.chunk(out, choice, role, (None, None), total);
        }
    }

    fn delta(&mut self, out: &mut Vec<u8>, delta: &Delta<'_>) {
        let says = !delta.part.is_empty() && !matches!(delta.part, Part::CallEnd { .. });
        self.called[delta.choice] |= matches!(delta.part, Part::CallEnd { whole: true, .. });
        if says || !delta.tokens.is_empty() {
            let part = |out: &mut Vec<u8>| match delta.part {
                Part::Text(text) => {
                    out.extend_from_slice(b"\"content\":");
                    put(out, text);
                }
                Part::Reasoning(text) => reasoning(out, text, self.thoughts),
                Part::CallEnd { .. } => {}
                // Id and name come once and are never null: clients join what comes.
                Part::ToolCall { index, start, arguments } => {
                    out.extend_from_slice(b"\"tool_calls\":[{\"index\":");
                    put(out, &index);
                    if let Some((id, name)) = start {
                        out.extend_from_slice(b",\"id\":");
                        put(out, id);
                        out.extend_from_slice(b",\"type\":\"function\",\"function\":{\"name\":");
                        put(out, name);
                        out.push(b',');
                    } else {
                        out.extend_from_slice(b",\"function\":{");
                    }
                    out.extend_from_slice(b"\"arguments\":");
                    put(out, arguments);
                    out.extend_from_slice(b"}}]");
                }
            };
            self.chunk(out, delta.choice, part, (Some(delta.tokens), None), delta.total);
        }
        if let Some(ended) = delta.ended {
            let reason = reason(ended, self.called[delta.choice]);
            self.chunk(out, delta.choice, |_| {}, (None, Some(reason)), delta.total);
        }
    }

    fn close(&mut self, out: &mut Vec<u8>, total: Usage) {
        if self.telling != Telling::Silent {
            self.chunk.usage_event(out, total);
        }
        out.extend_from_slice(DONE);
    }

    fn whole(self, out: &mut Vec<u8>, wholes: Vec<Whole>, total: Usage) {
        self.whole.whole(out);
        for (choice, whole) in wholes.iter().enumerate() {
            if choice > 0 {
                out.push(b',');
            }
            out.extend_from_slice(b"{\"index\":");
            put(out, &choice);
            out.extend_from_slice(b",\"message\":{\"role\":\"assistant\",\"content\":");
            let content =
                Some(&whole.text).filter(|text| !text.is_empty() || whole.calls.is_empty());
            put(out, &content);
            out.extend_from_slice(b",\"refusal\":null");
            if !whole.reasoning.is_empty() {
                out.push(b',');
                reasoning(out, &whole.reasoning, self.thoughts);
            }
            for (at, call) in whole.calls.iter().enumerate() {
                let before: &[u8] = if at == 0 { b",\"tool_calls\":[" } else { b"," };
                out.extend_from_slice(before);
                out.extend_from_slice(b"{\"id\":");
                put(out, &call.id);
                out.extend_from_slice(b",\"type\":\"function\",\"function\":{\"name\":");
                put(out, &call.name);
                out.extend_from_slice(b",\"arguments\":");
                put(out, &call.arguments);
                out.extend_from_slice(b"}}");
            }
            if !whole.calls.is_empty() {
                out.push(b']');
            }
            out.push(b'}');
            let called = whole.calls.iter().any(|call| call.whole);
            let finish = whole.ended.as_ref().map(|ended| reason(ended, called));
            self.rest(out, Some(&whole.tokens), finish);
        }
        out.extend_from_slice(b"],\"usage\":");
        usage::write(out, total);
        let scores = wholes.first().map_or(&[][..], |whole| &whole.prompt);
        self.prompt_logprobs(out, scores);
        out.push(b'}');
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::part::Ended;
    use crate::tokenizer::TextModel;

    /// Reasoning, then text, then two calls, as a model that can all of it says them.
    const PARTS: [Part<'static>; 9] = [
        Part::Reasoning("hm \"so\""),
        Part::Text("I look."),
        Part::ToolCall { index: 0, start: Some(("call00001", "f")), arguments: "" },
        Part::ToolCall { index: 0, start: None, arguments: "{\"a\"" },
        Part::ToolCall { index: 0, start: None, arguments: ": 1}" },
        Part::CallEnd { index: 0, whole: true },
        Part::ToolCall { index: 1, start: Some(("call00002", "g")), arguments: "{}" },
        Part::CallEnd { index: 1, whole: true },
        Part::Text(""),
    ];

    async fn wire() -> ChatWire {
        let text = TextModel::without_tokenizer();
        ChatWire::new(
            Answer {
                id: "1".into(),
                request_id: "r".into(),
                created_s: 7,
                model: "m".into(),
                text,
                logprobs: false,
                telling: Telling::AtEnd,
                choices: 1,
                per_prompt: 1,
                is_batch: false,
                prompts: Vec::new(),
            },
            Thoughts::Both,
        )
    }

    fn deltas(mut take: impl FnMut(&Delta<'_>)) {
        let (ended, usage) = (Ended::StopToken(Some(2)), Usage::default());
        for (at, part) in PARTS.into_iter().enumerate() {
            let ended = Some(&ended).filter(|_| at + 1 == PARTS.len());
            take(&Delta {
                choice: 0,
                part,
                tokens: &[],
                ids: &[],
                prompt: &[],
                ended,
                usage,
                total: usage,
            });
        }
    }

    #[tokio::test]
    async fn calls_and_reasoning_are_streamed_in_the_form_that_all_clients_join() {
        let (mut wire, mut out) = (wire().await, Vec::new());
        deltas(|delta| wire.delta(&mut out, delta));
        let text = String::from_utf8(out).unwrap();
        let chunks = text.split("\n\n").filter(|line| !line.is_empty());
        let chunks: Vec<Value> = chunks
            .map(|line| serde_json::from_str(line.strip_prefix("data: ").unwrap()).unwrap())
            .collect();
        let deltas: Vec<&Value> =
            chunks.iter().map(|chunk| &chunk["choices"][0]["delta"]).collect();
        let call = |index: u32, arguments: &str| json!({"tool_calls": [{"index": index, "function": {"arguments": arguments}}]});
        let begun = |index: u32, id: &str, name: &str, arguments: &str| {
            json!({"tool_calls": [{"index": index, "id": id, "type": "function",
                                   "function": {"name": name, "arguments": arguments}}]})
        };
        assert_eq!(
            deltas,
            [
                &json!({"reasoning_content": "hm \"so\"", "reasoning": "hm \"so\""}),
                &json!({"content": "I look."}),
                &begun(0, "call00001", "f", ""),
                &call(0, "{\"a\""),
                &call(0, ": 1}"),
                &begun(1, "call00002", "g", "{}"),
                &json!({}),
            ]
        );
        assert_eq!(chunks[6]["choices"][0]["finish_reason"], "tool_calls");
        assert_eq!(chunks[6]["usage"], Value::Null);
    }

    #[tokio::test]
    async fn a_whole_answer_is_the_fold_of_the_same_parts() {
        let mut whole = Whole::default();
        deltas(|delta| whole.fold(delta));
        let mut only_calls = Whole { ended: whole.ended.clone(), ..Whole::default() };
        only_calls.calls = whole.calls[..1].to_vec();
        let write = async |whole: Whole| {
            let mut out = Vec::new();
            wire().await.whole(&mut out, vec![whole], Usage::default());
            serde_json::from_slice::<Value>(&out).unwrap()
        };
        let choice = |answer: &Value| answer["choices"][0].clone();
        let first = json!({"id": "call00001", "type": "function",
                           "function": {"name": "f", "arguments": "{\"a\": 1}"}});
        let second = json!({"id": "call00002", "type": "function",
                            "function": {"name": "g", "arguments": "{}"}});
        let answer = choice(&write(whole).await);
        assert_eq!(
            answer["message"],
            json!({"role": "assistant", "content": "I look.", "refusal": null,
                   "reasoning_content": "hm \"so\"", "reasoning": "hm \"so\"", "tool_calls": [first, second]})
        );
        assert_eq!(answer["finish_reason"], "tool_calls");
        let answer = choice(&write(only_calls).await);
        assert_eq!(answer["message"]["content"], Value::Null, "there is no text beside the calls");
        let answer = choice(&write(Whole::default()).await);
        assert_eq!(answer["message"], json!({"role": "assistant", "content": "", "refusal": null}));
    }
}
