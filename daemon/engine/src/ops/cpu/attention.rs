//! Causal attention over pages.
//!
//! Owns: the softmax. Positions are taken in blocks of [`BLOCK`], always counted from position 0,
//! with a running maximum and sum (Milakov and Gimelshein, 2018; Dao et al., 2022). A query's result
//! is therefore the same bits for any page size, any chunking of its prompt and any batch.
//! Must never: read a position that its query must not see.

use std::cell::RefCell;
use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::elementwise::exp;
use super::kv::KvPages;
use super::simd::weighted_sums;
use crate::batch::Batch;

/// Positions that go through the softmax together.
const BLOCK: usize = 64;
/// Partial sums of a block's weights.
const LANES: usize = 16;
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

/// What a layer's queries see.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// What products of queries and keys are multiplied by.
    pub scale: f32,
    /// As many positions, the token's own the last; `None`: all up to it.
    pub window: Option<usize>,
    /// `[heads]`: a logit more in each head's softmax, without a value.
    pub sinks: Option<&'a [f32]>,
}

/// `out[t, h] = softmax(scale q[t, h] . K) V` for every token of the batch, over the positions up to its own, or
/// those of its window. `qkv` is `[tokens, (heads + 2 kv_heads) * head_dim]` with rotated queries
/// in front; `out` is `[tokens, heads * head_dim]`. The tokens' own keys and values are in the pages.
pub fn attention(
    arch: Arch,
    heads: Heads,
    view: View<'_>,
    (kv, layer): (&KvPages, usize),
    batch: &Batch,
    qkv: &[f32],
    out: &mut [f32],
) {
    let Heads { heads: query_heads, kv_heads, head_dim } = heads;
    let group = query_heads / kv_heads * head_dim;
    let mut tasks = Vec::with_capacity(batch.rows().len() * kv_heads);
    let mut rest = out;
    for row in batch.rows() {
        let pages = batch.pages(row.slot, kv.group(layer));
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
                    view,
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
    tasks.into_par_iter().for_each(|task| {
        SCRATCH.with_borrow_mut(|scratch| arch.dispatch(Run { task, scratch }));
    });
}

/// Some query tokens of one row, for some KV heads.
struct Task<'a> {
    heads: Heads,
    view: View<'a>,
    kv: &'a KvPages,
    layer: usize,
    pages: &'a [u32],
    qkv: &'a [f32],
    /// First token in the batch, its position, and how many.
    token: usize,
    position: usize,
    tokens: usize,
    kv_head: Range<usize>,
    /// `[tokens, heads of kv_head, head_dim]`.
    out: &'a mut [f32],
}

#[derive(Default)]
struct Scratch {
    running: Vec<Running>,
    /// `[head_dim, BLOCK]`
    keys: Vec<f32>,
    /// `[BLOCK, head_dim]`
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

struct Run<'a> {
    task: Task<'a>,
    scratch: &'a mut Scratch,
}

impl WithSimd for Run<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        for kv_head in self.task.kv_head.clone() {
            self.task.one_kv_head(simd, kv_head, self.scratch);
        }
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
        let first_head = (kv_head - self.kv_head.start) * group;
        let View { scale, window, sinks } = self.view;

        let kv = self.kv.head(self.layer, kv_head, self.pages);
        let Scratch { running, keys, values } = scratch;
        keys.resize(BLOCK * head_dim, 0.0);
        values.resize(BLOCK * head_dim, 0.0);
        running.clear();
        for _ in 0..self.tokens {
            running.extend((0..group).map(|head| match sinks {
                None => Running { max: f32::NEG_INFINITY, sum: 0.0 },
                Some(sinks) => Running { max: sinks[kv_head * group + head], sum: 1.0 },
            }));
        }
        for token in self.out.chunks_exact_mut(out_stride) {
            token[first_head * head_dim..][..group * head_dim].fill(0.0);
        }

        let end = self.position + self.tokens;
        // Blocks before the first token's window are of no use to any of the others.
        let skipped = window.map_or(0, |window| (self.position + 1).saturating_sub(window));
        for first in (skipped / BLOCK * BLOCK..end).step_by(BLOCK) {
            let count = BLOCK.min(end - first);
            kv.keys(first..first + count, BLOCK, keys);
            kv.values(first..first + count, values);
            for token in 0..self.tokens {
                // Positions of this block that the token sees: those before `seen`, but for the first `hidden`.
                let position = self.position + token;
                let seen = (position + 1).saturating_sub(first).min(count);
                let hidden = window
                    .map_or(0, |window| (position + 1).saturating_sub(window + first))
                    .min(BLOCK);
                if seen <= hidden {
                    continue;
                }
                let queries_at = (self.token + token) * stride + kv_head * group * head_dim;
                let out_at = token * out_stride + first_head * head_dim;
                let mut tile = Tile {
                    queries: &self.qkv[queries_at..][..group * head_dim],
                    keys,
                    values: &values[..seen * head_dim],
                    hidden,
                    scale,
                    running: &mut running[token * group..][..group],
                    out: &mut self.out[out_at..][..group * head_dim],
                };
                let mut head = 0;
                while head < group {
                    head += match group - head {
                        4.. => tile.run::<S, 4>(simd, head),
                        3 => tile.run::<S, 3>(simd, head),
                        2 => tile.run::<S, 2>(simd, head),
                        _ => tile.run::<S, 1>(simd, head),
                    };
                }
            }
        }
        for (i, running) in running.iter().enumerate() {
            let at = i / group * out_stride + (first_head + i % group) * head_dim;
            let inverse = 1.0 / running.sum;
            self.out[at..at + head_dim].iter_mut().for_each(|out| *out *= inverse);
        }
    }
}

