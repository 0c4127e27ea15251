//! A template is tried with small conversations, so that what it cannot do is known before a client meets it, and each
//! conversation is given in the form that it takes.
//!
//! Owns: the trial conversations and what they tell. Must never: fail a load; a template may know only the
//! conversations that its model was made for.

use std::sync::atomic::AtomicBool;

use minisgl_proto::text::{Conversation, TemplateTraits};
use serde_json::{Value, json};

use super::adapt::{Content, Developers, Form, Systems};
use super::{ChatTemplate, Forms, TRIAL_LIMITS, TemplateError};

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

/// Trials of a template, with tools or without: it may be another one, or begin otherwise, where there are some.
struct Trials<'a> {
    template: &'a ChatTemplate,
    tools: bool,
}

/// What the trials tell.
struct Found {
    traits: TemplateTraits,
    form: Form,
    /// Why calls do not reach the prompt, if they do not.
    calls: Result<(), String>,
}

impl Trials<'_> {
    fn render(&self, messages: &[Value]) -> Result<String, TemplateError> {
        let tool = json!({"type": "function", "function": {
            "name": TOOL, "description": "A tool.",
            "parameters": {"type": "object", "properties": {"x": {"type": "string", "description": "A text."}}, "required": ["x"]},
        }});
        let conversation = Conversation {
            tools: self.tools.then(|| vec![tool]),
            add_generation_prompt: true,
            ..Conversation::default()
        };
        self.template.render_as(&conversation, messages, TRIAL_LIMITS, &AtomicBool::new(false))
    }

    /// Whether all these words reach the prompt.
    fn keeps(&self, messages: &[Value], words: &[&str]) -> bool {
        self.render(messages).is_ok_and(|prompt| words.iter().all(|word| prompt.contains(word)))
    }

    fn run(&self) -> Found {
        let message = |role: &str, content: &str| json!({"role": role, "content": content});
        let (system, developer) = (message("system", SYSTEM), message("developer", SYSTEM));
        let (answer, both) = (message("assistant", ANSWER), [SYSTEM, LATE]);
        let (late, second) = (message("system", LATE), message("developer", LATE));
        let traits = TemplateTraits {
            system: self.keeps(&[system.clone(), user()], &[SYSTEM]),
            developer: self.keeps(&[developer.clone(), user()], &[SYSTEM]),
            late_system: self
                .keeps(&[system.clone(), user(), answer.clone(), late.clone(), user()], &both),
            tools: self.tools && self.keeps(&[user()], &[TOOL]),
            arguments_as_text: false,
        };
        let developers = match traits {
            TemplateTraits { system: false, .. } => Developers::AsTheyAre,
            TemplateTraits { developer: false, .. } => Developers::System,
            _ if self.keeps(&[system.clone(), second.clone(), user()], &both)
                && self.keeps(&[developer, second.clone(), user()], &both)
                && self.keeps(&[user(), answer, second, user()], &[LATE]) =>
            {
                Developers::AsTheyAre
            }
            _ => Developers::SystemUnlessAlone,
        };
        let systems = match traits {
            TemplateTraits { system: false, .. } => Systems::AsTheyAre,
            TemplateTraits { late_system: false, .. } => Systems::JoinAll,
            _ if self.keeps(&[system, late, user()], &both) => Systems::AsTheyAre,
            _ => Systems::JoinFirst,
        };
        let (form, calls) = self.calls(Form { developers, systems, ..Form::default() });
        let traits = TemplateTraits { arguments_as_text: form.arguments_as_text, ..traits };
        Found { traits, form, calls }
    }

    /// The first form in which a tool call reaches the prompt with its arguments, else by its name, and nothing that
    /// is not text does.
    fn calls(&self, form: Form) -> (Form, Result<(), String>) {
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
            match self.render(&super::adapt::messages(&messages, form)) {
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
}

/// Tries the template; its traits, forms and notes are set.
pub fn probe(template: &mut ChatTemplate) {
    let mut notes = Vec::new();
    let [bare, tooled] = [false, true].map(|tools| Trials { template: &*template, tools });
    let chat = bare.render(&[user()]);
    if let Err(why) = &chat {
        notes.push(format!("chat: one message of a user fails: {why}"));
    }
    let (without, with) = (bare.run(), tooled.run());
    // A template for tools alone is judged with them.
    let mut traits = if chat.is_ok() { without.traits } else { with.traits };
    traits.tools = with.traits.tools;
    traits.arguments_as_text = with.traits.arguments_as_text;
    if !traits.system {
        notes.push("chat: a system message does not reach the prompt".to_owned());
    }
    if !traits.tools {
        let why = match tooled.render(&[user()]) {
            Err(why) => format!(": {why}"),
            Ok(_) => String::new(),
        };
        notes.push(format!("chat: tools do not reach the prompt{why}"));
    }
    if let (Err(why), true) = (with.calls, traits.tools) {
        notes.push(format!("chat: tool calls in earlier messages do not reach the prompt{why}"));
    }
    template.traits = traits;
    template.forms = Forms { without_tools: without.form, with_tools: with.form };
    template.notes = notes;
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
    fn broken_arguments_do_not_end_a_conversation() {
        let broken = json!([{"role": "assistant", "content": "", "tool_calls": [
            {"function": {"name": "f", "arguments": "{\"a\": "}}]}]);
        let items = "{% for m in messages %}{% for t in m.tool_calls or [] %}{{ t.function.name }}{% for k, v in t.function.arguments.items() %} {{ k }}={{ v }}{% endfor %}{% endfor %}{% endfor %}";
        assert_eq!(render(items, broken.clone()), "f arguments={\"a\": ");
        let refuses = items.replace(
            "{{ t.function.name }}",
            "{{ raise_exception('text') if t.function.arguments is string }}",
        );
        assert_eq!(render(&refuses, broken.clone()), " arguments={\"a\": ");
        let json = "{% for m in messages %}{% for t in m.tool_calls or [] %}{{ t.function.name }} {{ t.function.arguments if t.function.arguments is string else t.function.arguments | tojson }}{% endfor %}{% endfor %}";
        assert_eq!(render(json, broken), "f {\"a\": ");
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

    /// DeepSeek R1, gpt-oss and their kin read one message for instructions.
    #[test]
    fn no_instruction_is_lost_beside_another() {
        let two = json!([
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": "In French."},
            {"role": "user", "content": "Hi"}]);
        let last = "{% set ns = namespace(s='') %}{% for m in messages %}{% if m.role == 'system' %}{% set ns.s = m.content %}{% endif %}{% endfor %}{{ ns.s }}|{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}";
        assert_eq!(render(last, two.clone()), "Be brief.\n\nIn French.|Hi");
        let first = "{% if messages[0].role in ['system', 'developer'] %}<{{ messages[0].content }}>{% endif %}{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}";
        assert_eq!(render(first, two.clone()), "<Be brief.\n\nIn French.>Hi");
        let alone = json!([
            {"role": "user", "content": "Hi"}, {"role": "developer", "content": "In French."}]);
        assert_eq!(render(first, alone), "<In French.>Hi");
        // Later ones are read, but not two at the start.
        let one_at_a_time = "{% for m in messages %}{% if m.role != 'system' or loop.last or messages[loop.index].role != 'system' %}[{{ m.role }}]{{ m.content }}{% endif %}{% endfor %}";
        let three = json!([
            {"role": "system", "content": "a"}, {"role": "system", "content": "b"},
            {"role": "user", "content": "Hi"}, {"role": "system", "content": "c"}]);
        assert_eq!(render(one_at_a_time, three), "[system]a\n\nb[user]Hi[system]c");
        let all = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}";
        assert_eq!(render(all, two), "[system]Be brief.[developer]In French.[user]Hi");
    }

    /// Hermes' template for tools.
    #[test]
    fn a_template_for_tools_has_a_form_of_its_own() {
        let source = "{{ tools[0].function.name }}{% for m in messages if m.role in ['system', 'user'] %}[{{ m.role }}]{{ m.content }}{% endfor %}";
        let template = template(source);
        assert!(template.traits.system && !template.traits.developer);
        let conversation = Conversation {
            messages: vec![json!({"role": "developer", "content": "French."}), user()],
            tools: Some(vec![json!({"function": {"name": "f"}})]),
            ..Conversation::default()
        };
        let made = template.render(&conversation, &AtomicBool::new(false)).unwrap();
        assert_eq!(made, format!("f[system]French.[user]{USER}"));
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
            let template = template(source);
            let trials = Trials { template: &template, tools: false };
            let given_up = trials.render(&[user()]).unwrap_err().to_string();
            assert!(given_up.contains(why), "{given_up}");
        }
    }
}
