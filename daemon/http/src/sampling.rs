//! Sampling and stop fields of a request, of OpenAI's, vLLM's and SGLang's making, to parameters.
//!
//! Owns: names, ranges and defaults. A value that is out of range is refused, never bent.

mod few;
mod forms;
mod options;

use std::collections::BTreeMap;

use minisgl_proto::limits::{
    ALLOWED_TOKENS_MAX, BAD_WORD_TOKENS_MAX, BAD_WORDS_MAX, LOGIT_BIAS_MAX, STOP_TOKENS_MAX,
    TOP_LOGPROBS_MAX,
};
use minisgl_proto::{SamplingParams, StopParams};
use serde_json::{Map, Value};

use crate::error::{ApiError, Tokens};
use crate::format::FormatFields;
use crate::json::{Int, List, SHORT_LIST_MAX, fields};
use crate::room::Room;
use crate::settings::Settings;
use crate::tokenizer::GenerationDefaults;
pub use few::FewFields;
pub use forms::{Biases, OneOrMany};
pub use options::OptionsFields;

/// Elements of `allowed_token_ids` that are read before its own limit is looked at.
const ALLOWED_LIST_MAX: usize = 2 * ALLOWED_TOKENS_MAX;

fields! {
    /// The fields that all generating endpoints share. Absent and null mean the default.
    pub struct SamplingFields {
        temperature: f64,
        top_p: f64,
        /// -1 and 0 keep all, as in vLLM and SGLang.
        top_k: Int,
        min_p: f64,
        repetition_penalty: f64,
        presence_penalty: f64,
        frequency_penalty: f64,
        logit_bias: Biases,
        allowed_token_ids: List<Int, ALLOWED_LIST_MAX>,
        bad_words: List<String, SHORT_LIST_MAX>,
        seed: Int,
        /// SGLang's name for the same.
        sampling_seed: Int,
        stop: OneOrMany,
        stop_token_ids: List<Int, SHORT_LIST_MAX>,
        include_stop_str_in_output: bool,
        /// SGLang's name for the same.
        no_stop_trim: bool,
        skip_special_tokens: bool,
        ignore_eos: bool,
        min_tokens: Int,
        /// SGLang's name for the same.
        min_new_tokens: Int,
        priority: Int,
        n: Int,
    }
    with {
        format: FormatFields,
    }
}

