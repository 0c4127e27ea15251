//! Reading one JSON object key by key, with errors that name file, key, value and remedy.

use std::fmt::Display;
use std::fs::File;
use std::io::Read;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use serde_json::{Map, Value};

/// A configuration file is not larger than this.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// A value is quoted in an error up to this many characters.
const QUOTE_CHARS_MAX: usize = 120;

/// Why a folder's configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Missing or unreadable.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Too large to be what it should be.
    #[error("{} is larger than {limit} bytes: it is not a model configuration", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Bytes at most.
        limit: u64,
    },
    /// Not JSON, or not an object.
    #[error("{} is not a JSON object: {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        reason: String,
    },
    /// A key that must be there is not.
    #[error("{}: \"{key}\" is missing", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The key, with its parent if it has one.
        key: String,
    },
    /// A value of the wrong type or out of bounds.
    #[error("{}: \"{key}\" is {value}: it must be {expected}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The key, with its parent if it has one.
        key: String,
        /// What it says.
        value: String,
        /// What it may say.
        expected: String,
    },
    /// A value that asks for arithmetic that is not implemented.
    #[error("{}: \"{key}\" is {value}, which is not supported; supported: {supported}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The key, with its parent if it has one.
        key: String,
        /// What it says.
        value: String,
        /// What it may say.
        supported: String,
    },
}

/// One JSON object and where it stands. A key whose value is `null` counts as absent.
#[derive(Clone)]
pub(super) struct Fields {
    path: PathBuf,
    parent: String,
    map: Map<String, Value>,
}

impl Fields {
    /// Reads a file that holds one object.
    pub(super) fn read(path: PathBuf) -> Result<Fields, ConfigError> {
        let mut bytes = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
            .map_err(|source| ConfigError::Read { path: path.clone(), source })?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(ConfigError::TooLarge { path, limit: FILE_BYTES_MAX });
        }
        match serde_json::from_slice(&bytes) {
            Ok(map) => Ok(Fields { path, parent: String::new(), map }),
            Err(error) => Err(ConfigError::Json { path, reason: error.to_string() }),
        }
    }

    /// As `read`, but a file that does not exist is `None`.
    pub(super) fn read_if_there(path: PathBuf) -> Result<Option<Fields>, ConfigError> {
        match Fields::read(path) {
            Err(ConfigError::Read { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                Ok(None)
            }
            other => other.map(Some),
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// All keys, in the file's order or that of their names.
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.map.keys().map(String::as_str)
    }

    /// Whether there is no key.
    pub(super) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// The value says null, in so many letters.
    pub(super) fn is_null(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(Value::is_null)
    }

    pub(super) fn object(&self, key: &str) -> Result<Option<Fields>, ConfigError> {
        self.typed(key, "an object", |value| value.as_object().cloned()).map(|found| {
            found.map(|map| Fields { path: self.path.clone(), parent: self.full(key), map })
        })
    }

    pub(super) fn string(&self, key: &str) -> Result<Option<&str>, ConfigError> {
        self.typed(key, "a string", Value::as_str)
    }

    pub(super) fn bool(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub(super) fn integer(
        &self,
        key: &str,
        bounds: RangeInclusive<usize>,
    ) -> Result<Option<usize>, ConfigError> {
        let expected = format!("an integer from {} to {}", bounds.start(), bounds.end());
        self.typed(key, &expected, |value| {
            let value = usize::try_from(value.as_u64()?).ok()?;
            bounds.contains(&value).then_some(value)
        })
    }

    pub(super) fn number(
        &self,
        key: &str,
        bounds: RangeInclusive<f64>,
    ) -> Result<Option<f64>, ConfigError> {
        let expected = format!("a number from {:?} to {:?}", bounds.start(), bounds.end());
        self.typed(key, &expected, |value| value.as_f64().filter(|value| bounds.contains(value)))
    }

    /// The value, if there is one and `read` takes it.
    pub(super) fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match read(value) {
                Some(read) => Ok(Some(read)),
                None => Err(self.invalid(key, expected)),
            },
        }
    }

    pub(super) fn required<T>(&self, key: &str, found: Option<T>) -> Result<T, ConfigError> {
        found.ok_or_else(|| ConfigError::Missing { path: self.path.clone(), key: self.full(key) })
    }

    pub(super) fn invalid(&self, key: &str, expected: impl Display) -> ConfigError {
        ConfigError::Invalid {
            path: self.path.clone(),
            key: self.full(key),
            value: self.quote(key),
            expected: expected.to_string(),
        }
    }

    pub(super) fn unsupported(&self, key: &str, supported: impl Display) -> ConfigError {
        ConfigError::Unsupported {
            path: self.path.clone(),
            key: self.full(key),
            value: self.quote(key),
            supported: supported.to_string(),
        }
    }

    fn full(&self, key: &str) -> String {
        if self.parent.is_empty() { key.to_owned() } else { format!("{}.{key}", self.parent) }
    }

    fn quote(&self, key: &str) -> String {
        let text = self.map.get(key).map_or("absent".to_owned(), Value::to_string);
        if text.chars().count() <= QUOTE_CHARS_MAX {
            return text;
        }
        text.chars().take(QUOTE_CHARS_MAX).chain("...".chars()).collect()
    }
}
