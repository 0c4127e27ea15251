//! What Ollama's clients ask of models: which there are, and what they can.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use minisgl_proto::ModelInfo;
use minisgl_proto::text::TextInfo;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::known_as;
use crate::backend::{Model, ModelEntry};
use crate::error::ApiError;
use crate::front::Front;
use crate::timestamp::rfc3339;

/// The version of Ollama whose API this is: some clients want at least one.
const VERSION: &str = "0.12.6";
/// When a model leaves that stays.
const NEVER: &str = "9999-12-31T23:59:59Z";
/// Bytes of the body of `/api/show`.
const SHOW_BYTES_MAX: usize = 64 << 10;

/// `GET /`, by which clients know who is there.
pub async fn running() -> &'static str {
    "Ollama is running"
}

/// `GET /api/version`.
pub async fn version() -> Json<Value> {
    Json(json!({"version": VERSION}))
}

/// `GET /api/tags`: the models that take requests.
pub async fn tags(State(front): State<Arc<Front>>) -> Json<Value> {
    let one = |entry: &ModelEntry, model: &dyn Model| {
        let mut one = about(entry, model);
        one.insert("modified_at".into(), rfc3339(entry.created_s, 0).into());
        one
    };
    list(&front, one)
}

/// `GET /api/ps`: the same models, as all are in memory.
pub async fn ps(State(front): State<Arc<Front>>) -> Json<Value> {
    let one = |entry: &ModelEntry, model: &dyn Model| {
        let (mut one, info) = (about(entry, model), model.info());
        let in_gpu = if info.gpus.is_empty() { 0 } else { info.weight_bytes + info.kv_bytes };
        one.insert("expires_at".into(), NEVER.into());
        one.insert("size_vram".into(), in_gpu.into());
        one.insert("context_length".into(), info.max_len.into());
        one
    };
    list(&front, one)
}

fn list(front: &Front, one: impl Fn(&ModelEntry, &dyn Model) -> Map<String, Value>) -> Json<Value> {
    let entries = front.backend.models();
    let ready = entries.iter().filter(|entry| entry.ready);
    let models = ready.filter_map(|entry| {
        let model = front.backend.model(Some(&entry.name)).ok()?;
        Some(Value::Object(one(entry, &*model)))
    });
    Json(json!({"models": models.collect::<Vec<_>>()}))
}

/// What all lists say of a model.
fn about(entry: &ModelEntry, model: &dyn Model) -> Map<String, Value> {
    let info = model.info();
    // Another for each load: what clients keep by it is of this one.
    let digest = Sha256::digest(format!("{} {} {}", entry.name, entry.source, entry.created_s));
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut fields = Map::new();
    fields.insert("name".into(), entry.name.as_str().into());
    fields.insert("model".into(), entry.name.as_str().into());
    fields.insert("size".into(), info.weight_bytes.into());
    fields.insert("digest".into(), digest.into());
    fields.insert("details".into(), details(info));
    fields
}

fn details(info: &ModelInfo) -> Value {
    json!({
        "parent_model": "",
        "format": "safetensors",
        "family": info.architecture,
        "families": [info.architecture],
        "parameter_size": short(info.parameters),
        "quantization_level": info.dtype,
    })
}

/// A count of parameters, as people say it.
fn short(parameters: u64) -> String {
    match parameters as f64 {
        many if many >= 1e9 => format!("{:.1}B", many / 1e9),
        some if some >= 1e6 => format!("{:.1}M", some / 1e6),
        few => format!("{:.1}K", few / 1e3),
    }
}

/// Which model; `name` is the older word.
#[derive(Deserialize)]
struct Show {
    model: Option<String>,
    name: Option<String>,
}

/// `POST /api/show`.
///
/// # Errors
/// 400: no model is named. 404: there is none of this name.
pub async fn show(
    State(front): State<Arc<Front>>,
    request: Request<Body>,
) -> Result<Json<Value>, ApiError> {
    let body = front.small_body(request, SHOW_BYTES_MAX).await?;
    let show = serde_json::from_slice::<Show>(&body).ok();
    let name = show.and_then(|show| show.model.or(show.name)).filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| ApiError::field("model", "model is missing; see /api/tags"))?;
    let model = front.model(Some(&known_as(&front, &name)))?;
    let (info, text) = (model.info(), model.text().info());
    let entries = front.backend.models();
    let created_s = entries.iter().find(|entry| entry.name == model.name());
    let created_s = created_s.map_or(0, |entry| entry.created_s);
    let architecture = info.architecture.as_str();
    Ok(Json(json!({
        "modelfile": "",
        "parameters": "",
        "template": text.template_source.as_deref().unwrap_or_default(),
        "details": details(info),
        "model_info": {
            "general.architecture": architecture,
            "general.parameter_count": info.parameters,
            format!("{architecture}.context_length"): info.max_len,
            format!("{architecture}.vocab_size"): info.vocab_size,
        },
        "capabilities": capabilities(&text),
        "modified_at": rfc3339(created_s, 0),
    })))
}

/// What a model can, as far as its template says.
fn capabilities(text: &TextInfo) -> Vec<&'static str> {
    let mut can = vec!["completion"];
    let dialect = minisgl_dialect::by_name(&text.dialect).ok();
    if text.template.tools && dialect.is_some() {
        can.push("tools");
    }
    let says =
        |word: &str| text.template_source.as_ref().is_some_and(|source| source.contains(word));
    if dialect.is_some_and(|dialect| dialect.thought().is_some())
        && (says("think") || says("reasoning"))
    {
        can.push("thinking");
    }
    can
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_said_as_people_do() {
        assert_eq!(
            (short(134_515_008), short(8_030_261_248), short(1_000)),
            ("134.5M".into(), "8.0B".into(), "1.0K".into())
        );
    }
}
