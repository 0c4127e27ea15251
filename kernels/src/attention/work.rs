//! Dealing out the work of a prefill step to the blocks of the backend `fa`.
//!
//! A piece of work is a tile of a request's rows for one query head; it costs as many steps as there are
//! tiles of keys that the rows may see. Pages before the window of its first row are left out of a piece, which is as if the
//! request began behind them: the template would read keys of a tile before the window, and in their place values of the
//! request's very first tile, which it multiplies by zeros; there are other requests' pages by then, and in them maybe NaN. As
//! many blocks as multiprocessors walk a list each. Pieces are dealt
//! from the costliest down, each to the block with the least to do (longest processing time first: Graham,
//! "Bounds on Multiprocessing Timing Anomalies", SIAM J. Appl. Math. 1969), so that all end together. They are
//! dealt for a few key heads at a time, as many as keep all blocks busy: what these heads' keys and values
//! are read for again and again then stays in the cache.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::AttentionBatch;

/// What a piece costs besides its keys, in tiles of keys: loading queries, writing the output.
const FIXED_COST: u32 = 2;

/// Pieces for each block that are dealt with no regard to the heads they are for.
const ROUND: usize = 2;

/// Lists of words that a piece has; see `minisgl_fa_args`.
pub(super) const LISTS: usize = 6;

/// How the kernel cuts a request up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tiles {
    /// Rows of a piece.
    pub(super) rows: usize,
    /// Keys that are taken at once.
    pub(super) keys: usize,
}

/// The heads that share a step out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    /// Query heads.
    pub(super) q_heads: usize,
    /// Query heads of a key head.
    pub(super) size: usize,
}

/// What a step is dealt out for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Tokens of a page.
    pub(super) page_size: usize,
    /// Heads.
    pub(super) group: Group,
    /// Tiles.
    pub(super) tiles: Tiles,
    /// Tokens that a row sees, its own the last; `None`: all up to it.
    pub(super) window: Option<u32>,
}

impl Shape {
    /// The first token that a row sees which sees up to token `last`.
    fn seen_from(&self, last: usize) -> usize {
        self.window.map_or(0, |window| (last + 1).saturating_sub(window as usize))
    }

    /// Pages at a request's beginning that no row sees of a tile whose first row sees up to token `first`.
    fn skipped(&self, first: usize) -> usize {
        self.seen_from(first) / self.page_size
    }

    /// Steps over keys of a tile of rows, of which the first sees up to token `first` and the last up to `last`.
    fn steps(&self, first: usize, last: usize) -> u32 {
        let (keys, out) = (self.tiles.keys, self.skipped(first) * self.page_size);
        // The kernel's own rounding, `get_swa_begin_kv_tile_idx`: a tile of keys before the one where the window begins.
        let before = ((self.seen_from(first) - out) / keys).saturating_sub(1);
        ((last + 1 - out).div_ceil(keys) - before) as u32
    }
}

/// A tile of a request's rows, for every query head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    cost: u32,
    request: u32,
    tile: u32,
    /// Pages of the request that are left out.
    skipped: u32,
}

/// The lists of one step, and the memory to make them.
#[derive(Debug, Default)]
pub(super) struct Work {
    pieces: Vec<Piece>,
    /// Each block with its load above it.
    blocks: BinaryHeap<Reverse<u64>>,
    /// Which block has each piece and head, in the order of dealing.
    owners: Vec<u32>,
}

/// Pieces that `rows` rows of `requests` requests are cut into at most, for one head.
pub(super) fn pieces_max(rows: usize, requests: usize, tiles: Tiles) -> usize {
    rows / tiles.rows + requests
}

