//! Which layers share KV pages.
//!
//! Owns: the groups of a model's layers, and where a layer's keys and values lie. Must never: allocate.
//!
//! A page holds some tokens of the layers of one group: one place in each of [`KvGroups::arrays`] arrays of keys and as many of
//! values, whichever group it is for, so that all pages are alike. Layers that see everything are the first group. Those that
//! see a window are in groups of as many layers, of which a request keeps the pages of its window alone: of gpt-oss' 24 layers 12
//! are in each of two groups, of Gemma 3's 62 ten in the first and 52 in six more.
//!
//! Where all layers see a window, some of them keep all tokens nonetheless, and are the first group: its pages are what the prefix
//! cache's tree is made of and counts by. A tree of tokens without pages would have to be limited by something else. Of Mistral's 32 layers four do.
//!
//! ```text
//!            array 0    array 1    array 2
//!   group 0  layer 5    layer 11   layer 17     all tokens
//!   group 1  layer 0    layer 1    layer 2      a window
//!   group 2  layer 3    layer 4    layer 6
//!     ...
//! ```

use minisgl_sched::Windows;

use crate::config::ModelConfig;

/// Where a layer's keys and values are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvPlace {
    /// Whose page tables lead there.
    pub group: usize,
    /// Which of the arrays that a page has a part in.
    pub array: usize,
}

/// Groups that layers are in at most where all see a window: fewer layers would keep all tokens with more, and each takes page
/// tables and lists of its own.
const ALIKE_GROUPS_MAX: usize = 8;

/// The groups of a model's layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvGroups {
    places: Vec<KvPlace>,
    arrays: usize,
    windows: Windows,
}

impl KvGroups {
    /// Of the layers of a model whose requests have up to `max_len` tokens, with pages of `page_size`. They are one group where all
    /// layers see everything, and where several would not take less memory for a request of that length: groups are as large as the
    /// first, so that a last one may be part empty, and a window may be nearly as long as requests.
    pub fn of(config: &ModelConfig, max_len: usize, page_size: usize) -> KvGroups {
        let window = |layer: usize| config.layers[layer].attention.window;
        let count = config.layers.len();
        let one = KvGroups::one(count);
        let Some(longest) = (0..count).filter_map(window).max() else { return one };
        // No kernel reads a page that is wholly before the window of a row.
        let keep = longest.saturating_sub(1);
        let windows = |arrays: usize| Windows { groups: (count - arrays).div_ceil(arrays), keep };
        let memory = |arrays: usize| arrays * windows(arrays).pages_for(max_len, 1, page_size);
        let all = (0..count).filter(|&layer| window(layer).is_none()).count();
        let arrays = match all {
            0 => (count.div_ceil(ALIKE_GROUPS_MAX)..count).min_by_key(|&arrays| memory(arrays)),
            all => Some(all),
        };
        let less = |arrays: &usize| memory(*arrays) < count * max_len.div_ceil(page_size);
        let Some(arrays) = arrays.filter(less) else { return one };
        let (mut first, mut others) = (0, 0);
        let place = |layer| {
            let is_first = if all == 0 { first < arrays } else { window(layer).is_none() };
            if is_first {
                first += 1;
                return KvPlace { group: 0, array: first - 1 };
            }
            others += 1;
            KvPlace { group: 1 + (others - 1) / arrays, array: (others - 1) % arrays }
        };
        let places: Vec<_> = (0..count).map(place).collect();
        KvGroups { places, arrays, windows: windows(arrays) }
    }

    /// One group of all layers.
    pub fn one(layers: usize) -> KvGroups {
        let places = (0..layers).map(|layer| KvPlace { group: 0, array: layer }).collect();
        KvGroups { places, arrays: layers, windows: Windows::default() }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.windows.all_groups()
    }

    /// Layers of the largest: arrays of keys, and as many of values, that each page has a part in.
    pub fn arrays(&self) -> usize {
        self.arrays
    }

    /// Those whose pages may go.
    pub fn windows(&self) -> Windows {
        self.windows
    }

