//! What schemas become.

use serde_json::json;

use super::*;

#[track_caller]
fn check(mut schema: Value, expected: &Value) {
    let before = schema.to_string();
    rewrite(&mut schema, &mut Budget::default());
    // The order of words is the order of properties.
    assert_eq!(schema.to_string(), expected.to_string(), "of {before}");
}

#[test]
fn what_says_nothing_is_left_out() {
    check(
        json!({ "uniqueItems": false, "items": { "uniqueItems": true } }),
        &json!({ "items": { "uniqueItems": true } }),
    );
    check(
        json!({ "type": "object", "propertyNames": { "type": "string" }, "minProperties": 1.0 }),
        &json!({ "type": "object", "minProperties": 1 }),
    );
    // Names of properties and values are no words.
    for same in [
        json!({ "properties": { "uniqueItems": false, "propertyNames": true } }),
        json!({ "const": { "uniqueItems": false, "format": "date" } }),
        json!({ "enum": [{ "minItems": 1.0 }] }),
        json!({ "default": { "uniqueItems": false } }),
        json!({ "minItems": 1.5 }),
    ] {
        check(same.clone(), &same);
    }
}

#[test]
fn names_become_properties() {
    check(
        json!({ "$defs": { "Colour": { "enum": ["red", "blue"], "title": "Colour", "type": "string" } },
            "additionalProperties": { "type": "integer" }, "propertyNames": { "$ref": "#/$defs/Colour" } }),
        &json!({ "$defs": { "Colour": { "enum": ["red", "blue"], "title": "Colour", "type": "string" } },
            "additionalProperties": false,
            "properties": { "red": { "type": "integer" }, "blue": { "type": "integer" } } }),
    );
    check(
        json!({ "propertyNames": { "pattern": "^x" } }),
        &json!({ "patternProperties": { "^x": true }, "additionalProperties": false }),
    );
    let long: Vec<String> = (0..=NAMES_MAX).map(|n| n.to_string()).collect();
    for same in [
        json!({ "propertyNames": { "minLength": 2 } }),
        json!({ "propertyNames": { "pattern": "^x", "enum": ["x"] } }),
        json!({ "propertyNames": { "enum": ["x", 1] } }),
        json!({ "propertyNames": { "$ref": "#/nowhere" } }),
        json!({ "propertyNames": { "enum": long } }),
        json!({ "propertyNames": { "enum": ["a"] }, "additionalProperties": { "const": "x".repeat(NAMES_BYTES_MAX) } }),
        json!({ "propertyNames": { "enum": ["a"] }, "properties": { "a": {}, "b": {} } }),
    ] {
        check(same.clone(), &same);
    }
}

#[test]
fn limits_and_drafts_are_those_that_there_are() {
    check(
        json!({ "$schema": "https://json-schema.org/draft-07/schema", "minimum": -3.5e38, "maximum": u64::MAX }),
        &json!({ "$schema": "http://json-schema.org/draft-07/schema#",
            "minimum": -NUMBER_MAX, "maximum": NUMBER_MAX }),
    );
    check(
        json!({ "$schema": "http://json-schema.org/schema#", "type": "null" }),
        &json!({ "type": "null" }),
    );
    for same in [
        json!({ "minimum": 1e30, "maximum": -1e30 }),
        json!({ "minimum": -9_007_199_254_740_991_i64, "maximum": 9_007_199_254_740_991_i64 }),
        json!({ "$schema": "https://example.com/mine" }),
    ] {
        check(same.clone(), &same);
    }
}

