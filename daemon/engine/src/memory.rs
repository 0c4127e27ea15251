//! How many KV pages a model gets, and of how much memory.
//!
//! Owns: the memory budget. Must never: allocate.

use std::path::Path;

use minisgl_sched::Windows;

use crate::error::EngineError;

/// Tokens of a prefix cache whose size is left to the memory, and its pages. No more than toys reach it: the smallest model of use
/// has 3 million in 192 GB. The scheduler has some 40 bytes for a page, 24 more where layers see a window, and walks over all pages
/// when it checks itself.
pub const CACHED_TOKENS_MAX: u64 = 1 << 22;

/// What the number of KV pages depends on.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Bytes of the device's memory that were available before anything of the model was there.
    pub available_bytes: u64,
    /// Bytes of weights, over all ranks, and on a GPU of workspaces and graphs.
    pub used_bytes: u64,
    /// Bytes that nobody gets: what a driver takes for itself later.
    pub spare_bytes: u64,
    /// Arrays that a page has a part in: keys and values of each layer of a group.
    pub arrays: u64,
    /// The groups of layers, each with pages of its own.
    pub windows: Windows,
    /// Tokens that a request is fed at a time, at most.
    pub chunk_tokens: usize,
    /// Bytes of one token in one array.
    pub token_bytes: u64,
    /// Bytes behind the last page of an array.
    pub slack_bytes: u64,
    /// Bytes that an array is a multiple of.
    pub unit_bytes: u64,
    /// Positions that the model has.
    pub max_position: u64,
}

/// What is wished for.
#[derive(Clone, Copy, Debug)]
pub struct Wishes {
    /// Tokens of KV cache; `None` takes the share.
    pub kv_tokens: Option<u64>,
    /// Share of the available memory for everything.
    pub memory_ratio: f32,
    /// Tokens a page.
    pub page_size: u64,
    /// Requests running at once.
    pub max_running: u64,
    /// Whether pages that no running request uses are of use.
    pub prefix_cache: bool,
    /// Positions of a request.
    pub max_len: Option<u64>,
}

/// The KV cache of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvSize {
    /// Pages.
    pub pages: u64,
    /// Tokens that they hold in all layers. Of longer requests they hold more, where layers see a window.
    pub tokens: u64,
    /// Prompt plus generated tokens of one request, at most.
    pub max_len: u64,
}

impl Budget {
    /// `kv_tokens` if given; else what `memory_ratio` leaves, but no more than is of use: what all running
    /// requests together can fill, or, to a prefix cache, [`CACHED_TOKENS_MAX`] if that is more.
    ///
    /// # Errors
    /// No room for the tokens asked for, or, by ratio, for a page of each group or `max_len`.
    pub fn kv_size(&self, wishes: &Wishes) -> Result<KvSize, EngineError> {
        let Wishes { page_size, max_len, .. } = *wishes;
        let groups = self.windows.all_groups() as u64;
        let wanted_len = max_len.unwrap_or(self.max_position);
        let room = self.available_bytes.saturating_sub(self.spare_bytes);
        let pages = match wishes.kv_tokens {
            Some(tokens) => {
                let pages = tokens.div_ceil(page_size).saturating_mul(groups);
                let left = room.saturating_sub(self.used_bytes);
                self.check(pages.saturating_mul(page_size), left)?;
                pages
            }
            None => {
                let share = self.available_bytes as f64 * f64::from(wishes.memory_ratio);
                let left = room.min(share as u64).saturating_sub(self.used_bytes);
                let running =
                    wishes.max_running.saturating_mul(self.pages_for(wanted_len, page_size));
                let cached = if wishes.prefix_cache { CACHED_TOKENS_MAX / page_size } else { 0 };
                let useful = running.max((cached * groups).min(CACHED_TOKENS_MAX));
                let array_bytes = left / self.arrays / self.unit_bytes * self.unit_bytes;
                let paged_bytes = array_bytes.saturating_sub(self.slack_bytes);
                let pages = (paged_bytes / (self.token_bytes * page_size)).min(useful);
                if pages < groups {
                    self.check(groups * page_size, left)?;
                }
                if let Some(len) = max_len {
                    self.check(self.pages_for(len, page_size).saturating_mul(page_size), left)?;
                }
                pages
            }
        };
        let longest = self.windows.tokens_in(pages as usize, self.chunk_tokens, page_size as usize);
        if let Some(len) = max_len
            && (longest as u64) < len
        {
            return Err(EngineError::Option {
                option: "max_len",
                value: len.to_string(),
                expected: format!(
                    "at most the {longest} tokens that fit into the KV cache; raise kv_tokens or memory_ratio{}",
                    if groups > 1 { ", or lower chunk_tokens" } else { "" }
                ),
            });
        }
        if pages > u64::from(u32::MAX) / page_size {
            return Err(EngineError::Option {
                option: "kv_tokens",
                value: (pages / groups * page_size).to_string(),
                expected: format!("at most {}", u64::from(u32::MAX) / groups),
            });
        }
        let tokens = pages / groups * page_size;
        Ok(KvSize { pages, tokens, max_len: wanted_len.min(longest as u64) })
    }

