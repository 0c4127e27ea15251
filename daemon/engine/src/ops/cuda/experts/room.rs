//! What lies between the kernels of a block of experts, and which of them multiply.
//!
//! Owns: the workspaces. Must never: allocate after it was made.

use cudarc::driver::{CudaSlice, CudaViewMut, DriverError};
use half::bf16;
use minisgl_kernels::ops::{
    ExpertWeights, ExpertsFew, ExpertsMany, ExpertsShape, Gate, Routed, Router,
};
use minisgl_kernels::{Array, Device};

use super::super::memory::ROW_UNIT;
use super::super::{Buffer, CudaOps, failed};
use super::{Stack, specs};
use crate::config::{Activation, ModelConfig};
use crate::ops::{Experts, OpResult, Scratch};
use crate::shard::Shard;

/// Pairs of a token and an expert that an expert has on average up to which `ExpertsFew` is faster: it computes eight at a
/// time, and reads the weights again for every eight.
const FEW_EACH: usize = ExpertsFew::BATCH;

/// What lies between the kernels of a block, as large as the largest step needs it. Layers take turns.
pub(in super::super) struct ExpertRoom {
    gate: Gate,
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

impl Way {
    /// `few_takes` says how many rows the kernel for few can have.
    pub(super) fn of(shape: ExpertsShape, rows: usize, few_takes: impl Fn(usize) -> bool) -> Way {
        let few = rows * shape.top <= FEW_EACH * shape.experts && few_takes(rows);
        if few { Way::Few } else { Way::Many }
    }

    /// Pairs of a row and an expert that are computed together at most.
    pub(super) fn batch(self, shape: ExpertsShape, rows: usize) -> usize {
        match self {
            Way::Few => ExpertsFew::BATCH,
            Way::Many => ExpertsMany::batch(shape, rows),
        }
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
        if !ExpertsMany::takes(device) {
            let (major, minor) = device.capability();
            return Err(failed("choose kernels")(format!(
                "the GPU has no kernels for experts at compute capability {major}.{minor}, only at 9.0; load with \
                 --device cpu"
            )));
        }
        let hidden = config.hidden_size;
        let width = shard.columns(spec.width).len();
        let shape = ExpertsShape { experts: spec.count, top: spec.chosen, hidden, width };
        let router_rows = spec.count.next_multiple_of(ROW_UNIT);
        let few_takes = |rows| ExpertsFew::takes(device, shape, rows);
        let plan_len = |rows| {
            let batch = Way::of(shape, rows, few_takes).batch(shape, rows);
            Routed::plan_len(shape, rows, batch)
        };
        let pairs = tokens * spec.chosen;
        let stream = device.stream();
        let memory = |error: DriverError| failed("allocate the workspaces of experts")(error);
        let bf16s = |len: usize| stream.alloc_zeros::<bf16>(len.max(1)).map_err(memory);
        let buffer = |width: usize| -> OpResult<Buffer> {
            Ok(Buffer { data: bf16s(tokens * width)?, rows: tokens, width })
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
            router_rows,
            logits: stream.alloc_zeros((tokens * router_rows).max(1)).map_err(memory)?,
            ids: stream.alloc_zeros(pairs.max(1)).map_err(memory)?,
            weights: stream.alloc_zeros(pairs.max(1)).map_err(memory)?,
            plan: stream
                .alloc_zeros((1..=tokens).map(plan_len).max().unwrap_or(1))
                .map_err(memory)?,
            workspace: stream.alloc_zeros(workspace).map_err(memory)?,
            arrived: stream.alloc_zeros(ExpertsFew::WORKSPACE_LEN).map_err(memory)?,
            act: bf16s(ExpertsMany::act_len(shape, tokens))?,
            y: bf16s(ExpertsMany::y_len(shape, tokens))?,
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
        let (Stack::Plain(gate_up), Stack::Plain(down)) =
            (&experts.gate_up.weight, &experts.down.weight);
        let weights = ExpertWeights {
            gate_up: gate_up.into(),
            down: down.into(),
            gate_up_bias: experts.gate_up.bias.as_ref().map(Array::from),
            down_bias: experts.down.bias.as_ref().map(Array::from),
        };
        let pairs = rows * shape.top;
        let (ids, chosen) = (self.ids.slice(..pairs), self.weights.slice(..pairs));
        let routed = Routed {
            ids: (&ids).into(),
            weights: (&chosen).into(),
            plan: (&self.plan).into(),
            batch: way.batch(shape, rows),
        };
        let x = x.rows(rows);
        let (gate, out) = (self.gate, out.into());
        match way {
            Way::Few => ExpertsFew {
                x: (&x).into(),
                weights,
                routed,
                gate,
                act: (&mut self.act).into(),
                out,
                adds,
                workspace: (&mut self.arrived).into(),
                shape,
                rows,
            }
            .launch(device),
            Way::Many => ExpertsMany {
                x: (&x).into(),
                weights,
                routed,
                gate,
                act: (&mut self.act).into(),
                y: (&mut self.y).into(),
                out,
                adds,
                shape,
                rows,
            }
            .launch(device),
        }
        .map_err(failed("experts"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_with_few_tokens_each_are_read_once() {
        let way = |experts, top, rows| {
            let shape = ExpertsShape { experts, top, hidden: 64, width: 64 };
            Way::of(shape, rows, |rows| rows <= ExpertsFew::ROWS_MAX)
        };
        assert_eq!([1, 64, 65].map(|rows| way(128, 8, rows)), [Way::Few, Way::Few, Way::Many]);
        assert_eq!([1, 32, 33].map(|rows| way(8, 2, rows)), [Way::Few, Way::Few, Way::Many]);
    }
}
