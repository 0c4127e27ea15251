//! A request's JSON to its fields, in one pass and in bounded memory.
//!
//! Owns: what a client may write (integers as `100.0`, a name twice, as Python's `json` takes them), how much of
//! it is kept, and errors that say where. Must never: build a tree of what nobody reads.

mod values;

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;

use minisgl_proto::integers;
use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use crate::error::ApiError;
use crate::fields::{Route, Verdict, find};
pub use values::{Exact, Int, List, Node, Object, push_below};

/// Values, names and elements of messages, tools and the like that one request may hold.
pub const NODES_MAX: usize = 100_000;
/// Elements of a short list that are read before its own limit is looked at.
pub const SHORT_LIST_MAX: usize = 4096;
/// Bytes that one of them takes at most, beside its text: a map of one field.
pub const NODE_BYTES: usize = 192;

thread_local! {
    /// What the request that this thread reads may still hold.
    static NODES_LEFT: Cell<usize> = const { Cell::new(NODES_MAX) };
    /// Whether that request may have integers of more than 64 bits.
    static LARGE: Cell<bool> = const { Cell::new(true) };
}

/// Takes one of the request's values.
///
/// # Errors
/// There are too many.
fn spend_node<E: Error>() -> Result<(), E> {
    let left = NODES_LEFT.get();
    if left == 0 {
        let message = format!(
            "the request has more than {NODES_MAX} JSON values in messages, tools and the like; send less at once"
        );
        return Err(E::custom(message));
    }
    NODES_LEFT.set(left - 1);
    Ok(())
}

/// Takes as many of the request's values as a text of so many bytes is worth: one that no body brought.
///
/// # Errors
/// 400: it is too much.
pub fn spend_text(bytes: usize) -> Result<(), ApiError> {
    let worth = bytes.div_ceil(NODE_BYTES);
    let left = NODES_LEFT.get();
    NODES_LEFT.set(left.saturating_sub(worth));
    if worth > left {
        return Err(ApiError::invalid(
            "the conversation that this request goes on with is too large; send less at once",
        ));
    }
    Ok(())
}

/// A set of fields that a request may have.
pub trait Fields: Default + Send + 'static {
    /// Reads the value of the field `name`, if it is one of these. Of several values the last counts; null is as
    /// absent.
    ///
    /// # Errors
    /// The value is of the wrong type.
    fn take<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<bool, A::Error>;

    /// Their names.
    fn names() -> Vec<&'static str>;
}

