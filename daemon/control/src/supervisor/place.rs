//! Where the next worker goes, and whether it has to wait for another model to choose first.

use minisgl_proto::LoadStage;
use minisgl_proto::admin::AdminErrorCode;
use minisgl_proto::worker::LoadProgress;

use super::{Phase, Supervisor};
use crate::placement::Start;

impl Supervisor {
    /// Starts a worker as soon as it is known where.
    pub(super) fn place(&mut self) {
        match self.seat.start() {
            Ok(Start::Now { gpus, taken }) => self.start_worker(gpus, taken),
            Ok(Start::After(other)) => {
                self.phase = Phase::Queued;
                self.deadline = None;
                let detail = format!("after model \"{other}\", which is choosing its GPUs");
                self.on_progress(LoadProgress {
                    stage: LoadStage::Place,
                    done: 0,
                    total: 0,
                    detail,
                });
            }
            Err(taken) => {
                self.failure = AdminErrorCode::Conflict;
                self.fail_load(taken.to_string());
            }
        }
    }

    pub(super) fn on_turn(&mut self) {
        if self.phase == Phase::Queued {
            self.place();
        }
    }
}
