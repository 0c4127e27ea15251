//! What Jinja2 makes of every construct (tests/fixtures/make_jinja.py), against what is made here.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use minisgl_proto::integers;
use serde_json::Value as Json;

use super::{Error, Limits, Template, Value};

const LIMITS: Limits = Limits { fuel: 50_000, bytes: 1 << 20 };

fn render(source: &str, variables: &Json) -> Result<String, String> {
    let template =
        Template::new(source).map_err(|why| format!("line {}: {}", why.line, why.message))?;
    let variables = variables.as_object().unwrap().iter();
    let variables = variables.map(|(name, value)| (name.clone(), Value::from(value)));
    template
        .render(variables, LIMITS, &AtomicBool::new(false))
        .map_err(|(why, line)| format!("line {line}: {why:?}"))
}

#[test]
fn constructs_are_jinja2s() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/jinja/constructs.json");
    let text = std::fs::read_to_string(path).unwrap();
    let fixture: Json = serde_json::from_str(&integers::mark(&text)).unwrap();
    let cases = fixture["cases"].as_array().unwrap();
    assert!(cases.len() > 500);
    let mut wrong = Vec::new();
    for case in cases {
        let source = case["template"].as_str().unwrap();
        match (render(source, &fixture["variables"]), case["rendered"].as_str()) {
            (Ok(made), Some(right)) if made == right => {}
            (Err(_), None) => {}
            (made, right) => wrong.push(format!(
                "{source}\n   right {:?}\n   made  {made:?}",
                right.ok_or(&case["error"])
            )),
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[test]
fn errors_say_what_and_where() {
    let none = serde_json::json!({});
    let fails = |source: &str, words: &str| {
        let why = render(source, &none).unwrap_err();
        assert!(why.contains(words), "{why}");
    };
    fails("a\n{% if %}", "line 2");
    fails("a\n\n{{ x.y }}", "line 3: Failed(\"'x' is undefined\")");
    fails("{% nope %}", "there is no tag \"nope\"");
    fails("{{ 'a'", "a tag has no end");
    fails("{% if 1 %}a", "endif");
    fails("{% break %}", "outside of a loop");
    fails(&format!("{{{{ {}1{} }}}}", "(".repeat(500), ")".repeat(500)), "inside each other");
    fails("{{ raise_exception('no') }}", "Raised(\"no\")");
}

#[test]
fn nothing_grows_without_an_end() {
    let none = serde_json::json!({});
    for source in [
        "{{ 'x' * 999999999999 }}",
        "{{ [1] * 999999999999 }}",
        "{{ 'x'.center(99999999999) }}",
        "{{ '%99999999d' % 1 }}",
        "{{ '{:>99999999}'.format(1) }}",
        "{{ range(9999999) }}",
        "{{ 9 ** 9 ** 9 }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for a in range(99) %}{% set ns.s = ns.s.replace('x', 'xx') %}{% endfor %}",
        "{% set ns = namespace(s=[1]) %}{% for a in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    ] {
        assert!(render(source, &none).is_err(), "{source}");
    }
}

#[test]
fn who_does_not_wait_is_not_served() {
    let template = Template::new("{% for a in range(99999) %}{{ a }}{% endfor %}").unwrap();
    let done = template.render([], LIMITS, &AtomicBool::new(true));
    assert_eq!(done.unwrap_err().0, Error::Abandoned);
}
