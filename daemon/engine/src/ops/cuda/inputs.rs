//! What a step needs on the GPU, in one buffer and one copy, or one launch.
//!
//! Owns: the layout of that buffer, the pinned memory it is packed in, and the checks that the attention
//! kernel relies on. Must never: wait for a step; two stagings take turns, one for each plan in flight.

use std::mem::ManuallyDrop;
use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaSlice, CudaStream, CudaView, DriverError, PinnedHostSlice};
use cudarc::driver::{DeviceRepr, result, sys};
use minisgl_kernels::Device;
use minisgl_kernels::abi::SampleRow;
use minisgl_kernels::attention::DecodePlanner;
use minisgl_kernels::ops::Bring;
use minisgl_sched::{Plan, SlotId};

use super::tables::{Tables, TablesChanged};
use crate::batch::{Batch, IN_FLIGHT_MAX};

/// Every array starts at a multiple of 16 bytes.
const ALIGNED_WORDS: usize = 4;

/// Changes of page tables that come along with the inputs of a step that is replayed. A plan with more has a copy for them.
const PAIRS_MAX: usize = 4096;

const SAMPLE_WORDS: usize = size_of::<SampleRow>() / 4;

/// How much a step may hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) tokens: usize,
    pub(super) rows: usize,
    /// Of layers.
    pub(super) groups: usize,
    /// Tokens after which logits are wanted.
    pub(super) logit_rows: usize,
    /// Words of how decode attention is shared out, for all windows.
    pub(super) work: usize,
}

/// Where the arrays of a step lie, in words of 4 bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Layout {
    samples: Range<usize>,
    tokens: Range<usize>,
    positions: Range<usize>,
    /// Those of each group of layers in turn.
    kv_slots: Range<usize>,
    q_starts: Range<usize>,
    /// Of the rows whose pages are listed.
    page_starts: Range<usize>,
    last_page_len: Range<usize>,
    sampled: Range<usize>,
    /// How decode attention is shared out, for each window in turn.
    work: Range<usize>,
}

impl Layout {
    fn new(room: Room) -> Layout {
        let Room { tokens, rows, groups, logit_rows: sampled, work } = room;
        let mut end = 0usize;
        let mut take = |words: usize| {
            let start = end.next_multiple_of(ALIGNED_WORDS);
            end = start + words;
            start..end
        };
        Layout {
            samples: take(sampled * SAMPLE_WORDS),
            tokens: take(tokens),
            positions: take(tokens),
            kv_slots: take(groups * tokens),
            q_starts: take(rows + 1),
            page_starts: take(rows + 1),
            last_page_len: take(rows),
            sampled: take(sampled),
            work: take(work),
        }
    }
}

/// What a step's inputs depend on, the batch aside.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packing<'a> {
    /// Tokens a page.
    pub(super) page_size: usize,
    /// First row whose pages are listed.
    pub(super) listed_from: usize,
    /// Rows of the graph that a batch of decode rows is for.
    pub(super) padded: Option<usize>,
    /// What shares the attention of decode rows out, and for which windows.
    pub(super) decode: Option<(DecodePlanner, &'a [Option<u32>])>,
}

