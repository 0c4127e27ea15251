//! One memory-mapped safetensors file.
//!
//! The format: a little-endian u64 `n`, `n` bytes of JSON that give each tensor's type, shape and
//! byte range, then the data. The `safetensors` crate checks that the ranges follow each other
//! without gap or overlap, fit types and shapes, and end where the file ends; this module turns its
//! refusals into words that say what to do.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::{Advice, Mmap, UncheckedAdvice};
use safetensors::SafeTensors;
use safetensors::tensor::{Metadata, SafeTensorError, TensorInfo};
use serde_json::Value;

use super::WeightError;

/// Bytes of the length field before the header.
const LENGTH_BYTES: usize = 8;

/// What a file that was cloned without Git LFS starts with.
const LFS_POINTER: &[u8] = b"version https://git-lfs";

/// A safetensors file whose header has been checked against its size.
pub(super) struct MappedFile {
    map: Mmap,
    data_at: usize,
    metadata: Metadata,
}

impl MappedFile {
    pub(super) fn open(path: &Path) -> Result<MappedFile, WeightError> {
        let read = |source| WeightError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(read)?;
        if !file.metadata().map_err(read)?.is_file() {
            return Err(refused(path, "is not a regular file"));
        }
        // SAFETY: the mapping is private and read-only. Another process that writes to the file
        // meanwhile changes weights, or kills this worker with SIGBUS when it truncates it; the
        // bytes are only ever read as plain numbers, any of which is valid.
        #[expect(unsafe_code, reason = "mapping a file")]
        let map = unsafe { Mmap::map(&file) }.map_err(read)?;
        match SafeTensors::read_metadata(&map) {
            Ok((header_bytes, metadata)) => {
                Ok(MappedFile { data_at: LENGTH_BYTES + header_bytes, map, metadata })
            }
            Err(error) => Err(refused(path, &explain(&map, &error))),
        }
    }

    /// Every tensor in it.
    pub(super) fn tensors(&self) -> HashMap<String, &TensorInfo> {
        self.metadata.tensors()
    }

    /// A tensor's bytes; `info` is one of this file's.
    pub(super) fn bytes(&self, info: &TensorInfo) -> &[u8] {
        let (start, end) = info.data_offsets;
        &self.map[self.data_at + start..self.data_at + end]
    }

    /// Has the system read these bytes of the file at once: faults on their pages would ask for few at a
    /// time.
    pub(super) fn will_read(&self, bytes: &[u8]) {
        // An older kernel does not know this; then the pages come one by one.
        let _ = self.map.advise_range(Advice::PopulateRead, self.offset(bytes), bytes.len());
    }

    /// Takes the pages of these bytes out of this process's memory, and leaves them in the page cache.
    pub(super) fn was_read(&self, bytes: &[u8]) {
        let (at, advice) = (self.offset(bytes), UncheckedAdvice::DontNeed);
        // SAFETY: the mapping is of a file, private, and never written to: a page that is let go holds
        // what the file has, and comes back from there when it is read again.
        #[allow(unsafe_code, reason = "no other call lets pages go")]
        let _ = unsafe { self.map.unchecked_advise_range(advice, at, bytes.len()) };
    }

    /// Where `bytes`, a part of the map, begin in it.
    fn offset(&self, bytes: &[u8]) -> usize {
        bytes.as_ptr().addr() - self.map.as_ptr().addr()
    }
}

fn refused(path: &Path, reason: &str) -> WeightError {
    WeightError::File { path: PathBuf::from(path), reason: reason.to_owned() }
}

/// Says what the crate's error means for this file.
fn explain(bytes: &[u8], error: &SafeTensorError) -> String {
    if bytes.starts_with(LFS_POINTER) {
        return "is a Git LFS pointer, not the weights themselves; run `git lfs pull` in its folder"
            .to_owned();
    }
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
        return format!("has {} bytes: too short for a safetensors file", bytes.len());
    };
    let header_bytes = u64::from_le_bytes(*length);
    let header = usize::try_from(header_bytes).ok().and_then(|end| rest.get(..end));
    match (error, header) {
        (SafeTensorError::HeaderTooLarge, _) => format!(
            "is not a safetensors file: its first 8 bytes would mean a header of {header_bytes} bytes"
        ),
        (SafeTensorError::InvalidHeaderLength, _) => format!(
            "is truncated or not a safetensors file: its header needs {header_bytes} bytes, {} are there",
            rest.len()
        ),
        (SafeTensorError::MetadataIncompleteBuffer, Some(header)) => {
            let there = rest.len() - header.len();
            match serde_json::from_slice::<Metadata>(header) {
                Ok(metadata) if metadata.data_len() > there => format!(
                    "is truncated: its tensors take {} bytes, {there} are there; fetch it again",
                    metadata.data_len()
                ),
                Ok(metadata) => format!(
                    "has {} bytes after its last tensor; fetch it again",
                    there - metadata.data_len()
                ),
                Err(error) => format!("has an invalid header: {error}"),
            }
        }
        (SafeTensorError::TensorInvalidInfo, Some(header)) => match misfit(header) {
            Some(tensor) => format!("has an invalid header: {tensor}"),
            None => format!("has an invalid header: {error}"),
        },
        (SafeTensorError::InvalidOffset(name), _) => format!(
            "has an invalid header: the bytes of tensor {name} do not follow those of the one before"
        ),
        _ => format!("is not a safetensors file: {error}"),
    }
}

/// The first tensor by name whose byte range does not fit its type and shape.
fn misfit(header: &[u8]) -> Option<String> {
    let entries: HashMap<String, Value> = serde_json::from_slice(header).ok()?;
    let mut names: Vec<&String> = entries.keys().filter(|name| *name != "__metadata__").collect();
    names.sort_unstable();
    names.into_iter().find_map(|name| {
        let info: TensorInfo = serde_json::from_value(entries[name].clone()).ok()?;
        let (start, end) = info.data_offsets;
        let bits = info.shape.iter().try_fold(info.dtype.bitsize(), |n, &size| n.checked_mul(size));
        (bits != end.checked_sub(start)?.checked_mul(8)).then(|| {
            format!(
                "tensor {name} of type {:?} and shape {:?} has {} bytes",
                info.dtype,
                info.shape,
                end - start
            )
        })
    })
}
