//! What an output is held to: the form that is asked for, the calls that are, and the thought before either.
//!
//! | calls | a form | the output |
//! |---|---|---|
//! | required | whatever | is calls |
//! | strict, or of some tools alone | none | is text, with calls that keep to it |
//! | may come | JSON | is calls, or JSON |
//! | may come | another | has the form; nothing is called |
//!
//! Owns: how these go together. Must never: compile anything; the worker does.

use std::sync::Arc;

use minisgl_dialect::{Dialect, Enforced, Wanted as Calls};
use minisgl_proto::limits::GRAMMAR_BYTES_MAX;
use minisgl_proto::{Grammar, Guided, Thought};

use crate::error::ApiError;
use crate::pool::Pool;
use crate::prompt::Rendered;
use crate::sampling::Wanted;
use crate::talk::Talk;
use crate::tokenizer::TextModel;
use crate::tools::Toolbox;

/// Holds an output that goes on `rendered` to what its request wants. What takes a while is done on `pool`, for a request
/// that holds so many `bytes`.
///
/// # Errors
/// 400: the model cannot be held to calls of these tools, or they are too large. 429: too much waits.
pub async fn guide(
    wanted: &mut Wanted,
    talk: &Talk,
    rendered: &Rendered,
    text: &Arc<TextModel>,
    (pool, bytes): (&Pool, usize),
) -> Result<(), ApiError> {
    let guided = &mut wanted.sampling.guided;
    let tools = &rendered.tools;
    let form = guided.as_deref().and_then(|guided| guided.grammar.clone());
    let is_held = tools.is_held() && (tools.required() || form.is_none());
    let may_answer = form.as_ref().is_some_and(is_json);
    // Some write a thought as a message among others: their calls' grammar has it, and begins with the output.
    let mut begins_behind_thought = true;
    if is_held || (tools.may_be_called() && may_answer) {
        let (dialect, single) = (talk.dialect(), rendered.wants.single);
        let (tools, text) = (Arc::clone(tools), Arc::clone(text));
        let write = move || lark(dialect, &tools, single, form.as_ref(), &text);
        let tools = &rendered.tools;
        let asked = match guided {
            Some(guided) if !is_held => &*guided.field,
            _ if tools.required() => "tool_choice",
            _ => "tools",
        };
        let asked = asked.to_owned();
        match pool.run(bytes, write).await? {
            Ok(lark) => {
                let grammar = Some(Grammar::Calls(lark));
                *guided = Some(Box::new(Guided { grammar, thought: None, field: asked }));
                begins_behind_thought = !talk.thinks_in_messages();
            }
            // Calls that nobody asked to enforce are no reason to refuse a form.
            Err(why) if !is_held => tracing::debug!("the form holds, and nothing is called: {why}"),
            Err(why) => return Err(ApiError::field(&*asked, format!("{asked}: {why}"))),
        }
    }
    let thought = talk.thought(text).filter(|_| begins_behind_thought);
    let budget = match rendered.budget {
        // Where a thought is a message among others, its marker would end any of them.
        Some((field, tokens)) if thought.is_some() && !talk.thinks_in_messages() => {
            close(talk, text).await?.map(|close| (field, (tokens, close)))
        }
        _ => None,
    };
    match (guided, budget) {
        (Some(guided), budget) => {
            let budget = budget.map(|(_, budget)| budget);
            guided.thought = thought.map(|thought| Thought { budget, ..thought });
        }
        (guided @ None, Some((field, budget))) => {
            let thought = thought.map(|thought| Thought { budget: Some(budget), ..thought });
            let field = field.to_owned();
            *guided = Some(Box::new(Guided { grammar: None, thought, field }));
        }
        (None, None) => {}
    }
    Ok(())
}

/// The grammar of calls, or of them and an answer of this form.
fn lark(
    dialect: &'static Dialect,
    tools: &Toolbox,
    single: bool,
    form: Option<&Grammar>,
    text: &TextModel,
) -> Result<String, String> {
    let callable: Vec<Enforced<'_>> =
        tools.callable().map(|(tool, strict)| Enforced { tool, strict }).collect();
    let answer = form.and_then(json_rule);
    let (tools, required) = (&callable[..], tools.required());
    let wanted = Calls { tools, required, single, answer: answer.as_deref() };
    let lark = dialect.lark(&wanted, &|marker| text.marker(marker))?;
    let (bytes, count) = (lark.len(), callable.len());
    if bytes > GRAMMAR_BYTES_MAX {
        return Err(format!(
            "the grammar of {count} tools has {bytes} bytes; the limit is {GRAMMAR_BYTES_MAX}: send fewer tools, or smaller schemas"
        ));
    }
    Ok(lark)
}

/// Whether a form is JSON.
fn is_json(form: &Grammar) -> bool {
    matches!(form, Grammar::JsonObject | Grammar::JsonSchema { .. })
}

/// A form that is JSON, as the body of a rule.
fn json_rule(grammar: &Grammar) -> Option<String> {
    let (schema, lenient) = match grammar {
        Grammar::JsonObject => ("{\"type\":\"object\"}", false),
        Grammar::JsonSchema { schema, lenient } => (&**schema, *lenient),
        _ => return None,
    };
    // What is no JSON at all is refused by whoever compiles it as it is.
    let mut schema: serde_json::Value = serde_json::from_str(schema).ok()?;
    if let serde_json::Value::Bool(all) = schema {
        schema = if all { serde_json::json!({}) } else { serde_json::json!({"not": {}}) };
    }
    schema
        .as_object_mut()?
        .insert("x-guidance".to_owned(), serde_json::json!({"lenient": lenient}));
    Some(format!("%json {schema}"))
}

/// The tokens that close a thought, where the model has any.
async fn close(talk: &Talk, text: &TextModel) -> Result<Option<Vec<u32>>, ApiError> {
    let Some(marker) = talk.close() else { return Ok(None) };
    if let Some(token) = text.marker(marker) {
        return Ok(Some(vec![token]));
    }
    let lists = text.encode(vec![marker.to_owned()], "thinking_token_budget", false, None).await?;
    Ok(lists.into_iter().next().filter(|ids| !ids.is_empty()))
}
