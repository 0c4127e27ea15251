//! A step's plan, unfolded once for all layers.
//!
//! Owns: the page tables of slots as a rank's host has them, and what follows from them, a [`Plan`] and every op needs: the
//! position of each token, where its keys and values go, after which of them logits are wanted. Must never: change a plan, or let
//! a broken one through.

use std::sync::Arc;

use minisgl_sched::guide::mask_words;
use minisgl_sched::{Late, PageId, Plan, Row, SAMPLED_LAST, SlotId, Want};

/// One step, as ops see it. Its buffers are reused from step to step.
#[derive(Debug, Default)]
pub struct Batch {
    plan: Arc<Plan>,
    tables: Tables,
    positions: Vec<u32>,
    /// By group of layers.
    kv_slots: Vec<Vec<u32>>,
    logit_rows: Vec<LogitRow>,
}

/// Plans in flight at most: one running, one queued behind it.
pub const IN_FLIGHT_MAX: usize = 2;

/// Prompt tokens whose log-probabilities one step can report. What they take beside the rows that are sampled is
/// a row of hidden states each, and results.
pub const SCORED_MAX: usize = 256;

/// Logits that are wanted: those after one token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogitRow {
    /// Index in [`Batch::rows`].
    pub row: u32,
    /// Index of the token among the tokens of the batch.
    pub token: u32,
    /// The prompt's own next token, of which the log-probability is reported. `None`: the next token is sampled.
    pub given: Option<u32>,
}

impl Batch {
    /// Unfolds `plan` for `groups` groups of layers with pages of `page_size` tokens, replacing what was here.
    pub fn prepare(&mut self, plan: Arc<Plan>, groups: usize, page_size: usize) {
        self.positions.clear();
        self.kv_slots.resize_with(groups, Vec::new);
        self.kv_slots.iter_mut().for_each(Vec::clear);
        self.logit_rows.clear();
        self.tables.take(&plan, groups);
        for (index, row) in plan.rows.iter().enumerate() {
            self.positions.extend(row.start..row.start + row.len);
            for (group, kv_slots) in self.kv_slots.iter_mut().enumerate() {
                let pages = self.tables.of(row.slot, group);
                kv_slots.extend((row.start..row.start + row.len).map(|position| {
                    let page = pages[position as usize / page_size];
                    page * page_size as u32 + position % page_size as u32
                }));
            }
            let end = row.tokens_at + row.len;
            for token in end - row.logits()..end {
                let given = match row.want {
                    Want::Each { next, .. } if token + 1 == end => next,
                    Want::Each { .. } => Some(plan.tokens[token as usize + 1] as u32),
                    Want::Nothing | Want::Last => None,
                };
                self.logit_rows.push(LogitRow { row: index as u32, token, given });
            }
        }
        self.plan = plan;
    }

    /// The plan itself.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Rows, in the order of the plan; their tokens lie one after the other.
    pub fn rows(&self) -> &[Row] {
        &self.plan.rows
    }

    /// How many of the rows, from the first on, feed one token each: the scheduler puts them first.
    pub fn decoding(&self) -> usize {
        self.plan.rows.iter().take_while(|row| row.len == 1).count()
    }

    /// Input tokens: a token id, or [`SAMPLED_LAST`] for the one that the row's slot sampled last.
    pub fn tokens(&self) -> &[i32] {
        &self.plan.tokens
    }

    /// Position of each token in its request.
    pub fn positions(&self) -> &[u32] {
        &self.positions
    }

    /// Groups of layers.
    pub fn groups(&self) -> usize {
        self.kv_slots.len()
    }

    /// Where each token's keys and values of a group's layers go: `page * page_size + offset in the page`.
    pub fn kv_slots(&self, group: usize) -> &[u32] {
        &self.kv_slots[group]
    }

    /// The logits that are wanted, in the order of tokens.
    pub fn logit_rows(&self) -> &[LogitRow] {
        &self.logit_rows
    }

    /// Which of the plan's masks the token after a row is sampled under, if it has one.
    pub fn mask_of(&self, row: u32) -> Option<usize> {
        self.plan.masked.binary_search(&row).ok()
    }

    /// Slot whose last token a row begins or goes on with, by the index of that token.
    pub fn fed_back(&self) -> impl Iterator<Item = (usize, SlotId)> {
        let last = |row: &Row| (row.tokens_at + row.len) as usize - 1;
        let rows = self.plan.rows.iter().map(move |row| (last(row), row.slot));
        rows.filter(|&(at, _)| self.plan.tokens[at] == SAMPLED_LAST)
    }

