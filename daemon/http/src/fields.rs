//! Every field that OpenAI, Anthropic, vLLM and SGLang know, and what becomes of it here.
//!
//! Owns: the verdicts; docs/features.md repeats this table, and a test compares them. A field that would change
//! the output and is not built is refused; one that changes nothing is ignored; a name that is not here is
//! ignored, too, and logged.

use serde_json::{Value, json};

/// Where a field stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/v1/chat/completions`.
    Chat = 1,
    /// `/v1/completions`.
    Completions = 2,
    /// `/generate`.
    Generate = 4,
    /// `sampling_params` of `/generate`.
    Params = 8,
    /// `/tokenize`.
    Tokenize = 16,
    /// `/detokenize`.
    Detokenize = 32,
    /// `/v1/messages`, and `/v1/messages/count_tokens`.
    Messages = 128,
    /// `/v1/responses`.
    Responses = 64,
    /// Ollama's `/api/chat`.
    ApiChat = 256,
    /// Ollama's `/api/generate`.
    ApiGenerate = 512,
    /// `options` of these two.
    ApiOptions = 1024,
}

/// What becomes of a field.
#[derive(Clone, Copy, Debug)]
pub enum Verdict {
    /// It does what it says; where its description is.
    Built(&'static str),
    /// Read over, because nothing depends on it.
    Harmless(&'static str),
    /// 400, unless its value asks for nothing: null, false, empty, or what `unless` says.
    Refused {
        /// Whether this value asks for nothing.
        unless: fn(&Value) -> bool,
        /// The remedy, for the error message.
        why: &'static str,
    },
}

/// A field.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// Where it stands: a sum of [`Route`]s.
    routes: u16,
    /// What becomes of it.
    pub verdict: Verdict,
}

/// The field of this name on this route.
pub fn find(name: &str, route: Route) -> Option<&'static Field> {
    FIELDS.iter().find(|field| field.name == name && field.is_on(route))
}

impl Field {
    fn is_on(&self, route: Route) -> bool {
        self.routes & route as u16 != 0
    }
}

const C: u16 = Route::Chat as u16;
const L: u16 = Route::Completions as u16;
const G: u16 = Route::Generate as u16;
const P: u16 = Route::Params as u16;
const T: u16 = Route::Tokenize as u16;
const D: u16 = Route::Detokenize as u16;
const M: u16 = Route::Messages as u16;
const R: u16 = Route::Responses as u16;
const AC: u16 = Route::ApiChat as u16;
const AG: u16 = Route::ApiGenerate as u16;
const AO: u16 = Route::ApiOptions as u16;
/// What Ollama's two generating routes share.
const A: u16 = AC | AG;
/// The routes of sampling fields.
const S: u16 = C | L | P | R;
/// All that generate, and their parts.
const ALL: u16 = C | L | G | P | R;

const fn built(name: &'static str, routes: u16, where_: &'static str) -> Field {
    Field { name, routes, verdict: Verdict::Built(where_) }
}

const fn harmless(name: &'static str, routes: u16, why: &'static str) -> Field {
    Field { name, routes, verdict: Verdict::Harmless(why) }
}

const fn refused(name: &'static str, routes: u16, why: &'static str) -> Field {
    refused_unless(name, routes, |_| false, why)
}

const fn refused_unless(
    name: &'static str,
    routes: u16,
    unless: fn(&Value) -> bool,
    why: &'static str,
) -> Field {
    Field { name, routes, verdict: Verdict::Refused { unless, why } }
}

/// For counts of which one is what happens anyway.
fn is_one(value: &Value) -> bool {
    value.as_f64() == Some(1.0)
}

/// For numbers that are off at 0.
fn is_zero(value: &Value) -> bool {
    value.as_f64() == Some(0.0)
}

fn is_auto_or_none(value: &Value) -> bool {
    value == "auto" || value == "none"
}

fn is_text_format(value: &Value) -> bool {
    value["type"] == "text"
}

fn is_text_only(value: &Value) -> bool {
    *value == json!(["text"])
}

