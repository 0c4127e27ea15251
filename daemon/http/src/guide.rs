//! What an output is held to: the form that is asked for, the calls that are, and the thought before either.
//!
//! Owns: how these go together. Must never: compile anything; the worker does.

use minisgl_proto::{Guided, Thought};

use crate::error::ApiError;
use crate::prompt::Rendered;
use crate::sampling::Wanted;
use crate::talk::Talk;
use crate::tokenizer::TextModel;

/// Holds an output that goes on `rendered` to what its request wants.
///
/// # Errors
/// 400: calls and a form exclude each other, or the model cannot be held to calls.
pub async fn guide(
    wanted: &mut Wanted,
    talk: &Talk,
    rendered: &Rendered,
    text: &TextModel,
) -> Result<(), ApiError> {
    if rendered.tools.is_held() {
        return Err(ApiError::unsupported("tool_choice", "tool_choice: calls are not enforced"));
    }
    let thought = talk.thought(text);
    let budget = match rendered.budget {
        Some((field, tokens)) => close(talk, text).await?.map(|close| (field, (tokens, close))),
        None => None,
    };
    let guided = &mut wanted.sampling.guided;
    if let Some((field, budget)) = budget {
        let thought = thought.map(|thought| Thought { budget: Some(budget), ..thought });
        match guided {
            Some(guided) => guided.thought = thought,
            None if thought.is_some() => {
                *guided =
                    Some(Box::new(Guided { grammar: None, thought, field: field.to_owned() }));
            }
            None => {}
        }
    } else if let Some(guided) = guided {
        guided.thought = thought;
    }
    Ok(())
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
