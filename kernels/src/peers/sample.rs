//! Tokens drawn from logits of which each rank has some columns.
//!
//! Owns: how ranks draw together; the kernels are in `cu/sampler/`. Must never: move whole rows, but where a filter
//! keeps more tokens than its list holds.

use cudarc::driver::DriverError;

use super::{Layout, PeerError, PeerShape, Peers};
use crate::ArrayMut;
use crate::abi::{Address, MAIL_CLUSTERS, Mail, RANKS_MAX, SampleRanksArgs};
use crate::array::DeviceArray;
use crate::check::Check;
use crate::device::Device;
use crate::error::LaunchError;
use crate::kernel::Kernel;
use crate::ops::{Cut, CutLimits, FEW_ROWS, Sample};

/// First column of each rank and the end of the last; from one row of each to the next.
type Starts = ([u32; RANKS_MAX + 1], [u32; RANKS_MAX]);

impl PeerShape {
    /// The most columns that a rank has.
    fn columns_max(&self) -> usize {
        self.columns.iter().map(|range| range.len()).max().unwrap_or(0)
    }

    pub(super) fn starts(&self, check: &Check<'_>) -> Result<Starts, LaunchError> {
        let (mut start, mut part_stride) = ([0; RANKS_MAX + 1], [0; RANKS_MAX]);
        for (rank, range) in self.columns.iter().enumerate() {
            part_stride[rank] = check.count("part_stride", self.part_stride(rank))?;
            start[rank] = check.count("a column", range.start)?;
            start[rank + 1] = check.count("a column", range.end)?;
        }
        Ok((start, part_stride))
    }
}

/// What ranks have agreed on for drawing together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drawing {
    limits: CutLimits,
    /// Clusters that are on each of the GPUs at once, for few rows and for many.
    clusters: [u32; 2],
}

impl Drawing {
    /// Of these GPUs, where a rank may have to share one with `sharing` in all. Each has parts of `shape`.
    pub(super) fn agreed(
        devices: &[&Device],
        shape: &PeerShape,
        sharing: u32,
    ) -> Result<Drawing, DriverError> {
        let all = devices.iter().map(|device| CutLimits::of(device));
        let limits =
            CutLimits::least(all).unwrap_or(CutLimits { cluster_max: 1, shared_bytes_max: 0 });
        let columns = shape.columns_max();
        let mut drawing = Drawing { limits, clusters: [1; 2] };
        for (at, rows) in [1, FEW_ROWS + 1].into_iter().enumerate() {
            let cut = drawing.cut(rows, columns, devices.len());
            let of = |device: &&Device| device.clusters_at_once(kernel(&cut), cut.grid(1));
            let least = devices.iter().map(of).collect::<Result<Vec<u32>, _>>()?;
            drawing.clusters[at] = least.into_iter().min().unwrap_or(0);
        }
        Ok(drawing.shared_by(sharing))
    }

    /// Each of `sharing` ranks has its part of a GPU, and one cluster at least.
    fn shared_by(mut self, sharing: u32) -> Drawing {
        self.clusters = self.clusters.map(|clusters| (clusters / sharing.max(1)).max(1));
        self
    }

    fn cut(&self, rows: usize, columns: usize, ranks: usize) -> Cut {
        Cut::new(self.limits, rows, columns, ranks)
    }

    fn at_once(&self, rows: usize) -> u32 {
        self.clusters[usize::from(rows > FEW_ROWS)]
    }
}

fn kernel(cut: &Cut) -> Kernel {
    if cut.in_shared { Kernel::SampleRanksShared } else { Kernel::SampleRanksScratch }
}

impl Peers {
    /// Length of [`Sample::scratch`] for `rows` rows that ranks draw together.
    pub fn sample_scratch_len(&self, rows: usize) -> usize {
        let (columns, stride) = self.columns();
        if self.drawing.cut(rows, columns, self.ranks()).in_shared { 0 } else { rows * stride }
    }

