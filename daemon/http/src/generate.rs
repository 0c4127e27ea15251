//! `POST /generate`, in SGLang's native form.
//!
//! `text` or `input_ids`, one or a list, with `sampling_params`; the text of a stream is cumulative unless the
//! request says `stream_output`.

use std::sync::Arc;

use minisgl_proto::Sampled;

use crate::error::ApiError;
use crate::fields::Route;
use crate::front::Front;
use crate::input::Input;
use crate::intent::{Intent, Prompts};
use crate::json::{Column, Int, Nested, fields, put};
use crate::logprobs;
use crate::middleware::is_id;
use crate::part::{Delta, Ended, Usage, Whole};
use crate::room::ran_out;
use crate::sampling::{SamplingFields, top, whole};
use crate::surface::Surface;
use crate::tokenizer::TextModel;
use crate::usage::Telling;
use crate::wire::{Answer, DATA, DONE, END, Prompted, Wire};

fields! {
    /// The fields of this surface.
    pub struct GenerateFields {
        model: String,
        text: Input,
        input_ids: Input,
        sampling_params: Nested<ParamsFields>,
        stream: bool,
        /// As SGLang's server option: events hold what is new alone.
        stream_output: bool,
        return_logprob: bool,
        logprob_start_len: Int,
        top_logprobs_num: Int,
        return_text_in_logprobs: bool,
        rid: String,
        /// SGLang has it here, the other surfaces among the sampling fields.
        priority: Int,
    }
}

fields! {
    /// The fields of `sampling_params`.
    pub struct ParamsFields {
        max_new_tokens: Int,
    }
    with {
        sampling: SamplingFields,
    }
}

impl Column for ParamsFields {
    const ROUTE: Route = Route::Params;
}

/// Tokens generated when the client does not say: SGLang's number.
const MAX_TOKENS_DEFAULT: u32 = 128;

/// SGLang's generate.
pub struct Generated {
    rid: Option<String>,
    token_texts: bool,
    incremental: bool,
    /// The position from which on tokens of the prompt are told.
    from: usize,
}

/// The prompt and the field it is in.
fn input(text: Option<Input>, ids: Option<Input>) -> Result<(Input, &'static str), ApiError> {
    match (text, ids) {
        (Some(Input::Tokens(_) | Input::TokenLists(_)), None) => {
            Err(ApiError::field("text", "text: token ids go into input_ids"))
        }
        (Some(text), None) => Ok((text, "text")),
        (None, Some(Input::Text(_) | Input::Texts(_))) => {
            Err(ApiError::field("input_ids", "input_ids: text goes into text"))
        }
        (None, Some(ids)) => Ok((ids, "input_ids")),
        (Some(_), Some(_)) => {
            Err(ApiError::field("input_ids", "text and input_ids exclude each other"))
        }
        (None, None) => Err(ApiError::field("text", "text or input_ids is needed")),
    }
}

impl Surface for Generated {
    type Body = GenerateFields;
    type Wire = GenerateWire;
    const ROUTE: Route = Route::Generate;

    fn intent(f: GenerateFields, _: &Front) -> Result<(Intent, Generated), ApiError> {
        let mut params = f.sampling_params.unwrap_or_default().checked("sampling_params")?;
        let tops = top("top_logprobs_num", f.top_logprobs_num.unwrap_or(Int(0)))?;
        let logprobs = f.return_logprob.unwrap_or(false).then_some(tops);
        let start = f.logprob_start_len.map_or(-1, |Int(start)| start);
        let start = whole("logprob_start_len", start, -1, u32::MAX.into())?;
        // As in SGLang, the first of them is null: its score is that of the token behind it.
        let from = u32::try_from(start).ok().filter(|_| logprobs.is_some());
        let prompt_logprobs = logprobs.zip(from).map(|(tops, from)| (tops, from.saturating_add(1)));
        let (input, param) = input(f.text, f.input_ids)?;
        if let Some(rid) = f.rid.as_deref().filter(|rid| !is_id(rid)) {
            let shown: String = rid.chars().take(40).collect();
            return Err(ApiError::field(
                "rid",
                format!("rid: {shown:?} is none; it has 1 to 128 letters, digits and -_.:/+="),
            ));
        }
        params.sampling.set_priority(f.priority);
        let intent = Intent {
            // Which is smg's word where a client names none.
            model: f.model.filter(|name| name != "unknown"),
            prompts: Prompts::Bare { input, add_special: true },
            param,
            sampling: params.sampling,
            max_tokens: params.max_new_tokens.map(|max| ("max_new_tokens", max)),
            max_tokens_default: Some(MAX_TOKENS_DEFAULT),
            logprobs,
            prompt_logprobs,
            stream: f.stream.unwrap_or(false),
            telling: Telling::Silent,
            echo: false,
            ids: true,
        };
        let surface = Generated {
            rid: f.rid,
            token_texts: f.return_text_in_logprobs.unwrap_or(false),
            incremental: f.stream_output.unwrap_or(false),
            from: from.unwrap_or(0) as usize,
        };
        Ok((intent, surface))
    }

