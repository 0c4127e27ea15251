//! A router that marks its connection busy until the answer is written, or broken off.
//!
//! Owns: from when to when a request is being answered. Must never: change an answer.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::service::TowerToHyperService;

use crate::connection::{Busy, State};

/// The router of one connection.
pub struct Attending {
    router: TowerToHyperService<Router>,
    state: Arc<State>,
}

impl Attending {
    /// Of the connection with this state.
    pub fn new(router: Router, state: Arc<State>) -> Attending {
        Attending { router: TowerToHyperService::new(router), state }
    }
}

impl Service<Request<Incoming>> for Attending {
    type Response = Response<Attended>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let busy = self.state.busy();
        let answer = self.router.call(request);
        Box::pin(async move { Ok(answer.await?.map(|body| Attended { body, _busy: busy })) })
    }
}

/// A body that keeps its connection busy.
pub struct Attended {
    body: Body,
    _busy: Busy,
}

impl HttpBody for Attended {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
