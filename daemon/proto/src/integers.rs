//! Integers of more than 64 bits in JSON: Python's `json` keeps their digits, which [`serde_json::Value`] would round.
//!
//! Owns: the object that stands for one in a value, from the request to the template. Must never: change anything else
//! of a text.

use std::borrow::Cow;

use serde_json::Value;

/// Digits of an integer at most; Python refuses more. What has more stays as it is, and no JSON reader here takes it.
pub const DIGITS_MAX: usize = 4300;

/// Name of the one field of the object that stands for an integer. No request says it by accident, and one that does
/// gets the integer.
const NAME: &str = "\0integer";

/// Digits of the smallest integer that 64 bits do not hold.
const LARGE_DIGITS: usize = 19;

/// Whether [`mark`] may change something of a text: it has a long row of digits, or `-0`. A fast look.
pub fn may_have(text: &str) -> bool {
    let bytes = text.as_bytes();
    // Of every such row one of these is a part.
    let mut ends = (LARGE_DIGITS - 1..bytes.len()).step_by(LARGE_DIGITS);
    let is_digit = |at: &usize| bytes[*at].is_ascii_digit();
    ends.any(|at| {
        is_digit(&at) && {
            let before = (0..at).rev().take_while(is_digit).count();
            let after = (at + 1..bytes.len()).take_while(is_digit).take(LARGE_DIGITS).count();
            before + 1 + after >= LARGE_DIGITS
        }
    }) || text.contains("-0")
}

/// The text of a JSON value in which each integer of more than 64 bits is an object that [`marked`] knows; and `-0`,
/// which is an integer to Python, is 0. What is no JSON stays none.
pub fn mark(text: &str) -> Cow<'_, str> {
    if !may_have(text) {
        return Cow::Borrowed(text);
    }
    let bytes = text.as_bytes();
    let mut out = String::new();
    let (mut at, mut copied) = (0, 0);
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => at = end_of_string(bytes, at),
            b'-' | b'0'..=b'9' => {
                let start = at;
                at += 1;
                while bytes.get(at).is_some_and(is_of_number) {
                    at += 1;
                }
                let number = &text[start..at];
                if number == "-0" {
                    out.push_str(&text[copied..start]);
                    out.push('0');
                    copied = at;
                } else if is_large(number) {
                    out.push_str(&text[copied..start]);
                    out.push_str("{\"\\u0000integer\":\"");
                    out.push_str(number);
                    out.push_str("\"}");
                    copied = at;
                }
            }
            _ => at += 1,
        }
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(&text[copied..]);
    Cow::Owned(out)
}

/// The digits of the integer that this object stands for, with their sign.
pub fn marked(value: &Value) -> Option<&str> {
    let fields = value.as_object().filter(|fields| fields.len() == 1)?;
    fields.get(NAME)?.as_str().filter(|number| is_large(number))
}

fn is_of_number(byte: &u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-')
}

/// Whether this is how JSON writes an integer that 64 bits do not hold.
fn is_large(number: &str) -> bool {
    let digits = number.strip_prefix('-').unwrap_or(number);
    (LARGE_DIGITS..=DIGITS_MAX).contains(&digits.len())
        && digits.bytes().all(|byte| byte.is_ascii_digit())
        && !digits.starts_with('0')
        && number.parse::<i64>().is_err()
        && number.parse::<u64>().is_err()
}

/// Where a string that begins at `at` ends, or the text.
fn end_of_string(bytes: &[u8], mut at: usize) -> usize {
    at += 1;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Value {
        serde_json::from_str(&mark(text)).unwrap()
    }

    #[test]
    fn integers_of_more_than_64_bits_keep_their_digits() {
        for large in ["18446744073709551616", "-9223372036854775809", &"9".repeat(DIGITS_MAX)] {
            assert_eq!(marked(&read(large)), Some(large));
            for padding in 0..LARGE_DIGITS {
                assert!(may_have(&format!("{}{large}", "x".repeat(padding))), "{padding} {large}");
            }
            let inside = read(&format!(r#"[1, {{"a": {large}, "b": {large}}},{large}]"#));
            assert_eq!(inside[1].as_object().unwrap().len(), 2);
            let found = [&inside[1]["a"], &inside[1]["b"], &inside[2]].map(marked);
            assert_eq!(found, [Some(large); 3]);
        }
        assert_eq!(mark("[-0, -0.0, -0]"), "[0, -0.0, 0]");
    }

    #[test]
    fn all_else_stays_as_it_is() {
        let long = "1".repeat(DIGITS_MAX + 1);
        for text in [
            "",
            "[18446744073709551615, -9223372036854775808, 0, 7]",
            "123456789012345678901234567890.5",
            "1234567890123456789012e5",
            r#""123456789012345678901234567890""#,
            r#"{"a\"123456789012345678901234567890": "\\"}"#,
            r#""\"#,
            r#""é 123456789012345678901234567890"#,
            "012345678901234567890123456789",
            "--12345678901234567890123456789",
            &long,
        ] {
            assert!(matches!(mark(text), Cow::Borrowed(same) if same == text), "{text}");
        }
        assert!(!may_have("123456789012345678 123456789012345678, -1"));
        let shown = read(r#"{"\u0000integer": "7"}"#);
        assert_eq!(marked(&shown), None, "64 bits hold it");
        assert_eq!(marked(&read(r#"{"\u0000integer": "x"}"#)), None);
        assert_eq!(marked(&read("7")), None);
    }
}
