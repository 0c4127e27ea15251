//! Matrix products with weights, through cuBLASLt.
//!
//! `out = x * weight^T (+ bias)` with x bf16 `[m, k]`, weight bf16 `[n, k]`, out bf16 or f32 `[m, n]`, and sums
//! in f32; or `out += x * weight^T` with out bf16, where some algorithms round the product before they add. Bytes moved: `2 * (m k + n k) + out`; FLOPs: `2 m n k`. With few rows bound by reading the
//! weights, with many by the matrix units.
//!
//! cuBLASLt offers several algorithms for a shape and does not always guess the best; [`Gemm::tune`] times
//! them, and for few rows also [`SkinnyGemm`], which computes the same. What it found can be kept for the next
//! start ([`Gemm::save`], [`Gemm::restore`]).

mod plan;
mod time;
mod tuned;

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use cudarc::cublaslt::result::CublasError;
use cudarc::cublaslt::{result, sys};
use cudarc::driver::sys::CUstreamCaptureStatus;
use cudarc::driver::{CudaSlice, DriverError};
use half::bf16;

use crate::array::DeviceArray;
use crate::library::{self, LibraryError};
use crate::ops::{Check, SkinnyGemm, SkinnyInput, SkinnyOut};
use crate::{Array, ArrayMut, Device, LaunchError};
use plan::{Algorithm, Plan};
use tuned::Tuned;

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
    /// What becomes of the result.
    pub kind: GemmKind,
}

/// What becomes of a product's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GemmKind {
    /// bf16, as activations are.
    Bf16,
    /// f32, as logits are.
    F32,
    /// Added to what is there, bf16.
    AddTo,
}

impl GemmKind {
    const ALL: [GemmKind; 3] = [GemmKind::Bf16, GemmKind::F32, GemmKind::AddTo];

    /// Its name on disk.
    fn name(self) -> &'static str {
        match self {
            GemmKind::Bf16 => "bf16",
            GemmKind::F32 => "f32",
            GemmKind::AddTo => "add",
        }
    }
}

