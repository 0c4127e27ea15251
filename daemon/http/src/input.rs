//! Bare prompts: text, token ids, or batches of either.
//!
//! Owns: telling the four forms apart without a detour through a JSON tree, which for a body full of
//! token ids would be many times its size.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Unexpected, Visitor};

use crate::error::ApiError;
use crate::sampling::bad_token;

/// What a client gave as prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A string.
    Text(String),
    /// A list of strings, at least one.
    Texts(Vec<String>),
    /// A list of token ids, at least one.
    Tokens(Vec<i64>),
    /// A list of lists of token ids, at least one.
    TokenLists(Vec<Vec<i64>>),
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
        let ids = |param: &str, ids: &[i64]| token_ids(param, ids, vocab_size).map(Prompt::Tokens);
        match self {
            Input::Text(text) => Ok(vec![Prompt::Text(text)]),
            Input::Texts(texts) => Ok(texts.into_iter().map(Prompt::Text).collect()),
            Input::Tokens(tokens) => Ok(vec![ids(param, &tokens)?]),
            Input::TokenLists(lists) => {
                let list = |(at, list): (usize, &Vec<i64>)| ids(&format!("{param}[{at}]"), list);
                lists.iter().enumerate().map(list).collect()
            }
        }
    }
}

/// Checks token ids against the vocabulary.
///
/// # Errors
/// 400: one is outside.
pub fn token_ids(param: &str, ids: &[i64], vocab_size: u32) -> Result<Vec<u32>, ApiError> {
    let checked = |&id: &i64| match u32::try_from(id) {
        Ok(id) if id < vocab_size => Ok(id),
        _ => Err(bad_token(param, id, vocab_size)),
    };
    ids.iter().map(checked).collect()
}

/// The first element of a list, which tells what the others are.
enum First {
    Text(String),
    Token(i64),
    Tokens(Vec<i64>),
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
        Ok(First::Token(id))
    }

    fn visit_u64<E: Error>(self, id: u64) -> Result<First, E> {
        i64::try_from(id)
            .map(First::Token)
            .map_err(|_| E::invalid_value(Unexpected::Unsigned(id), &self))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<First, A::Error> {
        let mut tokens = Vec::new();
        while let Some(token) = list.next_element()? {
            tokens.push(token);
        }
        Ok(First::Tokens(tokens))
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
                all.push(next);
            }
            Ok(all)
        }
        let mut list = list;
        match list.next_element()? {
            None => Err(A::Error::invalid_length(0, &self)),
            Some(First::Text(text)) => rest(text, list).map(Input::Texts),
            Some(First::Token(token)) => rest(token, list).map(Input::Tokens),
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
    fn four_forms() {
        let read = |json: &str| serde_json::from_str::<Input>(json);
        assert_eq!(read("\"a\\n\"").unwrap(), Input::Text("a\n".into()));
        assert_eq!(read("[\"a\", \"b\"]").unwrap(), Input::Texts(vec!["a".into(), "b".into()]));
        assert_eq!(read("[1, -2]").unwrap(), Input::Tokens(vec![1, -2]));
        assert_eq!(read("[[1], []]").unwrap(), Input::TokenLists(vec![vec![1], vec![]]));
        for wrong in ["[]", "5", "{}", "[1, \"a\"]", "[\"a\", 1]", "[1.5]", "[[1], 2]", "true"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
