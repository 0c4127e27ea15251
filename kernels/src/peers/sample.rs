//! Tokens drawn from logits of which each rank has some columns.
//!
//! Owns: how ranks draw together; the kernels are in `cu/sampler/`. Must never: move whole rows, but where a filter
//! keeps more tokens than its list holds.

use super::{Layout, PeerError, PeerShape, Peers};
use crate::ArrayMut;
use crate::abi::{Address, MAIL_CLUSTERS, Mail, RANKS_MAX, SampleRanksArgs};
use crate::array::DeviceArray;
use crate::check::Check;
use crate::device::Device;
use crate::error::LaunchError;
use crate::kernel::Kernel;
use crate::ops::{Cut, Sample};

/// Threads of the sampler's blocks that a multiprocessor has registers for.
const THREADS_AT_ONCE: u32 = 1024;

/// First column of each rank and the end of the last; from one row of each to the next.
type Starts = ([u32; RANKS_MAX + 1], [u32; RANKS_MAX]);

impl PeerShape {
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

impl Peers {
    /// Length of [`Sample::scratch`] for `rows` rows that ranks draw together.
    pub fn sample_scratch_len(&self, device: &Device, rows: usize) -> usize {
        let (columns, stride) = self.columns();
        if Cut::new(device, rows, columns, self.ranks()).in_shared { 0 } else { rows * stride }
    }

    /// Length of `whole` of [`Peers::sample`], for up to `rows` rows `stride` apart.
    pub fn whole_rows_len(rows: usize, stride: usize) -> usize {
        rows.min(MAIL_CLUSTERS) * stride
    }

    /// The most columns that a rank has, by which all ranks cut up theirs, and the stride that they have room for.
    fn columns(&self) -> (usize, usize) {
        let most = self.shape.columns.iter().map(|range| range.len()).max().unwrap_or(0);
        (most, self.shape.part_stride(self.meeting.rank as usize))
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
        let cut = Cut::new(device, rows, columns, ranks);
        let layout = Layout::new(&self.shape);
        let (mut part, mut mail) = ([0; RANKS_MAX], [0; RANKS_MAX]);
        for peer in 0..ranks {
            part[peer] = self.window(peer) + layout.logits as Address;
            mail[peer] = self.window(peer) + layout.mail as Address;
        }
        let (start, part_strides) = self.shape.starts(&check)?;
        // All ranks launch the same, and blocks that are not on the GPU at once follow in the same order.
        let at_once = self.multiprocessors * (THREADS_AT_ONCE / cut.grid(1).threads) / cut.cluster;
        let clusters = (rows.min(MAIL_CLUSTERS) as u32).min(at_once.max(1));
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
        let kernel =
            if cut.in_shared { Kernel::SampleRanksShared } else { Kernel::SampleRanksScratch };
        // SAFETY: the struct is the kernel's; its arrays were checked above, those of the peers are as large by the
        // layout that all windows have; there is mail for as many clusters.
        unsafe { check.launch(kernel, cut.grid(clusters), &args) }?;
        Ok(())
    }
}

const _: () = assert!(size_of::<Mail>().is_multiple_of(16));