/// Where the result goes.
pub enum GemmOut<'a> {
    /// Activations, `[m, n]`.
    Bf16(ArrayMut<'a, bf16>),
    /// Logits, `[m, n]`.
    F32(ArrayMut<'a, f32>),
    /// The residual stream, `[m, n]`: what is there is added to.
    AddTo(ArrayMut<'a, bf16>),
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

impl GemmArgs<'_> {
    /// What it is tuned for.
    pub fn shape(&self) -> GemmShape {
        let kind = match &self.out {
            GemmOut::Bf16(_) => GemmKind::Bf16,
            GemmOut::F32(_) => GemmKind::F32,
            GemmOut::AddTo(_) => GemmKind::AddTo,
        };
        GemmShape { m: self.m, n: self.n, k: self.k, bias: self.bias.is_some(), kind }
    }

    /// The same product with another weight, for few rows.
    fn skinny<'b>(&'b mut self, weight: Array<'b, bf16>) -> SkinnyGemm<'b> {
        let out = match &mut self.out {
            GemmOut::Bf16(out) => SkinnyOut::Bf16 { out: out.reborrow(), bias: self.bias },
            GemmOut::F32(out) => SkinnyOut::F32(out.reborrow()),
            GemmOut::AddTo(out) => SkinnyOut::AddTo(out.reborrow()),
        };
        let input = SkinnyInput::Plain(self.x);
        SkinnyGemm { input, weight, out, m: self.m, n: self.n, k: self.k }
    }
}

/// What tuning a shape found.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// Seconds of cuBLASLt's first guess.
    pub first_s: f64,
    /// Seconds of the fastest of its algorithms.
    pub best_s: f64,
    /// Seconds of [`SkinnyGemm`], for few rows.
    pub skinny_s: Option<f64>,
    /// Algorithms timed.
    pub tried: usize,
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
    /// From [`Gemm::tune`] or [`Gemm::restore`].
    tuned: HashMap<GemmShape, Tuned>,
    plans: HashMap<GemmShape, Plan>,
}

// SAFETY: a cuBLASLt handle and its descriptors may be used from any thread, by one at a time; `Gemm` is
// not Sync and hands none of them out.
unsafe impl Send for Gemm {}

/// Scratch memory that an algorithm may use: what NVIDIA advises for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;

/// Shapes prepared at most; beyond that all are forgotten and prepared anew, unless a graph is being captured.
const PLANS_MAX: usize = 4096;

/// Algorithms timed for a shape.
const CANDIDATES_MAX: usize = 16;

/// First line of what [`Gemm::save`] writes, before library version and GPU.
const SAVE_HEADER: &str = "minisgl-gemm 2";

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
        self.prepare(device, call.shape)?;
        self.run(device, &call, None)
    }

    /// Makes sure that there is a plan for `shape`.
    fn prepare(&mut self, device: &Device, shape: GemmShape) -> Result<(), GemmError> {
        if self.plans.contains_key(&shape) {
            return Ok(());
        }
        let mut plan = Plan::new(shape)?;
        if let Some(tuned) = self.tuned.get(&shape) {
            plan.algorithm = tuned.algorithm;
        } else {
            let candidates = plan.candidates(self.handle, self.workspace.len(), 1)?;
            plan.algorithm = candidates[0];
        }
        if self.plans.len() >= PLANS_MAX {
            let status =
                device.stream().capture_status().map_err(driver("looking for a capture"))?;
            // What a capture prepared is launched again in it; choosing anew could load code.
            if status == CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE {
                self.plans.clear();
            }
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

    /// Times the algorithms that cuBLASLt offers and keeps the fastest for this shape; for up to
    /// [`SkinnyGemm::ROWS_MAX`] rows [`SkinnyGemm`] too. `args` writes its output many times; `weights`, all like
    /// `args.weight`, are read in turn, so that the cache is as cold as in a model with many layers.
    ///
    /// The likely best come first; after `budget` no other algorithm is tried. One shape takes some
    /// milliseconds.
    ///
    /// # Errors
    /// See [`GemmError`].
    pub fn tune(
        &mut self,
        device: &Device,
        mut args: GemmArgs<'_>,
        weights: &[Array<'_, bf16>],
        budget: Duration,
    ) -> Result<Tuning, GemmError> {
        let began = Instant::now();
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
        self.prepare(device, shape)?;
        let plan = &self.plans[&shape];
        let candidates = plan.candidates(self.handle, self.workspace.len(), CANDIDATES_MAX)?;

        let mut first_s = None;
        let mut best = (f64::INFINITY, candidates[0]);
        let mut tried = 0;
        for algorithm in candidates {
            if first_s.is_some() && began.elapsed() > budget {
                break;
            }
            tried += 1;
            let launch = |i: usize| self.run(device, &calls[i], Some(algorithm));
            // What an algorithm promises, it does not always keep: skip what fails.
            let Ok(seconds) = time::time(device, calls.len(), best.0, launch) else { continue };
            first_s.get_or_insert(seconds);
            if seconds < best.0 {
                best = (seconds, algorithm);
            }
        }
        let none = || GemmError::Cublas {
            what: format!("run any algorithm for {shape:?}"),
            status: sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED,
        };
        let first_s = first_s.ok_or_else(none)?;
        let skinny_s = (1..=SkinnyGemm::ROWS_MAX)
            .contains(&args.m)
            .then(|| {
                time::time(device, calls.len(), f64::INFINITY, |i| {
                    let weight = if i == 0 { args.weight } else { weights[i - 1] };
                    Ok(args.skinny(weight).launch(device)?)
                })
            })
            .transpose()?;
        let nanos = |seconds: f64| (seconds * 1e9).min(f64::from(u32::MAX)) as u32;
        self.tuned.insert(
            shape,
            Tuned { algorithm: best.1, nanos: nanos(best.0), skinny_nanos: skinny_s.map(nanos) },
        );
        self.plans.remove(&shape);
        self.prepare(device, shape)?;
        Ok(Tuning { first_s, best_s: best.0, skinny_s, tried })
    }

    /// Whether [`Gemm::tune`] or [`Gemm::restore`] has an answer for `shape`.
    pub fn is_tuned(&self, shape: GemmShape) -> bool {
        self.tuned.contains_key(&shape)
    }

    /// Whether [`SkinnyGemm`] computes `shape` faster. It can do more in one launch: `saved` is what the ops cost
    /// that it would make superfluous. False where it was not timed.
    pub fn prefers_skinny(&self, shape: GemmShape, saved: Duration) -> bool {
        self.tuned.get(&shape).is_some_and(|tuned| {
            let saved = saved.as_nanos().min(u128::from(u32::MAX)) as u32;
            tuned.skinny_nanos.is_some_and(|skinny| skinny < tuned.nanos.saturating_add(saved))
        })
    }

    /// What was tuned, for [`Gemm::restore`] on the same GPU with the same library.
    pub fn save(&self, device: &Device) -> String {
        let mut lines: Vec<String> = self.tuned.iter().map(tuned::line).collect();
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
        let Some(tuned) = rest.lines().map(tuned::parse).collect::<Option<HashMap<_, _>>>() else {
            return 0;
        };
        let fits = |(shape, tuned): (GemmShape, Tuned)| {
            let plan = Plan::new(shape).ok()?;
            let algorithm = plan.check(self.handle, self.workspace.len(), tuned.algorithm)?;
            Some((shape, Tuned { algorithm, ..tuned }))
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
        // Only activations have a bias: `SkinnyGemm` is to be able to compute the same.
        check.that(bias == 0 || matches!(args.out, GemmOut::Bf16(_)), || {
            "a bias is for a bf16 output that is not added to".into()
        })?;
        let out = match &args.out {
            GemmOut::Bf16(out) | GemmOut::AddTo(out) => check.array("out", out, &[m, n])?,
            GemmOut::F32(out) => check.array("out", out, &[m, n])?,
        };
        Ok(Call {
            shape: args.shape(),
            x: check.array("x", &args.x, &[m, k])?,
            weight: check.array("weight", &args.weight, &[n, k])?,
            bias,
            out,
        })
    }
}
