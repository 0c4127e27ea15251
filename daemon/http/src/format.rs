//! What a request wants its output to look like, in the fields of OpenAI, vLLM, SGLang and llama.cpp, to a grammar.
//!
//! Owns: the names and forms of those fields. Must never: judge a grammar: the worker compiles it.

use minisgl_proto::limits::GRAMMAR_BYTES_MAX;
use minisgl_proto::{Grammar, Guided};
use serde::de::MapAccess;
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::json::{Exact, Fields, List, Node, Object, SHORT_LIST_MAX, fields};

fields! {
    /// The fields that constrain an output. One of them counts.
    pub struct FormatFields {
        /// OpenAI's.
        response_format: Exact<Object>,
        /// vLLM's.
        structured_outputs: Exact<Object>,
        /// vLLM's older ones.
        guided_json: Exact<Node>,
        guided_regex: String,
        guided_choice: List<String, SHORT_LIST_MAX>,
        guided_grammar: String,
        /// SGLang's, a text there; llama.cpp's, an object there.
        json_schema: Exact<Node>,
        /// SGLang's.
        regex: String,
        ebnf: String,
        /// A text that holds one; an object is taken too.
        structural_tag: Exact<Node>,
        /// llama.cpp's.
        grammar: String,
    }
    with {
        elsewhere: Elsewhere,
    }
}

