//! `POST /v1/completions`: text, token ids, or batches of either.

use std::sync::Arc;

use minisgl_proto::Sampled;

use crate::chat::prompt_logprobs;
use crate::detokenize::Show;
use crate::error::ApiError;
use crate::fields::Route;
use crate::front::Front;
use crate::input::Input;
use crate::intent::{Intent, Prompts};
use crate::json::{Inner, Int, fields, put};
use crate::logprobs::{self, Entry};
use crate::part::{Delta, Scored, Usage, Whole};
use crate::sampling::{SamplingFields, top};
use crate::surface::Surface;
use crate::tokenizer::TextModel;
use crate::usage::{self, StreamOptions, Telling};
use crate::wire::{Answer, DONE, END, Head, Prompted, Wire};

fields! {
    /// The fields of this surface.
    pub struct CompletionFields {
        model: String,
        prompt: Input,
        stream: bool,
        stream_options: Inner<StreamOptions>,
        max_tokens: Int,
        logprobs: Int,
        prompt_logprobs: Int,
        echo: bool,
        add_special_tokens: bool,
    }
    with {
        sampling: SamplingFields,
    }
}

/// Tokens generated when the client does not say: OpenAI's number for this endpoint.
const MAX_TOKENS_DEFAULT: u32 = 16;

/// OpenAI's completions.
pub struct Completions {
    echo: bool,
    /// vLLM's `prompt_logprobs`.
    scores: bool,
}

impl Surface for Completions {
    type Body = CompletionFields;
    type Wire = CompletionWire;
    const ROUTE: Route = Route::Completions;

    fn intent(f: CompletionFields, _: &Front) -> Result<(Intent, Completions), ApiError> {
        let echo = f.echo.unwrap_or(false);
        let logprobs = f.logprobs.map(|value| top("logprobs", value)).transpose()?;
        let scores = prompt_logprobs(f.prompt_logprobs, f.stream)?;
        let Some(input) = f.prompt else {
            return Err(ApiError::field("prompt", "prompt is missing"));
        };
        // Both at once: the one that asks for more.
        let echoed = logprobs.filter(|_| echo).map(|tops| (tops, 0));
        let intent = Intent {
            model: f.model,
            prompts: Prompts::Bare { input, add_special: f.add_special_tokens.unwrap_or(true) },
            param: "prompt",
            sampling: f.sampling,
            max_tokens: f.max_tokens.map(|max| ("max_tokens", max)),
            max_tokens_default: Some(MAX_TOKENS_DEFAULT),
            logprobs,
            prompt_logprobs: echoed.max(scores),
            stream: f.stream.unwrap_or(false),
            telling: Telling::of(f.stream_options),
            echo,
            ids: false,
        };
        Ok((intent, Completions { echo, scores: scores.is_some() }))
    }

    fn wire(self, _: &Arc<Front>, answer: Answer) -> CompletionWire {
        let id = format!("cmpl-{}", answer.id);
        let head = Head::new(&answer, &id, "text_completion");
        let text = Arc::clone(&answer.text);
        let echo = |prompted: Prompted| Echo {
            chars: prompted.text.chars().count(),
            offsets: if answer.logprobs { offsets(&text, &prompted.ids) } else { Vec::new() },
            prompted,
        };
        CompletionWire {
            head,
            logprobs: answer.logprobs,
            scores: self.scores,
            telling: answer.telling,
            per_prompt: answer.per_prompt,
            echoed: vec![!self.echo; answer.choices],
            echo: self.echo,
            echoes: answer.prompts.into_iter().map(echo).collect(),
            text: answer.text,
        }
    }
}

/// Characters of a prompt's text before each of its tokens.
fn offsets(text: &TextModel, ids: &[u32]) -> Vec<usize> {
    let mut detokenizer = text.detokenizer(Show::None, true);
    let (mut chars, mut piece) = (0, String::new());
    let before = ids.iter().map(|&id| {
        let before = chars;
        piece.clear();
        text.push(&mut detokenizer, id, &mut piece);
        chars += piece.chars().count();
        before
    });
    before.collect()
}

/// A prompt that is repeated.
struct Echo {
    prompted: Prompted,
    chars: usize,
    offsets: Vec<usize>,
}

impl Echo {
    /// Its tokens, each with its score.
    fn entries<'a>(&'a self, scores: &'a [Sampled]) -> impl Iterator<Item = Entry<'a>> {
        let scored = logprobs::of_prompt(&self.prompted.ids, scores, 0);
        scored.zip(&self.offsets).map(|((token, score), &at)| Entry {
            token,
            logprob: score.and_then(|score| score.logprob),
            top: score.map_or(&[], |score| &score.top),
            at,
        })
    }
}

