//! A model's text side in this process.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use futures_util::future::BoxFuture;
use minisgl_http::backend::TextService;
use minisgl_proto::text::{TextAnswer, TextFault, TextInfo, TextJob};
use minisgl_text::TextSide;
use tokio::sync::Semaphore;

struct Local {
    side: Arc<TextSide>,
    gate: Arc<Semaphore>,
    info: Arc<TextInfo>,
}

impl TextService for Local {
    fn info(&self) -> Arc<TextInfo> {
        Arc::clone(&self.info)
    }

    fn run(&self, job: TextJob) -> BoxFuture<'static, Result<TextAnswer, TextFault>> {
        let (side, gate) = (Arc::clone(&self.side), Arc::clone(&self.gate));
        Box::pin(async move {
            let _place = gate.acquire().await;
            side.run(job, &AtomicBool::new(false))
        })
    }
}

/// What the folder has now. Each job needs a place behind the gate.
pub fn read(dir: &Path, gate: &Arc<Semaphore>) -> Arc<dyn TextService> {
    let (side, info) = TextSide::load(dir).unwrap();
    Arc::new(Local { side: Arc::new(side), info: Arc::new(info), gate: Arc::clone(gate) })
}
