//! Tokens on their way back to the host.
//!
//! Owns: the pinned memory they land in, and [`Pending`] on the GPU. Must never: make the rank wait.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::sys::{self, CUevent_flags};
use cudarc::driver::{CudaEvent, CudaSlice, CudaStream, DriverError, PinnedHostSlice};
use minisgl_proto::limits::TOP_LOGPROBS_MAX;
use minisgl_proto::{NO_TOKEN, Sampled, TokenLogprob};

use super::failed;
use super::team::FaultWords;
use crate::batch::IN_FLIGHT_MAX;
use crate::error::OpError;
use crate::ops::{OpResult, Pending};
use crate::patience::STEP_PATIENCE;

/// Most likely tokens that a row can be reported. The front asks for [`TOP_LOGPROBS_MAX`] at most; comparing whole
/// models takes more.
pub(super) const TOP_MAX: usize = 128;

/// How often it is looked whether a peer's watcher has read a step.
const POLL: Duration = Duration::from_micros(50);

const _: () = assert!(TOP_LOGPROBS_MAX as usize <= TOP_MAX);

/// Where one step's results land.
struct Landing {
    tokens: PinnedHostSlice<i32>,
    logprob: PinnedHostSlice<f32>,
    top_tokens: PinnedHostSlice<i32>,
    top_logprobs: PinnedHostSlice<f32>,
    /// Before the step's first kernel and after its last, with the time.
    began: CudaEvent,
    ended: CudaEvent,
    /// After the last copy into any of them.
    landed: CudaEvent,
}

/// What sampling writes on the GPU.
pub(super) struct Outputs {
    /// By slot, the token that it sampled last, which the next step may feed.
    pub(super) tokens: CudaSlice<i32>,
    /// By row of logits, as the rest.
    pub(super) logprob: CudaSlice<f32>,
    /// `[logit rows, TOP_MAX]`.
    pub(super) top_tokens: CudaSlice<i32>,
    pub(super) top_logprobs: CudaSlice<f32>,
    /// One more than plans in flight: one may be read while others are written.
    landings: Vec<Arc<Landing>>,
    /// Of the step in hand.
    next: Option<Arc<Landing>>,
    /// On which results leave, beside the next step's beginning.
    way_out: Arc<CudaStream>,
    /// After the last copy of the step before: what it read may be written.
    left: CudaEvent,
    /// Why a step fails that waits for another GPU.
    words: Option<FaultWords>,
    /// The driver's number of this one.
    gpu: usize,
}

/// What is wanted of a row of logits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// Of the request.
    pub(super) slot: usize,
    /// See `SamplingParams::logprobs`.
    pub(super) logprobs: Option<u32>,
    /// The token, where it is the prompt's own.
    pub(super) given: Option<u32>,
}

impl Outputs {
    pub(super) fn new(
        stream: &Arc<CudaStream>,
        (slots, logit_rows): (usize, usize),
        words: Option<FaultWords>,
    ) -> Result<Outputs, DriverError> {
        let context = stream.context();
        let landing = || -> Result<_, DriverError> {
            // SAFETY: plain numbers, which the copies write before they are read.
            let landing = unsafe {
                Landing {
                    tokens: context.alloc_pinned_with_flags(slots, 0)?,
                    logprob: context.alloc_pinned_with_flags(logit_rows, 0)?,
                    top_tokens: context.alloc_pinned_with_flags(logit_rows * TOP_MAX, 0)?,
                    top_logprobs: context.alloc_pinned_with_flags(logit_rows * TOP_MAX, 0)?,
                    began: context.new_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?,
                    ended: context.new_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?,
                    landed: context.new_event(None)?,
                }
            };
            Ok(Arc::new(landing))
        };
        Ok(Outputs {
            tokens: stream.alloc_zeros(slots)?,
            logprob: stream.alloc_zeros(logit_rows)?,
            top_tokens: stream.alloc_zeros(logit_rows * TOP_MAX)?,
            top_logprobs: stream.alloc_zeros(logit_rows * TOP_MAX)?,
            landings: (0..=IN_FLIGHT_MAX).map(|_| landing()).collect::<Result<_, _>>()?,
            next: None,
            way_out: context.new_stream()?,
            left: context.new_event(None)?,
            words,
            gpu: context.ordinal(),
        })
    }

    /// A place for the results of the step whose kernels are enqueued next.
    pub(super) fn begin(&mut self, stream: &CudaStream) -> OpResult {
        // `get_mut` also sees what the reader did before it let go; a count would not.
        let free = |landings: &mut [Arc<Landing>]| {
            let at = landings.iter_mut().position(|landing| Arc::get_mut(landing).is_some())?;
            Some(landings[at].clone())
        };
        let mut landing = free(&mut self.landings);
        // The steps of one rank are waited for before more are launched; another's watcher may lag a little.
        let deadline = Instant::now() + STEP_PATIENCE;
        while landing.is_none() && self.words.is_some() && Instant::now() < deadline {
            std::thread::sleep(POLL);
            landing = free(&mut self.landings);
        }
        let landing = landing.ok_or_else(|| {
            failed("send tokens")(format!("{} steps wait to be read", self.landings.len()))
        })?;
        stream.wait(&self.left).map_err(failed("begin the step"))?;
        landing.began.record(stream).map_err(failed("begin the step"))?;
        if let Some(words) = &self.words {
            words.begin_step();
        }
        self.next = Some(landing.clone());
        Ok(())
    }

