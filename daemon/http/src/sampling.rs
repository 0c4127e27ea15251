//! Sampling and stop fields of a request, of OpenAI's, vLLM's and SGLang's making, to parameters.
//!
//! Owns: names, ranges and defaults. A value that is out of range is refused, never bent.

use std::collections::BTreeMap;

use minisgl_proto::limits::{LOGIT_BIAS_MAX, STOP_TOKENS_MAX};
use minisgl_proto::{SamplingParams, StopParams};
use serde::Deserialize;
use serde_json::Value;

use crate::body::{Refusal, never};
use crate::error::ApiError;
use crate::settings::Settings;
use crate::tokenizer::GenerationDefaults;

/// One string or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
pub enum OneOrMany {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

/// The fields that all generating endpoints share. Absent and null mean the default.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SamplingFields {
    temperature: Option<f64>,
    top_p: Option<f64>,
    /// -1 and 0 keep all, as in vLLM and SGLang.
    top_k: Option<i64>,
    min_p: Option<f64>,
    repetition_penalty: Option<f64>,
    presence_penalty: Option<f64>,
    frequency_penalty: Option<f64>,
    logit_bias: Option<BTreeMap<String, f64>>,
    seed: Option<i64>,
    stop: Option<OneOrMany>,
    stop_token_ids: Option<Vec<u32>>,
    include_stop_str_in_output: Option<bool>,
    /// SGLang's name for the same.
    no_stop_trim: Option<bool>,
    skip_special_tokens: Option<bool>,
    ignore_eos: Option<bool>,
    #[serde(alias = "min_new_tokens")]
    min_tokens: Option<i64>,
    priority: Option<i32>,
    n: Option<i64>,
}

/// Fields that would constrain or search the output, were they built.
pub const REFUSED: &[Refusal] = &[
    Refusal {
        field: "response_format",
        harmless: |value| value["type"] == "text",
        instead: "only {\"type\": \"text\"} is: the output is not constrained",
    },
    refused("best_of"),
    refused("use_beam_search"),
    refused("guided_json"),
    refused("guided_regex"),
    refused("guided_choice"),
    refused("guided_grammar"),
    refused("structured_outputs"),
    refused("json_schema"),
    refused("regex"),
    refused("ebnf"),
    refused("structural_tag"),
    refused("prompt_logprobs"),
    refused("bad_words"),
    refused("lora_path"),
    refused("input_embeds"),
    refused("custom_logit_processor"),
    Refusal { field: "allowed_token_ids", harmless: never, instead: "use logit_bias" },
    Refusal { field: "stop_regex", harmless: never, instead: "use stop" },
    Refusal {
        field: "truncate_prompt_tokens",
        harmless: never,
        instead: "a prompt that is too long is refused; cut it before it is sent",
    },
];

const fn refused(field: &'static str) -> Refusal {
    Refusal { field, harmless: is_one, instead: "leave it out" }
}

/// A count of one is what happens anyway.
fn is_one(value: &Value) -> bool {
    value.as_u64() == Some(1)
}

/// What the endpoint decides before the shared fields are read.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint {
    /// Name of the field that limits the output, and its value.
    pub max_tokens: Option<(&'static str, i64)>,
    /// Generated tokens when the client says nothing; `None` means what the context leaves.
    pub max_tokens_default: Option<u32>,
    /// Log-probabilities wanted.
    pub logprobs: Option<u32>,
}

/// How one request is to be generated.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// For choice 0 (see [`crate::random::choice_seed`]).
    pub sampling: SamplingParams,
    /// `max_tokens` is 0 while it depends on the prompt: see [`Wanted::stop_for`].
    stop: StopParams,
    max_tokens: Option<(&'static str, u32)>,
    max_tokens_default: Option<u32>,
    /// Choices a prompt.
    pub n: u32,
    /// Whether the client chose the seed.
    pub seeded: bool,
    /// Stop strings.
    pub stop_strings: Vec<String>,
    /// Deliver the stop string too.
    pub include_stop: bool,
    /// Leave special tokens out of the text.
    pub skip_special: bool,
    /// Higher goes first.
    pub priority: i32,
}

