//! Which tensors make up each layer, and which part of each a rank has.
//!
//! Owns: the names of a checkpoint's tensors, for every architecture. Must never: read a weight, or know a device:
//! whoever reads is a [`Reader`].

mod home;

use std::ops::Range;

use super::reader::{Piece, Reader, Vector};
use crate::config::{Architecture, ExpertsSpec, Ffn, LayerSpec, ModelConfig};
use crate::ops::{
    Attention, Experts, HeadNorms, Linear, Norm, NormId, Shared, StackOf, StackShape, Stacked,
    Storage,
};
use crate::rope;
use crate::scheme::Scheme;
use crate::weights::Part;
use home::Home;

/// A rank's weights.
pub struct Weights<S: Storage> {
    /// `[vocab, hidden]`, this rank's rows.
    pub embedding: S::Matrix,
    /// In order.
    pub layers: Vec<Layer<S>>,
    /// Before the head.
    pub norm: Norm<S>,
    /// `None` where the embedding is the head too.
    pub head: Option<S::Matrix>,
}

/// A layer's weights.
pub struct Layer<S: Storage> {
    /// Before the attention.
    pub attention_norm: Norm<S>,
    /// Queries, keys, values.
    pub qkv: Linear<S>,
    /// Between the projections.
    pub attention: Attention<S>,
    /// The output projection.
    pub o: Linear<S>,
    /// After the attention.
    pub after_attention: Option<Norm<S>>,
    /// Before the feed-forward block.
    pub ffn_norm: Norm<S>,
    /// The feed-forward block.
    pub ffn: FfnWeights<S>,
    /// After the feed-forward block.
    pub after_ffn: Option<Norm<S>>,
}

/// A feed-forward block's weights.
pub enum FfnWeights<S: Storage> {
    /// One block.
    Dense {
        /// Gate, then up projection.
        gate_up: Linear<S>,
        /// Back to the residual stream.
        down: Linear<S>,
    },
    /// Many blocks, of which tokens take some.
    Experts(Box<Experts<S>>),
}

/// Asks `reader` for everything that the model has, in the order of the forward pass.
///
/// # Errors
/// Those of `reader`.
pub fn layout<R: Reader>(
    config: &ModelConfig,
    reader: &mut R,
) -> Result<Weights<R::Store>, R::Error> {
    let (vocab, hidden) = (config.vocab_size, config.hidden_size);
    let rows = reader.shard().vocab.clone();
    let table = |name: &str| [Piece::rows(name, &[vocab, hidden], rows.clone())];
    let mut layout = Layout { config, reader, norms: 0 };
    let embedding = layout.reader.matrix(&table("model.embed_tokens.weight"), hidden)?;
    let layers = config.layers.iter().enumerate();
    Ok(Weights {
        embedding,
        layers: layers.map(|(index, spec)| layout.layer(index, spec)).collect::<Result<_, _>>()?,
        norm: layout.norm("model.norm.weight")?,
        head: match config.tie_word_embeddings {
            true => None,
            false => {
                let scheme = config.quantization.scheme_of("lm_head");
                let [head] = table("lm_head.weight");
                Some(layout.reader.matrix(&[head.stored_by(scheme)], hidden)?)
            }
        },
    })
}

/// A block's projection into the middle, and the one back.
type Halves<R> = (Linear<<R as Reader>::Store>, Linear<<R as Reader>::Store>);

/// The same of every expert.
type StackedHalves<R> = (Stacked<<R as Reader>::Store>, Stacked<<R as Reader>::Store>);

/// What attention is made of: its projections, and what stands between them.
type Parts<R> =
    (Linear<<R as Reader>::Store>, Attention<<R as Reader>::Store>, Linear<<R as Reader>::Store>);

struct Layout<'a, R: Reader> {
    config: &'a ModelConfig,
    reader: &'a mut R,
    /// Asked for so far.
    norms: u32,
}

