//! Collectives by NCCL, for what its rings are better at, and where GPUs cannot read each other's memory.

use std::mem::ManuallyDrop;
use std::sync::Arc;

use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut};
use cudarc::nccl::safe::NcclType;
use cudarc::nccl::{Comm, ReduceOp};

use super::PeerError;
use crate::library;

/// One rank's communicator. It ends with the process: giving one up whose peer has failed may wait for that
/// peer.
pub(super) struct Nccl(ManuallyDrop<Comm>);

// SAFETY: a communicator may be used from any thread, by one at a time; `Nccl` is not Sync.
unsafe impl Send for Nccl {}

impl Nccl {
    /// A communicator for each rank; all of them are made at once.
    pub(super) fn open(streams: &[Arc<CudaStream>]) -> Result<Vec<Nccl>, PeerError> {
        library::load(&library::NCCL, library::configured().as_deref())?;
        let comms = Comm::from_devices(streams.to_vec())
            .map_err(|error| PeerError::Nccl { what: "start", status: format!("{:?}", error.0) })?;
        Ok(comms.into_iter().map(|comm| Nccl(ManuallyDrop::new(comm))).collect())
    }

    /// `x` becomes its sum over ranks.
    pub(super) fn all_reduce<T: NcclType>(
        &self,
        x: &mut impl DevicePtrMut<T>,
    ) -> Result<(), PeerError> {
        let sum = self.0.all_reduce_in_place(x, &ReduceOp::Sum);
        self.done("all-reduce", sum.map(drop))
    }

    /// `out` becomes the parts of all ranks, one after the other.
    pub(super) fn all_gather<T: NcclType>(
        &self,
        part: &impl DevicePtr<T>,
        out: &mut impl DevicePtrMut<T>,
    ) -> Result<(), PeerError> {
        let all = self.0.all_gather(part, out);
        self.done("all-gather", all.map(drop))
    }

    fn done(
        &self,
        what: &'static str,
        result: Result<(), cudarc::nccl::result::NcclError>,
    ) -> Result<(), PeerError> {
        result.map_err(|error| PeerError::Nccl { what, status: format!("{:?}", error.0) })
    }
}
