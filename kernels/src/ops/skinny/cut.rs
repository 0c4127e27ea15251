//! How a product is cut up: rows of the weight over blocks, columns over stages and warps. Counts the same bytes
//! of shared memory as the kernels.
//!
//! The choices are what was fastest on an H100 in chains of dependent launches: few large blocks for small
//! weights, so that several kernels' weights are on their way at once, each on multiprocessors of its own.

/// Rows of the weight in a tile, and of x in a group.
const TILE: usize = 16;
const GROUP: usize = 8;
/// Warps that share the columns.
const WARPS: usize = 8;
/// Columns that share a scale.
const BLOCK: usize = crate::fp8::BLOCK;
const TILES_MAX: usize = 4;
const STAGES_MAX: usize = 16;
/// Bytes of a row in a stage, since a copy takes its time to issue whatever its length. Of e4m3 a stage has all of them or
/// the whole row: the warps share a stage in blocks of columns.
const CHUNK_BYTES: usize = 2048;
/// x is kept in shared memory up to here; a norm keeps it whatever it takes.
const RESIDENT_BYTES: usize = 24 << 10;
/// The same where a block goes over x more than once: fetched each time, eight rows of x are half as much as the
/// weight again, more than an H200 brings to its multiprocessors at the pace of its memory.
const RESIDENT_BYTES_PASSES: usize = 110 << 10;

/// What the weight is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Element {
    Bf16,
    E4m3,
}

impl Element {
    fn bytes(self) -> usize {
        match self {
            Element::Bf16 => 2,
            Element::E4m3 => 1,
        }
    }

    /// Columns that a warp multiplies in a step: 64 bytes of a row.
    fn step(self) -> usize {
        64 / self.bytes()
    }

    /// Bytes between rows of the weight in shared memory: neighbours lie 64 bytes apart modulo the 128 of the banks.
    fn pitch(self, columns: usize) -> usize {
        (columns * self.bytes()).next_multiple_of(128) + 64
    }

    /// The same for rows of x, of 2 bytes a column.
    fn x_pitch(self, columns: usize) -> usize {
        let between = if self == Element::Bf16 { 64 } else { 16 };
        (columns * 2).next_multiple_of(128) + between
    }

    /// Steps of a warp that there are kernels for that hold the weight.
    fn held_steps(self) -> &'static [usize] {
        match self {
            Element::Bf16 => &[4, 8, 12],
            Element::E4m3 => &[2, 4],
        }
    }
}

/// What of a product decides how it is cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) normed: bool,
    pub(super) element: Element,
}

impl Shape {
    /// Any product of e4m3 with `m` rows and `k` columns: whether x has room does not depend on more.
    pub(super) fn of_fp8(m: usize, k: usize) -> Shape {
        Shape { m, n: 1 << 20, k, normed: false, element: Element::E4m3 }
    }
}

/// How much of a streamed weight of e4m3 is a stage. Which is fastest depends on the shape: large stages take few waits,
/// small ones leave the ring more of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// 2,048 columns of as many tiles as there is a kernel for.
    #[default]
    Wide,
    /// 2,048 columns of one tile.
    Slim,
    /// 1,024 columns of as many tiles as there is a kernel for.
    Short,
}

impl Stage {
    /// All of them.
    pub const ALL: [Stage; 3] = [Stage::Wide, Stage::Slim, Stage::Short];
}

/// Shared memory that the kernels for e4m3 leave over of what is taken for all kernels' own.
const STATIC_SPARE: usize = 3 << 10;

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
        /// Groups of x that there is a kernel for: 1 or 2.
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
    pub(super) blocks: usize,
    pub(super) shared_bytes: usize,
}

/// Groups that a kernel multiplies, for `m` rows of x.
pub(super) fn groups(m: usize) -> usize {
    m.div_ceil(GROUP).next_power_of_two()
}

/// Columns of a weight that is held behind a norm, at most: its weights are in registers, too.
const HELD_NORM_MAX: usize = 2048;

/// Partial sums of `groups` groups, one from each warp.
fn partial_bytes(groups: usize, tiles: usize) -> usize {
    4 * groups * WARPS * GROUP * (TILE * tiles + 4)
}

impl Cut {
    /// None if x does not fit into shared memory. `stage` is for e4m3 that is streamed.
    pub(super) fn new(shape: Shape, limits: Limits, stage: Stage) -> Option<Cut> {
        Cut::held(shape, limits).or_else(|| Cut::stream(shape, limits, stage))
    }

    fn held(shape: Shape, limits: Limits) -> Option<Cut> {
        let Shape { m, n, k, normed, element } = shape;
        if normed && k > HELD_NORM_MAX {
            return None;
        }
        let row_tiles = n.div_ceil(TILE);
        let fit = |steps: &usize| k <= steps * element.step() * WARPS;
        let steps = element.held_steps().iter().copied().find(fit)?;
        let fits = |tiles: usize| {
            let blocks = row_tiles.div_ceil(tiles);
            let groups = m.div_ceil(GROUP);
            let shared_bytes = TILE * tiles * element.pitch(k) + partial_bytes(groups, tiles);
            let fits = blocks <= limits.multiprocessors
                && shared_bytes <= limits.shared_max
                && super::held(element, tiles, steps).is_some();
            fits.then_some(Cut { way: Way::Held { steps }, tiles, blocks, shared_bytes })
        };
        match row_tiles <= limits.multiprocessors {
            true => fits(1),
            false => (2..=TILES_MAX).rev().find_map(fits),
        }
    }

