//! Descriptors of one shape, and algorithms for it.
//!
//! cuBLASLt thinks in columns: a row-major `[m, n]` is its column-major n x m. So the product is
//! `out^T = weight * x^T`, with the weight as the transposed first operand.

use std::ffi::c_void;

use cudarc::cublaslt::{result, sys};

use super::{Call, GemmElement, GemmError, GemmKind, GemmShape, cublas};
use crate::fp8::ScaleForm;

/// An algorithm as cuBLASLt describes it: words without pointers, good for one library version and GPU.
pub(super) type Algorithm = sys::cublasLtMatmulAlgo_t;

/// CUBLAS_OP_T of `cublas_api.h`, which cudarc's bindings of cuBLASLt leave out.
const TRANSPOSED: i32 = 1;

/// How algorithms that split k may add up: none does, or in f32 (`IN_PLACE` and `COMPUTE_TYPE`); not in the type
/// of the output, which would round every part to bf16.
const REDUCTIONS: u32 = 1 | 2;

/// Stands for the address of scales while algorithms are looked for; never read.
const SOMEWHERE: u64 = 256;

/// Everything cuBLASLt wants to know about a shape.
pub(super) struct Plan {
    shape: GemmShape,
    product: sys::cublasLtMatmulDesc_t,
    weight: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    out: sys::cublasLtMatrixLayout_t,
    /// The one to run.
    pub(super) algorithm: Algorithm,
}

