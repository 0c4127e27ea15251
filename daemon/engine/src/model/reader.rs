//! How a model's weights are asked for: once, for a rank that loads them and for whoever wants a list of them.
//!
//! Owns: the seam between a model's layout and where weights come from. Must never: know an architecture.

use std::convert::Infallible;
use std::ops::Range;

use crate::config::ModelConfig;
use crate::ops::{Linear, StackShape, Stacked, Storage};
use crate::scheme::Scheme;
use crate::shard::Shard;
use crate::weights::{Part, TensorSpec};

/// A part of a matrix or vector, however it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// Of the whole, by Hugging Face's naming.
    pub name: String,
    /// Of the whole, in numbers: `[out, in]` for a projection, `[n]` for a vector.
    pub shape: Vec<usize>,
    /// What the whole is stored as.
    pub scheme: Scheme,
    /// What is wanted of its numbers.
    pub part: Part,
}

impl Piece {
    /// A part of plain numbers.
    pub fn new(name: impl Into<String>, shape: &[usize], part: Part) -> Piece {
        Piece { name: name.into(), shape: shape.to_vec(), scheme: Scheme::Plain, part }
    }

    /// The same part of a matrix that is stored by `scheme`.
    pub fn stored_by(self, scheme: Scheme) -> Piece {
        Piece { scheme, ..self }
    }

    /// All of a vector.
    pub fn vector(name: impl Into<String>, len: usize) -> Piece {
        Piece::rows(name, &[len], 0..len)
    }

    /// Rows of a matrix, or of a vector.
    pub fn rows(name: impl Into<String>, shape: &[usize], rows: Range<usize>) -> Piece {
        Piece::new(name, shape, Part::Rows(rows))
    }

    /// Columns of a matrix.
    pub fn cols(name: impl Into<String>, shape: &[usize], cols: Range<usize>) -> Piece {
        Piece::new(name, shape, Part::Cols(cols))
    }
}

/// Where weights come from while a model is laid out.
pub trait Reader {
    /// How weights are kept.
    type Store: Storage;
    /// Why a weight cannot be had.
    type Error;

    /// The rank's share.
    fn shard(&self) -> &Shard;

    /// Pieces of matrices, each of `inputs` columns, stacked.
    ///
    /// # Errors
    /// It cannot be had.
    fn matrix(&mut self, pieces: &[Piece], inputs: usize) -> Result<Matrix<Self>, Self::Error>;

    /// Pieces of the matrices of a layer's experts, in the order that [`StackOf`](crate::ops::StackOf) says.
    ///
    /// # Errors
    /// It cannot be had.
    fn stack(&mut self, pieces: &[Piece], shape: StackShape) -> Result<Stack<Self>, Self::Error>;

    /// Pieces of vectors, one after the other.
    ///
    /// # Errors
    /// It cannot be had.
    fn vector(&mut self, pieces: &[Piece]) -> Result<Vector<Self>, Self::Error>;

    /// A norm's weights, each 1 more than it is stored.
    ///
    /// # Errors
    /// It cannot be had.
    fn vector_plus_one(&mut self, piece: &Piece) -> Result<Vector<Self>, Self::Error>;

    /// A projection, with a bias if there are pieces of one.
    ///
    /// # Errors
    /// It cannot be had.
    fn linear(
        &mut self,
        weight: &[Piece],
        bias: &[Piece],
        inputs: usize,
    ) -> Result<Linear<Self::Store>, Self::Error> {
        let weight = self.matrix(weight, inputs)?;
        let bias = if bias.is_empty() { None } else { Some(self.vector(bias)?) };
        Ok(Linear { weight, bias })
    }

    /// A projection of every expert, with biases if there are pieces of them.
    ///
    /// # Errors
    /// It cannot be had.
    fn stacked(
        &mut self,
        weight: &[Piece],
        bias: &[Piece],
        shape: StackShape,
    ) -> Result<Stacked<Self::Store>, Self::Error> {
        let weight = self.stack(weight, shape)?;
        let bias = if bias.is_empty() { None } else { Some(self.vector(bias)?) };
        Ok(Stacked { weight, bias })
    }
}

/// A reader's matrices.
pub type Matrix<R> = <<R as Reader>::Store as Storage>::Matrix;
/// A reader's stacks of experts' matrices.
pub type Stack<R> = <<R as Reader>::Store as Storage>::Stack;
/// A reader's vectors.
pub type Vector<R> = <<R as Reader>::Store as Storage>::Vector;

/// Weights of which only the names are known.
pub struct Names;

impl Storage for Names {
    type Matrix = ();
    type Vector = ();
    type Stack = ();
}

/// Lists what a layout asks for, in its order.
pub struct Listing {
    shard: Shard,
    tensors: Vec<TensorSpec>,
    elements: u64,
    bytes: u64,
    /// Of the piece before.
    last: String,
}

impl Listing {
    /// An empty list for a rank.
    pub fn new(shard: Shard) -> Listing {
        Listing { shard, tensors: Vec::new(), elements: 0, bytes: 0, last: String::new() }
    }

    /// For a rank that has all of `config`.
    pub fn whole(config: &ModelConfig) -> Listing {
        Listing::new(Shard::whole(config))
    }

    /// Every tensor, once.
    pub fn into_tensors(self) -> Vec<TensorSpec> {
        self.tensors
    }

    /// Numbers of all pieces that were asked for, however they are stored.
    pub fn elements(&self) -> u64 {
        self.elements
    }

    /// Bytes of all pieces that were asked for, as [`TensorSpec::bytes`] counts them; of scales as many as a piece has
    /// of the numbers.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn add(&mut self, pieces: &[Piece]) {
        for Piece { name, shape, scheme, part } in pieces {
            let elements = part.elements(shape);
            self.elements += elements;
            let (whole, stored) = (Part::All.elements(shape).max(1), scheme.tensors(name, shape));
            let bytes: u64 = stored.iter().map(TensorSpec::bytes).sum();
            self.bytes += (u128::from(bytes) * u128::from(elements) / u128::from(whole)) as u64;
            // Pieces of one matrix are asked for one after the other.
            if self.last != *name {
                self.tensors.extend(scheme.tensors(name, shape));
                self.last.clone_from(name);
            }
        }
    }
}

impl Reader for Listing {
    type Store = Names;
    type Error = Infallible;

    fn shard(&self) -> &Shard {
        &self.shard
    }

    fn matrix(&mut self, pieces: &[Piece], _inputs: usize) -> Result<(), Infallible> {
        self.add(pieces);
        Ok(())
    }

    fn stack(&mut self, pieces: &[Piece], _shape: StackShape) -> Result<(), Infallible> {
        self.add(pieces);
        Ok(())
    }

    fn vector(&mut self, pieces: &[Piece]) -> Result<(), Infallible> {
        self.add(pieces);
        Ok(())
    }

    fn vector_plus_one(&mut self, piece: &Piece) -> Result<(), Infallible> {
        self.add(std::slice::from_ref(piece));
        Ok(())
    }
}
