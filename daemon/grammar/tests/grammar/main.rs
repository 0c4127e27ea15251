//! Grammars as the rest of the daemon sees them.

#![allow(clippy::unwrap_used, reason = "tests")]

mod calls;
mod common;
mod limits;
mod many;
mod outputs;
mod tags;
mod thoughts;
