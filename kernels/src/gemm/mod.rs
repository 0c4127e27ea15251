//! Matrix products with weights, through cuBLASLt.
//!
//! `out = x * weight^T (+ bias)` with x bf16 `[m, k]`, weight bf16 `[n, k]`, out bf16 or f32 `[m, n]`, and sums
//! in f32; or `out += x * weight^T (+ bias)` with out bf16, where some algorithms round the product before they add. x and weight may
//! both be e4m3 with scales ([`Gemm::launch_fp8`]).
//! Bytes moved: `2 * (m k + n k) + out`; FLOPs: `2 m n k`. With few rows bound by reading the weights, with
//! many by the matrix units.
//!
//! cuBLASLt offers several algorithms for a shape and does not always guess the best; [`Gemm::tune`] times
//! them, and for few rows also [`SkinnyGemm`](crate::ops::SkinnyGemm), which computes the same. What it found
//! can be kept for the next start ([`Gemm::save`], [`Gemm::restore`]).

mod args;
mod plan;
mod time;
mod tune;
mod tuned;

use std::collections::HashMap;
use std::path::Path;

use cudarc::cublaslt::result::CublasError;
use cudarc::cublaslt::{result, sys};
use cudarc::driver::sys::CUstreamCaptureStatus;
use cudarc::driver::{CudaSlice, DriverError};
use half::bf16;

use crate::array::DeviceArray;
use crate::check::Check;
use crate::fp8::{BLOCK, ScaleForm};
use crate::library::{self, LibraryError};
use crate::ops::{BroadCut, Fp8Product};
use crate::{Array, Device, LaunchError};
pub use args::{Fp8GemmArgs, GemmArgs, GemmElement, GemmKind, GemmOut, GemmShape};
use plan::{Algorithm, Plan};
pub use tune::{Times, Tuning};
use tuned::Tuned;

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
    /// Of our own products of few rows of e4m3, the fastest and its nanoseconds.
    own: HashMap<GemmShape, (Fp8Product, u32)>,
    /// Nanoseconds of [`NarrowGemm`](crate::ops::NarrowGemm).
    narrow: HashMap<GemmShape, u32>,
    /// The fastest cut of [`BroadGemm`](crate::ops::BroadGemm) and its nanoseconds.
    broad: HashMap<GemmShape, (BroadCut, u32)>,
    plans: HashMap<GemmShape, Plan>,
}

// SAFETY: a cuBLASLt handle and its descriptors may be used from any thread, by one at a time; `Gemm` is
// not Sync and hands none of them out.
unsafe impl Send for Gemm {}

/// Scratch memory that an algorithm may use: what NVIDIA advises for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;

/// Shapes prepared at most; beyond that all are forgotten and prepared anew, unless a graph is being captured.
const PLANS_MAX: usize = 4096;

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
        Ok(Gemm {
            handle,
            workspace,
            tuned: HashMap::new(),
            own: HashMap::new(),
            narrow: HashMap::new(),
            broad: HashMap::new(),
            plans: HashMap::new(),
        })
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

    /// [`Gemm::launch`] of e4m3: `out = (scale * x) * (scale * weight)^T (+ bias)`.
    ///
    /// # Errors
    /// See [`GemmError`]; with scales for blocks cuBLASLt takes multiples of 4 rows only.
    pub fn launch_fp8(&mut self, device: &Device, args: Fp8GemmArgs<'_>) -> Result<(), GemmError> {
        let call = Call::check_fp8(device, &args)?;
        if args.m == 0 {
            return Ok(());
        }
        self.prepare(device, call.shape)?;
        self.run(device, &call, None)
    }

    /// Whether cuBLASLt takes `shape`; what it found out is kept for the first launch.
    ///
    /// # Errors
    /// Its refusal, as any launch would return it.
    pub fn takes(&mut self, device: &Device, shape: GemmShape) -> Result<(), GemmError> {
        check_rows(&Check::new("gemm", device), shape)?;
        self.prepare(device, shape)
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
        }?;
        device.settle().map_err(driver("running a product"))
    }
}

impl Drop for Gemm {
    fn drop(&mut self) {
        self.plans.clear();
        // SAFETY: nothing that was made with the handle is left.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
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
    /// Of x and of the weight; 0 for bf16.
    scales: (u64, u64),
    bias: u64,
    out: u64,
}

/// Tokens that scales for blocks come in: cuBLASLt's rows of scales start at multiples of 16 bytes.
const FP8_ROWS_UNIT: usize = 4;

fn check_rows(check: &Check<'_>, shape: GemmShape) -> Result<(), LaunchError> {
    let blocks = shape.element == GemmElement::Fp8(ScaleForm::Block);
    check.that(!blocks || shape.m.is_multiple_of(FP8_ROWS_UNIT), || {
        format!("m is {}, with scales for blocks it must be a multiple of {FP8_ROWS_UNIT}", shape.m)
    })
}

impl Call {
    fn check(device: &Device, args: &GemmArgs<'_>) -> Result<Call, LaunchError> {
        let check = Check::new("gemm", device);
        let &GemmArgs { m, n, k, .. } = args;
        // Rows must start at multiples of 16 bytes, or the fast algorithms do not apply.
        check.multiple("k", k, 8)?;
        let (bias, out) = Call::check_out(&check, args.shape(), args.bias.as_ref(), &args.out)?;
        Ok(Call {
            shape: args.shape(),
            x: check.array("x", &args.x, &[m, k])?,
            weight: check.array("weight", &args.weight, &[n, k])?,
            scales: (0, 0),
            bias,
            out,
        })
    }

    fn check_fp8(device: &Device, args: &Fp8GemmArgs<'_>) -> Result<Call, LaunchError> {
        let check = Check::new("gemm_fp8", device);
        let &Fp8GemmArgs { m, n, k, .. } = args;
        let shape = args.shape();
        check_rows(&check, shape)?;
        let (bias, out) = Call::check_out(&check, shape, args.bias.as_ref(), &args.out)?;
        let (weight, weight_scales) = args.weight.check(&check, n, k)?;
        let scales = match args.weight.form() {
            ScaleForm::Block => &[k.div_ceil(BLOCK), m][..],
            ScaleForm::Row => &[m][..],
        };
        let x_scales = check.array("scales of x", &args.x.scales, scales)?;
        let x = check.array("x", &args.x.data, &[m, k])?;
        Ok(Call { shape, x, weight, scales: (x_scales, weight_scales), bias, out })
    }

    /// The addresses of the bias and of the output.
    fn check_out(
        check: &Check<'_>,
        shape: GemmShape,
        bias: Option<&Array<'_, bf16>>,
        out: &GemmOut<'_>,
    ) -> Result<(u64, u64), LaunchError> {
        let GemmShape { m, n, .. } = shape;
        check.count("m", m)?;
        check.multiple("n", n, 8)?;
        let bias = match bias {
            Some(bias) => check.array("bias", bias, &[n])?,
            None => 0,
        };
        // Logits have no bias: `SkinnyGemm` is to be able to compute the same.
        check.that(bias == 0 || !matches!(out, GemmOut::F32(_)), || {
            "a bias is for a bf16 output".into()
        })?;
        let out = match out {
            GemmOut::Bf16(out) | GemmOut::AddTo(out) => check.array("out", out, &[m, n])?,
            GemmOut::F32(out) => check.array("out", out, &[m, n])?,
        };
        Ok((bias, out))
    }
}
