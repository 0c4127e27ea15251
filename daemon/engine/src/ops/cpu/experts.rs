//! Mixtures of experts, token by token.
//!
//! Owns: the router's choice, and the order in which experts are summed: that of their weights, highest first, so
//! that a token's result depends on the token alone. Must never: look at two tokens at once, but for reading each
//! chosen expert's weights once for all of its tokens.

use pulp::Arch;

use super::elementwise::{activate, exp, sigmoid};
use super::linear::{linear, linear_rows};
use super::{CpuOps, Matrix};
use crate::config::{Activation, Router};
use crate::ops::{Experts, Shared};

/// A token's chosen expert.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Chosen {
    /// Which.
    pub expert: usize,
    /// By what its result is multiplied.
    pub weight: f32,
}

/// Chooses `count` experts by their `logits`, highest first; of equals, the first. What is not a number comes last.
pub fn choose(router: Router, logits: &[f32], count: usize) -> Vec<Chosen> {
    let key = |expert: usize| {
        let logit = logits[expert];
        if logit.is_nan() { f32::NEG_INFINITY } else { logit }
    };
    let mut order: Vec<usize> = (0..logits.len()).collect();
    // Stable: equals stay in their order.
    order.sort_by(|&a, &b| key(b).total_cmp(&key(a)));
    order.truncate(count);
    let highest = order.first().map_or(0.0, |&expert| key(expert));
    let weight = |expert: usize| exp(logits[expert] - highest);
    let total = match router {
        Router::Softmax { renormalised: false } => (0..logits.len()).map(weight).sum(),
        Router::Softmax { renormalised: true } | Router::SoftmaxOfChosen => {
            order.iter().map(|&expert| weight(expert)).sum::<f32>()
        }
    };
    order.into_iter().map(|expert| Chosen { expert, weight: weight(expert) / total }).collect()
}

/// `out[t] = sum over chosen e of weight_e down_e(activation(gate_up_e(x[t])))`, and what all tokens share, with `x`
/// and `out` of `[tokens, hidden]`.
pub fn experts(
    arch: Arch,
    activation: Activation,
    experts: &Experts<CpuOps>,
    x: &[f32],
    out: &mut [f32],
    scratch: &mut Vec<f32>,
) {
    let (count, hidden) = (experts.spec.count, experts.router.weight.inputs());
    let tokens = x.len() / hidden;
    let mut logits = vec![0.0; tokens * count];
    let bias = experts.router.bias.as_deref();
    linear(arch, &experts.router.weight, bias, x, &mut logits, scratch);
    let chosen: Vec<Vec<Chosen>> = logits
        .chunks_exact(count)
        .map(|logits| choose(experts.spec.router, logits, experts.spec.chosen))
        .collect();

    // Which tokens each expert has, and as what choice of theirs.
    let mut of_expert: Vec<Vec<(usize, usize)>> = vec![Vec::new(); count];
    for (token, chosen) in chosen.iter().enumerate() {
        for (rank, chosen) in chosen.iter().enumerate() {
            of_expert[chosen.expert].push((token, rank));
        }
    }
    let mut results = vec![0.0; tokens * experts.spec.chosen * hidden];
    for (expert, pairs) in of_expert.iter().enumerate().filter(|(_, pairs)| !pairs.is_empty()) {
        let gathered: Vec<f32> =
            pairs.iter().flat_map(|&(token, _)| &x[token * hidden..][..hidden]).copied().collect();
        let block = Block { arch, activation, expert, width: experts.width };
        let [gate_up, down] = [&experts.gate_up, &experts.down]
            .map(|stacked| (&stacked.weight, stacked.bias.as_deref()));
        let result = block.run(gate_up, down, hidden, &gathered, scratch);
        for (&(token, rank), result) in pairs.iter().zip(result.chunks_exact(hidden)) {
            results[(token * experts.spec.chosen + rank) * hidden..][..hidden]
                .copy_from_slice(result);
        }
    }
    out.fill(0.0);
    let results = results.chunks_exact(experts.spec.chosen * hidden);
    for ((out, results), chosen) in out.chunks_exact_mut(hidden).zip(results).zip(&chosen) {
        for (result, chosen) in results.chunks_exact(hidden).zip(chosen) {
            out.iter_mut().zip(result).for_each(|(out, x)| *out += chosen.weight * x);
        }
    }
    if let Some(shared) = &experts.shared {
        add_shared(arch, activation, shared, hidden, x, out, scratch);
    }
}

