//! What requests are sampled by, and drawing.

use super::Address;

/// How a request's tokens are sampled.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleParams {
    /// With the position, all that a draw depends on.
    pub seed: u64,
    /// Not above 0, or NaN: greedy.
    pub temperature: f32,
    /// 0: off.
    pub top_k: u32,
    /// 1: off.
    pub top_p: f32,
    /// 0: off.
    pub min_p: f32,
    /// 1: off.
    pub repetition_penalty: f32,
    /// 0: off.
    pub presence_penalty: f32,
    /// 0: off.
    pub frequency_penalty: f32,
    /// Its table of token counts, its own alone; negative for a request without penalties.
    pub history: i32,
    /// First of its entries in `bias_tokens` and `bias_values`.
    pub bias_at: u32,
    /// How many; each token once.
    pub bias_len: u32,
    /// First of its entries in `banned`.
    pub banned_at: u32,
    /// How many.
    pub banned_len: u32,
    /// Position of the first token that may be one of them.
    pub banned_below: u32,
    /// 0.
    pub reserved: u32,
}

impl Default for SampleParams {
    /// The most likely token, with every other setting off.
    fn default() -> SampleParams {
        SampleParams {
            seed: 0,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            history: -1,
            bias_at: 0,
            bias_len: 0,
            banned_at: 0,
            banned_len: 0,
            banned_below: 0,
            reserved: 0,
        }
    }
}

/// One row of logits, and what becomes of it. [`SampleRow::padding`] is a row that touches nothing.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleRow {
    /// Whose [`SampleParams`].
    pub slot: u32,
    /// Of the token that is sampled.
    pub position: u32,
    /// Where in `tokens` it goes; negative for a padding row.
    pub out: i32,
    /// How many of the most likely tokens to report; negative for no log-probabilities at all.
    pub logprobs: i32,
    /// A token that is not drawn but given: its log-probability is reported, and the most likely tokens, and
    /// nothing else is written. Negative: draw one.
    pub given: i32,
    /// Which of the masks it is drawn under; negative for none.
    pub mask: i32,
}

impl SampleRow {
    /// A row that is not there: what fills a batch up to the size a graph was captured with.
    pub fn padding() -> SampleRow {
        SampleRow { out: -1, ..SampleRow::drawn(0, 0, 0) }
    }

    /// The token of `slot` at `position`, which goes to `out`.
    pub fn drawn(slot: u32, position: u32, out: i32) -> SampleRow {
        SampleRow { slot, position, out, logprobs: -1, given: -1, mask: -1 }
    }
}

// SAFETY: a C struct of six 4-byte numbers, so without padding (`tests/abi.rs` checks the size); any bits are a valid
// value, and it holds no reference.
unsafe impl bytemuck::Zeroable for SampleRow {}
// SAFETY: as above.
unsafe impl bytemuck::Pod for SampleRow {}

// SAFETY: plain numbers in C layout, which the GPU reads as the same struct.
#[cfg(feature = "cuda")]
unsafe impl cudarc::driver::DeviceRepr for SampleRow {}

// SAFETY: plain numbers in C layout, which the GPU reads as the same struct.
#[cfg(feature = "cuda")]
unsafe impl cudarc::driver::DeviceRepr for SampleParams {}

// SAFETY: zeros are a valid value of each of its numbers.
#[cfg(feature = "cuda")]
unsafe impl cudarc::driver::ValidAsZeroBits for SampleParams {}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SampleArgs {
    pub logits: Address,
    pub draws: Address,
    pub params: Address,
    pub masks: Address,
    pub bias_tokens: Address,
    pub bias_values: Address,
    pub banned: Address,
    pub marks: Address,
    pub scratch: Address,
    pub tokens: Address,
    pub logprob: Address,
    pub top_tokens: Address,
    pub top_logprobs: Address,
    pub rows: u32,
    pub slots: u32,
    pub vocab: u32,
    pub stride: u32,
    pub tables: u32,
    pub masks_len: u32,
    pub tokens_len: u32,
    pub bias_len: u32,
    pub banned_len: u32,
    pub top_max: u32,
    pub part: u32,
    pub stagger: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HistoryResetArgs {
    pub tokens: Address,
    pub marks: Address,
    pub len: u32,
    pub prompt_len: u32,
    pub vocab: u32,
    pub reserved: u32,
}
