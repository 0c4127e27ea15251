//! Mixtures of experts: a block from its norm to its sum.
//!
//! Owns: the workspaces of such a block, and which kernels run it for how many rows. Must never: ask the GPU what the
//! router chose; all that is launched depends on the number of rows alone, so that a step can be replayed.
//!
//! ```text
//!   router    up to 32 rows one launch (norm, logits, choice, plan); more: norm | logits | choice, plan
//!   experts   up to 64 rows one launch (both products, sum); more: rows brought together | two products | sum
//!   shared    gate and up | down | what its gate lets through is added
//!   ranks     the sum over them, as after any other block
//! ```

mod stack;

use cudarc::driver::{CudaSlice, CudaViewMut, DriverError};
use half::bf16;
use minisgl_kernels::gemm::{GemmArgs, GemmOut};
use minisgl_kernels::ops::{
    AddShared, Choice, EXPERTS_MAX, ExpertWeights, ExpertWeightsMxfp4, ExpertsFew, ExpertsFewMxfp4,
    ExpertsMany, ExpertsManyMxfp4, ExpertsShape, Gate, Routed, Router, RouterInput, RouterNorm,
    Score, TOP_MAX,
};
use minisgl_kernels::peers::Sum;
use minisgl_kernels::{Array, Device};

pub use self::stack::Stack;

use super::graphs::Mode;
use super::linear::{Into, gemm_rows};
use super::memory::ROW_UNIT;
use super::{Buffer, CudaOps, Team, failed};
use crate::config::{self, Activation, ExpertsSpec, Ffn, ModelConfig};
use crate::ops::{Experts, Norm, OpResult, Scratch, Shared, Stream};
use crate::scheme::Scheme;
use crate::shard::Shard;

/// Widths of the model that the kernels take.
const HIDDEN_UNIT: usize = 16;
/// Pairs of a token and an expert that an expert has on average up to which `ExpertsFew` is faster: it computes eight at a
/// time, and reads the weights again for every eight.
const FEW_EACH: usize = ExpertsFew::BATCH;

/// Rows up to which the router's own product, with the norm in it, is faster than a norm, a matrix product and a choice from
/// logits: it takes sixteen at a time.
const FUSED_ROWS: usize = 32;
const _: () = assert!(FUSED_ROWS <= Router::ROWS_MAX);

/// What lies between the kernels of a block, as large as the largest step needs it. Layers take turns.
pub(super) struct ExpertRoom {
    gate: Gate,
    kind: Kind,
    /// Rows of the router's matrix, padded.
    pub(super) router_rows: usize,
    logits: CudaSlice<f32>,
    ids: CudaSlice<i32>,
    weights: CudaSlice<f32>,
    plan: CudaSlice<i32>,
    /// Zeros between launches, as is `arrived`.
    workspace: CudaSlice<u32>,
    arrived: CudaSlice<u32>,
    act: CudaSlice<bf16>,
    y: CudaSlice<bf16>,
    shared: Option<SharedRoom>,
}

/// Of the block that all tokens share.
struct SharedRoom {
    scratch: Scratch<CudaOps>,
    activated: Buffer,
    out: Buffer,
}

/// Which kernels multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Few,
    Many,
}

/// What the experts' matrices are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    Mxfp4,
}

impl Kind {
    fn of(config: &ModelConfig) -> Kind {
        let mxfp4 = config.quantization.schemes().any(|scheme| scheme == Scheme::Mxfp4);
        if mxfp4 { Kind::Mxfp4 } else { Kind::Plain }
    }

    fn few_takes(self, device: &Device, shape: ExpertsShape, rows: usize) -> bool {
        match self {
            Kind::Plain => ExpertsFew::takes(device, shape, rows),
            Kind::Mxfp4 => ExpertsFewMxfp4::takes(device, shape, rows),
        }
    }

    fn many_takes(self, device: &Device) -> bool {
        match self {
            Kind::Plain => ExpertsMany::takes(device),
            Kind::Mxfp4 => ExpertsManyMxfp4::takes(device),
        }
    }

    /// Elements of what lies between the kernels for many rows, and of the workspace of the one for few.
    fn lens(self, shape: ExpertsShape, tokens: usize) -> [usize; 3] {
        match self {
            Kind::Plain => [
                ExpertsMany::act_len(shape, tokens),
                ExpertsMany::y_len(shape, tokens),
                ExpertsFew::WORKSPACE_LEN,
            ],
            Kind::Mxfp4 => [
                ExpertsManyMxfp4::act_len(shape, tokens),
                ExpertsManyMxfp4::y_len(shape, tokens),
                ExpertsFewMxfp4::workspace_len(shape, tokens.min(ExpertsFewMxfp4::ROWS_MAX)),
            ],
        }
    }
}