    /// Where a layer's keys and values are.
    pub fn place(&self, layer: usize) -> KvPlace {
        self.places[layer]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// `all` of how many layers see everything: every `period`th.
    fn groups(layers: usize, period: usize, window: usize, max_len: usize) -> KvGroups {
        let mut config = ModelConfig::small(layers, 8);
        for (index, layer) in config.layers.iter_mut().enumerate() {
            let is_all = (index + 1).is_multiple_of(period);
            layer.attention.window = Some(window).filter(|_| !is_all);
        }
        KvGroups::of(&config, max_len, 16)
    }

    #[test]
    fn layers_have_places_of_their_own() {
        // gpt-oss-20b, Gemma 3 27B, 12B, 4B and 1B.
        for (layers, period, window, count, arrays) in [
            (24, 2, 128, 2, 12),
            (62, 6, 1_024, 7, 10),
            (48, 6, 1_024, 6, 8),
            (34, 6, 1_024, 7, 5),
            (26, 6, 512, 7, 4),
        ] {
            let groups = groups(layers, period, window, 32_768);
            assert_eq!((groups.count(), groups.arrays()), (count, arrays), "{layers} layers");
            assert_eq!(groups.windows(), Windows { groups: count - 1, keep: window - 1 });
            let places: HashSet<_> = (0..layers)
                .map(|layer| (groups.place(layer).group, groups.place(layer).array))
                .collect();
            assert_eq!(places.len(), layers);
            assert!(places.iter().all(|&(group, array)| group < count && array < arrays));
            for layer in 0..layers {
                let is_all = (layer + 1).is_multiple_of(period);
                assert_eq!(groups.place(layer).group == 0, is_all, "layer {layer}");
            }
        }
    }

    /// One of 28 layers with a window of its own would leave 26 places of 27 empty.
    #[test]
    fn groups_that_take_more_memory_are_none() {
        let groups = |with_window: usize, max_len: usize| {
            let mut config = ModelConfig::small(28, 8);
            let windows = config.layers.iter_mut().rev().take(with_window);
            windows.for_each(|layer| layer.attention.window = Some(4_096));
            KvGroups::of(&config, max_len, 16).count()
        };
        assert_eq!((groups(1, 32_768), groups(1, 1 << 20)), (1, 2));
        assert_eq!((groups(7, 32_768), groups(14, 32_768)), (2, 2));
        assert_eq!((groups(7, 4_600), groups(14, 4_600)), (1, 2));
    }

    /// Mistral 7B, Qwen2 1.5B with `max_window_layers` 0, Phi 3 mini, and a number of layers that groups do not share evenly.
    #[test]
    fn some_layers_keep_all_where_none_sees_all() {
        for (layers, window, max_len, count, arrays) in [
            (32, 4_096, 32_768, 8, 4),
            (28, 4_096, 32_768, 7, 4),
            (32, 2_047, 4_096, 8, 4),
            (26, 512, 32_768, 7, 4),
            (3, 21, 256, 3, 1),
        ] {
            let groups = groups(layers, layers + 1, window, max_len);
            assert_eq!((groups.count(), groups.arrays()), (count, arrays), "{layers} layers");
            let places: HashSet<_> = (0..layers)
                .map(|layer| (groups.place(layer).group, groups.place(layer).array))
                .collect();
            assert_eq!(places.len(), layers);
            assert!(places.iter().all(|&(group, array)| group < count && array < arrays));
            let first = |layer| groups.place(layer) == KvPlace { group: 0, array: layer };
            assert!((0..arrays).all(first));
        }
        // Mistral holds 4.2 times as many of the longest requests, and as many of those that a window is no shorter than.
        let windows = groups(32, 33, 4_096, 32_768).windows();
        let pages = |tokens| (4 * windows.pages_for(tokens, 1, 16), 32 * tokens.div_ceil(16));
        assert_eq!(pages(32_768), (15_388, 65_536));
        assert_eq!(pages(4_096), (8_192, 8_192));
    }

    #[test]
    fn layers_that_are_alike_are_one_group() {
        for (period, window, max_len) in
            [(1, 8, 4_096), (7, 8, 16), (2, 8, 20), (2, 4_090, 4_096), (7, 4_096, 4_096)]
        {
            let groups = groups(6, period, window, max_len);
            assert_eq!((groups.count(), groups.arrays()), (1, 6), "every {period}th, {window}");
            assert_eq!(groups.place(4), KvPlace { group: 0, array: 4 });
        }
    }
}
