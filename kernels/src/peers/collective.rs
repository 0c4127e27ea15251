//! The collectives, and the choice among the ways of a sum.

use std::ops::Range;

use cudarc::driver::sys::CUevent_flags;
use cudarc::driver::{CudaSlice, DevicePtr};
use half::bf16;

use super::{BLOCKS_MAX, EMBEDDING, INBOX_ROWS, Layout, PeerError, Peers, Way, driver};
use crate::abi::{Address, AllReduceArgs, GatherColumnsArgs, MeetArgs, PushArgs, RANKS_MAX};
use crate::check::Check;
use crate::device::Device;
use crate::error::LaunchError;
use crate::grid::Grid;
use crate::kernel::Kernel;
use crate::ops::{HIDDEN_MAX, Inboxes};
use crate::{Array, ArrayMut};

/// Rows for which the ways of a sum are timed.
const TIMED_ROWS: [usize; 7] = [4, 32, INBOX_ROWS, 256, 1024, 4096, 16_384];

/// What a way that cannot be gone takes.
const NEVER_S: f32 = 1e6;

/// Sums of each way that are timed at once, and those that run before.
const TIMED: (usize, usize) = (12, 4);

/// The norm that follows a sum.
pub struct NextNorm<'a> {
    /// `[hidden]`.
    pub weight: Array<'a, bf16>,
    /// `[rows, hidden]`.
    pub out: ArrayMut<'a, bf16>,
    /// Added to the mean square.
    pub eps: f32,
}

/// Rows of a sum, and the seconds that each way of it took.
pub type Timed = (usize, Vec<(Way, f32)>);

/// What the sum over ranks becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    /// The residual stream itself: the embedding.
    Residual,
    /// An addition to it: the end of a block.
    Addition,
    /// What a block gives, without the residual stream: a norm of it comes first.
    Block,
}

impl Peers {
    /// Where a rank leaves its part of the next sum, `[rows, hidden]`.
    pub fn delta(&mut self, sum: Sum) -> &mut CudaSlice<bf16> {
        if sum == Sum::Residual {
            self.next = EMBEDDING;
        }
        &mut self.deltas[self.next]
    }

    /// Where else a product of `rows` rows can write its results, to save the next addition the way: `None` where
    /// that is not how so many are summed. Who writes there says `sent` to [`Peers::all_reduce`], and who does not
    /// must not.
    pub fn inboxes(&self, rows: usize) -> Option<Inboxes> {
        if self.way(rows) != Way::Push {
            return None;
        }
        let hidden = self.shape.hidden;
        let rank = self.meeting.rank as usize;
        let part = (rank * INBOX_ROWS * hidden * size_of::<bf16>()) as Address;
        let offset = Layout::new(&self.shape).inboxes[self.next] as Address + part;
        let mut inbox = [0; RANKS_MAX - 1];
        let peers = (0..self.ranks()).filter(|&peer| peer != rank);
        for (at, peer) in inbox.iter_mut().zip(peers) {
            *at = self.window(peer) + offset;
        }
        let peers = self.meeting.ranks - 1;
        Some(Inboxes { inbox, peers, room: INBOX_ROWS * hidden })
    }

