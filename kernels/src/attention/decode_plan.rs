//! How a batch of decode tokens is cut into nearly equal shares, one for each team of the kernel's blocks.
//!
//! A team has a block for each key head. The KV tokens of all requests are laid end to end, in units of
//! [`UNIT`] tokens, and the line is cut into pieces of equal length: team `t` works on units
//! `t * share .. (t + 1) * share`. A request that is cut has one chunk in each of several consecutive teams;
//! for each key head, the last of them to finish merges the chunks. After the units of a request come some
//! that nobody works on: either what it costs to begin a request, or as many as let every request start at a
//! cut. FlashInfer (Ye et al., MLSys 2025, section 3.3) balances by the same idea with explicit lists of
//! tiles. Layers whose tokens see a window have a list of their own, of the units from the window's first on.
//!
//! Owns: the work list's layout. Must never: touch a GPU, or allocate.
//!
//! The work list, i32:
//! - for each team 8: first unit, end of its units, request it starts in, share; and that request's row
//! - for each request 4, its row: first unit, units from it to the next request's, tokens, first page, those before
//!   the window included

use crate::LaunchError;

/// KV tokens that are never cut apart.
pub const UNIT: usize = 16;

const TEAM_WORDS: usize = 8;
const ROW_WORDS: usize = 4;

/// How the kernel is shaped and what is assumed of its costs. Changes results by rounding only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeTuning {
    /// Blocks of a multiprocessor, 1 or 2; none: as many as fit.
    pub blocks: Option<u32>,
    /// Tiles of K and V in each block's shared memory, 2 to 4; none: as many as fit.
    pub stages: Option<u32>,
    /// What beginning and ending a request costs, in units.
    pub begin: u32,
    /// The least share of a team, in units.
    pub share_min: u32,
}

impl Default for DecodeTuning {
    fn default() -> Self {
        DecodeTuning { blocks: None, stages: None, begin: 2, share_min: 4 }
    }
}

/// Plans for one grid of blocks; see [`super::DecodeAttention::planner`].
#[derive(Clone, Copy, Debug)]
pub struct DecodePlanner {
    teams: u32,
    tuning: DecodeTuning,
}

impl DecodePlanner {
    pub(crate) fn new(teams: u32, tuning: DecodeTuning) -> DecodePlanner {
        DecodePlanner { teams, tuning }
    }

    /// Length of the work list for batches of up to `rows` requests.
    pub fn words(&self, rows: usize) -> usize {
        TEAM_WORDS * self.teams as usize + ROW_WORDS * rows
    }

    /// Writes the work list of one step, for layers whose tokens see a window, or all before them.
    ///
    /// `lens` are the KV tokens of each request, the one of this step included; 0 is a request that is not
    /// there, of which nothing is read or written. `page_starts` say where each request's pages begin in the
    /// list of pages (more than `lens.len()` entries are fine). `work` has [`DecodePlanner::words`] of the
    /// rows that the launch has; rows beyond `lens` are padding.
    ///
    /// # Errors
    /// The lengths do not fit together, or a request has 2^31 tokens, or the batch 2^31 units.
    pub fn plan(
        &self,
        lens: &[u32],
        page_starts: &[i32],
        window: Option<u32>,
        work: &mut [i32],
    ) -> Result<(), LaunchError> {
        let units_of = |len: u32| units_of(len, window);
        let refuse = |what| Err(LaunchError::Argument { op: "decode", what });
        let teams = self.teams as usize;
        if work.len() < self.words(lens.len()) || page_starts.len() < lens.len() {
            return refuse(format!(
                "{} requests, {} starts of pages and a work list of {} words for {teams} teams",
                lens.len(),
                page_starts.len(),
                work.len(),
            ));
        }
        let units: u64 = lens.iter().map(|&len| u64::from(units_of(len))).sum();
        if window == Some(0) {
            return refuse("a window has one token at least, the request's own".to_owned());
        }
        let live = lens.iter().filter(|&&len| len > 0).count() as u64;
        let begin = u64::from(self.tuning.begin);
        let even = (units + live * begin).div_ceil(u64::from(self.teams));
        // What nobody works on included, the line is no longer than this.
        let share_max = even.max(u64::from(self.tuning.share_min)) + begin;
        let long = lens.iter().any(|&len| len > i32::MAX as u32);
        if long || u64::from(self.teams) * (share_max + 1) > i32::MAX as u64 {
            return refuse(format!(
                "{units} units of {UNIT} tokens, or one of the lengths, are too many"
            ));
        }
        let even = (even as u32).max(self.tuning.share_min);
        let aligned = self.aligned_share(lens, units_of, live, units);
        let (share, aligned) = match aligned {
            Some(share) if share <= even + self.tuning.begin => (share, true),
            _ => (even, false),
        };

        // The rows, and each team's first.
        let (of_teams, of_rows) = work.split_at_mut(TEAM_WORDS * teams);
        of_rows.fill(0);
        let mut at = 0_u32;
        let mut team = 0;
        for (row, (&len, out)) in lens.iter().zip(of_rows.chunks_exact_mut(ROW_WORDS)).enumerate() {
            if len == 0 {
                continue;
            }
            let stride = match aligned {
                true => units_of(len).next_multiple_of(share),
                false => units_of(len) + self.tuning.begin,
            };
            out.copy_from_slice(&[at as i32, stride as i32, len as i32, page_starts[row]]);
            let end = at + stride;
            while team * share < end && team < self.teams {
                let words = &mut of_teams[TEAM_WORDS * team as usize..][..TEAM_WORDS];
                words[..4].copy_from_slice(&[
                    (team * share) as i32,
                    ((team + 1) * share) as i32, // Cut down below.
                    row as i32,
                    share as i32,
                ]);
                words[4..].copy_from_slice(out);
                team += 1;
            }
            at = end;
        }
        if let Some(last) = team.checked_sub(1) {
            of_teams[TEAM_WORDS * last as usize + 1] = at as i32;
        }
        of_teams[TEAM_WORDS * team as usize..].fill(0);
        Ok(())
    }

    /// The least share with which every request can start at a cut; none if there are more requests than teams.
    fn aligned_share(
        &self,
        lens: &[u32],
        units_of: impl Fn(u32) -> u32,
        live: u64,
        units: u64,
    ) -> Option<u32> {
        let teams = u64::from(self.teams);
        if live == 0 || live > teams {
            return None;
        }
        let fits = |share: u32| {
            let chunks: u64 =
                lens.iter().map(|&len| u64::from(units_of(len).div_ceil(share))).sum();
            chunks <= teams
        };
        // Shares in low.. may fit, high does.
        let mut low = (units.div_ceil(teams) as u32).max(self.tuning.share_min);
        let mut high = lens.iter().map(|&len| units_of(len)).max().unwrap_or(1).max(low);
        while low < high {
            let middle = low + (high - low) / 2;
            match fits(middle) {
                true => high = middle,
                false => low = middle + 1,
            }
        }
        Some(high)
    }
}

/// Units that a request's newest token sees something of.
fn units_of(len: u32, window: Option<u32>) -> u32 {
    let first_seen = window.map_or(0, |window| len.saturating_sub(window));
    len.div_ceil(UNIT as u32) - first_seen / UNIT as u32
}

#[cfg(test)]
#[path = "decode_plan_tests.rs"]
mod tests;
