//! Page tables on the GPU: one for each slot and group of layers, changed by what a plan says.
//!
//! Owns: the tables, the lists that rows of prompts are read by, and the order in which both come before a step. Must never: hold
//! host memory that grows with the lengths of requests.
//!
//! ```text
//!   of a step that is replayed: plan ──Bring──> tables
//!   plan: grown, pages ──copy──> sent ──CopyRuns──> tables [slots, groups, entries] ──CopyRuns──> listed (rows of prompts)
//!                                                    └─> decode attention
//! ```

use std::sync::Arc;

use cudarc::driver::{
    CudaEvent, CudaSlice, CudaStream, CudaView, DriverError, PinnedHostSlice, result,
};
use minisgl_kernels::Device;
use minisgl_kernels::ops::CopyRuns;
use minisgl_sched::{Grown, PageId, Plan, Row};

use super::{failed, memory};
use crate::batch::{Batch, IN_FLIGHT_MAX};
use crate::ops::OpResult;

/// Runs that are sent at a time.
const RUNS_MAX: usize = 1024;

/// Words that are sent at a time, runs and new pages. A plan with more takes several copies.
const WORDS: usize = 1 << 16;

const RUN_WORDS: usize = CopyRuns::RUN_WORDS;

/// Tables and lists of a step are what its plan says as soon as the stream's next copy begins. Kernels may read them early, before
/// those between have ended, if that copy comes first: it waits for every kernel before it, and every kernel after it waits
/// for the copy.
#[must_use = "the copy of a step's inputs comes after its tables"]
pub(super) struct TablesChanged(());

/// How large the tables are.
#[derive(Clone, Copy, Debug)]
pub(super) struct TablesShape {
    pub(super) slots: usize,
    /// Groups of layers.
    pub(super) groups: usize,
    /// Pages of the longest request, of a group.
    pub(super) entries: usize,
    /// How many pages there are.
    pub(super) kv_pages: usize,
}

impl TablesShape {
    /// The word of all tables where the first `count` of `pages` become entries of a slot's table from `at` on.
    ///
    /// # Errors
    /// What is not there, in words.
    fn place(
        self,
        (slot, group): (u32, u32),
        at: usize,
        pages: &[PageId],
        count: usize,
    ) -> Result<usize, String> {
        let TablesShape { slots, groups, entries, kv_pages } = self;
        let is_there = (slot as usize) < slots && (group as usize) < groups;
        let Some(pages) = pages.get(..count).filter(|_| is_there && at + count <= entries) else {
            return Err(format!(
                "{count} of {} pages become entries {at} to {} of slot {slot}, group {group}; there are {slots} slots of \
                 {groups} x {entries}",
                pages.len(),
                at + count
            ));
        };
        if let Some(page) = pages.iter().find(|&&page| page as usize >= kv_pages) {
            return Err(format!("slot {slot} names page {page}, there are {kv_pages}"));
        }
        Ok((slot as usize * groups + group as usize) * entries + at)
    }

    fn pairs(self, plan: &Plan, to: &mut [i32]) -> Result<Option<usize>, String> {
        if plan.pages.len() > to.len() / 2 {
            return Ok(None);
        }
        let (mut pages, mut pairs) = (&plan.pages[..], to.chunks_exact_mut(2));
        for &Grown { slot, group, at, len } in &plan.grown {
            let start = self.place((slot, group), at as usize, pages, len as usize)?;
            let (own, others) = pages.split_at(len as usize);
            for ((word, &page), pair) in (start..).zip(own).zip(&mut pairs) {
                pair.copy_from_slice(&[word as i32, page as i32]);
            }
            pages = others;
        }
        Ok(Some(plan.pages.len()))
    }
}

/// Rows of a step whose pages are listed.
pub(super) struct Listing<'a> {
    /// The first of them; decode attention reads the tables themselves.
    pub(super) from_row: usize,
    /// Where each row's pages begin in the list, and where the last one's end; those of padding too, whose page is 0.
    pub(super) starts: &'a [i32],
}

/// What is sent, and when it may be written again.
struct Changes {
    words: PinnedHostSlice<i32>,
    /// After the last copy out of `words`.
    copied: CudaEvent,
}

/// The page tables of one rank.
pub(super) struct Tables {
    slots: usize,
    groups: usize,
    entries: usize,
    /// `[slots, groups, entries]`, and a last word that is always 0.
    tables: CudaSlice<i32>,
    /// `[groups, ..]`
    listed: CudaSlice<i32>,
    sent: CudaSlice<i32>,
    changes: Vec<Changes>,
    turn: usize,
}

