//! Requests whose output follows a grammar, on their way to the scheduler, and threads that make masks.
//!
//! ```text
//!   Submit -> [ grammar threads: compile, walk what an earlier worker generated ] -> inbox -> scheduler
//! ```
//!
//! Tokens are read when the first grammar comes: most models never see one.
//!
//! Owns: when a grammar is compiled, and by whom. Must never: hold the scheduler's thread up.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SendError, Sender, SyncSender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use minisgl_grammar::{
    COMPILE_STACK_BYTES, Compiler, Limits, Outline, STEP_STACK_BYTES, Vocabulary,
};
use minisgl_proto::{Guided, RequestId, Submit};
use minisgl_sched::{Constraint, Crew, Held, Job};
use rayon::prelude::*;

use super::link::Incoming;

/// Threads that compile.
const THREADS: usize = 2;

/// The largest `tokenizer.json` that is read; those of models of 2026 have 7 to 34 MB.
const TOKENIZER_BYTES_MAX: u64 = 256 << 20;

/// Of one model.
pub struct Grammars {
    common: Arc<Common>,
    /// Submissions for the threads, once there are any.
    jobs: Option<Sender<Submit>>,
    inbox: SyncSender<Incoming>,
}

/// What all threads share.
struct Common {
    model: Compilers,
    /// On their way, and not aborted.
    pending: Mutex<HashSet<RequestId>>,
}

/// What grammars of a model become; its tokens are read when the first one comes.
pub struct Compilers {
    dir: PathBuf,
    vocab_size: usize,
    stop: Vec<u32>,
    compiler: OnceLock<Result<Compiler, String>>,
}

impl Grammars {
    /// Of the model in `dir` with so many logits, whose output ends with any of `stop`; what comes of submissions goes to `inbox`.
    pub fn new(
        dir: &Path,
        vocab_size: usize,
        stop: Vec<u32>,
        inbox: SyncSender<Incoming>,
    ) -> Grammars {
        let model = Compilers::new(dir, vocab_size, stop);
        let common = Common { model, pending: Mutex::default() };
        Grammars { common: Arc::new(common), jobs: None, inbox }
    }

    /// Takes a request that has a grammar; [`Incoming::Guided`] tells what came of it.
    ///
    /// # Errors
    /// There is no thread to be had; the request comes back.
    pub fn take(&mut self, submit: Submit) -> Result<(), Box<(Submit, String)>> {
        let jobs = match &self.jobs {
            Some(jobs) => jobs,
            None => match self.start() {
                Ok(jobs) => self.jobs.insert(jobs),
                Err(error) => {
                    return Err(Box::new((submit, format!("no thread to compile it: {error}"))));
                }
            },
        };
        let id = submit.id;
        self.common.pending().insert(id);
        jobs.send(submit).map_err(|SendError(submit)| {
            self.common.pending().remove(&id);
            Box::new((submit, "nobody compiles it any more".to_owned()))
        })
    }

    /// Whether a request is on its way no more, and so whether what came of it counts.
    pub fn settle(&mut self, id: RequestId) -> bool {
        self.common.pending().remove(&id)
    }

    /// Whether none is on its way.
    pub fn is_idle(&self) -> bool {
        self.common.pending().is_empty()
    }

    fn start(&self) -> std::io::Result<Sender<Submit>> {
        let (jobs, queue) = channel();
        let queue = Arc::new(Mutex::new(queue));
        for at in 0..THREADS {
            let (queue, inbox) = (Arc::clone(&queue), self.inbox.clone());
            let common = Arc::clone(&self.common);
            let work = move || work(&common, &queue, &inbox);
            let thread = std::thread::Builder::new().name(format!("grammar-{at}"));
            thread.stack_size(COMPILE_STACK_BYTES).spawn(work)?;
        }
        Ok(jobs)
    }
}

