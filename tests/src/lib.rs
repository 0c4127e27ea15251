//! The harness of the end-to-end tests: a real daemon, real worker processes, a real model, over
//! nothing but the binaries and their documented APIs.
//!
//! Owns: starting and ending daemons, a small HTTP client, a Prometheus server, the fixtures. Must never: link a room of
//! the daemon (but `proto`, the words of its API), or skip a test because something is missing.

#![forbid(unsafe_code)]

pub mod daemon;
pub mod fixture;
pub mod generate;
pub mod http;
pub mod modules;
pub mod npm;
pub mod paths;
pub mod prometheus;
pub mod random;

pub use daemon::{Daemon, is_exact, model_options};
pub use generate::{Generated, Greedy, generate, greedy, greedy_with_rivals};
pub use http::{Events, Response, Server};
pub use paths::dummy_folder;
