//! The KV pages of one rank.
//!
//! Owns: where a token's keys and values lie. Values are `[array][page][kv_head][slot][head_dim]`, where
//! a slot is a token's place in its page. Keys are transposed, `[array][page][kv_head][head_dim][slot]`:
//! scores of neighbouring positions then fill a vector, and need no sum across its lanes.
//! Must never: decide who may use a page; the plan says so.

use std::ops::Range;

use bytemuck::Zeroable;
use half::bf16;

use crate::batch::Batch;
use crate::error::OpError;
use crate::kv_groups::{KvGroups, KvPlace};
use crate::ops::OpResult;

/// Element type of the pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvElement {
    /// 4 bytes.
    F32,
    /// 2 bytes.
    Bf16,
}

impl KvElement {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            KvElement::F32 => 4,
            KvElement::Bf16 => 2,
        }
    }
}

/// Keys and values of every layer, where [`KvGroups`] says.
pub struct KvPages {
    groups: KvGroups,
    arrays: Vec<Layer>,
    kv_heads: usize,
    page_size: usize,
    head_dim: usize,
}

struct Layer {
    keys: Store,
    values: Store,
}

enum Store {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

impl Store {
    /// Writes `from` to every `step`th element from `at` on.
    fn write(&mut self, at: usize, step: usize, from: &[f32]) {
        match self {
            Store::F32(to) => {
                let to = to[at..].iter_mut().step_by(step);
                to.zip(from).for_each(|(to, from)| *to = *from);
            }
            Store::Bf16(to) => {
                let to = to[at..].iter_mut().step_by(step);
                to.zip(from).for_each(|(to, from)| *to = bf16::from_f32(*from));
            }
        }
    }

    /// Reads elements from `at` on.
    fn read(&self, at: usize, to: &mut [f32]) {
        match self {
            Store::F32(from) => to.copy_from_slice(&from[at..at + to.len()]),
            Store::Bf16(from) => {
                to.iter_mut().zip(&from[at..]).for_each(|(to, from)| *to = from.to_f32());
            }
        }
    }
}

/// Elements that the system zeroes when they are first touched. `vec![bf16::ZERO; len]` would write
/// them all, and end the process when there is no room.
fn zeros<T: Zeroable>(len: usize) -> OpResult<Vec<T>> {
    bytemuck::allocation::try_zeroed_vec(len).map_err(|()| OpError {
        operation: "allocate_kv",
        reason: format!(
            "no memory for {len} elements of {} bytes; lower kv_tokens or memory_ratio",
            size_of::<T>()
        ),
    })
}

impl KvPages {
    /// Reserves `pages` pages. The memory is zero, and is touched only when written.
    ///
    /// # Errors
    /// The system does not give that much address space.
    pub fn new(
        element: KvElement,
        groups: KvGroups,
        pages: usize,
        kv_heads: usize,
        page_size: usize,
        head_dim: usize,
    ) -> OpResult<KvPages> {
        let len = [pages, kv_heads, page_size, head_dim]
            .into_iter()
            .try_fold(1, usize::checked_mul)
            .unwrap_or(usize::MAX);
        let store = || match element {
            KvElement::F32 => zeros(len).map(Store::F32),
            KvElement::Bf16 => zeros(len).map(Store::Bf16),
        };
        let arrays = (0..groups.arrays()).map(|_| Ok(Layer { keys: store()?, values: store()? }));
        let arrays = arrays.collect::<OpResult<_>>()?;
        Ok(KvPages { groups, arrays, kv_heads, page_size, head_dim })
    }

    /// Copies the keys and values of a step's tokens from `qkv` (`[tokens, stride]`, a token's keys
    /// from column `keys_at` on, its values right behind them) into their pages.
    pub fn write(
        &mut self,
        batch: &Batch,
        layer: usize,
        qkv: &[f32],
        stride: usize,
        keys_at: usize,
    ) {
        let (heads, dim) = (self.kv_heads, self.head_dim);
        let KvPlace { group, array } = self.groups.place(layer);
        for (token, &slot) in qkv.chunks_exact(stride).zip(batch.kv_slots(group)) {
            let (page, offset) = (slot as usize / self.page_size, slot as usize % self.page_size);
            let Layer { keys, values } = &mut self.arrays[array];
            for head in 0..heads {
                let block = (page * heads + head) * self.page_size * dim;
                let from = &token[keys_at + head * dim..][..dim];
                keys.write(block + offset, self.page_size, from);
                let from = &token[keys_at + (heads + head) * dim..][..dim];
                values.write(block + offset * dim, 1, from);
            }
        }
    }

