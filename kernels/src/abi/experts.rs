//! Blocks of experts, from the router to their sum.

use super::Address;

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
