//! The forms in which clients write stop strings and biases.

use std::collections::BTreeMap;
use std::fmt;

use minisgl_proto::limits::LOGIT_BIAS_MAX;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::json::{SHORT_LIST_MAX, push_below};

/// One string or several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OneOrMany {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

struct OneOrManyVisitor;

impl<'de> Visitor<'de> for OneOrManyVisitor {
    type Value = OneOrMany;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a list of strings")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<OneOrMany, E> {
        Ok(OneOrMany::One(text.to_string()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<OneOrMany, A::Error> {
        let mut many = Vec::new();
        while let Some(next) = list.next_element()? {
            push_below(&mut many, next, SHORT_LIST_MAX)?;
        }
        Ok(OneOrMany::Many(many))
    }
}

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OneOrManyVisitor)
    }
}

/// What is added to the logits of tokens, by token id in decimal.
#[derive(Clone, Debug, Default)]
pub struct Biases(pub BTreeMap<String, f64>);

struct BiasesVisitor;

impl<'de> Visitor<'de> for BiasesVisitor {
    type Value = Biases;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of numbers by token id")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Biases, A::Error> {
        let mut biases = BTreeMap::new();
        while let Some((token, bias)) = map.next_entry()? {
            biases.insert(token, bias);
            if biases.len() > SHORT_LIST_MAX {
                return Err(A::Error::custom(format!(
                    "at most {LOGIT_BIAS_MAX} tokens can be biased"
                )));
            }
        }
        Ok(Biases(biases))
    }
}

impl<'de> Deserialize<'de> for Biases {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(BiasesVisitor)
    }
}
