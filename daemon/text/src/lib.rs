//! The text side of a model: its tokenizer and its chat template, in a process of their own.
//!
//! `tokenizer.json` and the template come from whoever made the model. They are read and run here, in the process
//! that `minisgld text` is: confined, under limits of memory and time, with nothing but a socket to the daemon.
//!
//! | file | what it holds |
//! |---|---|
//! | `process` | the loop: frames in, jobs on a few threads, frames out |
//! | `side` | a folder's text side: what it says of itself, and its jobs |
//! | `files` | what the folder's files say of tokens and templates, as transformers reads them |
//! | `vocabulary` | the tokenizer, and the table that the daemon makes text from |
//! | `dialect` | how the model writes tool calls and thoughts, by its files |
//! | `encode` | texts to token ids, long ones in pieces |
//! | `template` | a conversation to a prompt, in the form that the template takes |
//! | `jinja` | the language of templates |
//!
//! Owns: everything that a model's author wrote, but for weights. Must never: open a socket, write a file, or trust a
//! file's word on how much memory or time it takes.

#![forbid(unsafe_code)]

mod dialect;
mod encode;
mod files;
mod jinja;
mod process;
mod side;
mod template;
mod vocabulary;

/// Tokenizers with one token a byte, for tests.
#[doc(hidden)]
pub mod tiny;

pub use files::LoadError;
pub use process::serve;
pub use side::TextSide;
pub use template::{ChatTemplate, TemplateError};