/// A form that stands in a field of a surface's own, as `type`, `schema` and `strict`.
#[derive(Clone, Debug, Default)]
pub struct Elsewhere(Option<(&'static str, Map<String, Value>)>);

impl Fields for Elsewhere {
    fn take<'de, A: MapAccess<'de>>(&mut self, _: &str, _: &mut A) -> Result<bool, A::Error> {
        Ok(false)
    }

    fn names() -> Vec<&'static str> {
        Vec::new()
    }
}

impl FormatFields {
    /// A JSON schema that must hold, from the field `name`.
    ///
    /// # Errors
    /// 400: it is none.
    pub fn of_schema(name: &'static str, json: Value) -> Result<FormatFields, ApiError> {
        schema(name, json.clone())?;
        Ok(FormatFields::of(name, json!({"type": "json_schema", "schema": json, "strict": true})))
    }

    /// A form that stands elsewhere, in this field.
    pub fn set(&mut self, field: &'static str, format: Map<String, Value>) {
        self.elsewhere = Elsewhere(Some((field, format)));
    }

    /// Of Ollama's `format`: `"json"`, or a schema.
    ///
    /// # Errors
    /// 400: it is neither.
    pub fn ollama(format: Value) -> Result<FormatFields, ApiError> {
        let asked = match format {
            Value::Null => return Ok(FormatFields::default()),
            Value::String(word) if word.is_empty() => return Ok(FormatFields::default()),
            Value::String(word) if word == "json" => json!({"type": "json_object"}),
            Value::Object(_) => json!({"type": "json_schema", "schema": format, "strict": false}),
            _ => return Err(ApiError::field("format", "format is \"json\" or a JSON schema")),
        };
        Ok(FormatFields::of("format", asked))
    }

    fn of(field: &'static str, format: Value) -> FormatFields {
        let mut fields = FormatFields::default();
        fields.set(field, format.as_object().cloned().unwrap_or_default());
        fields
    }

    /// The grammar, if one is asked for.
    ///
    /// # Errors
    /// 400: a field is not of its form, or there are several.
    pub fn guided(self) -> Result<Option<Box<Guided>>, ApiError> {
        let f = self;
        let mut asked: Vec<(&'static str, Grammar)> = Vec::new();
        let mut ask = |field, grammar: Option<Grammar>| {
            asked.extend(grammar.map(|grammar| (field, grammar)));
        };
        if let Some(Exact(Object(format))) = f.response_format {
            ask("response_format", response_format("response_format", &format, "json_schema")?);
        }
        if let Elsewhere(Some((field, format))) = f.elsewhere {
            ask(field, response_format(field, &format, "")?);
        }
        if let Some(Exact(Object(outputs))) = f.structured_outputs {
            ask("structured_outputs", structured_outputs(outputs)?);
        }
        for (field, json) in [("guided_json", f.guided_json), ("json_schema", f.json_schema)] {
            if let Some(Exact(Node(json))) = says(json, |Exact(Node(json))| json_len(json)) {
                ask(field, Some(strict(schema(field, json)?)));
            }
        }
        for (field, text) in [("guided_regex", f.guided_regex), ("regex", f.regex)] {
            ask(field, says(text, String::len).map(Grammar::Regex));
        }
        if let Some(Exact(Node(json))) = says(f.structural_tag, |Exact(Node(json))| json_len(json))
        {
            ask("structural_tag", Some(structural_tag("structural_tag", json)?));
        }
        let choice = says(f.guided_choice, |List(texts)| texts.len());
        ask("guided_choice", choice.map(|List(texts)| Grammar::Choice(texts)));
        for (field, text) in
            [("guided_grammar", f.guided_grammar), ("ebnf", f.ebnf), ("grammar", f.grammar)]
        {
            ask(field, says(text, String::len).map(context_free));
        }
        if asked.len() > 1 {
            let names: Vec<&str> = asked.iter().map(|(field, _)| *field).collect();
            let names = names.join(", ");
            let text = format!("{names} cannot be asked for together; send one of them");
            return Err(ApiError::field(asked[1].0, text));
        }
        let Some((field, grammar)) = asked.pop() else { return Ok(None) };
        let bytes = grammar.bytes();
        if bytes > GRAMMAR_BYTES_MAX {
            let what = grammar.what();
            let text =
                format!("{field}: the {what} has {bytes} bytes; the limit is {GRAMMAR_BYTES_MAX}");
            return Err(ApiError::field(field, text));
        }
        let field = field.to_owned();
        Ok(Some(Box::new(Guided { grammar: Some(grammar), thought: None, field })))
    }
}

/// Whether a grammar's text, or a list, says anything: some clients send all fields, empty.
fn says<T>(value: Option<T>, len: impl Fn(&T) -> usize) -> Option<T> {
    value.filter(|value| len(value) > 0)
}

/// Fields, or bytes; what is neither says something.
fn json_len(json: &Value) -> usize {
    match json {
        Value::Object(fields) => fields.len(),
        Value::String(text) => text.len(),
        _ => 1,
    }
}

fn strict(schema: String) -> Grammar {
    Grammar::JsonSchema { schema, lenient: false }
}

/// EBNF as llama.cpp, xgrammar and SGLang write it has `::=`, which Lark has not.
fn context_free(text: String) -> Grammar {
    if text.contains("::=") { Grammar::Ebnf(text) } else { Grammar::Lark(text) }
}

/// A schema, or a text that holds one.
fn schema(field: &str, json: Value) -> Result<String, ApiError> {
    match json {
        Value::String(text) => Ok(text),
        Value::Object(_) | Value::Bool(_) => Ok(json.to_string()),
        _ => {
            let text = format!("{field}: a JSON schema is an object, or a text that holds one");
            Err(ApiError::field(field, text))
        }
    }
}

/// `{"type": "text"}`, `{"type": "json_object"}`, with llama.cpp's `schema` or without,
/// `{"type": "json_schema", "json_schema": {"schema": .., "strict": ..}}`.
/// In the field `field`; in that of Responses nothing is around `schema`, and `inside` is empty.
fn response_format(
    field: &str,
    format: &Map<String, Value>,
    inside: &str,
) -> Result<Option<Grammar>, ApiError> {
    let refuse = |param: &str, text: String| Err(ApiError::field(param, text));
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let kind = format.get("type").and_then(text);
    match kind.as_deref() {
        Some("text") => Ok(None),
        Some("json_object") => match format.get("schema").filter(|schema| !schema.is_null()) {
            Some(json) => {
                let schema = schema(&format!("{field}.schema"), json.clone())?;
                Ok(Some(Grammar::JsonSchema { schema, lenient: true }))
            }
            None => Ok(Some(Grammar::JsonObject)),
        },
        Some("json_schema") => {
            let (param, inner) = match (inside, format.get(inside)) {
                ("", _) => (field.to_owned(), format),
                (_, Some(Value::Object(inner))) => (format!("{field}.{inside}"), inner),
                _ => {
                    let param = format!("{field}.{inside}");
                    let text = format!("{param}: an object with \"name\" and \"schema\" is needed");
                    return refuse(&param, text);
                }
            };
            let strict = match inner.get("strict") {
                None | Some(Value::Null) => false,
                Some(Value::Bool(strict)) => *strict,
                Some(_) => {
                    let param = format!("{param}.strict");
                    return refuse(&param, format!("{param} is true or false"));
                }
            };
            match inner.get("schema").filter(|schema| !schema.is_null()) {
                Some(json) => {
                    let schema = schema(&format!("{param}.schema"), json.clone())?;
                    Ok(Some(Grammar::JsonSchema { schema, lenient: !strict }))
                }
                // OpenAI takes it for any object.
                None => Ok(Some(Grammar::JsonObject)),
            }
        }
        Some("structural_tag") => {
            let tag = Value::Object(format.clone()).to_string();
            Ok(Some(Grammar::StructuralTag(tag)))
        }
        other => {
            let other = other.unwrap_or("nothing");
            let text = format!(
                "{field}.type is {other}; it must be \"text\", \"json_object\", \"json_schema\" or \"structural_tag\""
            );
            refuse(&format!("{field}.type"), text)
        }
    }
}

/// A structural tag, or a text that holds one.
fn structural_tag(field: &str, json: Value) -> Result<Grammar, ApiError> {
    match json {
        Value::String(text) => Ok(Grammar::StructuralTag(text)),
        Value::Object(_) => Ok(Grammar::StructuralTag(json.to_string())),
        _ => {
            let text = format!("{field}: a structural tag is an object, or a text that holds one");
            Err(ApiError::field(field, text))
        }
    }
}

/// vLLM's: one of `json`, `regex`, `choice`, `grammar`, `structural_tag` and `json_object`; its other keys say how, and change nothing here.
fn structured_outputs(outputs: Map<String, Value>) -> Result<Option<Grammar>, ApiError> {
    let mut asked = Vec::new();
    for (key, value) in outputs {
        let field = format!("structured_outputs.{key}");
        let wrong = |form: &str| Err(ApiError::field(&*field, format!("{field} must be {form}")));
        let grammar = match (&*key, value) {
            (_, Value::Null) => continue,
            // As in the older fields, what is empty asks for nothing.
            (_, Value::String(text)) if text.is_empty() => continue,
            ("json", Value::Object(fields)) if fields.is_empty() => continue,
            ("choice", Value::Array(texts)) if texts.is_empty() => continue,
            ("json", json) => strict(schema(&field, json)?),
            ("regex", Value::String(text)) => Grammar::Regex(text),
            ("grammar", Value::String(text)) => context_free(text),
            ("choice", Value::Array(texts)) => {
                let texts = texts.into_iter().map(|text| match text {
                    Value::String(text) => Some(text),
                    _ => None,
                });
                match texts.collect::<Option<Vec<_>>>() {
                    Some(texts) => Grammar::Choice(texts),
                    None => return wrong("a list of strings"),
                }
            }
            ("json_object", Value::Bool(true)) => Grammar::JsonObject,
            ("json_object", Value::Bool(false)) => continue,
            ("structural_tag", Value::Object(fields)) if fields.is_empty() => continue,
            ("structural_tag", json) => structural_tag(&field, json)?,
            ("regex" | "grammar", _) => return wrong("a string"),
            ("choice", _) => return wrong("a list of strings"),
            ("json_object", _) => return wrong("true or false"),
            _ => continue,
        };
        asked.push((key, grammar));
    }
    if asked.len() > 1 {
        let names: Vec<&str> = asked.iter().map(|(key, _)| &**key).collect();
        let text = format!("structured_outputs: {} cannot be asked for together", names.join(", "));
        return Err(ApiError::field("structured_outputs", text));
    }
    Ok(asked.pop().map(|(_, grammar)| grammar))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fields::Route;

    fn asked(body: &Value) -> Result<Option<(String, Grammar)>, ApiError> {
        let (fields, _) =
            crate::json::read::<FormatFields>(body.to_string().as_bytes(), Route::Chat)?;
        Ok(fields.guided()?.and_then(|guided| Some((guided.field, guided.grammar?))))
    }

    fn schema(schema: &str, lenient: bool) -> Grammar {
        Grammar::JsonSchema { schema: schema.to_owned(), lenient }
    }

    #[test]
    fn every_form_is_read() {
        let inner = json!({"type": "object", "b": 1, "a": 21.900000000000002});
        let text = r#"{"type":"object","b":1,"a":21.900000000000002}"#;
        let open_ai = |strict: Value| json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": inner, "strict": strict}}});
        let lark = "start: \"a\"";
        let ebnf = "root ::= \"a\"";
        let tag = json!({"type": "structural_tag", "format": {"type": "any_text"}});
        let tags = Grammar::StructuralTag(tag.to_string());
        for (body, field, grammar) in [
            (open_ai(json!(true)), "response_format", schema(text, false)),
            (open_ai(json!(false)), "response_format", schema(text, true)),
            (open_ai(Value::Null), "response_format", schema(text, true)),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}}),
                "response_format",
                Grammar::JsonObject,
            ),
            (
                json!({"response_format": {"type": "json_object"}}),
                "response_format",
                Grammar::JsonObject,
            ),
            (
                json!({"response_format": {"type": "json_object", "schema": inner}}),
                "response_format",
                schema(text, true),
            ),
            (json!({"guided_json": inner}), "guided_json", schema(text, false)),
            (json!({"guided_json": text}), "guided_json", schema(text, false)),
            (json!({"json_schema": text}), "json_schema", schema(text, false)),
            (json!({"guided_regex": "a+"}), "guided_regex", Grammar::Regex("a+".into())),
            (json!({"structural_tag": tag.to_string()}), "structural_tag", tags.clone()),
            (json!({"structural_tag": tag}), "structural_tag", tags.clone()),
            (
                json!({"structured_outputs": {"structural_tag": tag.to_string()}}),
                "structured_outputs",
                tags.clone(),
            ),
            (json!({"response_format": tag}), "response_format", tags.clone()),
            (json!({"regex": "a+"}), "regex", Grammar::Regex("a+".into())),
            (
                json!({"guided_choice": ["a", "b"]}),
                "guided_choice",
                Grammar::Choice(vec!["a".into(), "b".into()]),
            ),
            (json!({"guided_grammar": lark}), "guided_grammar", Grammar::Lark(lark.into())),
            (json!({"guided_grammar": ebnf}), "guided_grammar", Grammar::Ebnf(ebnf.into())),
            (json!({"ebnf": ebnf}), "ebnf", Grammar::Ebnf(ebnf.into())),
            (json!({"grammar": ebnf}), "grammar", Grammar::Ebnf(ebnf.into())),
            (
                json!({"structured_outputs": {"json": inner, "whitespace_pattern": null}}),
                "structured_outputs",
                schema(text, false),
            ),
            (
                json!({"structured_outputs": {"regex": "a", "disable_any_whitespace": true}}),
                "structured_outputs",
                Grammar::Regex("a".into()),
            ),
            (
                json!({"structured_outputs": {"choice": ["a"]}}),
                "structured_outputs",
                Grammar::Choice(vec!["a".into()]),
            ),
            (
                json!({"structured_outputs": {"grammar": lark}}),
                "structured_outputs",
                Grammar::Lark(lark.into()),
            ),
            (
                json!({"structured_outputs": {"json_object": true}}),
                "structured_outputs",
                Grammar::JsonObject,
            ),
        ] {
            assert_eq!(asked(&body).unwrap(), Some((field.to_owned(), grammar)), "{body}");
        }
    }

    #[test]
    fn what_asks_for_nothing_is_free() {
        for body in [
            json!({}),
            json!({"response_format": {"type": "text"}}),
            json!({"response_format": null, "guided_json": null, "regex": null}),
            json!({"guided_regex": "", "guided_choice": [], "guided_json": {}, "json_schema": ""}),
            json!({"structured_outputs": {}}),
            json!({"structured_outputs": {"json": null, "json_object": false}}),
            json!({"structured_outputs": {"json": {}, "regex": "", "choice": [], "grammar": ""}}),
        ] {
            assert_eq!(asked(&body).unwrap(), None, "{body}");
        }
    }

    #[test]
    fn wrong_forms_are_named() {
        for (body, param, told) in [
            (
                json!({"regex": "a", "guided_choice": ["a"]}),
                "guided_choice",
                "regex, guided_choice cannot be asked for together",
            ),
            (json!({"response_format": {"type": "xml"}}), "response_format.type", "xml"),
            (json!({"response_format": {}}), "response_format.type", "nothing"),
            (
                json!({"response_format": {"type": "json_schema"}}),
                "response_format.json_schema",
                "\"schema\" is needed",
            ),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"schema": 1}}}),
                "response_format.json_schema.schema",
                "is an object",
            ),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"strict": 1}}}),
                "response_format.json_schema.strict",
                "true or false",
            ),
            (json!({"guided_json": [1]}), "guided_json", "is an object"),
            (
                json!({"structured_outputs": {"json": {"a": 1}, "regex": "a"}}),
                "structured_outputs",
                "json, regex cannot",
            ),
            (
                json!({"structured_outputs": {"choice": [1]}}),
                "structured_outputs.choice",
                "a list of strings",
            ),
            (json!({"structured_outputs": {"regex": 1}}), "structured_outputs.regex", "a string"),
            (
                json!({"structured_outputs": {"structural_tag": 1}}),
                "structured_outputs.structural_tag",
                "is an object",
            ),
            (json!({"structural_tag": [1]}), "structural_tag", "is an object"),
        ] {
            let error = asked(&body).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{body}: {}", error.message);
            assert!(error.message.contains(told), "{body}: {}", error.message);
        }
    }
}
