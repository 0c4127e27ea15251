//! Which matrices of a model are stored by which scheme.
//!
//! Owns: matching the names of modules against the lists of `quantization_config`. Must never: name a tensor.

use regex::Regex;

use crate::scheme::Scheme;

/// What `quantization_config` says: of each module with a weight matrix, how it is stored.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Quantization {
    pub(super) groups: Vec<Group>,
    pub(super) skipped: Vec<Pattern>,
    /// Experts are one module, as they are in transformers, and not one for each of their matrices.
    pub(super) experts_are_one: bool,
}

/// Modules that are stored alike.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Group {
    pub(super) targets: Vec<Pattern>,
    pub(super) scheme: Scheme,
}

impl Quantization {
    /// Every projection by `scheme`, but for the head.
    pub(super) fn projections(scheme: Scheme) -> Quantization {
        Quantization {
            groups: vec![Group { targets: vec![Pattern::Projections], scheme }],
            skipped: vec![Pattern::Exactly("lm_head".to_owned())],
            experts_are_one: true,
        }
    }

    /// How the weight of a module is stored, for instance that of `model.layers.3.mlp.down_proj`. Embeddings, routers
    /// and norms are not asked for: they are always numbers.
    pub fn scheme_of(&self, module: &str) -> Scheme {
        let module = match module.find(".experts.") {
            Some(at) if self.experts_are_one => &module[..at + ".experts".len()],
            _ => module,
        };
        let is_in = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches(module));
        match self.groups.iter().find(|group| is_in(&group.targets)) {
            Some(group) if !is_in(&self.skipped) => group.scheme,
            _ => Scheme::Plain,
        }
    }

    /// The schemes that modules may have.
    pub fn schemes(&self) -> impl Iterator<Item = Scheme> {
        self.groups.iter().map(|group| group.scheme)
    }
}

/// Names of modules.
#[derive(Clone, Debug)]
pub(super) enum Pattern {
    /// Every projection.
    Projections,
    /// Those whose names end so.
    End(String),
    /// One.
    Exactly(String),
    /// Those whose names begin with a match, as Python's `re.match` has it.
    Begin(Regex),
}

impl Pattern {
    /// Names that begin with a match of `expression`; `None` if it is no regular expression, or one that looks ahead
    /// or back.
    pub(super) fn begin(expression: &str) -> Option<Pattern> {
        Regex::new(&format!("^(?:{expression})")).ok().map(Pattern::Begin)
    }

    fn matches(&self, module: &str) -> bool {
        match self {
            Pattern::Projections => true,
            Pattern::End(end) => module.ends_with(end),
            Pattern::Exactly(name) => module == name,
            Pattern::Begin(expression) => expression.is_match(module),
        }
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Pattern) -> bool {
        match (self, other) {
            (Pattern::Projections, Pattern::Projections) => true,
            (Pattern::End(a), Pattern::End(b)) | (Pattern::Exactly(a), Pattern::Exactly(b)) => {
                a == b
            }
            (Pattern::Begin(a), Pattern::Begin(b)) => a.as_str() == b.as_str(),
            _ => false,
        }
    }
}