/// Packs `batch` and how its rows of logits are sampled. A batch of decode rows is filled up to `padded`
/// rows, which read the first token of page 0, or nothing, and write nothing. `table_of` says where a slot's page table begins.
///
/// After this, what the attention kernels trust holds: starts ascend from 0, every last page has 1 to `page_size` tokens, no row
/// is longer than its request, and the work is that of the rows that decode.
fn pack(
    words: &mut [i32],
    batch: &Batch,
    samples: impl Iterator<Item = SampleRow>,
    table_of: impl Fn(SlotId) -> i32,
    packing: Packing<'_>,
) -> Result<Layout, String> {
    let Packing { page_size, listed_from, padded, decode } = packing;
    let rows = batch.rows();
    let padding = padded.map_or(0, |padded| padded.saturating_sub(rows.len()));
    let pages_of = |start: u32, len: u32| (start as usize + len as usize).div_ceil(page_size);
    let (tokens, sampled) = (batch.tokens().len(), batch.logit_rows().len());
    let decoding = padded.unwrap_or(batch.decoding());
    let work = decode.map_or(0, |(planner, windows)| windows.len() * planner.words(decoding));
    let groups = batch.groups();
    let layout = Layout::new(Room {
        tokens: tokens + padding,
        rows: rows.len() + padding,
        groups,
        logit_rows: sampled + padding,
        work,
    });
    if layout.work.end > words.len() {
        return Err(format!(
            "{} rows and {} tokens take {} words, there is room for {}",
            rows.len(),
            batch.tokens().len(),
            layout.work.end,
            words.len()
        ));
    }
    let samples = samples.chain(std::iter::repeat(SampleRow::padding()));
    for (words, sample) in words[layout.samples.clone()].chunks_exact_mut(SAMPLE_WORDS).zip(samples)
    {
        words.copy_from_slice(bytemuck::cast_slice(std::slice::from_ref(&sample)));
    }
    let mut put = |range: &Range<usize>, values: &[i32], rest: i32| {
        let (to, padding) = words[range.clone()].split_at_mut(values.len());
        to.copy_from_slice(values);
        padding.fill(rest);
    };
    put(&layout.tokens, batch.tokens(), 0);
    let at = layout.tokens.start;
    put(&layout.positions, bytemuck::cast_slice(batch.positions()), 0);
    for group in 0..groups {
        let slots = of_group(&layout.kv_slots, group, groups);
        put(&slots, bytemuck::cast_slice(batch.kv_slots(group)), -1);
    }
    put(&layout.sampled, &[], -1);
    for (index, wanted) in layout.sampled.clone().zip(batch.logit_rows()) {
        words[index] = wanted.token as i32;
    }
    for (index, slot) in batch.fed_back() {
        words[at + index] = -(slot as i32) - 1;
    }
    let (mut tokens, mut at) = (0, 0);
    for (index, row) in rows.iter().enumerate() {
        words[layout.q_starts.start + index] = tokens as i32;
        words[layout.page_starts.start + index] = at as i32;
        let end = row.start + row.len;
        words[layout.last_page_len.start + index] = (end.max(1) - 1) as i32 % page_size as i32 + 1;
        tokens += row.len as usize;
        at += if index < listed_from { 0 } else { pages_of(row.start, row.len) };
    }
    for index in 0..=padding {
        words[layout.q_starts.start + rows.len() + index] = (tokens + index) as i32;
        words[layout.page_starts.start + rows.len() + index] = (at + index) as i32;
    }
    words[layout.last_page_len.start + rows.len()..layout.last_page_len.end].fill(1);
    if tokens != batch.tokens().len() {
        return Err(format!("rows feed {tokens} tokens of {}", batch.tokens().len()));
    }
    if let Some((planner, windows)) = decode {
        let lens = rows[..batch.decoding()].iter().map(|row| row.start + row.len);
        let lens: Vec<u32> = lens.collect();
        let starts: Vec<i32> = rows[..lens.len()].iter().map(|row| table_of(row.slot)).collect();
        let lists = words[layout.work.clone()].chunks_exact_mut(planner.words(decoding));
        for (&window, work) in windows.iter().zip(lists) {
            planner.plan(&lens, &starts, window, work).map_err(|error| error.to_string())?;
        }
    }
    Ok(layout)
}

/// The part of what lies there for each of `groups` groups in turn.
fn of_group(range: &Range<usize>, group: usize, groups: usize) -> Range<usize> {
    let words = range.len() / groups;
    range.start + group * words..range.start + (group + 1) * words
}

struct Staging {
    words: PinnedHostSlice<i32>,
    /// The same memory at the address that the GPU has for it. Never freed as a slice.
    seen: ManuallyDrop<CudaSlice<i32>>,
    /// After the last copy out of `words`.
    copied: CudaEvent,
}

impl Staging {
    fn new(stream: &Arc<CudaStream>, len: usize) -> Result<Staging, DriverError> {
        // SAFETY: plain integers, which are written before they are read.
        let mut words = unsafe { stream.context().alloc_pinned_with_flags::<i32>(len, 0) }?;
        let mut seen = 0;
        let host = words.as_mut_ptr()?.cast();
        // SAFETY: it was allocated pinned just now; the driver says where the GPU finds it.
        unsafe { sys::cuMemHostGetDevicePointer_v2(&mut seen, host, 0) }.result()?;
        // SAFETY: `len` integers at that address, as long as `words` lives, which is as long as `self`.
        let seen = ManuallyDrop::new(unsafe { stream.upgrade_device_ptr(seen, len) });
        Ok(Staging { words, seen, copied: stream.context().new_event(None)? })
    }