    fn request_id(&self) -> Option<&str> {
        self.rid.as_deref()
    }

    fn wire(self, _: &Arc<Front>, answer: Answer) -> GenerateWire {
        GenerateWire {
            id: self.rid.unwrap_or(answer.request_id),
            logprobs: answer.logprobs,
            token_texts: self.token_texts.then_some(answer.text),
            is_batch: answer.is_batch || answer.per_prompt > 1,
            incremental: self.incremental,
            from: self.from,
            per_prompt: answer.per_prompt,
            prompts: answer.prompts,
            so_far: vec![SoFar::default(); answer.choices],
        }
    }
}

/// How an answer is written.
pub struct GenerateWire {
    id: String,
    logprobs: bool,
    /// Set when log-probabilities have texts.
    token_texts: Option<Arc<TextModel>>,
    is_batch: bool,
    incremental: bool,
    from: usize,
    per_prompt: usize,
    /// By prompt, if their log-probabilities are wanted.
    prompts: Vec<Prompted>,
    so_far: Vec<SoFar>,
}

/// What a choice has said, as JSON without the outer brackets: each token is written once, and copied into every
/// event of a cumulative stream.
#[derive(Clone, Default)]
struct SoFar {
    /// With the opening quote.
    text: Vec<u8>,
    ids: Vec<u8>,
    own: Vec<u8>,
    tops: Vec<u8>,
    /// Of the prompt: both lists, once they are there.
    prompt: Vec<u8>,
    has_prompt: bool,
    /// What was there at the last event.
    told: usize,
}

/// Bytes of an event up to which a cumulative stream tells every token. A longer one is told when it has grown
/// by a part of itself, so that a stream of n tokens writes O(n log n) bytes, not O(n^2).
const EVERY_TOKEN_BYTES: usize = 4 << 10;
/// That part of itself.
const GROWTH: usize = 64;

impl SoFar {
    fn len(&self) -> usize {
        self.text.len() + self.ids.len() + self.own.len() + self.tops.len()
    }

    /// Whether a cumulative stream tells it now.
    fn is_due(&self) -> bool {
        let len = self.len();
        len <= EVERY_TOKEN_BYTES || len - self.told >= self.told / GROWTH
    }

    fn clear(&mut self) {
        for list in [&mut self.text, &mut self.ids, &mut self.own, &mut self.tops] {
            list.clear();
        }
    }
}

impl GenerateWire {
    /// Takes what is new.
    fn add(&mut self, choice: usize, text: &str, ids: &[u32], tokens: &[crate::part::Scored]) {
        let so_far = &mut self.so_far[choice];
        if so_far.text.is_empty() {
            so_far.text.push(b'"');
        } else {
            // The closing quote makes way.
            so_far.text.pop();
        }
        let at = so_far.text.len();
        put(&mut so_far.text, text);
        so_far.text.remove(at);
        for &id in ids {
            comma(&mut so_far.ids);
            put(&mut so_far.ids, &id);
        }
        if !self.logprobs || tokens.is_empty() {
            return;
        }
        let scored = || tokens.iter().map(|scored| (scored.sampled.token, Some(&scored.sampled)));
        comma(&mut so_far.own);
        logprobs::triples(&mut so_far.own, scored(), self.token_texts.as_deref());
        comma(&mut so_far.tops);
        logprobs::top_triples(&mut so_far.tops, scored(), self.token_texts.as_deref());
    }

    /// Takes the scores of the prompt.
    fn add_prompt(&mut self, choice: usize, scores: &[Sampled]) {
        let Some(Prompted { ids, .. }) = self.prompts.get(choice / self.per_prompt) else { return };
        let scored = || logprobs::of_prompt(ids, scores, self.from);
        let out = &mut self.so_far[choice].prompt;
        out.extend_from_slice(b",\"input_token_logprobs\":[");
        logprobs::triples(out, scored(), self.token_texts.as_deref());
        out.extend_from_slice(b"],\"input_top_logprobs\":[");
        logprobs::top_triples(out, scored(), self.token_texts.as_deref());
        out.push(b']');
    }