    /// Page table of a slot for the layers of a group, as far as its request has pages.
    pub fn pages(&self, slot: SlotId, group: usize) -> &[PageId] {
        self.tables.of(slot, group)
    }
}

/// The page tables of slots.
#[derive(Debug, Default)]
struct Tables {
    groups: usize,
    /// Those of a slot lie beside each other.
    all: Vec<Vec<PageId>>,
}

impl Tables {
    /// Takes what a plan changes.
    fn take(&mut self, plan: &Plan, groups: usize) {
        self.groups = groups;
        for install in &plan.installs {
            (0..groups).for_each(|group| self.table(install.slot, group).clear());
        }
        let mut rest = &plan.pages[..];
        for grown in &plan.grown {
            let (pages, others) = rest.split_at(grown.len as usize);
            let table = self.table(grown.slot, grown.group as usize);
            // Those before a window are not read.
            table.resize(grown.at as usize, 0);
            table.extend_from_slice(pages);
            rest = others;
        }
    }

    fn table(&mut self, slot: SlotId, group: usize) -> &mut Vec<PageId> {
        let index = slot as usize * self.groups + group;
        if self.all.len() <= index {
            self.all.resize_with(index + 1, Vec::new);
        }
        &mut self.all[index]
    }

    fn of(&self, slot: SlotId, group: usize) -> &[PageId] {
        let index = slot as usize * self.groups + group;
        self.all.get(index).map_or(&[], Vec::as_slice)
    }
}

/// What a plan may hold. A plan outside is a fault of the scheduler, and is refused whole before
/// any rank has seen it.
#[derive(Clone, Copy, Debug)]
pub struct PlanLimits {
    /// Tokens of a step.
    pub chunk_tokens: usize,
    /// Requests running at once.
    pub slots: usize,
    /// Tables of token counts.
    pub penalised: usize,
    /// Positions of a request.
    pub max_len: usize,
    /// KV pages.
    pub pages: usize,
    /// Tokens a page.
    pub page_size: usize,
    /// Groups of layers, each with a page table for every slot.
    pub groups: usize,
    /// Vocabulary.
    pub vocab_size: usize,
}

/// What plans so far have made of the slots, as far as the next one can be broken by it.
#[derive(Debug)]
pub struct PlanCheck {
    limits: PlanLimits,
    slots: Vec<SlotState>,
    /// Entries of each slot's page table for each group, those of a slot beside each other.
    tables: Vec<usize>,
}

#[derive(Clone, Copy, Debug, Default)]
struct SlotState {
    /// The plan before this one samples its next token.
    sampled: bool,
}

impl PlanCheck {
    /// No plan has run.
    pub fn new(limits: PlanLimits) -> PlanCheck {
        let tables = vec![0; limits.slots * limits.groups];
        PlanCheck { limits, slots: vec![SlotState::default(); limits.slots], tables }
    }

    /// What it checks by.
    pub fn limits(&self) -> &PlanLimits {
        &self.limits
    }

    /// Forgets all plans.
    pub fn restart(&mut self) {
        *self = PlanCheck::new(self.limits);
    }

    /// Checks `plan`, which follows those that were checked before. After one that was broken none follows.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check(&mut self, plan: &Plan) -> Result<(), String> {
        self.limits.check_installs(plan)?;
        for install in &plan.installs {
            self.slots[install.slot as usize] = SlotState::default();
            self.tables_of(install.slot).fill(0);
        }
        self.check_grown(plan)?;
        self.limits.check_rows(plan, &self.slots, &self.tables)?;
        for slot in &mut self.slots {
            slot.sampled = false;
        }
        for row in &plan.rows {
            self.slots[row.slot as usize].sampled = row.is_sampled();
        }
        Ok(())
    }

    /// Checks what comes late for `plan`, which was checked.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check_late(&self, plan: &Plan, late: &Late) -> Result<(), String> {
        if late.step != plan.step {
            return Err(format!("masks are of step {}", late.step));
        }
        let (rows, vocab) = (plan.masked.len(), self.limits.vocab_size);
        if late.masks.len() != rows * mask_words(vocab) {
            return Err(format!(
                "masks of {rows} rows over {vocab} tokens take {} words, there are {}",
                rows * mask_words(vocab),
                late.masks.len()
            ));
        }
        Ok(())
    }

    fn tables_of(&mut self, slot: SlotId) -> &mut [usize] {
        let groups = self.limits.groups;
        &mut self.tables[slot as usize * groups..][..groups]
    }

    /// Takes what changes in the page tables.
    fn check_grown(&mut self, plan: &Plan) -> Result<(), String> {
        let limits = self.limits;
        let mut pages = 0;
        for grown in &plan.grown {
            within("slot of a page table", grown.slot as usize + 1, limits.slots)?;
            within("group of layers of a page table", grown.group as usize + 1, limits.groups)?;
            let table = &mut self.tables_of(grown.slot)[grown.group as usize];
            // Before a window there may be none.
            if grown.group == 0 {
                within("first new page of a slot", grown.at as usize, *table)?;
            }
            *table = grown.at as usize + grown.len as usize;
            within("pages of a slot", *table, limits.max_len.div_ceil(limits.page_size))?;
            pages += grown.len as usize;
        }
        if pages != plan.pages.len() {
            return Err(format!(
                "page tables grow by {pages} pages, the plan has {}",
                plan.pages.len()
            ));
        }
        plan.pages.iter().try_for_each(|&page| within("page", page as usize + 1, limits.pages))
    }
}

