//! A loaded model and the worker's loop around it.
//!
//! Owns: submitting requests and turning the driver until they have ended. Must never: do more in the
//! loop than the worker would, or the times would be those of the benchmark.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, bail};
use minisgl_engine::config::ModelConfig;
use minisgl_engine::{Engine, EngineInfo};
use minisgl_proto::{
    Finish, Grammar, Guided, LoadOptions, Quantize, RequestId, SamplingParams, StopParams, Submit,
};
use minisgl_sched::{Driver, Event, SchedConfig, Scheduler};

use super::floor::Costs;
use super::timed::{StepRecord, Timed, Views};
use super::workload::{Tokens, Workload};
use crate::worker::{Compilers, Masks};

/// A model that is ready to run.
pub struct Session {
    driver: Driver<Timed<Engine>>,
    info: EngineInfo,
    costs: Costs,
    /// Positions of the model.
    longest: u64,
    load_s: f64,
    tokens: Tokens,
    /// Requests submitted so far, which names the next one.
    submitted: u64,
    /// What outputs may be held to.
    schema: Option<(Compilers, Guided)>,
}

/// How tokens are drawn in a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// 0 is greedy.
    pub temperature: f32,
    /// Whether outputs are held to the session's schema.
    pub held: bool,
}

impl Draw {
    /// The likeliest token of all.
    pub const GREEDY: Draw = Draw { temperature: 0.0, held: false };
}

/// What one run brought.
#[derive(Clone, Debug)]
pub struct Run {
    /// Steps, in order.
    pub steps: Vec<StepRecord>,
    /// From the submission of all requests to the last token.
    pub seconds: f64,
    /// Of each request in the order of their first tokens, from submission.
    pub first_token_s: Vec<f64>,
    /// Planning and taking in outputs, over all steps.
    pub schedule_s: f64,
    /// Requests put back into the queue for want of pages.
    pub preemptions: u64,
}

impl Run {
    /// This run and a later one as if they were one.
    pub fn then(mut self, later: Run) -> Run {
        self.steps.extend(later.steps);
        self.first_token_s.extend(later.first_token_s);
        self.seconds += later.seconds;
        self.schedule_s += later.schedule_s;
        self.preemptions += later.preemptions;
        self
    }
}

impl Session {
    /// Loads the model in `dir`.
    ///
    /// # Errors
    /// The model cannot be loaded with these options.
    pub fn load(dir: &Path, options: &LoadOptions) -> anyhow::Result<Session> {
        let started = Instant::now();
        let (engine, info) = Engine::load(dir, options, &mut |_| ())
            .with_context(|| format!("--model {} does not load", dir.display()))?;
        let load_s = started.elapsed().as_secs_f64();
        let mut scheduler = Scheduler::new(crate::worker::sched_config(options, &info))?;
        scheduler.set_crew(Masks::default());
        let config = match (ModelConfig::from_dir(dir)?, options.quantize) {
            (config, Quantize::None) => config,
            (config, Quantize::Fp8) => config.quantised_to_fp8().map_err(anyhow::Error::msg)?,
        };
        let longest = config.max_position as u64;
        let page_tokens = f64::from(info.kv_pages) * f64::from(info.page_size);
        let layers = config.layers.len() as f64 / info.groups.arrays() as f64;
        let kv_token_bytes = info.kv_bytes as f64 / page_tokens * layers;
        let costs = Costs::of(&config, info.weight_bytes, kv_token_bytes);
        Ok(Session {
            driver: Driver::new(scheduler, Timed::new(engine, Views::of(&config))),
            tokens: Tokens::new(info.vocab_size),
            info,
            costs,
            longest,
            load_s,
            submitted: 0,
            schema: None,
        })
    }

    /// From now on outputs may be held to the JSON schema in the file `path`, by the tokens of the model in `dir`.
    ///
    /// # Errors
    /// The file or the model's `tokenizer.json` cannot be read, or the schema is not served.
    pub fn set_schema(&mut self, path: &Path, dir: &Path) -> anyhow::Result<()> {
        let name = path.display();
        let schema = std::fs::read_to_string(path)
            .with_context(|| format!("--schema: cannot read {name}"))?;
        let grammar = Some(Grammar::JsonSchema { schema, lenient: false });
        let guided = Guided { grammar, thought: None, field: "--schema".to_owned() };
        let (vocab_size, stop) = (self.info.vocab_size as usize, self.info.eos_token_ids.clone());
        let compilers = Compilers::new(dir, vocab_size, stop);
        // What is wrong with it is said before anything runs.
        compilers
            .hold(&guided, &[])
            .map_err(|error| anyhow::anyhow!("--schema {name}: {error}"))?;
        self.schema = Some((compilers, guided));
        Ok(())
    }