    /// The results of the step that was begun, of whose logits `wanted` is wanted: what waits for them, and what [`Outputs::send`] takes once sampling is enqueued.
    pub(super) fn expect(&mut self, wanted: Vec<Wanted>) -> OpResult<(Box<dyn Pending>, Outgoing)> {
        let landing = self.next.take();
        let landing = landing.ok_or_else(|| failed("send tokens")("the step was not begun"))?;
        let outgoing = Outgoing {
            landing: landing.clone(),
            slots: wanted.iter().map(|wanted| wanted.slot + 1).max().unwrap_or(0),
            logit_rows: wanted.len(),
            top: wanted.iter().filter_map(|wanted| wanted.logprobs).max(),
        };
        let (words, gpu) = (self.words.clone(), self.gpu);
        Ok((Box::new(InFlight { landing, wanted, words, gpu }), outgoing))
    }

    /// Enqueues the copies of a step behind what `stream` has enqueued. The next step goes on beside them, up to where it writes
    /// results of its own.
    pub(super) fn send(&self, stream: &CudaStream, outgoing: &Outgoing) -> Result<(), DriverError> {
        let Outgoing { landing, slots, logit_rows, top } = outgoing;
        landing.ended.record(stream)?;
        let stream = &self.way_out;
        stream.wait(&landing.ended)?;
        if *logit_rows > 0 {
            copy(stream, &self.tokens, &landing.tokens, *slots)?;
        }
        if let Some(top) = *top {
            copy(stream, &self.logprob, &landing.logprob, *logit_rows)?;
            if top > 0 {
                let len = logit_rows * TOP_MAX;
                copy(stream, &self.top_tokens, &landing.top_tokens, len)?;
                copy(stream, &self.top_logprobs, &landing.top_logprobs, len)?;
            }
        }
        landing.landed.record(stream)?;
        self.left.record(stream)
    }
}

impl Drop for Outputs {
    /// Copies that are under way still write to landings.
    fn drop(&mut self) {
        // Nothing can be done about a GPU that has failed, and nothing runs on it any more.
        let _ = self.way_out.synchronize();
    }
}

/// Copies that a step ends with.
pub(super) struct Outgoing {
    landing: Arc<Landing>,
    /// Up to the last whose token is wanted.
    slots: usize,
    logit_rows: usize,
    /// The most log-probabilities that a row wants, if any does.
    top: Option<u32>,
}

/// Enqueues a copy of the first `len` elements.
fn copy<T: cudarc::driver::DeviceRepr + cudarc::driver::ValidAsZeroBits>(
    stream: &CudaStream,
    from: &CudaSlice<T>,
    to: &PinnedHostSlice<T>,
    len: usize,
) -> Result<(), DriverError> {
    assert!(len <= from.len() && len <= to.len(), "outputs are as long as the rows of a step");
    let (from, to) = (super::memory::address(from), to.as_ptr()?.cast_mut());
    let bytes = len * size_of::<T>();
    // SAFETY: both are `len` long at least. Nobody reads the pinned memory until its event has passed: no
    // step in flight holds this landing.
    unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast(), from, bytes, stream.cu_stream()) }.result()
}

/// A step whose results have not been read.
struct InFlight {
    landing: Arc<Landing>,
    wanted: Vec<Wanted>,
    words: Option<FaultWords>,
    gpu: usize,
}

impl InFlight {
    fn read(&self) -> Result<Vec<Sampled>, DriverError> {
        let landing = &self.landing;
        landing.landed.synchronize()?;
        let (tokens, logprob) = (landing.tokens.as_slice()?, landing.logprob.as_slice()?);
        let (top_tokens, top_logprobs) =
            (landing.top_tokens.as_slice()?, landing.top_logprobs.as_slice()?);
        let sampled = self.wanted.iter().enumerate().map(|(at, wanted)| {
            let token = wanted.given.unwrap_or(tokens[wanted.slot] as u32);
            if is_broken(wanted, tokens[wanted.slot], logprob[at]) {
                return Sampled { token: NO_TOKEN, logprob: None, top: Vec::new() };
            }
            let count = wanted.logprobs.map_or(0, |count| count as usize);
            let from = at * TOP_MAX..at * TOP_MAX + count;
            let top = top_tokens[from.clone()].iter().zip(&top_logprobs[from]);
            Sampled {
                token,
                logprob: wanted.logprobs.map(|_| logprob[at]),
                // Past the end of the vocabulary there is -1.
                top: top
                    .filter(|&(&token, _)| token >= 0)
                    .map(|(&token, &logprob)| TokenLogprob { token: token as u32, logprob })
                    .collect(),
            }
        });
        Ok(sampled.collect())
    }
}

/// Whether the sampler found nothing to sample from: it writes -1 for a token that it should draw, and NaN as the
/// log-probability of one that is given, which is always asked for.
fn is_broken(wanted: &Wanted, token: i32, logprob: f32) -> bool {
    if wanted.given.is_some() { logprob.is_nan() } else { token < 0 }
}

impl Pending for InFlight {
    fn is_over(&self) -> bool {
        // What fails here fails again when the tokens are read.
        !matches!(self.landing.landed.try_is_complete(), Ok(false))
    }

    fn overdue(&self, patience: Duration) -> OpError {
        let alone = || OpError {
            operation: "run the step",
            reason: format!(
                "GPU {} did not end it within {:.1} s: a kernel hangs, or the GPU does; see dmesg for Xid errors",
                self.gpu,
                patience.as_secs_f64()
            ),
        };
        self.words.as_ref().map_or_else(alone, |words| words.overdue(patience))
    }

    fn device_s(&self) -> Option<f32> {
        let elapsed_ms = self.landing.began.elapsed_ms(&self.landing.ended);
        elapsed_ms.ok().map(|elapsed_ms| elapsed_ms / 1e3)
    }

    fn wait(self: Box<Self>) -> OpResult<Vec<Sampled>> {
        self.read().map_err(|error| {
            let error = failed("run the step")(error);
            self.words.as_ref().map_or(error.clone(), |words| words.explain(error))
        })
    }
}