impl SamplingFields {
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
        let max_tokens = match endpoint.max_tokens {
            Some((name, value)) => Some((name, whole(name, value, 1, u32::MAX.into())? as u32)),
            None => None,
        };
        let top_k = f.top_k.or(defaults.top_k).unwrap_or(0);
        let top_k = whole("top_k", top_k, -1, i32::MAX.into())?.max(0) as u32;
        let temperature =
            number("temperature", f.temperature.or(defaults.temperature), 1.0, 0.0, NO_MAX)?;
        let sampling = SamplingParams {
            temperature: if temperature < GREEDY_BELOW { 0.0 } else { temperature },
            top_k,
            top_p: above_zero(number("top_p", f.top_p.or(defaults.top_p), 1.0, 0.0, 1.0)?)?,
            min_p: number("min_p", f.min_p.or(defaults.min_p), 0.0, 0.0, 1.0)?,
            repetition_penalty: repetition(f.repetition_penalty.or(defaults.repetition_penalty))?,
            presence_penalty: number("presence_penalty", f.presence_penalty, 0.0, -2.0, 2.0)?,
            frequency_penalty: number("frequency_penalty", f.frequency_penalty, 0.0, -2.0, 2.0)?,
            logit_bias: logit_bias(f.logit_bias.unwrap_or_default(), vocab_size)?,
            // Any 64 bits will do; negative numbers are as good a seed as others.
            seed: f.seed.unwrap_or_default() as u64,
            logprobs: endpoint.logprobs,
            prompt_logprobs: None,
            prompt_logprobs_from: 0,
        };
        let stop_token_ids = f.stop_token_ids.unwrap_or_default();
        if stop_token_ids.len() > STOP_TOKENS_MAX {
            return Err(ApiError::field(
                "stop_token_ids",
                format!("stop_token_ids: at most {STOP_TOKENS_MAX} are allowed"),
            ));
        }
        if let Some(&token) = stop_token_ids.iter().find(|&&token| token >= vocab_size) {
            return Err(bad_token("stop_token_ids", token.into(), vocab_size));
        }
        let min_tokens = whole("min_tokens", f.min_tokens.unwrap_or(0), 0, u32::MAX.into())? as u32;
        if let Some((name, max)) = max_tokens
            && min_tokens > max
        {
            return Err(ApiError::field(
                "min_tokens",
                format!("min_tokens: {min_tokens} is more than {name} = {max}"),
            ));
        }
        Ok(Wanted {
            sampling,
            stop: StopParams {
                max_tokens: 0,
                min_tokens,
                stop_token_ids,
                ignore_eos: f.ignore_eos.unwrap_or(false),
            },
            max_tokens,
            max_tokens_default: endpoint.max_tokens_default,
            n: whole("n", f.n.unwrap_or(1), 1, settings.choices_max as i64)? as u32,
            seeded: f.seed.is_some(),
            stop_strings: stop_strings(f.stop, settings)?,
            include_stop: f.include_stop_str_in_output.or(f.no_stop_trim).unwrap_or(false),
            skip_special: f.skip_special_tokens.unwrap_or(true),
            priority: f.priority.unwrap_or(0),
        })
    }
}

impl Wanted {
    /// Output tokens that must come before a stop string counts.
    pub fn min_tokens(&self) -> u32 {
        self.stop.min_tokens
    }

    /// Stop parameters for a prompt of this many tokens in a context of `max_len`. A limit that the
    /// client chose must fit; a default gives way.
    ///
    /// # Errors
    /// 400 `context_length_exceeded`.
    pub fn stop_for(
        &self,
        prompt: usize,
        max_len: u32,
        param: &str,
    ) -> Result<StopParams, ApiError> {
        let room = (max_len as usize).saturating_sub(prompt);
        if room == 0 {
            return Err(ApiError::context_length(
                param,
                format!(
                    "the prompt has {prompt} tokens; the model's context has {max_len}, and at least \
                     one of them must be left to generate"
                ),
            ));
        }
        let room = room as u32;
        let max_tokens = match self.max_tokens {
            Some((name, max)) if max > room => {
                return Err(ApiError::context_length(
                    name,
                    format!(
                        "the prompt has {prompt} tokens and {name} is {max}, together more than the \
                         model's context of {max_len}; {name} can be at most {room} here"
                    ),
                ));
            }
            Some((_, max)) => max,
            None => self.max_tokens_default.unwrap_or(room).min(room),
        };
        Ok(StopParams { max_tokens, ..self.stop.clone() })
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

fn stop_strings(stop: Option<OneOrMany>, settings: &Settings) -> Result<Vec<String>, ApiError> {
    let stops = match stop {
        None => Vec::new(),
        // SGLang's and OpenAI's clients send an empty string for "none".
        Some(OneOrMany::One(one)) if one.is_empty() => Vec::new(),
        Some(OneOrMany::One(one)) => vec![one],
        Some(OneOrMany::Many(many)) => many,
    };
    if stops.len() > settings.stop_strings_max {
        return Err(ApiError::field(
            "stop",
            format!("stop: at most {} strings are allowed", settings.stop_strings_max),
        ));
    }
    for stop in &stops {
        if stop.is_empty() {
            return Err(ApiError::field("stop", "stop: a stop string cannot be empty"));
        }
        if stop.len() > settings.stop_bytes_max {
            return Err(ApiError::field(
                "stop",
                format!("stop: a stop string has at most {} bytes", settings.stop_bytes_max),
            ));
        }
    }
    Ok(stops)
}
