//! What is known of a checkpoint.

/// What a checkpoint shows of its dialect.
#[derive(Clone, Copy)]
pub struct Checkpoint<'a> {
    /// The first of `architectures` in `config.json`; empty where there is none.
    pub architecture: &'a str,
    /// The text of the chat template that renders tools (all of them, one behind the other, where it has several); empty
    /// where there is none.
    pub template: &'a str,
    /// Whether the vocabulary has a token of just this text.
    pub has_token: &'a dyn Fn(&str) -> bool,
}

impl Checkpoint<'_> {
    /// Whether the template has a text.
    pub(crate) fn says(&self, text: &str) -> bool {
        self.template.contains(text)
    }

    /// Whether the architecture's name begins so.
    pub(crate) fn is(&self, architecture: &str) -> bool {
        self.architecture.starts_with(architecture)
    }
}
