//! A model's text side in this process.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use futures_util::future::BoxFuture;
use minisgl_http::backend::TextService;
use minisgl_proto::text::{TextAnswer, TextFault, TextInfo, TextJob};
use minisgl_text::TextSide;

struct Local {
    side: Arc<TextSide>,
    info: Arc<TextInfo>,
}

impl TextService for Local {
    fn info(&self) -> Arc<TextInfo> {
        Arc::clone(&self.info)
    }

    fn run(&self, job: TextJob) -> BoxFuture<'static, Result<TextAnswer, TextFault>> {
        let side = Arc::clone(&self.side);
        Box::pin(async move { side.run(job, &AtomicBool::new(false)) })
    }
}

/// What the folder has now.
pub fn read(dir: &Path) -> Arc<dyn TextService> {
    let (side, info) = TextSide::load(dir).unwrap();
    Arc::new(Local { side: Arc::new(side), info: Arc::new(info) })
}
