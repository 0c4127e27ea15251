//! Where the next instance goes, and whether it has to wait for another model to choose first.

use minisgl_proto::LoadStage;
use minisgl_proto::admin::AdminErrorCode;
use minisgl_proto::worker::LoadProgress;

use super::{Phase, Supervisor};
use crate::placement::{Start, Taken};
use crate::resolve::Retry;

impl Supervisor {
    /// Reserves the GPUs that the options name, if none are reserved.
    pub(super) fn reserve(&mut self) -> Result<(), Taken> {
        if self.reservation.is_none() {
            let gpus_here = self.config.gpus.0.may_exist();
            let (name, options) = (&self.model.spec.name, &self.options);
            self.reservation = Some(self.placement.reserve(name, options, gpus_here)?);
        }
        Ok(())
    }

    /// Starts an instance as soon as it is known where.
    pub(super) fn place(&mut self) {
        if let Err(taken) = self.reserve() {
            return self.on_taken(&taken);
        }
        let Some(reservation) = &mut self.reservation else { return };
        match reservation.start() {
            Ok(Start::Now { gpus, taken }) => self.start_instance(gpus, taken),
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
            Err(taken) => self.on_taken(&taken),
        }
    }

    fn on_taken(&mut self, taken: &Taken) {
        let why = taken.to_string();
        if self.fallback.is_some() {
            self.go_back(&why);
        } else {
            self.fail(AdminErrorCode::Conflict, why, Retry::Backoff);
        }
    }

    pub(super) fn on_turn(&mut self) {
        if self.phase == Phase::Queued {
            self.place();
        }
    }
}