/// The value of a field that has two names.
///
/// # Errors
/// 400: both are there, and differ.
pub fn same<T: PartialEq>(
    (name, value): (&'static str, Option<T>),
    (other_name, other): (&'static str, Option<T>),
) -> Result<Option<T>, ApiError> {
    match (value, other) {
        (Some(value), Some(other)) if value != other => Err(ApiError::field(
            other_name,
            format!("{other_name} and {name} are one field and differ; send one of them"),
        )),
        (value, other) => Ok(value.or(other)),
    }
}

/// A number of log-probabilities.
///
/// # Errors
/// 400: it is out of range.
pub fn top(name: &str, Int(value): Int) -> Result<u32, ApiError> {
    Ok(whole(name, value, 0, TOP_LOGPROBS_MAX.into())? as u32)
}

/// What the endpoint decides before the shared fields are read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Endpoint {
    /// Name of the field that limits the output, and its value. -1 is what the context leaves.
    pub max_tokens: Option<(&'static str, Int)>,
    /// Generated tokens when the client says nothing; `None` means what the context leaves.
    pub max_tokens_default: Option<u32>,
    /// Log-probabilities wanted.
    pub logprobs: Option<u32>,
    /// Log-probabilities of the prompt wanted, and the position from which on.
    pub prompt_logprobs: Option<(u32, u32)>,
}

/// How one request is to be generated.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// For choice 0 (see [`crate::random::choice_seed`]).
    pub sampling: SamplingParams,
    /// `max_tokens` is 0 while it depends on the prompt: see [`Wanted::stop_for`].
    stop: StopParams,
    max_tokens: Limit,
    /// Whether a limit that does not fit gives way.
    clamp: bool,
    /// Choices a prompt.
    pub n: u32,
    /// Whether the client chose the seed.
    pub seeded: bool,
    /// Texts that the output never has: [`Wanted::avoid`] takes their tokens.
    pub bad_words: Vec<String>,
    /// Stop strings.
    pub stop_strings: Vec<String>,
    /// Deliver the stop string too.
    pub include_stop: bool,
    /// Leave special tokens out of the text.
    pub skip_special: bool,
    /// Higher goes first.
    pub priority: i32,
}

/// Tokens that may be generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    /// As many as the client said, in this field.
    Chosen(&'static str, u32),
    /// As many as the endpoint allows where the client said nothing.
    Default(u32),
    /// As many as the context leaves.
    Room,
}

impl SamplingFields {
    /// A priority that is told elsewhere wins.
    pub fn set_priority(&mut self, priority: Option<Int>) {
        self.priority = priority.or(self.priority);
    }

    /// The form that a field of the surface's own asks for.
    pub fn set_format(&mut self, field: &'static str, format: Map<String, Value>) {
        self.format.set(field, format);
    }

    /// Refuses several choices, for answers that have one.
    ///
    /// # Errors
    /// 400: `n` is more than 1.
    pub fn single(&self) -> Result<(), ApiError> {
        match self.n {
            Some(Int(n)) if n > 1 => {
                Err(ApiError::field("n", format!("n: {n} is more than 1; send as many requests")))
            }
            _ => Ok(()),
        }
    }

    /// Temperature and `top_p`, where the request says them.
    pub fn told(&self) -> (Option<f64>, Option<f64>) {
        (self.temperature, self.top_p)
    }

    /// Checks every field against its range.
    ///
    /// # Errors
    /// 400 naming the field.
    pub fn validate(
        self,
        endpoint: Endpoint,
        defaults: &GenerationDefaults,
        vocab_size: u32,
        settings: &Settings,
    ) -> Result<Wanted, ApiError> {
        let f = self;
        let scores_prompt = endpoint.prompt_logprobs.is_some();
        let max_tokens = match endpoint.max_tokens {
            // llama.cpp's and Ollama's clients: as many as there is room for.
            Some((_, Int(-1))) => Limit::Room,
            Some((name, Int(0))) if !scores_prompt => {
                return Err(ApiError::field(
                    name,
                    format!(
                        "{name}: 0 generates nothing, which needs log-probabilities of the prompt to be asked for; \
                         it must be at least 1"
                    ),
                ));
            }
            Some((name, Int(value))) => {
                Limit::Chosen(name, whole(name, value, 0, u32::MAX.into())? as u32)
            }
            None => endpoint.max_tokens_default.map_or(Limit::Room, Limit::Default),
        };
        let top_k = f.top_k.map(|Int(value)| value).or(defaults.top_k).unwrap_or(0);
        let top_k = whole("top_k", top_k, -1, i32::MAX.into())?.max(0) as u32;
        let temperature =
            number("temperature", f.temperature.or(defaults.temperature), 1.0, 0.0, NO_MAX)?;
        let seed = same(("seed", f.seed), ("sampling_seed", f.sampling_seed))?;
        let (prompt_logprobs, prompt_logprobs_from) = endpoint.prompt_logprobs.unzip();
        let sampling = SamplingParams {
            temperature: if temperature < GREEDY_BELOW { 0.0 } else { temperature },
            top_k,
            top_p: above_zero(number("top_p", f.top_p.or(defaults.top_p), 1.0, 0.0, 1.0)?)?,
            min_p: number("min_p", f.min_p.or(defaults.min_p), 0.0, 0.0, 1.0)?,
            repetition_penalty: repetition(f.repetition_penalty.or(defaults.repetition_penalty))?,
            presence_penalty: number("presence_penalty", f.presence_penalty, 0.0, -2.0, 2.0)?,
            frequency_penalty: number("frequency_penalty", f.frequency_penalty, 0.0, -2.0, 2.0)?,
            logit_bias: logit_bias(f.logit_bias.unwrap_or_default().0, vocab_size)?,
            // Any 64 bits will do; negative numbers are as good a seed as others.
            seed: seed.map_or(0, |Int(seed)| seed as u64),
            logprobs: endpoint.logprobs,
            prompt_logprobs,
            prompt_logprobs_from: prompt_logprobs_from.unwrap_or(0),
            allowed_token_ids: token_ids(
                ("allowed_token_ids", f.allowed_token_ids),
                ALLOWED_TOKENS_MAX,
                vocab_size,
            )?,
            bad_words: Vec::new(),
            guided: f.format.guided()?,
        };
        let stop_token_ids =
            token_ids(("stop_token_ids", f.stop_token_ids), STOP_TOKENS_MAX, vocab_size)?;
        let min_tokens = same(("min_tokens", f.min_tokens), ("min_new_tokens", f.min_new_tokens))?;
        let min_tokens = min_tokens.map_or(0, |Int(value)| value);
        let min_tokens = whole("min_tokens", min_tokens, 0, u32::MAX.into())? as u32;
        if let Limit::Chosen(name, max) = max_tokens
            && min_tokens > max
        {
            return Err(ApiError::field(
                "min_tokens",
                format!("min_tokens: {min_tokens} is more than {name} = {max}"),
            ));
        }
        let priority = f.priority.map_or(0, |Int(value)| value);
        let priority = whole("priority", priority, i32::MIN.into(), i32::MAX.into())? as i32;
        let include_stop = same(
            ("include_stop_str_in_output", f.include_stop_str_in_output),
            ("no_stop_trim", f.no_stop_trim),
        )?;
        Ok(Wanted {
            sampling,
            stop: StopParams {
                max_tokens: 0,
                min_tokens,
                stop_token_ids,
                ignore_eos: f.ignore_eos.unwrap_or(false),
            },
            max_tokens,
            clamp: settings.clamp_max_tokens,
            n: whole("n", f.n.map_or(1, |Int(n)| n), 1, settings.choices_max as i64)? as u32,
            seeded: seed.is_some(),
            bad_words: bad_words(f.bad_words)?,
            stop_strings: stop_strings("stop", f.stop, settings)?,
            include_stop: include_stop.unwrap_or(false),
            skip_special: f.skip_special_tokens.unwrap_or(true),
            priority: if settings.client_priority { priority } else { 0 },
        })
    }
}

impl Wanted {
    /// What a tokenizer is to make of the bad words: each at the beginning of a text, and after a space.
    pub fn bad_texts(&self) -> Vec<String> {
        let both = |word: &String| [word.clone(), format!(" {word}")];
        self.bad_words.iter().flat_map(both).collect()
    }

    /// Takes the tokens of [`Wanted::bad_texts`].
    ///
    /// # Errors
    /// 400: a word has no tokens, or too many.
    pub fn avoid(&mut self, mut tokens: Vec<Vec<u32>>) -> Result<(), ApiError> {
        for (word, forms) in self.bad_words.iter().zip(tokens.chunks(2)) {
            let longest = forms.iter().map(Vec::len).max().unwrap_or(0);
            if longest > BAD_WORD_TOKENS_MAX || forms.iter().any(Vec::is_empty) {
                return Err(ApiError::field(
                    "bad_words",
                    format!(
                        "bad_words: {word:?} has {longest} tokens with a space in front; it must have 1 to \
                         {BAD_WORD_TOKENS_MAX}"
                    ),
                ));
            }
        }
        tokens.sort_unstable();
        tokens.dedup();
        self.sampling.bad_words = tokens;
        Ok(())
    }

    /// Ends a generation with this token, too, unless the client wants no such end.
    pub fn end_with(&mut self, token: u32) {
        if !self.stop.ignore_eos && !self.stop.stop_token_ids.contains(&token) {
            self.stop.stop_token_ids.push(token);
        }
    }

    /// Output tokens that must come before a stop string counts.
    pub fn min_tokens(&self) -> u32 {
        self.stop.min_tokens
    }

    /// Stop parameters for a prompt of this many tokens where there is so much room. A default gives way to what
    /// there is room for, and so does a limit that the client chose, unless the operator wants it refused.
    ///
    /// # Errors
    /// 400 `context_length_exceeded`.
    pub fn stop_for(&self, prompt: usize, room: Room, param: &str) -> Result<StopParams, ApiError> {
        let left = (room.tokens as usize).saturating_sub(prompt) as u32;
        let max_tokens = match self.max_tokens {
            // Nothing is generated: a prompt that fills the context can be scored.
            Limit::Chosen(_, 0) if prompt <= room.tokens as usize => 0,
            _ if left == 0 => {
                return Err(ApiError::prompt_too_long(param, Tokens::Exactly(prompt), room));
            }
            Limit::Chosen(name, max) if max > left && !self.clamp => {
                return Err(ApiError::no_room(name, max, prompt, room));
            }
            Limit::Chosen(_, max) | Limit::Default(max) => max.min(left),
            Limit::Room => left,
        };
        Ok(StopParams { max_tokens, ..self.stop.clone() })
    }

    /// The largest `max_tokens` that prompts of at most so many tokens leave room for, if it is less than what
    /// the client asked for.
    pub fn clamped(&self, longest: usize, max_len: u32) -> Option<u32> {
        let room = (max_len as usize).saturating_sub(longest) as u32;
        match self.max_tokens {
            Limit::Chosen(_, max) if max > room => Some(room),
            _ => None,
        }
    }
}

/// An error for a token id outside of the vocabulary.
pub fn bad_token(param: &str, token: i64, vocab_size: u32) -> ApiError {
    ApiError::field(
        param,
        format!("{param}: token id {token} is outside the vocabulary, which has {vocab_size}"),
    )
}

fn out_of_range(name: &str, value: impl std::fmt::Display, range: &str) -> ApiError {
    ApiError::field(name, format!("{name}: {value} is out of range; it must be {range}"))
}

/// A whole number in a range.
///
/// # Errors
/// 400 naming the field.
pub fn whole(name: &str, value: i64, min: i64, max: i64) -> Result<i64, ApiError> {
    if (min..=max).contains(&value) {
        Ok(value)
    } else if value < min {
        Err(out_of_range(name, value, &format!("at least {min}")))
    } else {
        Err(out_of_range(name, value, &format!("at most {max}")))
    }
}

/// Temperatures below this choose the most likely token anyway, but may overflow the division.
const GREEDY_BELOW: f32 = 1e-5;

/// For numbers that only have to be finite in 32 bits.
const NO_MAX: f64 = f32::MAX as f64;

fn number(
    name: &str,
    value: Option<f64>,
    default: f32,
    min: f64,
    max: f64,
) -> Result<f32, ApiError> {
    let Some(value) = value else { return Ok(default) };
    if (min..=max).contains(&value) {
        Ok(value as f32)
    } else if max == NO_MAX {
        Err(out_of_range(name, value, &format!("at least {min}")))
    } else {
        Err(out_of_range(name, value, &format!("between {min} and {max}")))
    }
}

fn above_zero(top_p: f32) -> Result<f32, ApiError> {
    if top_p > 0.0 { Ok(top_p) } else { Err(out_of_range("top_p", top_p, "above 0, up to 1")) }
}

fn repetition(value: Option<f64>) -> Result<f32, ApiError> {
    let value = value.unwrap_or(1.0);
    if value as f32 > 0.0 && value <= 1e6 {
        Ok(value as f32)
    } else {
        Err(out_of_range("repetition_penalty", value, "above 0"))
    }
}

fn logit_bias(given: BTreeMap<String, f64>, vocab_size: u32) -> Result<Vec<(u32, f32)>, ApiError> {
    if given.len() > LOGIT_BIAS_MAX {
        return Err(ApiError::field(
            "logit_bias",
            format!("logit_bias: at most {LOGIT_BIAS_MAX} tokens can be biased"),
        ));
    }
    let mut biases = Vec::with_capacity(given.len());
    for (key, bias) in given {
        let param = format!("logit_bias.{key}");
        let Ok(token) = key.parse::<i64>() else {
            return Err(ApiError::field(param, format!("logit_bias: {key:?} is not a token id")));
        };
        if !(0..i64::from(vocab_size)).contains(&token) {
            return Err(bad_token(&param, token, vocab_size));
        }
        biases.push((token as u32, number(&param, Some(bias), 0.0, -100.0, 100.0)?));
    }
    Ok(biases)
}

/// Token ids of the vocabulary, so many at most.
fn token_ids<const MAX: usize>(
    (name, given): (&str, Option<List<Int, MAX>>),
    limit: usize,
    vocab_size: u32,
) -> Result<Vec<u32>, ApiError> {
    let given = given.map(|List(given)| given).unwrap_or_default();
    if given.len() > limit {
        return Err(ApiError::field(name, format!("{name}: at most {limit} are allowed")));
    }
    let ids = given.into_iter().map(|Int(token)| {
        let id = u32::try_from(token).ok().filter(|&id| id < vocab_size);
        id.ok_or_else(|| bad_token(name, token, vocab_size))
    });
    ids.collect()
}

/// Bytes of a bad word.
const BAD_WORD_BYTES_MAX: usize = 256;

fn bad_words(given: Option<List<String, SHORT_LIST_MAX>>) -> Result<Vec<String>, ApiError> {
    let words = given.map(|List(words)| words).unwrap_or_default();
    // Each has two forms.
    let limit = BAD_WORDS_MAX / 2;
    if words.len() > limit {
        let why = format!("bad_words: at most {limit} words are allowed");
        return Err(ApiError::field("bad_words", why));
    }
    // Spaces around a word make no difference: one in front is tried anyway, and one behind is the next word's.
    let words = words.into_iter().map(|word| word.trim_matches(' ').to_owned());
    let checked = words.map(|word| match word.len() {
        1..=BAD_WORD_BYTES_MAX => Ok(word),
        _ => Err(ApiError::field(
            "bad_words",
            format!(
                "bad_words: a word has 1 to {BAD_WORD_BYTES_MAX} bytes, spaces around it aside"
            ),
        )),
    });
    checked.collect()
}

/// The stop strings of the field `name`.
fn stop_strings(
    name: &str,
    stop: Option<OneOrMany>,
    settings: &Settings,
) -> Result<Vec<String>, ApiError> {
    let stops = match stop {
        None => Vec::new(),
        // SGLang's and OpenAI's clients send an empty string for "none".
        Some(OneOrMany::One(one)) if one.is_empty() => Vec::new(),
        Some(OneOrMany::One(one)) => vec![one],
        Some(OneOrMany::Many(many)) => many,
    };
    if stops.len() > settings.stop_strings_max {
        return Err(ApiError::field(
            name,
            format!("{name}: at most {} strings are allowed", settings.stop_strings_max),
        ));
    }
    for stop in &stops {
        if stop.is_empty() {
            return Err(ApiError::field(name, format!("{name}: a stop string cannot be empty")));
        }
        if stop.len() > settings.stop_bytes_max {
            return Err(ApiError::field(
                name,
                format!("{name}: a stop string has at most {} bytes", settings.stop_bytes_max),
            ));
        }
    }
    Ok(stops)
}
