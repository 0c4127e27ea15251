//! What can be told to be wrong with a load before anything starts.
//!
//! Owns: what a model's name may be, and which options cannot go together. Must never: look at the machine;
//! whether a model fits is the worker's to say.

use std::path::Path;

use minisgl_proto::LoadOptions;
use minisgl_proto::admin::{AdminError, AdminErrorCode, LoadRequest};

use crate::layout::is_path;

/// Bytes of a model's name at most.
const NAME_BYTES_MAX: usize = 200;

/// Aliases of a model, at most.
const ALIASES_MAX: usize = 16;

fn invalid(message: String) -> AdminError {
    AdminError { code: AdminErrorCode::Invalid, message }
}

/// The name under which a load would go.
///
/// # Errors
/// `Invalid`: the name or the options cannot be.
pub fn check_load(request: &LoadRequest) -> Result<String, AdminError> {
    let name = match &request.name {
        Some(name) => name.clone(),
        None => default_name(&request.model)?,
    };
    check_name(&name)?;
    if request.aliases.len() > ALIASES_MAX {
        return Err(invalid(format!(
            "the model has {} aliases, the limit is {ALIASES_MAX}",
            request.aliases.len()
        )));
    }
    request.aliases.iter().try_for_each(|alias| check_name(alias))?;
    check_options(&request.options)?;
    Ok(name)
}

/// The repo id without its revision, or the folder's last part.
fn default_name(model: &str) -> Result<String, AdminError> {
    let path = Path::new(model);
    if is_path(model) {
        let last = path.file_name().map(|name| name.to_string_lossy().into_owned());
        return last.ok_or_else(|| invalid(format!("{model:?} has no last part; give a --name")));
    }
    Ok(model.split('@').next().unwrap_or(model).to_string())
}

/// What a model may be called.
fn check_name(name: &str) -> Result<(), AdminError> {
    let fine = !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && !name.chars().any(|c| c.is_control() || c.is_whitespace());
    if fine {
        return Ok(());
    }
    Err(invalid(format!(
        "{name:?} is no model name: it needs 1 to {NAME_BYTES_MAX} bytes without white space"
    )))
}

/// Options that no machine can heed.
pub(crate) fn check_options(options: &LoadOptions) -> Result<(), AdminError> {
    options.check_ranges().map_err(|error| invalid(error.to_string()))?;
    options.check_gpus().map_err(|error| invalid(error.to_string()))?;
    match options.dialect.as_deref().map(minisgl_dialect::by_name) {
        Some(Err(why)) => Err(invalid(why)),
        _ => Ok(()),
    }
}
