//! Chat templates: a conversation to one prompt, byte for byte as Hugging Face transformers does it.
//!
//! Owns: the Jinja environment and the model's template. Must never: see a request or a tokenizer.
//!
//! Templates are written for Jinja2 inside Python and lean on both. minijinja speaks Jinja2; the
//! Python half is `pycompat` (methods of strings and dicts) and the [`python`] module (`tojson`,
//! `strftime_now`, how floats print).

mod python;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value};
use minisgl_proto::text::{Conversation, TemplateTraits};

use crate::files::{Files, LoadError};

/// A model's chat templates and the special tokens they may mention.
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: Vec<(String, String)>,
}

/// Why there is no template, or no prompt.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The template refused the conversation.
    #[error("the chat template refuses this conversation: {0}")]
    Refused(String),
    /// The template failed on the conversation.
    #[error("the chat template cannot render this conversation: {0}")]
    Failed(String),
    /// Nobody waits for the prompt any more.
    #[error("the request was abandoned")]
    Abandoned,
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
    /// The templates of a folder; `None` when it has none.
    ///
    /// # Errors
    /// One is not Jinja.
    pub fn new(dir: &Path, files: Files) -> Result<Option<ChatTemplate>, LoadError> {
        if files.templates.is_empty() {
            return Ok(None);
        }
        ChatTemplate::compile(files.templates, files.special).map(Some).map_err(|why| {
            LoadError::Template { dir: dir.to_path_buf(), name: DEFAULT.into(), why: describe(&why) }
        })
    }

    /// What the template does with conversations made to try it, and what it cannot do.
    pub fn traits(&self) -> (TemplateTraits, Vec<String>) {
        (TemplateTraits { system: true, tools: true, ..TemplateTraits::default() }, Vec::new())
    }

    /// The templates of a folder by themselves, for tests.
    ///
    /// # Errors
    /// A file is broken.
    pub fn load(dir: &Path) -> Result<Option<ChatTemplate>, LoadError> {
        ChatTemplate::new(dir, Files::read(dir)?)
    }

    fn compile(
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
    pub fn render(
        &self,
        conversation: &Conversation,
        _abandoned: &AtomicBool,
    ) -> Result<String, TemplateError> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value as Json, json};

    fn render(template: &str, messages: Json) -> Result<String, TemplateError> {
        let template = ChatTemplate::compile(
            vec![(DEFAULT.into(), template.into())],
            vec![("bos_token".into(), "<s>".into())],
        )
        .unwrap();
        template.render(&Conversation {
            messages: messages.as_array().unwrap().clone(),
            add_generation_prompt: true,
            ..Conversation::default()
        }, &AtomicBool::new(false))
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
