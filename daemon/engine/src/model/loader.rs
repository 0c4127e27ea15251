//! From named tensors to a rank's weights.
//!
//! Owns: slicing by shard, and the count of bytes read. Must never: hold more than one layer's tensor
//! on the host, or guess a name.

use std::ops::Range;

use crate::error::EngineError;
use crate::ops::Ops;
use crate::rank::shard::Shard;
use crate::weights::{HostTensor, Part, WeightSource};

/// A named tensor, its full number of rows, and the rows wanted of it.
pub type Slice = (String, usize, Range<usize>);

/// Reads one rank's shard.
pub struct Loader<'a, O: Ops> {
    ops: &'a O,
    source: &'a dyn WeightSource,
    shard: &'a Shard,
    progress: &'a mut dyn FnMut(u64, &str),
}

impl<'a, O: Ops> Loader<'a, O> {
    /// Reads from `source` onto `ops`; `progress` is told the bytes of every tensor and its name.
    pub fn new(
        ops: &'a O,
        source: &'a dyn WeightSource,
        shard: &'a Shard,
        progress: &'a mut dyn FnMut(u64, &str),
    ) -> Self {
        Loader { ops, source, shard, progress }
    }

    /// The rank's share.
    pub fn shard(&self) -> &'a Shard {
        self.shard
    }

    /// Activations of `width` for `rows` rows.
    pub fn buffer(&self, rows: usize, width: usize) -> Result<O::Buffer, EngineError> {
        self.ops.buffer(rows, width).map_err(|error| self.on_rank(error))
    }

    /// A whole vector of `len`.
    pub fn vector(&mut self, name: &str, len: usize) -> Result<O::Vector, EngineError> {
        let part = self.read(name, &[len], &Part::All)?;
        self.ops.vector(vec![part]).map_err(|error| self.on_rank(error))
    }

    /// Parts of vectors, one after the other.
    pub fn stacked_vector(&mut self, slices: &[Slice]) -> Result<O::Vector, EngineError> {
        let parts = slices
            .iter()
            .map(|(name, len, rows)| self.read(name, &[*len], &Part::Rows(rows.clone())))
            .collect::<Result<_, _>>()?;
        self.ops.vector(parts).map_err(|error| self.on_rank(error))
    }

    /// A column-parallel projection: rows of one or more matrices of `inputs` columns, stacked.
    pub fn stacked(&mut self, slices: &[Slice], inputs: usize) -> Result<O::Matrix, EngineError> {
        let parts = slices
            .iter()
            .map(|(name, rows, wanted)| {
                self.read(name, &[*rows, inputs], &Part::Rows(wanted.clone()))
            })
            .collect::<Result<_, _>>()?;
        self.ops.matrix(parts, inputs).map_err(|error| self.on_rank(error))
    }

    /// A row-parallel projection: `columns` of a matrix of `shape`.
    pub fn row_parallel(
        &mut self,
        name: &str,
        shape: [usize; 2],
        columns: Range<usize>,
    ) -> Result<O::Matrix, EngineError> {
        let inputs = columns.len();
        let part = self.read(name, &shape, &Part::Cols(columns))?;
        self.ops.matrix(vec![part], inputs).map_err(|error| self.on_rank(error))
    }

    fn read(
        &mut self,
        name: &str,
        shape: &[usize],
        part: &Part,
    ) -> Result<HostTensor, EngineError> {
        let tensor = self.source.load(name, shape, part)?;
        let bytes = match &tensor {
            HostTensor::Bf16(values) => size_of_val(values.as_slice()),
            HostTensor::F16(values) => size_of_val(values.as_slice()),
            HostTensor::F32(values) => size_of_val(values.as_slice()),
        };
        (self.progress)(bytes as u64, name);
        Ok(tensor)
    }

    fn on_rank(&self, error: crate::error::OpError) -> EngineError {
        EngineError::Rank {
            rank: self.shard.rank,
            operation: error.operation.to_owned(),
            reason: error.reason,
        }
    }
}
