//! Causal attention over pages.
//!
//! Owns: the softmax. Positions are taken in blocks of [`BLOCK`], always counted from position 0,
//! with a running maximum and sum (Milakov and Gimelshein, 2018; Dao et al., 2022). A query's result
//! is therefore the same bits for any page size, any chunking of its prompt and any batch.
//! Must never: read a position that its query must not see.

use std::cell::RefCell;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::elementwise::exp;
use super::kv::{KvPages, Side};
use super::simd::{dots, weighted_sum};
use crate::batch::Batch;

/// Positions that go through the softmax together.
const BLOCK: usize = 64;
/// Query tokens of a prefill chunk that share one pass over keys and values.
const QUERY_TOKENS: usize = 16;

/// Head counts and strides of the attention of one rank.
#[derive(Clone, Copy)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// KV heads; each serves `heads / kv_heads` neighbouring query heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

/// `out[t, h] = softmax(q[t, h] . K / sqrt(head_dim)) V` for every token of the batch, over the
/// positions up to its own. `qkv` is `[tokens, (heads + 2 kv_heads) * head_dim]` with rotated queries
/// in front; `out` is `[tokens, heads * head_dim]`. The tokens' own keys and values are in the pages.
pub fn attention(
    arch: Arch,
    heads: Heads,
    kv: &KvPages,
    layer: usize,
    batch: &Batch,
    qkv: &[f32],
    out: &mut [f32],
) {
    let Heads { heads: query_heads, kv_heads, head_dim } = heads;
    let group = query_heads / kv_heads * head_dim;
    let mut tasks = Vec::with_capacity(batch.rows().len() * kv_heads);
    let mut rest = out;
    for row in batch.rows() {
        let pages = batch.pages(row);
        let first = row.tokens_at as usize;
        let mut done = 0;
        while done < row.len as usize {
            let tokens = QUERY_TOKENS.min(row.len as usize - done);
            // A lone token is divided by KV heads, a block of tokens is not: either way a task's
            // results lie side by side.
            let (pieces, width) =
                if tokens == 1 { (kv_heads, group) } else { (1, tokens * query_heads * head_dim) };
            for piece in 0..pieces {
                let (out, tail) = rest.split_at_mut(width);
                rest = tail;
                tasks.push(Task {
                    heads,
                    kv,
                    layer,
                    pages,
                    qkv,
                    token: first + done,
                    position: row.start as usize + done,
                    tokens,
                    kv_head: if pieces == 1 { 0..kv_heads } else { piece..piece + 1 },
                    out,
                });
            }
            done += tokens;
        }
    }
    tasks.into_par_iter().for_each(|task| arch.dispatch(task));
}

/// Some query tokens of one row, for some KV heads.
struct Task<'a> {
    heads: Heads,
    kv: &'a KvPages,
    layer: usize,
    pages: &'a [u32],
    qkv: &'a [f32],
    /// First token in the batch, its position, and how many.
    token: usize,
    position: usize,
    tokens: usize,
    kv_head: std::ops::Range<usize>,
    /// `[tokens, heads of kv_head, head_dim]`.
    out: &'a mut [f32],
}

#[derive(Default)]
struct Scratch {
    scores: Vec<f32>,
    running: Vec<Running>,
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// What is known of one query's softmax so far.
#[derive(Clone, Copy)]
struct Running {
    max: f32,
    sum: f32,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        SCRATCH.with_borrow_mut(|scratch| {
            for kv_head in self.kv_head.clone() {
                self.one_kv_head(simd, kv_head, scratch);
            }
        });
    }
}

