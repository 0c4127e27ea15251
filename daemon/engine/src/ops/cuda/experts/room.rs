//! What lies between the kernels of a block of experts, and which of them multiply.
//!
//! Owns: the workspaces. Must never: allocate after it was made.

use cudarc::driver::{CudaSlice, CudaViewMut, DriverError};
use half::bf16;
use minisgl_kernels::ops::{
    ExpertMatrixFp8, ExpertWeights, ExpertWeightsFp8, ExpertWeightsMxfp4, ExpertsFew,
    ExpertsFewFp8, ExpertsFewMxfp4, ExpertsMany, ExpertsManyFp8, ExpertsManyMxfp4, ExpertsShape,
    Gate, Routed, Router,
};
use minisgl_kernels::{Array, Device};

use super::super::fp8::CODED_ROWS_MIN;
use super::super::memory::{ROW_UNIT, padded_tokens};
use super::super::{Buffer, CudaOps, failed};
use super::{Stack, specs};
use crate::config::{Activation, ModelConfig};
use crate::ops::{Experts, OpResult, Scratch};
use crate::scheme::Code;
use crate::shard::Shard;

/// What lies between the kernels of a block, as large as the largest step needs it. Layers take turns.
pub(in super::super) struct ExpertRoom {
    gate: Gate,
    pub(super) kind: Kind,
    /// Rows of the router's matrix, padded.
    pub(in super::super) router_rows: usize,
    pub(super) logits: CudaSlice<f32>,
    pub(super) ids: CudaSlice<i32>,
    pub(super) weights: CudaSlice<f32>,
    pub(super) plan: CudaSlice<i32>,
    /// Zeros between launches, as is `arrived`.
    pub(super) workspace: CudaSlice<u32>,
    arrived: CudaSlice<u32>,
    act: CudaSlice<bf16>,
    y: CudaSlice<bf16>,
    pub(super) shared: Option<SharedRoom>,
}

/// Of the block that all tokens share.
pub(super) struct SharedRoom {
    pub(super) scratch: Scratch<CudaOps>,
    pub(super) activated: Buffer,
    pub(super) out: Buffer,
}

/// Which kernels multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Few,
    Many,
}

/// What the experts' matrices are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Plain,
    Fp8,
    Mxfp4,
}

impl Kind {
    fn of(config: &ModelConfig) -> Kind {
        match config.expert_scheme().code() {
            None => Kind::Plain,
            Some(Code::E4m3) => Kind::Fp8,
            Some(Code::E2m1) => Kind::Mxfp4,
        }
    }

    /// Whether the kernel for few rows can have so many.
    fn few_takes(self, device: &Device, shape: ExpertsShape, rows: usize) -> bool {
        match self {
            Kind::Plain => ExpertsFew::takes(device, shape, rows),
            Kind::Fp8 => ExpertsFewFp8::takes(device, shape, rows),
            Kind::Mxfp4 => ExpertsFewMxfp4::takes(device, shape, rows),
        }
    }

    fn many_takes(self, device: &Device) -> bool {
        match self {
            Kind::Plain => ExpertsMany::takes(device),
            Kind::Fp8 => ExpertsManyFp8::takes(device),
            Kind::Mxfp4 => ExpertsManyMxfp4::takes(device),
        }
    }

    /// Pairs of a token and an expert that an expert has on average up to which the kernel for few rows is faster. It computes
    /// eight at a time, and reads the weights again for every eight; and codes are widened again for every eight, which takes longer
    /// than to read them. Codes of e4m3 the kernel for many rows does not widen at all.
    fn few_each(self) -> usize {
        match self {
            Kind::Plain => ExpertsFew::BATCH,
            Kind::Fp8 => 1,
            Kind::Mxfp4 => 5,
        }
    }

    /// Rows that go to the kernel for few whatever is faster.
    fn few_rows(self) -> usize {
        match self {
            Kind::Plain | Kind::Mxfp4 => 0,
            // As with dense blocks, their activations are not rounded.
            Kind::Fp8 => CODED_ROWS_MIN - 1,
        }
    }

    /// Which kernels multiply so many rows.
    pub(super) fn way(self, device: &Device, shape: ExpertsShape, rows: usize) -> Way {
        let few = (self.few_each(), self.few_rows());
        Way::of(shape, rows, few, |rows| self.few_takes(device, shape, rows))
    }

    /// Pairs of a row and an expert that are computed together at most.
    pub(super) fn batch(self, way: Way, shape: ExpertsShape, rows: usize) -> usize {
        match (way, self) {
            (Way::Few, Kind::Plain) => ExpertsFew::BATCH,
            (Way::Few, Kind::Fp8) => ExpertsFewFp8::BATCH,
            (Way::Few, Kind::Mxfp4) => ExpertsFewMxfp4::BATCH,
            (Way::Many, Kind::Plain) => ExpertsMany::batch(shape, rows),
            (Way::Many, Kind::Fp8) => ExpertsManyFp8::batch(shape, rows),
            (Way::Many, Kind::Mxfp4) => ExpertsManyMxfp4::batch(shape, rows),
        }
    }