impl Plan {
    /// Without an algorithm yet.
    pub(super) fn new(shape: GemmShape) -> Result<Plan, GemmError> {
        let failed = || cublas(move || format!("describe {shape:?}"));
        let (m, n, k) = (shape.m as u64, shape.n as u64, shape.k as u64);
        let bf16 = sys::cudaDataType_t::CUDA_R_16BF;
        let f32 = sys::cudaDataType_t::CUDA_R_32F;
        let out = if shape.kind == GemmKind::F32 { f32 } else { bf16 };
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        // Filled one by one, so that what exists is destroyed if the next one fails.
        let mut plan = Plan {
            shape,
            product: std::ptr::null_mut(),
            weight: std::ptr::null_mut(),
            x: std::ptr::null_mut(),
            out: std::ptr::null_mut(),
            algorithm: Algorithm { data: [0; 8] },
        };
        plan.product = result::create_matmul_desc(compute, f32).map_err(failed())?;
        let element = match shape.element {
            GemmElement::Bf16 => bf16,
            GemmElement::Fp8(_) => sys::cudaDataType_t::CUDA_R_8F_E4M3,
        };
        plan.weight = result::create_matrix_layout(element, k, n, k as i64).map_err(failed())?;
        plan.x = result::create_matrix_layout(element, k, m, k as i64).map_err(failed())?;
        plan.out = result::create_matrix_layout(out, n, m, n as i64).map_err(failed())?;
        plan.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA, TRANSPOSED)?;
        if let GemmElement::Fp8(form) = shape.element {
            use sys::cublasLtMatmulDescAttributes_t as Attribute;
            use sys::cublasLtMatmulMatrixScale_t as Scale;
            let (weight, x) = match form {
                ScaleForm::Block => (
                    Scale::CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F,
                    Scale::CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F,
                ),
                ScaleForm::Row => {
                    let row = Scale::CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
                    (row, row)
                }
            };
            plan.set(Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_MODE, weight)?;
            plan.set(Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_MODE, x)?;
            plan.set_scales((SOMEWHERE, SOMEWHERE))?;
        }
        if shape.bias {
            plan.set(
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_EPILOGUE,
                sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS,
            )?;
            plan.set(
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE,
                bf16,
            )?;
        }
        Ok(plan)
    }

    /// Where the scales of x and of the weight are.
    fn set_scales(&self, (x, weight): (u64, u64)) -> Result<(), GemmError> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        self.set(Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, weight)?;
        self.set(Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, x)
    }

    fn set<T: Copy>(
        &self,
        attribute: sys::cublasLtMatmulDescAttributes_t,
        value: T,
    ) -> Result<(), GemmError> {
        let from = std::ptr::from_ref(&value).cast::<c_void>();
        // SAFETY: the descriptor lives as long as `self`; the library copies the value.
        unsafe { result::set_matmul_desc_attribute(self.product, attribute, from, size_of::<T>()) }
            .map_err(cublas(|| format!("set {attribute:?} of {:?}", self.shape)))
    }

    /// Up to `count` algorithms, the likely fastest first; at least one.
    pub(super) fn candidates(
        &self,
        handle: sys::cublasLtHandle_t,
        workspace_bytes: usize,
        count: usize,
    ) -> Result<Vec<Algorithm>, GemmError> {
        let failed = || cublas(|| format!("find an algorithm for {:?}", self.shape));
        let preference = result::create_matmul_pref().map_err(failed())?;
        // SAFETY: all zeros is a valid value of this C struct of numbers.
        let empty: sys::cublasLtMatmulHeuristicResult_t = unsafe { std::mem::zeroed() };
        let mut found = vec![empty; count];
        let mut found_len = 0;
        // SAFETY: the descriptors live as long as `self`, the preference until it is destroyed below, and
        // `found` has room for `count` results.
        let status = unsafe {
            let attribute =
                sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            let bytes = std::ptr::from_ref(&workspace_bytes).cast::<c_void>();
            let set =
                result::set_matmul_pref_attribute(preference, attribute, bytes, size_of::<usize>());
            let attribute =
                sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK;
            let mask = std::ptr::from_ref(&REDUCTIONS).cast::<c_void>();
            let set = set.and_then(|()| {
                result::set_matmul_pref_attribute(preference, attribute, mask, size_of::<u32>())
            });
            let asked = set.and_then(|()| {
                sys::cublasLtMatmulAlgoGetHeuristic(
                    handle,
                    self.product,
                    self.weight,
                    self.x,
                    self.out,
                    self.out,
                    preference,
                    count as i32,
                    found.as_mut_ptr(),
                    &mut found_len,
                )
                .result()
            });
            let _ = result::destroy_matmul_pref(preference);
            asked
        };
        status.map_err(failed())?;
        found.truncate(found_len.max(0) as usize);
        found.retain(|one| one.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS);
        if found.is_empty() {
            return Err(failed()(result::CublasError(
                sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED,
            )));
        }
        Ok(found.iter().map(|one| one.algo).collect())
    }

    /// The algorithm, if it can run this shape here with this workspace.
    pub(super) fn check(
        &self,
        handle: sys::cublasLtHandle_t,
        workspace_bytes: usize,
        algorithm: Algorithm,
    ) -> Option<Algorithm> {
        // SAFETY: all zeros is a valid value of this C struct of numbers.
        let mut found: sys::cublasLtMatmulHeuristicResult_t = unsafe { std::mem::zeroed() };
        // SAFETY: the descriptors live as long as `self`; the library validates the algorithm.
        let status = unsafe {
            sys::cublasLtMatmulAlgoCheck(
                handle,
                self.product,
                self.weight,
                self.x,
                self.out,
                self.out,
                &algorithm,
                &mut found,
            )
        };
        let fits = status.result().is_ok() && found.workspaceSize <= workspace_bytes;
        fits.then_some(algorithm)
    }

    /// Puts the product onto the stream.
    ///
    /// # Safety
    /// The call's arrays have this plan's shape; the workspace (address, bytes) is the one that the algorithm
    /// was found for, and nothing else uses it on another stream.
    pub(super) unsafe fn launch(
        &self,
        handle: sys::cublasLtHandle_t,
        call: &Call,
        algorithm: Algorithm,
        workspace: (u64, usize),
        stream: cudarc::driver::sys::CUstream,
    ) -> Result<(), GemmError> {
        if call.scales != (0, 0) {
            self.set_scales(call.scales)?;
        }
        if call.bias != 0 {
            self.set(
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                call.bias,
            )?;
        }
        let alpha = 1.0_f32;
        let beta = if self.shape.kind == GemmKind::AddTo { 1.0_f32 } else { 0.0 };
        // SAFETY: the caller's promise; alpha and beta are read before the call returns.
        unsafe {
            result::matmul(
                handle,
                self.product,
                std::ptr::from_ref(&alpha).cast(),
                std::ptr::from_ref(&beta).cast(),
                call.weight as *const c_void,
                self.weight,
                call.x as *const c_void,
                self.x,
                call.out as *const c_void,
                self.out,
                call.out as *mut c_void,
                self.out,
                &algorithm,
                workspace.0 as *mut c_void,
                workspace.1,
                stream.cast(),
            )
        }
        .map_err(cublas(|| format!("run {:?}", self.shape)))
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        for layout in [self.weight, self.x, self.out] {
            if !layout.is_null() {
                // SAFETY: made in `new`, and used by nothing after.
                let _ = unsafe { result::destroy_matrix_layout(layout) };
            }
        }
        if !self.product.is_null() {
            // SAFETY: as above.
            let _ = unsafe { result::destroy_matmul_desc(self.product) };
        }
    }
}
