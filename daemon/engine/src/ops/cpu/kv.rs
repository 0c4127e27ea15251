//! The KV pages of one rank.
//!
//! Owns: where a token's keys and values lie: `[layer][page][kv_head][slot of the page][head_dim]`,
//! keys and values apart. Must never: decide who may use a page; the plan says so.

use half::bf16;

use crate::batch::Batch;

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

/// Keys and values of every layer.
pub struct KvPages {
    layers: Vec<[Store; 2]>,
    kv_heads: usize,
    page_size: usize,
    head_dim: usize,
}

enum Store {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

/// Which half of the cache.
#[derive(Clone, Copy)]
pub enum Side {
    /// Keys, rotated.
    Keys = 0,
    /// Values.
    Values = 1,
}

impl KvPages {
    /// Reserves `pages` pages a layer. The memory is zero, and is touched only when written.
    pub fn new(
        element: KvElement,
        layers: usize,
        pages: usize,
        kv_heads: usize,
        page_size: usize,
        head_dim: usize,
    ) -> KvPages {
        let len = pages * kv_heads * page_size * head_dim;
        let store = || match element {
            KvElement::F32 => Store::F32(vec![0.0; len]),
            KvElement::Bf16 => Store::Bf16(vec![bf16::ZERO; len]),
        };
        let layers = (0..layers).map(|_| [store(), store()]).collect();
        KvPages { layers, kv_heads, page_size, head_dim }
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
        for (token, &slot) in qkv.chunks_exact(stride).zip(batch.kv_slots()) {
            let (page, offset) = (slot as usize / self.page_size, slot as usize % self.page_size);
            for head in 0..heads {
                let to = ((page * heads + head) * self.page_size + offset) * dim;
                for (side, store) in self.layers[layer].iter_mut().enumerate() {
                    let from = &token[keys_at + (side * heads + head) * dim..][..dim];
                    match store {
                        Store::F32(values) => values[to..to + dim].copy_from_slice(from),
                        Store::Bf16(values) => {
                            for (to, from) in values[to..to + dim].iter_mut().zip(from) {
                                *to = bf16::from_f32(*from);
                            }
                        }
                    }
                }
            }
        }
    }

    /// One KV head of the request with page table `pages`.
    pub fn head<'a>(&'a self, layer: usize, head: usize, pages: &'a [u32]) -> KvHead<'a> {
        KvHead { kv: self, layer, head, pages }
    }
}

/// One KV head of one request, in one layer.
#[derive(Clone, Copy)]
pub struct KvHead<'a> {
    kv: &'a KvPages,
    layer: usize,
    head: usize,
    pages: &'a [u32],
}

impl<'a> KvHead<'a> {
    /// The vectors at positions `first ..`, one for each element of `rows`. `scratch` holds them where
    /// they must be widened.
    pub fn gather<'b>(
        self,
        side: Side,
        first: usize,
        scratch: &'b mut Vec<f32>,
        rows: &mut [&'b [f32]],
    ) where
        'a: 'b,
    {
        let KvPages { layers, kv_heads, page_size, head_dim } = self.kv;
        let (heads, size, dim) = (*kv_heads, *page_size, *head_dim);
        let at = |position: usize| {
            let page = self.pages[position / size] as usize;
            ((page * heads + self.head) * size + position % size) * dim
        };
        match &layers[self.layer][side as usize] {
            Store::F32(values) => {
                for (i, row) in rows.iter_mut().enumerate() {
                    *row = &values[at(first + i)..][..dim];
                }
            }
            Store::Bf16(values) => {
                scratch.clear();
                for i in 0..rows.len() {
                    let from = &values[at(first + i)..][..dim];
                    scratch.extend(from.iter().map(|value| value.to_f32()));
                }
                for (row, values) in rows.iter_mut().zip(scratch.chunks_exact(dim)) {
                    *row = values;
                }
            }
        }
    }
}
