//! A GPU among several that hold one model.
//!
//! Owns: where a rank leaves what its peers add up, and what is said when a peer does not come. Must never: launch
//! a collective that the other ranks do not launch at the same place of their step.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cudarc::driver::CudaSlice;
use half::bf16;
use minisgl_kernels::Device;
use minisgl_kernels::peers::{
    Allowed, FaultRecord, NextNorm, PATIENCE, PeerShape, Peers, Sum, Way,
};

use super::linear::{Into, Target};
use super::memory::{LOGIT_ROWS, padded_tokens};
use super::{Buffer, CudaOps, Gpu, failed};
use crate::collective::Member;
use crate::config::ModelConfig;
use crate::error::OpError;
use crate::ops::{Around, Linear, Norm, OpResult, Stream};
use crate::patience::STEP_PATIENCE;
use crate::shard::Shard;

/// Anything but `0` in this variable and sums over ranks are NCCL's, to tell what our own change.
const DISABLE_CUSTOM: &str = "MINISGL_DISABLE_CUSTOM_ALLREDUCE";

/// One rank's seat among the GPUs of a model.
pub struct Team {
    peers: Peers,
    /// Where ranks agree on what each of them measured.
    member: Member,
    words: FaultWords,
}

/// Says why a rank's GPU gave up, if it waited for a peer in vain.
#[derive(Clone)]
pub(super) struct FaultWords {
    record: FaultRecord,
    rank: usize,
    /// The GPU of each rank, and the steps that it has begun.
    gpus: Arc<[(usize, AtomicU64)]>,
}

impl FaultWords {
    /// This rank begins a step.
    pub(super) fn begin_step(&self) {
        self.gpus[self.rank].1.fetch_add(1, Ordering::Relaxed);
    }

    /// `error`, or its cause where that is known.
    pub(super) fn explain(&self, error: OpError) -> OpError {
        let Some(missing) = self.record.read() else { return error };
        OpError {
            operation: "all-reduce",
            reason: format!("{}; {}", self.missing(missing.rank, PATIENCE), error.reason),
        }
    }

    /// Why a step has not ended within `patience`: NCCL waits for a peer for good, and any kernel may hang.
    pub(super) fn overdue(&self, patience: Duration) -> OpError {
        let steps = |rank: usize| self.gpus[rank].1.load(Ordering::Relaxed);
        let late = (0..self.gpus.len()).min_by_key(|&rank| steps(rank));
        let (own, patience_s) = (self.gpus[self.rank].0, patience.as_secs_f32());
        let reason = match late.filter(|&rank| steps(rank) < steps(self.rank)) {
            Some(rank) => self.missing(rank, patience),
            None => format!("GPU {own} did not end a step within {patience_s:.1} s"),
        };
        OpError { operation: "all-reduce", reason }
    }

    fn missing(&self, rank: usize, patience: Duration) -> String {
        let (gpu, patience_s) = (self.gpus[rank].0, patience.as_secs_f32());
        format!("rank {rank} (GPU {gpu}) did not come to a sum over ranks within {patience_s:.1} s")
    }
}

impl Team {
    /// The seats of all ranks, rank `r` on `gpus[r]`, for steps of up to `chunk_tokens` tokens and `rows` rows.
    ///
    /// # Errors
    /// No memory that the GPUs can share, or neither that nor NCCL.
    pub fn gather(
        gpus: &[Gpu],
        config: &ModelConfig,
        shards: &[Shard],
        (chunk_tokens, rows): (usize, usize),
        member: impl Fn(usize) -> Member,
    ) -> OpResult<Vec<Team>> {
        let disabled = std::env::var_os(DISABLE_CUSTOM).is_some_and(|value| value != "0");
        let shape = PeerShape {
            hidden: config.hidden_size,
            rows: padded_tokens(chunk_tokens),
            logit_rows: rows.min(LOGIT_ROWS),
            columns: shards.iter().map(|shard| shard.vocab.clone()).collect(),
        };
        let devices: Vec<&Device> = gpus.iter().map(Gpu::device).collect();
        let allowed = if disabled { Allowed::NcclOnly } else { Allowed::All };
        let all = Peers::open(&devices, shape, allowed, PATIENCE)
            .map_err(failed("bring the GPUs together"))?;
        if all.iter().any(|peers| !peers.is_direct()) {
            let why =
                if disabled { "disabled" } else { "the GPUs cannot read each other's memory" };
            tracing::warn!("sums over ranks by NCCL alone: {why}");
        }
        let gpus: Arc<[_]> = gpus.iter().map(|gpu| (gpu.ordinal(), AtomicU64::new(0))).collect();
        let seats = all.into_iter().enumerate().map(|(rank, peers)| {
            let words = FaultWords { record: peers.fault(), rank, gpus: gpus.clone() };
            Team { peers, member: member(rank), words }
        });
        Ok(seats.collect())
    }

    pub(super) fn words(&self) -> FaultWords {
        self.words.clone()
    }

    pub(super) fn seat(&self) -> &Peers {
        &self.peers
    }

    pub(super) fn peers(&mut self) -> &mut Peers {
        &mut self.peers
    }

