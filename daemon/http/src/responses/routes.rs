//! What is asked of a response that there is already.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, body::Body};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::front::Front;
use crate::json::{Node, counted, put};
use crate::keys::Owner;

/// Items of a page, at most.
const PAGE_ITEMS_MAX: usize = 100;
/// Items of one where nothing is said.
const PAGE_ITEMS: usize = 20;

type Own = Option<Extension<Owner>>;

/// Whose a request is.
fn owner(own: Own) -> Owner {
    own.map(|Extension(owner)| owner).unwrap_or_default()
}

/// `GET /v1/responses`: some clients try a WebSocket first. 426 alone makes them go on at once.
pub async fn upgrade() -> Response {
    let text = "responses come over HTTP: POST to /v1/responses; there are no WebSockets, and no list of responses";
    let error =
        ApiError::new(StatusCode::UPGRADE_REQUIRED, text).with_code("websocket_unsupported");
    let mut response = error.into_response();
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("HTTP/1.1"));
    response
}

/// `GET /v1/responses/{id}`.
///
/// # Errors
/// 404: it is not there.
pub async fn one(
    State(front): State<Arc<Front>>,
    Path(id): Path<String>,
    own: Own,
) -> Result<Response, ApiError> {
    let owner = owner(own);
    if let Some(begun) = front.responses.running(&id, &owner) {
        return Ok(raw(begun));
    }
    let answer = front.responses.find(&id, &owner)?;
    Ok(raw(answer.response.clone()))
}

/// `DELETE /v1/responses/{id}`. One that is being generated goes on, and is not kept.
///
/// # Errors
/// As for `one`.
pub async fn delete(
    State(front): State<Arc<Front>>,
    Path(id): Path<String>,
    own: Own,
) -> Result<Json<Value>, ApiError> {
    front.responses.forget(&id, &owner(own))?;
    Ok(Json(json!({"id": id, "object": "response", "deleted": true})))
}

/// `POST /v1/responses/{id}/cancel`: ends one that is being generated. The stream that tells it ends as well.
///
/// # Errors
/// 400: it is over; 404: it is not there.
pub async fn cancel(
    State(front): State<Arc<Front>>,
    Path(id): Path<String>,
    own: Own,
) -> Result<Response, ApiError> {
    front.responses.cancel(&id, &owner(own)).map(raw)
}

/// Which items are asked for. Numbers are read here: a client hears which field was wrong.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Asked {
    limit: Option<String>,
    after: Option<String>,
    order: Option<String>,
}

/// The same, read.
struct Page {
    items: usize,
    /// The item before the first.
    after: Option<String>,
    /// Whether the last item comes first.
    is_descending: bool,
}

impl Asked {
    fn page(self) -> Result<Page, ApiError> {
        let items = self.limit.map_or(Some(PAGE_ITEMS), |limit| limit.parse().ok());
        let items =
            items.filter(|items| (1..=PAGE_ITEMS_MAX).contains(items)).ok_or_else(|| {
                ApiError::field("limit", format!("limit is a number from 1 to {PAGE_ITEMS_MAX}"))
            })?;
        let is_descending = match self.order.as_deref() {
            None | Some("desc") => true,
            Some("asc") => false,
            Some(_) => return Err(ApiError::field("order", "order is \"asc\" or \"desc\"")),
        };
        Ok(Page { items, after: self.after, is_descending })
    }
}

/// `GET /v1/responses/{id}/input_items`: what the model was given, the conversation before included, a page at a time.
///
/// # Errors
/// As for `one`; 400: there is no such page.
pub async fn input_items(
    State(front): State<Arc<Front>>,
    Path(id): Path<String>,
    Query(asked): Query<Asked>,
    own: Own,
) -> Result<Response, ApiError> {
    let page = asked.page()?;
    let answer = front.responses.find(&id, &owner(own))?;
    // The page's items, and their JSON.
    let bytes = 2 * answer.input.len();
    let list = front.work(bytes, move |share| {
        let (list, bytes) = counted(|| list(&answer.input, &id, &page));
        share.grow(bytes)?;
        list
    });
    Ok(raw(list.await?))
}

/// What is looked at of an item that is not told.
#[derive(Deserialize)]
struct Named<'a> {
    #[serde(borrow)]
    id: Option<&'a RawValue>,
}

/// The id of an item: its own, or one made of its place.
fn id_of(item: &RawValue, response: &str, at: usize) -> String {
    let own = serde_json::from_str::<Named<'_>>(item.get()).ok().and_then(|named| named.id);
    let own = own.and_then(|id| serde_json::from_str(id.get()).ok());
    own.unwrap_or_else(|| format!("item_{}_{at}", response.trim_start_matches("resp_")))
}

/// JSON of a page of the list of which `input` is the JSON.
fn list(input: &str, response: &str, page: &Page) -> Result<Vec<u8>, ApiError> {
    let broken = |why| ApiError::internal(format!("the items cannot be read again: {why}"));
    let items: Vec<&RawValue> = serde_json::from_str(input).map_err(broken)?;
    let mut items: Vec<(usize, &RawValue)> = items.into_iter().enumerate().collect();
    if page.is_descending {
        items.reverse();
    }
    let from = match &page.after {
        None => 0,
        Some(after) => {
            let place = items.iter().position(|(at, item)| id_of(item, response, *at) == *after);
            place.ok_or_else(|| ApiError::field("after", "after: there is no item of this id"))? + 1
        }
    };
    let rest = &items[from..];
    let told = &rest[..rest.len().min(page.items)];
    let end = |item: Option<&(usize, &RawValue)>| item.map(|(at, item)| id_of(item, response, *at));
    let mut out = b"{\"object\":\"list\",\"data\":[".to_vec();
    for (place, (at, item)) in told.iter().enumerate() {
        if place > 0 {
            out.push(b',');
        }
        let id = id_of(item, response, *at);
        let Node(item) = serde_json::from_str(item.get()).map_err(broken)?;
        put(&mut out, &listed(item, id));
    }
    out.extend_from_slice(b"],\"first_id\":");
    put(&mut out, &end(told.first()));
    out.extend_from_slice(b",\"last_id\":");
    put(&mut out, &end(told.last()));
    out.extend_from_slice(b",\"has_more\":");
    put(&mut out, &(rest.len() > told.len()));
    out.push(b'}');
    Ok(out)
}

/// An item with what clients leave out.
fn listed(mut item: Value, id: String) -> Value {
    let Some(fields) = item.as_object_mut() else { return item };
    fields.entry("type").or_insert("message".into());
    if fields["type"] == "message"
        && let Some(Value::String(text)) = fields.get("content")
    {
        let is_said = fields.get("role").is_some_and(|role| role == "assistant");
        let kind = if is_said { "output_text" } else { "input_text" };
        let parts = json!([{"type": kind, "text": text}]);
        fields.insert("content".into(), parts);
    }
    fields.insert("id".into(), id.into());
    item
}

fn raw(json: impl Into<Body>) -> Response {
    let kind = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, kind)], json.into()).into_response()
}