/// Declares a set of fields: `name: Type` is an optional field; behind `with` are other sets.
macro_rules! fields {
    (
        $(#[$doc:meta])*
        $vis:vis struct $name:ident {
            $($(#[$field_doc:meta])* $field:ident: $type:ty,)*
        }
        $(with { $($set:ident: $set_type:ty,)* })?
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default)]
        $vis struct $name {
            $($(#[$field_doc])* $field: Option<$type>,)*
            $($($set: $set_type,)*)?
        }

        impl $crate::json::Fields for $name {
            fn take<'de, A: serde::de::MapAccess<'de>>(
                &mut self,
                name: &str,
                map: &mut A,
            ) -> Result<bool, A::Error> {
                match name {
                    $(stringify!($field) => self.$field = map.next_value()?,)*
                    _ => return Ok(false $($(|| self.$set.take(name, map)?)*)?),
                }
                Ok(true)
            }

            fn names() -> Vec<&'static str> {
                #[allow(unused_mut, reason = "not every set has sets")]
                let mut names = vec![$(stringify!($field),)*];
                $($(names.extend(<$set_type as $crate::json::Fields>::names());)*)?
                names
            }
        }
    };
}
pub(crate) use fields;

/// Names of fields that nobody knows, which are kept for the log.
const UNKNOWN_MAX: usize = 8;
/// Characters of such a name.
const UNKNOWN_CHARS_MAX: usize = 40;

/// What was read of an object.
#[derive(Clone, Debug, Default)]
struct Read<F> {
    fields: F,
    /// A field that is refused, and why.
    refused: Option<(&'static str, &'static str)>,
    unknown: Vec<String>,
}

struct ObjectVisitor<F>(Route, PhantomData<F>);

impl<'de, F: Fields> Visitor<'de> for ObjectVisitor<F> {
    type Value = Read<F>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Read<F>, A::Error> {
        let mut read = Read { fields: F::default(), refused: None, unknown: Vec::new() };
        while let Some(name) = map.next_key::<String>()? {
            // Looking for a name takes a while; so many are no request's.
            spend_node()?;
            if read.fields.take(&name, &mut map)? {
                continue;
            }
            match find(&name, self.0).map(|field| (field.name, field.verdict)) {
                Some((name, Verdict::Refused { unless, why })) => {
                    let Node(value) = map.next_value()?;
                    if !is_nothing(&value) && !unless(&value) {
                        read.refused = read.refused.or(Some((name, why)));
                    }
                }
                Some((_, Verdict::Harmless(_) | Verdict::Built(_))) => {
                    map.next_value::<IgnoredAny>()?;
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                    if read.unknown.len() < UNKNOWN_MAX {
                        read.unknown.push(name.chars().take(UNKNOWN_CHARS_MAX).collect());
                    }
                }
            }
        }
        Ok(read)
    }
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

/// A set of fields with a column of its own in the table of fields.
pub trait Column: Fields {
    /// Which.
    const ROUTE: Route;
}

/// SGLang's `sampling_params` and Ollama's `options`: an object in the object, with a column of its own.
#[derive(Clone, Debug, Default)]
pub struct Nested<F>(Read<F>);

impl<F> Nested<F> {
    /// The fields.
    ///
    /// # Errors
    /// 400: one is refused; `outer` is the name of the object.
    pub fn checked(self, outer: &str) -> Result<F, ApiError> {
        match self.0.refused {
            None => Ok(self.0.fields),
            Some((name, why)) => Err(refusal(&format!("{outer}.{name}"), why)),
        }
    }
}

impl<'de, F: Column> Deserialize<'de> for Nested<F> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(F::ROUTE, PhantomData)).map(Nested)
    }
}

/// A set of fields that forms an object of its own inside the request; other names in it are ignored.
#[derive(Clone, Copy, Debug, Default)]
pub struct Inner<F>(pub F);

struct InnerVisitor<F>(PhantomData<F>);

impl<'de, F: Fields> Visitor<'de> for InnerVisitor<F> {
    type Value = Inner<F>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Inner<F>, A::Error> {
        let mut fields = F::default();
        while let Some(name) = map.next_key::<String>()? {
            if !fields.take(&name, &mut map)? {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(Inner(fields))
    }
}

impl<'de, F: Fields> Deserialize<'de> for Inner<F> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(InnerVisitor(PhantomData))
    }
}

fn refusal(name: &str, why: &str) -> ApiError {
    ApiError::unsupported(name, format!("{name} is not supported; {why}"))
}

/// Reads a request's body. Also tells about how many bytes its fields take beside their text.
///
/// # Errors
/// 400: not UTF-8 (says at which byte), not JSON (line and column), a field of the wrong type (`param` names it),
/// or one that is refused.
pub fn read<F: Fields>(body: &[u8], route: Route) -> Result<(F, usize), ApiError> {
    let text = std::str::from_utf8(body).map_err(|why| {
        ApiError::invalid(format!(
            "the request body is not valid UTF-8: byte {} does not belong there",
            why.valid_up_to()
        ))
        .with_code("invalid_json")
    })?;
    let (read, bytes) = counted(|| read_object::<F>(text, route));
    let read = read?;
    if !read.unknown.is_empty() {
        tracing::debug!(fields = ?read.unknown, "fields that are not known were ignored");
    }
    match read.refused {
        None => Ok((read.fields, bytes)),
        Some((name, why)) => Err(refusal(name, why)),
    }
}

/// Does something with a new allowance of [`NODES_MAX`]; also tells about how many bytes what it read takes beside
/// its text.
pub fn counted<T>(work: impl FnOnce() -> T) -> (T, usize) {
    NODES_LEFT.set(NODES_MAX);
    let done = work();
    (done, (NODES_MAX - NODES_LEFT.get()) * NODE_BYTES)
}

