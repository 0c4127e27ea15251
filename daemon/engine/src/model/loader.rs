//! From named tensors to a rank's weights.
//!
//! Owns: the way of a piece from its source onto a device, and the count of bytes read. Must never: read a tensor
//! itself, or guess a name.

use super::reader::{Piece, Reader};
use crate::error::{EngineError, OpError};
use crate::ops::{OpResult, Ops};
use crate::shard::Shard;
use crate::weights::{TensorPart, WeightSource};

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
    pub fn rank(&self) -> &'a Shard {
        self.shard
    }

    /// Activations of `width` for `rows` rows.
    pub fn buffer(&self, rows: usize, width: usize) -> Result<O::Buffer, EngineError> {
        self.ops.buffer(rows, width).map_err(|error| self.on_rank(error))
    }

    /// Pieces onto the device, by `upload`.
    fn upload<T>(
        &mut self,
        pieces: &[Piece],
        upload: impl FnOnce(&O, Vec<TensorPart<'a>>) -> OpResult<T>,
    ) -> Result<T, EngineError> {
        let source = self.source;
        let part =
            |piece: &Piece| source.part(&piece.tensor.name, &piece.tensor.shape, &piece.part);
        let parts = pieces.iter().map(part).collect::<Result<Vec<_>, _>>()?;
        let bytes: Vec<usize> = parts.iter().map(TensorPart::stored_bytes).collect();
        let uploaded = upload(self.ops, parts).map_err(|error| self.on_rank(error))?;
        for (piece, bytes) in pieces.iter().zip(bytes) {
            (self.progress)(bytes as u64, &piece.tensor.name);
        }
        Ok(uploaded)
    }

    fn on_rank(&self, error: OpError) -> EngineError {
        EngineError::Rank {
            rank: self.shard.rank,
            operation: error.operation.to_owned(),
            reason: error.reason,
        }
    }
}

impl<O: Ops> Reader for Loader<'_, O> {
    type Store = O;
    type Error = EngineError;

    fn shard(&self) -> &Shard {
        self.shard
    }

    fn matrix(&mut self, pieces: &[Piece], inputs: usize) -> Result<O::Matrix, EngineError> {
        self.upload(pieces, |ops, parts| ops.matrix(&parts, inputs))
    }

    fn vector(&mut self, pieces: &[Piece]) -> Result<O::Vector, EngineError> {
        self.upload(pieces, |ops, parts| ops.vector(&parts))
    }

    fn vector_plus_one(&mut self, piece: &Piece) -> Result<O::Vector, EngineError> {
        self.upload(std::slice::from_ref(piece), |ops, mut parts| match parts.pop() {
            Some(part) => ops.vector_plus_one(part),
            None => ops.vector(&[]),
        })
    }
}
