//! What is refused, how soon, and what the cache keeps.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::{SIZE, STOP, allowed, compile, compiler, schema, tokens};
use minisgl_grammar::{
    COMPILE_STACK_BYTES, GrammarError, Limits, STEP_STACK_BYTES, Vocabulary, VocabularyError,
};
use minisgl_proto::Grammar;
use serde_json::json;

fn refused(grammar: &Grammar) -> String {
    let began = Instant::now();
    let error = compile(grammar).err().expect("refused");
    // On a busy machine; it takes some ten milliseconds.
    assert!(began.elapsed() < Duration::from_secs(5), "{error} after {:?}", began.elapsed());
    error.to_string()
}

#[test]
fn what_cannot_be_enforced_is_named() {
    for (text, named) in [
        (r#"{"type": "object", "not": {"required": ["a"]}}"#, "not"),
        (r#"{"type": "array", "uniqueItems": true}"#, "uniqueItems"),
        (r#"{"type": "strin"}"#, "strin"),
        ("{", "EOF"),
    ] {
        let error = refused(&schema(text));
        assert!(error.contains("JSON schema") && error.contains(named), "{text}: {error}");
    }
    let lenient = |text: &str| Grammar::JsonSchema { schema: text.to_owned(), lenient: true };
    compile(&lenient(r#"{"type": "array", "uniqueItems": true}"#)).unwrap();
    // Options are not the schema's to set.
    let smuggled = r#"{"type": "array", "uniqueItems": true, "x-guidance": {"lenient": true}}"#;
    assert!(refused(&schema(smuggled)).contains("uniqueItems"));
    assert!(refused(&Grammar::Regex("(a".into())).contains("regular expression"));
    assert!(refused(&Grammar::Regex("a(?=b)".into())).contains("look-around"));
    assert!(refused(&Grammar::Regex(r"\bword\b".into())).contains("regular expression"));
    assert!(refused(&Grammar::Lark("start: other".into())).contains("other"));
    assert_eq!(compile(&Grammar::Choice(Vec::new())).err(), Some(GrammarError::NoChoice));
}

#[test]
fn costly_grammars_are_refused_soon() {
    let large = schema(&json!({ "const": "x".repeat(1 << 20) }).to_string());
    assert!(refused(&large).contains("the limit is 262144"), "{}", refused(&large));
    let costly = Grammar::Lark(format!("start: {}", "\"a\"? ".repeat(40_000)));
    assert!(refused(&costly).contains("the limit is 16384"));
    // A schema may have many patterns, or a long one.
    let pattern =
        |characters: usize| format!("{{\"pattern\": \"{}\"}}", "a?".repeat(characters / 2));
    let patterns = |count: usize, characters: usize| {
        schema(&format!("{{\"allOf\": [{}]}}", vec![pattern(characters); count].join(",")))
    };
    for grammar in [
        Grammar::Regex("a?".repeat(2_001)),
        patterns(1, 4_002),
        patterns(17, 1_000),
        schema(r#"{"type": "integer", "multipleOf": 1000003}"#),
        schema(r#"{"type": "number", "multipleOf": 1000.003}"#),
        Grammar::Choice((0..10_001).map(|n| n.to_string()).collect()),
        Grammar::Lark("start: A\nA: /a+/ & /b+/ & /c+/ & /d+/ & /e+/ & /f+/".into()),
    ] {
        let error = refused(&grammar);
        let limit = ["the limit is 4000", "the limit is 10000", "the limit is 4"];
        assert!(limit.iter().any(|limit| error.ends_with(limit)), "{error}");
    }
    compile(&patterns(16, 100)).unwrap();
}

/// What is compiled as it goes is given up as it goes: no token takes long, and the output's error says so.
#[test]
fn costly_states_are_given_up_soon() {
    for (costly, token) in [
        ("(a|b)*a(a|b){5000}c(a|b){5000}", b'a'),
        ("(((a{1,100}){1,100}){1,100}){1,100}", b'a'),
        ("(.{0,300}x){0,300}.*(y.{300}|z.{299}){50}", b'x'),
        ("([^x]*x[^y]*y){0,400}(.*z.*){1,60}", b'x'),
    ] {
        let began = Instant::now();
        let Ok(compiled) = compile(&Grammar::Regex(costly.into())) else { continue };
        let (mut state, mut output) = (compiled.begin(), Vec::new());
        let mut longest = began.elapsed();
        for _ in 0..200 {
            let began = Instant::now();
            let gone = state.narrow(&output, &mut [u32::MAX; SIZE.div_ceil(32)]).is_err();
            longest = longest.max(began.elapsed());
            output.push(token.into());
            if gone {
                break;
            }
        }
        println!("{costly}: {} tokens, {longest:?} at most", output.len());
        assert!(longest < Duration::from_secs(2), "{costly}: {longest:?}");
    }
}

#[test]
fn too_many_of_something_are_named() {
    let properties: Vec<String> = (0..2_001).map(|n| format!("\"p{n}\": {{}}")).collect();
    let wide = schema(&format!("{{\"properties\": {{{}}}}}", properties.join(",")));
    assert!(refused(&wide).contains("2001 properties in one object; the limit is 2000"));
    let alternatives = schema(&format!("{{\"anyOf\": [{}{{}}]}}", "{},".repeat(512)));
    assert!(refused(&alternatives).contains("513 alternatives in one place; the limit is 512"));
    let chain = schema(&format!("{{\"allOf\": [{}{{}}]}}", "{\"$ref\": \"#\"},".repeat(2_001)));
    assert!(refused(&chain).contains("2001 references; the limit is 2000"));
    let rules: String = (0..2_001).map(|n| format!("a{n}:b\n")).collect();
    assert!(refused(&Grammar::Lark(rules)).contains("2001 rules; the limit is 2000"));
}

/// Merging two objects takes all names that they require.
#[test]
fn references_to_many_required_names_are_soon_answered() {
    let to = json!({ "$ref": "#/$defs/x" });
    let one_of = json!({ "oneOf": [to, to] });
    let names: Vec<String> = (0..20_000).map(|n| format!("n{n}")).collect();
    let x = json!({ "type": "object", "required": names });
    for (count, told) in [(4_000, "limit is 262144"), (900, "20000 required properties")] {
        let many = json!({ "$defs": { "x": x }, "allOf": vec![&one_of; count] });
        let began = Instant::now();
        let error = refused(&schema(&many.to_string()));
        assert!(error.contains(told), "{error}");
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }
}

#[test]
fn many_alternatives_are_taken() {
    let names: Vec<String> = (0..10_000).map(|n| format!("choice number {n}")).collect();
    let began = Instant::now();
    compile(&Grammar::Choice(names[..2_000].to_vec())).unwrap();
    compile(&schema(&json!({ "enum": names }).to_string())).unwrap();
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[test]
fn the_cache_is_bounded_and_shared() {
    let limits = Limits { cache_entries: 2, cache_bytes: 40, text_bytes: 30, ..Limits::default() };
    let compiler = compiler(limits);
    let regex = |text: &str| compiler.compile(&Grammar::Regex(text.into())).unwrap();
    let first = regex("a+");
    assert!(Arc::ptr_eq(&first, &regex("a+")));
    regex("b+");
    assert!(Arc::ptr_eq(&first, &regex("a+")), "two fit");
    regex("c+");
    assert!(Arc::ptr_eq(&first, &regex("a+")), "the one asked for last stays");
    regex("a+b+c+d+e+f+g+h+i+");
    regex("a+b+c+d+e+f+g+h+k+");
    assert!(!Arc::ptr_eq(&first, &regex("a+")), "bytes are bounded too");
    let long = compiler.compile(&Grammar::Regex("a".repeat(31))).err().unwrap();
    assert!(long.to_string().contains("31 bytes; the limit is 30"), "{long}");
    // A refusal is remembered like a grammar.
    let bad = Grammar::Regex("(".into());
    assert_eq!(compiler.compile(&bad).err(), compiler.compile(&bad).err());
}

#[test]
fn who_asks_for_the_same_at_once_gets_the_same() {
    let compiler = compiler(Limits::default());
    let grammar =
        schema(r#"{"type": "array", "items": {"type": "string", "pattern": "^[a-z]{1,40}$"}}"#);
    let all: Vec<_> = std::thread::scope(|scope| {
        let ask = |_| scope.spawn(|| compiler.compile(&grammar).unwrap());
        let threads: Vec<_> = (0..8).map(ask).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(all.iter().all(|compiled| Arc::ptr_eq(compiled, &all[0])));
}

#[test]
fn vocabularies_without_an_end_are_refused() {
    let limits = Limits::default();
    let of = |stop: &[u32]| Vocabulary::new(tokens(), SIZE, stop, &limits).err();
    assert_eq!(of(&[]), Some(VocabularyError::NoStopToken));
    assert_eq!(of(&[300]), Some(VocabularyError::StopToken { token: 300, size: SIZE }));
    assert_eq!(of(&STOP), None);
    let error = Vocabulary::read("{}", SIZE, &STOP, &limits).err().unwrap();
    assert!(matches!(error, VocabularyError::Unreadable(_)), "{error}");
}

/// A `tokenizer.json` in bytes as GPT-2 writes them.
#[test]
fn a_tokenizer_says_what_its_tokens_stand_for() {
    let json = json!({
        "added_tokens": [{"id": 4, "content": "<|end|>", "special": true}],
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": {"a": 0, "\u{120}a": 1, "\u{10a}": 2, "\u{c3}": 3}, "merges": []},
    });
    let limits = Limits::default();
    let vocabulary = Vocabulary::read(&json.to_string(), 8, &[4], &limits).unwrap();
    assert_eq!(vocabulary.size(), 8);
    let compiler = minisgl_grammar::Compiler::new(vocabulary, limits);
    let mut state = compiler.compile(&Grammar::Regex("a a\n".into())).unwrap().begin();
    for (output, may) in [(vec![], 0), (vec![0], 1), (vec![0, 1], 2), (vec![0, 1, 2], 4)] {
        let mut mask = [u32::MAX];
        state.narrow(&output, &mut mask).unwrap();
        assert_eq!(mask, [1 << may], "{output:?}");
    }
}

/// A thread's stack is not a grammar's to fill: that would end the process, and all that it serves. With as many definitions as
/// there may be.
#[test]
fn deep_grammars_do_not_end_the_process() {
    let (deep, most) = (3_000, Limits::default().definitions - 2);
    // As many as there is room for.
    let lines = 800;
    let chain = |link: &dyn Fn(usize) -> String| {
        let defs: Vec<String> = (0..most).map(|n| format!("\"d{n}\": {}", link(n + 1))).collect();
        schema(&format!(
            "{{\"$ref\": \"#/$defs/d0\", \"$defs\": {{{}, \"d{most}\": {{\"type\": \"null\"}}}}}}",
            defs.join(",")
        ))
    };
    let rules =
        |link: &dyn Fn(usize) -> String| -> String { (0..lines).map(|n| link(n) + "\n").collect() };
    let terminals = rules(&|n| format!("A{n}: A{} | \"y\"", n + 1));
    let parser = rules(&|n| format!("a{n}: a{}", n + 1));
    let ebnf = rules(&|n| format!("a{n} ::= a{}", n + 1));
    let taken = [
        Grammar::Lark(format!("start: a0\n{parser}\na{lines}: \"x\"")),
        Grammar::Lark(format!("start: A0\n{terminals}\nA{lines}: \"x\"")),
        Grammar::Ebnf(format!("root ::= a0\n{}", ebnf.replace(&format!("a{lines}"), "\"x\""))),
        Grammar::Regex("a|".repeat(2_000)),
        Grammar::Regex("ab?".repeat(1_333)),
        schema(&format!(
            "{}{{}}{}",
            "{\"anyOf\":[{\"type\":\"string\"},".repeat(60),
            "]}".repeat(60)
        )),
        chain(&|next| format!("{{\"$ref\": \"#/$defs/d{next}\"}}")),
        chain(&|next| format!("{{\"allOf\": [{{\"$ref\": \"#/$defs/d{next}\"}}, {{}}]}}")),
        chain(&|next| {
            format!("{{\"type\": \"array\", \"items\": {{\"$ref\": \"#/$defs/d{next}\"}}}}")
        }),
    ];
    let refused = [
        Grammar::Lark(format!("start: {}\"a\"{}", "(".repeat(deep), ")".repeat(deep))),
        Grammar::Lark(format!("start: {}", "(".repeat(deep))),
        Grammar::Lark(format!("start: \"a\"{}", "?".repeat(deep))),
        Grammar::Lark(format!("{terminals}x: \"a\"\ny: \"b\"\nz: \"c\"\nstart: A0")),
        Grammar::Ebnf(format!("root ::= {}\"a\"{}", "(".repeat(deep), ")".repeat(deep))),
        Grammar::Regex(format!("{}a{}", "(".repeat(deep), ")".repeat(deep))),
        schema(&format!("{}{}", "{\"items\":".repeat(20_000), "}".repeat(20_000))),
        schema(&format!("{{\"allOf\": [{}{{}}]}}", "{\"$ref\": \"#\"},".repeat(most + 3))),
    ];
    let in_thread = |bytes: usize, work: Box<dyn FnOnce() + Send>| {
        let thread = std::thread::Builder::new().stack_size(bytes);
        thread.spawn(work).unwrap().join().unwrap();
    };
    let all = taken.into_iter().map(|g| (g, true)).chain(refused.into_iter().map(|g| (g, false)));
    for (grammar, is_taken) in all {
        let work = move || {
            let compiled = compile(&grammar);
            let text: String = format!("{grammar:?}").chars().take(80).collect();
            let error = compiled.as_ref().err();
            assert_eq!(compiled.is_ok(), is_taken, "{text}: {error:?}");
            let Ok(compiled) = compiled else { return };
            let step = move || {
                let mut state = compiled.begin();
                for output in [&[][..], &[u32::from(b'a')], &[u32::from(b'a'), u32::from(b'b')]] {
                    let _ = state.narrow(output, &mut [u32::MAX; SIZE.div_ceil(32)]);
                }
            };
            let thread = std::thread::Builder::new().stack_size(STEP_STACK_BYTES);
            thread.spawn(step).unwrap().join().unwrap();
        };
        in_thread(COMPILE_STACK_BYTES, Box::new(work));
    }
}

/// What stands behind `%json` in a grammar is a schema as any other.
#[test]
fn schemas_in_a_grammar_are_held_to_their_limits() {
    let behind = |schema: &str| Grammar::Lark(format!("start: \"a\" %json {schema}"));
    let many = |count: usize, item: &str| vec![item; count].join(",");
    let fields: Vec<String> = (0..2_001).map(|n| format!("\"p{n}\": 1")).collect();
    for (schema, told) in [
        (
            r#"{"type": "integer", "multipleOf": 1000003}"#.to_owned(),
            "multipleOf; the limit is 10000",
        ),
        (
            format!(r#"{{"anyOf": [{}]}}"#, many(513, "{}")),
            "513 alternatives in one place; the limit is 512",
        ),
        (
            format!(r#"{{"pattern": "{}"}}"#, "a?".repeat(2_001)),
            "4002 characters in patterns; the limit is 4000",
        ),
        (
            format!("{{\"const\": {{{}}}}}", fields.join(",")),
            "properties in one object; the limit is 2000",
        ),
        (
            format!("{{\"allOf\": [{}]}}", many(2_001, r##"{"$ref": "#"}"##)),
            "2001 references; the limit is 2000",
        ),
        // Options are the server's to set.
        (r#"{"uniqueItems": true, "x-guidance": {"lenient": true}}"#.to_owned(), "uniqueItems"),
        (
            r#"{"x-guidance": {"whitespace_pattern": "(a?){4000}"}, "uniqueItems": true}"#
                .to_owned(),
            "uniqueItems",
        ),
    ] {
        let error = refused(&behind(&schema));
        assert!(error.contains(told), "{schema:.80}: {error}");
        // Nor does it hide behind a quotation mark that is none, or in a grammar inside the grammar.
        for hidden in [
            format!("start: /\"/ \"/\" %json {schema}"),
            format!("# \"\nstart: a\na: /[\"]/ | %json{schema}"),
            format!("start: %lark {{ start: \"\\\"\" %json {schema}\n }}"),
        ] {
            let error = refused(&Grammar::Lark(hidden));
            assert!(error.contains(told), "{schema:.80}: {error}");
        }
    }
    // Several count together, and each by itself.
    let pattern = format!(r#"%json {{"type": "string", "pattern": "{}"}} "#, "a?".repeat(500));
    let error = refused(&Grammar::Lark(format!("start: {}", pattern.repeat(17))));
    assert!(error.contains("characters in patterns; the limit is 4000"), "{error}");
    let error = refused(&Grammar::Lark(format!("start: {}", "%json{}".repeat(2_001))));
    assert!(error.contains("2001 schemas; the limit is 2000"), "{error}");
    // Signs of a grammar count wherever they stand, and those of a schema do not.
    let signs = "A: /\"/ & /b/ & /c/ & /d/ & /e/ & /f/";
    assert!(refused(&Grammar::Lark(format!("start: A\n{signs}"))).contains("operators"));
    let long = json!({ "const": "&~:".repeat(10_000) });
    compile(&behind(&long.to_string())).unwrap();
    compile(&Grammar::Lark("start: \"&~&~&~\" /[&~&~]/".into())).unwrap();
}

/// An output of such a grammar has no more space than one of a schema alone.
#[test]
fn schemas_in_a_grammar_have_our_space() {
    let grammar = |space: &str| {
        Grammar::Lark(format!(
            "start: %json {{\"items\": {{\"type\": \"null\"}}, \"type\": \"array\"{space}}}"
        ))
    };
    for options in ["", r#", "x-guidance": {"whitespace_pattern": "x"}"#] {
        let mut state = compile(&grammar(options)).unwrap().begin();
        let mut output: Vec<u32> = b"[".iter().map(|&byte| byte.into()).collect();
        assert!(allowed(&mut state, &output).contains(&u32::from(b' ')));
        output.extend(vec![u32::from(b' '); 128]);
        let may = allowed(&mut state, &output);
        assert!(!may.contains(&u32::from(b' ')) && may.contains(&u32::from(b']')), "{may:?}");
    }
}

#[test]
fn the_other_values_in_a_grammar_cost_little() {
    let words = |bytes: usize| {
        let text: String = (0..bytes).map(|n| if n % 7 == n % 11 { 'b' } else { 'a' }).collect();
        Grammar::Lark(format!("start: %regex {{\"substring_chars\": \"{text}\"}}"))
    };
    let began = Instant::now();
    compile(&words(16_000)).err();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    println!("substring: {:?}", began.elapsed());
    assert!(refused(&words(16_400)).contains("the limit is 16384"));
    let began = Instant::now();
    compile(&Grammar::Lark(format!("start: {}", "%json{}".repeat(2_000)))).unwrap();
    println!("schemas: {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

/// Each way is a copy of all that it is put together of.
#[test]
fn alternatives_that_multiply_are_refused_before_they_are_merged() {
    let two = r##"{"oneOf":[{"$ref":"#/$defs/x"},{"$ref":"#/$defs/x"}]}"##;
    let items = vec![two; 17].join(",");
    let text = "a".repeat(100_000);
    let schema_ = format!(r#"{{"$defs":{{"x":{{"const":"{text}"}}}},"allOf":[{items}]}}"#);
    let began = Instant::now();
    assert!(refused(&schema(&schema_)).contains("combinations of alternatives in one place"));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}
