//! Values of a request's JSON, in the forms that clients write and in bounded memory.

use std::fmt;
use std::marker::PhantomData;

use minisgl_proto::integers;
use serde::de::{
    Deserialize, DeserializeOwned, Deserializer, Error, MapAccess, SeqAccess, Visitor,
};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::{LARGE, spend_node};

/// A whole number, also written `100.0`, as pydantic takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Int(pub i64);

struct IntVisitor;

impl Visitor<'_> for IntVisitor {
    type Value = Int;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number")
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Int, E> {
        Ok(Int(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Int, E> {
        i64::try_from(value).map(Int).map_err(|_| E::custom(format!("{value} is too large")))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Int, E> {
        // Beyond 2^53 a float does not say which whole number it was.
        if value.fract() == 0.0 && value.abs() <= (1_u64 << 53) as f64 {
            Ok(Int(value as i64))
        } else {
            Err(E::custom(format!("{value} is not a whole number of up to 2^53")))
        }
    }
}

impl<'de> Deserialize<'de> for Int {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(IntVisitor)
    }
}

/// A list of at most `MAX` elements.
#[derive(Clone, Debug)]
pub struct List<T, const MAX: usize>(pub Vec<T>);

struct ListVisitor<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for ListVisitor<T, MAX> {
    type Value = List<T, MAX>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut all = Vec::new();
        while let Some(next) = list.next_element()? {
            push_below(&mut all, next, MAX)?;
        }
        Ok(List(all))
    }
}

/// Appends to a list of at most `max` elements.
///
/// # Errors
/// It has as many already.
pub fn push_below<T, E: Error>(list: &mut Vec<T>, next: T, max: usize) -> Result<(), E> {
    if list.len() >= max {
        return Err(E::custom(format!("at most {max} elements are allowed")));
    }
    list.push(next);
    Ok(())
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for List<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ListVisitor(PhantomData))
    }
}

/// A JSON value of any kind; it and all that is in it count against [`NODES_MAX`](super::NODES_MAX).
#[derive(Clone, Debug)]
pub struct Node(pub Value);

/// A JSON object, counted likewise.
#[derive(Clone, Debug, Default)]
pub struct Object(pub Map<String, Value>);

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Node, E> {
        Ok(Node(Value::Null))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Node, E> {
        Ok(Node(value.into()))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Node, E> {
        Ok(Node(value.into()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Node, E> {
        Ok(Node(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Node, E> {
        Ok(Node(value.into()))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Node, E> {
        Ok(Node(text.into()))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Node, E> {
        Ok(Node(text.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(Node(item)) = list.next_element()? {
            items.push(item);
        }
        Ok(Node(items.into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Node, A::Error> {
        ObjectOfNodes.visit_map(map).map(|Object(fields)| Node(fields.into()))
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        spend_node()?;
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct ObjectOfNodes;

impl<'de> Visitor<'de> for ObjectOfNodes {
    type Value = Object;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
        let mut fields = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            let Node(value) = map.next_value()?;
            fields.insert(name, value);
        }
        Ok(Object(fields))
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        spend_node()?;
        deserializer.deserialize_map(ObjectOfNodes)
    }
}

/// A value that a template sees: its integers keep all their digits (see [`integers`]), as in Python.
#[derive(Clone, Debug, Default)]
pub struct Exact<T>(pub T);

impl<'de, T: DeserializeOwned> Deserialize<'de> for Exact<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if !LARGE.get() {
            return T::deserialize(deserializer).map(Exact);
        }
        let text = <&RawValue>::deserialize(deserializer)?.get();
        let read = serde_json::from_str(&integers::mark(text));
        read.map(Exact).map_err(|why| {
            // Its line and column are those of the value, not of the body.
            let why = why.to_string();
            D::Error::custom(why.rsplit_once(" at line ").map_or(&*why, |(what, _)| what))
        })
    }
}
