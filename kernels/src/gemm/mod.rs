//! Matrix products with weights, through cuBLASLt.
//!
//! `out = x * weight^T (+ bias)` with x bf16 `[m, k]`, weight bf16 `[n, k]`, out bf16 or f32 `[m, n]`, and sums
//! in f32. Bytes moved: `2 * (m k + n k) + out`; FLOPs: `2 m n k`. With few rows bound by reading the
//! weights, with many by the matrix units.
//!
//! cuBLASLt offers several algorithms for a shape and does not always guess the best; [`Gemm::tune`] times
//! them. What it found can be kept for the next start ([`Gemm::save`], [`Gemm::restore`]).

mod plan;

use std::collections::HashMap;
use std::path::Path;

use cudarc::cublaslt::result::CublasError;
use cudarc::cublaslt::{result, sys};
use cudarc::driver::sys::{CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaGraph, CudaSlice, DriverError};
use half::bf16;

use crate::array::DeviceArray;
use crate::library::{self, LibraryError};
use crate::ops::Check;
use crate::{Array, ArrayMut, Device, LaunchError};
use plan::{Algorithm, Plan};

/// What a product is prepared for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GemmShape {
    /// Rows of x: tokens.
    pub m: usize,
    /// Rows of the weight: outputs.
    pub n: usize,
    /// Columns of both: inputs.
    pub k: usize,
    /// Whether a bias is added.
    pub bias: bool,
    /// Whether the output is f32, as logits are; otherwise bf16.
    pub f32_out: bool,
}

