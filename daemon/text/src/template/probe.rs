//! A template is tried with small conversations, so that what it cannot do is known before a client meets it, and each
//! conversation is given in the form that it takes.
//!
//! Owns: the trial conversations and what they tell. Must never: fail a load; a template may know only the
//! conversations that its model was made for.

use std::sync::atomic::AtomicBool;

use minisgl_proto::text::{Conversation, TemplateTraits};
use serde_json::{Value, json};

use super::adapt::{Content, Form};
use super::{ChatTemplate, TRIAL_LIMITS, TemplateError};

/// Words that no template writes by itself.
const SYSTEM: &str = "zyxsystem";
const USER: &str = "zyxuser";
const ANSWER: &str = "zyxanswer";
const LATE: &str = "zyxlate";
const TOOL: &str = "zyx_tool";
const CALL: &str = "zyx_call";
const ARGUMENT: &str = "zyxargument";

fn user() -> Value {
    json!({"role": "user", "content": USER})
}

fn try_with(
    template: &ChatTemplate,
    messages: &[Value],
    tools: bool,
) -> Result<String, TemplateError> {
    let tool = json!({"type": "function", "function": {
        "name": TOOL, "description": "A tool.",
        "parameters": {"type": "object", "properties": {"x": {"type": "string", "description": "A text."}}, "required": ["x"]},
    }});
    let conversation = Conversation {
        tools: tools.then(|| vec![tool]),
        add_generation_prompt: true,
        ..Conversation::default()
    };
    template.render_as(&conversation, messages, TRIAL_LIMITS, &AtomicBool::new(false))
}

/// Tries the template; its traits, form and notes are set.
pub fn probe(template: &mut ChatTemplate) {
    let mut notes = Vec::new();
    if let Err(why) = try_with(template, &[user()], false) {
        notes.push(format!("chat: one message of a user fails: {why}"));
    }
    let has = |messages: &[Value], tools: bool, word: &str| {
        try_with(template, messages, tools).is_ok_and(|prompt| prompt.contains(word))
    };
    let message = |role: &str, content: &str| json!({"role": role, "content": content});
    let traits = TemplateTraits {
        system: has(&[message("system", SYSTEM), user()], false, SYSTEM),
        developer: has(&[message("developer", SYSTEM), user()], false, SYSTEM),
        late_system: has(
            &[
                message("system", SYSTEM),
                user(),
                message("assistant", ANSWER),
                message("system", LATE),
                user(),
            ],
            false,
            LATE,
        ),
        tools: has(&[user()], true, TOOL),
        arguments_as_text: false,
    };
    if !traits.system {
        notes.push("chat: a system message does not reach the prompt".to_owned());
    }
    if !traits.tools {
        let why = match try_with(template, &[user()], true) {
            Err(why) => format!(": {why}"),
            Ok(_) => String::new(),
        };
        notes.push(format!("chat: tools do not reach the prompt{why}"));
    }
    let form = Form {
        rename_developer: traits.system && !traits.developer,
        join_system: traits.system && !traits.late_system,
        ..Form::default()
    };
    let (form, calls) = form_of_calls(template, form);
    if let (Err(why), true) = (calls, traits.tools) {
        notes.push(format!("chat: tool calls in earlier messages do not reach the prompt{why}"));
    }
    template.traits = TemplateTraits { arguments_as_text: form.arguments_as_text, ..traits };
    template.form = form;
    template.notes = notes;
}