/// Compiles until there is nobody to ask for it.
fn work(common: &Common, queue: &Mutex<Receiver<Submit>>, inbox: &SyncSender<Incoming>) {
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(mut submit) = next else { return };
        if !common.pending().contains(&submit.id) {
            continue;
        }
        let held = catch_unwind(AssertUnwindSafe(|| match submit.sampling.guided.as_deref() {
            Some(guided) => common.model.hold(guided, &submit.generated),
            None => Err("the request has no grammar".to_owned()),
        }));
        let held = held.unwrap_or_else(|_| Err("a bug in the grammar's compiler".to_owned()));
        if let Some(guided) = &mut submit.sampling.guided {
            guided.grammar = None; // Its text may be long, and nobody reads it any more.
        }
        if inbox.send(Incoming::Guided(Box::new((submit, held)))).is_err() {
            return;
        }
    }
}

impl Common {
    fn pending(&self) -> MutexGuard<'_, HashSet<RequestId>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Compilers {
    /// Of the model in `dir` with so many logits, whose output ends with any of `stop`.
    pub fn new(dir: &Path, vocab_size: usize, stop: Vec<u32>) -> Compilers {
        Compilers { dir: dir.to_owned(), vocab_size, stop, compiler: OnceLock::new() }
    }

    /// What an output is held to by `guided`, of which there is `generated` already.
    ///
    /// # Errors
    /// The model's tokens cannot be read, or the grammar is not served; the text is for the client.
    pub fn hold(&self, guided: &Guided, generated: &[u32]) -> Result<Held, String> {
        let compiler = self.compiler.get_or_init(|| self.read()).as_ref().map_err(Clone::clone)?;
        let mut outline = compiler.outline(guided).map_err(|error| error.to_string())?;
        // What was generated before may be long; the scheduler shall not wait for it.
        outline.catch_up(generated).map_err(|error| error.to_string())?;
        Ok(Held::new(Followed(outline)))
    }

    fn read(&self) -> Result<Compiler, String> {
        let path = self.dir.join("tokenizer.json");
        let failed = |what: String| {
            format!("outputs of this model cannot be held to a grammar: {}: {what}", path.display())
        };
        let bytes = std::fs::metadata(&path).map_err(|e| failed(e.to_string()))?.len();
        if bytes > TOKENIZER_BYTES_MAX {
            return Err(failed(format!(
                "it has {bytes} bytes, the limit is {TOKENIZER_BYTES_MAX}"
            )));
        }
        let text = std::fs::read_to_string(&path).map_err(|e| failed(e.to_string()))?;
        let limits = Limits::default();
        let vocabulary = Vocabulary::read(&text, self.vocab_size, &self.stop, &limits);
        let vocabulary = vocabulary.map_err(|e| failed(e.to_string()))?;
        Ok(Compiler::new(vocabulary, limits))
    }
}

/// An outline as the scheduler asks it.
struct Followed(Outline);

impl Constraint for Followed {
    fn narrow(&mut self, output: &[u32], mask: &mut [u32]) -> Result<(), String> {
        self.0.narrow(output, mask).map_err(|error| error.to_string())
    }
}

/// Threads that make masks while the device computes, with stacks for that. They are there once there is one to make.
#[derive(Default)]
pub struct Masks(OnceLock<Option<rayon::ThreadPool>>);

impl Masks {
    /// Threads at most.
    const THREADS_MAX: usize = 16;

    /// None where there is no thread to be had.
    fn start() -> Option<rayon::ThreadPool> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = (processors / 2).clamp(1, Self::THREADS_MAX);
        let named = |at| format!("masks-{at}");
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(named);
        pool.stack_size(STEP_STACK_BYTES).build().ok()
    }
}

impl Crew for Masks {
    fn run(&self, jobs: &mut [Job<'_>]) {
        if jobs.is_empty() {
            return;
        }
        match self.0.get_or_init(Self::start) {
            Some(pool) => pool.install(|| jobs.par_iter_mut().with_max_len(1).for_each(Job::run)),
            None => jobs.iter_mut().for_each(|job| job.give_up("there is no thread to follow it")),
        }
    }
}