fn add_shared(
    arch: Arch,
    activation: Activation,
    shared: &Shared<CpuOps>,
    hidden: usize,
    x: &[f32],
    out: &mut [f32],
    scratch: &mut Vec<f32>,
) {
    let block = Block { arch, activation, expert: 0, width: shared.width };
    let [gate_up, down] =
        [&shared.gate_up, &shared.down].map(|linear| (&linear.weight, linear.bias.as_deref()));
    let result = block.run(gate_up, down, hidden, x, scratch);
    let tokens = x.len() / hidden;
    let mut gates = vec![f32::INFINITY; tokens];
    if let Some(gate) = &shared.gate {
        linear(arch, &gate.weight, gate.bias.as_deref(), x, &mut gates, scratch);
    }
    let results = result.chunks_exact(hidden);
    for ((out, result), gate) in out.chunks_exact_mut(hidden).zip(results).zip(gates) {
        let weight = sigmoid(gate);
        out.iter_mut().zip(result).for_each(|(out, x)| *out += weight * x);
    }
}

/// A matrix and what is added to its products.
type Biased<'a> = (&'a Matrix, Option<&'a [f32]>);

/// One expert's block in stacks of all experts' matrices.
struct Block {
    arch: Arch,
    activation: Activation,
    expert: usize,
    width: usize,
}

impl Block {
    fn run(
        &self,
        gate_up: Biased<'_>,
        down: Biased<'_>,
        hidden: usize,
        x: &[f32],
        scratch: &mut Vec<f32>,
    ) -> Vec<f32> {
        let tokens = x.len() / hidden;
        let part = |(weight, bias): Biased<'_>, rows: usize, x: &[f32], scratch: &mut Vec<f32>| {
            let rows = self.expert * rows..(self.expert + 1) * rows;
            let bias = bias.map(|bias| &bias[rows.clone()]);
            let mut out = vec![0.0; tokens * rows.len()];
            linear_rows(self.arch, weight, rows, bias, x, &mut out, scratch);
            out
        };
        let both = part(gate_up, 2 * self.width, x, scratch);
        let mut activated = vec![0.0; tokens * self.width];
        activate(self.arch, self.activation, &both, &mut activated, self.width);
        part(down, hidden, &activated, scratch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn experts_of(router: Router, logits: &[f32], count: usize) -> Vec<(usize, f32)> {
        choose(router, logits, count).iter().map(|chosen| (chosen.expert, chosen.weight)).collect()
    }

    #[test]
    fn the_highest_are_chosen_and_of_equals_the_first() {
        let logits = [0.0, 2.0f32.ln(), f32::NAN, 2.0f32.ln(), 4.0f32.ln()];
        let close = |got: Vec<(usize, f32)>, wanted: &[(usize, f32)]| {
            assert_eq!(got.len(), wanted.len(), "{got:?}");
            for (got, wanted) in got.iter().zip(wanted) {
                assert!(got.0 == wanted.0 && (got.1 - wanted.1).abs() < 1e-6, "{got:?} {wanted:?}");
            }
        };
        let finite = [logits[0], logits[1], logits[3], logits[4]];
        let all = Router::Softmax { renormalised: false };
        close(experts_of(all, &finite, 2), &[(3, 4.0 / 9.0), (1, 2.0 / 9.0)]);
        for router in [Router::Softmax { renormalised: true }, Router::SoftmaxOfChosen] {
            close(experts_of(router, &finite, 2), &[(3, 2.0 / 3.0), (1, 1.0 / 3.0)]);
        }
        let chosen: Vec<usize> = choose(Router::SoftmaxOfChosen, &logits, 4)
            .iter()
            .map(|chosen| chosen.expert)
            .collect();
        assert_eq!(chosen, [4, 1, 3, 0], "what is no number comes last");
    }
}