impl Tables {
    /// Empty tables for `slots` requests of up to `entries` pages of each of `groups` groups, and lists for `rows` rows.
    ///
    /// # Errors
    /// No memory, or more entries than a kernel counts.
    pub(super) fn new(
        stream: &Arc<CudaStream>,
        (slots, groups, entries): (usize, usize, usize),
        rows: usize,
    ) -> OpResult<Tables> {
        let memory = |error: DriverError| failed("make page tables")(error);
        let words = |count: usize| {
            let words = count.checked_mul(groups).and_then(|tables| tables.checked_mul(entries));
            words.filter(|&words| i32::try_from(words).is_ok()).ok_or_else(|| {
                failed("make page tables")(format!(
                    "{count} requests of {groups} x {entries} pages each are more than a kernel counts; lower --max-running \
                     or --max-len, or raise --page-size"
                ))
            })
        };
        let changes = || -> Result<Changes, DriverError> {
            // SAFETY: plain integers, which are written before they are read.
            let words = unsafe { stream.context().alloc_pinned_with_flags(WORDS, 0) }?;
            Ok(Changes { words, copied: stream.context().new_event(None)? })
        };
        let changes = (0..IN_FLIGHT_MAX).map(|_| changes()).collect::<Result<_, _>>();
        Ok(Tables {
            slots,
            groups,
            entries,
            tables: stream.alloc_zeros(words(slots)? + 1).map_err(memory)?,
            // Padding has a page as well.
            listed: stream.alloc_zeros(words(rows)? + groups * rows).map_err(memory)?,
            sent: stream.alloc_zeros(WORDS).map_err(memory)?,
            changes: changes.map_err(memory)?,
            turn: 0,
        })
    }

    /// Where a slot's table begins in [`Tables::tables`] of any group.
    pub(super) fn start(&self, slot: u32) -> i32 {
        (slot as usize * self.groups * self.entries) as i32
    }

    /// All tables, from the first of a group on.
    pub(super) fn tables(&self, group: usize) -> CudaView<'_, i32> {
        self.tables.slice(group * self.entries..)
    }

    /// The pages of a group that were listed for the step in hand.
    pub(super) fn listed(&self, group: usize) -> CudaView<'_, i32> {
        let len = self.listed.len() / self.groups;
        self.listed.slice(group * len..(group + 1) * len)
    }

    /// Where all tables are, to be written.
    pub(super) fn all_mut(&mut self) -> &mut CudaSlice<i32> {
        &mut self.tables
    }

    /// What a plan changes, as pairs of a word of all tables and what it becomes; `None` if there is no room for them.
    ///
    /// # Errors
    /// A change leaves its table, or names a page that is not there.
    pub(super) fn pairs(
        &self,
        plan: &Plan,
        kv_pages: usize,
        to: &mut [i32],
    ) -> Result<Option<usize>, String> {
        let Tables { slots, groups, entries, .. } = *self;
        TablesShape { slots, groups, entries, kv_pages }.pairs(plan, to)
    }

    /// Enqueues what the batch's plan changes, and then the lists.
    ///
    /// # Errors
    /// A change leaves its table, or names a page that is not there; the driver's.
    pub(super) fn change(
        &mut self,
        device: &Device,
        batch: &Batch,
        kv_pages: usize,
        listing: Listing<'_>,
    ) -> OpResult<TablesChanged> {
        let Tables { slots, groups, entries, .. } = *self;
        let shape = TablesShape { slots, groups, entries, kv_pages };
        let mut rest = Rest { grown: &batch.plan().grown, done: 0, pages: &batch.plan().pages };
        while !rest.grown.is_empty() {
            let sent = self.send(device, |words| rest.fill(words, shape))?;
            let Tables { tables, sent: words, .. } = self;
            CopyRuns {
                runs: (&words.slice(..sent.runs * RUN_WORDS)).into(),
                from: (&words.slice(sent.data_at..)).into(),
                to: tables.into(),
                count: sent.runs,
            }
            .launch(device)
            .map_err(failed("change page tables"))?;
        }
        let rows_of = batch.rows().get(listing.from_row..).unwrap_or_default();
        let (padding, listed) = (slots * groups * entries, self.listed.len() / groups);
        let list = |group: usize| {
            let rows = listing.starts.windows(2).enumerate();
            rows.map(move |(index, ends)| {
                let table = |row: &Row| (row.slot as usize * groups + group) * entries;
                let from = rows_of.get(index).map_or(padding, table);
                let to = (group * listed) as i32 + ends[0];
                [from as i32, to, ends[1] - ends[0], 0]
            })
        };
        let mut runs = (0..groups).flat_map(list);
        let mut left = groups * listing.starts.len().saturating_sub(1);
        while left > 0 {
            let sent = self.send(device, |words| {
                let these = left.min(RUNS_MAX);
                let words = words.chunks_exact_mut(RUN_WORDS);
                words.zip(runs.by_ref().take(these)).for_each(|(to, run)| to.copy_from_slice(&run));
                Ok(Sent { runs: these, data_at: these * RUN_WORDS, end: these * RUN_WORDS })
            })?;
            left -= sent.runs;
            CopyRuns {
                runs: (&self.sent.slice(..sent.end)).into(),
                from: (&self.tables).into(),
                to: (&mut self.listed).into(),
                count: sent.runs,
            }
            .launch(device)
            .map_err(failed("list pages"))?;
        }
        Ok(TablesChanged(()))
    }

    /// Enqueues a copy of what `fill` writes.
    fn send(
        &mut self,
        device: &Device,
        fill: impl FnOnce(&mut [i32]) -> Result<Sent, String>,
    ) -> OpResult<Sent> {
        let driver = |error: DriverError| failed("change page tables")(error);
        self.turn = (self.turn + 1) % self.changes.len();
        let changes = &mut self.changes[self.turn];
        changes.copied.synchronize().map_err(driver)?;
        let (len, at) = (changes.words.len(), changes.words.as_mut_ptr().map_err(driver)?);
        // SAFETY: `len` pinned integers that only this borrow reaches; the copy that read them last is over.
        let words = unsafe { std::slice::from_raw_parts_mut(at, len) };
        let sent = fill(words).map_err(failed("change page tables"))?;
        let (stream, to) = (device.stream(), memory::address(&self.sent));
        // SAFETY: both have `WORDS` words and live as long as `self`; the host's are not written before `copied` has passed.
        unsafe { result::memcpy_htod_async(to, &words[..sent.end], stream.cu_stream()) }
            .map_err(driver)?;
        changes.copied.record(stream).map_err(driver)?;
        Ok(sent)
    }
}