/// The heads of one token and one KV head against one block of positions.
struct Tile<'a> {
    /// `[group, head_dim]`
    queries: &'a [f32],
    /// `[head_dim, BLOCK]`; columns that are not seen hold anything.
    keys: &'a [f32],
    /// `[seen, head_dim]`
    values: &'a [f32],
    /// As many of the first positions are before the window.
    hidden: usize,
    scale: f32,
    running: &'a mut [Running],
    /// `[group, head_dim]`
    out: &'a mut [f32],
}

impl Tile<'_> {
    /// Takes `R` heads from `head` on; returns `R`.
    #[inline(always)]
    fn run<S: Simd, const R: usize>(&mut self, simd: S, head: usize) -> usize {
        let head_dim = self.queries.len() / self.running.len();
        let seen = self.values.len() / head_dim;
        let mut scores = [[0.0; BLOCK]; R];
        let queries = &self.queries[head * head_dim..];
        weighted_sums::<S, R>(simd, queries, head_dim, self.keys, scores.as_flattened_mut());
        let out = &mut self.out[head * head_dim..][..R * head_dim];
        for r in 0..R {
            let running = &mut self.running[head + r];
            let shrink = softmax_step(&mut scores[r], self.hidden..seen, self.scale, running);
            out[r * head_dim..][..head_dim].iter_mut().for_each(|out| *out *= shrink);
        }
        // Nothing before the window is read: those pages may be somebody else's.
        let weights = &scores.as_flattened()[self.hidden..];
        let values = &self.values[self.hidden * head_dim..];
        weighted_sums::<S, R>(simd, weights, BLOCK, values, out);
        R
    }
}

/// Turns the scores that are `seen` into weights under the new maximum, the others into 0. Returns by
/// what sums under the old maximum are to be multiplied.
#[inline(always)]
fn softmax_step(
    scores: &mut [f32; BLOCK],
    seen: Range<usize>,
    scale: f32,
    running: &mut Running,
) -> f32 {
    scores[..seen.start].fill(f32::NEG_INFINITY);
    scores[seen.end..].fill(f32::NEG_INFINITY);
    // Lanes are part of the definition, not of the machine: they fix the order of the sum.
    let mut highest = [running.max; LANES];
    for lanes in scores.as_chunks_mut::<LANES>().0 {
        for (score, highest) in lanes.iter_mut().zip(&mut highest) {
            *score *= scale;
            *highest = if *score > *highest { *score } else { *highest };
        }
    }
    let max = highest.iter().fold(running.max, |max, lane| max.max(*lane));
    let mut sums = [0.0; LANES];
    for lanes in scores.as_chunks_mut::<LANES>().0 {
        for (score, sum) in lanes.iter_mut().zip(&mut sums) {
            *score = exp(*score - max);
            *sum += *score;
        }
    }
    let shrink = exp(running.max - max);
    running.sum = running.sum * shrink + sums.iter().sum::<f32>();
    running.max = max;
    shrink
}
