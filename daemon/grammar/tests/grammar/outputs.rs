//! Outputs that masks allow are the grammar's, and the grammar's are allowed.

use crate::common::{Random, STOP, allowed, bytes, compile, draw, schema, takes, text};
use minisgl_grammar::StateError;
use minisgl_proto::Grammar;
use serde_json::Value;

const PERSON: &str = r##"{"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Person", "type": "object",
  "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
    "tags": {"type": "array", "items": {"enum": ["a", "b", null]}, "maxItems": 3},
    "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
  "required": ["name", "age"], "additionalProperties": false}"##;

fn check_person(person: &Value) {
    let fields = person.as_object().expect("an object");
    assert!(fields["name"].as_str().unwrap().chars().count() <= 12, "{person}");
    assert!((0..=150).contains(&fields["age"].as_i64().unwrap()), "{person}");
    for (name, value) in fields {
        match name.as_str() {
            "name" | "age" => {}
            "tags" => {
                let tags = value.as_array().unwrap();
                assert!(tags.len() <= 3, "{person}");
                assert!(tags.iter().all(|t| t.is_null() || t == "a" || t == "b"), "{person}");
            }
            "next" if value.is_null() => {}
            "next" => check_person(value),
            other => panic!("{other} in {person}"),
        }
    }
}

#[test]
fn what_is_drawn_is_what_the_schema_says() {
    let compiled = compile(&schema(PERSON)).unwrap();
    let mut random = Random(7);
    let mut lengths = Vec::new();
    for soft in (0..60).map(|n| n * 3) {
        let output = draw(&compiled, &mut random, soft);
        check_person(&serde_json::from_str(&text(&output)).expect("JSON"));
        lengths.push(output.len());
    }
    assert!(lengths.iter().max() > lengths.iter().min(), "{lengths:?}");
}

#[test]
fn what_the_schema_says_is_allowed() {
    for good in [
        r#"{"name":"Ada","age":36}"#,
        "{\n  \"name\": \"\u{e9}\",\n  \"age\": 0,\n  \"next\": null\n}",
        r#"{"name":"","age":150,"tags":["a",null],"next":{"name":"B","age":1}}"#,
        "{\r\n\t\t\"name\" :\"Ada\"\n,   \"age\":36\n}",
    ] {
        assert!(takes(&schema(PERSON), &bytes(good)), "{good}");
    }
    for bad in [
        r#"{"name":"Ada"}"#,
        r#"{"name":"Ada","age":151}"#,
        r#"{"name":"Ada","age":36,"x":1}"#,
        r#"{"name":"Ada","age":36,"tags":["c"]}"#,
        r#" {"name":"Ada","age":36}"#,
        "{\n\n\"name\":\"Ada\",\"age\":36}",
        r#"{"name":"Ada","age":36"#,
    ] {
        assert!(!takes(&schema(PERSON), &bytes(bad)), "{bad}");
    }
}

#[test]
fn each_kind_of_grammar_is_held_to() {
    let lark = "start: \"(\" start \")\" | \"x\"\n";
    for (grammar, good, bad) in [
        (Grammar::JsonObject, vec!["{}", r#"{"a":[1,{"b":null}]}"#], vec!["[]", "1", "{"]),
        (
            Grammar::Regex("[a-c]+\\d{2}".into()),
            vec!["abc12", "a00"],
            vec!["abc1", "abc123", "d12"],
        ),
        (Grammar::Lark(lark.into()), vec!["x", "((x))"], vec!["((x)", "()", "xx"]),
        (
            Grammar::Choice(vec![
                "yes".into(),
                "no \"quote\"".into(),
                "n\u{e9}".into(),
                "a/b|c".into(),
            ]),
            vec!["yes", "no \"quote\"", "n\u{e9}", "a/b|c"],
            vec!["y", "yesno", "a", ""],
        ),
    ] {
        good.iter().for_each(|text| assert!(takes(&grammar, &bytes(text)), "{grammar:?}: {text}"));
        bad.iter().for_each(|text| assert!(!takes(&grammar, &bytes(text)), "{grammar:?}: {text}"));
    }
}

#[test]
fn an_output_ends_with_any_stop_token_and_goes_on_with_none() {
    let mut state = compile(&Grammar::Choice(vec!["ab".into()])).unwrap().begin();
    // By letters, or by the token of both.
    assert_eq!(allowed(&mut state, &[]), [u32::from(b'a'), 260 + 8]);
    assert!(!state.is_over(&bytes("a")).unwrap());
    assert_eq!(allowed(&mut state, &bytes("ab")), STOP);
    assert!(state.is_over(&bytes("ab")).unwrap());
    // A request that ignores end tokens gets more of them.
    for grammar in [Grammar::Choice(vec!["ab".into()]), Grammar::Regex("(ab)+".into())] {
        let mut state = compile(&grammar).unwrap().begin();
        let mut output = bytes("ab");
        for at in 0..4 {
            output.push(STOP[at % STOP.len()]);
            assert_eq!(allowed(&mut state, &output), STOP, "{output:?}");
        }
        output.push(b'a'.into());
        assert!(matches!(state.is_over(&output), Err(StateError::Left { at: 6, .. })));
    }
}

/// After a preemption the output is told anew, on another worker from its beginning, and a state may be told of less than before.
#[test]
fn a_state_follows_from_the_output_alone() {
    let compiled = compile(&schema(PERSON)).unwrap();
    let output = draw(&compiled, &mut Random(3), 40);
    let mut step_by_step = compiled.begin();
    for at in 0..=output.len() {
        let may = allowed(&mut step_by_step, &output[..at]);
        assert_eq!(allowed(&mut compiled.begin(), &output[..at]), may, "{at}");
    }
    let half = &output[..output.len() / 2];
    assert_eq!(allowed(&mut step_by_step, half), allowed(&mut compiled.begin(), half));
}

#[test]
fn an_output_of_another_grammar_is_told_at_its_token() {
    let mut state = compile(&Grammar::Choice(vec!["ab".into()])).unwrap().begin();
    let error = state.is_over(&bytes("ac")).unwrap_err();
    assert!(matches!(error, StateError::Left { at: 1, .. }), "{error}");
}

/// A mask that has nothing left is an error, not a mask.
#[test]
fn a_grammar_without_a_token_is_told() {
    let tokens = vec![b"a".to_vec(), b"\xff<|end|>".to_vec()];
    let limits = minisgl_grammar::Limits::default();
    let vocabulary = minisgl_grammar::Vocabulary::new(tokens, 2, &[1], &limits).unwrap();
    let compiler = minisgl_grammar::Compiler::new(vocabulary, limits);
    let mut state = compiler.compile(&Grammar::Choice(vec!["ab".into()])).unwrap().begin();
    let error = state.narrow(&[0], &mut [u32::MAX]).unwrap_err();
    assert!(matches!(error, StateError::Stuck { at: 1, .. }), "{error}");
}
