//! `requests` and `cancel`: who runs what.

use minisgl_proto::admin::{CancelReply, CancelRequest, RequestStatus};

use crate::args::Format;
use crate::client::Client;
use crate::error::CtlError;
use crate::output::{print, print_json};
use crate::render;

/// `requests`.
pub async fn requests(
    client: &Client,
    model: Option<&str>,
    format: Format,
) -> Result<(), CtlError> {
    let mut all: Vec<RequestStatus> = client.get("/admin/v1/requests").await?;
    all.retain(|request| model.is_none_or(|model| request.model == model));
    match format {
        Format::Json => print_json(&all),
        Format::Table => print(&render::requests(&all)),
    }
}

/// `cancel`.
pub async fn cancel(client: &Client, id: &str, format: Format) -> Result<(), CtlError> {
    let reply: CancelReply =
        client.post("/admin/v1/cancel", &CancelRequest { id: id.to_string() }).await?;
    match format {
        Format::Json => print_json(&reply)?,
        Format::Table if reply.cancelled > 0 => {
            print(&format!("{} ended\n", render::plural(reply.cancelled, "request")))?;
        }
        Format::Table => {}
    }
    match reply.cancelled {
        0 => Err(CtlError::NotFound(format!(
            "no request that runs or waits has the id \"{id}\"; see: minisglctl requests"
        ))),
        _ => Ok(()),
    }
}