impl Way {
    /// `few_takes` says how many rows the kernel for few can have.
    fn of(shape: ExpertsShape, rows: usize, few_takes: impl Fn(usize) -> bool) -> Way {
        let few = rows * shape.top <= FEW_EACH * shape.experts && few_takes(rows);
        if few { Way::Few } else { Way::Many }
    }

    /// Pairs of a row and an expert that are computed together at most.
    fn batch(self, kind: Kind, shape: ExpertsShape, rows: usize) -> usize {
        match (self, kind) {
            (Way::Few, Kind::Plain) => ExpertsFew::BATCH,
            (Way::Few, Kind::Mxfp4) => ExpertsFewMxfp4::BATCH,
            (Way::Many, Kind::Plain) => ExpertsMany::batch(shape, rows),
            (Way::Many, Kind::Mxfp4) => ExpertsManyMxfp4::batch(shape, rows),
        }
    }
}

/// The blocks of experts that a model has.
fn specs(config: &ModelConfig) -> impl Iterator<Item = &ExpertsSpec> {
    config.layers.iter().filter_map(|layer| match &layer.ffn {
        Ffn::Experts(spec) => Some(spec),
        Ffn::Dense { .. } => None,
    })
}

/// Why this rank's part of the model's experts has no kernels, if it has none.
pub(super) fn refusal(config: &ModelConfig, shard: &Shard) -> Option<String> {
    let mut specs = specs(config);
    let spec = specs.next()?;
    if specs.any(|other| other != spec) {
        return Some("the GPU has no kernels for experts that differ between layers".to_owned());
    }
    for (name, value, limit) in
        [("experts", spec.count, EXPERTS_MAX), ("experts of a token", spec.chosen, TOP_MAX)]
    {
        if value > limit {
            return Some(format!("there are {value} {name}, the GPU's kernels end at {limit}"));
        }
    }
    if !config.hidden_size.is_multiple_of(HIDDEN_UNIT) {
        let hidden = config.hidden_size;
        return Some(format!(
            "hidden_size is {hidden}, with experts the GPU wants a multiple of {HIDDEN_UNIT}"
        ));
    }
    let shared = spec.shared.map(|shared| ("the shared expert", shared.width));
    for (name, width) in [("an expert", spec.width)].into_iter().chain(shared) {
        let part = shard.columns(width).len();
        if !part.is_multiple_of(ROW_UNIT) {
            let tp = shard.tp;
            return Some(format!(
                "a rank's part of {name} is {part} wide ({width} over tp {tp}), the GPU wants a multiple of \
                 {ROW_UNIT}: another tp may give one"
            ));
        }
    }
    None
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
    pub(super) fn new(
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
        let width = shard.columns(spec.width).len();
        let shape = ExpertsShape { experts: spec.count, top: spec.chosen, hidden, width };
        let router_rows = spec.count.next_multiple_of(ROW_UNIT);
        let few_takes = |rows| kind.few_takes(device, shape, rows);
        let [act_len, y_len, workspace_len] = kind.lens(shape, tokens);
        let plan_len = |rows| {
            let batch = Way::of(shape, rows, few_takes).batch(kind, shape, rows);
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
    pub(super) fn has_shared(&self) -> bool {
        self.shared.is_some()
    }

    /// Where the router's products of many rows go.
    pub(super) fn logits(&mut self) -> &mut CudaSlice<f32> {
        &mut self.logits
    }

    /// The experts' products, added to `out`, or written there.
    fn multiply(
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
            batch: way.batch(self.kind, shape, rows),
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
                return Err(failed("experts")("one of a layer's matrices has codes, another none"));
            }
        }
        .map_err(failed("experts"))
    }
}

impl CudaOps {
    /// A block of experts of `rows` rows; the stream has the next block's norm afterwards where ranks add up.
    pub(super) fn run_experts(
        &mut self,
        rows: usize,
        norm: &Norm<CudaOps>,
        experts: &Experts<CudaOps>,
        next: Option<&Norm<CudaOps>>,
        stream: &mut Stream<CudaOps>,
    ) -> OpResult {
        let Some(mut room) = self.experts.take() else {
            return Err(failed("experts")("there are no workspaces for them"));
        };
        let mut team = self.team.take();
        let added = self.add_experts(rows, (norm, experts), stream, &mut room, team.as_mut());
        let done = added.and_then(|()| match &mut team {
            Some(team) => self.add_over_ranks(team, rows, false, next, stream),
            None => {
                stream.changed(None);
                Ok(())
            }
        });
        (self.experts, self.team) = (Some(room), team);
        done
    }