    /// What the engine says of the model.
    pub fn info(&self) -> &EngineInfo {
        &self.info
    }

    /// What its steps cost.
    pub fn costs(&self) -> &Costs {
        &self.costs
    }

    /// How steps are planned.
    pub fn scheduling(&self) -> &SchedConfig {
        self.driver.scheduler().config()
    }

    /// Seconds that loading took.
    pub fn load_s(&self) -> f64 {
        self.load_s
    }

    /// Whether every request of `workload` gets all its tokens.
    ///
    /// # Errors
    /// One is longer than the model or the KV cache can hold.
    pub fn check_len(&self, workload: &Workload) -> anyhow::Result<()> {
        let (len, max_len) = (workload.len_max(), u64::from(self.info.max_len));
        if len > max_len {
            let remedy = match max_len < self.longest {
                true => "raise --kv-tokens, --memory-ratio or --max-len, or ask for less",
                false => {
                    "that is its context; ask for less (--tokens, --prompt, --output or the workload)"
                }
            };
            bail!("a request has {len} tokens, the model as loaded takes {max_len}: {remedy}");
        }
        Ok(())
    }

    /// Empties the prefix cache, then runs all requests of `workload` at once, with fresh prompts.
    ///
    /// # Errors
    /// A request was refused or ended early, by its schema too, or the engine broke.
    pub fn run(&mut self, workload: &Workload, draw: Draw) -> anyhow::Result<Run> {
        let now_s = self.driver.executor().now_s();
        self.driver.begin([Event::Flush], now_s)?;
        let preemptions = self.driver.scheduler_mut().stats().preemptions;
        let from = self.driver.executor().steps().len();
        let lens = workload.prompt_lens.iter().zip(&workload.output_lens);
        let mut events: Vec<Event> = lens
            .map(|(&prompt, &output)| {
                self.submitted += 1;
                let submit = Submit {
                    id: RequestId(self.submitted),
                    prompt: self.tokens.prompt(prompt),
                    generated: Vec::new(),
                    sampling: SamplingParams {
                        temperature: draw.temperature,
                        seed: self.submitted,
                        ..SamplingParams::default()
                    },
                    stop: StopParams {
                        max_tokens: output,
                        ignore_eos: true,
                        ..StopParams::default()
                    },
                    priority: 0,
                };
                match &self.schema {
                    Some((compilers, guided)) if draw.held => {
                        let held = compilers.hold(guided, &[]).map_err(anyhow::Error::msg)?;
                        Ok(Event::SubmitHeld(submit, held))
                    }
                    _ => Ok(Event::Submit(submit)),
                }
            })
            .collect::<anyhow::Result<_>>()?;
        let mut first_token_s = Vec::with_capacity(events.len());
        let (mut generated, mut schedule_s) = (0, 0.0);
        let began_s = self.driver.executor().now_s();
        let seconds = loop {
            let turn = Instant::now();
            let launched_s = self.driver.executor().launched_s();
            let now_s = self.driver.executor().now_s();
            let step = self.driver.begin(events.drain(..), now_s)?;
            // None, in a turn that launches nothing.
            let launched_s = self.driver.executor().launched_s() - launched_s;
            schedule_s += (turn.elapsed().as_secs_f64() - launched_s).max(0.0);
            let since_s = self.driver.executor().now_s() - began_s;
            for event in step.token_events {
                generated += u64::from(event.sampled.is_some());
                // Nothing but such tokens comes from then on.
                let ends = |token: u32| self.info.eos_token_ids.contains(&token);
                if draw.held && event.sampled.as_ref().is_some_and(|sampled| ends(sampled.token)) {
                    bail!(
                        "an output was all that --schema asks for before it had its tokens: ask for less (--output), or for a \
                         schema without an early end (\"minItems\")"
                    );
                }
                if event.cached_tokens.is_some() {
                    first_token_s.push(since_s);
                }
                match event.finish {
                    None | Some(Finish::Length) => {}
                    Some(finish) => bail!("request {} ended early: {finish:?}", event.id),
                }
            }
            if self.driver.is_idle() {
                break since_s;
            }
            self.driver.finish()?;
        };
        let wanted = workload.output_tokens();
        if generated != wanted {
            bail!("{generated} tokens were generated, {wanted} were asked for");
        }
        let mut steps = self.driver.executor().steps()[from..].to_vec();
        let mut before_s = began_s;
        for step in &mut steps {
            step.wall_s = step.done_s - before_s;
            before_s = step.done_s;
        }
        Ok(Run {
            steps,
            seconds,
            first_token_s,
            schedule_s,
            preemptions: self.driver.scheduler_mut().stats().preemptions - preemptions,
        })
    }
}
