//! The fence: Rust's mirror of `cu/minisgl.h` and the headers beside it, which document every field. Held to what the C
//! compiler says by `tests/abi.rs`.
//!
//! Only [`SampleRow`] and [`SampleParams`] are for others to fill; the rest is filled by the launchers.

#![allow(missing_docs)] // The header has them.

/// A device address; 0 is null.
pub type Address = u64;

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EmbeddingArgs {
    pub tokens: Address,
    pub fed: Address,
    pub table: Address,
    pub out: Address,
    pub rows: u32,
    pub hidden: u32,
    pub fed_len: u32,
    pub vocab_start: u32,
    pub vocab_len: u32,
    pub scale: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CopyRunsArgs {
    pub runs: Address,
    pub from: Address,
    pub to: Address,
    pub from_len: u32,
    pub to_len: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BringArgs {
    pub words: Address,
    pub to: Address,
    pub pairs: Address,
    pub table: Address,
    pub words_len: u32,
    pub pairs_len: u32,
    pub table_len: u32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RmsNormArgs {
    pub x: Address,
    pub index: Address,
    pub weight: Address,
    pub out: Address,
    pub rows: u32,
    pub x_rows: u32,
    pub hidden: u32,
    pub eps: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AddNormArgs {
    pub x: Address,
    pub after: Address,
    pub residual: Address,
    pub next: Address,
    pub normed: Address,
    pub rows: u32,
    pub hidden: u32,
    pub eps: f32,
    pub plus_one: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct QkRopePageArgs {
    pub qkv: Address,
    pub q_weight: Address,
    pub k_weight: Address,
    pub cos_sin: Address,
    pub positions: Address,
    pub slots: Address,
    pub q_out: Address,
    pub k_pages: Address,
    pub v_pages: Address,
    pub rows: u32,
    pub q_heads: u32,
    pub kv_heads: u32,
    pub positions_len: u32,
    pub slots_len: u32,
    pub eps: f32,
    pub q_fp16: u32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct WidenHeadsArgs {
    pub x: Address,
    pub out: Address,
    pub heads: u32,
    pub from: u32,
    pub to: u32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct GateMulArgs {
    pub gate_up: Address,
    pub out: Address,
    pub rows: u32,
    pub width: u32,
    pub gate: u32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SkinnyArgs {
    pub x: Address,
    pub norm_weight: Address,
    pub weight: Address,
    pub scales: Address,
    pub bias: Address,
    pub out: Address,
    pub m: u32,
    pub n: u32,
    pub k: u32,
    pub eps: f32,
    pub epilogue: u32,
    pub chunk: u32,
    pub stages: u32,
    pub resident: u32,
    pub inbox: [Address; RANKS_MAX - 1],
    pub peers: u32,
    pub scale_form: u32,
    pub gate: u32,
    pub reserved: u32,
}

#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct MediumArgs {
    pub map: [u64; 16],
    pub x: Address,
    pub scales: Address,
    pub bias: Address,
    pub out: Address,
    pub m: u32,
    pub n: u32,
    pub k: u32,
    pub epilogue: u32,
    pub scale_form: u32,
    pub stages: u32,
    pub gate: u32,
}

#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct NarrowArgs {
    pub map: [u64; 16],
    pub x_map: [u64; 16],
    pub x_scales: Address,
    pub scales: Address,
    pub bias: Address,
    pub out: Address,
    pub out_scales: Address,
    pub m: u32,
    pub n: u32,
    pub k: u32,
    pub epilogue: u32,
    pub scale_form: u32,
    pub stages: u32,
    pub gate: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct QuantiseArgs {
    pub x: Address,
    pub norm_weight: Address,
    pub out: Address,
    pub scales: Address,
    pub rows: u32,
    pub hidden: u32,
    pub scale_stride: u32,
    pub scale_form: u32,
    pub gated: u32,
    pub eps: f32,
    pub gate: u32,
    pub plus_one: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DummyArgs {
    pub out: Address,
    pub key: u64,
    pub first: u64,
    pub rows: u32,
    pub cols: u32,
    pub width: u32,
    pub scale: f32,
    pub mean: f32,
    pub reserved: u32,
}

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

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DecodeArgs {
    pub q: Address,
    pub q_weight: Address,
    pub k_weight: Address,
    pub cos_sin: Address,
    pub k_pages: Address,
    pub v_pages: Address,
    pub out: Address,
    pub work: Address,
    pub pages: Address,
    pub partials: Address,
    pub arrived: Address,
    pub q_heads: u32,
    pub kv_heads: u32,
    pub page_size: u32,
    pub positions_len: u32,
    pub stages: u32,
    pub fused: u32,
    pub eps: f32,
    pub scale: f32,
    pub sinks: Address,
    pub window: u32,
    pub plus_one: u32,
    pub codes: Address,
    pub scales: Address,
    pub scale_stride: u32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PackArgs {
    pub from: Address,
    pub to: Address,
    pub row_stride: u64,
    pub column_stride: u64,
    pub rows: u32,
    pub columns: u32,
    pub rows_are: u32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RouterArgs {
    pub x: Address,
    pub norm_weight: Address,
    pub weight: Address,
    pub bias: Address,
    pub correction: Address,
    pub there: Address,
    pub normed: Address,
    pub logits: Address,
    pub ids: Address,
    pub weights: Address,
    pub counts: Address,
    pub plan: Address,
    pub arrived: Address,
    pub rows: u32,
    pub hidden: u32,
    pub experts: u32,
    pub top: u32,
    pub eps: f32,
    pub scale: f32,
    pub score: u32,
    pub renormalise: u32,
    pub batch: u32,
    pub batches_max: u32,
    pub logits_stride: u32,
    pub choose_rows: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ExpertsFewArgs {
    pub x: Address,
    pub gate_up: Address,
    pub down: Address,
    pub up_bias: Address,
    pub down_bias: Address,
    pub weights: Address,
    pub ids: Address,
    pub plan: Address,
    pub act: Address,
    pub out: Address,
    pub arrived: Address,
    pub up_scales: Address,
    pub down_scales: Address,
    pub rows: u32,
    pub top: u32,
    pub hidden: u32,
    pub width: u32,
    pub batches_max: u32,
    pub gate: u32,
    pub up_steps: u32,
    pub down_steps: u32,
    pub stages: u32,
    pub stage_bytes: u32,
    pub adds: u32,
    pub up_form: u32,
    pub down_form: u32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ExpertsManyArgs {
    pub x: Address,
    pub weight: Address,
    pub bias: Address,
    pub plan: Address,
    pub out: Address,
    pub rows: u32,
    pub top: u32,
    pub n: u32,
    pub columns: u32,
    pub batches_max: u32,
    pub batch: u32,
    pub stages: u32,
    pub gate: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct GatherArgs {
    pub x: Address,
    pub plan: Address,
    pub to: Address,
    pub rows: u32,
    pub top: u32,
    pub columns: u32,
    pub batches_max: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CombineArgs {
    pub y: Address,
    pub weights: Address,
    pub place: Address,
    pub out: Address,
    pub rows: u32,
    pub top: u32,
    pub hidden: u32,
    pub adds: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AddSharedArgs {
    pub x: Address,
    pub gate: Address,
    pub y: Address,
    pub out: Address,
    pub rows: u32,
    pub hidden: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Fp8GatherArgs {
    pub x: Address,
    pub plan: Address,
    pub to: Address,
    pub scales: Address,
    pub rows: u32,
    pub top: u32,
    pub columns: u32,
    pub batches_max: u32,
    pub scale_stride: u32,
    pub by_places: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Fp8ManyArgs {
    pub x: Address,
    pub x_scales: Address,
    pub weight: Address,
    pub scales: Address,
    pub bias: Address,
    pub plan: Address,
    pub out: Address,
    pub rows: u32,
    pub top: u32,
    pub n: u32,
    pub columns: u32,
    pub batches_max: u32,
    pub batch: u32,
    pub stages: u32,
    pub gate: u32,
    pub scale_stride: u32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Mxfp4PackArgs {
    pub codes: Address,
    pub scales: Address,
    pub to: Address,
    pub row_bytes: u64,
    pub scales_stride: u64,
    pub rows: u32,
    pub columns: u32,
    pub above: u32,
    pub left: u32,
    pub to_rows: u32,
    pub to_columns: u32,
    pub rows_are: u32,
    pub in_parts: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Mxfp4FewArgs {
    pub x: Address,
    pub gate_up: Address,
    pub down: Address,
    pub up_bias: Address,
    pub down_bias: Address,
    pub weights: Address,
    pub ids: Address,
    pub plan: Address,
    pub act: Address,
    pub out: Address,
    pub counts: Address,
    pub rows: u32,
    pub top: u32,
    pub hidden: u32,
    pub width: u32,
    pub batches_max: u32,
    pub gate: u32,
    pub stages: u32,
    pub stage_bytes: u32,
    pub room_bytes: u32,
    pub x_buffers: u32,
    pub adds: u32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FiArgs {
    pub q: Address,
    pub k_pages: Address,
    pub v_pages: Address,
    pub out: Address,
    pub q_starts: Address,
    pub page_starts: Address,
    pub pages: Address,
    pub last_page_len: Address,
    pub float_workspace: Address,
    pub int_workspace: Address,
    pub requests: u32,
    pub q_heads: u32,
    pub kv_heads: u32,
    pub kv_stride: u32,
    pub page_size: u32,
    pub scale: f32,
    pub dependent: u32,
    pub window_left: i32,
    pub sinks: Address,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FiPlanArgs {
    pub q_starts: *const i32,
    pub page_starts: *const i32,
    pub float_workspace: Address,
    pub int_workspace: Address,
    pub pinned: *mut u8,
    pub float_bytes: u64,
    pub int_bytes: u64,
    pub rows: u32,
    pub requests: u32,
    pub q_heads: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
    pub page_size: u32,
    pub kv_bytes: u32,
    pub graph: u32,
    pub window_left: i32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FaArgs {
    pub q: Address,
    pub k_pages: Address,
    pub v_pages: Address,
    pub out: Address,
    pub pages: Address,
    pub work_starts: Address,
    pub work: Address,
    pub work_len: u32,
    pub rows: u32,
    pub q_heads: u32,
    pub kv_heads: u32,
    pub kv_stride: u32,
    pub page_size: u32,
    pub scale: f32,
    pub tile: u32,
    pub sinks: Address,
    pub window_left: i32,
    pub reserved: u32,
}

/// Words of a plan of the `fi` backend.
pub const FI_PLAN_WORDS: usize = 15;

/// Ranks of a group at most.
pub const RANKS_MAX: usize = 8;

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PeerFault {
    pub failed: u32,
    pub missing: u32,
    pub block: u32,
    pub turn: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PeersArgs {
    pub arrivals: [Address; RANKS_MAX],
    pub turns: Address,
    pub fault: Address,
    pub patience_ns: u64,
    pub rank: u32,
    pub ranks: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct AllReduceArgs {
    pub peers: PeersArgs,
    pub delta: [Address; RANKS_MAX],
    pub residual: Address,
    pub norm_weight: Address,
    pub normed: Address,
    pub rows: u32,
    pub hidden: u32,
    pub eps: f32,
    pub add: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PushArgs {
    pub sum: AllReduceArgs,
    pub inbox: [Address; RANKS_MAX],
    pub inbox_rows: u32,
    pub sent: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MeetArgs {
    pub peers: PeersArgs,
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct GatherColumnsArgs {
    pub part: [Address; RANKS_MAX],
    pub start: [u32; RANKS_MAX + 1],
    pub parts: u32,
    pub part_stride: [u32; RANKS_MAX],
    pub out: Address,
    pub rows: u32,
    pub stride: u32,
    pub vectors: u32,
    pub reserved: u32,
}

pub const MAIL_CLUSTERS: usize = 64;
pub const MAIL_BLOCKS: usize = 16;
pub const MAIL_LIST: usize = 512;

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MailLine {
    pub low: u32,
    pub low_turn: u32,
    pub high: u32,
    pub high_turn: u32,
}

/// Its layout is all that is wanted of it here.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Mail {
    pub number: [[[MailLine; RANKS_MAX]; 2]; MAIL_BLOCKS],
    pub token: [MailLine; RANKS_MAX],
    pub list: [[MailLine; MAIL_LIST]; RANKS_MAX],
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SampleRanksArgs {
    pub sample: SampleArgs,
    pub peers: PeersArgs,
    pub part: [Address; RANKS_MAX],
    pub mail: [Address; RANKS_MAX],
    pub turns: Address,
    pub whole: Address,
    pub start: [u32; RANKS_MAX + 1],
    pub part_stride: [u32; RANKS_MAX],
    pub whole_stride: u32,
}