/// What is sent at a time: runs, then what they copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sent {
    runs: usize,
    /// First word behind the room for runs.
    data_at: usize,
    end: usize,
}

/// What is left of a plan's changes.
struct Rest<'a> {
    grown: &'a [Grown],
    /// Entries of the first of them that were sent.
    done: u32,
    pages: &'a [PageId],
}

impl Rest<'_> {
    /// Takes as much as `words` have room for.
    ///
    /// # Errors
    /// What could not be done, in words.
    fn fill(&mut self, words: &mut [i32], shape: TablesShape) -> Result<Sent, String> {
        let room = self.grown.len().min(RUNS_MAX);
        let data_at = room * RUN_WORDS;
        let mut sent = Sent { runs: 0, data_at, end: data_at };
        while let Some(&Grown { slot, group, at, len }) = self.grown.first() {
            let (at, len) = ((at + self.done) as usize, (len - self.done) as usize);
            let now = len.min(words.len() - sent.end);
            if sent.runs == room || (now == 0 && len > 0) {
                break;
            }
            let start = shape.place((slot, group), at, self.pages, now)?;
            let (pages, others) = self.pages.split_at(now);
            words[sent.runs * RUN_WORDS..][..RUN_WORDS].copy_from_slice(&[
                (sent.end - data_at) as i32,
                start as i32,
                now as i32,
                0,
            ]);
            let to = &mut words[sent.end..][..now];
            to.iter_mut().zip(pages).for_each(|(to, &page)| *to = page as i32);
            (sent.runs, sent.end, self.pages) = (sent.runs + 1, sent.end + now, others);
            if now == len {
                (self.grown, self.done) = (&self.grown[1..], 0);
            } else {
                self.done += now as u32;
            }
        }
        Ok(sent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: TablesShape = TablesShape { slots: 3, groups: 1, entries: 6, kv_pages: 100 };

    /// What tables of [`SHAPE`] are after all changes, sent in pieces of `words`.
    fn changed(
        grown: &[Grown],
        pages: &[PageId],
        words: usize,
    ) -> Result<(Vec<i32>, usize), String> {
        changed_of(SHAPE, grown, pages, words)
    }

    fn changed_of(
        shape: TablesShape,
        grown: &[Grown],
        pages: &[PageId],
        words: usize,
    ) -> Result<(Vec<i32>, usize), String> {
        let mut tables = vec![-1; shape.slots * shape.groups * shape.entries];
        let mut rest = Rest { grown, done: 0, pages };
        let mut pieces = 0;
        while !rest.grown.is_empty() {
            let mut words = vec![-7; words];
            let sent = rest.fill(&mut words, shape)?;
            for run in words[..sent.runs * RUN_WORDS].chunks_exact(RUN_WORDS) {
                let (from, to, len) = (run[0] as usize, run[1] as usize, run[2] as usize);
                tables[to..to + len].copy_from_slice(&words[sent.data_at + from..][..len]);
            }
            pieces += 1;
        }
        Ok((tables, pieces))
    }

    fn grown(slot: u32, at: u32, len: u32) -> Grown {
        Grown { slot, group: 0, at, len }
    }

    #[test]
    fn groups_of_a_slot_lie_beside_each_other() {
        let shape = TablesShape { slots: 2, groups: 2, entries: 3, ..SHAPE };
        let grown = |slot, group, at, len| Grown { slot, group, at, len };
        let all = [grown(1, 0, 0, 2), grown(1, 1, 0, 2), grown(0, 1, 2, 1)];
        let (tables, _) = changed_of(shape, &all, &[1, 2, 3, 4, 5], 64).unwrap();
        assert_eq!(tables, [-1, -1, -1, -1, -1, 5, 1, 2, -1, 3, 4, -1]);
        let refused = changed_of(shape, &[grown(1, 2, 0, 1)], &[1], 64).unwrap_err();
        assert!(refused.contains("group 2; there are 2 slots of 2 x 3"), "{refused}");
    }

    #[test]
    fn changes_are_the_same_in_any_number_of_pieces() {
        let all = [grown(2, 0, 5), grown(0, 3, 1), grown(1, 1, 0), grown(1, 2, 4)];
        let pages = [10, 11, 12, 13, 14, 99, 21, 22, 23, 24];
        let (whole, pieces) = changed(&all, &pages, 64).unwrap();
        assert_eq!(pieces, 1);
        let expected =
            [[-1, -1, -1, 99, -1, -1], [-1, -1, 21, 22, 23, 24], [10, 11, 12, 13, 14, -1]];
        assert_eq!(whole, expected.concat());
        for words in 17..30 {
            let (tables, pieces) = changed(&all, &pages, words).unwrap();
            assert!(pieces >= 1 && tables == whole, "{words} words, {pieces} pieces");
        }
        assert!(changed(&all, &pages, 17).unwrap().1 > 5);
    }

    /// Brought in one launch, tables are what they are in pieces.
    #[test]
    fn pairs_are_the_same_changes() {
        let shape = TablesShape { slots: 2, groups: 2, entries: 3, ..SHAPE };
        let grown = |slot, group, at, len| Grown { slot, group, at, len };
        let all = vec![grown(1, 0, 0, 2), grown(0, 0, 1, 0), grown(1, 1, 0, 2), grown(0, 1, 2, 1)];
        let plan = Plan { grown: all, pages: vec![1, 2, 3, 4, 5], ..Plan::default() };
        let (expected, _) = changed_of(shape, &plan.grown, &plan.pages, 64).unwrap();
        let mut words = [-7; 12];
        assert_eq!(shape.pairs(&plan, &mut words), Ok(Some(5)));
        let mut tables = vec![-1; 12];
        words[..10].chunks(2).for_each(|pair| tables[pair[0] as usize] = pair[1]);
        assert_eq!((tables, &words[10..]), (expected, &[-7, -7][..]));
        assert_eq!(shape.pairs(&plan, &mut words[..9]), Ok(None), "no room");
        for (broken, what) in [
            (Plan { pages: vec![1, 2, 3, 4, 100], ..plan.clone() }, "page 100"),
            (Plan { pages: vec![1, 2, 3, 4], ..plan.clone() }, "1 of 0 pages"),
            (Plan { grown: vec![grown(2, 0, 0, 1)], ..plan.clone() }, "slot 2"),
            (Plan { grown: vec![grown(0, 2, 0, 1)], ..plan.clone() }, "group 2"),
            (Plan { grown: vec![grown(1, 1, 2, 2)], ..plan.clone() }, "entries 2 to 4"),
        ] {
            let error = shape.pairs(&broken, &mut words).unwrap_err();
            assert!(error.contains(what), "{error:?} should contain {what:?}");
        }
    }

    #[test]
    fn what_leaves_a_table_is_refused() {
        let refusal = |change, pages: &[PageId]| changed(&[change], pages, 64).unwrap_err();
        assert!(
            refusal(grown(3, 0, 1), &[1]).contains("slot 3, group 0; there are 3 slots of 1 x 6")
        );
        assert!(refusal(grown(0, 5, 2), &[1, 2]).contains("entries 5 to 7 of slot 0"));
        assert!(refusal(grown(0, 0, 2), &[1]).contains("2 of 1 pages"));
        assert!(
            refusal(grown(1, 0, 2), &[1, 100]).contains("slot 1 names page 100, there are 100")
        );
    }
}