    /// Elements between the products, of what experts give, and of the workspace of the kernel for few rows.
    fn lens(self, shape: ExpertsShape, tokens: usize) -> [usize; 3] {
        let few = tokens.min(ExpertsFewMxfp4::ROWS_MAX);
        match self {
            Kind::Plain => [
                ExpertsMany::act_len(shape, tokens),
                ExpertsMany::y_len(shape, tokens),
                ExpertsFew::WORKSPACE_LEN,
            ],
            Kind::Fp8 => [
                ExpertsManyFp8::act_len(shape, tokens),
                ExpertsManyFp8::y_len(shape, tokens),
                ExpertsFewFp8::WORKSPACE_LEN,
            ],
            Kind::Mxfp4 => [
                ExpertsManyMxfp4::act_len(shape, tokens),
                ExpertsManyMxfp4::y_len(shape, tokens),
                ExpertsFewMxfp4::workspace_len(shape, few),
            ],
        }
    }
}

impl Way {
    /// `few_each` is how many pairs of an expert are few, on average, `few_rows` how many rows are few in any case; `few_takes`
    /// says how many rows the kernel for few can have.
    fn of(
        shape: ExpertsShape,
        rows: usize,
        (few_each, few_rows): (usize, usize),
        few_takes: impl Fn(usize) -> bool,
    ) -> Way {
        let few = rows <= few_rows || rows * shape.top <= few_each * shape.experts;
        if few && few_takes(rows) { Way::Few } else { Way::Many }
    }
}

/// The kernels' word for an activation between an expert's projections.
fn gate_of(activation: Activation) -> OpResult<Gate> {
    match activation {
        Activation::Silu => Ok(Gate::Silu),
        Activation::ClampedSwish => Ok(Gate::Clamped),
        Activation::GeluTanh => Err(failed("experts")("there are no kernels for this activation")),
    }
}

impl ExpertRoom {
    /// For steps of up to `tokens` tokens; `None` if no layer has experts.
    pub(in super::super) fn new(
        device: &Device,
        config: &ModelConfig,
        shard: &Shard,
        tokens: usize,
    ) -> OpResult<Option<ExpertRoom>> {
        let Some(spec) = specs(config).next() else { return Ok(None) };
        let kind = Kind::of(config);
        if !kind.many_takes(device) {
            let (major, minor) = device.capability();
            return Err(failed("choose kernels")(format!(
                "the GPU has no kernels for experts at compute capability {major}.{minor}, only at 9.0; load with \
                 --device cpu"
            )));
        }
        let hidden = config.hidden_size;
        let width = shard.expert_columns(config, spec).len();
        let shape = ExpertsShape { experts: spec.count, top: spec.chosen, hidden, width };
        let router_rows = spec.count.next_multiple_of(ROW_UNIT);
        let [act_len, y_len, workspace_len] = kind.lens(shape, tokens);
        let plan_len = |rows| {
            let batch = kind.batch(kind.way(device, shape, rows), shape, rows);
            Routed::plan_len(shape, rows, batch)
        };
        let pairs = tokens * spec.chosen;
        let stream = device.stream();
        let memory = |error: DriverError| failed("allocate the workspaces of experts")(error);
        let bf16s = |len: usize| stream.alloc_zeros::<bf16>(len.max(1)).map_err(memory);
        let buffer = |width: usize| -> OpResult<Buffer> {
            Ok(Buffer::new(bf16s(padded_tokens(tokens) * width)?, tokens, width))
        };
        let shared = match spec.shared {
            None => None,
            Some(shared) => {
                let width = shard.columns(shared.width).len();
                Some(SharedRoom {
                    scratch: Scratch { gate_up: buffer(2 * width)? },
                    activated: buffer(width)?,
                    out: buffer(hidden)?,
                })
            }
        };
        let workspace = Router::workspace_len(shape, tokens);
        Ok(Some(ExpertRoom {
            gate: gate_of(config.activation)?,
            kind,
            router_rows,
            logits: stream.alloc_zeros((tokens * router_rows).max(1)).map_err(memory)?,
            ids: stream.alloc_zeros(pairs.max(1)).map_err(memory)?,
            weights: stream.alloc_zeros(pairs.max(1)).map_err(memory)?,
            plan: stream
                .alloc_zeros((1..=tokens).map(plan_len).max().unwrap_or(1))
                .map_err(memory)?,
            workspace: stream.alloc_zeros(workspace).map_err(memory)?,
            arrived: stream.alloc_zeros(workspace_len).map_err(memory)?,
            act: bf16s(act_len)?,
            y: bf16s(y_len)?,
            shared,
        }))
    }

    /// Whether a block that all tokens share leaves its product by itself.
    pub(in super::super) fn has_shared(&self) -> bool {
        self.shared.is_some()
    }

