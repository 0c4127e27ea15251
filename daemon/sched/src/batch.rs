//! Building a plan: the rows of the requests that decode, of those that prefill, and of newly admitted
//! ones, in this order.
//!
//! Owns: the token budget of a step, and who is preempted for whom. Each running decode has one
//! token of the budget for certain; what is left is for prefill chunks, in the order of rank.

use crate::guide::{Stuck, all, mask_words, push_all};
use crate::held::Job;
use crate::plan::{Grown, Late, Plan, Row, SAMPLED_LAST, Want};
use crate::request::Request;
use crate::requests::Key;
use crate::scheduler::{InFlight, Scheduler, Wanted};

/// A plan being built.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) plan: Plan,
    /// Whose logits are wanted, in the order of rows.
    pub(crate) wanted: Vec<Wanted>,
    /// Whose rows are sampled under a mask, in the order of rows.
    pub(crate) masked: Vec<Key>,
    /// Whose rows compute tokens that were known when they were admitted.
    pub(crate) prefilled: Vec<Key>,
    pub(crate) prefill_tokens: usize,
    /// Tokens that prefill chunks may still take.
    pub(crate) budget: usize,
    /// Prompt tokens whose log-probabilities it may still report.
    pub(crate) scores: usize,
    /// Someone did not get all the pages it could have used.
    pub(crate) pages_short: bool,
}

impl Draft {
    /// A chunk of `len` tokens of `request` is planned.
    pub(crate) fn take(&mut self, request: &Request, len: usize) {
        self.budget -= len;
        self.scores -= request.scored_by(request.computed + len);
    }
}

impl Scheduler {
    /// The next plan, or `None` if no request has anything to feed.
    pub(crate) fn plan(&mut self, now_s: f64) -> Option<Plan> {
        let decoding = self.running.iter().filter(|&&key| self.requests[key].is_decoding()).count();
        let rows = self.running.len() + 1;
        let mut draft = Draft {
            plan: self.blank_plan(),
            wanted: Vec::with_capacity(rows),
            masked: Vec::new(),
            prefilled: Vec::new(),
            prefill_tokens: 0,
            budget: self.config.chunk_tokens as usize - decoding,
            scores: self.config.scored_max as usize,
            pages_short: false,
        };
        self.plan_running(&mut draft);
        if !draft.pages_short {
            self.admit(&mut draft, now_s);
        }
        // Only now, so that no row of this plan reads or reuses a page that another one writes.
        for &key in &draft.prefilled {
            let request = &mut self.requests[key];
            let Some(running) = &mut request.running else { continue };
            let computed = request.computed.min(request.tokens.len());
            let kept = self.cache.publish(&mut running.table, &request.tokens[..computed]);
            running.told = running.told.min(kept);
            self.admission_blocked = false;
        }
        let Draft { plan, wanted, masked, prefill_tokens, .. } = draft;
        if plan.rows.is_empty() {
            self.recycle(plan);
            return None;
        }
        self.in_flight.push_back(InFlight {
            step: plan.step,
            rows: plan.rows.len() as u32,
            prefill_tokens: prefill_tokens as u32,
            wanted,
            masked,
        });
        self.plans += 1;
        Some(plan)
    }

    /// An empty plan, with the memory of one that has run if there is one.
    fn blank_plan(&mut self) -> Plan {
        let mut plan = self.spare.pop().unwrap_or_default();
        plan.step = self.plans;
        plan.installs.clear();
        plan.rows.clear();
        plan.tokens.clear();
        plan.grown.clear();
        plan.pages.clear();
        plan.masked.clear();
        plan
    }

