//! Timing the ways to compute a shape, and keeping what was found.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use cudarc::cublaslt::sys;
use half::bf16;

use super::plan::{Algorithm, Plan};
use super::tuned::{self, Ours, Tuned};
use super::{Call, Fp8GemmArgs, Gemm, GemmArgs, GemmError, GemmShape, check_rows, time};
use crate::check::Check;
use crate::fp8::Fp8Weight;
use crate::ops::{BroadCut, BroadGemm, Fp8Product, MediumGemm, NarrowGemm, SkinnyGemm};
use crate::{Array, Device};

/// Algorithms timed for a shape.
const CANDIDATES_MAX: usize = 16;

/// First line of what [`Gemm::save`] writes, before library version and GPU.
const SAVE_HEADER: &str = "minisgl-gemm 7";

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

/// What a product of e4m3 takes by each way that there is, itself: not what makes x of e4m3, or what gates its result.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// cuBLASLt, from x of e4m3.
    pub library: Duration,
    /// The fastest of our own products of few rows, from x of bf16.
    pub own: Option<(Fp8Product, Duration)>,
    /// [`NarrowGemm`], from x of e4m3.
    pub narrow: Option<Duration>,
    /// [`BroadGemm`] by its fastest cut, from x of e4m3.
    pub broad: Option<(BroadCut, Duration)>,
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
        if let Some(broad) = Self::time_broad(device, &mut args, weights)? {
            self.broad.insert(shape, broad);
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

    /// Times the cuts of [`BroadGemm`]; the fastest, and its nanoseconds.
    fn time_broad(
        device: &Device,
        args: &mut Fp8GemmArgs<'_>,
        weights: &[Fp8Weight<'_>],
    ) -> Result<Option<(BroadCut, u32)>, GemmError> {
        let mut best: Option<(BroadCut, f64)> = None;
        if !BroadGemm::takes(device, args.m) {
            return Ok(None);
        }
        for cut in BroadGemm::cuts(device, [args.m, args.n, args.k])? {
            let first = args.weight;
            let least = best.map_or(f64::INFINITY, |(_, least)| least);
            let seconds = time::time(device, weights.len() + 1, least, |i| {
                Ok(args.broad(device, cut, if i == 0 { first } else { weights[i - 1] })?)
            })?;
            if seconds < least {
                best = Some((cut, seconds));
            }
        }
        Ok(best.map(|(cut, seconds)| (cut, nanos(seconds))))
    }

    /// What the ways to compute a product of e4m3 take, where [`Gemm::tune_fp8`] or [`Gemm::restore`] has an answer for all of
    /// them.
    pub fn times(&self, shape: GemmShape) -> Option<Times> {
        let of = |nanos: u32| Duration::from_nanos(nanos.into());
        Some(Times {
            library: of(self.tuned.get(&shape)?.nanos),
            own: self.own.get(&shape).map(|&(product, nanos)| (product, of(nanos))),
            narrow: self.narrow.get(&shape).map(|&nanos| of(nanos)),
            broad: self.broad.get(&shape).map(|&(cut, nanos)| (cut, of(nanos))),
        })
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

    /// What was tuned, for [`Gemm::restore`] on the same GPU with the same library.
    pub fn save(&self, device: &Device) -> String {
        let mut lines: Vec<String> = self.tuned.iter().map(tuned::line).collect();
        let own = self.own.iter().map(|(shape, &(of, nanos))| (shape, Ours::Few(of), nanos));
        let narrow = self.narrow.iter().map(|(shape, &nanos)| (shape, Ours::Narrow, nanos));
        let broad =
            self.broad.iter().map(|(shape, &(cut, nanos))| (shape, Ours::Broad(cut), nanos));
        let ours = own.chain(narrow).chain(broad);
        lines.extend(ours.map(|(shape, of, nanos)| tuned::own_line(shape, of, nanos)));
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
        for (shape, of, nanos) in own {
            match of {
                Ours::Few(product) => drop(self.own.insert(shape, (product, nanos))),
                Ours::Narrow => drop(self.narrow.insert(shape, nanos)),
                Ours::Broad(cut) => drop(self.broad.insert(shape, (cut, nanos))),
            }
        }
        self.plans.clear();
        count
    }
}

fn nanos(seconds: f64) -> u32 {
    (seconds * 1e9).min(f64::from(u32::MAX)) as u32
}

fn header(device: &Device) -> String {
    // SAFETY: takes nothing and returns a number; the library is loaded.
    let version = unsafe { sys::cublasLtGetVersion() };
    format!("{SAVE_HEADER} cublasLt {version} on {}", device.name())
}
