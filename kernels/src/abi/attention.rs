//! Attention: our decode kernel, FlashInfer, and the template of Hopper.

use super::Address;

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