/// The first form in which a tool call reaches the prompt with its arguments, else by its name, and nothing that is
/// not text does.
fn form_of_calls(template: &ChatTemplate, form: Form) -> (Form, Result<(), String>) {
    let forms = [false, true].into_iter().flat_map(|arguments_as_text| {
        [Content::Absent, Content::Null, Content::Empty].map(|content| Form {
            arguments_as_text,
            content,
            ..form
        })
    });
    let arguments = json!({"x": ARGUMENT}).to_string();
    let call = json!({"id": "zyxcall01", "type": "function", "function": {"name": CALL, "arguments": arguments}});
    let messages = [
        user(),
        json!({"role": "assistant", "content": null, "tool_calls": [call]}),
        json!({"role": "tool", "tool_call_id": "zyxcall01", "name": CALL, "content": ANSWER}),
    ];
    let mut failure = String::new();
    // Else the one that says most often what was called.
    let mut named: Option<(usize, Form)> = None;
    for form in forms {
        match try_with(template, &super::adapt::messages(&messages, form), true) {
            Ok(prompt) => {
                // Text inside of JSON text has its quotes escaped.
                let spoiled = prompt.contains("None") || prompt.contains("\\\"x\\\"");
                if spoiled || !prompt.contains(CALL) {
                    continue;
                }
                if prompt.contains(ARGUMENT) {
                    return (form, Ok(()));
                }
                let names = prompt.matches(CALL).count();
                if names > named.map_or(0, |(most, _)| most) {
                    named = Some((names, form));
                }
            }
            Err(why) if failure.is_empty() => failure = format!(": {why}"),
            Err(_) => {}
        }
    }
    match named {
        Some((_, form)) => (form, Ok(())),
        // As most clients send it: content that is text in any case.
        None => (Form { content: Content::Empty, ..form }, Err(failure)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Files;

    fn template(source: &str) -> ChatTemplate {
        let files =
            Files { templates: vec![("default".into(), source.into())], ..Files::default() };
        ChatTemplate::new("/m".as_ref(), files).unwrap().unwrap()
    }

    fn render(source: &str, messages: Value) -> String {
        let messages = messages.as_array().unwrap().clone();
        let conversation = Conversation { messages, ..Conversation::default() };
        template(source).render(&conversation, &AtomicBool::new(false)).unwrap()
    }

    fn calls(content: Value) -> Value {
        json!([
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": content, "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]},
            {"role": "tool", "tool_call_id": "c1", "content": "ok"},
        ])
    }

    #[test]
    fn arguments_are_text_where_the_template_joins_them() {
        let source = "{% for m in messages %}{% for t in m.tool_calls or [] %}{{ '<call>' + t.function.name + ' ' + t.function.arguments }}{% endfor %}{% endfor %}";
        assert!(template(source).traits.arguments_as_text);
        assert_eq!(render(source, calls(json!(""))), "<call>f {\"a\": 1}");
        let source = "{% for m in messages %}{% for t in m.tool_calls or [] %}{{ t.function.name ~ ' ' ~ t.function.arguments | tojson }}{% endfor %}{% endfor %}";
        assert!(!template(source).traits.arguments_as_text);
        assert_eq!(render(source, calls(json!(""))), "f {\"a\": 1}");
    }

    #[test]
    fn no_content_beside_calls_is_what_the_template_looks_for() {
        let source = "{% for m in messages %}{% if m.role == 'assistant' and m.content is none %}<call {{ m.tool_calls[0].function.name }}{{ m.tool_calls[0].function.arguments }}>{% elif m.content is not none %}[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}";
        assert_eq!(render(source, calls(Value::Null)), "[user]Hi<call f{'a': 1}>[tool]ok");
    }

    #[test]
    fn a_call_of_which_only_the_name_is_written_is_not_lost() {
        let source = "{% for m in messages %}{% if m.role == 'assistant' and m.content is none %}<call {{ m.tool_calls[0].function.name }}>{% elif m.content is not none %}[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}";
        assert_eq!(render(source, calls(Value::Null)), "[user]Hi<call f>[tool]ok");
    }

    #[test]
    fn developers_speak_as_system_where_the_template_knows_only_that() {
        let source = "{% for m in messages %}{% if m.role in ['system','user','assistant'] %}[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}";
        let messages =
            json!([{"role": "developer", "content": "French."}, {"role": "user", "content": "Hi"}]);
        assert_eq!(render(source, messages.clone()), "[system]French.[user]Hi");
        let knows = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}";
        assert_eq!(render(knows, messages), "[developer]French.[user]Hi");
    }

    #[test]
    fn a_template_that_refuses_a_late_system_message_gets_it_first() {
        let source = "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('late') }}{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}";
        let messages =
            json!([{"role": "user", "content": "Hi"}, {"role": "system", "content": "Be brief."}]);
        assert_eq!(render(source, messages), "[system]Be brief.[user]Hi");
    }

    #[test]
    fn what_a_template_cannot_do_is_said() {
        let notes = template("{{ messages[0].nothing.at_all }}").notes;
        assert!(
            notes[0].contains("one message of a user fails") && notes[0].contains("line 1"),
            "{notes:?}"
        );
        let notes = template("{% for m in messages %}{{ m.content }}{% endfor %}").notes;
        assert_eq!(notes, ["chat: tools do not reach the prompt"]);
        let all = "{{ tools }}{% for m in messages %}{{ m.role }}{{ m.content }}{{ m.tool_calls }}{% endfor %}";
        assert_eq!(template(all).notes, [""; 0]);
    }

    #[test]
    fn a_template_without_an_end_is_given_up() {
        let endless =
            "{% for a in range(99999) %}{% for b in range(99999) %}{{ b }}{% endfor %}{% endfor %}";
        let large = "{% set ns = namespace(s='xxxxxxxxxxxxxxxx') %}{% for a in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}";
        let deep = "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}";
        for (source, why) in [(endless, "steps"), (large, "steps"), (deep, "inside each other")] {
            let given_up = try_with(&template(source), &[user()], false).unwrap_err().to_string();
            assert!(given_up.contains(why), "{given_up}");
        }
    }
}
