//! Mixtures of experts: a block from its norm to its sum.
//!
//! Owns: the order of what is launched, and which models there are kernels for. Must never: ask the GPU what the
//! router chose; all that is launched depends on the number of rows alone, so that a step can be replayed.
//!
//! ```text
//!   router    up to 32 rows one launch (norm, logits, choice, plan); more: norm | logits | choice, plan
//!   experts   few rows one launch (both products, sum); more: rows brought together | two products | sum
//!   shared    gate and up | down | what its gate lets through is added
//!   ranks     the sum over them, as after any other block
//! ```

mod room;
mod scales;
mod stack;

use minisgl_kernels::Array;
use minisgl_kernels::gemm::{GemmArgs, GemmOut};
use minisgl_kernels::ops::{
    AddShared, Choice, EXPERTS_MAX, ExpertsShape, Router, RouterInput, RouterNorm, Score, TOP_MAX,
};
use minisgl_kernels::peers::Sum;

pub(super) use self::room::ExpertRoom;
use self::room::{SharedRoom, Way};
pub use self::stack::Stack;

use super::graphs::Mode;
use super::linear::{Into, gemm_rows};
use super::memory::ROW_UNIT;
use super::{CudaOps, Team, failed};
use crate::config::{self, ExpertsSpec, Ffn, ModelConfig, NormSpec, SharedExpert};
use crate::ops::{Experts, Norm, OpResult, Shared, Stream};
use crate::shard::{Shard, expert_unit};

/// Widths of the model that the kernels take.
const HIDDEN_UNIT: usize = 16;
/// Rows up to which the router's own product, with the norm in it, is faster than a norm, a matrix product and a choice from
/// logits: it takes sixteen at a time.
const FUSED_ROWS: usize = 32;
const _: () = assert!(FUSED_ROWS <= Router::ROWS_MAX);

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
    if config.norms != NormSpec::default() {
        return Some(
            "the GPU has no kernels for experts beside norms after blocks, or with weights less 1"
                .to_owned(),
        );
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
    let (unit, tp) = (expert_unit(config), shard.tp);
    if spec.width.div_ceil(unit) < tp {
        return Some(format!(
            "an expert is {} wide, of which {unit} columns share a scale, and the GPU cannot divide those over tp {tp}: a \
             smaller tp may do",
            spec.width
        ));
    }
    let shared = |shared: SharedExpert| {
        ("the shared expert", shared.width, shard.columns(shared.width).len())
    };
    let own = ("an expert", spec.width, shard.expert_columns(config, spec).len());
    for (name, width, part) in [own].into_iter().chain(spec.shared.map(shared)) {
        if !part.is_multiple_of(ROW_UNIT) {
            return Some(format!(
                "a rank's part of {name} is {part} wide ({width} over tp {tp}), the GPU wants a multiple of \
                 {ROW_UNIT}: another tp may give one"
            ));
        }
    }
    None
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
            Some(team) => self.add_over_ranks(team, rows, next, stream),
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
        let way = room.kind.way(&self.device, shape, rows);
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
        let slots = self.inputs.kv_slots(0);
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
            batch: room.kind.batch(way, shape, rows),
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
        self.norm_gated(rows, stream, norm, [&shared.gate_up, &shared.down], scratch, activated)?;
        self.product(rows, &shared.down, activated, out, Into::Output)
    }
}
