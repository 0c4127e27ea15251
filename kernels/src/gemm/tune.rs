//! Timing the ways to compute a shape, and keeping what was found.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use cudarc::cublaslt::sys;
use half::bf16;

use super::plan::{Algorithm, Plan};
use super::tuned::{self, Tuned};
use super::{Call, Fp8GemmArgs, Gemm, GemmArgs, GemmError, GemmShape, check_rows, time};
use crate::check::Check;
use crate::fp8::Fp8Weight;
use crate::ops::{Fp8Product, MediumGemm, NarrowGemm, SkinnyGemm};
use crate::{Array, Device};

/// Algorithms timed for a shape.
const CANDIDATES_MAX: usize = 16;

/// First line of what [`Gemm::save`] writes, before library version and GPU.
const SAVE_HEADER: &str = "minisgl-gemm 6";

/// What tuning a shape found.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// Seconds of cuBLASLt's first guess.
    pub first_s: f64,
    /// Seconds of the fastest of its algorithms.
    pub best_s: f64,
    /// Seconds of [`SkinnyGemm`], or of the fastest [`Fp8Product`], for few rows.
    pub skinny_s: Option<f64>,
    /// Algorithms timed.
    pub tried: usize,
}

/// What timing cuBLASLt's algorithms found.
struct Timed {
    first_s: f64,
    best_s: f64,
    algorithm: Algorithm,
    tried: usize,
}

impl Gemm {
    /// Times the algorithms that cuBLASLt offers and keeps the fastest for this shape; for up to
    /// [`SkinnyGemm::ROWS_MAX`] rows [`SkinnyGemm`] too. `args` writes its output many times; `weights`, all like
    /// `args.weight`, are read in turn, so that the cache is as cold as in a model with many layers.
    ///
    /// The likely best come first; after `budget` no other algorithm is tried. One shape takes some
    /// milliseconds.
    ///
    /// # Errors
    /// See [`GemmError`].
    pub fn tune(
        &mut self,
        device: &Device,
        mut args: GemmArgs<'_>,
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
        let lt = self.time_algorithms(device, &calls, began, budget)?;
        let skinny_s = (1..=SkinnyGemm::ROWS_MAX)
            .contains(&args.m)
            .then(|| {
                time::time(device, calls.len(), f64::INFINITY, |i| {
                    let weight = if i == 0 { args.weight } else { weights[i - 1] };
                    Ok(args.skinny(weight).launch(device)?)
                })
            })
            .transpose()?;
        self.settle_on(device, shape, lt, skinny_s)
    }