impl Task<'_> {
    /// Query `i` of the task is token `i / group`, head `i % group` of the KV head's group.
    #[inline(always)]
    fn one_kv_head<S: Simd>(&mut self, simd: S, kv_head: usize, scratch: &mut Scratch) {
        let Heads { heads, kv_heads, head_dim } = self.heads;
        let group = heads / kv_heads;
        let stride = (heads + 2 * kv_heads) * head_dim;
        let out_stride = group * self.kv_head.len() * head_dim;
        let out_at = |i: usize| {
            let head = (kv_head - self.kv_head.start) * group + i % group;
            i / group * out_stride + head * head_dim
        };
        let query = |i: usize| {
            let at = (self.token + i / group) * stride + (kv_head * group + i % group) * head_dim;
            &self.qkv[at..at + head_dim]
        };
        let queries = self.tokens * group;
        let scale = 1.0 / (head_dim as f32).sqrt();

        let kv = self.kv.head(self.layer, kv_head, self.pages);
        let Scratch { scores, running, keys, values } = scratch;
        scores.resize(scores.len().max(queries * BLOCK), 0.0);
        running.clear();
        running.resize(queries, Running { max: f32::NEG_INFINITY, sum: 0.0 });
        for i in 0..queries {
            self.out[out_at(i)..][..head_dim].fill(0.0);
        }

        let end = self.position + self.tokens;
        for first in (0..end).step_by(BLOCK) {
            let count = BLOCK.min(end - first);
            let mut rows: [&[f32]; BLOCK] = [&[]; BLOCK];
            kv.gather(Side::Keys, first, keys, &mut rows[..count]);
            let mut i = 0;
            while i < queries {
                let scores = &mut scores[i * BLOCK..];
                i += match queries - i {
                    4.. => score(
                        simd,
                        [query(i), query(i + 1), query(i + 2), query(i + 3)],
                        &rows[..count],
                        scores,
                    ),
                    2.. => score(simd, [query(i), query(i + 1)], &rows[..count], scores),
                    _ => score(simd, [query(i)], &rows[..count], scores),
                };
            }
            kv.gather(Side::Values, first, values, &mut rows[..count]);
            for i in 0..queries {
                // Positions of this block that token `i / group` sees.
                let seen = (self.position + i / group + 1).saturating_sub(first).min(count);
                if seen == 0 {
                    continue;
                }
                let scores = &mut scores[i * BLOCK..][..seen];
                let out = &mut self.out[out_at(i)..][..head_dim];
                softmax_step(scores, scale, &mut running[i], out);
                weighted_sum(simd, scores, &rows[..seen], out);
            }
        }
        for (i, running) in running.iter().enumerate() {
            let inverse = 1.0 / running.sum;
            self.out[out_at(i)..][..head_dim].iter_mut().for_each(|out| *out *= inverse);
        }
    }
}

/// Dot products of `R` queries with every key, into `[R, BLOCK]`.
#[inline(always)]
fn score<S: Simd, const R: usize>(
    simd: S,
    queries: [&[f32]; R],
    keys: &[&[f32]],
    scores: &mut [f32],
) -> usize {
    let (fours, tail) = keys.as_chunks::<4>();
    for (at, keys) in fours.iter().enumerate() {
        let products = dots(simd, queries, *keys);
        for r in 0..R {
            scores[r * BLOCK + at * 4..][..4].copy_from_slice(&products[r]);
        }
    }
    for (at, key) in tail.iter().enumerate() {
        let products = dots(simd, queries, [*key]);
        for r in 0..R {
            scores[r * BLOCK + fours.len() * 4 + at] = products[r][0];
        }
    }
    R
}

/// Turns scores into weights under the new maximum and rescales what was summed under the old one.
#[inline(always)]
fn softmax_step(scores: &mut [f32], scale: f32, running: &mut Running, out: &mut [f32]) {
    let max = scores.iter().fold(running.max, |max, score| max.max(score * scale));
    let shrink = exp(running.max - max);
    for score in scores.iter_mut() {
        *score = exp(*score * scale - max);
    }
    running.sum = running.sum * shrink + scores.iter().sum::<f32>();
    running.max = max;
    if shrink != 1.0 {
        out.iter_mut().for_each(|out| *out *= shrink);
    }
}