    /// One choice with everything it has so far.
    fn object(&self, out: &mut Vec<u8>, choice: usize, ended: Option<&Ended>, usage: Usage) {
        let so_far = &self.so_far[choice];
        out.extend_from_slice(b"{\"text\":");
        out.extend_from_slice(if so_far.text.is_empty() { b"\"\"" } else { &so_far.text });
        out.extend_from_slice(b",\"output_ids\":[");
        out.extend_from_slice(&so_far.ids);
        out.extend_from_slice(b"],\"meta_info\":{\"id\":");
        if self.is_batch {
            put(out, &format!("{}-{choice}", self.id));
        } else {
            put(out, &self.id);
        }
        out.extend_from_slice(b",\"finish_reason\":");
        finish_reason(out, ended);
        out.extend_from_slice(b",\"prompt_tokens\":");
        put(out, &usage.prompt);
        out.extend_from_slice(b",\"completion_tokens\":");
        put(out, &usage.completion);
        out.extend_from_slice(b",\"cached_tokens\":");
        put(out, &usage.cached);
        out.extend_from_slice(&so_far.prompt);
        if self.logprobs {
            out.extend_from_slice(b",\"output_token_logprobs\":[");
            out.extend_from_slice(&so_far.own);
            out.extend_from_slice(b"],\"output_top_logprobs\":[");
            out.extend_from_slice(&so_far.tops);
            out.push(b']');
        }
        out.extend_from_slice(b"},\"index\":");
        put(out, &choice);
        out.push(b'}');
    }
}

fn comma(list: &mut Vec<u8>) {
    if !list.is_empty() {
        list.push(b',');
    }
}

impl Wire for GenerateWire {
    fn open(&mut self, _: &mut Vec<u8>, _: Usage) {}

    fn delta(&mut self, out: &mut Vec<u8>, delta: &Delta<'_>) {
        let choice = delta.choice;
        let text = delta.part.text();
        if self.incremental {
            self.so_far[choice].clear();
        }
        self.add(choice, text, delta.ids, delta.tokens);
        if !std::mem::replace(&mut self.so_far[choice].has_prompt, true) {
            self.add_prompt(choice, delta.prompt);
        }
        if !self.incremental && delta.ended.is_none() && !self.so_far[choice].is_due() {
            return;
        }
        self.so_far[choice].told = self.so_far[choice].len();
        out.extend_from_slice(DATA);
        self.object(out, choice, delta.ended, delta.usage);
        out.extend_from_slice(END);
        if self.incremental {
            self.so_far[choice].prompt.clear();
        }
    }

    fn close(&mut self, out: &mut Vec<u8>, _: Usage) {
        out.extend_from_slice(DONE);
    }

    fn whole(mut self, out: &mut Vec<u8>, wholes: Vec<Whole>, _: Usage) {
        if self.is_batch {
            out.push(b'[');
        }
        for (choice, whole) in wholes.iter().enumerate() {
            if choice > 0 {
                out.push(b',');
            }
            self.add(choice, &whole.text, &whole.ids, &whole.tokens);
            self.add_prompt(choice, &whole.prompt);
            self.object(out, choice, whole.ended.as_ref(), whole.usage);
        }
        if self.is_batch {
            out.push(b']');
        }
    }
}

fn finish_reason(out: &mut Vec<u8>, ended: Option<&Ended>) {
    match ended {
        None => out.extend_from_slice(b"null"),
        Some(Ended::Called) => out.extend_from_slice(b"{\"type\":\"stop\"}"),
        Some(Ended::StopToken(token)) => {
            out.extend_from_slice(b"{\"type\":\"stop\",\"matched\":");
            put(out, token);
            out.push(b'}');
        }
        Some(Ended::StopString(text)) => {
            out.extend_from_slice(b"{\"type\":\"stop\",\"matched\":");
            put(out, text);
            out.push(b'}');
        }
        Some(Ended::Length { tokens, room }) => {
            out.extend_from_slice(b"{\"type\":\"length\",\"length\":");
            put(out, tokens);
            if let Some(room) = room {
                out.extend_from_slice(b",\"message\":");
                put(out, &ran_out(*room));
            }
            out.push(b'}');
        }
    }
}
