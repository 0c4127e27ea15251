//! The other end: checks every event of every request against what it would get alone.

use std::collections::{HashMap, VecDeque};

use minisgl_proto::{Finish, Reject, RequestId, Sampled, Submit, TokenEvent};
use minisgl_sched::SchedConfig;

use crate::held;
use crate::model::{Kv, Sampling, feed, sample, score};

struct Expected {
    submit: Submit,
    /// Prompt and the tokens received.
    tokens: Vec<u32>,
    last: Option<Kv>,
    /// Log-probabilities of the prompt that are still to come.
    scores: VecDeque<Sampled>,
    stops: Vec<u32>,
    max_total: usize,
    aborted: bool,
    /// Another worker goes on with it.
    resumed: bool,
}

pub struct Client {
    config: SchedConfig,
    alive: HashMap<RequestId, Expected>,
    pub finished: u64,
    /// Of the worker that lives.
    pub tokens: u64,
    pub scores: u64,
    pub all_tokens: u64,
    pub cached_tokens: u64,
    /// Requests that had ruled every token out.
    pub stuck: u64,
    /// Requests whose rule ended.
    pub ended_rules: u64,
}

impl Client {
    pub fn new(config: SchedConfig) -> Client {
        Client {
            config,
            alive: HashMap::new(),
            finished: 0,
            tokens: 0,
            scores: 0,
            all_tokens: 0,
            cached_tokens: 0,
            stuck: 0,
            ended_rules: 0,
        }
    }

    pub fn alive(&self) -> usize {
        self.alive.len()
    }

    /// Tokens that requests may still get.
    pub fn tokens_left(&self) -> usize {
        self.alive.values().map(|e| e.max_total.saturating_sub(e.tokens.len())).sum()
    }

    pub fn limit(&self) -> usize {
        if self.config.windows.groups > 0 {
            return self.config.len_limit();
        }
        let pool = self.config.pages as usize * self.config.page_size as usize;
        (self.config.max_len as usize).min(pool + 1)
    }

    pub fn submitted(&mut self, submit: &Submit) {
        let eos: &[u32] = if submit.stop.ignore_eos { &[] } else { &self.config.eos_token_ids };
        let expected = Expected {
            tokens: submit.prompt.clone(),
            scores: expected_scores(submit),
            last: submit.prompt.iter().fold(None, |kv, &token| Some(feed(kv, token))),
            stops: [eos, &submit.stop.stop_token_ids].concat(),
            max_total: self.limit().min(submit.prompt.len() + submit.stop.max_tokens as usize),
            submit: submit.clone(),
            aborted: false,
            resumed: false,
        };
        assert!(self.alive.insert(submit.id, expected).is_none());
    }

    /// The worker is dead. What another one is to go on with, in order of arrival; nobody waits for what was
    /// aborted.
    pub fn resume(&mut self) -> Vec<Submit> {
        self.alive.retain(|_, expected| !expected.aborted);
        self.tokens = 0;
        let submits = self.alive.values_mut().map(|expected| {
            expected.resumed = true;
            let generated = expected.tokens[expected.submit.prompt.len()..].to_vec();
            let mut submit = Submit { generated, ..expected.submit.clone() };
            let (prompt, scores_left) = (submit.prompt.len(), expected.scores.len());
            submit.sampling.prompt_logprobs_from = (prompt - scores_left) as u32;
            submit.sampling.prompt_logprobs =
                submit.sampling.prompt_logprobs.filter(|_| scores_left > 0);
            submit
        });
        let mut submits: Vec<Submit> = submits.collect();
        submits.sort_by_key(|submit| submit.id);
        submits
    }

    pub fn aborted(&mut self, id: RequestId) {
        if let Some(expected) = self.alive.get_mut(&id) {
            expected.aborted = true;
        }
    }

