//! Activations as e4m3, on their way into a product.
//!
//! Owns: where they are, and how they are made. Must never: multiply, or allocate once a model is loaded.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, CudaViewMut, DriverError};
use minisgl_kernels::fp8::{BLOCK, ScaleForm};
use minisgl_kernels::ops::{NarrowGemm, Quantise, QuantiseInput};

use super::linear::Input;
use super::memory::{CodesAt, padded_tokens};
use super::{CudaOps, failed};
use crate::error::OpError;
use crate::ops::OpResult;

/// Room for activations of e4m3.
pub(super) struct Quantised {
    pub(super) all: Codes,
    /// For as many tokens as [`NarrowGemm`] takes: what it makes while it reads the others.
    pub(super) few: Codes,
}

pub(super) struct Codes {
    /// `[tokens, widest inputs]`
    data: CudaSlice<u8>,
    /// For 128 columns of each token.
    scales: CudaSlice<f32>,
}

impl Quantised {
    /// For `tokens` rows of up to `inputs` columns.
    ///
    /// # Errors
    /// No memory on the device.
    pub(super) fn new(
        stream: &Arc<CudaStream>,
        tokens: usize,
        inputs: usize,
    ) -> Result<Quantised, DriverError> {
        let codes = |tokens: usize| {
            Ok(Codes {
                data: stream.alloc_zeros(tokens * inputs)?,
                scales: stream.alloc_zeros(tokens * inputs.div_ceil(BLOCK))?,
            })
        };
        Ok(Quantised { all: codes(padded_tokens(tokens))?, few: codes(NarrowGemm::ROWS_MAX)? })
    }

    pub(super) fn at(&mut self, at: CodesAt) -> &mut Codes {
        match at {
            CodesAt::All => &mut self.all,
            CodesAt::Few => &mut self.few,
        }
    }
}

impl Codes {
    /// Views of `rows` rows of `inputs` columns, and of their scales.
    pub(super) fn rows(
        &mut self,
        rows: usize,
        inputs: usize,
        form: ScaleForm,
    ) -> (CudaViewMut<'_, u8>, CudaViewMut<'_, f32>) {
        let scales_len = match form {
            ScaleForm::Block => inputs.div_ceil(BLOCK) * rows,
            ScaleForm::Row => rows,
        };
        (self.data.slice_mut(..rows * inputs), self.scales.slice_mut(..scales_len))
    }
}

pub(super) fn no_room() -> OpError {
    failed("linear")("there is no room for activations of e4m3")
}

impl CudaOps {
    /// Makes x e4m3, after its norm if it is to have one: `m` rows of `k` columns, to [`CodesAt::All`].
    pub(super) fn quantise_input(
        &mut self,
        input: &Input<'_>,
        (m, k): (usize, usize),
        form: ScaleForm,
    ) -> OpResult {
        let x = match input {
            Input::Plain(x) => x.rows(m),
            Input::Normed(stream, norm) if stream.has(norm) => stream.normed.rows(m),
            Input::Normed(stream, norm) => {
                let x = stream.residual.rows(m);
                let of = QuantiseInput::Normed {
                    x: (&x).into(),
                    weight: (&norm.weight).into(),
                    eps: self.eps,
                    plus_one: self.plus_one,
                };
                return self.quantise(of, (m, k), form);
            }
        };
        self.quantise(QuantiseInput::Plain((&x).into()), (m, k), form)
    }

    /// The same of any input.
    pub(super) fn quantise(
        &mut self,
        input: QuantiseInput<'_>,
        (rows, hidden): (usize, usize),
        form: ScaleForm,
    ) -> OpResult {
        let room = self.quantised.as_mut().ok_or_else(no_room)?;
        let (mut data, mut scales) = room.all.rows(rows, hidden, form);
        let (out, scales) = ((&mut data).into(), (&mut scales).into());
        let quantise = Quantise { input, out, scales, form, rows, hidden };
        quantise.launch(&self.device).map_err(failed("quantise"))
    }
}
