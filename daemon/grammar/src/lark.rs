//! A grammar in Lark, taken apart as far as its limits need it: the schemas behind `%json`, and what stands around them.
//!
//! ```text
//!   start: "a: " %json {"type": "integer"} /[ "]/     # a comment
//!   '--- between -----'--- a schema -----'-- between -----------'
//! ```
//!
//! Owns: knowing where a text, an expression or a comment ends, as llguidance's lexer does: a schema must not hide in one, nor a sign.
//! What that lexer refuses it may misread. Must never: judge a grammar.

use serde::de::IgnoredAny;
use serde_json::{Deserializer, Value};

/// See the file's head.
pub(crate) struct Lark<'a> {
    /// What stands around the schemas, one piece more than there are schemas. The keyword is the end of the piece before.
    between: Vec<&'a str>,
    pub(crate) schemas: Vec<Value>,
    /// Bytes outside of schemas, texts, expressions, names of tokens and comments.
    signs: Vec<u8>,
}

/// A key of llguidance's, by which whoever wrote a schema could set its options.
pub(crate) const OPTIONS: &str = "x-guidance";

/// Keywords that a JSON value stands behind.
const JSON: &str = "%json";
const OTHERS: [&str; 2] = ["%regex", "%llguidance"];

impl<'a> Lark<'a> {
    /// Takes it apart.
    ///
    /// # Errors
    /// What stands behind a keyword is no JSON.
    pub(crate) fn read(text: &'a str) -> Result<Lark<'a>, String> {
        let mut lark = Lark { between: Vec::new(), schemas: Vec::new(), signs: Vec::new() };
        let (mut from, mut at) = (0, 0);
        while let Some(&byte) = text.as_bytes().get(at) {
            let rest = &text[at..];
            if rest.starts_with(JSON) {
                let begins = at + JSON.len();
                let (schema, bytes) = value::<Value>(JSON, &text[begins..])?;
                lark.between.push(&text[from..begins]);
                lark.schemas.push(schema);
                (from, at) = (begins + bytes, begins + bytes);
            } else if let Some(keyword) = OTHERS.iter().find(|word| rest.starts_with(**word)) {
                at += keyword.len();
                at += value::<IgnoredAny>(keyword, &text[at..])?.1;
            } else if let Some(bytes) = hidden(rest) {
                at += bytes;
            } else {
                lark.signs.push(byte);
                at += rest.chars().next().map_or(1, char::len_utf8);
            }
        }
        lark.between.push(&text[from..]);
        Ok(lark)
    }

    /// Bytes outside of schemas.
    pub(crate) fn bytes(&self) -> usize {
        self.between.iter().map(|piece| piece.len()).sum()
    }

    /// How often one of these signs stands where it means something.
    pub(crate) fn count(&self, signs: &[u8]) -> usize {
        self.signs.iter().filter(|sign| signs.contains(sign)).count()
    }

    /// Puts it together again.
    pub(crate) fn write(self) -> String {
        let mut schemas = self.schemas.iter();
        let mut text = String::new();
        for piece in self.between {
            text.push_str(piece);
            if let Some(schema) = schemas.next() {
                text.push(' ');
                text.push_str(&schema.to_string());
            }
        }
        text
    }
}

/// The value that stands there, and where it ends.
fn value<'a, T: serde::Deserialize<'a>>(
    keyword: &str,
    text: &'a str,
) -> Result<(T, usize), String> {
    let mut stream = Deserializer::from_str(text).into_iter::<T>();
    match stream.next() {
        Some(Ok(value)) => Ok((value, stream.byte_offset())),
        Some(Err(error)) => Err(format!("what stands behind {keyword} is no JSON: {error}")),
        None => Err(format!("nothing stands behind {keyword}")),
    }
}

/// Bytes of a text, an expression, a comment or the name of a token, where one begins.
fn hidden(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let closed = |closing: u8| {
        let mut at = 1;
        while let Some(&byte) = bytes.get(at) {
            match byte {
                b'\\' => at += 1,
                _ if byte == closing => return at + 1,
                _ => {}
            }
            at += 1;
        }
        bytes.len()
    };
    let line = || text.find('\n').unwrap_or(text.len());
    let end = match bytes.first()? {
        b'"' => closed(b'"'),
        b'/' if bytes.get(1) == Some(&b'/') => line(),
        b'/' => closed(b'/'),
        b'#' => line(),
        b'<' => text.find('>').map_or(text.len(), |at| at + 1),
        _ => return None,
    };
    // A backslash may have taken half of a character.
    (end.min(text.len())..=text.len()).find(|&end| text.is_char_boundary(end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn schemas_are_found_where_they_are_and_nowhere_else() {
        let text = "start: \"%json {1}\" /\"%json {2}\\/&/ %json {\"a\": \"}\\\"\"} <\"&%json> | %json[3]&\n\
            // %json {4} \"\n# /\n%llguidance {\"%json\": \"&\"}\nA: %regex{\"substring_words\": \"%json {5}\"} ~/é\\é/ %json true\n";
        let lark = Lark::read(text).unwrap();
        assert_eq!(lark.schemas, [json!({"a": "}\""}), json!([3]), json!(true)]);
        assert_eq!((lark.count(b":"), lark.count(b"&~"), lark.count(b"|")), (2, 2, 1));
        let schemas: usize =
            ["{\"a\": \"}\\\"\"}", "[3]", "true"].iter().map(|s| s.len() + 1).sum();
        assert_eq!(lark.bytes(), text.len() - schemas + 1);
        let again = lark.write();
        assert_eq!(Lark::read(&again).unwrap().schemas.len(), 3);
        assert!(again.contains("%json [3]&\n// %json {4} \""), "{again}");
    }

    #[test]
    fn what_is_no_json_is_told() {
        for text in ["start: %json {", "start: %json", "start: %json x", "start: %regex {"] {
            assert!(Lark::read(text).is_err(), "{text}");
        }
        for text in ["\"", "/", "/\\", "\"\\é", "<é", "<", "#", "//"] {
            assert_eq!(Lark::read(text).unwrap().bytes(), text.len(), "{text}");
        }
    }
}
