//! What can be wrong with weights, in words for the operator.

use std::fmt::{self, Display};
use std::path::PathBuf;

use super::Part;

/// Problems listed in one error; more are counted.
pub const PROBLEMS_MAX: usize = 10;

/// Why weights cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WeightError {
    /// Neither a single file nor an index.
    #[error("no model.safetensors and no model.safetensors.index.json in {}{hint}", dir.display())]
    NoWeights {
        /// The model folder.
        dir: PathBuf,
        /// What else was found there, and what to do about it.
        hint: String,
    },
    /// Missing or unreadable.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The index of a sharded checkpoint makes no sense.
    #[error("{} is not a safetensors index: {reason}", path.display())]
    Index {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Files that the index names are not there.
    #[error(
        "{} of the {total} weight files that model.safetensors.index.json names are not in {}: {}; \
         fetch the model again",
        shards.len(), dir.display(), listed(shards, shards.len())
    )]
    MissingShards {
        /// The model folder.
        dir: PathBuf,
        /// Names of the missing files.
        shards: Vec<String>,
        /// Files the index names.
        total: usize,
    },
    /// Not a safetensors file, or a damaged one.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The tensors are not those that `config.json` calls for.
    #[error(
        "the weights in {} do not fit its config.json, {total} problem{}: {}",
        dir.display(), if *total == 1 { "" } else { "s" }, listed(problems, *total)
    )]
    Mismatch {
        /// The model folder.
        dir: PathBuf,
        /// The first [`PROBLEMS_MAX`].
        problems: Vec<Problem>,
        /// How many there are.
        total: usize,
    },
    /// Asked for a tensor that the model has not.
    #[error("the model has no tensor {name}")]
    UnknownTensor {
        /// Its name.
        name: String,
    },
    /// Asked for a tensor by another shape than it has.
    #[error("tensor {name} has shape {found:?}, not {asked:?}")]
    WrongShape {
        /// Its name.
        name: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape it was asked for by.
        asked: Vec<usize>,
    },
    /// Asked for a part that the tensor has not.
    #[error("tensor {name} of shape {shape:?} has no {part}")]
    BadPart {
        /// Its name.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
        /// What was asked for.
        part: Part,
    },
}

/// One tensor that is not as `config.json` has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Needed, and in no file.
    Missing {
        /// Its name.
        name: String,
        /// The shape it should have.
        shape: Vec<usize>,
        /// What its matrix is stored as, if not as numbers.
        scheme: Option<&'static str>,
    },
    /// The index places it in a file that does not have it.
    NotInShard {
        /// Its name.
        name: String,
        /// The file.
        shard: String,
    },
    /// There, and the model has no use for it.
    Unexpected {
        /// Its name.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// There, in another shape.
    Shape {
        /// Its name.
        name: String,
        /// The shape in the file.
        found: Vec<usize>,
        /// The shape that follows from `config.json`.
        expected: Vec<usize>,
        /// What its matrix is stored as, if not as numbers.
        scheme: Option<&'static str>,
    },
    /// There, in an element type that is not supported.
    Dtype {
        /// Its name.
        name: String,
        /// The type in the file, by its safetensors name.
        found: String,
        /// The types it may have.
        supported: &'static str,
        /// What its matrix is stored as, if not as numbers.
        scheme: Option<&'static str>,
    },
}

impl Problem {
    /// The tensor's name.
    pub fn tensor(&self) -> &str {
        match self {
            Problem::Missing { name, .. }
            | Problem::NotInShard { name, .. }
            | Problem::Unexpected { name, .. }
            | Problem::Shape { name, .. }
            | Problem::Dtype { name, .. } => name,
        }
    }
}

impl Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Missing { name, shape, scheme } => {
                write!(f, "{name} {shape:?} is missing{}", of(*scheme))
            }
            Problem::NotInShard { name, shard } => {
                write!(f, "{name} is not in {shard}, where the index places it")
            }
            Problem::Unexpected { name, shape } => write!(f, "{name} {shape:?} is unexpected"),
            Problem::Shape { name, found, expected, scheme } => {
                write!(f, "{name} has shape {found:?}, expected {expected:?}{}", of(*scheme))
            }
            Problem::Dtype { name, found, supported, scheme } => {
                let verb = if supported.contains(' ') { "are" } else { "is" };
                write!(f, "{name} is {found}, supported {verb} {supported}{}", of(*scheme))
            }
        }
    }
}

/// That a tensor is a part of a scheme, which `config.json` says.
fn of(scheme: Option<&'static str>) -> String {
    scheme.map_or(String::new(), |scheme| format!(" by the quantization_config's {scheme}"))
}

/// `a; b; c; and 7 more`.
fn listed<T: Display>(items: &[T], total: usize) -> String {
    let shown = items.len().min(PROBLEMS_MAX);
    let mut parts: Vec<String> = items[..shown].iter().map(T::to_string).collect();
    if total > shown {
        parts.push(format!("and {} more", total - shown));
    }
    parts.join("; ")
}