fn read_object<F: Fields>(text: &str, route: Route) -> Result<Read<F>, ApiError> {
    LARGE.set(integers::may_have(text));
    let mut json = serde_json::Deserializer::from_str(text);
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(&mut json, &mut track);
    let read = tracked.deserialize_map(ObjectVisitor::<F>(route, PhantomData));
    let read = read.map_err(|why| {
        let path = track.path().to_string();
        explain(&why, (path != ".").then_some(path))
    })?;
    json.end().map_err(|why| explain(&why, None))?;
    Ok(read)
}

fn explain(why: &serde_json::Error, path: Option<String>) -> ApiError {
    if !why.is_data() {
        return ApiError::invalid(format!("the request body is not valid JSON: {why}"))
            .with_code("invalid_json");
    }
    match path {
        Some(path) => {
            let message = format!("{path}: {why}");
            ApiError::field(path, message).with_code("invalid_type")
        }
        None => ApiError::invalid(format!("the request body is not as expected: {why}"))
            .with_code("invalid_type"),
    }
}

/// Appends a value's JSON.
pub fn put<T: serde::Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(out, value)
        .expect("a vector takes all bytes, and no key is other than a string");
}

#[cfg(test)]
mod tests {
    use super::*;

    fields! {
        struct InnerFields { b: Int, }
    }
    fields! {
        struct Outer { a: Int, list: List<Int, 2>, any: Node, }
        with { inner: InnerFields, }
    }

    fn of(body: &str) -> Result<Outer, ApiError> {
        read::<Outer>(body.as_bytes(), Route::Chat).map(|(fields, _)| fields)
    }

    #[test]
    fn whole_numbers_are_taken_as_python_writes_them() {
        let int = |body: &str| of(body).map(|outer| outer.a.map(|Int(value)| value));
        assert_eq!(int(r#"{"a": 100.0}"#).unwrap(), Some(100));
        assert_eq!(int(r#"{"a": -1e2}"#).unwrap(), Some(-100));
        assert_eq!(int(r#"{"a": null}"#).unwrap(), None);
        for wrong in ["1.5", "1e30", "\"1\"", "true", "18446744073709551615"] {
            let error = int(&format!(r#"{{"a": {wrong}}}"#)).unwrap_err();
            assert_eq!((error.param.as_deref(), error.code), (Some("a"), Some("invalid_type")));
        }
    }

    #[test]
    fn of_a_name_that_comes_twice_the_last_counts() {
        let outer = of(r#"{"a": 1, "b": 5, "any": {"x": 1, "x": 2}, "a": 2, "b": 6}"#).unwrap();
        assert_eq!((outer.a, outer.inner.b), (Some(Int(2)), Some(Int(6))));
        assert_eq!(outer.any.unwrap().0, serde_json::json!({"x": 2}));
        assert_eq!(of(r#"{"a": 1, "a": null}"#).unwrap().a, None);
        assert_eq!(Outer::names(), ["a", "list", "any", "b"]);
    }

    #[test]
    fn what_is_kept_is_bounded_and_what_nobody_reads_is_not_kept() {
        let empty_lists = vec!["[]"; NODES_MAX].join(",");
        let error = of(&format!(r#"{{"any": [{empty_lists}]}}"#)).unwrap_err();
        assert!(error.message.contains("100000 JSON values"), "{error}");
        assert_eq!(of(r#"{"list": [1, 2, 3]}"#).unwrap_err().param.unwrap(), "list");
        let (_, bytes) = read::<Outer>(b"{\"any\": [1, {\"a\": 2}]}", Route::Chat).unwrap();
        assert_eq!(bytes, 5 * NODE_BYTES, "the name, the list and what is in it");
        let unread = format!(r#"{{"nobody_reads_this": [{empty_lists}]}}"#);
        assert_eq!(read::<Outer>(unread.as_bytes(), Route::Chat).unwrap().1, NODE_BYTES);
        let names = vec![r#""x":1"#; NODES_MAX + 1].join(",");
        assert!(of(&format!("{{{names}}}")).is_err());
    }

    #[test]
    fn floats_keep_their_digits() {
        let body = r#"{"any":[21.900000000000002,0.9205746819217139,1e16,0.1,5e-324,1.7976931348623157e308]}"#;
        let Node(any) = of(body).unwrap().any.unwrap();
        assert_eq!(
            any.to_string(),
            "[21.900000000000002,0.9205746819217139,1e+16,0.1,5e-324,1.7976931348623157e+308]"
        );
    }
}
