//! How a product is cut up: rows of the weight over blocks, columns over the blocks of a cluster, over stages
//! and over warps. Counts the same bytes of shared memory as the kernels.

/// Rows of the weight in a tile, and of x in a group.
const TILE: usize = 16;
const GROUP: usize = 8;
/// Warps that share the columns, and the columns that a warp multiplies in a step.
const WARPS: usize = 8;
const STEP: usize = 32;
const TILES_MAX: usize = 4;
const STAGES_MAX: usize = 16;
const CLUSTER_MAX: usize = 8;
/// Columns that a block should have left when the blocks of a cluster share them.
const SLICE_MIN: usize = 512;
/// Columns of a stage: two kilobytes of a row, since a copy takes its time to issue whatever its length.
const CHUNK: usize = 1024;
/// x is kept in shared memory up to here; a norm keeps it whatever it takes.
const RESIDENT_BYTES: usize = 24 << 10;

/// What of a product decides how it is cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) normed: bool,
}

/// What a GPU offers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) multiprocessors: usize,
    /// Shared memory of a block at most.
    pub(super) shared_max: usize,
}

/// Which kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// `skinny_held`: the whole weight at once; each warp multiplies so many steps.
    Held { steps: usize },
    /// `skinny_stream`: through a ring of `stages`.
    Stream {
        /// Groups of x that there is a kernel for: 1, 2, 4 or 8.
        groups: usize,
        /// Columns of a stage.
        chunk: usize,
        stages: usize,
        /// Whether x is kept in shared memory.
        resident: bool,
    },
}

/// A product, cut up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) way: Way,
    /// Tiles of the weight that a block multiplies at a time.
    pub(super) tiles: usize,
    /// Blocks that share the columns.
    pub(super) cluster: usize,
    pub(super) blocks: usize,
    /// Columns of a block.
    pub(super) slice: usize,
    pub(super) shared_bytes: usize,
}

/// Groups that a kernel multiplies, for `m` rows of x.
pub(super) fn groups(m: usize) -> usize {
    m.div_ceil(GROUP).next_power_of_two()
}

/// Bytes between rows in shared memory: neighbours lie 64 bytes apart modulo the 128 of the banks.
fn pitch(columns: usize) -> usize {
    (columns * 2).next_multiple_of(128) + 64
}

/// Partial sums of `groups` groups, one from each warp of a cluster.
fn partial_bytes(groups: usize, cluster: usize, tiles: usize) -> usize {
    4 * groups * cluster * WARPS * GROUP * (TILE * tiles + 4)
}

impl Cut {
    /// None if x does not fit into shared memory.
    pub(super) fn new(shape: Shape, limits: Limits) -> Option<Cut> {
        Cut::held(shape, limits).or_else(|| Cut::stream(shape, limits))
    }

    fn held(shape: Shape, limits: Limits) -> Option<Cut> {
        let Shape { m, n, k, normed } = shape;
        let row_tiles = n.div_ceil(TILE);
        // A cluster for products of too few rows. A norm needs the whole row of x in each block.
        let mut cluster = 1;
        while !normed
            && cluster < CLUSTER_MAX
            && row_tiles * cluster * 2 <= limits.multiprocessors
            && k / (cluster * 2) >= SLICE_MIN
        {
            cluster *= 2;
        }
        let slice = if cluster > 1 { k.div_ceil(cluster).next_multiple_of(STEP) } else { k };
        let steps = (slice.div_ceil(2 * STEP * WARPS) * 2).max(4);
        (1..=TILES_MAX).find_map(|tiles| {
            let blocks = row_tiles.div_ceil(tiles) * cluster;
            let shared_bytes =
                TILE * tiles * pitch(slice) + partial_bytes(m.div_ceil(GROUP), cluster, tiles);
            let fits = blocks <= limits.multiprocessors
                && shared_bytes <= limits.shared_max
                && (cluster - 1) * slice < k
                && super::held(tiles, steps).is_some();
            let way = Way::Held { steps };
            fits.then_some(Cut { way, tiles, cluster, blocks, slice, shared_bytes })
        })
    }

