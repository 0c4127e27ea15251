//! A model's text side in this process.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

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

/// Read when it is first asked for, so that a test can write files before.
#[derive(Default)]
pub struct Lazy(OnceLock<Arc<Local>>);

impl Lazy {
    pub fn get(&self, dir: &Path) -> Arc<dyn TextService> {
        let load = || {
            let (side, info) = TextSide::load(dir).unwrap();
            Arc::new(Local { side: Arc::new(side), info: Arc::new(info) })
        };
        Arc::clone(self.0.get_or_init(load)) as _
    }
}
