//! Timing the ways to compute a shape, and keeping what was found.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use cudarc::cublaslt::sys;
use half::bf16;

use super::plan::Plan;
use super::tuned::{self, Tuned};
use super::{Call, Gemm, GemmArgs, GemmError, GemmShape, time};
use crate::check::Check;
use crate::{Array, Device};

/// Algorithms timed for a shape.
const CANDIDATES_MAX: usize = 16;

/// First line of what [`Gemm::save`] writes, before library version and GPU.
const SAVE_HEADER: &str = "minisgl-gemm 3";

/// What tuning a shape found.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// Seconds of cuBLASLt's first guess.
    pub first_s: f64,
    /// Seconds of the fastest of its algorithms.
    pub best_s: f64,
    /// Algorithms timed.
    pub tried: usize,
}

impl Gemm {
    /// Times the algorithms that cuBLASLt offers and keeps the fastest for this shape. `args` writes its output many
    /// times; `weights`, all like `args.weight`, are read in turn, so that the cache is as cold as in a model with many
    /// layers.
    ///
    /// The likely best come first; after `budget` no other algorithm is tried. One shape takes some
    /// milliseconds.
    ///
    /// # Errors
    /// See [`GemmError`].
    pub fn tune(
        &mut self,
        device: &Device,
        args: GemmArgs<'_>,
        weights: &[Array<'_, bf16>],
        budget: Duration,
    ) -> Result<Tuning, GemmError> {
        let began = Instant::now();
        let call = Call::check(device, &args)?;
        let shape = call.shape;
        let check = Check::new("gemm", device);
        let mut calls = vec![call];
        for weight in weights {
            let weight = check.array("weight", weight, &[args.n, args.k])?;
            calls.push(Call { weight, ..call });
        }
        self.tuned.remove(&shape);
        self.plans.remove(&shape);
        self.prepare(device, shape)?;
        let plan = &self.plans[&shape];
        let candidates = plan.candidates(self.handle, self.workspace.len(), CANDIDATES_MAX)?;

        let mut first_s = None;
        let mut best = (f64::INFINITY, candidates[0]);
        let mut tried = 0;
        for algorithm in candidates {
            if first_s.is_some() && began.elapsed() > budget {
                break;
            }
            tried += 1;
            let launch = |i: usize| self.run(device, &calls[i], Some(algorithm));
            // What an algorithm promises, it does not always keep: skip what fails.
            let Ok(seconds) = time::time(device, calls.len(), best.0, launch) else { continue };
            first_s.get_or_insert(seconds);
            if seconds < best.0 {
                best = (seconds, algorithm);
            }
        }
        let none = || GemmError::Cublas {
            what: format!("run any algorithm for {shape:?}"),
            status: sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED,
        };
        let first_s = first_s.ok_or_else(none)?;
        let nanos = |seconds: f64| (seconds * 1e9).min(f64::from(u32::MAX)) as u32;
        self.tuned.insert(shape, Tuned { algorithm: best.1, nanos: nanos(best.0) });
        self.plans.remove(&shape);
        self.prepare(device, shape)?;
        Ok(Tuning { first_s, best_s: best.0, tried })
    }

    /// Whether [`Gemm::tune`] or [`Gemm::restore`] has an answer for `shape`.
    pub fn is_tuned(&self, shape: GemmShape) -> bool {
        self.tuned.contains_key(&shape)
    }

    /// What was tuned, for [`Gemm::restore`] on the same GPU with the same library.
    pub fn save(&self, device: &Device) -> String {
        let mut lines: Vec<String> = self.tuned.iter().map(tuned::line).collect();
        lines.sort();
        format!("{}\n{}", header(device), lines.concat())
    }

    /// Takes over what was saved; returns how many shapes. None if it is from another GPU or library, or
    /// not whole.
    pub fn restore(&mut self, device: &Device, saved: &str) -> usize {
        let Some((first, rest)) = saved.split_once('\n') else { return 0 };
        if first != header(device) {
            return 0;
        }
        let Some(tuned) = rest.lines().map(tuned::parse).collect::<Option<HashMap<_, _>>>() else {
            return 0;
        };
        let fits = |(shape, tuned): (GemmShape, Tuned)| {
            let plan = Plan::new(shape).ok()?;
            let algorithm = plan.check(self.handle, self.workspace.len(), tuned.algorithm)?;
            Some((shape, Tuned { algorithm, ..tuned }))
        };
        let tuned: Vec<_> = tuned.into_iter().filter_map(fits).collect();
        let count = tuned.len();
        self.tuned.extend(tuned);
        self.plans.clear();
        count
    }
}

fn header(device: &Device) -> String {
    // SAFETY: takes nothing and returns a number; the library is loaded.
    let version = unsafe { sys::cublasLtGetVersion() };
    format!("{SAVE_HEADER} cublasLt {version} on {}", device.name())
}