    /// Sums the first `rows` rows of [`Peers::delta`] over all ranks into `residual`, `[rows, hidden]`, with the
    /// norm after it. `sent`: they are in the peers' inboxes already, see [`Peers::inboxes`]. bf16, f32 inside, in
    /// the order of ranks: all ranks have the same bits after.
    ///
    /// # Errors
    /// See [`LaunchError`], and NCCL's.
    pub fn all_reduce(
        &mut self,
        device: &Device,
        rows: usize,
        (sum, sent): (Sum, bool),
        residual: ArrayMut<'_, bf16>,
        norm: Option<NextNorm<'_>>,
    ) -> Result<(), PeerError> {
        let check = Check::new("all_reduce", device);
        let hidden = self.shape.hidden;
        check.that(hidden <= HIDDEN_MAX, || {
            format!("hidden is {hidden}, the limit is {HIDDEN_MAX}")
        })?;
        check.that(rows <= self.shape.rows, || {
            format!("{rows} rows, there is room for {}", self.shape.rows)
        })?;
        let which = if sum == Sum::Residual { EMBEDDING } else { self.next };
        let way = self.way(rows);
        check.that(!sent || way == Way::Push, || {
            format!("{rows} rows were sent to inboxes, and are summed by {way:?}")
        })?;
        let ranks = self.ranks();
        let mut delta: [Address; RANKS_MAX] = [0; RANKS_MAX];
        let mut peers = self.meeting;
        if way == Way::Nccl && ranks > 1 {
            let nccl = self.nccl.as_ref().ok_or_else(|| no_nccl("all_reduce"))?;
            nccl.all_reduce(&mut self.deltas[which].slice_mut(..rows * hidden))?;
            peers.ranks = 1;
            delta[0] = self.window(self.meeting.rank as usize);
        } else {
            for (rank, at) in delta.iter_mut().enumerate().take(ranks) {
                *at = self.window(rank);
            }
        }
        let offset = Layout::new(&self.shape).deltas[which] as Address;
        delta.iter_mut().filter(|at| **at != 0).for_each(|at| *at += offset);
        let (norm_weight, normed, eps) = match &norm {
            Some(norm) => (
                check.array("weight", &norm.weight, &[hidden])?,
                check.array("normed", &norm.out, &[rows, hidden])?,
                norm.eps,
            ),
            None => (0, 0, 0.0),
        };
        let args = AllReduceArgs {
            peers,
            delta,
            residual: check.array("residual", &residual, &[rows, hidden])?,
            norm_weight,
            normed,
            rows: check.count("rows", rows)?,
            hidden: check.multiple("hidden", hidden, 8)?,
            eps,
            add: u32::from(sum == Sum::Addition),
        };
        let vectors = args.hidden / 8;
        let wide = vectors > 1024;
        let kernel = match (way, wide) {
            (Way::TwoShot, false) => Kernel::AllReduceTwice1,
            (Way::TwoShot, true) => Kernel::AllReduceTwice2,
            (_, false) => Kernel::AllReduce1,
            (_, true) => Kernel::AllReduce2,
        };
        // At least a warp, and a thread for each peer.
        let threads = vectors.div_ceil(1 + u32::from(wide)).next_multiple_of(32);
        let at_once = self.multiprocessors * (1024 / threads).max(1);
        let blocks = args.rows.min(at_once).min(BLOCKS_MAX as u32);
        let grid = Grid { blocks: (blocks, 1), threads, shared_bytes: 0, cluster: 1 };
        if way == Way::Push {
            let offset = Layout::new(&self.shape).inboxes[which] as Address;
            let mut inbox = [0; RANKS_MAX];
            for (rank, at) in inbox.iter_mut().enumerate().take(ranks) {
                *at = self.window(rank) + offset;
            }
            let inbox_rows = INBOX_ROWS as u32;
            check.that(rows <= INBOX_ROWS, || format!("{rows} rows do not fit into an inbox"))?;
            let args = PushArgs { sum: args, inbox, inbox_rows, sent: u32::from(sent) };
            let kernel = if wide { Kernel::Push2 } else { Kernel::Push1 };
            // SAFETY: the struct is the kernel's; its arrays were checked above, those of the peers are as large
            // by the layout that all windows have.
            unsafe { check.launch(kernel, grid, &args) }?;
        } else {
            // SAFETY: as above; no more blocks than there are turns for.
            unsafe { check.launch(kernel, grid, &args) }?;
        }
        self.next = if which == 0 { 1 } else { 0 };
        Ok(())
    }

    /// This rank's logits, `[logit_rows, part_stride]`, see [`PeerShape::part_stride`].
    ///
    /// [`PeerShape::part_stride`]: super::PeerShape::part_stride
    pub fn logits(&mut self) -> &mut CudaSlice<f32> {
        &mut self.logits
    }