    /// Whose page tables lead to the keys and values of a layer.
    pub fn group(&self, layer: usize) -> usize {
        self.groups.place(layer).group
    }

    /// One KV head of the request with page table `pages`, which is that of the layer's group.
    pub fn head<'a>(&'a self, layer: usize, head: usize, pages: &'a [u32]) -> KvHead<'a> {
        KvHead { kv: self, array: self.groups.place(layer).array, head, pages }
    }
}

/// One KV head of one request, in one layer.
#[derive(Clone, Copy)]
pub struct KvHead<'a> {
    kv: &'a KvPages,
    array: usize,
    head: usize,
    pages: &'a [u32],
}

impl KvHead<'_> {
    /// Keys at `positions` into the first columns of `to`, `[head_dim, width]`.
    pub fn keys(self, positions: Range<usize>, width: usize, to: &mut [f32]) {
        let KvPages { arrays, page_size, .. } = self.kv;
        for run in self.runs(positions) {
            for (i, to) in to.chunks_exact_mut(width).enumerate() {
                let at = run.block + i * page_size + run.offset;
                arrays[self.array].keys.read(at, &mut to[run.done..run.done + run.len]);
            }
        }
    }

    /// Values at `positions` into the first rows of `to`, `[positions, head_dim]`.
    pub fn values(self, positions: Range<usize>, to: &mut [f32]) {
        let KvPages { arrays, head_dim, .. } = self.kv;
        for run in self.runs(positions) {
            let at = run.block + run.offset * head_dim;
            let to = &mut to[run.done * head_dim..(run.done + run.len) * head_dim];
            arrays[self.array].values.read(at, to);
        }
    }

    /// Divides `positions` at the borders of pages.
    fn runs(self, positions: Range<usize>) -> impl Iterator<Item = PageRun> {
        let KvPages { kv_heads, page_size, head_dim, .. } = *self.kv;
        let mut position = positions.start;
        std::iter::from_fn(move || {
            let offset = position % page_size;
            let len = (page_size - offset).min(positions.end - position);
            let page = *self.pages.get(position / page_size).filter(|_| len > 0)? as usize;
            let block = (page * kv_heads + self.head) * page_size * head_dim;
            let run = PageRun { block, offset, len, done: position - positions.start };
            position += len;
            Some(run)
        })
    }
}

/// Neighbouring positions in one page.
struct PageRun {
    /// Where the page's part of the KV head begins.
    block: usize,
    /// First slot of the page.
    offset: usize,
    /// Positions.
    len: usize,
    /// Positions before this run.
    done: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of this process that lie in memory.
    fn resident_bytes() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    }

    #[test]
    fn pages_take_memory_only_when_written() {
        for element in [KvElement::F32, KvElement::Bf16] {
            let before = resident_bytes();
            let kv = KvPages::new(element, KvGroups::one(1), 1 << 14, 1, 128, 128).unwrap();
            let grown = resident_bytes().saturating_sub(before);
            assert!(grown < 256 << 20, "{element:?} touched {grown} bytes of 1 GiB or more");
            let mut read = [1.0; 4];
            kv.arrays[0].keys.read(1 << 27, &mut read);
            assert_eq!(read, [0.0; 4]);
        }
    }

    #[test]
    fn what_the_system_cannot_give_is_an_error() {
        for pages in [1 << 50, usize::MAX] {
            let error =
                KvPages::new(KvElement::Bf16, KvGroups::one(1), pages, 1, 16, 64).err().unwrap();
            assert!(error.to_string().contains("lower kv_tokens"), "{error}");
        }
    }
}
