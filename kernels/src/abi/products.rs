//! Products of few rows and of e4m3, and what makes activations e4m3.

use super::{Address, RANKS_MAX};

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

#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct BroadArgs {
    pub map: [u64; 16],
    pub x_map: [u64; 16],
    pub x_scales: Address,
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
