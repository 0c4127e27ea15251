//! What GPUs of one machine do together.

use super::{Address, SampleArgs};

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
