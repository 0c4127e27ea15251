//! The OpenAI-compatible HTTP surface.
//!
//! Owns: request parsing, templates, tokenizers, streams. Must never: know what a worker is.

#![forbid(unsafe_code)]

pub mod backend;
