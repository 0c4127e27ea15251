//! Chat templates: a conversation to one prompt, byte for byte as Hugging Face transformers does it.
//!
//! Owns: the Jinja environment and the model's template. Must never: see a request or a tokenizer.
//!
//! Templates are written for Jinja2 inside Python and lean on both. minijinja speaks Jinja2; the
//! Python half is `pycompat` (methods of strings and dicts) and the [`python`] module (`tojson`,
//! `strftime_now`, how floats print).

mod python;

use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value};
use serde_json::{Map, Value as Json};

/// A model's chat templates and the special tokens they may mention.
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: Vec<(String, String)>,
}

/// What goes into a prompt.
#[derive(Clone, Debug, Default)]
pub struct Conversation {
    /// The messages, as the template reads them.
    pub messages: Vec<Json>,
    /// Tools the model may call, in OpenAI's form.
    pub tools: Option<Vec<Json>>,
    /// End with the opening of an assistant message.
    pub add_generation_prompt: bool,
    /// More variables, such as `enable_thinking`.
    pub kwargs: Map<String, Json>,
}

impl Conversation {
    /// Bytes of its strings, about.
    pub(crate) fn bytes(&self) -> usize {
        let all = self.messages.iter().chain(self.tools.iter().flatten());
        all.chain(self.kwargs.values()).map(bytes).sum()
    }
}

fn bytes(value: &Json) -> usize {
    match value {
        Json::String(text) => text.len(),
        Json::Array(items) => items.iter().map(bytes).sum(),
        Json::Object(fields) => fields.iter().map(|(name, value)| name.len() + bytes(value)).sum(),
        Json::Null | Json::Bool(_) | Json::Number(_) => 0,
    }
}

/// Why there is no template, or no prompt.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// A file cannot be read.
    #[error("{path} cannot be read: {why}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// What the system, or the JSON parser, said.
        why: String,
    },
    /// The template is not Jinja.
    #[error("the chat template of {dir} does not parse: {why}")]
    Malformed {
        /// Folder of the model.
        dir: PathBuf,
        /// What and where.
        why: String,
    },
    /// The template refused the conversation.
    #[error("the chat template refuses this conversation: {0}")]
    Refused(String),
    /// The template failed on the conversation.
    #[error("the chat template cannot render this conversation: {0}")]
    Failed(String),
}

/// Marks errors that come from `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

/// The template's name when a model has just one.
const DEFAULT: &str = "default";
/// The name of the one for conversations with tools.
const TOOL_USE: &str = "tool_use";

impl ChatTemplate {
    /// Finds the template of a model folder: `chat_template.jinja`, else `chat_template` in
    /// `tokenizer_config.json` (a string, or a list of named ones). `None` when it has none.
    ///
    /// # Errors
    /// A file is unreadable, or the template is not Jinja.
    pub fn load(dir: &Path) -> Result<Option<ChatTemplate>, TemplateError> {
        let config_path = dir.join("tokenizer_config.json");
        let config: Json = match read(&config_path)? {
            None => Json::Null,
            Some(text) => serde_json::from_str(&text).map_err(|why| TemplateError::Unreadable {
                path: config_path,
                why: why.to_string(),
            })?,
        };
        let mut templates = match &config["chat_template"] {
            Json::String(template) => vec![(DEFAULT.to_string(), template.clone())],
            Json::Array(named) => named
                .iter()
                .filter_map(|one| {
                    Some((one["name"].as_str()?.into(), one["template"].as_str()?.into()))
                })
                .collect(),
            _ => Vec::new(),
        };
        if let Some(template) = read(&dir.join("chat_template.jinja"))? {
            templates.retain(|(name, _)| name != DEFAULT);
            templates.push((DEFAULT.to_string(), template));
        }
        if templates.is_empty() {
            return Ok(None);
        }
        ChatTemplate::new(templates, special_tokens(&config))
            .map(Some)
            .map_err(|why| TemplateError::Malformed { dir: dir.to_path_buf(), why: describe(&why) })
    }

