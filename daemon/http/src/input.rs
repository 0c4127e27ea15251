//! Bare prompts: text, token ids, or batches of either.
//!
//! Owns: telling the four forms apart without a detour through a JSON tree, which for a body full of
//! token ids would be many times its size. Must never: keep more prompts or token ids than a model could take.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Unexpected, Visitor};

use crate::error::ApiError;
use crate::json::{Int, push_below};
use crate::sampling::bad_token;

/// Prompts that are read before the limit of one request is looked at.
const PROMPTS_READ_MAX: usize = 4096;
/// Token ids of one prompt: the longest context there is.
const TOKENS_MAX: usize = 16 << 20;

/// Token ids as a client wrote them. One that is no id is kept beside, for the error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    ids: Vec<u32>,
    bad: Option<i64>,
}

impl Ids {
    fn push<E: Error>(&mut self, Int(id): Int) -> Result<(), E> {
        match u32::try_from(id) {
            Ok(id) => push_below(&mut self.ids, id, TOKENS_MAX),
            Err(_) => {
                self.bad = self.bad.or(Some(id));
                Ok(())
            }
        }
    }

    /// They, if all are in the vocabulary.
    ///
    /// # Errors
    /// 400: one is outside.
    pub fn checked(self, param: &str, vocab_size: u32) -> Result<Vec<u32>, ApiError> {
        let outside = || self.ids.iter().find(|&&id| id >= vocab_size).map(|&id| id.into());
        match self.bad.or_else(outside) {
            Some(id) => Err(bad_token(param, id, vocab_size)),
            None => Ok(self.ids),
        }
    }
}

impl<'de> Deserialize<'de> for Ids {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Ids, D::Error> {
        deserializer.deserialize_seq(IdsVisitor)
    }
}

struct IdsVisitor;

impl<'de> Visitor<'de> for IdsVisitor {
    type Value = Ids;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of token ids")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Ids, A::Error> {
        let mut ids = Ids::default();
        while let Some(id) = list.next_element()? {
            ids.push(id)?;
        }
        Ok(ids)
    }
}

/// What a client gave as prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A string.
    Text(String),
    /// A list of strings, at least one.
    Texts(Vec<String>),
    /// A list of token ids, at least one.
    Tokens(Ids),
    /// A list of lists of token ids, at least one.
    TokenLists(Vec<Ids>),
}

/// One prompt, before it is tokenized.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Text.
    Text(String),
    /// Token ids of the vocabulary.
    Tokens(Vec<u32>),
}

impl Input {
    /// Whether the client gave a list of prompts.
    pub fn is_batch(&self) -> bool {
        matches!(self, Input::Texts(_) | Input::TokenLists(_))
    }

    /// The prompts one by one.
    ///
    /// # Errors
    /// 400: there are too many, or an id is outside of the vocabulary.
    pub fn checked(
        self,
        param: &str,
        vocab_size: u32,
        prompts_max: usize,
    ) -> Result<Vec<Prompt>, ApiError> {
        let count = match &self {
            Input::Text(_) | Input::Tokens(_) => 1,
            Input::Texts(texts) => texts.len(),
            Input::TokenLists(lists) => lists.len(),
        };
        if count > prompts_max {
            let message = format!("{param}: at most {prompts_max} prompts fit into one request");
            return Err(ApiError::field(param, message));
        }
        match self {
            Input::Text(text) => Ok(vec![Prompt::Text(text)]),
            Input::Texts(texts) => Ok(texts.into_iter().map(Prompt::Text).collect()),
            Input::Tokens(ids) => Ok(vec![Prompt::Tokens(ids.checked(param, vocab_size)?)]),
            Input::TokenLists(lists) => {
                let list = |(at, ids): (usize, Ids)| {
                    ids.checked(&format!("{param}[{at}]"), vocab_size).map(Prompt::Tokens)
                };
                lists.into_iter().enumerate().map(list).collect()
            }
        }
    }
}

/// The first element of a list, which tells what the others are.
enum First {
    Text(String),
    Token(Int),
    Tokens(Ids),
}

const EXPECTED: &str = "a string, a list of strings, or one or more lists of token ids";

struct FirstVisitor;

impl<'de> Visitor<'de> for FirstVisitor {
    type Value = First;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a token id or a list of token ids")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<First, E> {
        Ok(First::Text(text.to_string()))
    }

    fn visit_i64<E: Error>(self, id: i64) -> Result<First, E> {
        Ok(First::Token(Int(id)))
    }

    fn visit_u64<E: Error>(self, id: u64) -> Result<First, E> {
        i64::try_from(id)
            .map(|id| First::Token(Int(id)))
            .map_err(|_| E::invalid_value(Unexpected::Unsigned(id), &self))
    }

    fn visit_f64<E: Error>(self, id: f64) -> Result<First, E> {
        use serde::de::IntoDeserializer;
        Int::deserialize(id.into_deserializer()).map(First::Token)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<First, A::Error> {
        IdsVisitor.visit_seq(list).map(First::Tokens)
    }
}

impl<'de> Deserialize<'de> for First {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<First, D::Error> {
        deserializer.deserialize_any(FirstVisitor)
    }
}

struct InputVisitor;

impl<'de> Visitor<'de> for InputVisitor {
    type Value = Input;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(EXPECTED)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Input, E> {
        Ok(Input::Text(text.to_string()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Input, A::Error> {
        fn rest<'de, A: SeqAccess<'de>, T: Deserialize<'de>>(
            first: T,
            mut list: A,
        ) -> Result<Vec<T>, A::Error> {
            let mut all = vec![first];
            while let Some(next) = list.next_element()? {
                push_below(&mut all, next, PROMPTS_READ_MAX)?;
            }
            Ok(all)
        }
        let mut list = list;
        match list.next_element()? {
            None => Err(A::Error::invalid_length(0, &self)),
            Some(First::Text(text)) => rest(text, list).map(Input::Texts),
            Some(First::Token(first)) => {
                let mut ids = Ids::default();
                ids.push(first)?;
                while let Some(id) = list.next_element()? {
                    ids.push(id)?;
                }
                Ok(Input::Tokens(ids))
            }
            Some(First::Tokens(tokens)) => rest(tokens, list).map(Input::TokenLists),
        }
    }
}

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Input, D::Error> {
        deserializer.deserialize_any(InputVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_prompts_are_kept_than_a_request_may_have() {
        let many = format!("[{}]", vec!["[]"; PROMPTS_READ_MAX + 1].join(","));
        let error = serde_json::from_str::<Input>(&many).unwrap_err().to_string();
        assert!(error.contains("at most 4096"), "{error}");
    }

    #[test]
    fn four_forms() {
        let read = |json: &str| serde_json::from_str::<Input>(json);
        assert_eq!(read("\"a\\n\"").unwrap(), Input::Text("a\n".into()));
        assert_eq!(read("[\"a\", \"b\"]").unwrap(), Input::Texts(vec!["a".into(), "b".into()]));
        let ids = |ids: &[u32], bad| Ids { ids: ids.to_vec(), bad };
        assert_eq!(read("[1, -2]").unwrap(), Input::Tokens(ids(&[1], Some(-2))));
        assert_eq!(read("[1.0, 2.0]").unwrap(), Input::Tokens(ids(&[1, 2], None)));
        let lists = vec![ids(&[1], None), ids(&[], None)];
        assert_eq!(read("[[1], []]").unwrap(), Input::TokenLists(lists));
        for wrong in ["[]", "5", "{}", "[1, \"a\"]", "[\"a\", 1]", "[1.5]", "[[1], 2]", "true"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
