//! The fence: Rust's mirror of `cu/minisgl.h` and the headers beside it, which document every field. Held to what the C
//! compiler says by `tests/abi.rs`.
//!
//! Only [`SampleRow`] and [`SampleParams`] are for others to fill; the rest is filled by the launchers.

#![allow(missing_docs)] // The header has them.

mod attention;
mod experts;
mod peers;
mod products;
mod sample;

pub use attention::*;
pub use experts::*;
pub use peers::*;
pub use products::*;
pub use sample::*;

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