const SAMPLING: &str = "Sampling";
const CHAT: &str = "chat completions";
const MESSAGES: &str = "messages";
const RESPONSES: &str = "responses";
const COMPLETIONS: &str = "completions";
const GENERATE: &str = "generate";
const TOKENIZE: &str = "tokenize";
const FORMAT: &str = "Structured output";
const OLLAMA: &str = "Ollama's API";
const LOADED: &str = "it is the operator's, when the model is loaded";
const INSIDE: &str = "it goes into sampling_params";
const ONE_SERVER: &str = "prefill and decoding are not divided among servers; leave it out";
const BEAM: &str = "counts in a beam search alone";
const TEXT_ONLY: &str = "models here take and write text only";
const LLAMA_CPP: &str = "it is a sampler of llama.cpp's; use temperature, top_k, top_p and min_p";
const NOT_STORED: &str = "nothing is stored or billed";
const NO_CODE: &str = "no code is run here; leave it out";
const CACHE: &str = "all requests share the prefix cache; leave it out";

/// The table.
pub const FIELDS: &[Field] = &[
    // What every surface has.
    built("model", C | L | G | T | D | M | R, "OpenAI routes"),
    built("stream", C | L | G | M | R, "Streaming"),
    built("stream_options", C | L, CHAT),
    // What is generated from.
    built("messages", C | T, CHAT),
    built("tools", C | T | R, CHAT),
    built("tool_choice", C | T | R, CHAT),
    built("add_generation_prompt", C | T, CHAT),
    built("chat_template_kwargs", C | T | M | R, CHAT),
    built("reasoning_effort", C | T, CHAT),
    built("verbosity", C | T, CHAT),
    built("enable_thinking", C | R, CHAT),
    built("parallel_tool_calls", C | R, CHAT),
    built("separate_reasoning", C | R, CHAT),
    built("include_reasoning", C | R, CHAT),
    built("thinking_token_budget", C | R, CHAT),
    built("messages", M, MESSAGES),
    built("system", M, MESSAGES),
    built("tools", M, MESSAGES),
    built("tool_choice", M, MESSAGES),
    built("thinking", M, MESSAGES),
    built("output_config", M, MESSAGES),
    built("output_format", M, MESSAGES),
    built("max_tokens", M, MESSAGES),
    built("stop_sequences", M, MESSAGES),
    built("input", R, RESPONSES),
    built("instructions", R, RESPONSES),
    built("previous_response_id", R, RESPONSES),
    built("reasoning", R, RESPONSES),
    built("include", R, RESPONSES),
    built("store", R, RESPONSES),
    built("max_output_tokens", R, RESPONSES),
    built("max_tool_calls", R, RESPONSES),
    built("metadata", R, RESPONSES),
    built("user", R, RESPONSES),
    built("prompt", L, COMPLETIONS),
    built("prompt", T, TOKENIZE),
    built("echo", L, COMPLETIONS),
    built("add_special_tokens", L, COMPLETIONS),
    built("add_special_tokens", T, TOKENIZE),
    built("text", G, GENERATE),
    built("text", R, RESPONSES),
    built("input_ids", G, GENERATE),
    built("sampling_params", G, GENERATE),
    built("rid", G, GENERATE),
    built("return_token_strs", T, TOKENIZE),
    built("tokens", D, "detokenize"),
    built("skip_special_tokens", D, "detokenize"),
    // How.
    built("temperature", S | M, SAMPLING),
    built("top_p", S | M, SAMPLING),
    built("top_k", S | M, SAMPLING),
    built("min_p", S | M, SAMPLING),
    built("repetition_penalty", S | M, SAMPLING),
    built("presence_penalty", S, SAMPLING),
    built("frequency_penalty", S, SAMPLING),
    built("logit_bias", S, SAMPLING),
    built("allowed_token_ids", S, SAMPLING),
    built("bad_words", S, SAMPLING),
    built("seed", S | M, SAMPLING),
    built("sampling_seed", S, SAMPLING),
    built("n", S, SAMPLING),
    built("stop", S, SAMPLING),
    built("stop_token_ids", S, SAMPLING),
    built("include_stop_str_in_output", S, SAMPLING),
    built("no_stop_trim", S, SAMPLING),
    built("skip_special_tokens", S, SAMPLING),
    built("ignore_eos", S, SAMPLING),
    built("min_tokens", S, SAMPLING),
    built("min_new_tokens", S, SAMPLING),
    built("priority", ALL | M, SAMPLING),
    built("max_tokens", C, CHAT),
    built("max_completion_tokens", C, CHAT),
    built("max_tokens", L, COMPLETIONS),
    built("max_new_tokens", P, GENERATE),
    built("logprobs", C | L, "Log-probabilities"),
    built("top_logprobs", C | R, "Log-probabilities"),
    built("prompt_logprobs", C | L, "Log-probabilities"),
    built("return_logprob", G, "Log-probabilities"),
    built("logprob_start_len", G, "Log-probabilities"),
    built("top_logprobs_num", G, "Log-probabilities"),
    built("return_text_in_logprobs", G, "Log-probabilities"),
    built("stream_output", G, GENERATE),
    // Constraints on the output.
    built("response_format", S, FORMAT),
    built("structured_outputs", S, FORMAT),
    built("guided_json", S, FORMAT),
    built("guided_regex", S, FORMAT),
    built("guided_choice", S, FORMAT),
    built("guided_grammar", S, FORMAT),
    built("json_schema", S, FORMAT),
    built("regex", S, FORMAT),
    built("ebnf", S, FORMAT),
    built("structural_tag", S, FORMAT),
    built("grammar", S, FORMAT),
    refused_unless("response_format", G, is_text_format, "it goes into sampling_params"),
    refused("structured_outputs", G, INSIDE),
    refused("guided_json", G, INSIDE),
    refused("guided_regex", G, INSIDE),
    refused("guided_choice", G, INSIDE),
    refused("guided_grammar", G, INSIDE),
    refused("json_schema", G, INSIDE),
    refused("regex", G, INSIDE),
    refused("ebnf", G, INSIDE),
    refused("grammar", G, INSIDE),
    refused("structural_tag", G, INSIDE),
    refused("bad_words", G, "goes into sampling_params"),
    refused("allowed_token_ids", G, "goes into sampling_params"),
    refused("stop_regex", ALL, "use stop"),
    harmless("guided_decoding_backend", ALL, "counts with a constraint alone"),
    harmless("guided_whitespace_pattern", ALL, "counts with a constraint alone"),
    // Searches and samplers.
    refused_unless("best_of", ALL, is_one, "use n"),
    refused("use_beam_search", ALL, "leave it out"),
    harmless("length_penalty", ALL, BEAM),
    harmless("early_stopping", ALL, BEAM),
    refused_unless("typical_p", ALL, is_one, LLAMA_CPP),
    refused_unless("tfs_z", ALL, is_one, LLAMA_CPP),
    refused_unless("dry_multiplier", ALL, is_zero, LLAMA_CPP),
    harmless("dry_base", ALL, "counts with dry_multiplier alone"),
    harmless("dry_allowed_length", ALL, "counts with dry_multiplier alone"),
    harmless("dry_penalty_last_n", ALL, "counts with dry_multiplier alone"),
    harmless("dry_sequence_breakers", ALL, "counts with dry_multiplier alone"),
    refused_unless("xtc_probability", ALL, is_zero, LLAMA_CPP),
    harmless("xtc_threshold", ALL, "counts with xtc_probability alone"),
    refused_unless("mirostat", ALL, is_zero, LLAMA_CPP),
    harmless("mirostat_tau", ALL, "counts with mirostat alone"),
    harmless("mirostat_eta", ALL, "counts with mirostat alone"),
    refused("custom_logit_processor", ALL, "code of clients is not run"),
    refused("logits_processors", ALL, "code of clients is not run"),
    harmless("custom_params", ALL, "counts with custom_logit_processor alone"),
    refused("vllm_xargs", ALL, "there are no plug-ins to read it"),
    refused(
        "thinking_token_budget",
        L | G | P,
        "thoughts are told apart in chats alone; use max_tokens",
    ),
    refused("lora_path", ALL, "adapters are not loaded"),
    refused("lora_id", ALL, "adapters are not loaded"),
    // The prompt.
    refused("chat_template", C | T, "the model's own is used"),
    refused("continue_final_message", C | T, "use /v1/completions"),
    refused("documents", C | T, "put them into a message"),
    refused("functions", C | T, "use tools"),
    refused_unless("function_call", C | T, is_auto_or_none, "use tools"),
    refused("echo", C, "the prompt is not text of the client's; use /v1/completions"),
    refused("add_special_tokens", C, "the chat template writes them"),
    refused("web_search_options", C, "nothing is searched; leave it out"),
    refused("suffix", L, "write the model's own fill-in-the-middle tokens into the prompt"),
    refused("prompt_embeds", L, "send text or token ids"),
    refused("input_embeds", ALL, "send text or token ids"),
    refused(
        "truncate_prompt_tokens",
        ALL,
        "a prompt that is too long is refused; cut it before it is sent",
    ),
    refused("session_params", C | L | G | R, "send the whole prompt"),
    refused("cache_salt", C | L | R, CACHE),
    refused("extra_key", C | L | G | R, CACHE),
    refused("messages", R, "use input"),
    refused("functions", R, "use tools"),
    refused("prompt", R, "prompts are not stored; send instructions and input"),
    refused("conversation", R, "conversations are not stored; use previous_response_id"),
    refused("max_tokens", R, "use max_output_tokens"),
    refused("max_completion_tokens", R, "use max_output_tokens"),
    refused("background", R, "an answer is waited for; leave it out, and stream"),
    refused("chat_template", R, "the model's own is used"),
    harmless("stream_options", R, "the last event tells the usage"),
    harmless("truncation", R, "a prompt that is too long is refused; cut it before it is sent"),
    harmless(
        "context_management",
        R,
        "a prompt that is too long is refused; cut it before it is sent",
    ),
    harmless("prediction", C, "it would change the speed alone"),
    // Other media.
    refused_unless("modalities", C | G, is_text_only, TEXT_ONLY),
    refused("audio", C, TEXT_ONLY),
    refused("image_data", G, TEXT_ONLY),
    refused("audio_data", G, TEXT_ONLY),
    refused("video_data", G, TEXT_ONLY),
    harmless("mm_processor_kwargs", C | T, "there are no media"),
    harmless("media_io_kwargs", C | T, "there are no media"),
    harmless("max_dynamic_patch", C | G, "there are no media"),
    harmless("min_dynamic_patch", C | G, "there are no media"),
    harmless("image_max_dynamic_patch", C | G, "there are no media"),
    harmless("video_max_dynamic_patch", C | G, "there are no media"),
    harmless("use_audio_in_video", C | G, "there are no media"),
    // What else an answer could hold.
    refused("return_token_ids", C | L, "use /generate, which has output_ids"),
    refused("return_tokens_as_token_ids", C | L, "use /generate, which has output_ids"),
    refused("return_prompt_token_ids", C | L, "use /tokenize"),
    refused("logprob_token_ids", C | L, "use top_logprobs"),
    refused("token_ids_logprob", G, "use top_logprobs_num"),
    refused("return_hidden_states", C | L | G, "hidden states stay in the engine"),
    refused("return_routed_experts", C | L | G, "there are no experts"),
    refused("return_entropy", G, "use top_logprobs_num"),
    refused("return_bytes", G, "leave it out"),
    harmless("return_cached_tokens_details", C | L | G, "usage tells cached tokens"),
    harmless("return_meta_info", C | L, "usage and finish_reason tell it"),
    harmless("stream_reasoning", C, "thoughts are streamed as text is"),
    harmless("spaces_between_special_tokens", S, "tokenizers here never put any"),
    harmless("stream_interval", P, "each token is sent when it is there"),
    harmless("detokenize", S, "text is always made"),
    // Several servers.
    refused("kv_transfer_params", C | L, ONE_SERVER),
    refused("bootstrap_host", C | L | G, ONE_SERVER),
    refused("bootstrap_room", C | L | G, ONE_SERVER),
    harmless("bootstrap_port", C | L | G, "counts with bootstrap_host alone"),
    harmless("bootstrap_pair_key", C | L | G, "counts with bootstrap_host alone"),
    refused_unless("data_parallel_rank", C | L | G, is_zero, "there is one; leave it out"),
    refused_unless("routed_dp_rank", C | L | G, is_zero, "there is one; leave it out"),
    refused_unless("disagg_prefill_dp_rank", C | L | G, is_zero, "there is one; leave it out"),
    // Anthropic's.
    refused_unless("n", M, is_one, "send as many requests"),
    refused("stop", M, "use stop_sequences"),
    refused("max_completion_tokens", M, "use max_tokens"),
    refused("reasoning_effort", M, "use output_config.effort"),
    refused_unless("response_format", M, is_text_format, "use output_config.format"),
    refused("mcp_servers", M, "no other servers are asked; let the client call its tools"),
    refused("container", M, NO_CODE),
    refused("compaction", M, "ask for a summary in a message"),
    refused("thread", M, "no conversation is kept; send the whole one"),
    harmless("context_management", M, "nothing is cleared; what is sent is read"),
    harmless("cache_control", M, "all requests share the prefix cache"),
    harmless("anthropic_version", M, "all versions are taken"),
    harmless("anthropic_beta", M, "what is built needs none"),
    harmless("betas", M, "what is built needs none"),
    harmless("diagnostics", M, "metrics count every request"),
    harmless("inference_geo", M, "it is computed here"),
    harmless("speed", M, "it is as fast as it can be"),
    harmless("fallbacks", M, "the model that is named answers"),
    harmless("fallback_credit_token", M, NOT_STORED),
    harmless("billing_policy", M, NOT_STORED),
    harmless("user_profile_id", M, NOT_STORED),
    harmless("workspace_id", M, NOT_STORED),
    // Accounts.
    harmless("user", C | L | G, NOT_STORED),
    harmless("metadata", C | L | M, NOT_STORED),
    harmless("store", C | L, NOT_STORED),
    harmless("service_tier", C | L | M | R, NOT_STORED),
    harmless("safety_identifier", C | L | R, NOT_STORED),
    harmless("prompt_cache_key", C | L | R, "all requests share the prefix cache"),
    harmless("prompt_cache_retention", C | L | R, "all requests share the prefix cache"),
    harmless("request_id", C | L | R, "the header x-request-id counts"),
    harmless("rid", C | L | R, "the header x-request-id counts"),
    harmless("custom_labels", C | L | G | R, "metrics have the labels of the operator"),
    harmless("external_trace_header", C | L | G | R, "nothing is traced"),
    harmless("client_metadata", R, "it is about the client"),
    harmless("conversation_id", G, NOT_STORED),
    harmless("background", G, "an answer is waited for"),
    harmless("log_metrics", G, "metrics count every request"),
    harmless("no_logs", G, "prompts are in the log only if the operator wants it"),
    harmless("validation_time", G, "it is the server's own"),
    harmless("received_time", G, "it is the server's own"),
    // Ollama's.
    built("model", A, OLLAMA),
    built("stream", A, OLLAMA),
    built("format", A, OLLAMA),
    built("think", A, OLLAMA),
    built("options", A, OLLAMA),
    built("messages", AC, OLLAMA),
    built("tools", AC, OLLAMA),
    built("prompt", AG, OLLAMA),
    built("system", AG, OLLAMA),
    built("raw", AG, OLLAMA),
    refused("template", AG, "the model's own is used"),
    refused(
        "suffix",
        AG,
        "write the model's own fill-in-the-middle tokens into the prompt, with raw",
    ),
    refused("context", AG, "send the whole conversation to /api/chat"),
    refused("images", AG, TEXT_ONLY),
    refused("logprobs", A, "use /v1/chat/completions"),
    harmless("top_logprobs", A, "counts with logprobs alone"),
    harmless("keep_alive", A, "models stay until the operator unloads them"),
    harmless("truncate", A, "a prompt that is too long is refused"),
    harmless("shift", A, "an output ends where the context does"),
    harmless("width", AG, "there are no media"),
    harmless("height", AG, "there are no media"),
    harmless("steps", AG, "there are no media"),
    built("temperature", AO, OLLAMA),
    built("top_k", AO, OLLAMA),
    built("top_p", AO, OLLAMA),
    built("min_p", AO, OLLAMA),
    built("seed", AO, OLLAMA),
    built("num_predict", AO, OLLAMA),
    built("stop", AO, OLLAMA),
    built("repeat_penalty", AO, OLLAMA),
    built("presence_penalty", AO, OLLAMA),
    built("frequency_penalty", AO, OLLAMA),
    refused_unless("typical_p", AO, is_one, LLAMA_CPP),
    refused_unless("tfs_z", AO, is_one, LLAMA_CPP),
    refused_unless("mirostat", AO, is_zero, LLAMA_CPP),
    harmless("mirostat_tau", AO, "counts with mirostat alone"),
    harmless("mirostat_eta", AO, "counts with mirostat alone"),
    harmless("repeat_last_n", AO, "penalties look at the whole text"),
    harmless("penalize_newline", AO, "penalties treat all tokens alike"),
    harmless("num_keep", AO, "no prompt is cut"),
    harmless("num_ctx", AO, LOADED),
    harmless("num_batch", AO, LOADED),
    harmless("num_gpu", AO, LOADED),
    harmless("main_gpu", AO, LOADED),
    harmless("num_thread", AO, LOADED),
    harmless("low_vram", AO, LOADED),
    harmless("use_mmap", AO, LOADED),
    harmless("use_mlock", AO, LOADED),
    harmless("numa", AO, LOADED),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::Fields;

    const ROUTES: [(Route, &str); 11] = [
        (Route::Chat, "chat"),
        (Route::Completions, "completions"),
        (Route::Generate, "generate"),
        (Route::Params, "sampling_params"),
        (Route::Tokenize, "tokenize"),
        (Route::Detokenize, "detokenize"),
        (Route::Messages, "messages"),
        (Route::Responses, "responses"),
        (Route::ApiChat, "/api/chat"),
        (Route::ApiGenerate, "/api/generate"),
        (Route::ApiOptions, "options"),
    ];

    fn read_on(route: Route) -> Vec<&'static str> {
        match route {
            Route::Chat => crate::chat::ChatFields::names(),
            Route::Completions => crate::completions::CompletionFields::names(),
            Route::Generate => crate::generate::GenerateFields::names(),
            Route::Params => crate::generate::ParamsFields::names(),
            Route::Tokenize => crate::tokens::TokenizeFields::names(),
            Route::Detokenize => crate::tokens::DetokenizeFields::names(),
            Route::Messages => crate::messages::MessagesFields::names(),
            Route::Responses => crate::responses::ResponseFields::names(),
            Route::ApiChat => crate::ollama::ApiChatFields::names(),
            Route::ApiGenerate => crate::ollama::ApiGenerateFields::names(),
            Route::ApiOptions => crate::sampling::OptionsFields::names(),
        }
    }

    #[test]
    fn each_field_has_one_verdict_and_what_is_built_is_read() {
        for (route, name) in ROUTES {
            let mut on: Vec<&str> =
                FIELDS.iter().filter(|field| field.is_on(route)).map(|field| field.name).collect();
            let count = on.len();
            on.sort_unstable();
            on.dedup();
            assert_eq!(on.len(), count, "{name}: a field stands there twice");
            let mut built: Vec<&str> = FIELDS
                .iter()
                .filter(|field| field.is_on(route) && matches!(field.verdict, Verdict::Built(_)))
                .map(|field| field.name)
                .collect();
            let mut read = read_on(route);
            built.sort_unstable();
            read.sort_unstable();
            assert_eq!(built, read, "{name}");
        }
    }

    /// The table as docs/features.md has it.
    fn rendered() -> String {
        let mut text = String::from("| field | routes | verdict | |\n|---|---|---|---|\n");
        for field in FIELDS {
            let on: Vec<&str> = ROUTES
                .iter()
                .filter(|(route, _)| field.is_on(*route))
                .map(|(_, name)| *name)
                .collect();
            let (verdict, note) = match field.verdict {
                Verdict::Built(place) => ("built", format!("see {place}")),
                Verdict::Harmless(why) => ("harmless", why.to_string()),
                Verdict::Refused { why, .. } => ("refused", why.to_string()),
            };
            text += &format!("| `{}` | {} | {verdict} | {note} |\n", field.name, on.join(", "));
        }
        text
    }

    #[test]
    fn the_documentation_has_this_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/features.md");
        let page = std::fs::read_to_string(path).unwrap();
        let (begin, end) = ("<!-- fields: begin -->\n", "<!-- fields: end -->");
        let (before, rest) = page.split_once(begin).unwrap();
        let (table, after) = rest.split_once(end).unwrap();
        if std::env::var_os("MINISGL_WRITE_DOCS").is_some() {
            std::fs::write(path, format!("{before}{begin}{}{end}{after}", rendered())).unwrap();
            return;
        }
        assert_eq!(table, rendered(), "write it with MINISGL_WRITE_DOCS=1");
    }
}