    /// All words, once the copy that read them last is over.
    fn free(&mut self) -> Result<&mut [i32], DriverError> {
        self.copied.synchronize()?;
        let (len, at) = (self.words.len(), self.words.as_mut_ptr()?);
        // SAFETY: `len` pinned integers that only this borrow reaches, and no copy reads them.
        Ok(unsafe { std::slice::from_raw_parts_mut(at, len) })
    }
}

/// Where requests lie in a step, as the host has it.
pub(super) struct Starts<'a> {
    /// First row of each request, and the number of rows.
    pub(super) q_starts: &'a [i32],
    /// First page of each request among those listed, and their number.
    pub(super) page_starts: &'a [i32],
    /// Tokens in the last page of each request.
    pub(super) last_page_len: &'a [i32],
}

/// The buffer on the GPU, and what fills it.
pub(super) struct Inputs {
    device: CudaSlice<i32>,
    staging: Vec<Staging>,
    turn: usize,
    layout: Layout,
    /// Lists of work in it.
    windows: usize,
    /// Of layers.
    groups: usize,
}

impl Inputs {
    pub(super) fn new(stream: &Arc<CudaStream>, room: Room) -> Result<Inputs, DriverError> {
        let words = Layout::new(room).work.end.next_multiple_of(Bring::UNIT);
        let staging = (0..IN_FLIGHT_MAX).map(|_| Staging::new(stream, words + 2 * PAIRS_MAX));
        let staging = staging.collect::<Result<_, _>>()?;
        let device = stream.alloc_zeros(words)?;
        let groups = room.groups;
        Ok(Inputs { device, staging, turn: 0, layout: Layout::default(), windows: 1, groups })
    }