    /// Joins the first `rows` rows of [`Peers::logits`] of all ranks, in `out`: `[rows, stride]`. By NCCL: where
    /// GPUs read each other's memory, [`Peers::sample`] needs no such thing.
    ///
    /// # Errors
    /// See [`LaunchError`], and NCCL's.
    pub fn gather(
        &mut self,
        device: &Device,
        rows: usize,
        stride: usize,
        out: ArrayMut<'_, f32>,
    ) -> Result<(), PeerError> {
        let check = Check::new("gather", device);
        let columns = &self.shape.columns;
        let end = columns.last().map_or(0, |last: &Range<usize>| last.end);
        check.that(rows <= self.shape.logit_rows, || {
            format!("{rows} rows, there is room for {}", self.shape.logit_rows)
        })?;
        check.that(end.next_multiple_of(4) <= stride, || {
            format!("rows are {stride} apart and {end} long")
        })?;
        let (Some(parts), Some(nccl)) = (&mut self.parts, &self.nccl) else {
            return Err(no_nccl("gather").into());
        };
        // All send as much as the rank with the longest rows.
        let strides = (0..columns.len()).map(|rank| self.shape.part_stride(rank));
        let len = rows * strides.max().unwrap_or(0);
        let mut all = parts.slice_mut(..len * columns.len());
        nccl.all_gather(&self.logits.slice(..len), &mut all)?;
        let (base, _guard) = parts.device_ptr(device.stream());
        let mut part = [0; RANKS_MAX];
        for (rank, at) in part.iter_mut().enumerate().take(columns.len()) {
            *at = base + (rank * len * size_of::<f32>()) as Address;
        }
        let (start, part_stride) = self.shape.starts(&check)?;
        let whole = |x: usize| x.is_multiple_of(4);
        let vectors = whole(stride) && columns.iter().all(|range| whole(range.start));
        let args = GatherColumnsArgs {
            part,
            start,
            parts: columns.len() as u32,
            out: check.array("out", &out, &[rows, stride])?,
            rows: check.count("rows", rows)?,
            part_stride,
            stride: check.count("stride", stride)?,
            vectors: u32::from(vectors),
            reserved: 0,
        };
        let work = (rows * end).div_ceil(if vectors { 4 } else { 1 });
        let blocks = work.div_ceil(1024).clamp(1, 2 * device.multiprocessors() as usize) as u32;
        let grid = Grid { blocks: (blocks, 1), threads: 512, shared_bytes: 0, cluster: 1 };
        // SAFETY: the struct is the kernel's; its array was checked above, and the parts are what was gathered.
        unsafe { check.launch(Kernel::GatherColumns, grid, &args) }?;
        Ok(())
    }

