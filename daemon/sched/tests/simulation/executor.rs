//! An executor that keeps the fake KV in pages and trusts nothing it is told.

use std::collections::{HashMap, VecDeque};

use minisgl_proto::Sampled;
use minisgl_sched::{
    Executor, ExecutorError, Install, Late, Plan, SAMPLED_LAST, SchedConfig, StepOutput, Want,
    Windows, guide,
};

use crate::model::{Kv, Sampling, feed, sample, score};

struct Slot {
    install: Install,
    /// By group of layers.
    tables: Vec<Vec<u32>>,
    /// The token it sampled, and in which plan.
    sampled: Option<(u64, u32)>,
    /// Its prefix is computed: each row feeds one token.
    decodes: bool,
}

pub struct SimExecutor {
    page_size: usize,
    windows: Windows,
    chunk_tokens: usize,
    scored_max: u32,
    vocab_size: u32,
    kv: Vec<Option<Kv>>,
    slots: Vec<Option<Slot>>,
    /// The slot that each table of token counts was given to last.
    counts: Vec<Option<u32>>,
    /// With what came late.
    queue: VecDeque<(Plan, Option<Late>)>,
    /// Masks of all plans.
    masked: u64,
    /// Rows that read less than all of a window group.
    windowed: u64,
    launched: u64,
    in_flight_max: usize,
    spent: Option<Plan>,
    depths: Vec<usize>,
}

impl SimExecutor {
    pub fn new(config: &SchedConfig) -> SimExecutor {
        SimExecutor {
            page_size: config.page_size as usize,
            windows: config.windows,
            chunk_tokens: config.chunk_tokens as usize,
            scored_max: config.scored_max,
            vocab_size: config.vocab_size,
            kv: vec![None; (config.pages * config.page_size) as usize],
            slots: (0..config.max_running).map(|_| None).collect(),
            counts: vec![None; config.penalised_max as usize],
            queue: VecDeque::new(),
            masked: 0,
            windowed: 0,
            launched: 0,
            in_flight_max: if config.overlap { 2 } else { 1 },
            spent: None,
            depths: Vec::new(),
        }
    }

    pub fn in_flight(&self) -> usize {
        self.queue.len()
    }

    /// Plans in flight that lack nothing.
    pub fn ready(&self) -> usize {
        self.queue.len() - usize::from(self.is_waiting())
    }

    /// Rows that were sampled under a mask.
    pub fn masked(&self) -> u64 {
        self.masked
    }

    /// Rows that read less than all of a window group.
    pub fn windowed(&self) -> u64 {
        self.windowed
    }

    /// How many were in flight at each wait.
    pub fn depths(&self) -> &[usize] {
        &self.depths
    }

    /// A page that a row writes is in no other row's table; nor is a slot.
    fn check_conflicts(&self, plan: &Plan) {
        let mut users: HashMap<u32, usize> = HashMap::new();
        let mut written = Vec::new();
        let mut tokens = 0;
        for (i, row) in plan.rows.iter().enumerate() {
            assert!(row.len > 0);
            assert!(plan.rows[..i].iter().all(|other| other.slot != row.slot), "one row a request");
            assert_eq!(row.tokens_at as usize, tokens);
            tokens += row.len as usize;
            let end = (row.start + row.len) as usize;
            let count = end.div_ceil(self.page_size);
            let slot = self.slots[row.slot as usize].as_ref().expect("it was installed");
            for (group, table) in slot.tables.iter().enumerate() {
                let read_from = self.read_from(group, row.start) / self.page_size;
                let pages = &table[..count];
                pages[read_from..].iter().for_each(|&page| *users.entry(page).or_default() += 1);
                written.extend_from_slice(&pages[row.start as usize / self.page_size..]);
            }
        }
        assert_eq!(tokens, plan.tokens.len());
        assert!(tokens <= self.chunk_tokens, "{tokens} tokens in a step");
        let scored: u32 = plan.rows.iter().map(|row| row.scored()).sum();
        assert!(scored <= self.scored_max, "{scored} log-probabilities in a step");
        for page in written {
            assert_eq!(users[&page], 1, "page {page} is written by one row and used by another");
        }
    }

    /// First position that the layers of a group read for a row.
    fn read_from(&self, group: usize, start: u32) -> usize {
        let start = start as usize;
        if group == 0 { 0 } else { start.saturating_sub(self.windows.keep) }
    }

    /// Takes what changes in the slots.
    fn take_changes(&mut self, plan: &Plan) {
        for install in &plan.installs {
            assert_eq!(install.counts.is_some(), install.sampling.needs_history());
            if let Some(counts) = install.counts {
                self.counts[counts as usize] = Some(install.slot);
            }
            self.slots[install.slot as usize] = Some(Slot {
                install: install.clone(),
                tables: vec![Vec::new(); 1 + self.windows.groups],
                sampled: None,
                decodes: false,
            });
        }
        let mut rest = &plan.pages[..];
        for grown in &plan.grown {
            let (pages, others) = rest.split_at(grown.len as usize);
            rest = others;
            let slot = self.slots[grown.slot as usize].as_mut().expect("it was installed");
            let (table, at) = (&mut slot.tables[grown.group as usize], grown.at as usize);
            let is_first = grown.group == 0;
            assert!(table.len() >= at || !is_first, "a page table without gaps");
            // What is before the window is nobody's.
            table.resize(table.len().max(at), u32::MAX);
            assert!(!is_first || table.get(at) != pages.first(), "nothing is told twice");
            table.truncate(at);
            table.extend_from_slice(pages);
        }
        assert!(rest.is_empty());
    }