    /// Settles how many rows are summed in which way, by timing them; ruins the residual stream.
    pub(super) fn measure(&mut self, device: &Device, residual: &mut CudaSlice<bf16>) -> OpResult {
        struct Failed(OpError);
        impl From<minisgl_kernels::peers::PeerError> for Failed {
            fn from(error: minisgl_kernels::peers::PeerError) -> Failed {
                Failed(failed("time sums over ranks")(error))
            }
        }
        let Team { peers, member, .. } = self;
        // What came before took each rank another time, and the first sum on the GPU waits for no more than seconds.
        member.meet(PREPARING)?;
        let agree = |seconds: &mut [f32]| member.all_reduce(seconds).map_err(Failed);
        let table = peers.measure(device, (&mut *residual).into(), agree).map_err(|f| f.0)?;
        let ranks = peers.ranks() as f32;
        for (rows, timed) in &table {
            let timed: Vec<String> = timed
                .iter()
                .map(|(way, seconds)| format!("{way:?} {:.1} us", seconds / ranks * 1e6))
                .collect();
            tracing::debug!("sum of {rows} rows: {}", timed.join(", "));
        }
        let ways: Vec<(usize, Way)> = peers.ways().to_vec();
        tracing::info!("sums over ranks, rows at most and way: {ways:?}");
        Ok(())
    }
}

/// How long a rank waits for its peers to have measured their products; any of them that fails tells it at once.
const PREPARING: Duration = Duration::from_secs(900);

const _: () = assert!(STEP_PATIENCE.as_millis() > PATIENCE.as_millis());

impl CudaOps {
    /// The end of a block where there are several ranks: this rank's product, then the sum over all, then norms. A norm
    /// of the sum comes after it, by a kernel of its own.
    pub(super) fn linear_sum(
        &mut self,
        rows: usize,
        linear: &Linear<CudaOps>,
        x: &Buffer,
        norms: Around<'_, CudaOps>,
        stream: &mut Stream<CudaOps>,
    ) -> OpResult {
        if let Some(after) = norms.after {
            return self.with_block(|ops, block| {
                ops.sum_into(rows, linear, x, (Sum::Block, None), (block, None))?;
                ops.add_norm(rows, block, (after, norms.next), stream)
            });
        }
        // What comes along with a sum takes weights as they are.
        let next = norms.next.filter(|_| !self.plus_one);
        let Stream { residual, normed, .. } = stream;
        let summed =
            self.sum_into(rows, linear, x, (Sum::Addition, next), (residual, Some(normed)));
        stream.changed(next);
        summed
    }

    /// The sum of all ranks' products, added to `to` or put there, and the norm of it.
    fn sum_into(
        &mut self,
        rows: usize,
        linear: &Linear<CudaOps>,
        x: &Buffer,
        (sum, next): (Sum, Option<&Norm<CudaOps>>),
        (to, normed): (&mut Buffer, Option<&mut Buffer>),
    ) -> OpResult {
        let Some(mut team) = self.team.take() else { return Err(failed("linear")("one rank")) };
        let (room, width) = (to.rows, to.width);
        // A product of few rows writes to the peers itself.
        let sends = match linear.weight.scale_form() {
            None => self.few(rows),
            Some(_) => self.can_send_fp8(rows, linear),
        };
        let inboxes = if sends { team.peers.inboxes(rows) } else { None };
        let into = inboxes.map_or(Into::Output, Into::Sent);
        let target = Target { data: team.peers.delta(sum), rows: room, width };
        let product = self.product_into(rows, linear, x, target, into);
        let sent = inboxes.is_some();
        let summed = product
            .and_then(|()| self.sum_over_ranks(&mut team, rows, (sum, sent), next, (to, normed)));
        self.team = Some(team);
        summed
    }

    /// `residual +=` what every rank has left for the next addition, with the norm that follows.
    pub(super) fn add_over_ranks(
        &self,
        team: &mut Team,
        rows: usize,
        next: Option<&Norm<CudaOps>>,
        stream: &mut Stream<CudaOps>,
    ) -> OpResult {
        let next = next.filter(|_| !self.plus_one);
        let Stream { residual, normed, .. } = &mut *stream;
        let to = (residual, Some(normed));
        let summed = self.sum_over_ranks(team, rows, (Sum::Addition, false), next, to);
        stream.changed(next);
        summed
    }

    /// What every rank has left for `sum`, in its peers' inboxes already if it was `sent`, added to `to` or put there; and
    /// the norm of it.
    fn sum_over_ranks(
        &self,
        team: &mut Team,
        rows: usize,
        sum: (Sum, bool),
        next: Option<&Norm<CudaOps>>,
        (to, normed): (&mut Buffer, Option<&mut Buffer>),
    ) -> OpResult {
        let mut normed = normed.map(|normed| normed.rows_mut(rows));
        let norm = next.zip(normed.as_mut()).map(|(norm, normed)| NextNorm {
            weight: (&norm.weight).into(),
            out: normed.into(),
            eps: self.eps,
        });
        let mut to = to.rows_mut(rows);
        team.peers
            .all_reduce(&self.device, rows, sum, (&mut to).into(), norm)
            .map_err(failed("all-reduce"))
    }
}
