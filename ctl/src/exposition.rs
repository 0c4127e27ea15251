//! The Prometheus text format, as far as the daemon writes it.
//!
//! Owns: reading it. Must never: know what a metric means.

use serde::Serialize;
use serde_json::{Map, Value, json};

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sample {
    /// The metric.
    pub name: String,
    labels: Map<String, Value>,
    value: Value,
}

impl Sample {
    /// A label's value; empty if there is no such label.
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    /// The value, if it is a number.
    pub fn value(&self) -> Option<f64> {
        self.value.as_f64()
    }
}

/// `metrics -o json`.
pub fn to_json(text: &str) -> Value {
    json!(samples(text).collect::<Vec<_>>())
}

/// Every sample of a text; what is none is left out.
pub fn samples(text: &str) -> impl Iterator<Item = Sample> {
    text.lines().filter(|line| !line.starts_with('#')).filter_map(sample)
}

/// `name{label="value",...} value`.
fn sample(line: &str) -> Option<Sample> {
    let split = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(split);
    let mut labels = Map::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, after) = rest.trim_start_matches(',').split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.insert(label.to_string(), value.into());
            rest = after;
        }
        rest = &rest[1..];
    }
    let number = rest.split_whitespace().next()?;
    // JSON has no infinity: +Inf and NaN stay text.
    let value = match number.parse::<f64>() {
        Ok(value) if value.is_finite() => json!(value),
        _ => json!(number),
    };
    Some(Sample { name: name.to_string(), labels, value })
}

/// The text up to a closing quote, unescaped, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut out = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((out, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => out.push('\n'),
                other => out.push(other),
            },
            c => out.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn metrics_become_json() {
        let text = "# HELP a b\n# TYPE a counter\na{m=\"x\\\"y\\\\\",le=\"+Inf\"} 2.5\nb 1e3\nc{} NaN\n\nbad";
        expect![[
            r#"[{"name":"a","labels":{"m":"x\"y\\","le":"+Inf"},"value":2.5},{"name":"b","labels":{},"value":1000.0},{"name":"c","labels":{},"value":"NaN"}]"#
        ]]
        .assert_eq(&to_json(text).to_string());
    }
}