    fn new(
        templates: Vec<(String, String)>,
        special_tokens: Vec<(String, String)>,
    ) -> Result<ChatTemplate, Error> {
        let mut environment = Environment::new();
        let whitespace = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
        environment.set_syntax(whitespace);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_formatter(python::format);
        environment.add_filter("tojson", python::to_json);
        environment.add_filter("string", python::to_string);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", python::strftime_now);
        // In Python strings and dicts have a length and an index too.
        environment.add_test("sequence", |value: &Value| {
            matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
        });
        for (name, template) in templates {
            environment.add_template_owned(name, without_generation_marks(&template))?;
        }
        Ok(ChatTemplate { environment, special_tokens })
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// The template called `raise_exception`, or does not fit the conversation.
    pub fn render(&self, conversation: &Conversation) -> Result<String, TemplateError> {
        let tool_use =
            conversation.tools.as_ref().and(self.environment.get_template(TOOL_USE).ok());
        let template = match tool_use {
            Some(template) => template,
            None => self.environment.get_template(DEFAULT).map_err(|_| {
                TemplateError::Failed("the model has named templates, none is \"default\"".into())
            })?,
        };
        let mut context = std::collections::BTreeMap::<&str, Value>::new();
        context
            .extend(self.special_tokens.iter().map(|(k, v)| (k.as_str(), Value::from(v.as_str()))));
        // As in transformers, they may replace special tokens, but nothing below.
        context
            .extend(conversation.kwargs.iter().map(|(k, v)| (k.as_str(), Value::from(Serde(v)))));
        context.insert("messages", Value::from(Serde(&conversation.messages)));
        context.insert("tools", Value::from(Serde(&conversation.tools)));
        context.insert("documents", Value::from(()));
        context.insert("add_generation_prompt", conversation.add_generation_prompt.into());
        template.render(context).map_err(|why| {
            let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&why);
            while let Some(cause) = source {
                if let Some(Raised(message)) = cause.downcast_ref() {
                    return TemplateError::Refused(message.clone());
                }
                source = cause.source();
            }
            TemplateError::Failed(describe(&why))
        })
    }
}

/// transformers lets templates mark what the assistant wrote, for training:
/// `{% generation %}...{% endgeneration %}`. For a prompt the marks do nothing.
fn without_generation_marks(template: &str) -> String {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{%") {
        out.push_str(before);
        out.push_str("{%");
        rest = after;
        let Some((statement, _)) = after.split_once("%}") else { break };
        let word = statement.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        let instead = match word {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => continue,
        };
        out.push_str(&statement.replace(word, instead));
        rest = &after[statement.len()..];
    }
    out.push_str(rest);
    out
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(message)))
}

/// What and in which line, without the template's or the conversation's text.
fn describe(why: &Error) -> String {
    let line = why.line().map_or(String::new(), |line| format!(" (line {line} of the template)"));
    match why.detail() {
        Some(detail) => format!("{}: {detail}{line}", why.kind()),
        None => format!("{}{line}", why.kind()),
    }
}

/// A file's text; `None` when there is no such file.
fn read(path: &Path) -> Result<Option<String>, TemplateError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(why) => {
            Err(TemplateError::Unreadable { path: path.to_path_buf(), why: why.to_string() })
        }
    }
}