fn within(what: &str, value: usize, limit: usize) -> Result<(), String> {
    if value <= limit { Ok(()) } else { Err(format!("{what} {value} exceeds {limit}")) }
}

impl PlanLimits {
    fn check_installs(&self, plan: &Plan) -> Result<(), String> {
        for install in &plan.installs {
            within("installed slot", install.slot as usize + 1, self.slots)?;
            if install.counts.is_some() != install.sampling.needs_history() {
                return Err(format!(
                    "slot {}: its table of token counts is {:?}",
                    install.slot, install.counts
                ));
            }
            let table = install.counts.map_or(0, |counts| counts as usize + 1);
            within("table of token counts", table, self.penalised)?;
        }
        Ok(())
    }

    fn check_rows(&self, plan: &Plan, slots: &[SlotState], tables: &[usize]) -> Result<(), String> {
        within("number of tokens", plan.tokens.len(), self.chunk_tokens)?;
        let (mut tokens, mut scored) = (0, 0);
        for (index, row) in plan.rows.iter().enumerate() {
            let end = row.start as usize + row.len as usize;
            let pages = end.div_ceil(self.page_size);
            if row.len == 0 || row.tokens_at as usize != tokens {
                return Err(format!(
                    "row {index}: {} tokens at {}, expected at least one at {tokens}",
                    row.len, row.tokens_at
                ));
            }
            tokens += row.len as usize;
            within("slot of a row", row.slot as usize + 1, self.slots)?;
            within("end of a row", end, self.max_len)?;
            let slot = slots[row.slot as usize];
            let tables = &tables[row.slot as usize * self.groups..][..self.groups];
            tables.iter().try_for_each(|&table| within("page table of a row", pages, table))?;
            if let Want::Each { first, next } = row.want {
                within("first logits of a row", first as usize + 1, row.len as usize)?;
                within("token id", next.map_or(0, |token| token as usize + 1), self.vocab_size)?;
                scored += row.scored() as usize;
            }
            let fed = plan.tokens.get(row.tokens_at as usize..tokens).unwrap_or_default();
            for (at, &token) in fed.iter().enumerate() {
                if let Ok(token) = usize::try_from(token) {
                    within("token id", token + 1, self.vocab_size)?;
                } else if token != SAMPLED_LAST || at + 1 != fed.len() || !slot.sampled {
                    return Err(format!("row {index}: slot {} sampled no token {token}", row.slot));
                } else if matches!(row.want, Want::Each { .. }) {
                    return Err(format!("row {index}: the log-probability of a token in flight"));
                }
            }
        }
        within("number of log-probabilities", scored, SCORED_MAX)?;
        for (index, &masked) in plan.masked.iter().enumerate() {
            let row = plan.rows.get(masked as usize);
            if index > 0 && masked <= plan.masked[index - 1] || !row.is_some_and(Row::is_sampled) {
                return Err(format!("row {masked} has a mask, and is not sampled or has another"));
            }
        }
        if tokens != plan.tokens.len() {
            return Err(format!("rows feed {tokens} tokens, the plan has {}", plan.tokens.len()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use minisgl_proto::SamplingParams;
    use minisgl_sched::{Grown, Install};

    use super::*;

    const LIMITS: PlanLimits = PlanLimits {
        chunk_tokens: 8,
        slots: 2,
        penalised: 1,
        max_len: 10,
        pages: 4,
        page_size: 4,
        groups: 1,
        vocab_size: 9,
    };

    fn plan() -> Plan {
        let row = Row { slot: 0, start: 3, len: 3, tokens_at: 0, want: Want::Last };
        let decode = Row { slot: 1, start: 8, len: 1, tokens_at: 3, want: Want::Nothing };
        Plan {
            grown: vec![
                Grown { slot: 0, group: 0, at: 0, len: 2 },
                Grown { slot: 1, group: 0, at: 0, len: 3 },
            ],
            pages: vec![0, 2, 3, 0, 2],
            rows: vec![row, decode],
            tokens: vec![8, 0, 5, SAMPLED_LAST],
            ..Plan::default()
        }
    }

    #[test]
    fn a_batch_knows_positions_and_slots() {
        let mut batch = Batch::default();
        batch.prepare(Arc::new(plan()), 1, 4);
        assert_eq!(batch.positions(), [3, 4, 5, 8]);
        assert_eq!(batch.kv_slots(0), [3, 8, 9, 8]);
        assert_eq!(batch.logit_rows(), [LogitRow { row: 0, token: 2, given: None }]);
    }

    #[test]
    fn a_batch_knows_which_token_comes_next() {
        let logits = |want: Want| -> Vec<(u32, u32, Option<u32>)> {
            let mut plan = plan();
            plan.rows[0].want = want;
            let mut batch = Batch::default();
            batch.prepare(Arc::new(plan), 1, 4);
            batch.logit_rows().iter().map(|at| (at.row, at.token, at.given)).collect()
        };
        assert_eq!(logits(Want::Nothing), []);
        let ends_here = Want::Each { first: 0, next: None };
        assert_eq!(logits(ends_here), [(0, 0, Some(0)), (0, 1, Some(5)), (0, 2, None)]);
        let goes_on = Want::Each { first: 1, next: Some(7) };
        assert_eq!(logits(goes_on), [(0, 1, Some(5)), (0, 2, Some(7))]);
    }

    /// The tables of [`plan`] for two groups of layers: window pages of slot 1 are others, and its first one is gone.
    fn grouped() -> Plan {
        let grown = |slot, group, len| Grown { slot, group, at: 0, len };
        Plan {
            grown: vec![
                grown(0, 0, 2),
                grown(0, 1, 2),
                grown(1, 0, 3),
                Grown { slot: 1, group: 1, at: 1, len: 2 },
            ],
            pages: vec![0, 2, 3, 1, 3, 0, 2, 1, 3],
            ..plan()
        }
    }

    #[test]
    fn groups_of_layers_have_pages_of_their_own() {
        let mut batch = Batch::default();
        batch.prepare(Arc::new(grouped()), 2, 4);
        assert_eq!(batch.groups(), 2);
        assert_eq!((batch.pages(1, 0), batch.pages(1, 1)), (&[3, 0, 2][..], &[0, 1, 3][..]));
        assert_eq!(
            (batch.kv_slots(0), batch.kv_slots(1)),
            (&[3, 8, 9, 8][..], &[15, 4, 5, 12][..])
        );
        assert_eq!(batch.positions(), [3, 4, 5, 8]);
        // Whoever takes a slot begins with no page in any group.
        let installs = vec![Install { slot: 1, ..install(None, 0.0) }];
        batch.prepare(Arc::new(Plan { installs, ..Plan::default() }), 2, 4);
        assert!(batch.pages(1, 0).is_empty() && batch.pages(1, 1).is_empty());
        assert_eq!(batch.pages(0, 1), [3, 1]);
    }

    #[test]
    fn a_row_needs_pages_of_every_group() {
        let limits = PlanLimits { groups: 2, ..LIMITS };
        let before = Plan {
            rows: vec![Row { slot: 1, start: 8, len: 1, tokens_at: 0, want: Want::Last }],
            tokens: vec![0],
            ..grouped()
        };
        let mut check = PlanCheck::new(limits);
        check.check(&before).unwrap();
        assert_eq!(check.check(&grouped()), Ok(()));
        let mut check = PlanCheck::new(limits);
        check.check(&before).unwrap();
        let installs = vec![Install { slot: 1, ..install(None, 0.0) }];
        let short = Plan { installs, grown: grouped().grown[..3].to_vec(), ..grouped() };
        let short = Plan { pages: short.pages[..7].to_vec(), ..short };
        let error = check.check(&short).unwrap_err();
        assert!(error.contains("page table of a row 3 exceeds 0"), "{error}");
    }

    fn install(counts: Option<u32>, presence_penalty: f32) -> Install {
        Install {
            slot: 0,
            sampling: SamplingParams { presence_penalty, ..SamplingParams::default() },
            counts,
            history: vec![],
            prompt_len: 0,
            banned: vec![],
            banned_below: 0,
        }
    }

    #[test]
    fn masks_that_are_not_a_plans_are_refused() {
        let plan = Plan { masked: vec![0], ..plan() };
        let check = PlanCheck::new(LIMITS);
        let late = |step, masks| check.check_late(&plan, &Late { step, masks });
        assert_eq!(late(0, vec![7]), Ok(()));
        assert_eq!(late(1, vec![7]), Err("masks are of step 1".to_owned()));
        assert!(late(0, vec![7, 7]).unwrap_err().contains("take 1 words, there are 2"));
        assert!(late(0, vec![]).unwrap_err().contains("masks of 1 rows over 9 tokens"));
    }

    #[test]
    fn a_broken_plan_is_refused() {
        let check = |change: fn(&mut Plan)| {
            let mut plan = plan();
            change(&mut plan);
            let mut check = PlanCheck::new(LIMITS);
            let decode = Row { slot: 1, start: 7, len: 1, tokens_at: 0, want: Want::Last };
            let before = Plan {
                grown: vec![Grown { slot: 1, group: 0, at: 0, len: 2 }],
                pages: vec![3, 0],
                rows: vec![decode],
                tokens: vec![4],
                ..Plan::default()
            };
            check.check(&before).unwrap();
            check.check(&plan)
        };
        assert_eq!(check(|_| ()), Ok(()));
        assert_eq!(check(|plan| plan.installs.push(install(Some(0), 0.5))), Ok(()));
        type Change = fn(&mut Plan);
        let broken: [(&str, Change); 23] = [
            ("token id 10 exceeds 9", |plan| plan.tokens[0] = 9),
            ("row 1: slot 1 sampled no token -2", |plan| plan.tokens[3] = -2),
            ("row 0: slot 0 sampled no token -1", |plan| plan.tokens[2] = SAMPLED_LAST),
            ("row 1: slot 1 sampled no token -1", |plan| {
                plan.installs.push(Install { slot: 1, ..install(Some(0), 0.5) });
            }),
            ("page 5 exceeds 4", |plan| plan.pages[2] = 4),
            ("first new page of a slot 3 exceeds 2", |plan| plan.grown[1].at = 3),
            ("slot of a page table 3 exceeds 2", |plan| plan.grown[1].slot = 2),
            ("group of layers of a page table 2 exceeds 1", |plan| plan.grown[1].group = 1),
            ("pages of a slot 4 exceeds 3", |plan| plan.grown[1].at = 1),
            ("end of a row 11", |plan| plan.rows[1].start = 10),
            ("slot of a row 3", |plan| plan.rows[0].slot = 2),
            ("slot 0: its table of token counts is Some(0)", |plan| {
                plan.installs.push(install(Some(0), 0.0));
            }),
            ("table of token counts 2 exceeds 1", |plan| {
                plan.installs.push(install(Some(1), 0.5));
            }),
            ("page tables grow by 5 pages, the plan has 2", |plan| plan.pages.truncate(2)),
            ("page table of a row 3 exceeds 2", |plan| {
                plan.grown.truncate(1);
                plan.pages.truncate(2);
            }),
            ("0 tokens at 3", |plan| plan.rows[1].len = 0),
            ("the plan has 5", |plan| plan.tokens.push(1)),
            ("first logits of a row 4 exceeds 3", |plan| {
                plan.rows[0].want = Want::Each { first: 3, next: None };
            }),
            ("token id 10 exceeds 9", |plan| {
                plan.rows[0].want = Want::Each { first: 0, next: Some(9) };
            }),
            ("row 1 has a mask", |plan| plan.masked.push(1)),
            ("row 2 has a mask", |plan| plan.masked.push(2)),
            ("row 0 has a mask", |plan| plan.masked.extend([0, 0])),
            ("row 1: the log-probability of a token in flight", |plan| {
                plan.rows[1].want = Want::Each { first: 0, next: None };
            }),
        ];
        for (message, change) in broken {
            let error = check(change).expect_err(message);
            assert!(error.contains(message), "{error:?} should contain {message:?}");
        }
    }
}