impl Work {
    /// Fills `starts`, `[blocks + 1]`, and `lists`, of which `[LISTS, pieces]` is used; returns the number of
    /// pieces. `lists` has room for those of the batch ([`pieces_max`] for each head).
    pub(super) fn deal(
        &mut self,
        batch: AttentionBatch<'_>,
        shape: Shape,
        (starts, lists): (&mut [i32], &mut [i32]),
    ) -> usize {
        let Shape { page_size, group: Group { q_heads, size }, tiles, .. } = shape;
        let tokens = |request: usize| -> i32 {
            let pages = batch.page_starts[request + 1] - batch.page_starts[request];
            (pages - 1) * page_size as i32 + batch.last_page_len[request]
        };
        let rows = |request: usize| batch.q_starts[request + 1] - batch.q_starts[request];

        self.pieces.clear();
        for request in 0..batch.last_page_len.len() {
            let (rows, tokens) = (rows(request) as usize, tokens(request) as usize);
            for tile in 0..rows.div_ceil(tiles.rows) {
                let first = tokens - rows + tile * tiles.rows;
                let last = tokens - rows + ((tile + 1) * tiles.rows).min(rows) - 1;
                let cost = shape.steps(first, last) + FIXED_COST;
                self.pieces.push(Piece {
                    cost,
                    request: request as u32,
                    tile: tile as u32,
                    skipped: shape.skipped(first) as u32,
                });
            }
        }
        self.pieces.sort_unstable_by_key(|piece| (Reverse(piece.cost), piece.request, piece.tile));

        // Deal, and count what each block gets.
        let blocks = starts.len() - 1;
        self.blocks.clear();
        self.blocks.extend((0..blocks as u64).map(Reverse));
        self.owners.clear();
        starts.fill(0);
        let heads = (ROUND * blocks).div_ceil(self.pieces.len().max(1)).next_multiple_of(size);
        let order = |pieces: &[Piece], give: &mut dyn FnMut(Piece, usize)| {
            for first in (0..q_heads).step_by(heads) {
                for &piece in pieces {
                    (first..q_heads.min(first + heads)).for_each(|head| give(piece, head));
                }
            }
        };
        order(&self.pieces, &mut |piece, _| {
            let Some(mut least) = self.blocks.peek_mut() else { return };
            let block = least.0 as u32;
            least.0 += u64::from(piece.cost) << 32;
            self.owners.push(block);
            starts[block as usize + 1] += 1;
        });
        for block in 0..blocks {
            starts[block + 1] += starts[block];
        }

        // Each block's pieces together, in the order of dealing; `starts` runs ahead and is set back after.
        let len = self.owners.len();
        let mut owners = self.owners.iter();
        order(&self.pieces, &mut |piece, head| {
            let Some(&owner) = owners.next() else { return };
            let (request, skipped) = (piece.request as usize, piece.skipped as i32);
            let at = starts[owner as usize] as usize;
            starts[owner as usize] += 1;
            let words = [
                piece.tile as i32,
                head as i32,
                batch.q_starts[request],
                rows(request),
                batch.page_starts[request] + skipped,
                tokens(request) - skipped * page_size as i32,
            ];
            for (list, word) in words.into_iter().enumerate() {
                lists[list * len + at] = word;
            }
        });
        starts.copy_within(..blocks, 1);
        starts[0] = 0;
        len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requests of (tokens before, rows), behind 7 rows and 3 pages of others.
    fn deal(
        requests: &[(usize, usize)],
        window: Option<u32>,
        (q_heads, size): (usize, usize),
        blocks: usize,
    ) -> (Vec<i32>, Vec<[i32; LISTS]>) {
        let (tiles, group) = (Tiles { rows: 128, keys: 64 }, Group { q_heads, size });
        let shape = Shape { page_size: 16, group, tiles, window };
        let (mut q_starts, mut page_starts, mut last_page_len) = (vec![7], vec![3], Vec::new());
        for &(cached, rows) in requests {
            let tokens = (cached + rows) as i32;
            q_starts.push(q_starts[q_starts.len() - 1] + rows as i32);
            page_starts.push(page_starts[page_starts.len() - 1] + (tokens + 15) / 16);
            last_page_len.push((tokens - 1) % 16 + 1);
        }
        let batch = AttentionBatch {
            q_starts: &q_starts,
            page_starts: &page_starts,
            last_page_len: &last_page_len,
            graph: false,
        };
        let rows = requests.iter().map(|request| request.1).sum();
        let room = pieces_max(rows, requests.len(), tiles) * q_heads * LISTS;
        let (mut starts, mut lists) = (vec![-1; blocks + 1], vec![-1; room]);
        let len = Work::default().deal(batch, shape, (&mut starts, &mut lists));
        let words = |at: usize| std::array::from_fn(|list| lists[list * len + at]);
        (starts, (0..len).map(words).collect())
    }

    /// Each with the pages that its rows see, and none before.
    #[test]
    fn every_tile_of_every_head_is_dealt_once() {
        let requests = [(0, 1), (100, 300), (4096, 128), (0, 129), (15, 128)];
        let windows = [None, Some(1), Some(90), Some(1 << 30), Some(u32::MAX)];
        for (blocks, window) in
            [1, 7, 132].into_iter().flat_map(|blocks| windows.map(|w| (blocks, w)))
        {
            let (starts, mut pieces) = deal(&requests, window, (3, 1), blocks);
            assert_eq!((starts[0], starts[blocks]), (0, pieces.len() as i32));
            assert!(starts.is_sorted());
            pieces.sort_unstable();
            let mut expected = Vec::new();
            let (mut row, mut page) = (7, 3);
            for (cached, rows) in requests {
                let tokens = cached + rows;
                for tile in 0..rows.div_ceil(128) {
                    let seen = cached + tile * 128 + 1;
                    let before =
                        window.map_or(0, |window| seen.saturating_sub(window as usize) / 16);
                    for head in 0..3 {
                        let words = [tile, head, row, rows, page + before, tokens - before * 16];
                        expected.push(words.map(|word| word as i32));
                    }
                }
                row += rows;
                page += tokens.div_ceil(16);
            }
            expected.sort_unstable();
            assert_eq!(pieces, expected, "{blocks} blocks, window {window:?}");
        }
    }

    #[test]
    fn blocks_end_together() {
        // One long prompt: its tiles cost 4 to 130 steps.
        let (starts, pieces) = deal(&[(0, 8192)], None, (32, 4), 132);
        let cost = |words: &[i32; LISTS]| (words[0] + 1) * 2 + FIXED_COST as i32;
        let loads: Vec<i32> = starts
            .windows(2)
            .map(|ends| pieces[ends[0] as usize..ends[1] as usize].iter().map(cost).sum())
            .collect();
        let (least, most) = (*loads.iter().min().unwrap(), *loads.iter().max().unwrap());
        assert!(most - least <= 8, "{least} to {most}");
        // Each head of keys after the others, and its pieces from the costliest down.
        for ends in starts.windows(2) {
            let own = &pieces[ends[0] as usize..ends[1] as usize];
            assert!(own.is_sorted_by_key(|words| (words[1] / 8, Reverse(cost(words)))));
        }
    }

    #[test]
    fn nothing_to_do_is_dealt_to_nobody() {
        assert_eq!(deal(&[], None, (4, 4), 5), (vec![0; 6], Vec::new()));
    }

    /// Tiles of a long prompt cost the same wherever they are, once their window is full.
    #[test]
    fn a_window_bounds_what_a_tile_costs() {
        let (tiles, group) = (Tiles { rows: 128, keys: 64 }, Group { q_heads: 1, size: 1 });
        let steps = |window, first: usize| {
            Shape { page_size: 16, group, tiles, window }.steps(first, first + 127)
        };
        assert_eq!([0, 128, 8064].map(|first| steps(None, first)), [2, 4, 128]);
        assert_eq!([0, 128, 8064].map(|first| steps(Some(128), first)), [2, 4, 4]);
        assert_eq!([0, 128, 8064].map(|first| steps(Some(1), first)), [2, 2, 2]);
        assert_eq!(steps(Some(1 << 20), 8064), 128);
        // As many for each block then, which with the costs of whole contexts they would not be.
        let (starts, _) = deal(&[(65_536, 128 * 132)], Some(128), (1, 1), 132);
        assert!(starts.windows(2).all(|ends| ends[1] - ends[0] == 1), "{starts:?}");
    }
}