    /// What the experts and the shared one give: onto the residual stream, or to where ranks add up.
    fn add_experts(
        &mut self,
        rows: usize,
        (norm, experts): (&Norm<CudaOps>, &Experts<CudaOps>),
        stream: &mut Stream<CudaOps>,
        room: &mut ExpertRoom,
        team: Option<&mut Team>,
    ) -> OpResult {
        let ExpertsSpec { count, chosen, .. } = experts.spec;
        let (hidden, width) = (stream.residual.width, experts.width);
        let shape = ExpertsShape { experts: count, top: chosen, hidden, width };
        let way = Way::of(shape, rows, |rows| room.kind.few_takes(&self.device, shape, rows));
        self.route(room, (way, shape, rows), (norm, experts), stream)?;
        if let (Some(room), Some(shared)) = (&mut room.shared, &experts.shared) {
            self.run_shared(room, rows, norm, shared, stream)?;
        }
        let Stream { residual, normed, .. } = stream;
        let adds = team.is_none();
        let mut out = match team {
            Some(team) => team.peers().delta(Sum::Addition).slice_mut(..rows * hidden),
            None => residual.rows_mut(rows),
        };
        room.multiply(&self.device, (way, shape, rows), experts, normed, (&mut out, adds))?;
        let (Some(room), Some(shared)) = (&room.shared, &experts.shared) else { return Ok(()) };
        let gate = shared.gate.as_ref().map(|gate| gate.weight.plain()).transpose()?;
        let gate = gate.map(|gate| gate.slice(..hidden));
        AddShared {
            x: (&normed.rows(rows)).into(),
            gate: gate.as_ref().map(Array::from),
            y: (&room.out.rows(rows)).into(),
            out: (&mut out).into(),
            rows,
            hidden,
        }
        .launch(&self.device)
        .map_err(failed("shared expert"))
    }

    /// Leaves the norm in the stream, and in the room who goes to which expert.
    fn route(
        &mut self,
        room: &mut ExpertRoom,
        (way, shape, rows): (Way, ExpertsShape, usize),
        (norm, experts): (&Norm<CudaOps>, &Experts<CudaOps>),
        stream: &mut Stream<CudaOps>,
    ) -> OpResult {
        let ExpertsShape { experts: count, top, hidden, .. } = shape;
        let router = &experts.router;
        let fused = rows <= FUSED_ROWS && hidden <= Router::HIDDEN_MAX;
        if !fused {
            self.normalise(rows, stream, norm)?;
            let m = gemm_rows(rows, stream.normed.rows);
            let n = router.weight.padded_rows();
            let (x, mut logits) = (stream.normed.rows(m), room.logits.slice_mut(..m * n));
            let product = GemmArgs {
                x: (&x).into(),
                weight: router.weight.plain()?.into(),
                bias: None,
                out: GemmOut::F32((&mut logits).into()),
                m,
                n,
                k: hidden,
            };
            self.gemm.launch(&self.device, product).map_err(failed("router"))?;
        }
        // Rows that fill a graph up go nowhere: they have no slot.
        let slots = self.inputs.kv_slots();
        let there = match self.mode {
            Mode::Eager => None,
            Mode::Padded(_) | Mode::Replay(_) => Some(slots.slice(..rows)),
        };
        let renormalise = match experts.spec.router {
            config::Router::Softmax { renormalised } => renormalised,
            config::Router::SoftmaxOfChosen => true,
        };
        let is_normed = stream.has(norm);
        let Stream { residual, normed, .. } = &mut *stream;
        let weight = router.weight.plain()?.slice(..count * hidden);
        let (x, mut to) = match is_normed {
            true => (normed.rows(rows), None),
            false => (residual.rows(rows), Some(normed.rows_mut(rows))),
        };
        let input = match fused {
            true => RouterInput::Rows {
                x: (&x).into(),
                norm: to.as_mut().map(|normed| RouterNorm {
                    weight: (&norm.weight).into(),
                    eps: self.eps,
                    normed: normed.into(),
                }),
                weight: (&weight).into(),
            },
            false => RouterInput::Logits { stride: router.weight.padded_rows() },
        };
        Router {
            input,
            bias: router.bias.as_ref().map(Array::from),
            logits: (&mut room.logits).into(),
            choice: Choice {
                score: Score::Softmax,
                renormalise,
                scale: 1.0,
                there: there.as_ref().map(Array::from),
            },
            ids: (&mut room.ids.slice_mut(..rows * top)).into(),
            weights: (&mut room.weights.slice_mut(..rows * top)).into(),
            plan: (&mut room.plan).into(),
            workspace: (&mut room.workspace).into(),
            batch: way.batch(room.kind, shape, rows),
            shape,
            rows,
        }
        .launch(&self.device)
        .map_err(failed("router"))?;
        stream.changed(Some(norm));
        Ok(())
    }

    /// What the block gives that all tokens share, before its gate.
    fn run_shared(
        &mut self,
        room: &mut SharedRoom,
        rows: usize,
        norm: &Norm<CudaOps>,
        shared: &Shared<CudaOps>,
        stream: &mut Stream<CudaOps>,
    ) -> OpResult {
        use crate::ops::Ops;

        let SharedRoom { scratch, activated, out } = room;
        self.norm_gated(rows, stream, norm, &shared.gate_up, scratch, activated)?;
        self.product(rows, &shared.down, activated, out, Into::Output)
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