    /// The masks that the oldest plan in flight waits for, if it does: all that they depend on is known.
    pub(crate) fn late(&mut self) -> Option<Late> {
        let oldest = self.in_flight.front_mut().filter(|plan| !plan.masked.is_empty())?;
        let (step, rows) = (oldest.step, std::mem::take(&mut oldest.masked));
        let vocab_size = self.config.vocab_size as usize;
        let words = mask_words(vocab_size);
        let mut masks = Vec::with_capacity(rows.len() * words);
        let guided = |key: Key| {
            let request = self.requests.get(key)?;
            Some((request, request.guide.as_ref()?))
        };
        for &key in &rows {
            match guided(key) {
                Some((request, guide)) => guide.push_mask(request.output(), &mut masks),
                // It has ended, and what its row samples means nothing.
                None => push_all(vocab_size, &mut masks),
            }
        }
        let job = |(&key, mask)| {
            let (request, guide) = guided(key)?;
            let job = Job { held: guide.held()?, output: request.output(), mask, stuck: None };
            Some((key, job))
        };
        let (keys, mut jobs): (Vec<Key>, Vec<Job<'_>>) =
            rows.iter().zip(masks.chunks_exact_mut(words)).filter_map(job).unzip();
        self.crew.run(&mut jobs);
        let ended = keys.into_iter().zip(jobs.into_iter().map(|job| job.stuck));
        let mut stuck: Vec<(Key, Stuck)> =
            ended.filter_map(|(key, reason)| Some((key, Stuck::Held(reason?)))).collect();
        // Whatever is sampled where nothing may come fails the request.
        for (&key, mask) in rows.iter().zip(masks.chunks_exact_mut(words)) {
            if mask.iter().all(|&word| word == 0) {
                mask.copy_from_slice(&all(vocab_size));
                stuck.push((key, Stuck::Together));
            }
        }
        for (key, why) in stuck {
            let request = self.requests.get_mut(key);
            if let Some(guide) = request.and_then(|request| request.guide.as_mut()) {
                guide.get_stuck(why);
            }
        }
        Some(Late { step, masks })
    }

    /// Rows for the running requests: those that decode, then those that prefill, each by rank. Pages
    /// are handed out by rank over both; whoever is preempted comes after the one that needs its
    /// pages, so it has no row in this plan.
    fn plan_running(&mut self, draft: &mut Draft) {
        let mut prefilling = Vec::new();
        let mut at = 0;
        while let Some(&key) = self.running.get(at) {
            let request = &self.requests[key];
            let is_decoding = request.is_decoding();
            let chunk = || (request.feed_end(draft.scores) - request.computed).min(draft.budget);
            let wanted = if is_decoding { 1 } else { chunk() };
            let granted = if wanted == 0 { 0 } else { self.make_room(key, wanted, draft) };
            if is_decoding && granted > 0 {
                self.push_row(key, granted, draft);
            } else if granted > 0 {
                draft.take(&self.requests[key], granted);
                prefilling.push((key, granted));
            }
            at += 1;
        }
        for (key, granted) in prefilling {
            self.push_row(key, granted, draft);
        }
    }

    /// Gets the pages for the next `wanted` tokens of a running request. A chunk is cut to the
    /// pages there are; if there is none at all, the last request is preempted. Returns the number
    /// of tokens there is room for, 0 if the request was itself the last.
    fn make_room(&mut self, key: Key, wanted: usize, draft: &mut Draft) -> usize {
        let page_size = self.cache.page_size();
        loop {
            let request = &mut self.requests[key];
            let computed = request.computed;
            let table = &mut request.running.as_mut().expect("it is planned, so it runs").table;
            // Whatever plans before this one read has been read when this one writes.
            self.cache.slide(table, computed);
            let have = table.pages().len();
            let lacking = (computed + wanted).div_ceil(page_size) - have;
            if lacking == 0 || self.cache.grow(table, lacking) {
                return wanted;
            }
            draft.pages_short = true;
            let available = self.cache.available() / self.cache.groups();
            let room = (have + available) * page_size - computed;
            if room > 0 {
                let grown = self.cache.grow(table, available);
                assert!(grown, "available pages can be had");
                return room;
            }
            let is_last = self.running.last() == Some(&key);
            self.preempt_last();
            if is_last {
                return 0;
            }
        }
    }

    /// Appends the row that feeds the next `len` tokens of a running request, for which its page
    /// table has room.
    pub(crate) fn push_row(&mut self, key: Key, len: usize, draft: &mut Draft) {
        let request = &mut self.requests[key];
        let Draft { plan, wanted, masked, .. } = draft;
        let (start, end) = (request.computed, request.computed + len);
        let sampled = end == request.total();
        let known = end.min(request.tokens.len());
        let scored = request.scored_by(end);
        let want = match (scored, sampled) {
            (0, false) => Want::Nothing,
            (0, true) => Want::Last,
            _ => Want::Each {
                first: (request.next_scored - 1 - start) as u32,
                next: (!sampled).then(|| request.tokens[end]),
            },
        };
        let running = request.running.as_mut().expect("it is planned, so it runs");
        plan.rows.push(Row {
            slot: running.slot,
            start: start as u32,
            len: len as u32,
            tokens_at: plan.tokens.len() as u32,
            want,
        });
        plan.tokens.extend(request.tokens[start.min(known)..known].iter().map(|&t| t as i32));
        if end > known {
            plan.tokens.push(SAMPLED_LAST);
        }
        let untold = running.told..running.table.pages().len();
        if !untold.is_empty() {
            for group in 0..self.cache.groups() {
                // Before the window nothing is read, so that nothing is told.
                let start = if group > 0 { running.table.live() } else { 0 }.max(untold.start);
                let (slot, group, at) = (running.slot, group as u32, start as u32);
                plan.grown.push(Grown { slot, group, at, len: (untold.end - start) as u32 });
                plan.pages.extend(&running.table.group(group as usize)[start..untold.end]);
            }
            running.told = untold.end;
        }
        if start < request.prefix_len {
            draft.prefilled.push(key);
            draft.prefill_tokens += len;
        }
        if sampled {
            request.pending += 1;
        }
        if sampled && request.guide.is_some() {
            plan.masked.push(plan.rows.len() as u32 - 1);
            masked.push(key);
        }
        if want != Want::Nothing {
            wanted.push(Wanted { key, scored: scored as u32, sampled });
        }
        request.next_scored += scored;
        request.pending_scores += scored;
        request.computed = end;
    }

    /// Pages that a running request still lacks for the tokens it is to feed before it samples.
    pub(crate) fn lacking_pages(&self, request: &Request) -> usize {
        let have = request.running.as_ref().map_or(0, |running| running.table.held());
        let (total, row) = (request.total(), request.total() - request.computed);
        self.config.pages_for(total, row).saturating_sub(have)
    }
}
