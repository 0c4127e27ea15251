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

use minisgl_dialect::{Enforced, Wanted as Calls};
use minisgl_proto::limits::GRAMMAR_BYTES_MAX;
use minisgl_proto::{Grammar, Guided, Thought};

use crate::error::ApiError;
use crate::prompt::Rendered;
use crate::sampling::Wanted;
use crate::talk::Talk;
use crate::tokenizer::TextModel;

/// Holds an output that goes on `rendered` to what its request wants.
///
/// # Errors
/// 400: the model cannot be held to calls of these tools, or they are too large.
pub async fn guide(
    wanted: &mut Wanted,
    talk: &Talk,
    rendered: &Rendered,
    text: &TextModel,
) -> Result<(), ApiError> {
    let guided = &mut wanted.sampling.guided;
    let form = guided.as_deref().and_then(|guided| guided.grammar.as_ref());
    let answer = form.and_then(json_rule);
    let tools = &rendered.tools;
    let is_held = tools.is_held() && (tools.required() || form.is_none());
    let calls = is_held || (tools.may_be_called() && answer.is_some());
    // Some write a thought as a message among others: their calls' grammar has it, and begins with the output.
    let mut begins_behind_thought = true;
    if calls {
        let field = if tools.required() { "tool_choice" } else { "tools" };
        let lark = lark(talk, rendered, answer.as_deref(), text)
            .map_err(|why| ApiError::field(field, format!("{field}: {why}")))?;
        let bytes = lark.len();
        if bytes > GRAMMAR_BYTES_MAX {
            let message = format!(
                "{field}: the grammar of {} tools has {bytes} bytes; the limit is {GRAMMAR_BYTES_MAX}: send fewer tools, or smaller \
                 schemas",
                tools.callable().count()
            );
            return Err(ApiError::field(field, message));
        }
        let grammar = Some(Grammar::Calls(lark));
        *guided = Some(Box::new(Guided { grammar, thought: None, field: field.to_owned() }));
        begins_behind_thought = !talk.thinks_in_messages();
    }
    let thought = talk.thought(text).filter(|_| begins_behind_thought);
    let budget = match rendered.budget {
        Some((field, tokens)) if thought.is_some() => {
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

fn lark(
    talk: &Talk,
    rendered: &Rendered,
    answer: Option<&str>,
    text: &TextModel,
) -> Result<String, String> {
    let tools: Vec<Enforced<'_>> =
        rendered.tools.callable().map(|(tool, strict)| Enforced { tool, strict }).collect();
    let (required, single) = (rendered.tools.required(), rendered.wants.single);
    let wanted = Calls { tools: &tools, required, single, answer };
    talk.dialect().lark(&wanted, &|marker| text.marker(marker))
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
