//! Grammars of many tools, and of large ones.

use std::sync::Arc;
use std::time::{Duration, Instant};

use minisgl_dialect::{Enforced, LARK_BYTES_MAX, Tool, Wanted, by_name, names};
use minisgl_grammar::{COMPILE_STACK_BYTES, Compiled, GrammarError, STEP_STACK_BYTES};
use minisgl_proto::Grammar;
use serde_json::{Value, json};

use crate::common::{SIZE, compile};

fn lark(dialect: &str, tools: &[Tool], required: bool) -> Result<String, String> {
    let all: Vec<Enforced<'_>> =
        tools.iter().map(|tool| Enforced { tool, strict: false }).collect();
    let wanted = Wanted { tools: &all, required, single: false, answer: None };
    by_name(dialect).unwrap().lark(&wanted, &|_| None)
}

fn timed(dialect: &str, tools: &[Tool]) -> (Result<Arc<Compiled>, GrammarError>, Duration) {
    let began = Instant::now();
    let lark = lark(dialect, tools, false).unwrap();
    let (bytes, written) = (lark.len(), began.elapsed());
    let compiled = compile(&Grammar::Calls(lark));
    let took = began.elapsed();
    println!("{dialect}: {} tools, {bytes} bytes, {written:?} of {took:?}", tools.len());
    (compiled, took)
}

fn small(count: usize) -> Vec<Tool> {
    let of = |n: usize| {
        let field = format!("field{n}");
        let fields = json!({field: {"type": "string"}, "count": {"type": "integer"}});
        let parameters = json!({"type": "object", "properties": fields, "required": ["count"]});
        Tool { name: format!("tool_{n}"), parameters }
    };
    (0..count).map(of).collect()
}

#[test]
fn a_thousand_tools_are_taken_and_too_many_are_refused_soon() {
    for name in names() {
        let (compiled, took) = timed(name, &small(1_000));
        compiled.unwrap_or_else(|error| panic!("{name}: {error}"));
        // On a busy machine; it takes a second, most of it for a thousand schemas.
        assert!(took < Duration::from_secs(5), "{name}: {took:?}");
        let began = Instant::now();
        let error = lark(name, &small(4_000), false).unwrap_err();
        assert!(
            error.contains("list of tools") && error.contains("the limit is 262144"),
            "{error}"
        );
        assert!(began.elapsed() < Duration::from_secs(5), "{name}: {:?}", began.elapsed());
    }
    assert_eq!(LARK_BYTES_MAX, minisgl_proto::limits::GRAMMAR_BYTES_MAX);
    // Of one schema there is one rule.
    let same = Tool { parameters: json!({"type": "object"}), ..Tool::default() };
    let same: Vec<Tool> =
        (0..4_000).map(|n| Tool { name: format!("tool_{n}"), ..same.clone() }).collect();
    timed("hermes", &same).0.unwrap();
}

/// As agents have them: some thirty tools of a dozen arguments, with a sentence about each.
#[test]
fn tools_of_sixty_kilobytes_are_soon_compiled() {
    let about = "What this is for, when to use it, what it must look like, and what comes of it if it is left out.";
    let fields: serde_json::Map<String, Value> = (0..12)
        .map(|n| {
            let mut field = match n % 4 {
                0 => json!({"type": "string", "enum": ["first", "second", "third"]}),
                1 => json!({"type": "array", "items": {"type": "object", "properties": {
                    "path": {"type": "string"}, "line": {"type": "integer", "minimum": 1}},
                    "required": ["path"]}}),
                2 => json!({"anyOf": [{"type": "string"}, {"type": "null"}]}),
                _ => json!({"type": "string"}),
            };
            field["description"] = about.into();
            (format!("argument_{n}"), field)
        })
        .collect();
    let parameters = json!({"type": "object", "properties": fields, "required": ["argument_0"],
        "additionalProperties": false});
    let mut tools: Vec<Tool> = Vec::new();
    while tools.iter().map(|tool| tool.parameters.to_string().len()).sum::<usize>() < 60_000 {
        let mut parameters = parameters.clone();
        let own = format!("own_{}", tools.len());
        parameters["properties"][own] = json!({"type": "boolean", "description": about});
        tools.push(Tool { name: format!("use_tool_{}", tools.len()), parameters });
    }
    for name in names() {
        let (compiled, took) = timed(name, &tools);
        compiled.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(took < Duration::from_secs(2), "{name}: {took:?}");
    }
}