    /// Where the router's products of many rows go.
    pub(in super::super) fn logits(&mut self) -> &mut CudaSlice<f32> {
        &mut self.logits
    }

    /// The experts' products, added to `out`, or written there.
    pub(super) fn multiply(
        &mut self,
        device: &Device,
        (way, shape, rows): (Way, ExpertsShape, usize),
        experts: &Experts<CudaOps>,
        x: &Buffer,
        (out, adds): (&mut CudaViewMut<'_, bf16>, bool),
    ) -> OpResult {
        let pairs = rows * shape.top;
        let (ids, chosen) = (self.ids.slice(..pairs), self.weights.slice(..pairs));
        let routed = Routed {
            ids: (&ids).into(),
            weights: (&chosen).into(),
            plan: (&self.plan).into(),
            batch: self.kind.batch(way, shape, rows),
        };
        let x = x.rows(rows);
        let (x, gate, out) = ((&x).into(), self.gate, out.into());
        let (act, y) = ((&mut self.act).into(), (&mut self.y).into());
        let workspace = (&mut self.arrived).into();
        let (gate_up, down) = (&experts.gate_up, &experts.down);
        let gate_up_bias = gate_up.bias.as_ref().map(Array::from);
        let down_bias = down.bias.as_ref().map(Array::from);
        match (&gate_up.weight, &down.weight) {
            (Stack::Plain(gate_up), Stack::Plain(down)) => {
                let (gate_up, down) = (gate_up.into(), down.into());
                let weights = ExpertWeights { gate_up, down, gate_up_bias, down_bias };
                match way {
                    Way::Few => ExpertsFew {
                        x,
                        weights,
                        routed,
                        gate,
                        act,
                        out,
                        adds,
                        workspace,
                        shape,
                        rows,
                    }
                    .launch(device),
                    Way::Many => {
                        ExpertsMany { x, weights, routed, gate, act, y, out, adds, shape, rows }
                            .launch(device)
                    }
                }
            }
            (
                Stack::Fp8 { codes, scales, form },
                Stack::Fp8 { codes: down_codes, scales: down_scales, form: down_form },
            ) => {
                let gate_up =
                    ExpertMatrixFp8 { codes: codes.into(), scales: scales.into(), form: *form };
                let down = ExpertMatrixFp8 {
                    codes: down_codes.into(),
                    scales: down_scales.into(),
                    form: *down_form,
                };
                let weights = ExpertWeightsFp8 { gate_up, down, gate_up_bias, down_bias };
                match way {
                    Way::Few => ExpertsFewFp8 {
                        x,
                        weights,
                        routed,
                        gate,
                        act,
                        out,
                        adds,
                        workspace,
                        shape,
                        rows,
                    }
                    .launch(device),
                    Way::Many => {
                        ExpertsManyFp8 { x, weights, routed, gate, act, y, out, adds, shape, rows }
                            .launch(device)
                    }
                }
            }
            (Stack::Mxfp4(gate_up), Stack::Mxfp4(down)) => {
                let (gate_up, down) = (gate_up.into(), down.into());
                let weights = ExpertWeightsMxfp4 { gate_up, down, gate_up_bias, down_bias };
                match way {
                    Way::Few => ExpertsFewMxfp4 {
                        x,
                        weights,
                        routed,
                        gate,
                        act,
                        out,
                        adds,
                        workspace,
                        shape,
                        rows,
                    }
                    .launch(device),
                    Way::Many => ExpertsManyMxfp4 {
                        x,
                        weights,
                        routed,
                        gate,
                        act,
                        y,
                        out,
                        adds,
                        shape,
                        rows,
                    }
                    .launch(device),
                }
            }
            _ => {
                return Err(failed("experts")(
                    "a layer's matrices have codes of several kinds, or one of them none",
                ));
            }
        }
        .map_err(failed("experts"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_with_few_tokens_each_are_read_once() {
        let way = |kind: Kind, experts, top, rows| {
            let shape = ExpertsShape { experts, top, hidden: 64, width: 64 };
            let few = (kind.few_each(), kind.few_rows());
            Way::of(shape, rows, few, |rows| rows <= ExpertsFew::ROWS_MAX)
        };
        let few = [Way::Few, Way::Few, Way::Many];
        assert_eq!([1, 64, 65].map(|rows| way(Kind::Plain, 128, 8, rows)), few);
        assert_eq!([1, 32, 33].map(|rows| way(Kind::Plain, 8, 2, rows)), few);
        assert_eq!([1, 40, 41].map(|rows| way(Kind::Mxfp4, 32, 4, rows)), few);
        assert_eq!([1, 16, 17].map(|rows| way(Kind::Fp8, 128, 8, rows)), few);
        assert_eq!([1, 8, 9].map(|rows| way(Kind::Fp8, 8, 2, rows)), few);
    }
}