    /// Packs a batch (see [`pack`]); [`Inputs::upload`] comes next. Returns what attention is planned by.
    pub(super) fn pack(
        &mut self,
        batch: &Batch,
        samples: impl Iterator<Item = SampleRow>,
        table_of: impl Fn(SlotId) -> i32,
        packing: Packing<'_>,
    ) -> Result<Starts<'_>, String> {
        let driver = |error: DriverError| error.to_string();
        self.turn = (self.turn + 1) % self.staging.len();
        let words = self.staging[self.turn].free().map_err(driver)?;
        let (words, _) = words.split_at_mut(self.device.len());
        self.layout = pack(words, batch, samples, table_of, packing)?;
        self.windows = packing.decode.map_or(1, |(_, windows)| windows.len());
        let of = |range: &Range<usize>| &words[range.clone()];
        let Layout { q_starts, page_starts, last_page_len, .. } = &self.layout;
        Ok(Starts {
            q_starts: of(q_starts),
            page_starts: of(page_starts),
            last_page_len: of(last_page_len),
        })
    }

    /// Enqueues the copy of what was packed: the barrier behind which the step's kernels read it, and the page tables that
    /// were changed before, as early as they like.
    pub(super) fn upload(
        &mut self,
        stream: &CudaStream,
        _tables: TablesChanged,
    ) -> Result<(), DriverError> {
        let staging = &mut self.staging[self.turn];
        let filled = &staging.words.as_slice()?[..self.layout.work.end];
        let to = super::memory::address(&self.device);
        // SAFETY: the buffers are as long as `filled` at least, live as long as `self`, and the host's is
        // not written before `copied` has passed.
        unsafe { result::memcpy_htod_async(to, filled, stream.cu_stream()) }?;
        staging.copied.record(stream)
    }

    /// The same in one launch that reads the host's memory, and with it what the plan changes in `tables`, of which it names
    /// pages below `kv_pages`. Nothing is enqueued, and false returned, where that is too much. For a step that is replayed: the graph
    /// begins when the launch has ended, so that its kernels read either as early as they like.
    pub(super) fn bring(
        &mut self,
        device: &Device,
        (tables, plan): (&mut Tables, &Plan),
        kv_pages: usize,
    ) -> Result<bool, String> {
        let driver = |error: DriverError| error.to_string();
        let staging = &mut self.staging[self.turn];
        let words = self.layout.work.end.next_multiple_of(Bring::UNIT);
        let pairs = &mut staging.free().map_err(driver)?[words..];
        let Some(count) = tables.pairs(plan, kv_pages, &mut pairs[..2 * PAIRS_MAX])? else {
            return Ok(false);
        };
        Bring {
            words: (&staging.seen.slice(..words)).into(),
            to: (&mut self.device.slice_mut(..words)).into(),
            pairs: (&staging.seen.slice(words..words + 2 * count)).into(),
            table: tables.all_mut().into(),
        }
        .launch(device)
        .map_err(|error| error.to_string())?;
        staging.copied.record(device.stream()).map_err(driver)?;
        Ok(true)
    }

    fn words(&self, range: &Range<usize>) -> CudaView<'_, i32> {
        self.device.slice(range.clone())
    }

    pub(super) fn tokens(&self) -> CudaView<'_, i32> {
        self.words(&self.layout.tokens)
    }

    pub(super) fn positions(&self) -> CudaView<'_, i32> {
        self.words(&self.layout.positions)
    }

    /// Where keys and values of a group's layers go, -1 for padding.
    pub(super) fn kv_slots(&self, group: usize) -> CudaView<'_, i32> {
        self.words(&of_group(&self.layout.kv_slots, group, self.groups))
    }

    pub(super) fn q_starts(&self) -> CudaView<'_, i32> {
        self.words(&self.layout.q_starts)
    }

    pub(super) fn page_starts(&self) -> CudaView<'_, i32> {
        self.words(&self.layout.page_starts)
    }

    pub(super) fn last_page_len(&self) -> CudaView<'_, i32> {
        self.words(&self.layout.last_page_len)
    }

    /// How decode attention is shared out for the layers of the model's window `kind`.
    pub(super) fn work(&self, kind: usize) -> CudaView<'_, i32> {
        self.words(&of_group(&self.layout.work, kind, self.windows))
    }

    /// Index of each token after which logits are wanted.
    pub(super) fn sampled(&self) -> CudaView<'_, i32> {
        self.words(&self.layout.sampled)
    }

    /// How these of the rows of logits are sampled.
    pub(super) fn with_samples<R>(
        &self,
        rows: Range<usize>,
        with: impl FnOnce(&CudaView<'_, SampleRow>) -> R,
    ) -> R {
        let start = self.layout.samples.start;
        let words =
            self.device.slice(start + rows.start * SAMPLE_WORDS..start + rows.end * SAMPLE_WORDS);
        with(&view_as(&words, rows.len()))
    }
}

/// The same memory as another type.
fn view_as<'a, T: DeviceRepr + bytemuck::Pod>(
    words: &'a CudaView<'_, i32>,
    len: usize,
) -> CudaView<'a, T> {
    // SAFETY: any bits are a `T`, and `transmute` checks that `len` of them fit.
    unsafe { words.transmute(len) }.expect("the words of the layout are whole elements")
}

#[cfg(test)]
mod tests {
    use minisgl_sched::{Grown, Plan, Row, SAMPLED_LAST, Want};

    use super::*;

    /// Tables of three entries.
    const ENTRIES: i32 = 3;

    fn packed(
        words: &mut [i32],
        batch: &Batch,
        sample: SampleRow,
        padded: Option<usize>,
    ) -> Result<Layout, String> {
        let packing = Packing { page_size: 4, listed_from: 0, padded, decode: None };
        pack(words, batch, std::iter::once(sample), |slot| slot as i32 * ENTRIES, packing)
    }

    /// A chunk of a prompt, then a decode row.
    fn batch(change: impl FnOnce(&mut Plan)) -> Batch {
        let chunk = Row { slot: 0, start: 3, len: 3, tokens_at: 0, want: Want::Nothing };
        let decode = Row { slot: 1, start: 7, len: 1, tokens_at: 3, want: Want::Last };
        let mut plan = Plan {
            grown: vec![
                Grown { slot: 0, group: 0, at: 0, len: 2 },
                Grown { slot: 1, group: 0, at: 0, len: 2 },
            ],
            pages: vec![0, 2, 3, 0],
            rows: vec![chunk, decode],
            tokens: vec![8, 0, 5, SAMPLED_LAST],
            ..Plan::default()
        };
        change(&mut plan);
        let mut batch = Batch::default();
        batch.prepare(Arc::new(plan), 1, 4);
        batch
    }