/// A schema is held to the limits of schemas, whichever way its values are written, or to those of what is written out.
#[test]
fn limits_hold_for_tools() {
    let of = |dialect: &str, parameters: Value| {
        let tool = Tool { name: "f".into(), parameters: json!({"properties": {"a": parameters}}) };
        let lark = lark(dialect, &[tool], true)?;
        compile(&Grammar::Calls(lark)).map(drop).map_err(|error| error.to_string())
    };
    for dialect in ["hermes", "gpt_oss", "glm"] {
        let many = |count: usize| json!({"type": "object", "anyOf": vec![json!({}); count]});
        for (parameters, told) in [
            (json!({"type": "integer", "multipleOf": 1_000_003}), "the limit is 10000"),
            (json!({"type": "array", "items": many(513)}), "the limit is 512"),
            (
                json!({"type": "array", "items": {"pattern": "a?".repeat(2_001)}}),
                "the limit is 4000",
            ),
        ] {
            let error = of(dialect, parameters).unwrap_err();
            assert!(error.contains("list of tools") && error.contains(told), "{dialect}: {error}");
        }
        // A client's own options do not count.
        of(
            dialect,
            json!({"type": "array", "uniqueItems": true, "x-guidance": {"lenient": false}}),
        )
        .unwrap();
    }
    for dialect in ["gemma3", "gemma4"] {
        let fields = |count: usize| {
            let all: serde_json::Map<_, _> =
                (0..count).map(|n| (format!("a{n}"), json!({"type": "null"}))).collect();
            json!({"type": "object", "properties": all})
        };
        let deep = (0..20).fold(fields(60), |inner, _| {
            let mut all = fields(60);
            all["properties"]["z"] = inner;
            all
        });
        for (parameters, told) in [
            (fields(1_001), "too many parts"),
            (deep, "too deep"),
            (json!({"enum": vec![1; 20_001]}), "too many parts"),
        ] {
            let error = of(dialect, parameters).unwrap_err();
            assert!(error.contains("\"f\"") && error.contains(told), "{dialect}: {error}");
        }
        // What is as deep as may be fills no stack.
        let tool = Tool { name: "f".into(), parameters: fields(990) };
        let lark = lark(dialect, &[tool], true).unwrap();
        let thread = std::thread::Builder::new().stack_size(COMPILE_STACK_BYTES);
        let compile = || compile(&Grammar::Calls(lark)).unwrap();
        let compiled = thread.spawn(compile).unwrap().join().unwrap();
        let thread = std::thread::Builder::new().stack_size(STEP_STACK_BYTES);
        let step = move || {
            let mut state = compiled.begin();
            state.narrow(&[], &mut [u32::MAX; SIZE.div_ceil(32)]).unwrap();
        };
        thread.spawn(step).unwrap().join().unwrap();
    }
}

/// Strict schemas are taken at their word, others as far as they can be.
#[test]
fn a_strict_tool_must_be_enforceable() {
    let tool = Tool {
        name: "f".into(),
        parameters: json!({"type": "object", "properties": {"a": {"type": "array", "uniqueItems": true}}}),
    };
    for dialect in ["hermes", "qwen3_coder"] {
        for strict in [false, true] {
            let all = [Enforced { tool: &tool, strict }];
            let wanted = Wanted { tools: &all, required: true, single: true, answer: None };
            let lark = by_name(dialect).unwrap().lark(&wanted, &|_| None).unwrap();
            let error = compile(&Grammar::Calls(lark)).err().map(|error| error.to_string());
            assert_eq!(error.is_some_and(|error| error.contains("uniqueItems")), strict);
        }
    }
}

/// Whoever writes a grammar for a client is not kept busy by a few bytes of it.
#[test]
fn schemas_that_refer_to_themselves_many_times_are_soon_written() {
    let large = json!({"enum": [vec!["x".repeat(1_000); 200]]});
    let many: serde_json::Map<_, _> = (0..900)
        .map(|n| (format!("a{n}"), json!({"type": "array", "items": {"$ref": "#/$defs/large"}})))
        .collect();
    let itself = vec![json!({"$ref": "#"}); 50];
    let itself = json!({"type": "object", "allOf": itself.clone(), "anyOf": itself.clone(),
        "properties": {"a": {"anyOf": itself}}});
    for parameters in [json!({"properties": many, "$defs": {"large": large}}), itself] {
        for name in names() {
            let tools = [Tool { name: "f".into(), parameters: parameters.clone() }];
            let began = Instant::now();
            let written = lark(name, &tools, true);
            let bytes = written.as_ref().map_or(0, String::len);
            println!("{name}: {bytes} bytes after {:?}, {:?}", began.elapsed(), written.err());
            assert!(began.elapsed() < Duration::from_secs(2), "{name}: {:?}", began.elapsed());
        }
    }
}
