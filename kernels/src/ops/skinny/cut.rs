//! How a product is cut up: rows of the weight over blocks, columns over the blocks of a cluster and the
//! stages of a ring. Counts the same bytes of shared memory as `Layout` in `skinny_stream.cu`.

/// Rows of the weight in a tile, and of x in a group.
const TILE: usize = 16;
const GROUP: usize = 8;
/// Warps that share the columns.
const WARPS: usize = 8;
const STAGES_MAX: usize = 16;
const CLUSTER_MAX: usize = 8;
/// Columns that a block should have left when the blocks of a cluster share them.
const SLICE_MIN: usize = 512;
/// Columns of a stage where there are several.
const CHUNK: usize = 512;
/// x is kept in shared memory up to here; a norm keeps it whatever it takes.
const RESIDENT_BYTES: usize = 48 << 10;
/// Stages that keep the memory busy.
const STAGES_MIN: usize = 3;

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
    /// Shared memory with which a block of the next kernel still fits beside this one's.
    pub(super) shared_half: usize,
    /// Shared memory of a block at most.
    pub(super) shared_max: usize,
}

/// A product, cut up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// Groups of x that there is a kernel for: 1, 2, 4 or 8.
    pub(super) groups: usize,
    /// Tiles of the weight that a block multiplies at a time.
    pub(super) tiles: usize,
    /// Blocks that share the columns.
    pub(super) cluster: usize,
    pub(super) blocks: usize,
    /// Columns of a block.
    pub(super) slice: usize,
    /// Columns of a stage.
    pub(super) chunk: usize,
    pub(super) stages: usize,
    /// Whether x is kept in shared memory.
    pub(super) resident: bool,
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

impl Cut {
    /// None if x does not fit into shared memory.
    pub(super) fn new(shape: Shape, limits: Limits) -> Option<Cut> {
        let Shape { m, n, k, normed } = shape;
        let groups = groups(m);
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
        // As even as can be: no block reads more than it must; then as many tiles at a time as can be.
        let tiles_max = if cluster > 1 { 1 } else { [4, 4, 3, 2][groups.ilog2() as usize] };
        let passes = |tiles: usize| row_tiles.div_ceil(tiles).div_ceil(limits.multiprocessors);
        let tiles = (1..=tiles_max).rev().min_by_key(|&tiles| passes(tiles) * tiles)?;
        let passes = passes(tiles);
        let blocks = row_tiles.div_ceil(tiles).div_ceil(passes) * cluster;
        let slice = if cluster > 1 { k.div_ceil(cluster).next_multiple_of(32) } else { k };

        let resident = normed || m * pitch(slice) <= RESIDENT_BYTES;
        let kept = if resident { m * pitch(slice) } else { 0 };
        let norm = if normed { (2 * k).next_multiple_of(16) } else { 0 };
        let partial = 4 * cluster * WARPS * groups * GROUP * (TILE * tiles + 4);
        let fixed = kept + norm + partial;
        let ring = |chunk: usize, bytes: usize| {
            let stage = pitch(chunk) * (TILE * tiles + if resident { 0 } else { m });
            let rounds = passes * slice.div_ceil(chunk);
            let stages = (bytes.saturating_sub(fixed) / stage).min(rounds).min(STAGES_MAX);
            let enough = stages >= rounds.min(STAGES_MIN);
            (stages > 0).then_some((chunk, stages, fixed + stages * stage, enough))
        };
        let (half, max) = (limits.shared_half, limits.shared_max);
        let (whole, part) = (slice.min(2 * CHUNK), slice.min(CHUNK));
        let choices = [(whole, half), (part, half), (part / 2, half), (part, max), (part / 4, max)];
        let found = choices
            .into_iter()
            .filter(|&(chunk, _)| chunk == slice || (chunk > 0 && chunk.is_multiple_of(32)))
            .filter_map(|(chunk, bytes)| ring(chunk, bytes));
        let (chunk, stages, shared_bytes, _) =
            found.clone().find(|found| found.3).or_else(|| {
                // Slower than it could be, and still right.
                found.max_by_key(|found| found.1)
            })?;
        Some(Cut { groups, tiles, cluster, blocks, slice, chunk, stages, resident, shared_bytes })
    }
}
