//! Which dialect a checkpoint speaks.
//!
//! Owns: asking them. Must never: know a dialect's marks; each says in its own file what it is known by.

use crate::checkpoint::Checkpoint;
use crate::dialect::Dialect;
use crate::dialects::ALL;

/// The dialect of a checkpoint: the first that knows its own marks. There always is one, since the last takes any.
pub fn choose(checkpoint: &Checkpoint<'_>) -> &'static Dialect {
    ALL.iter().copied().find(|dialect| (dialect.known_by)(checkpoint)).unwrap_or(plain())
}

/// The dialect of a name, as `--dialect` gives it.
///
/// # Errors
/// There is none; the text lists all names.
pub fn by_name(name: &str) -> Result<&'static Dialect, String> {
    ALL.iter().copied().find(|dialect| dialect.name == name).ok_or_else(|| {
        let names: Vec<&str> = names().collect();
        format!("there is no dialect {name:?}; use one of {}", names.join(", "))
    })
}

/// The dialect in which everything is text.
pub fn plain() -> &'static Dialect {
    ALL[ALL.len() - 1]
}

/// The names of all dialects.
pub fn names() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|dialect| dialect.name)
}
