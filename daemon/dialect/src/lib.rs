//! How model families talk: tool calls and thoughts in the text that they write.
//!
//! ```text
//!   text of tokens, in any pieces --> Parser --> Part, Part, ...      text | reasoning | begin, arguments, end of a call
//!                                       ^
//!   checkpoint --> Dialect              '-- Asked: the request's tools, how the prompt ended
//! ```
//!
//! A dialect is a file in `dialects/`: the markers of its family, the body of its calls (`body/`, a few kinds), and
//! what a checkpoint is known by. `flow.rs` runs all of them but harmony, which is messages and not text with markers.
//!
//! Owns: the way from text to parts. Must never: know a surface, a token, or a runtime.

#![forbid(unsafe_code)]

mod body;
mod calls;
mod checkpoint;
mod choose;
mod dialect;
mod dialects;
mod enforce;
mod flow;
mod grammar;
mod harmony;
mod json;
mod part;
mod scan;
mod tools;

pub use body::VALUE_BYTES_MAX;
pub use checkpoint::Checkpoint;
pub use choose::{by_name, choose, names, plain};
pub use dialect::{Answer, Asked, Dialect, Ids, Parser};
pub use enforce::{Enforced, LARK_BYTES_MAX, Wanted};
pub use flow::{HELD_BYTES_MAX, Thought};
pub use grammar::{Arguments, Enforcement, HasToken, IsOther, Tag};
pub use part::{Counts, Left, Outcome, Part, Phase};
pub use tools::{Tool, Tools};