    /// Has all ranks come this far before any goes on: before logits that peers may still read are
    /// overwritten.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub fn meet(&mut self, device: &Device) -> Result<(), PeerError> {
        if !self.is_direct() {
            return Ok(()); // NCCL has copied them.
        }
        let grid = Grid { blocks: (1, 1), threads: 32, shared_bytes: 0, cluster: 1 };
        let args = MeetArgs { peers: self.meeting };
        // SAFETY: the struct is the kernel's.
        unsafe { Check::new("meet", device).launch(Kernel::Meet, grid, &args) }?;
        Ok(())
    }

    /// How `rows` rows are summed.
    fn way(&self, rows: usize) -> Way {
        self.ways.iter().find(|&&(most, _)| rows <= most).map_or(Way::OneShot, |&(_, way)| way)
    }

    /// Times the ways of a sum and settles which is used for how many rows. All ranks do this at once; `agree`
    /// takes each rank's times and returns the same to all of them. Needs `residual` of [`PeerShape::rows`]
    /// rows, which it ruins.
    ///
    /// # Errors
    /// Those of the collectives and of `agree`.
    ///
    /// [`PeerShape::rows`]: super::PeerShape::rows
    pub fn measure<E: From<PeerError>>(
        &mut self,
        device: &Device,
        mut residual: ArrayMut<'_, bf16>,
        mut agree: impl FnMut(&mut [f32]) -> Result<(), E>,
    ) -> Result<Vec<Timed>, E> {
        let mut ways = Vec::new();
        if self.is_direct() {
            ways.extend([Way::Push, Way::OneShot]);
            if self.ranks() > 2 {
                ways.push(Way::TwoShot);
            }
        }
        if self.nccl.is_some() {
            ways.push(Way::Nccl);
        }
        let most = self.shape.rows;
        let mut rows: Vec<usize> = TIMED_ROWS.iter().map(|&rows| rows.min(most)).collect();
        rows.dedup();
        let mut table = Vec::new();
        for rows in rows {
            let mut seconds = Vec::new();
            for &way in &ways {
                if way == Way::Push && rows > INBOX_ROWS {
                    seconds.push(NEVER_S);
                    continue;
                }
                self.only(way);
                seconds.push(self.time(device, rows, residual.reborrow())?);
            }
            agree(&mut seconds)?;
            table.push((rows, ways.iter().copied().zip(seconds).collect::<Vec<_>>()));
        }
        self.ways = choose(&table);
        Ok(table)
    }

    /// Seconds of one sum of `rows` rows.
    fn time(
        &mut self,
        device: &Device,
        rows: usize,
        mut residual: ArrayMut<'_, bf16>,
    ) -> Result<f32, PeerError> {
        let fault = driver("time a sum");
        let stream = device.stream().clone();
        let event = || stream.context().new_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
        let (began, ended) = (event().map_err(&fault)?, event().map_err(&fault)?);
        let len = rows * self.shape.hidden;
        for turn in 0..TIMED.0 + TIMED.1 {
            if turn == TIMED.1 {
                began.record(&stream).map_err(&fault)?;
            }
            let residual = residual.reborrow().first(len);
            self.all_reduce(device, rows, (Sum::Addition, false), residual, None)?;
        }
        ended.record(&stream).map_err(&fault)?;
        Ok(began.elapsed_ms(&ended).map_err(&fault)? / 1e3 / TIMED.0 as f32)
    }
}

fn no_nccl(op: &'static str) -> LaunchError {
    LaunchError::Argument { op, what: "there is no NCCL".into() }
}

/// The fastest way for each number of rows: up to halfway (by factors) to the next that was timed.
fn choose(table: &[Timed]) -> Vec<(usize, Way)> {
    let mut ways: Vec<(usize, Way)> = Vec::new();
    for (index, (rows, timed)) in table.iter().enumerate() {
        let Some(&(best, _)) = timed.iter().min_by(|a, b| a.1.total_cmp(&b.1)) else { continue };
        let next = table.get(index + 1).map(|(next, _)| *next);
        let most = next.map_or(usize::MAX, |next| (*rows as f64 * next as f64).sqrt() as usize);
        let most = if best == Way::Push { most.min(INBOX_ROWS) } else { most };
        match ways.last_mut() {
            Some(last) if last.1 == best => last.0 = most,
            _ => ways.push((most, best)),
        }
    }
    ways
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_of_rows_goes_the_way_that_was_fastest_near_it() {
        use Way::{Nccl, OneShot, TwoShot};
        let table = [
            (16, vec![(OneShot, 1.0), (TwoShot, 2.0), (Nccl, 9.0)]),
            (64, vec![(OneShot, 2.0), (TwoShot, 3.0), (Nccl, 9.0)]),
            (256, vec![(OneShot, 6.0), (TwoShot, 5.0), (Nccl, 9.0)]),
            (4096, vec![(OneShot, 90.0), (TwoShot, 50.0), (Nccl, 40.0)]),
        ];
        let ways = choose(&table);
        assert_eq!(ways, [(128, OneShot), (1024, TwoShot), (usize::MAX, Nccl)]);
        assert!(choose(&[]).is_empty());
    }
}
