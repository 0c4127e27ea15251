//! `-o`, which every command has.

use std::ffi::OsStr;
use std::path::PathBuf;

use clap::ValueEnum;
use clap::builder::{PossibleValue, TypedValueParser};

/// For people or for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// For programs
    Json,
}

/// What `-o` was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// One of the formats.
    Format(Format),
    /// Something else: of `batch` the file of answers, as `-o` was before every command had it.
    File(PathBuf),
}

/// Reads it.
#[derive(Clone)]
pub struct OutputParser;

impl TypedValueParser for OutputParser {
    type Value = Output;

    fn parse_ref(
        &self,
        _: &clap::Command,
        _: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<Output, clap::Error> {
        let format = value.to_str().and_then(|value| Format::from_str(value, false).ok());
        Ok(format.map_or_else(|| Output::File(value.into()), Output::Format))
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let values = Format::value_variants().iter();
        Some(Box::new(values.filter_map(Format::to_possible_value)))
    }
}
