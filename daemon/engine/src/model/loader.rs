//! From named tensors to a rank's weights.
//!
//! Owns: slicing by shard, and the count of bytes read. Must never: read a tensor itself, or guess a name.

use std::ops::Range;

use crate::error::EngineError;
use crate::ops::{OpResult, Ops};
use crate::shard::Shard;
use crate::weights::{Part, TensorPart, WeightSource};

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
        self.stacked_vector(&[(name.to_owned(), len, 0..len)])
    }

    /// Parts of vectors, one after the other.
    pub fn stacked_vector(&mut self, slices: &[Slice]) -> Result<O::Vector, EngineError> {
        let shape = |slice: &Slice| vec![slice.1];
        self.upload(slices, shape, |ops, parts| ops.vector(parts))
    }

    /// A column-parallel projection: rows of one or more matrices of `inputs` columns, stacked.
    pub fn stacked(&mut self, slices: &[Slice], inputs: usize) -> Result<O::Matrix, EngineError> {
        let shape = |slice: &Slice| vec![slice.1, inputs];
        self.upload(slices, shape, |ops, parts| ops.matrix(parts, inputs))
    }

    /// A row-parallel projection: `columns` of a matrix of `shape`.
    pub fn row_parallel(
        &mut self,
        name: &str,
        shape: [usize; 2],
        columns: Range<usize>,
    ) -> Result<O::Matrix, EngineError> {
        let inputs = columns.len();
        let part = self.source.part(name, &shape, &Part::Cols(columns))?;
        let matrix = self.ops.matrix(std::slice::from_ref(&part), inputs);
        (self.progress)(part.stored_bytes() as u64, name);
        matrix.map_err(|error| self.on_rank(error))
    }

    /// Rows of tensors of the shape that `shape` tells, onto the device.
    fn upload<T>(
        &mut self,
        slices: &[Slice],
        shape: impl Fn(&Slice) -> Vec<usize>,
        upload: impl FnOnce(&O, &[TensorPart<'_>]) -> OpResult<T>,
    ) -> Result<T, EngineError> {
        let part = |slice: &Slice| {
            let rows = Part::Rows(slice.2.clone());
            self.source.part(&slice.0, &shape(slice), &rows)
        };
        let parts = slices.iter().map(part).collect::<Result<Vec<_>, _>>()?;
        let uploaded = upload(self.ops, &parts).map_err(|error| self.on_rank(error))?;
        for ((name, ..), part) in slices.iter().zip(&parts) {
            (self.progress)(part.stored_bytes() as u64, name);
        }
        Ok(uploaded)
    }

    fn on_rank(&self, error: crate::error::OpError) -> EngineError {
        EngineError::Rank {
            rank: self.shard.rank,
            operation: error.operation.to_owned(),
            reason: error.reason,
        }
    }
}