/// Where the result goes.
pub enum GemmOut<'a> {
    /// Activations, `[m, n]`.
    Bf16(ArrayMut<'a, bf16>),
    /// The residual stream, `[m, n]`: what is there is added to in f32, and rounded once.
    AddTo(ArrayMut<'a, bf16>),
    /// Logits, `[m, n]`.
    F32(ArrayMut<'a, f32>),
}

/// Arguments of a product.
pub struct GemmArgs<'a> {
    /// `[m, k]`.
    pub x: Array<'a, bf16>,
    /// `[n, k]`.
    pub weight: Array<'a, bf16>,
    /// `[n]`.
    pub bias: Option<Array<'a, bf16>>,
    /// `[m, n]`.
    pub out: GemmOut<'a>,
    /// Rows of x.
    pub m: usize,
    /// Rows of the weight.
    pub n: usize,
    /// Columns of both.
    pub k: usize,
}

/// A product that cannot be prepared or run.
#[derive(Debug, thiserror::Error)]
pub enum GemmError {
    /// cuBLASLt is not on this machine.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// cuBLASLt refused.
    #[error("cuBLASLt failed to {what}: {status:?}")]
    Cublas {
        /// What it was asked to do.
        what: String,
        /// Its answer.
        status: sys::cublasStatus_t,
    },
    /// The driver refused.
    #[error("the driver failed while {what}: {source}")]
    Driver {
        /// What was going on.
        what: &'static str,
        /// Its answer.
        source: DriverError,
    },
    /// The arguments do not fit together.
    #[error(transparent)]
    Argument(#[from] LaunchError),
}

/// cuBLASLt on one device, with what it prepared.
pub struct Gemm {
    handle: sys::cublasLtHandle_t,
    workspace: CudaSlice<u8>,
    /// The fastest algorithms, from [`Gemm::tune`] or [`Gemm::restore`].
    tuned: HashMap<GemmShape, Algorithm>,
    plans: HashMap<GemmShape, Plan>,
}

// SAFETY: a cuBLASLt handle and its descriptors may be used from any thread, by one at a time; `Gemm` is
// not Sync and hands none of them out.
unsafe impl Send for Gemm {}

/// Scratch memory that an algorithm may use: what NVIDIA advises for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;

/// Shapes prepared at most; beyond that all are forgotten and prepared anew.
const PLANS_MAX: usize = 4096;

/// Algorithms timed for a shape.
const CANDIDATES_MAX: usize = 16;

/// First line of what [`Gemm::save`] writes, before library version and GPU.
const SAVE_HEADER: &str = "minisgl-gemm 1";

impl Gemm {
    /// Loads cuBLASLt, from `libraries` if it is there, and allocates its workspace.
    ///
    /// # Errors
    /// The library is missing, or has no room.
    pub fn open(device: &Device, libraries: Option<&Path>) -> Result<Gemm, GemmError> {
        library::load(&library::CUBLASLT, libraries)?;
        device.stream().context().bind_to_thread().map_err(driver("binding the context"))?;
        let handle = result::create_handle().map_err(cublas(|| "start".into()))?;
        let workspace = device.stream().alloc_zeros(WORKSPACE_BYTES);
        let workspace = workspace.map_err(driver("allocating the workspace"))?;
        Ok(Gemm { handle, workspace, tuned: HashMap::new(), plans: HashMap::new() })
    }

    /// Puts `out = x * weight^T (+ bias)` onto the device's stream. The first launch of a shape asks cuBLASLt
    /// how, unless it was tuned; later ones only launch.
    ///
    /// # Errors
    /// See [`GemmError`].
    pub fn launch(&mut self, device: &Device, args: GemmArgs<'_>) -> Result<(), GemmError> {
        let call = Call::check(device, &args)?;
        if args.m == 0 {
            return Ok(());
        }
        self.prepare(call.shape)?;
        self.run(device, &call, None)
    }

    /// Makes sure that there is a plan for `shape`.
    fn prepare(&mut self, shape: GemmShape) -> Result<(), GemmError> {
        if self.plans.contains_key(&shape) {
            return Ok(());
        }
        let mut plan = Plan::new(shape)?;
        if let Some(algorithm) = self.tuned.get(&shape) {
            plan.algorithm = *algorithm;
        } else {
            let candidates = plan.candidates(self.handle, self.workspace.len(), 1)?;
            plan.algorithm = candidates[0];
        }
        if self.plans.len() >= PLANS_MAX {
            self.plans.clear();
        }
        self.plans.insert(shape, plan);
        Ok(())
    }

    fn run(
        &self,
        device: &Device,
        call: &Call,
        algorithm: Option<Algorithm>,
    ) -> Result<(), GemmError> {
        let plan = &self.plans[&call.shape];
        let stream = device.stream();
        let workspace = DeviceArray::address(&Array::from(&self.workspace));
        stream.context().bind_to_thread().map_err(driver("binding the context"))?;
        // SAFETY: `Call::check` held every array to the shape that the plan's layouts were made for,
        // and the workspace is the plan's own limit.
        unsafe {
            plan.launch(
                self.handle,
                call,
                algorithm.unwrap_or(plan.algorithm),
                (workspace, self.workspace.len()),
                stream.cu_stream(),
            )
        }
    }

    /// Times the algorithms that cuBLASLt offers and keeps the fastest for this shape. `args` writes its output
    /// many times; `weights`, all like `args.weight`, are read in turn, so that the cache is as cold
    /// as in a model with many layers. Returns seconds of the first guess and of the fastest.
    ///
    /// # Errors
    /// See [`GemmError`].
    pub fn tune(
        &mut self,
        device: &Device,
        args: GemmArgs<'_>,
        weights: &[Array<'_, bf16>],
    ) -> Result<(f64, f64), GemmError> {
        let call = Call::check(device, &args)?;
        let shape = call.shape;
        let check = Check::new("gemm", device);
        let mut calls = vec![call];
        for weight in weights {
            let weight = check.array("weight", weight, &[args.n, args.k])?;
            calls.push(Call { weight, ..call });
        }
        self.tuned.remove(&shape);
        self.plans.remove(&shape);
        self.prepare(shape)?;
        let plan = &self.plans[&shape];
        let candidates = plan.candidates(self.handle, self.workspace.len(), CANDIDATES_MAX)?;

        let mut first = None;
        let mut best = (f64::INFINITY, candidates[0]);
        for algorithm in candidates {
            // What an algorithm promises, it does not always keep: skip what fails.
            let Ok(seconds) = self.time(device, &calls, algorithm) else { continue };
            first.get_or_insert(seconds);
            if seconds < best.0 {
                best = (seconds, algorithm);
            }
        }
        let none = || GemmError::Cublas {
            what: format!("run any algorithm for {shape:?}"),
            status: sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED,
        };
        let first = first.ok_or_else(none)?;
        self.tuned.insert(shape, best.1);
        self.plans.remove(&shape);
        self.prepare(shape)?;
        Ok((first, best.0))
    }

    /// Seconds of one launch: the median of five replays of a graph of all calls, since the host would be
    /// slower than the small ones.
    fn time(
        &self,
        device: &Device,
        calls: &[Call],
        algorithm: Algorithm,
    ) -> Result<f64, GemmError> {
        let (stream, failed) = (device.stream(), || driver("timing a product"));
        let round = || calls.iter().try_for_each(|call| self.run(device, call, Some(algorithm)));
        round()?; // What the library loads lazily must not be loaded in a capture.
        stream
            .begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
            .map_err(failed())?;
        let launched = round();
        let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY;
        let graph = stream.end_capture(flags).map_err(failed())?;
        launched?;
        let replay = || graph.as_ref().map_or(Ok(()), CudaGraph::launch).map_err(failed());
        replay()?;
        let mut times = [0.0_f32; 5];
        for time in &mut times {
            let flags = Some(CUevent_flags::CU_EVENT_DEFAULT);
            let begin = stream.record_event(flags).map_err(failed())?;
            replay()?;
            let end = stream.record_event(flags).map_err(failed())?;
            *time = begin.elapsed_ms(&end).map_err(failed())?;
        }
        times.sort_by(f32::total_cmp);
        Ok(f64::from(times[2]) * 1e-3 / calls.len() as f64)
    }

    /// What was tuned, for [`Gemm::restore`] on the same GPU with the same library.
    pub fn save(&self, device: &Device) -> String {
        let mut lines: Vec<String> = self.tuned.iter().map(plan::line).collect();
        lines.sort();
        format!("{}\n{}", header(device), lines.concat())
    }

    /// Takes over what was saved; returns how many shapes. None if it is from another GPU or library, or
    /// not whole.
    pub fn restore(&mut self, device: &Device, saved: &str) -> usize {
        let Some((first, rest)) = saved.split_once('\n') else { return 0 };
        if first != header(device) {
            return 0;
        }
        let Some(tuned) = rest.lines().map(plan::parse).collect::<Option<HashMap<_, _>>>() else {
            return 0;
        };
        let fits = |(shape, algorithm): (GemmShape, Algorithm)| {
            let plan = Plan::new(shape).ok()?;
            let algorithm = plan.check(self.handle, self.workspace.len(), algorithm)?;
            Some((shape, algorithm))
        };
        let tuned: Vec<_> = tuned.into_iter().filter_map(fits).collect();
        let count = tuned.len();
        self.tuned.extend(tuned);
        self.plans.clear();
        count
    }
}

impl Drop for Gemm {
    fn drop(&mut self) {
        self.plans.clear();
        // SAFETY: nothing that was made with the handle is left.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

fn header(device: &Device) -> String {
    // SAFETY: takes nothing and returns a number; the library is loaded.
    let version = unsafe { sys::cublasLtGetVersion() };
    format!("{SAVE_HEADER} cublasLt {version} on {}", device.name())
}

fn cublas(what: impl Fn() -> String) -> impl Fn(CublasError) -> GemmError {
    move |error| GemmError::Cublas { what: what(), status: error.0 }
}

fn driver(what: &'static str) -> impl Fn(DriverError) -> GemmError {
    move |source| GemmError::Driver { what, source }
}

/// A checked call, as addresses.
#[derive(Clone, Copy)]
struct Call {
    shape: GemmShape,
    x: u64,
    weight: u64,
    bias: u64,
    out: u64,
    /// Adds to `out`.
    sum: bool,
}

impl Call {
    fn check(device: &Device, args: &GemmArgs<'_>) -> Result<Call, LaunchError> {
        let check = Check::new("gemm", device);
        let &GemmArgs { m, n, k, .. } = args;
        check.count("m", m)?;
        // Rows must start at multiples of 16 bytes, or the fast algorithms do not apply.
        check.multiple("n", n, 8)?;
        check.multiple("k", k, 8)?;
        let bias = match &args.bias {
            Some(bias) => check.array("bias", bias, &[n])?,
            None => 0,
        };
        let (f32_out, out) = match &args.out {
            GemmOut::Bf16(out) | GemmOut::AddTo(out) => (false, check.array("out", out, &[m, n])?),
            GemmOut::F32(out) => (true, check.array("out", out, &[m, n])?),
        };
        Ok(Call {
            shape: GemmShape { m, n, k, bias: bias != 0, f32_out },
            x: check.array("x", &args.x, &[m, k])?,
            weight: check.array("weight", &args.weight, &[n, k])?,
            bias,
            out,
            sum: matches!(args.out, GemmOut::AddTo(_)),
        })
    }
}
