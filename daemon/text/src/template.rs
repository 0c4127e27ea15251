//! Chat templates: a conversation to one prompt, byte for byte as Hugging Face transformers does it.
//!
//! Owns: the model's templates, and in which form each takes messages. Must never: see a request or a tokenizer.

mod adapt;
mod probe;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use minisgl_proto::text::{Conversation, PROMPT_BYTES_MAX, TemplateTraits};
use serde_json::Value as Json;

use crate::files::{Files, LoadError};
use crate::jinja::{Error, Limits, Template, Value};
use adapt::{Content, Form};

/// What one prompt may take. A conversation of a thousand messages takes a hundred thousand steps.
const LIMITS: Limits = Limits { fuel: 40_000_000, bytes: PROMPT_BYTES_MAX };
/// What one trial may take, of which there are a dozen at load.
const TRIAL_LIMITS: Limits = Limits { fuel: 200_000, bytes: 1 << 20 };
/// Bytes of a template's source at most; the largest known has 30 kB.
const SOURCE_BYTES_MAX: usize = 4 << 20;

/// A model's chat templates and the special tokens they may mention.
pub struct ChatTemplate {
    templates: Vec<(String, Template)>,
    special_tokens: Vec<(String, String)>,
    traits: TemplateTraits,
    forms: Forms,
    notes: Vec<String>,
}

/// The forms in which it takes messages.
#[derive(Clone, Copy, Debug, Default)]
struct Forms {
    without_tools: Form,
    with_tools: Form,
}

/// Why there is no prompt.
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

/// The template's name when a model has just one.
const DEFAULT: &str = "default";
/// The name of the one for conversations with tools.
const TOOL_USE: &str = "tool_use";

impl ChatTemplate {
    /// The templates of a folder, which are tried at once; `None` when it has none.
    ///
    /// # Errors
    /// One is not Jinja.
    pub fn new(dir: &Path, files: Files) -> Result<Option<ChatTemplate>, LoadError> {
        if files.templates.is_empty() {
            return Ok(None);
        }
        let compile = |(name, source): (String, String)| {
            let broken = |why: String| LoadError::Template {
                dir: dir.to_path_buf(),
                name: name.clone(),
                why,
            };
            if source.len() > SOURCE_BYTES_MAX {
                let bytes = source.len();
                return Err(broken(format!(
                    "it has {bytes} bytes, the limit is {SOURCE_BYTES_MAX}"
                )));
            }
            let template = Template::new(&source).map_err(|why| {
                broken(format!("{} (line {} of the template)", why.message, why.line))
            })?;
            Ok((name, template))
        };
        let mut template = ChatTemplate {
            templates: files.templates.into_iter().map(compile).collect::<Result<_, _>>()?,
            special_tokens: files.special,
            traits: TemplateTraits::default(),
            forms: Forms::default(),
            notes: Vec::new(),
        };
        probe::probe(&mut template);
        Ok(Some(template))
    }

    /// The templates of a folder by themselves, for tests.
    ///
    /// # Errors
    /// A file is broken.
    #[doc(hidden)]
    pub fn load(dir: &Path) -> Result<Option<ChatTemplate>, LoadError> {
        ChatTemplate::new(dir, Files::read(dir)?)
    }

    /// What the template does with conversations made to try it, and what it cannot do.
    pub fn traits(&self) -> (TemplateTraits, Vec<String>) {
        (self.traits, self.notes.clone())
    }

    /// Renders a conversation, in the form that the template takes.
    ///
    /// # Errors
    /// The template called `raise_exception`, does not fit the conversation, or takes too much.
    pub fn render(
        &self,
        conversation: &Conversation,
        abandoned: &AtomicBool,
    ) -> Result<String, TemplateError> {
        let own = match conversation.tools {
            None => self.forms.without_tools,
            Some(_) => self.forms.with_tools,
        };
        let render = |form: Form| {
            let messages = adapt::messages(&conversation.messages, form);
            self.render_as(conversation, &messages, LIMITS, abandoned)
        };
        let first = render(own);
        let refused = match &first {
            Err(TemplateError::Failed(_)) => false,
            Err(TemplateError::Refused(_)) => true,
            _ => return first,
        };
        // The trial conversation may not have shown what this one needs; transformers' users choose by hand.
        let others = [
            Form { arguments_as_text: !own.arguments_as_text, ..own },
            Form { content: Content::Empty, ..own },
            Form { arguments_as_text: false, wrap_broken: true, ..own },
        ];
        // What a template refuses by itself it refuses in any form, but for broken arguments.
        let others = others.into_iter().filter(|form| form.wrap_broken || !refused);
        let plain = adapt::messages(&conversation.messages, own);
        for form in others.filter(|form| adapt::messages(&conversation.messages, *form) != plain) {
            match render(form) {
                Err(TemplateError::Failed(_) | TemplateError::Refused(_)) => {}
                done => return done,
            }
        }
        first
    }

    /// Renders messages as they are, for tests against Jinja2.
    ///
    /// # Errors
    /// As for `render`.
    #[doc(hidden)]
    pub fn render_plain(&self, conversation: &Conversation) -> Result<String, TemplateError> {
        self.render_as(conversation, &conversation.messages, LIMITS, &AtomicBool::new(false))
    }

    /// Renders messages as they are.
    fn render_as(
        &self,
        conversation: &Conversation,
        messages: &[Json],
        limits: Limits,
        abandoned: &AtomicBool,
    ) -> Result<String, TemplateError> {
        let find = |name: &str| self.templates.iter().find(|(own, _)| own == name);
        let tool_use = conversation.tools.as_ref().and_then(|_| find(TOOL_USE));
        let Some((_, template)) = tool_use.or_else(|| find(DEFAULT)) else {
            let message = "the model has named templates, none is \"default\"";
            return Err(TemplateError::Failed(message.to_owned()));
        };
        let special = self
            .special_tokens
            .iter()
            .map(|(name, token)| (name.clone(), Value::str(token.as_str())));
        // As in transformers, they may replace special tokens, but nothing below.
        let kwargs = conversation.kwargs.iter().map(|(name, value)| (name.clone(), value.into()));
        let own = [
            ("messages", Value::list(messages.iter().map(Value::from).collect())),
            (
                "tools",
                conversation.tools.as_ref().map_or(Value::None, |tools| {
                    Value::list(tools.iter().map(Value::from).collect())
                }),
            ),
            ("documents", Value::None),
            ("add_generation_prompt", Value::Bool(conversation.add_generation_prompt)),
        ];
        let own = own.into_iter().map(|(name, value)| (name.to_owned(), value));
        template.render(special.chain(kwargs).chain(own), limits, abandoned).map_err(
            |(why, line)| match why {
                Error::Raised(message) => TemplateError::Refused(message),
                Error::Failed(message) => {
                    TemplateError::Failed(format!("{message} (line {line} of the template)"))
                }
                Error::Abandoned => TemplateError::Abandoned,
            },
        )
    }
}
