//! From named tensors to a rank's weights.
//!
//! Owns: the way of a piece from its source onto a device, and the count of bytes read. Must never: read a tensor
//! itself, or guess a name.

use super::reader::{Piece, Reader};
use crate::error::{EngineError, OpError};
use crate::ops::{OpResult, Ops, StackShape};
use crate::shard::Shard;
use crate::weights::{MatrixPart, TensorPart, WeightError, WeightSource};

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

    /// Pieces onto the device: as `lend` finds them, by `upload`.
    fn upload<P, T>(
        &mut self,
        pieces: &[Piece],
        lend: impl Fn(&'a dyn WeightSource, &Piece) -> Result<P, WeightError>,
        bytes: impl Fn(&P) -> usize,
        upload: impl FnOnce(&O, Vec<P>) -> OpResult<T>,
    ) -> Result<T, EngineError> {
        let parts = pieces.iter().map(|piece| lend(self.source, piece));
        let parts = parts.collect::<Result<Vec<P>, _>>()?;
        let bytes: Vec<usize> = parts.iter().map(bytes).collect();
        let uploaded = upload(self.ops, parts).map_err(|error| self.on_rank(error))?;
        for (piece, bytes) in pieces.iter().zip(bytes) {
            (self.progress)(bytes as u64, &piece.name);
        }
        Ok(uploaded)
    }

    /// [`Loader::upload`] of plain numbers.
    fn upload_plain<T>(
        &mut self,
        pieces: &[Piece],
        upload: impl FnOnce(&O, Vec<TensorPart<'a>>) -> OpResult<T>,
    ) -> Result<T, EngineError> {
        let lend = |source: &'a dyn WeightSource, piece: &Piece| {
            source.part(&piece.name, &piece.shape, &piece.part)
        };
        self.upload(pieces, lend, TensorPart::stored_bytes, upload)
    }

    fn on_rank(&self, error: OpError) -> EngineError {
        EngineError::Rank {
            rank: self.shard.rank,
            operation: error.operation.to_owned(),
            reason: error.reason,
        }
    }
}

/// The part of a matrix that a piece is.
fn lend_matrix<'a>(
    source: &'a dyn WeightSource,
    piece: &Piece,
) -> Result<MatrixPart<'a>, WeightError> {
    MatrixPart::of(source, &piece.name, &piece.shape, piece.scheme, &piece.part)
}

impl<'a, O: Ops> Reader for Loader<'a, O> {
    type Store = O;
    type Error = EngineError;

    fn shard(&self) -> &Shard {
        self.shard
    }

    fn matrix(&mut self, pieces: &[Piece], inputs: usize) -> Result<O::Matrix, EngineError> {
        self.upload(pieces, lend_matrix, MatrixPart::stored_bytes, |ops, parts| {
            ops.matrix(&parts, inputs)
        })
    }

    fn stack(&mut self, pieces: &[Piece], shape: StackShape) -> Result<O::Stack, EngineError> {
        self.upload(pieces, lend_matrix, MatrixPart::stored_bytes, |ops, parts| {
            ops.stack(&parts, shape)
        })
    }

    fn vector(&mut self, pieces: &[Piece]) -> Result<O::Vector, EngineError> {
        self.upload_plain(pieces, |ops, parts| ops.vector(&parts))
    }

    fn vector_plus_one(&mut self, piece: &Piece) -> Result<O::Vector, EngineError> {
        self.upload_plain(std::slice::from_ref(piece), |ops, mut parts| match parts.pop() {
            Some(part) => ops.vector_plus_one(part),
            None => ops.vector(&[]),
        })
    }
}
