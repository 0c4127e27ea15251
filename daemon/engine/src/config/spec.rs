//! What a layer is, as data: everything downstream follows from a list of these.
//!
//! Owns: the vocabulary that architectures are described in. Must never: name a tensor, or know a device.

/// One layer: attention, then a feed-forward block, each added to the residual stream.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSpec {
    /// How its tokens see each other.
    pub attention: AttentionSpec,
    /// What each token goes through alone.
    pub ffn: Ffn,
}

/// What differs between the attention of one layer and that of another; head counts and widths do not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttentionSpec {
    /// A token sees this many tokens, itself included; `None`: all before it.
    pub window: Option<usize>,
    /// Index in [`super::ModelConfig::ropes`].
    pub rope: usize,
}

/// A feed-forward block.
#[derive(Clone, Debug, PartialEq)]
pub enum Ffn {
    /// `down(activation(gate(x)) * up(x))`.
    Dense {
        /// Width between the projections.
        width: usize,
    },
    /// A router chooses some of many such blocks for each token (Shazeer et al., 2017).
    Experts(ExpertsSpec),
}

impl Ffn {
    /// Width between the projections that one token sees.
    pub fn width(&self) -> usize {
        match self {
            Ffn::Dense { width } => *width,
            Ffn::Experts(experts) => {
                experts.chosen * experts.width + experts.shared.map_or(0, |shared| shared.width)
            }
        }
    }

    /// Width of the narrowest block in it that ranks divide.
    pub fn narrowest(&self) -> usize {
        match self {
            Ffn::Dense { width } => *width,
            Ffn::Experts(experts) => {
                experts.width.min(experts.shared.map_or(usize::MAX, |shared| shared.width))
            }
        }
    }
}

/// A mixture of experts.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertsSpec {
    /// Experts.
    pub count: usize,
    /// Experts that a token goes through.
    pub chosen: usize,
    /// Width of each expert between its projections.
    pub width: usize,
    /// How experts are chosen and weighted.
    pub router: Router,
    /// Router and experts have biases.
    pub bias: bool,
    /// A block that every token goes through as well.
    pub shared: Option<SharedExpert>,
}

/// How the router's logits become a choice of experts and their weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Router {
    /// Softmax over all experts; the highest are chosen with their probabilities.
    Softmax {
        /// The chosen probabilities are divided by their sum.
        renormalised: bool,
    },
    /// The highest logits are chosen; their weights are the softmax over them alone.
    SoftmaxOfChosen,
}

/// The block that all tokens share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedExpert {
    /// Width between its projections.
    pub width: usize,
    /// What it gives is multiplied by the sigmoid of a projection to one number.
    pub gated: bool,
}

/// What stands between the two projections of a feed-forward block, given `gate` and `up`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// `silu(gate) * up` (SwiGLU: Shazeer, 2020).
    Silu,
    /// `gelu(gate) * up`, with the approximation by tanh (Hendrycks and Gimpel, 2016).
    GeluTanh,
    /// `gate * sigmoid(1.702 gate) * (up + 1)`, with `gate` at most 7 and `up` within 7 of 0 (gpt-oss).
    ClampedSwish,
}

/// RMSNorm's places and form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NormSpec {
    /// Weights are stored less 1: `x / rms(x) * (1 + w)` (Gemma).
    pub plus_one: bool,
    /// What a block gives is normalised, too, before it is added to the residual stream (Gemma 2 and 3).
    pub after_blocks: bool,
}

/// Where projections of the attention have biases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttentionBias {
    /// On queries, keys and values.
    pub qkv: bool,
    /// On the output.
    pub output: bool,
}
