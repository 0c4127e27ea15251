//! Length-delimited frames: a little-endian `u32` of payload bytes, then a postcard value.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Payload bytes of a frame at most: a submitted prompt of eight million tokens.
pub const FRAME_BYTES_MAX: usize = 64 << 20;

/// Bytes before the payload.
pub const HEADER_BYTES: usize = 4;

/// Why bytes are not a frame.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Longer than [`FRAME_BYTES_MAX`].
    #[error("a frame of {bytes} bytes is over the limit of {FRAME_BYTES_MAX}")]
    TooLarge {
        /// Bytes of the payload.
        bytes: usize,
    },
    /// Not an encoding of the expected type.
    #[error("a frame does not decode: {0}")]
    Malformed(#[from] postcard::Error),
}

/// Appends header and payload of `value` to `out`.
///
/// # Errors
/// `TooLarge`, with `out` as it was before.
pub fn encode<T: Serialize>(value: &T, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let start = out.len();
    let payload = postcard::to_stdvec(value)?;
    if payload.len() > FRAME_BYTES_MAX {
        out.truncate(start);
        return Err(FrameError::TooLarge { bytes: payload.len() });
    }
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&payload);
    Ok(())
}

/// Payload bytes that follow this header.
///
/// # Errors
/// `TooLarge`: the stream is not ours, or corrupt.
pub fn payload_bytes(header: [u8; HEADER_BYTES]) -> Result<usize, FrameError> {
    let bytes = u32::from_le_bytes(header) as usize;
    if bytes > FRAME_BYTES_MAX { Err(FrameError::TooLarge { bytes }) } else { Ok(bytes) }
}

/// Decodes one payload.
///
/// # Errors
/// `Malformed`.
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, FrameError> {
    Ok(postcard::from_bytes(payload)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RequestId, ToWorker};

    #[test]
    fn round_trip() {
        let mut bytes = Vec::new();
        encode(&ToWorker::Abort(RequestId(7)), &mut bytes).unwrap();
        let header = bytes[..HEADER_BYTES].try_into().unwrap();
        assert_eq!(payload_bytes(header).unwrap(), bytes.len() - HEADER_BYTES);
        let back: ToWorker = decode(&bytes[HEADER_BYTES..]).unwrap();
        assert_eq!(back, ToWorker::Abort(RequestId(7)));
    }

    #[test]
    fn a_huge_header_is_refused() {
        assert!(matches!(payload_bytes([0xff; 4]), Err(FrameError::TooLarge { .. })));
    }

    #[test]
    fn garbage_is_refused() {
        assert!(decode::<ToWorker>(&[250, 1, 2]).is_err());
    }
}
