//! A model's text side in this process.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::future::BoxFuture;
use minisgl_http::backend::TextService;
use minisgl_proto::text::{TextAnswer, TextFault, TextInfo, TextJob};
use minisgl_text::TextSide;
use tokio::sync::Semaphore;

struct Local {
    side: Arc<TextSide>,
    gate: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    info: Arc<TextInfo>,
}

impl TextService for Local {
    fn info(&self) -> Arc<TextInfo> {
        Arc::clone(&self.info)
    }

    fn run(&self, job: TextJob) -> BoxFuture<'static, Result<TextAnswer, TextFault>> {
        let (side, gate) = (Arc::clone(&self.side), Arc::clone(&self.gate));
        let waiting = Arc::clone(&self.waiting);
        Box::pin(async move {
            waiting.fetch_add(1, Ordering::SeqCst);
            let _place = gate.acquire().await;
            waiting.fetch_sub(1, Ordering::SeqCst);
            side.run(job, &AtomicBool::new(false))
        })
    }
}

/// What the folder has now. Each job needs a place behind the gate, and is counted while it waits there.
pub fn read(dir: &Path, gate: &Arc<Semaphore>, waiting: &Arc<AtomicUsize>) -> Arc<dyn TextService> {
    let (side, info) = TextSide::load(dir, None).unwrap();
    let (gate, waiting) = (Arc::clone(gate), Arc::clone(waiting));
    Arc::new(Local { side: Arc::new(side), info: Arc::new(info), gate, waiting })
}