/// `bos_token` and its kind: a string, or an object with `content`.
fn special_tokens(config: &Json) -> Vec<(String, String)> {
    const NAMES: [&str; 7] = [
        "bos_token",
        "eos_token",
        "unk_token",
        "sep_token",
        "pad_token",
        "cls_token",
        "mask_token",
    ];
    let token = |name: &str| {
        let value = &config[name];
        value.as_str().or(value["content"].as_str()).map(str::to_string)
    };
    NAMES.iter().filter_map(|name| Some((name.to_string(), token(name)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn render(template: &str, messages: Json) -> Result<String, TemplateError> {
        let template = ChatTemplate::new(
            vec![(DEFAULT.into(), template.into())],
            vec![("bos_token".into(), "<s>".into())],
        )
        .unwrap();
        template.render(&Conversation {
            messages: messages.as_array().unwrap().clone(),
            add_generation_prompt: true,
            ..Conversation::default()
        })
    }

    #[track_caller]
    fn check(template: &str, expected: &str) {
        let messages = json!([
            {"role": "user", "content": "  hi </think>\n\nthere "},
            {"role": "assistant", "content": null, "n": 1.0, "big": 1e16, "b": true,
             "list": ["a", 1, null, 2.5], "map": {"z": "é\"\n", "a": [], "o": {}}},
        ]);
        assert_eq!(render(template, messages).unwrap(), expected, "{template}");
    }

    /// The right-hand sides were printed by Jinja2 3.1 in the environment of transformers.
    #[test]
    fn python_manners() {
        check("{{ messages[::-1][0].role }}", "assistant");
        check("{{ messages[1].content }}|{{ messages[1].b }}", "None|True");
        check("{{ messages[1].n }} {{ messages[1].big }} {{ 3 }} {{ 1e-7 }}", "1.0 1e+16 3 1e-07");
        check("{{ messages[1].list }}", "['a', 1, None, 2.5]");
        check("{{ messages[1].list | tojson }}", r#"["a", 1, null, 2.5]"#);
        check("{{ messages[1].map | tojson }}", r#"{"z": "é\"\n", "a": [], "o": {}}"#);
        check(
            "{{ messages[1].map | tojson(indent=2) }}",
            "{\n  \"z\": \"é\\\"\\n\",\n  \"a\": [],\n  \"o\": {}\n}",
        );
        check("{{ {'big': messages[1].big} | tojson }}", r#"{"big": 1e+16}"#);
        check(
            "{{ messages[1].map | tojson(sort_keys=true) }}",
            r#"{"a": [], "o": {}, "z": "é\"\n"}"#,
        );
        check("{{ messages[0].content.split('</think>')[-1].lstrip('\\n') }}|", "there |");
        check("{{ messages[0].content.strip()[:2] + '.' }}", "hi.");
        check("{{ messages[0].content is string }} {{ messages[0].x is defined }}", "True False");
        check("{{ tools is none }} {{ tools is defined }}", "True True");
        check("{{ bos_token }}{{ eos_token }}", "<s>");
        check(
            "{% for m in messages %}\n  {% if loop.first %}{% continue %}{% endif %}\n{{ m.role }}\n{% endfor %}\n",
            "assistant\n",
        );
        check(
            "{% set ns = namespace(x=1) %}{% for m in messages %}{% set ns.x = ns.x + 1 %}{% endfor %}{{ ns.x }}",
            "3",
        );
        check(
            "{{ '%s' | format('x') }}{{ messages[0].get('role') }}{{ messages[0].get('q', 'd') }}",
            "xuserd",
        );
        check("{{ messages[0].keys() | list | join(',') }}", "role,content");
        check("{% for k, v in messages[0].items() %}{{ k }};{% endfor %}", "role;content;");
        check(
            "{{ 'abc' is sequence }} {{ messages is sequence }} {{ 1 is sequence }}",
            "True True False",
        );
        check("{{ (messages | length) ~ 'x' }} {{ 7 // 2 }} {{ 'a' in 'abc' }}", "2x 3 True");
    }

    #[test]
    fn an_exception_is_told_in_its_own_words() {
        let failed =
            render("{{ raise_exception('roles must alternate') }}", json!([])).unwrap_err();
        assert!(matches!(&failed, TemplateError::Refused(why) if why == "roles must alternate"));
        let failed = render("{{ messages[0].a.b }}", json!([{}])).unwrap_err();
        assert!(matches!(failed, TemplateError::Failed(_)), "{failed}");
    }
}
