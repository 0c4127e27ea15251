//! Arguments of a call, bound to the names of its parameters.

use std::sync::Arc;

use super::value::Value;
use super::{Error, Result};

#[derive(Debug, Default)]
pub struct Args {
    pub positional: Vec<Value>,
    pub keyword: Vec<(Arc<str>, Value)>,
}

impl Args {
    /// The values of these parameters; an error for more arguments than that, or others.
    pub fn bind<const N: usize>(
        self,
        function: &str,
        names: [&str; N],
    ) -> Result<[Option<Value>; N]> {
        let mut bound = std::array::from_fn(|_| None);
        if self.positional.len() > N {
            let given = self.positional.len();
            return Err(Error::failed(format!(
                "{function}() takes {N} arguments at most, {given} are given"
            )));
        }
        for (place, value) in bound.iter_mut().zip(self.positional) {
            *place = Some(value);
        }
        for (name, value) in self.keyword {
            let Some(at) = names.iter().position(|known| *known == &*name) else {
                return Err(Error::failed(format!(
                    "{function}() got an unexpected keyword argument '{name}'"
                )));
            };
            if bound[at].replace(value).is_some() {
                return Err(Error::failed(format!(
                    "{function}() got multiple values for argument '{name}'"
                )));
            }
        }
        Ok(bound)
    }
}

/// A whole number, or what stands for it when there is none.
pub fn int_or(value: Option<Value>, default: i128) -> Result<i128> {
    match value {
        None | Some(Value::None) => Ok(default),
        Some(value) => match value.as_int() {
            Some(number) => Ok(number),
            None => Err(Error::failed(format!(
                "'{}' object cannot be interpreted as an integer",
                value.type_name()
            ))),
        },
    }
}

/// A count of characters or items.
pub fn count_or(value: Option<Value>, default: usize) -> Result<usize> {
    let number = int_or(value, default as i128)?;
    Ok(usize::try_from(number.max(0)).unwrap_or(usize::MAX))
}

pub fn is_set(value: Option<Value>, default: bool) -> bool {
    value.map_or(default, |value| value.is_true())
}

/// A text, as Python's own functions take it.
pub fn text_of(value: Option<Value>, function: &str) -> Result<std::rc::Rc<str>> {
    match value {
        Some(Value::Str(text)) => Ok(text.text),
        Some(other) if other.is_undefined() => Err(other.undefined_error()),
        Some(other) => {
            Err(Error::failed(format!("{function}() needs a str, not '{}'", other.type_name())))
        }
        None => Err(args_missing(function)),
    }
}

/// The error of a call without an argument that it needs.
pub fn args_missing(name: &str) -> Error {
    Error::failed(format!("{name}() misses an argument"))
}

/// The error of a filter whose value is of the wrong type.
pub fn wrong(filter: &str, value: &Value) -> Error {
    if value.is_undefined() {
        return value.undefined_error();
    }
    Error::failed(format!(
        "the filter {filter} cannot take a value of type '{}'",
        value.type_name()
    ))
}