impl<R: Reader> Layout<'_, R> {
    fn layer(&mut self, index: usize, spec: &LayerSpec) -> Result<Layer<R::Store>, R::Error> {
        let at = format!("model.layers.{index}");
        let after = self.config.norms.after_blocks;
        // Gemma's names say where a norm stands, the others' what it stands before.
        let (after_attention, ffn_norm) = match after {
            true => (Some("post_attention_layernorm"), "pre_feedforward_layernorm"),
            false => (None, "post_attention_layernorm"),
        };
        let after_ffn = after.then_some("post_feedforward_layernorm");
        let attention_norm = self.norm(&format!("{at}.input_layernorm.weight"))?;
        let (qkv, attention, o) = self.attention(&at, index, spec)?;
        let mut optional = |name: Option<&str>| {
            name.map(|name| self.norm(&format!("{at}.{name}.weight"))).transpose()
        };
        let after_attention = optional(after_attention)?;
        let ffn_norm = self.norm(&format!("{at}.{ffn_norm}.weight"))?;
        let ffn = match &spec.ffn {
            Ffn::Dense { width } => {
                let (gate_up, down) = self.dense(&format!("{at}.mlp"), *width)?;
                FfnWeights::Dense { gate_up, down }
            }
            Ffn::Experts(experts) => FfnWeights::Experts(Box::new(self.experts(&at, experts)?)),
        };
        let after_ffn =
            after_ffn.map(|name| self.norm(&format!("{at}.{name}.weight"))).transpose()?;
        Ok(Layer { attention_norm, qkv, attention, o, after_attention, ffn_norm, ffn, after_ffn })
    }

    fn norm(&mut self, name: &str) -> Result<Norm<R::Store>, R::Error> {
        let id = NormId(self.norms);
        self.norms += 1;
        Ok(Norm { id, weight: self.norm_weight(name, self.config.hidden_size)? })
    }

    fn norm_weight(&mut self, name: &str, len: usize) -> Result<Vector<R>, R::Error> {
        let piece = Piece::vector(name, len);
        match self.config.norms.plus_one {
            true => self.reader.vector_plus_one(&piece),
            false => self.reader.vector(&[piece]),
        }
    }

    fn attention(
        &mut self,
        at: &str,
        layer: usize,
        spec: &LayerSpec,
    ) -> Result<Parts<R>, R::Error> {
        let ModelConfig { hidden_size: hidden, heads, kv_heads, head_dim, .. } = *self.config;
        let config = self.config;
        let shard = self.reader.shard().clone();
        let whole = |heads: &Range<usize>| heads.start * head_dim..heads.end * head_dim;
        let q_rows = whole(&shard.heads);
        let rope = &config.ropes[spec.attention.rope];
        let turned = |heads: &Range<usize>| rope::rows(rope, head_dim, heads.clone());
        let rows = [turned(&shard.heads), turned(&shard.kv_heads), vec![whole(&shard.kv_heads)]];
        let heights = [heads, kv_heads, kv_heads].map(|heads| heads * head_dim);
        let homes = self.homes(&format!("{at}.self_attn"), ["q", "k", "v"], "qkv", heights);
        let pieces = |what: &str, tail: &[usize]| -> Vec<Piece> {
            let of = |(home, rows): (&Home, &Vec<Range<usize>>)| -> Vec<Piece> {
                rows.iter().map(|rows| self.rows_of(home, what, tail, rows)).collect()
            };
            homes.iter().zip(&rows).flat_map(of).collect()
        };
        let weight = pieces("weight", &[hidden]);
        let bias = if config.attention_bias.qkv { pieces("bias", &[]) } else { Vec::new() };
        let qkv = self.reader.linear(&weight, &bias, hidden)?;
        let norms = match config.qk_norm {
            true => Some(HeadNorms {
                query: self.norm_weight(&format!("{at}.self_attn.q_norm.weight"), head_dim)?,
                key: self.norm_weight(&format!("{at}.self_attn.k_norm.weight"), head_dim)?,
            }),
            false => None,
        };
        let sinks = match config.sinks {
            true => {
                let name = format!("{at}.self_attn.sinks");
                Some(self.reader.vector(&[Piece::rows(name, &[heads], shard.heads.clone())])?)
            }
            false => None,
        };
        let inputs = q_rows.len();
        let module = format!("{at}.self_attn.o_proj");
        let name = |what: &str| format!("{module}.{what}");
        let o = Piece::cols(name("weight"), &[hidden, heads * head_dim], q_rows)
            .stored_by(config.quantization.scheme_of(&module));
        let bias = match config.attention_bias.output {
            true => vec![Piece::vector(name("bias"), hidden)],
            false => Vec::new(),
        };
        let o = self.summed(&[o], &bias, inputs)?;
        let spec = spec.attention.clone();
        Ok((qkv, Attention { layer, spec, norms, sinks }, o))
    }

    /// A projection whose outputs are summed over ranks: rank 0 adds the bias.
    fn summed(
        &mut self,
        weight: &[Piece],
        bias: &[Piece],
        inputs: usize,
    ) -> Result<Linear<R::Store>, R::Error> {
        let bias = if self.reader.shard().rank == 0 { bias } else { &[] };
        self.reader.linear(weight, bias, inputs)
    }

    /// Gate and up projection, and the one back, of a dense block of `width`.
    fn dense(&mut self, at: &str, width: usize) -> Result<Halves<R>, R::Error> {
        let hidden = self.config.hidden_size;
        let columns = self.columns(width);
        let homes = self.homes(at, ["gate", "up"], "gate_up", [width; 2]);
        let gate_up = homes.map(|home| self.rows_of(&home, "weight", &[hidden], &columns));
        let down = self.cols(&format!("{at}.down_proj"), [hidden, width], &columns);
        let gate_up = self.reader.linear(&gate_up, &[], hidden)?;
        Ok((gate_up, self.summed(&[down], &[], columns.len())?))
    }

    /// Rows of a module's weight.
    fn rows(&self, module: &str, shape: [usize; 2], rows: &Range<usize>) -> Piece {
        Piece::rows(format!("{module}.weight"), &shape, rows.clone())
            .stored_by(self.config.quantization.scheme_of(module))
    }

    /// Columns of a module's weight.
    fn cols(&self, module: &str, shape: [usize; 2], cols: &Range<usize>) -> Piece {
        Piece::cols(format!("{module}.weight"), &shape, cols.clone())
            .stored_by(self.config.quantization.scheme_of(module))
    }

    /// This rank's columns of a block of `width`.
    fn columns(&self, width: usize) -> Range<usize> {
        self.reader.shard().columns(width)
    }

    fn experts(&mut self, at: &str, spec: &ExpertsSpec) -> Result<Experts<R::Store>, R::Error> {
        let hidden = self.config.hidden_size;
        let columns = self.reader.shard().expert_columns(self.config, spec);
        let (router, block) = match self.config.architecture {
            Architecture::Mixtral => ("block_sparse_moe.gate", "block_sparse_moe"),
            Architecture::GptOss => ("mlp.router", "mlp"),
            _ => ("mlp.gate", "mlp"),
        };
        let router_piece = |what: &str, tail: &[usize]| {
            let shape = [&[spec.count], tail].concat();
            Piece::rows(format!("{at}.{router}.{what}"), &shape, 0..spec.count)
        };
        let bias = if spec.bias { vec![router_piece("bias", &[])] } else { Vec::new() };
        let router = self.reader.linear(&[router_piece("weight", &[hidden])], &bias, hidden)?;
        let (all, each) = self.config.architecture.expert_modules();
        let module = format!("{at}.{all}");
        let (gate_up, down) = match each {
            None => self.stacked_experts(&module, spec, &columns)?,
            Some(each) => self.single_experts((&module, each), spec, &columns)?,
        };
        let at = format!("{at}.{block}");
        let shared = match spec.shared {
            None => None,
            Some(shared) => {
                let gate = match shared.gated {
                    true => {
                        let name = format!("{at}.shared_expert_gate.weight");
                        Some(self.reader.linear(
                            &[Piece::rows(name, &[1, hidden], 0..1)],
                            &[],
                            hidden,
                        )?)
                    }
                    false => None,
                };
                let (gate_up, down) = self.dense(&format!("{at}.shared_expert"), shared.width)?;
                Some(Shared { width: self.columns(shared.width).len(), gate_up, down, gate })
            }
        };
        let width = columns.len();
        Ok(Experts { spec: spec.clone(), width, router, gate_up, down, shared })
    }

    /// Experts of which each has its own tensors.
    fn single_experts(
        &mut self,
        (all, [gate, up, down]): (&str, [&str; 3]),
        spec: &ExpertsSpec,
        columns: &Range<usize>,
    ) -> Result<StackedHalves<R>, R::Error> {
        let hidden = self.config.hidden_size;
        let module = |expert: usize, which: &str| format!("{all}.{expert}.{which}");
        let rows = |expert, which| self.rows(&module(expert, which), [spec.width, hidden], columns);
        let gate_up: Vec<Piece> =
            (0..spec.count).flat_map(|expert| [rows(expert, gate), rows(expert, up)]).collect();
        let cols = |expert| self.cols(&module(expert, down), [hidden, spec.width], columns);
        let downs: Vec<Piece> = (0..spec.count).map(cols).collect();
        self.stacks([&gate_up, &downs], [&[], &[]], spec.count, columns.len())
    }

    /// Both projections of all experts, of this rank's `width`; rank 0 adds the biases of what is summed over ranks.
    fn stacks(
        &mut self,
        [gate_up, down]: [&[Piece]; 2],
        [gate_up_bias, down_bias]: [&[Piece]; 2],
        count: usize,
        width: usize,
    ) -> Result<StackedHalves<R>, R::Error> {
        let hidden = self.config.hidden_size;
        let up_shape = StackShape { of: StackOf::GateUp, count, rows: 2 * width, inputs: hidden };
        let down_shape = StackShape { of: StackOf::Down, count, rows: hidden, inputs: width };
        let gate_up = self.reader.stacked(gate_up, gate_up_bias, up_shape)?;
        let down_bias = if self.reader.shard().rank == 0 { down_bias } else { &[] };
        Ok((gate_up, self.reader.stacked(down, down_bias, down_shape)?))
    }

    /// gpt-oss: all experts in one tensor, gate and up in turn; plain numbers have inputs before outputs, codes after.
    fn stacked_experts(
        &mut self,
        module: &str,
        spec: &ExpertsSpec,
        columns: &Range<usize>,
    ) -> Result<StackedHalves<R>, R::Error> {
        let hidden = self.config.hidden_size;
        let (count, width) = (spec.count, spec.width);
        let scheme = self.config.quantization.scheme_of(module);
        let piece = |name: &str, shape: &[usize], part: Part| {
            Piece::new(format!("{module}.{name}"), shape, part)
        };
        let halves = || (0..count).flat_map(|expert| [(expert, 0), (expert, 1)]);
        // Output `n` of gate or up is column `2 n` or `2 n + 1` of the expert's `[hidden, 2 * width]`.
        let gate_up = |(expert, half): (usize, usize)| Part::Strided {
            first: expert * hidden * 2 * width + 2 * columns.start + half,
            rows: columns.len(),
            row_stride: 2,
            cols: hidden,
            col_stride: 2 * width,
        };
        let gate_up_bias = |(expert, half): (usize, usize)| Part::Strided {
            first: expert * 2 * width + 2 * columns.start + half,
            rows: columns.len(),
            row_stride: 2,
            cols: 1,
            col_stride: 1,
        };
        let down = |expert: usize| Part::Strided {
            first: (expert * width + columns.start) * hidden,
            rows: hidden,
            row_stride: 1,
            cols: columns.len(),
            col_stride: hidden,
        };
        // Codes are a row for each output.
        let coded = |(expert, half): (usize, usize)| Part::Strided {
            first: (expert * 2 * width + 2 * columns.start + half) * hidden,
            rows: columns.len(),
            row_stride: 2 * hidden,
            cols: hidden,
            col_stride: 1,
        };
        let coded_down = |expert: usize| Part::Strided {
            first: expert * hidden * width + columns.start,
            rows: hidden,
            row_stride: width,
            cols: columns.len(),
            col_stride: 1,
        };
        let gate_ups = halves().map(|half| match scheme {
            Scheme::Plain => piece("gate_up_proj", &[count, hidden, 2 * width], gate_up(half)),
            _ => piece("gate_up_proj", &[count, 2 * width, hidden], coded(half)).stored_by(scheme),
        });
        let downs = (0..count).map(|expert| match scheme {
            Scheme::Plain => piece("down_proj", &[count, width, hidden], down(expert)),
            _ => piece("down_proj", &[count, hidden, width], coded_down(expert)).stored_by(scheme),
        });
        let (gate_ups, downs): (Vec<Piece>, Vec<Piece>) = (gate_ups.collect(), downs.collect());
        let (gate_up_biases, down_biases): (Vec<Piece>, Vec<Piece>) = match spec.bias {
            true => (
                halves()
                    .map(|half| piece("gate_up_proj_bias", &[count, 2 * width], gate_up_bias(half)))
                    .collect(),
                vec![piece("down_proj_bias", &[count, hidden], Part::All)],
            ),
            false => (Vec::new(), Vec::new()),
        };
        let biases = [&gate_up_biases[..], &down_biases];
        self.stacks([&gate_ups, &downs], biases, count, columns.len())
    }
}