#[test]
fn constants_exclude_each_other() {
    check(
        json!({ "type": "integer", "oneOf": [{ "const": 1, "title": "One" }, { "const": 2 }], "title": "n" }),
        &json!({ "type": "integer", "anyOf": [{ "const": 1, "title": "One" }, { "const": 2 }], "title": "n" }),
    );
    let tagged = |kind: u32| json!({ "type": "object", "properties": { "n": {}, "kind": { "const": kind } }, "required": ["n", "kind"] });
    let (one, two) = (tagged(1), tagged(2));
    check(
        json!({ "$defs": { "one": one }, "oneOf": [{ "$ref": "#/$defs/one" }, two] }),
        &json!({ "$defs": { "one": one }, "anyOf": [{ "$ref": "#/$defs/one" }, two] }),
    );
    let mut loose = two.clone();
    loose["required"] = json!(["n"]);
    let mut any = two.clone();
    any["type"] = json!(["object", "null"]);
    for same in [
        json!({ "oneOf": [one, one] }),
        json!({ "oneOf": [one, loose] }),
        json!({ "oneOf": [one, any] }),
        json!({ "oneOf": [{ "$ref": "#" }, one] }),
        json!({ "oneOf": [{ "const": 1 }, { "const": 1.0 }] }),
        json!({ "oneOf": [{ "const": 1 }, { "type": "null" }] }),
        json!({ "oneOf": [{ "const": {} }, { "const": [] }] }),
        json!({ "oneOf": [{ "const": 1 }], "anyOf": [{}] }),
    ] {
        check(same.clone(), &same);
    }
}

/// Each level would have eight times what is in it.
#[test]
fn names_in_names_have_a_limit() {
    let names = json!({ "enum": ["a", "b", "c", "d", "e", "f", "g", "h"] });
    let mut schema = json!({ "type": "string" });
    for _ in 0..40 {
        schema = json!({ "propertyNames": names, "additionalProperties": schema });
    }
    rewrite(&mut schema, &mut Budget::default());
    let bytes = schema.to_string().len();
    assert!((NAMES_BYTES_MAX / 8..2 * NAMES_BYTES_MAX).contains(&bytes), "{bytes}");
}

#[test]
fn formats_become_patterns() {
    check(json!({ "format": "nanoid", "pattern": "^x$" }), &json!({ "pattern": "^x$" }));
    for same in [
        json!({ "format": "nanoid" }),
        json!({ "format": "email", "pattern": "@" }),
        json!({ "format": 1, "pattern": "@" }),
    ] {
        check(same.clone(), &same);
    }
    check(json!({ "format": "time" }), &json!({ "pattern": format!("^{TIME}$") }));
    check(
        json!({ "anyOf": [{ "format": "date", "pattern": "^2" }] }),
        &json!({ "anyOf": [{ "pattern": "^2", "allOf": [{ "pattern": format!("^{DATE}$") }] }] }),
    );
}

/// What is looked at elsewhere is so only so often, and the rest stays as it is.
#[test]
fn what_is_referred_to_many_times_is_looked_at_to_an_end() {
    let to = json!({ "$ref": "#/$defs/x" });
    let one_of = json!({ "oneOf": [to, to] });
    let keys = json!({ "propertyNames": to });
    let names = |count: usize| (0..count).map(|n| format!("n{n}")).collect::<Vec<_>>();
    let constants: Map<_, _> =
        (0..1_900).map(|n| (format!("p{n}"), json!({ "const": 1 }))).collect();
    let required: Vec<_> = names(20_000).into_iter().chain(constants.keys().cloned()).collect();
    let mut nested = json!({ "const": "x".repeat(200_000) });
    for _ in 0..100 {
        nested = json!({ "propertyNames": { "enum": names(64) }, "additionalProperties": nested });
    }
    for (what, x, each) in [
        ("required", json!({ "type": "object", "required": names(20_000) }), one_of.clone()),
        (
            "constants of objects",
            json!({ "type": "object", "properties": constants, "required": required }),
            one_of.clone(),
        ),
        ("constants", json!({ "const": "x".repeat(200_000) }), one_of),
        ("names", json!({ "enum": names(20_000) }), keys.clone()),
        ("long names", json!({ "enum": vec!["x".repeat(3_000); 64] }), keys),
        ("nested names", nested, json!({})),
    ] {
        let mut schema = json!({ "$defs": { "x": x }, "allOf": vec![each; 4_000] });
        let began = std::time::Instant::now();
        rewrite(&mut schema, &mut Budget::default());
        let took = began.elapsed();
        println!("{what}: {took:?}");
        assert!(took < std::time::Duration::from_secs(2), "{what}: {took:?}");
    }
}