    /// Each group's places lie together, with padding behind each.
    #[test]
    fn groups_of_layers_have_places_of_their_own() {
        let grown = |slot, group| Grown { slot, group, at: 0, len: 1 };
        let row = |slot, at| Row { slot, start: 1, len: 1, tokens_at: at, want: Want::Last };
        let plan = Plan {
            grown: vec![grown(0, 0), grown(0, 1), grown(1, 0), grown(1, 1)],
            pages: vec![5, 6, 7, 8],
            rows: vec![row(0, 0), row(1, 1)],
            tokens: vec![3, 4],
            ..Plan::default()
        };
        let mut batch = Batch::default();
        batch.prepare(Arc::new(plan), 2, 4);
        let mut words = vec![77; 400];
        let layout = packed(&mut words, &batch, SampleRow::padding(), Some(3)).unwrap();
        assert_eq!(&words[of_group(&layout.kv_slots, 0, 2)], [21, 29, -1]);
        assert_eq!(&words[of_group(&layout.kv_slots, 1, 2)], [25, 33, -1]);
    }

    #[test]
    fn a_batch_becomes_arrays_in_the_order_of_rows() {
        let mut words = vec![-7; 100];
        let sample = SampleRow::drawn(1, 8, 1);
        let layout = packed(&mut words, &batch(|_| ()), sample, None).expect("it fits");
        let at = |range: &Range<usize>| &words[range.clone()];
        assert_eq!(at(&layout.tokens), [8, 0, 5, -2], "what slot 1 sampled last");
        assert_eq!(at(&layout.positions), [3, 4, 5, 7]);
        assert_eq!(at(&layout.kv_slots), [3, 8, 9, 3]);
        assert_eq!(at(&layout.q_starts), [0, 3, 4]);
        assert_eq!(at(&layout.page_starts), [0, 2, 4]);
        assert_eq!(at(&layout.last_page_len), [2, 4]);
        assert_eq!(at(&layout.sampled), [3]);
        let packed: &[SampleRow] = bytemuck::cast_slice(at(&layout.samples));
        assert_eq!(packed, [sample]);
    }

    #[test]
    fn padding_reads_one_token_and_writes_none() {
        let decode = batch(|plan| {
            plan.rows = vec![Row { tokens_at: 0, ..plan.rows[1] }];
            plan.tokens = vec![7];
        });
        let mut words = vec![-7; 100];
        let sample = SampleRow::drawn(0, 8, 0);
        let layout = packed(&mut words, &decode, sample, Some(3)).expect("it fits");
        let at = |range: &Range<usize>| &words[range.clone()];
        assert_eq!(at(&layout.tokens), [7, 0, 0]);
        assert_eq!(at(&layout.positions), [7, 0, 0]);
        assert_eq!(at(&layout.kv_slots), [3, -1, -1]);
        assert_eq!(at(&layout.q_starts), [0, 1, 2, 3]);
        assert_eq!(at(&layout.page_starts), [0, 2, 3, 4]);
        assert_eq!(at(&layout.last_page_len), [4, 1, 1]);
        assert_eq!(at(&layout.sampled), [0, -1, -1]);
        let packed: &[SampleRow] = bytemuck::cast_slice(at(&layout.samples));
        assert_eq!(packed, [sample, SampleRow::padding(), SampleRow::padding()]);
    }

    #[test]
    fn rows_that_decode_by_their_tables_are_not_listed() {
        let mut words = vec![-7; 100];
        let batch = batch(|plan| plan.rows.reverse());
        let packing = Packing { page_size: 4, listed_from: 1, padded: None, decode: None };
        let samples = std::iter::once(SampleRow::drawn(1, 8, 1));
        let layout = pack(&mut words, &batch, samples, |_| 0, packing).expect("it fits");
        assert_eq!(words[layout.page_starts], [0, 0, 2]);
    }

    #[test]
    fn what_there_is_no_room_for_is_refused() {
        let sample = SampleRow::drawn(1, 8, 1);
        let refusal = packed(&mut [0; 20], &batch(|_| ()), sample, None).unwrap_err();
        assert!(refusal.contains("there is room for 20"), "{refusal}");
    }
}