/// How a completion is written.
pub struct CompletionWire {
    head: Head,
    text: Arc<TextModel>,
    logprobs: bool,
    scores: bool,
    telling: Telling,
    per_prompt: usize,
    echo: bool,
    /// Whether a choice's prompt was repeated, or need not be.
    echoed: Vec<bool>,
    /// By prompt, where they are repeated in any way.
    echoes: Vec<Echo>,
}

/// What a choice says at once.
struct Piece<'a> {
    choice: usize,
    echo: Option<(&'a Echo, &'a [Sampled])>,
    text: &'a str,
    tokens: &'a [Scored],
    finish: Option<&'static str>,
}

impl CompletionWire {
    fn choice(&self, out: &mut Vec<u8>, piece: &Piece<'_>) {
        out.extend_from_slice(b"{\"index\":");
        put(out, &piece.choice);
        out.extend_from_slice(b",\"text\":");
        match piece.echo {
            Some((echo, _)) if !piece.text.is_empty() => {
                put(out, &format!("{}{}", echo.prompted.text, piece.text));
            }
            Some((echo, _)) => put(out, &echo.prompted.text),
            None => put(out, piece.text),
        }
        out.extend_from_slice(b",\"logprobs\":");
        if self.logprobs {
            let echoed = self.echoes.get(piece.choice / self.per_prompt).filter(|_| self.echo);
            let base = echoed.map_or(0, |echo| echo.chars);
            let prompt = piece.echo.into_iter().flat_map(|(echo, scores)| echo.entries(scores));
            let own = piece.tokens.iter().map(|scored| Entry::of(scored, base));
            let entries: Vec<Entry<'_>> = prompt.chain(own).collect();
            logprobs::completion(out, &entries, &self.text);
        } else {
            out.extend_from_slice(b"null");
        }
        out.extend_from_slice(b",\"finish_reason\":");
        put(out, &piece.finish);
    }

    fn chunk(&self, out: &mut Vec<u8>, piece: &Piece<'_>, total: Usage) {
        self.head.event(out);
        self.choice(out, piece);
        out.extend_from_slice(b"}]");
        self.telling.write(out, total);
        out.push(b'}');
        out.extend_from_slice(END);
    }
}

impl Wire for CompletionWire {
    fn open(&mut self, _: &mut Vec<u8>, _: Usage) {}

    fn delta(&mut self, out: &mut Vec<u8>, delta: &Delta<'_>) {
        let choice = delta.choice;
        if !std::mem::replace(&mut self.echoed[choice], true) {
            let echo = self.echoes.get(choice / self.per_prompt).map(|echo| (echo, delta.prompt));
            let piece = Piece { choice, echo, text: "", tokens: &[], finish: None };
            self.chunk(out, &piece, delta.total);
        }
        let piece = Piece {
            choice,
            echo: None,
            text: delta.part.text(),
            tokens: delta.tokens,
            finish: delta.ended.map(|ended| ended.reason()),
        };
        self.chunk(out, &piece, delta.total);
    }

    fn close(&mut self, out: &mut Vec<u8>, total: Usage) {
        if self.telling != Telling::Silent {
            self.head.usage_event(out, total);
        }
        out.extend_from_slice(DONE);
    }

    fn whole(self, out: &mut Vec<u8>, wholes: Vec<Whole>, total: Usage) {
        self.head.whole(out);
        for (choice, whole) in wholes.iter().enumerate() {
            if choice > 0 {
                out.push(b',');
            }
            let repeated = self.echoes.get(choice / self.per_prompt);
            let piece = Piece {
                choice,
                echo: repeated.filter(|_| self.echo).map(|echo| (echo, &whole.prompt[..])),
                text: &whole.text,
                tokens: &whole.tokens,
                finish: whole.ended.as_ref().map(|ended| ended.reason()),
            };
            self.choice(out, &piece);
            if let Some(echo) = repeated.filter(|_| self.scores) {
                out.extend_from_slice(b",\"prompt_logprobs\":");
                logprobs::prompt(out, &echo.prompted.ids, &whole.prompt, &self.text);
            }
            out.push(b'}');
        }
        out.extend_from_slice(b"],\"usage\":");
        usage::write(out, total);
        out.push(b'}');
    }
}