    /// Length of `whole` of [`Peers::sample`], for up to `rows` rows `stride` apart.
    pub fn whole_rows_len(rows: usize, stride: usize) -> usize {
        rows.min(MAIL_CLUSTERS) * stride
    }

    /// The most columns that a rank has, by which all ranks cut up theirs, and the stride that they have room for.
    fn columns(&self) -> (usize, usize) {
        (self.shape.columns_max(), self.shape.part_stride(self.meeting.rank as usize))
    }

    /// Has every rank draw the same tokens from [`Peers::logits`] of all: what [`Sample::launch`] gives for whole
    /// rows, to the bit. Ranks tell each other a few numbers for each row and short lists of candidates. A row that
    /// takes more is put together on every rank, in its cluster's row of `whole`, `[.., stride]`, see
    /// [`Peers::whole_rows_len`].
    ///
    /// Other ranks may read this one's logits until they have met again.
    ///
    /// # Errors
    /// See [`LaunchError`]; GPUs that do not read each other's memory.
    pub fn sample(
        &mut self,
        device: &Device,
        sample: Sample<'_>,
        whole: ArrayMut<'_, f32>,
        stride: usize,
    ) -> Result<(), PeerError> {
        let check = Check::new("sample over ranks", device);
        check.that(self.is_direct(), || "the GPUs do not read each other's memory".into())?;
        let (rows, rank, ranks) = (sample.rows, self.meeting.rank as usize, self.ranks());
        check.that(rows <= self.shape.logit_rows, || {
            format!("{rows} rows, there is room for {}", self.shape.logit_rows)
        })?;
        let (columns, part_stride) = self.columns();
        let end = self.shape.columns[ranks - 1].end;
        check.that(sample.vocab == end && end <= stride, || {
            format!("vocab is {}, rows are {stride} apart, ranks have {end}", sample.vocab)
        })?;
        let cut = self.drawing.cut(rows, columns, ranks);
        let layout = Layout::new(&self.shape);
        let (mut part, mut mail) = ([0; RANKS_MAX], [0; RANKS_MAX]);
        for peer in 0..ranks {
            part[peer] = self.window(peer) + layout.logits as Address;
            mail[peer] = self.window(peer) + layout.mail as Address;
        }
        let (start, part_strides) = self.shape.starts(&check)?;
        // All ranks launch the same, and all of it is on every GPU at once: nobody waits for a block that has not begun.
        let clusters = (rows.min(MAIL_CLUSTERS) as u32).min(self.drawing.at_once(rows));
        let room = clusters as usize * stride;
        check.that(room <= whole.len(), || {
            format!("whole has {} elements, {clusters} rows have {room}", whole.len())
        })?;
        let args = SampleRanksArgs {
            sample: sample.args(&check, part[rank], part_stride, &cut)?,
            peers: self.meeting,
            part,
            mail,
            turns: self.window(rank) + layout.mail_turns as Address,
            whole: check.array("whole", &whole, &[whole.len()])?,
            start,
            part_stride: part_strides,
            whole_stride: check.multiple("stride", stride, 4)?,
        };
        let kernel = kernel(&cut);
        // SAFETY: the struct is the kernel's; its arrays were checked above, those of the peers are as large by the
        // layout that all windows have; there is mail for as many clusters.
        unsafe { check.launch(kernel, cut.grid(clusters), &args) }?;
        Ok(())
    }
}

const _: () = assert!(size_of::<Mail>().is_multiple_of(16));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_launch_is_no_larger_than_what_is_on_every_gpu_at_once() {
        let limits = CutLimits { cluster_max: 8, shared_bytes_max: 227 << 10 };
        let drawing = Drawing { limits, clusters: [12, 40] };
        assert_eq!(
            [1, FEW_ROWS, FEW_ROWS + 1, 256].map(|rows| drawing.at_once(rows)),
            [12, 12, 40, 40]
        );
        // Ranks that share a GPU share its multiprocessors; none is left without.
        let shared = drawing.shared_by(16);
        assert_eq!([1, 256].map(|rows| shared.at_once(rows)), [1, 2]);
    }
}