    fn stream(shape: Shape, limits: Limits, stage: Stage) -> Option<Cut> {
        let Shape { m, n, k, normed, element } = shape;
        let groups = groups(m);
        super::stream(element, groups, 1)?;
        let fp8 = element == Element::E4m3;
        let shared_max = limits.shared_max + if fp8 { STATIC_SPARE } else { 0 };
        let row_tiles = n.div_ceil(TILE);
        let norm = if normed { (2 * k).next_multiple_of(16) } else { 0 };
        let factors = if fp8 { 4 * k.div_ceil(BLOCK) * groups * GROUP } else { 0 };
        let choice = |tiles: usize, chunk: usize| {
            let passes = row_tiles.div_ceil(tiles).div_ceil(limits.multiprocessors);
            let blocks = row_tiles.div_ceil(tiles).div_ceil(passes);
            let limit = if passes > 1 { RESIDENT_BYTES_PASSES } else { RESIDENT_BYTES };
            let x = m * element.x_pitch(k);
            let resident = fp8 || normed || x <= limit;
            let kept = if resident { x } else { 0 };
            let fixed = kept + norm + factors + partial_bytes(groups, tiles);
            let stage_x = if resident { 0 } else { m * element.x_pitch(chunk) };
            let stage = element.pitch(chunk) * TILE * tiles + stage_x;
            let rounds = passes * k.div_ceil(chunk);
            let stages = shared_max.saturating_sub(fixed) / stage;
            let stages = stages.min(rounds).min(STAGES_MAX);
            let shared_bytes = fixed + stages * stage;
            let way = Way::Stream { groups, chunk, stages, resident };
            let cut = Cut { way, tiles, blocks, shared_bytes };
            // One stage is read while another is filled.
            (stages >= rounds.min(2)).then_some(cut)
        };
        // More tiles share what is fetched of x; fewer leave the ring more stages. Of e4m3 two tiles are also twice as much
        // for a warp to do at a time.
        let tiles = match (element, groups) {
            (Element::Bf16, 1) | (Element::E4m3, 2) => [1, 1],
            (Element::E4m3, _) if stage == Stage::Slim => [1, 1],
            _ => [2, 1],
        };
        let short = if fp8 && stage == Stage::Short { 2 } else { 1 };
        let chunk = CHUNK_BYTES / element.bytes() / short;
        let shorter: &[usize] = if fp8 { &[1] } else { &[1, 2, 4, 16] };
        shorter
            .iter()
            .map(|part| k.min(chunk / part))
            .find_map(|chunk| tiles.into_iter().find_map(|tiles| choice(tiles, chunk)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const H100: Limits = Limits { multiprocessors: 132, shared_max: 232_448 - 4096 };

    fn check(shape: Shape, stage: Stage) {
        let Shape { m, n, k, normed, element } = shape;
        let Some(cut) = Cut::new(shape, H100, stage) else {
            let few = match element {
                Element::Bf16 => !normed || m * k <= 64_000,
                Element::E4m3 => m <= 16 && m * k <= 50_000,
            };
            assert!(!few, "{shape:?} does not fit");
            return;
        };
        let what = format!("{shape:?} {stage:?} {cut:?}");
        let spare = if element == Element::E4m3 { STATIC_SPARE } else { 0 };
        assert!(cut.shared_bytes <= H100.shared_max + spare, "{what}");
        let row_groups = n.div_ceil(TILE * cut.tiles);
        match cut.way {
            Way::Held { steps } => {
                assert_eq!(cut.blocks, row_groups, "{what}");
                assert!(k <= steps * element.step() * WARPS, "{what}");
                assert!(!normed || steps * element.step() * WARPS <= HELD_NORM_MAX, "{what}");
                super::super::held(element, cut.tiles, steps).expect(&what);
            }
            Way::Stream { groups, chunk, stages, resident } => {
                assert!(m <= groups * GROUP && cut.blocks <= row_groups, "{what}");
                // A warp has two blocks of columns of e4m3 at most.
                let unit = if element == Element::E4m3 { BLOCK } else { element.step() };
                assert!(chunk == k || chunk.is_multiple_of(unit), "{what}");
                assert!(element == Element::Bf16 || (resident && chunk <= 2 * WARPS * BLOCK));
                assert!(chunk > 0 && chunk <= k, "{what}");
                assert!((1..=STAGES_MAX).contains(&stages), "{what}");
                assert!(!normed || resident, "{what}");
                super::super::stream(element, groups, cut.tiles).expect(&what);
            }
        }
    }

    #[test]
    fn every_product_is_cut_into_what_the_kernels_can_do() {
        for m in [1, 2, 7, 8, 9, 15, 16] {
            for n in [8, 16, 24, 896, 1024, 1152, 4104, 6144, 17_008, 24_576, 49_152, 151_936] {
                for k in [8, 40, 136, 896, 1024, 1032, 3072, 4096, 4864, 9000, 12_288, 17_408] {
                    for normed in [false, true] {
                        check(Shape { m, n, k, normed, element: Element::Bf16 }, Stage::Wide);
                        for stage in Stage::ALL.into_iter().filter(|_| k.is_multiple_of(16)) {
                            check(Shape { m, n, k, normed, element: Element::E4m3 }, stage);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn small_weights_are_held_and_large_ones_streamed() {
        for (n, k, normed, blocks, held) in [
            (4096, 1024, true, 64, true),
            (1024, 2048, false, 64, true),
            (6144, 1024, true, 96, true),
            (1024, 3072, false, 64, true),
            (1024, 3072, true, 64, false),
            (3072, 3072, false, 96, false),
            (24_576, 4096, true, 128, false),
        ] {
            let shape = Shape { m: 1, n, k, normed, element: Element::Bf16 };
            let cut = Cut::new(shape, H100, Stage::Wide).unwrap();
            assert_eq!(cut.blocks, blocks, "{cut:?}");
            assert_eq!(matches!(cut.way, Way::Held { .. }), held, "{cut:?}");
        }
    }
}
