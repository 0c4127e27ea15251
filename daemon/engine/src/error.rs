//! What can go wrong, in words that name the thing and the remedy.

use crate::config::ConfigError;
use crate::weights::WeightError;

/// A model cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// `config.json` is missing, malformed or of an unknown architecture.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A weight file or tensor is missing, broken or misshapen.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// The device is not there.
    #[error("device \"{device}\" cannot be used: {reason}; load with --device cpu")]
    Device {
        /// As asked for.
        device: &'static str,
        /// Why not, and what was looked for.
        reason: String,
    },
    /// The heads cannot be divided among the ranks.
    #[error(
        "tensor parallelism {tp} does not divide this model ({heads} heads, {kv_heads} KV heads); \
         possible are {possible:?}"
    )]
    TensorParallel {
        /// As asked for.
        tp: usize,
        /// Query heads.
        heads: usize,
        /// KV heads.
        kv_heads: usize,
        /// Degrees that divide.
        possible: Vec<usize>,
    },
    /// An option is out of its range.
    #[error("option {option} is {value}: {expected}")]
    Option {
        /// Name of the option.
        option: &'static str,
        /// As given.
        value: String,
        /// What it should be.
        expected: String,
    },
    /// There is no room for the KV pages.
    #[error(
        "no memory for the KV cache: {needed_bytes} bytes are needed for {tokens} tokens, \
         {budget_bytes} are left of {available_bytes} available beside {used_bytes} of weights and \
         workspaces; raise memory_ratio or free memory"
    )]
    Memory {
        /// Bytes that `tokens` take.
        needed_bytes: u64,
        /// Tokens that must fit.
        tokens: u64,
        /// Bytes left under the budget.
        budget_bytes: u64,
        /// Memory available before loading.
        available_bytes: u64,
        /// Bytes of weights, over all ranks, and on a GPU of workspaces and graphs.
        used_bytes: u64,
    },
    /// A rank failed while loading or warming up.
    #[error("rank {rank} failed in {operation}: {reason}")]
    Rank {
        /// Which.
        rank: usize,
        /// What it was doing.
        operation: String,
        /// What happened.
        reason: String,
    },
    /// The first steps failed.
    #[error("the first steps failed: {reason}")]
    WarmUp {
        /// What happened.
        reason: String,
    },
    /// The operating system refused something.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// Its answer.
        source: std::io::Error,
    },
}

/// An operation failed on one rank; the engine cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{operation}: {reason}")]
pub struct OpError {
    /// Which operation.
    pub operation: &'static str,
    /// What happened.
    pub reason: String,
}