    /// [`Gemm::tune`] of e4m3. `wide` is x as bf16, `[m, k]`: where it is given, our own products of few rows
    /// ([`Fp8Product`]) are timed with it, and the fastest is kept ([`Gemm::own_fp8`]). Rows that cuBLASLt does not take are
    /// timed by these alone.
    ///
    /// # Errors
    /// See [`GemmError`].
    pub fn tune_fp8(
        &mut self,
        device: &Device,
        mut args: Fp8GemmArgs<'_>,
        wide: Option<Array<'_, bf16>>,
        weights: &[Fp8Weight<'_>],
        budget: Duration,
    ) -> Result<Tuning, GemmError> {
        let began = Instant::now();
        let shape = args.shape();
        if let Some(x) = wide {
            let own = self.time_own(device, &mut args, x, weights)?;
            if let Some(own) = own {
                self.own.insert(shape, own);
            }
            if check_rows(&Check::new("gemm_fp8", device), shape).is_err() {
                let seconds = own.map_or(f64::INFINITY, |own| f64::from(own.1) * 1e-9);
                return Ok(Tuning {
                    first_s: f64::INFINITY,
                    best_s: f64::INFINITY,
                    skinny_s: Some(seconds),
                    tried: 0,
                });
            }
        }
        let call = Call::check_fp8(device, &args)?;
        let check = Check::new("gemm_fp8", device);
        let mut calls = vec![call];
        for weight in weights {
            let same = weight.form() == args.weight.form();
            check.that(same, || "all weights must have scales of the same form".into())?;
            let (weight, scales) = weight.check(&check, args.n, args.k)?;
            calls.push(Call { weight, scales: (call.scales.0, scales), ..call });
        }
        let lt = self.time_algorithms(device, &calls, began, budget)?;
        if MediumGemm::is_there(device) && NarrowGemm::takes(args.m) {
            let first = args.weight;
            let seconds = time::time(device, calls.len(), f64::INFINITY, |i| {
                Ok(args.narrow(device, if i == 0 { first } else { weights[i - 1] })?)
            })?;
            self.narrow.insert(shape, nanos(seconds));
        }
        let own_s = wide.and(self.own.get(&shape)).map(|own| f64::from(own.1) * 1e-9);
        self.settle_on(device, shape, lt, own_s)
    }

    /// Times all of our own products of few rows; the fastest, and its nanoseconds.
    fn time_own(
        &self,
        device: &Device,
        args: &mut Fp8GemmArgs<'_>,
        x: Array<'_, bf16>,
        weights: &[Fp8Weight<'_>],
    ) -> Result<Option<(Fp8Product, u32)>, GemmError> {
        let mut best: Option<(Fp8Product, u32)> = None;
        for product in Fp8Product::all_of(device, args.m, args.k) {
            let first = args.weight;
            let seconds = time::time(device, weights.len() + 1, f64::INFINITY, |i| {
                let weight = if i == 0 { first } else { weights[i - 1] };
                Ok(args.own(device, product, x, weight)?)
            })?;
            let nanos = nanos(seconds);
            if best.is_none_or(|(_, least)| nanos < least) {
                best = Some((product, nanos));
            }
        }
        Ok(best)
    }

    /// Whether [`NarrowGemm`] computes `shape` faster than cuBLASLt. It can do more in one launch: `saved` is what the ops
    /// cost that it would make superfluous. False where it was not timed.
    pub fn prefers_narrow(&self, shape: GemmShape, saved: Duration) -> bool {
        let tuned = self.tuned.get(&shape).zip(self.narrow.get(&shape));
        tuned.is_some_and(|(tuned, narrow)| *narrow < tuned.nanos.saturating_add(whole(saved)))
    }

    /// The fastest of our own products of few rows for `shape`, where [`Gemm::tune_fp8`] or [`Gemm::restore`] has an answer.
    pub fn own_fp8(&self, shape: GemmShape) -> Option<Fp8Product> {
        self.own.get(&shape).map(|(product, _)| *product)
    }

    /// Times what cuBLASLt offers for the shape of `calls`.
    fn time_algorithms(
        &mut self,
        device: &Device,
        calls: &[Call],
        began: Instant,
        budget: Duration,
    ) -> Result<Timed, GemmError> {
        let shape = calls[0].shape;
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
        Ok(Timed { first_s: first_s.ok_or_else(none)?, best_s: best.0, algorithm: best.1, tried })
    }

    /// Keeps what was found.
    fn settle_on(
        &mut self,
        device: &Device,
        shape: GemmShape,
        lt: Timed,
        skinny_s: Option<f64>,
    ) -> Result<Tuning, GemmError> {
        let Timed { first_s, best_s, algorithm, tried } = lt;
        let skinny_nanos = skinny_s.map(nanos);
        self.tuned.insert(shape, Tuned { algorithm, nanos: nanos(best_s), skinny_nanos });
        self.plans.remove(&shape);
        self.prepare(device, shape)?;
        Ok(Tuning { first_s, best_s, skinny_s, tried })
    }

    /// Whether [`Gemm::tune`] or [`Gemm::restore`] has an answer for `shape`.
    pub fn is_tuned(&self, shape: GemmShape) -> bool {
        self.tuned.contains_key(&shape)
    }

    /// Whether [`SkinnyGemm`], or for e4m3 the fastest [`Fp8Product`], computes `shape` faster. It can do more in one launch: `saved` is what the ops cost
    /// that it would make superfluous beside [`NarrowGemm`], and beside cuBLASLt. False where it was not timed.
    pub fn prefers_skinny(&self, shape: GemmShape, saved: [Duration; 2]) -> bool {
        self.tuned.get(&shape).is_some_and(|tuned| {
            let narrow = self.narrow.get(&shape).copied().unwrap_or(u32::MAX);
            let [narrow_saved, saved] = saved.map(whole);
            let library = tuned.nanos.saturating_add(saved);
            let other = narrow.saturating_add(narrow_saved).min(library);
            tuned.skinny_nanos.is_some_and(|skinny| skinny < other)
        })
    }

    /// What was tuned, for [`Gemm::restore`] on the same GPU with the same library.
    pub fn save(&self, device: &Device) -> String {
        let mut lines: Vec<String> = self.tuned.iter().map(tuned::line).collect();
        lines.extend(
            self.own
                .iter()
                .map(|(shape, (product, nanos))| tuned::own_line(shape, product.name(), *nanos)),
        );
        let narrow = self.narrow.iter();
        lines.extend(narrow.map(|(shape, nanos)| tuned::own_line(shape, tuned::NARROW, *nanos)));
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
        let (own, tuned): (Vec<&str>, Vec<&str>) =
            rest.lines().partition(|line| tuned::is_own(line));
        let own = own.into_iter().map(tuned::parse_own).collect::<Option<Vec<_>>>();
        let tuned = tuned.into_iter().map(tuned::parse).collect::<Option<HashMap<_, _>>>();
        let (Some(own), Some(tuned)) = (own, tuned) else { return 0 };
        let fits = |(shape, tuned): (GemmShape, Tuned)| {
            let plan = Plan::new(shape).ok()?;
            let algorithm = plan.check(self.handle, self.workspace.len(), tuned.algorithm)?;
            Some((shape, Tuned { algorithm, ..tuned }))
        };
        let tuned: Vec<_> = tuned.into_iter().filter_map(fits).collect();
        let shapes =
            tuned.iter().map(|(shape, _)| shape).chain(own.iter().map(|(shape, ..)| shape));
        let count = shapes.collect::<HashSet<_>>().len();
        self.tuned.extend(tuned);
        for (shape, product, nanos) in own {
            match product {
                Some(product) => drop(self.own.insert(shape, (product, nanos))),
                None => drop(self.narrow.insert(shape, nanos)),
            }
        }
        self.plans.clear();
        count
    }
}

/// Nanoseconds.
fn whole(time: Duration) -> u32 {
    time.as_nanos().min(u128::from(u32::MAX)) as u32
}

fn nanos(seconds: f64) -> u32 {
    (seconds * 1e9).min(f64::from(u32::MAX)) as u32
}

fn header(device: &Device) -> String {
    // SAFETY: takes nothing and returns a number; the library is loaded.
    let version = unsafe { sys::cublasLtGetVersion() };
    format!("{SAVE_HEADER} cublasLt {version} on {}", device.name())
}
