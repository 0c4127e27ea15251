//! Which layers share KV pages.
//!
//! Owns: the groups of a model's layers, and where a layer's keys and values lie. Must never: allocate.
//!
//! A page holds some tokens of the layers of one group: one place in each of [`KvGroups::arrays`] arrays of keys and as many of
//! values, whichever group it is for, so that all pages are alike. Layers that see everything are the first group. Those that
//! see a window are in groups of as many layers, of which a request keeps the pages of its window alone: of gpt-oss' 24 layers 12
//! are in each of two groups, of Gemma 3's 62 ten in the first and 52 in six more.
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

/// The groups of a model's layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvGroups {
    places: Vec<KvPlace>,
    arrays: usize,
    windows: Windows,
}

impl KvGroups {
    /// Of the layers of a model whose requests have up to `max_len` tokens, with pages of `page_size`. They are one group where all
    /// layers see the same, and where several would not take less memory for a request of that length: groups are as large as the
    /// first, so that a last one may be part empty, and a window may be nearly as long as requests.
    pub fn of(config: &ModelConfig, max_len: usize, page_size: usize) -> KvGroups {
        let window = |layer: usize| config.layers[layer].attention.window;
        let layers = 0..config.layers.len();
        let all = layers.clone().filter(|&layer| window(layer).is_none()).count();
        let one = KvGroups::one(config.layers.len());
        let longest = layers.clone().filter_map(window).max();
        let (Some(longest), true) = (longest, all > 0) else { return one };
        let groups = (config.layers.len() - all).div_ceil(all);
        // No kernel reads a page that is wholly before the window of a row.
        let windows = Windows { groups, keep: longest.saturating_sub(1) };
        if all * windows.pages_for(max_len, 1, page_size)
            >= one.arrays * max_len.div_ceil(page_size)
        {
            return one;
        }
        let (mut first, mut others) = (0, 0);
        let place = |layer| match window(layer) {
            None => {
                first += 1;
                KvPlace { group: 0, array: first - 1 }
            }
            Some(_) => {
                others += 1;
                KvPlace { group: 1 + (others - 1) / all, array: (others - 1) % all }
            }
        };
        let places: Vec<_> = layers.map(place).collect();
        KvGroups { places, arrays: all, windows }
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

    #[test]
    fn layers_that_are_alike_are_one_group() {
        for (period, window, max_len) in
            [(1, 8, 4_096), (7, 8, 4_096), (2, 8, 20), (2, 4_090, 4_096)]
        {
            let groups = groups(6, period, window, max_len);
            assert_eq!((groups.count(), groups.arrays()), (1, 6), "every {period}th, {window}");
            assert_eq!(groups.place(4), KvPlace { group: 0, array: 4 });
        }
    }
}