    fn stream(shape: Shape, limits: Limits) -> Option<Cut> {
        let Shape { m, n, k, normed } = shape;
        let groups = groups(m);
        let row_tiles = n.div_ceil(TILE);
        let resident = normed || m * pitch(k) <= RESIDENT_BYTES;
        let kept = if resident { m * pitch(k) } else { 0 };
        let norm = if normed { (2 * k).next_multiple_of(16) } else { 0 };
        let choice = |tiles: usize, chunk: usize| {
            let passes = row_tiles.div_ceil(tiles).div_ceil(limits.multiprocessors);
            let blocks = row_tiles.div_ceil(tiles).div_ceil(passes);
            let fixed = kept + norm + partial_bytes(groups, 1, tiles);
            let stage = pitch(chunk) * (TILE * tiles + if resident { 0 } else { m });
            let rounds = passes * k.div_ceil(chunk);
            let stages = limits.shared_max.saturating_sub(fixed) / stage;
            let stages = stages.min(rounds).min(STAGES_MAX);
            let shared_bytes = fixed + stages * stage;
            let way = Way::Stream { groups, chunk, stages, resident };
            let cut = Cut { way, tiles, cluster: 1, blocks, slice: k, shared_bytes };
            // One stage is read while another is filled.
            (stages >= rounds.min(2)).then_some(cut)
        };
        // More tiles share what is fetched of x; fewer leave the ring more stages.
        let tiles = if groups == 1 { [1, 1] } else { [2, 1] };
        let chunks = [k.min(CHUNK), k.min(CHUNK / 2), k.min(CHUNK / 4), k.min(CHUNK / 16)];
        chunks.into_iter().find_map(|chunk| {
            let chunk = if chunk == k { k } else { chunk };
            tiles.into_iter().find_map(|tiles| choice(tiles, chunk))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const H100: Limits = Limits { multiprocessors: 132, shared_max: 232_448 - 4096 };

    fn check(shape: Shape) {
        let Some(cut) = Cut::new(shape, H100) else {
            assert!(shape.m * shape.k > 64_000 && shape.normed, "{shape:?} does not fit");
            return;
        };
        let what = format!("{shape:?} {cut:?}");
        let Shape { m, n, k, normed } = shape;
        // Every column belongs to a block of the cluster, and each has some.
        assert!((cut.cluster - 1) * cut.slice < k && k <= cut.cluster * cut.slice, "{what}");
        assert!(cut.slice == k || cut.slice.is_multiple_of(STEP), "{what}");
        assert!(cut.blocks.is_multiple_of(cut.cluster), "{what}");
        assert!(!normed || cut.cluster == 1, "{what}");
        assert!(cut.shared_bytes <= H100.shared_max, "{what}");
        let row_groups = n.div_ceil(TILE * cut.tiles);
        match cut.way {
            Way::Held { steps } => {
                assert_eq!(cut.blocks, row_groups * cut.cluster, "{what}");
                assert!(cut.slice <= steps * STEP * WARPS, "{what}");
            }
            Way::Stream { groups, chunk, stages, resident } => {
                assert!(m <= groups * GROUP && cut.blocks <= row_groups, "{what}");
                assert!(chunk == cut.slice || chunk.is_multiple_of(STEP), "{what}");
                assert!(chunk > 0 && chunk <= cut.slice, "{what}");
                assert!((1..=STAGES_MAX).contains(&stages), "{what}");
                assert!(!normed || resident, "{what}");
                super::super::stream(groups, cut.tiles).expect(&what);
            }
        }
    }

    #[test]
    fn every_product_is_cut_into_what_the_kernels_can_do() {
        for m in [1, 2, 7, 8, 9, 16, 17, 31, 32, 33, 64] {
            for n in [8, 16, 24, 896, 1024, 1152, 4104, 6144, 17_008, 24_576, 49_152, 151_936] {
                for k in [8, 40, 136, 896, 1024, 1032, 3072, 4096, 4864, 9000, 12_288, 17_408] {
                    for normed in [false, true] {
                        check(Shape { m, n, k, normed });
                    }
                }
            }
        }
    }

    #[test]
    fn narrow_layers_are_spread_over_the_whole_gpu() {
        for (n, k, blocks) in [(1024, 2048, 128), (1024, 3072, 128), (4096, 12_288, 128)] {
            let cut = Cut::new(Shape { m: 1, n, k, normed: false }, H100).unwrap();
            assert_eq!(cut.blocks, blocks, "{cut:?}");
        }
    }
}
