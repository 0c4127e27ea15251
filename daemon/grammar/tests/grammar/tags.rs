//! Structural tags: what they take, what they do not, and what is refused.

use minisgl_grammar::Limits;
use minisgl_proto::Grammar;
use serde_json::{Value, json};

use crate::common::{
    END_OF_THOUGHT, Random, THINK, allowed, bytes, compile, compiler, draw, takes, text,
};

fn tag(format: &Value) -> Grammar {
    Grammar::StructuralTag(json!({"type": "structural_tag", "format": format}).to_string())
}

/// Each of `good` is taken, and none of `bad`.
fn check(grammar: &Grammar, good: &[&str], bad: &[&str]) {
    for text in good {
        assert!(takes(grammar, &bytes(text)), "{text:?} by {grammar:?}");
    }
    for text in bad {
        assert!(!takes(grammar, &bytes(text)), "{text:?} by {grammar:?}");
    }
}

fn call(name: &str, schema: &Value) -> Value {
    json!({"begin": format!("<fn={name}>"), "content": {"type": "json_schema", "json_schema": schema}, "end": "</fn>"})
}

fn number() -> Value {
    json!({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": false})
}

fn calls(more: &Value) -> Value {
    let mut format = json!({
        "type": "triggered_tags", "triggers": ["<fn="],
        "tags": [call("a", &number()), call("b", &json!({"enum": ["x"]}))],
    });
    for (key, value) in more.as_object().unwrap() {
        format[key] = value.clone();
    }
    format
}

#[test]
fn the_older_form_is_text_with_tags_behind_triggers() {
    let older = json!({
        "type": "structural_tag", "triggers": ["<fn="],
        "structures": [
            {"begin": "<fn=a>", "schema": number(), "end": "</fn>"},
            {"begin": "<fn=b>", "schema": "{\"enum\": [\"x\"]}", "end": "</fn>"},
        ],
    });
    for grammar in [Grammar::StructuralTag(older.to_string()), tag(&calls(&json!({})))] {
        check(
            &grammar,
            &[
                "",
                "no call < at all <fn",
                "<fn=a>{\"n\":1}</fn>",
                "one <fn=a>{\"n\": 12}</fn> and\n<fn=b>\"x\"</fn>.",
            ],
            &["<fn=a>{\"n\":1}", "<fn=c>{}</fn>", "<fn=a>{}</fn>", "a <fn=b>\"y\"</fn>", "x<fn="],
        );
    }
}

#[test]
fn tags_may_have_to_come_and_may_be_the_last() {
    let one = tag(&calls(&json!({"at_least_one": true})));
    check(&one, &["<fn=b>\"x\"</fn>", "<fn=b>\"x\"</fn> and <fn=b>\"x\"</fn>"], &["", "text"]);
    let last = tag(&calls(&json!({"stop_after_first": true})));
    check(&last, &["", "text", "so: <fn=b>\"x\"</fn>"], &["<fn=b>\"x\"</fn> more"]);
    let both = tag(&calls(&json!({"at_least_one": true, "stop_after_first": true})));
    check(&both, &["<fn=b>\"x\"</fn>"], &["", "x<fn=b>\"x\"</fn>", "<fn=b>\"x\"</fn>."]);
    let without = tag(&calls(&json!({"excludes": ["never"]})));
    check(&without, &["nev er <fn=b>\"x\"</fn>"], &["never", "ne<fn=b>\"x\"</fn>never"]);
}

#[test]
fn tags_with_a_separator_have_nothing_else_between_them() {
    let format = |more: Value| {
        let mut format = json!({
            "type": "tags_with_separator", "separator": ", ",
            "tags": [{"type": "tag", "begin": "[", "content": {"type": "regex", "pattern": "[a-z/]+"}, "end": "]"}],
        });
        format.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        tag(&format)
    };
    check(&format(json!({})), &["", "[a]", "[a], [b/c]"], &["[a],[b]", "[a]. ", "[]"]);
    check(&format(json!({"at_least_one": true})), &["[a]", "[a], [b]"], &[""]);
    check(&format(json!({"stop_after_first": true})), &["", "[a]"], &["[a], [b]"]);
}

#[test]
fn any_text_goes_up_to_the_end_of_its_tag() {
    let any = json!({"type": "any_text"});
    let notes = json!({"type": "tag", "begin": "<n>", "content": any, "end": "</n>"});
    check(&tag(&notes), &["<n></n>", "<n>a </n b</n>"], &["<n>a", "<n></n> ", "</n>"]);
    let ends = json!({"type": "tag", "begin": "<n>", "content": any, "end": ["</n>", "<stop>"]});
    check(&tag(&ends), &["<n>a</n>", "<n>b<stop>"], &["<n>a<stop></n>"]);
    let both = json!({"type": "sequence", "elements": [notes, {"type": "json_schema", "json_schema": number()}]});
    check(&tag(&both), &["<n>why</n>{\"n\":1}"], &["<n>why</n>", "{\"n\":1}"]);
    let upto = json!({"type": "sequence", "elements": [any, notes, any]});
    check(&tag(&upto), &["<n></n>", "a<n>b</n>c<n>"], &["a", "a<n>"]);
    let upto =
        json!({"type": "sequence", "elements": [any, {"type": "const_string", "value": "END"}]});
    check(&tag(&upto), &["END", "so it E N D sEND"], &["", "END."]);
    let three = json!({"type": "sequence", "elements": [
        {"type": "const_string", "value": "a"}, {"type": "const_string", "value": "b"}, notes, {"type": "json_schema", "json_schema": {"const": 1}}, notes]});
    check(
        &tag(&three),
        &["ab<n>x</n>1<n></n>"],
        &["ab<n>x</n>1", "a<n>x</n>1<n></n>", "abb<n></n>1<n></n>"],
    );
    let free = json!({"type": "any_text", "excludes": ["bad", "worse"]});
    check(&tag(&free), &["", "ba d\nwors"], &["a bad thing", "worse"]);
}

#[test]
fn what_an_expression_matches_may_look_like_the_end() {
    let pattern = |pattern: &str| json!({"type": "tag", "begin": "(", "content": {"type": "regex", "pattern": pattern}, "end": ")."});
    check(&tag(&pattern("(?s:.*)")), &["().", "(a). b)."], &["(a)", "(a"]);
    check(&tag(&pattern("[0-9]{2}|\\)+")), &["(12).", "())).", "(00)."], &["(1).", "(0|)."]);
    check(&tag(&pattern("a/b\\/c")), &["(a/b/c)."], &["(a/bc)."]);
}

#[test]
fn formats_repeat_and_stand_for_each_other() {
    let a = json!({"type": "const_string", "value": "a"});
    let b = json!({"type": "const_string", "value": "\"\\b"});
    let of =
        |kind: &str| tag(&json!({"type": kind, "content": {"type": "or", "elements": [a, b]}}));
    check(&of("optional"), &["", "a", "\"\\b"], &["aa"]);
    check(&of("star"), &["", "a\"\\ba"], &["b"]);
    check(&of("plus"), &["a", "aa"], &[""]);
    let repeat = json!({"type": "repeat", "min": 2, "max": 3, "content": a});
    check(&tag(&repeat), &["aa", "aaa"], &["a", "aaaa"]);
    let both = json!({"type": "sequence", "elements": [{"type": "star", "content": a}, b]});
    check(&tag(&both), &["\"\\b", "aa\"\\b"], &["aa"]);
    let either = json!({"type": "tag", "begin": "<", "end": ">", "content": {"type": "or", "elements": [
        {"type": "any_text", "excludes": ["x"]}, {"type": "sequence", "elements": []}]}});
    check(&tag(&either), &["<>", "<any>"], &["<x>", "<a"]);
}

#[test]
fn markers_that_are_tokens_are_tokens() {
    let thought = json!({"type": "tag", "begin": "<think>\n", "content": {"type": "any_text"}, "end": "</think>"});
    let grammar = tag(
        &json!({"type": "sequence", "elements": [thought, {"type": "const_string", "value": "ok"}]}),
    );
    let mut output = vec![THINK, u32::from(b'\n'), u32::from(b'a')];
    let mut state = compile(&grammar).unwrap().begin();
    assert_eq!(allowed(&mut state, &[]), [THINK]);
    assert!(allowed(&mut state, &output).contains(&END_OF_THOUGHT));
    output.push(END_OF_THOUGHT);
    assert_eq!(allowed(&mut state, &output), [u32::from(b'o')]);
}

#[test]
fn what_is_drawn_is_read_again() {
    let grammar = tag(&calls(&json!({"at_least_one": true})));
    let compiled = compile(&grammar).unwrap();
    let mut random = Random(11);
    for soft in 0..40 {
        let output = text(&draw(&compiled, &mut random, soft));
        let first = output.split_once("</fn>").expect("a tag").0;
        let (name, value) = first.strip_prefix("<fn=").unwrap().split_once('>').unwrap();
        let value: Value = serde_json::from_str(value).unwrap();
        assert!(match name {
            "a" => value["n"].is_i64() || value["n"].is_u64() || value["n"].is_f64(),
            _ => value == "x",
        });
    }
}

#[test]
fn what_cannot_be_served_is_refused_by_name() {
    let deep = (0..40).fold(
        json!({"type": "any_text"}),
        |inner, _| json!({"type": "sequence", "elements": [inner]}),
    );
    let long = "x".repeat(20_000);
    let any = json!({"type": "any_text"});
    for (format, part) in [
        (json!({"type": "token", "token": 5}), "\"token\" are not supported"),
        (json!({"type": "qwen_xml_parameter", "json_schema": {}}), "qwen_xml_parameter"),
        (json!({"type": "json_schema", "json_schema": {}, "style": "qwen_xml"}), "qwen_xml"),
        (json!({"type": "json_schema"}), "\"json_schema\""),
        (json!({"type": "any_text", "max_tokens": 5}), "\"max_tokens\" is not supported"),
        (json!({"type": "const_string"}), "\"value\" must be a text"),
        (
            json!({"type": "sequence", "elements": [any, {"type": "json_schema", "json_schema": {}}]}),
            "any text must be the last",
        ),
        (json!({"type": "star", "content": any}), "any text must be the last"),
        (json!({"type": "repeat", "min": 3, "max": 2, "content": any}), "any text must"),
        (
            json!({"type": "repeat", "min": 0, "max": 100_000, "content": {"type": "const_string", "value": "a"}}),
            "0 to 2000",
        ),
        (
            json!({"type": "triggered_tags", "triggers": ["<x"], "tags": [call("a", &json!({}))]}),
            "just one of \"triggers\"",
        ),
        (
            json!({"type": "triggered_tags", "triggers": ["<", "<fn"], "tags": [call("a", &json!({}))]}),
            "just one of \"triggers\"",
        ),
        (
            json!({"type": "triggered_tags", "triggers": [], "tags": [call("a", &json!({}))]}),
            "\"triggers\"",
        ),
        (json!({"type": "triggered_tags", "triggers": ["<"], "tags": []}), "\"tags\" is empty"),
        (json!({"type": "tag", "begin": "<", "content": any, "end": []}), "needs an \"end\""),
        (json!({"type": "const_string", "value": long}), "16384"),
        (json!({"type": "regex", "pattern": long}), "more than 4000 characters"),
        (json!({"type": "regex", "pattern": "("}), "cannot be enforced"),
        (json!({"type": "json_schema", "json_schema": {"$ref": "http://x/y"}}), "http://x/y"),
        (
            json!({"type": "json_schema", "json_schema": {"anyOf": (0..600).map(|n| json!({"const": {"n": n}})).collect::<Vec<_>>()}}),
            "512",
        ),
        (deep, "more than 16 deep"),
        (
            json!({"type": "sequence", "elements": (0..3_000).map(|n| json!({"type": "optional", "content": {"type": "const_string", "value": format!("{n:x}")}})).collect::<Vec<_>>()}),
            "2000 rules",
        ),
        (json!([]), "a format is an object"),
    ] {
        let shown: String = format.to_string().chars().take(200).collect();
        let error = compile(&tag(&format)).err().unwrap_or_else(|| panic!("{part}: {shown}"));
        let error = error.to_string();
        assert!(error.contains(part) && error.contains("structural tag"), "{error} for {shown}");
    }
    for (text, part) in [
        ("{", "EOF"),
        ("[]", "an object"),
        ("{}", "\"format\""),
        (r#"{"format": {"type": "any_text"}, "structures": []}"#, "send one"),
        (r#"{"structures": [{"begin": "a", "end": "b"}], "triggers": ["a"]}"#, "\"schema\""),
        (
            r#"{"structures": [{"begin": "a", "end": "b", "schema": "{"}], "triggers": ["a"]}"#,
            "\"schema\": EOF",
        ),
        (r#"{"structures": [{"begin": "a", "end": "b", "schema": {}}]}"#, "\"triggers\""),
    ] {
        let error = compile(&Grammar::StructuralTag(text.to_owned())).err().unwrap().to_string();
        assert!(error.contains(part), "{error} for {text}");
    }
}

#[test]
fn a_clients_word_does_not_change_how_schemas_are_read() {
    let schema = json!({"type": "string", "pattern": "^a$", "x-guidance": {"lenient": true, "whitespace_pattern": "z*"}});
    let grammar = tag(&json!({"type": "json_schema", "json_schema": schema}));
    check(&grammar, &["\"a\""], &["z\"a\"", "\"b\""]);
}

#[test]
fn many_tags_are_compiled_in_time() {
    let tags: Vec<Value> = (0..200).map(|n| call(&format!("tool_{n}"), &number())).collect();
    let grammar = tag(&json!({"type": "triggered_tags", "triggers": ["<fn="], "tags": tags}));
    let began = std::time::Instant::now();
    assert!(compiler(Limits::default()).compile(&grammar).is_ok());
    assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
}

#[test]
fn a_long_sequence_is_read_in_time() {
    let each = json!({"type": "const_string", "value": "a"});
    let tags = json!({"type": "sequence", "elements": vec![each; 5_000]});
    let began = std::time::Instant::now();
    let compiled = compiler(Limits::default()).compile(&tag(&tags));
    assert!(began.elapsed().as_secs() < 10, "{:?}: {:?}", began.elapsed(), compiled.err());
}