    pub fn receive(&mut self, event: &TokenEvent) {
        let Some(expected) = self.alive.get_mut(&event.id) else {
            panic!("an event after the end: {event:?}")
        };
        let mut finish = None;
        for scored in &event.prompt_logprobs {
            let expected = expected.scores.pop_front();
            assert_eq!(Some(scored), expected.as_ref(), "request {}: its prompt's score", event.id);
            self.scores += 1;
        }
        if let Some(sampled) = &event.sampled {
            self.tokens += 1;
            assert!(expected.scores.is_empty(), "all scores come before or with the first token");
            self.all_tokens += 1;
            let generated = expected.tokens.len() - expected.submit.prompt.len();
            let min_tokens = expected.submit.stop.min_tokens as usize;
            let is_early = generated < min_tokens;
            let output = &expected.tokens[expected.submit.prompt.len()..];
            let params = &expected.submit.sampling;
            let allows = |token: u32| may_come(&expected.submit, output, token);
            let alone = sample(
                expected.last.expect("the prompt has a token"),
                &Sampling {
                    params,
                    history: &expected.tokens,
                    banned: if is_early { &expected.stops } else { &[] },
                    allows: &allows,
                    vocab_size: self.config.vocab_size,
                    position: expected.tokens.len() as u32,
                },
            );
            assert_eq!(sampled, &alone, "request {} gets something else than alone", event.id);
            assert!(
                !(is_early && expected.stops.contains(&sampled.token)),
                "an end before its time"
            );
            expected.last = Some(feed(expected.last, sampled.token));
            expected.tokens.push(sampled.token);
            let is_first = generated == 0;
            assert_eq!(event.cached_tokens.is_some(), is_first);
            assert_eq!(event.queue_s.is_some(), is_first);
            if let Some(cached) = event.cached_tokens {
                assert!((cached as usize) < expected.submit.prompt.len());
                assert_eq!(cached % self.config.page_size, 0);
                self.cached_tokens += u64::from(cached);
            }
            if !is_early && expected.stops.contains(&sampled.token) {
                finish = Some(Finish::Stop);
            } else if expected.tokens.len() == expected.max_total {
                finish = Some(Finish::Length);
            }
        }
        match &event.finish {
            Some(Finish::Aborted) => assert!(expected.aborted),
            Some(Finish::Rejected(reject)) => {
                assert!(event.sampled.is_none());
                assert!(!expected.resumed || is_late(reject), "it was taken in before");
                let submit = &expected.submit;
                match reject {
                    Reject::QueueFull { limit } => assert_eq!(*limit, self.config.max_waiting),
                    Reject::TooLong { prompt, limit } => {
                        assert_eq!(*prompt as usize, submit.prompt.len());
                        assert!(prompt > limit);
                    }
                    Reject::Empty => assert!(submit.prompt.is_empty()),
                    Reject::BadToken { token, .. } => assert!(*token >= self.config.vocab_size),
                    Reject::NothingAllowed { .. } => {
                        let output = &expected.tokens[submit.prompt.len()..];
                        let is_early = output.len() < submit.stop.min_tokens as usize;
                        let may = |token: u32| {
                            may_come(submit, output, token)
                                && !(is_early && expected.stops.contains(&token))
                        };
                        assert!(!(0..self.config.vocab_size).any(may), "{submit:?} can go on");
                        self.stuck += u64::from(!output.is_empty());
                    }
                    Reject::Grammar { field, reason } => {
                        assert_eq!(field, "rule");
                        let rule = held::rule_of(submit).expect("it is held to one");
                        let output = &expected.tokens[submit.prompt.len()..];
                        assert_eq!(*reason, format!("rule {rule} ended"));
                        let follows = |token| held::follows(rule, output, token);
                        assert!(!(0..self.config.vocab_size).any(follows), "{submit:?}");
                        self.ended_rules += 1;
                    }
                    Reject::TooMany { .. } => panic!("within the limits: {submit:?}"),
                    Reject::Draining => {}
                }
            }
            Some(Finish::Length) if event.sampled.is_none() => {
                assert_eq!(expected.submit.stop.max_tokens, 0);
                assert!(expected.scores.is_empty(), "its prompt is scored to the end");
                let ran = !event.prompt_logprobs.is_empty();
                assert_eq!((event.cached_tokens.is_some(), event.queue_s.is_some()), (ran, ran));
            }
            other => assert_eq!(*other, finish, "request {}", event.id),
        }
        if event.finish.is_some() {
            self.alive.remove(&event.id);
            self.finished += 1;
        }
    }
}

/// What it gets for its prompt.
fn expected_scores(submit: &Submit) -> VecDeque<Sampled> {
    let Some(top) = submit.sampling.prompt_logprobs else { return VecDeque::new() };
    let mut last = None;
    let mut scores = VecDeque::new();
    for (position, &token) in submit.prompt.iter().enumerate() {
        if let Some(last) =
            last.filter(|_| position >= submit.sampling.prompt_logprobs_from as usize)
        {
            scores.push_back(score(last, token, top));
        }
        last = Some(feed(last, token));
    }
    scores
}

/// Whether it may be said to a request that was taken in before.
fn is_late(reject: &Reject) -> bool {
    matches!(reject, Reject::Draining | Reject::NothingAllowed { .. } | Reject::Grammar { .. })
}

/// What the parameters say of a token after `output`, spelled out.
fn may_come(submit: &Submit, output: &[u32], token: u32) -> bool {
    let params = &submit.sampling;
    let follows = held::rule_of(submit).is_none_or(|rule| held::follows(rule, output, token));
    let is_allowed =
        params.allowed_token_ids.is_empty() || params.allowed_token_ids.contains(&token);
    let with = [output, &[token]].concat();
    follows && is_allowed && !params.bad_words.iter().any(|word| with.ends_with(word))
}