    /// Pages of all groups that a request of `tokens` needs.
    fn pages_for(&self, tokens: u64, page_size: u64) -> u64 {
        self.windows.pages_for(tokens as usize, self.chunk_tokens, page_size as usize) as u64
    }

    /// Bytes that pages for `tokens` of one group take.
    pub fn kv_bytes(&self, tokens: u64) -> u64 {
        let bytes = tokens.saturating_mul(self.token_bytes).saturating_add(self.slack_bytes);
        let units = bytes.div_ceil(self.unit_bytes);
        units.saturating_mul(self.unit_bytes).saturating_mul(self.arrays)
    }

    fn check(&self, tokens: u64, budget_bytes: u64) -> Result<(), EngineError> {
        let needed_bytes = self.kv_bytes(tokens);
        if needed_bytes <= budget_bytes {
            return Ok(());
        }
        Err(EngineError::Memory {
            needed_bytes,
            tokens: tokens / self.windows.all_groups() as u64,
            budget_bytes,
            available_bytes: self.available_bytes,
            used_bytes: self.used_bytes,
        })
    }
}

/// Bytes that the system can give this process without swapping: `MemAvailable`, or what the limits of
/// its control groups (version 2) leave if that is less.
///
/// # Errors
/// `/proc/meminfo` is not there or has no `MemAvailable`.
pub fn available_bytes() -> Result<u64, EngineError> {
    let path = "/proc/meminfo";
    let text = std::fs::read_to_string(path)
        .map_err(|source| EngineError::System { what: format!("read {path}"), source })?;
    let machine = parse_available(&text).ok_or_else(|| EngineError::System {
        what: format!("read {path}"),
        source: std::io::Error::other("it has no line MemAvailable"),
    })?;
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limit = left_in_groups(Path::new("/sys/fs/cgroup"), &groups);
    Ok(limit.map_or(machine, |left| left.min(machine)))
}

/// Bytes left under the tightest limit of a process's control group and the groups around it;
/// `membership` is its `/proc/self/cgroup`, `root` where the groups are mounted. `None` without limits.
fn left_in_groups(root: &Path, membership: &str) -> Option<u64> {
    let own = membership.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let own = root.join(own);
    own.ancestors().take_while(|group| group.starts_with(root)).filter_map(left_in_group).min()
}

/// `memory.max` less `memory.current`, not counting the file pages that the kernel gives back first: a
/// model that was just downloaded is among them. `None` when the limit is `max` or there is none.
fn left_in_group(group: &Path) -> Option<u64> {
    let read = |name| std::fs::read_to_string(group.join(name)).ok();
    let max: u64 = read("memory.max")?.trim().parse().ok()?;
    let current: u64 = read("memory.current")?.trim().parse().ok()?;
    let stat = read("memory.stat").unwrap_or_default();
    let inactive = stat.lines().find_map(|line| line.strip_prefix("inactive_file "));
    let inactive: u64 = inactive.and_then(|bytes| bytes.trim().parse().ok()).unwrap_or(0);
    Some(max.saturating_sub(current.saturating_sub(inactive)))
}

