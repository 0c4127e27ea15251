//! Request bodies: received within limits, and counted until their prompt is token ids.
//!
//! Owns: the budget of bytes that requests hold before they are submitted. Must never: look into a body.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::{Body, HttpBody};
use axum::http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt;

use crate::error::ApiError;
use crate::settings::Settings;

/// Counts the bytes of all requests that are not submitted yet.
#[derive(Clone, Debug)]
pub struct BodyBudget {
    taken: Arc<AtomicUsize>,
    bytes_max: usize,
    retry_after_s: u32,
}

/// A request's share of the budget, given back when dropped.
#[derive(Debug)]
pub struct Share {
    budget: BodyBudget,
    bytes: usize,
}

impl BodyBudget {
    /// A budget of so many bytes.
    pub fn new(bytes_max: usize, retry_after_s: u32) -> BodyBudget {
        BodyBudget { taken: Arc::default(), bytes_max, retry_after_s }
    }

    /// A share of it that is empty yet.
    pub fn share(&self) -> Share {
        Share { budget: self.clone(), bytes: 0 }
    }
}

impl Share {
    /// What it holds.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes more of the budget. The only request there is may have any size.
    ///
    /// # Errors
    /// 503: others hold it.
    pub fn grow(&mut self, bytes: usize) -> Result<(), ApiError> {
        let before = self.budget.taken.fetch_add(bytes, Ordering::Relaxed);
        let others = before.saturating_sub(self.bytes);
        self.bytes += bytes;
        if before + bytes > self.budget.bytes_max && others > 0 {
            return Err(ApiError::unavailable(
                "too many large requests are there at once; retry later",
            )
            .with_retry_after(self.budget.retry_after_s));
        }
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Receives a whole body of at most `bytes_max` bytes.
///
/// # Errors
/// 413 (at once when the length is declared), 408, 503 over the budget, 400 when it breaks off.
pub async fn receive(
    headers: &HeaderMap,
    body: Body,
    bytes_max: usize,
    settings: &Settings,
    budget: &BodyBudget,
) -> Result<(Vec<u8>, Share), ApiError> {
    let declared = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok())
        .unwrap_or_else(|| body.size_hint().lower());
    if declared > bytes_max as u64 {
        return Err(too_large(bytes_max));
    }
    let receiving = collect(body, declared as usize, bytes_max, budget.share());
    match tokio::time::timeout(settings.body_timeout, receiving).await {
        Ok(result) => result,
        Err(_) => Err(ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            format!("the request body did not arrive within {:?}", settings.body_timeout),
        )),
    }
}

async fn collect(
    mut body: Body,
    declared: usize,
    bytes_max: usize,
    mut share: Share,
) -> Result<(Vec<u8>, Share), ApiError> {
    // Pages that are not written yet cost nothing, so a client that only promises holds nothing.
    let mut received = Vec::with_capacity(declared);
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|why| ApiError::invalid(format!("the request body broke off: {why}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if received.len() + data.len() > bytes_max {
            return Err(too_large(bytes_max));
        }
        share.grow(data.len())?;
        received.extend_from_slice(&data);
    }
    Ok((received, share))
}

fn too_large(limit: usize) -> ApiError {
    ApiError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("the request body is larger than the limit of {limit} bytes"),
    )
    .with_code("request_too_large")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_grows_within_the_budget_and_gives_it_back() {
        let budget = BodyBudget::new(100, 7);
        let mut first = budget.share();
        first.grow(60).unwrap();
        let mut second = budget.share();
        second.grow(40).unwrap();
        let refused = second.grow(1).unwrap_err();
        assert_eq!((refused.status.as_u16(), refused.retry_after_s), (503, Some(7)));
        drop(second);
        first.grow(40).unwrap();
        first.grow(1000).expect("alone, a request may have any size");
        let mut third = budget.share();
        assert!(third.grow(1).is_err());
        drop((first, third));
        assert_eq!(budget.taken.load(Ordering::Relaxed), 0);
    }
}