    fn run(&mut self, plan: &Plan, late: Option<&Late>) -> Vec<Sampled> {
        let mut output = Vec::new();
        let mut chunks = false;
        let words = guide::mask_words(self.vocab_size as usize);
        let mut masks = late.map_or(&[][..], |late| &late.masks).chunks_exact(words);
        assert_eq!(masks.len(), plan.masked.len(), "a mask for each row that has one");
        let mut masked = plan.masked.iter().peekable();
        for (index, row) in plan.rows.iter().enumerate() {
            let slot = self.slots[row.slot as usize].as_ref().expect("it was installed");
            let (tables, fed_back, decodes) = (slot.tables.clone(), slot.sampled, slot.decodes);
            assert!(!(decodes && chunks), "decode rows come before chunks");
            chunks |= row.len > 1 || row.want != Want::Last;
            let page_size = self.page_size;
            let place = |table: &[u32], position: usize| {
                table[position / page_size] as usize * page_size + position % page_size
            };
            let mut last = None;
            let mut all = Vec::new();
            for position in 0..row.start as usize {
                let at = place(&tables[0], position);
                let kv = self.kv[at].expect("what is read was written");
                assert_eq!(kv, feed(last, kv.token), "the page table leads to another sequence");
                last = Some(kv);
                all.push(kv);
            }
            for (group, table) in tables.iter().enumerate().skip(1) {
                let from = self.read_from(group, row.start);
                self.windowed += u64::from(from > 0);
                for (position, kv) in all.iter().enumerate().skip(from) {
                    let own = self.kv[place(table, position)];
                    assert_eq!(own, Some(*kv), "a window leads to another sequence");
                }
            }
            for n in 0..row.len as usize {
                let token = match plan.tokens[row.tokens_at as usize + n] {
                    token if token >= 0 => token as u32,
                    other => {
                        assert_eq!(other, SAMPLED_LAST);
                        let (step, token) = fed_back.expect("the slot has sampled");
                        assert_eq!(step + 1, plan.step, "what the host knows by now");
                        token
                    }
                };
                assert!(token < self.vocab_size);
                last = Some(feed(last, token));
                for table in &tables {
                    self.kv[place(table, row.start as usize + n)] = last;
                }
                let Want::Each { first, next } = row.want else { continue };
                // The row's own tokens come next, then the one it was told.
                let next =
                    match plan.tokens[row.tokens_at as usize..][..row.len as usize].get(n + 1) {
                        Some(&token) => Some(token as u32),
                        None => next,
                    };
                if let Some(next) = next.filter(|_| n >= first as usize) {
                    let slot = self.slots[row.slot as usize].as_ref().expect("it was installed");
                    let top = slot.install.sampling.prompt_logprobs.expect("it was asked for");
                    output.push(score(last.expect("just fed"), next, top));
                }
            }
            if !row.is_sampled() {
                continue;
            }
            let mask = masked.next_if(|&&at| at as usize == index).and_then(|_| masks.next());
            let allows = |token| mask.is_none_or(|mask| guide::is_allowed(mask, token));
            assert!(mask.is_none_or(|mask| mask.iter().any(|&word| word != 0)), "none is empty");
            self.masked += u64::from(mask.is_some());
            let Some(Slot { install, decodes, sampled: last_sampled, .. }) =
                &mut self.slots[row.slot as usize]
            else {
                panic!("slot {} was never installed", row.slot)
            };
            if let Some(counts) = install.counts {
                let owner = self.counts[counts as usize];
                assert_eq!(owner, Some(row.slot), "a row counts tokens in another's table");
            }
            let is_early = row.next_position() < install.banned_below;
            let sampled = sample(
                last.expect("a row feeds at least one token"),
                &Sampling {
                    params: &install.sampling,
                    history: &install.history,
                    banned: if is_early { &install.banned } else { &[] },
                    allows: &allows,
                    vocab_size: self.vocab_size,
                    position: row.next_position(),
                },
            );
            *decodes = true;
            if install.sampling.needs_history() {
                install.history.push(sampled.token);
            }
            *last_sampled = Some((plan.step, sampled.token));
            output.push(sampled);
        }
        assert!(masked.next().is_none(), "masked rows are sampled, and in order");
        output
    }

    /// The plan launched last still waits for what comes late.
    fn is_waiting(&self) -> bool {
        self.queue.back().is_some_and(|(plan, late)| !plan.masked.is_empty() && late.is_none())
    }
}

impl Executor for SimExecutor {
    fn launch(&mut self, plan: Plan) -> Result<(), ExecutorError> {
        assert_eq!(plan.step, self.launched, "plans are numbered in order");
        assert!(!plan.rows.is_empty());
        assert!(!self.is_waiting(), "the plan before has not sampled");
        self.launched += 1;
        self.queue.push_back((plan, None));
        assert!(self.queue.len() <= self.in_flight_max);
        Ok(())
    }

    fn complete(&mut self, late: Late) -> Result<(), ExecutorError> {
        assert!(self.is_waiting(), "nothing waits for {late:?}");
        let (plan, waits_for) = self.queue.back_mut().expect("it waits");
        assert_eq!(plan.step, late.step);
        *waits_for = Some(late);
        Ok(())
    }

    fn wait(&mut self) -> Result<StepOutput, ExecutorError> {
        self.depths.push(self.queue.len());
        let nothing = || ExecutorError("nothing is in flight".into());
        let (plan, late) = self.queue.pop_front().ok_or_else(nothing)?;
        self.take_changes(&plan);
        self.check_conflicts(&plan);
        let sampled = self.run(&plan, late.as_ref());
        let step = plan.step;
        self.spent = Some(plan);
        Ok(StepOutput { step, sampled, step_s: 0.25 })
    }

    fn reclaim(&mut self) -> Option<Plan> {
        self.spent.take()
    }
}