fn parse_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 10 bytes a token.
    const BUDGET: Budget = Budget {
        available_bytes: 10_000,
        used_bytes: 1_000,
        spare_bytes: 0,
        arrays: 2,
        windows: Windows { groups: 0, keep: 0 },
        chunk_tokens: 16,
        token_bytes: 5,
        slack_bytes: 0,
        unit_bytes: 1,
        max_position: 100,
    };

    const WISHES: Wishes = Wishes {
        kv_tokens: None,
        memory_ratio: 0.5,
        page_size: 16,
        max_running: 256,
        prefix_cache: true,
        max_len: None,
    };

    #[test]
    fn the_ratio_covers_weights_and_pages() {
        let size = BUDGET.kv_size(&WISHES).unwrap();
        // (5,000 - 1,000) / 160 bytes a page.
        assert_eq!(size, KvSize { pages: 25, tokens: 400, max_len: 100 });
    }

    #[test]
    fn arrays_are_whole_units_within_the_budget() {
        // 2,000 bytes an array are three units of 600, which hold 22 pages of 80.
        let budget = Budget { unit_bytes: 600, ..BUDGET };
        let size = budget.kv_size(&WISHES).unwrap();
        assert_eq!(size, KvSize { pages: 22, tokens: 352, max_len: 100 });
        assert_eq!(budget.kv_bytes(22 * 16), 3_600);
        // Asked for by count, seven units of each array fit into 9,000 bytes, and eight do not.
        let wish = |tokens| Wishes { kv_tokens: Some(tokens), ..WISHES };
        assert_eq!(budget.kv_size(&wish(52 * 16)).unwrap().pages, 52);
        assert!(budget.kv_size(&wish(53 * 16)).is_err());
        // 41 bytes more, and the last page is one too many.
        let budget = Budget { slack_bytes: 41, ..budget };
        assert_eq!(budget.kv_size(&WISHES).unwrap().pages, 21);
        assert_eq!(budget.kv_size(&wish(51 * 16)).unwrap().pages, 51);
        assert!(budget.kv_size(&wish(52 * 16)).is_err());
    }

    #[test]
    fn what_is_spared_stays_free() {
        let budget = Budget { spare_bytes: 5_400, ..BUDGET };
        // 10,000 - 5,400 - 1,000 is less than half of all leaves.
        assert_eq!(budget.kv_size(&WISHES).unwrap().pages, 22);
        let wish = |tokens| Wishes { kv_tokens: Some(tokens), ..WISHES };
        assert_eq!(budget.kv_size(&wish(352)).unwrap().pages, 22);
        assert!(budget.kv_size(&wish(368)).is_err());
    }

    #[test]
    fn no_more_pages_than_are_of_use() {
        // Two requests of 100 tokens without a prefix cache; with one, all that the share holds.
        let few = Wishes { max_running: 2, ..WISHES };
        let size = BUDGET.kv_size(&Wishes { prefix_cache: false, ..few }).unwrap();
        assert_eq!(size, KvSize { pages: 14, tokens: 224, max_len: 100 });
        assert_eq!(BUDGET.kv_size(&few).unwrap(), KvSize { pages: 25, tokens: 400, max_len: 100 });
        // Far more memory than a toy model has a use for.
        let vast = Budget { available_bytes: 1 << 40, ..BUDGET };
        assert_eq!(vast.kv_size(&few).unwrap().pages, CACHED_TOKENS_MAX / 16);
        let many = Wishes { max_running: 65_536, ..WISHES };
        assert_eq!(vast.kv_size(&many).unwrap().pages, 65_536 * 7, "what runs comes first");
    }

    #[test]
    fn tokens_are_rounded_up_to_pages_and_bound_the_length() {
        let size = BUDGET.kv_size(&Wishes { kv_tokens: Some(33), ..WISHES }).unwrap();
        assert_eq!(size, KvSize { pages: 3, tokens: 48, max_len: 48 });
    }

    #[test]
    fn windows_make_room_for_longer_requests() {
        // Two window groups of pages of 16, of which a request keeps 20 tokens and what it is fed: four columns.
        let windows = Windows { groups: 2, keep: 20 };
        let budget = Budget { windows, max_position: 1_000, ..BUDGET };
        let size = budget.kv_size(&Wishes { kv_tokens: Some(160), ..WISHES }).unwrap();
        assert_eq!(size, KvSize { pages: 30, tokens: 160, max_len: (30 - 2 * 4) * 16 });
        let longer = |len| Wishes { kv_tokens: Some(160), max_len: Some(len), ..WISHES };
        assert_eq!(budget.kv_size(&longer(352)).unwrap().max_len, 352);
        let error = budget.kv_size(&longer(353)).unwrap_err().to_string();
        let expected = "option max_len is 353: at most the 352 tokens that fit into the KV cache; raise kv_tokens or \
                        memory_ratio, or lower chunk_tokens";
        assert_eq!(error, expected);
        // Not even a page of each group.
        let budget = Budget { used_bytes: 4_600, ..budget };
        let error = budget.kv_size(&WISHES).unwrap_err().to_string();
        assert!(error.contains("no memory for the KV cache"), "{error}");
        // No more than those who run and the prefix cache can use.
        let vast = Budget { available_bytes: 1 << 40, used_bytes: 0, ..budget };
        assert_eq!(vast.kv_size(&WISHES).unwrap().pages, 3 * CACHED_TOKENS_MAX / 16);
        let alone = Wishes { prefix_cache: false, max_running: 1, ..WISHES };
        assert_eq!(vast.kv_size(&alone).unwrap().pages, 63 + 2 * 4);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for wishes in [
            Wishes { kv_tokens: Some(10_000), ..WISHES },
            Wishes { memory_ratio: 0.1, ..WISHES },
            Wishes { max_len: Some(401), ..WISHES },
        ] {
            let error = BUDGET.kv_size(&wishes).unwrap_err().to_string();
            assert!(error.contains("no memory for the KV cache"), "{error}");
        }
        let wishes = Wishes { kv_tokens: Some(64), max_len: Some(65), ..WISHES };
        let error = BUDGET.kv_size(&wishes).unwrap_err().to_string();
        assert_eq!(
            error,
            "option max_len is 65: at most the 64 tokens that fit into the KV cache; raise kv_tokens or memory_ratio"
        );
    }

    #[test]
    fn the_tightest_group_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |group: &str, file: &str, text: &str| {
            let group = root.path().join(group);
            std::fs::create_dir_all(&group).unwrap();
            std::fs::write(group.join(file), text).unwrap();
        };
        let left = |membership: &str| left_in_groups(root.path(), membership);
        let own = "4:memory:/old\n0::/pod/app\n";
        assert_eq!(left(own), None, "no files, no limit");
        write("pod/app", "memory.max", "max\n");
        write("pod/app", "memory.current", "700\n");
        assert_eq!(left(own), None);
        write("pod", "memory.max", "1000\n");
        write("pod", "memory.current", "800\n");
        assert_eq!(left(own), Some(200), "the group around it has a limit");
        write("pod", "memory.stat", "anon 500\ninactive_file 300\nactive_file 0\n");
        assert_eq!(left(own), Some(500), "file pages come back");
        write("pod/app", "memory.max", "710\n");
        assert_eq!(left(own), Some(10));
        write("pod/app", "memory.max", "600\n");
        assert_eq!(left(own), Some(0), "over its limit");
        assert_eq!(left("0::/\n"), None);
        assert_eq!(left("4:memory:/old\n"), None, "version 1 alone");
    }

    #[test]
    fn meminfo_is_in_kib() {
        let text = "MemTotal:  8 kB\nMemAvailable:   123 kB\n";
        assert_eq!(parse_available(text), Some(123 * 1024));
        assert_eq!(parse_available("MemTotal: 8 kB\n"), None);
    }
}
