//! The sampler's definition, written out naively: a full sort, one token after the other.

use minisgl_kernels::abi::{SampleParams, SampleRow};

/// 1 in the fixed point of weights.
const ONE: u64 = 1 << 40;

/// The token of a row that has nothing to sample from; -1 as the kernel writes it.
pub const NO_TOKEN: u32 = u32::MAX;

/// Everything about a row that is not in its parameters.
pub struct Extras<'a> {
    pub bias: &'a [(u32, f32)],
    pub banned: &'a [u32],
    /// For each token twice the times it is in the output, plus one if it is in the prompt.
    pub marks: Option<&'a [u32]>,
    /// A bit for each token that may be drawn.
    pub mask: Option<&'a [u32]>,
}

/// What sampling a row reports.
pub struct Sampled {
    pub token: u32,
    pub logprob: f32,
    pub top: Vec<(u32, f32)>,
}

/// NaN is -inf, +inf the largest finite float, -0 is +0.
pub fn clean(z: f32) -> f32 {
    if z.is_nan() { f32::NEG_INFINITY } else { z.min(f32::MAX) + 0.0 }
}

pub fn cleaned(logits: &[f32]) -> Vec<f32> {
    logits.iter().map(|&z| clean(z)).collect()
}

/// The lowest id among the highest logits, and its logit.
pub fn first(z: &[f32]) -> (u32, f32) {
    let highest = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    (z.iter().position(|&z| z == highest).unwrap_or(0) as u32, highest)
}

/// `floor(2^40 exp(x))` by the polynomial of Cephes' expf, in unfused f32.
fn weight(x: f32) -> u64 {
    if x.is_nan() || x < -27.5 {
        return 0;
    }
    let n = (x * std::f32::consts::LOG2_E).round_ties_even();
    let r = (x - n * (355.0 / 512.0)) - n * -2.121_944_4e-4;
    let mut p = 1.987_569_2e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + c;
    }
    (f64::from((p * (r * r) + r) + 1.0) * f64::from(n + 40.0).exp2()) as u64
}

/// Philox4x32-10: the first two words.
fn uniform(seed: u64, position: u32) -> u64 {
    let mut c = [position, 0, 0, 0];
    let mut k = [seed as u32, (seed >> 32) as u32];
    for _ in 0..10 {
        let (a, b) = (u64::from(c[0]) * 0xd251_1f53, u64::from(c[2]) * 0xcd9e_8d57);
        c = [(b >> 32) as u32 ^ c[1] ^ k[0], b as u32, (a >> 32) as u32 ^ c[3] ^ k[1], a as u32];
        k = [k[0].wrapping_add(0x9e37_79b9), k[1].wrapping_add(0xbb67_ae85)];
    }
    u64::from(c[1]) << 32 | u64::from(c[0])
}

pub fn sample(
    logits: &[f32],
    (row, params): (&SampleRow, &SampleParams),
    extras: &Extras<'_>,
) -> Sampled {
    if logits.iter().any(|z| z.is_nan()) || logits.iter().all(|&z| z == f32::NEG_INFINITY) {
        return Sampled { token: NO_TOKEN, logprob: f32::NAN, top: Vec::new() };
    }
    let raw = cleaned(logits);
    let by_rank = |z: &[f32]| {
        let mut order: Vec<u32> = (0..z.len() as u32).collect();
        order.sort_by(|&a, &b| z[b as usize].total_cmp(&z[a as usize]).then(a.cmp(&b)));
        order
    };

    // Log-probabilities of the raw logits.
    let (_, highest) = first(&raw);
    let sum: u64 = raw.iter().map(|z| weight(z - highest)).sum();
    let log_sum = (sum as f64 / ONE as f64).ln();
    let logprob = |token: u32| match raw[token as usize] {
        f32::NEG_INFINITY => f32::NEG_INFINITY,
        z => (f64::from(z - highest) - log_sum) as f32,
    };
    let count = row.logprobs.max(0) as usize;
    let top = if count == 0 { Vec::new() } else { by_rank(&raw) };
    let top = top.into_iter().take(count).map(|token| (token, logprob(token))).collect();

    if let Ok(token) = u32::try_from(row.given) {
        return Sampled { token, logprob: logprob(token), top };
    }

    // Bias, penalties, bans, the mask.
    let mut z = raw.clone();
    for &(token, bias) in extras.bias {
        z[token as usize] = clean(z[token as usize] + bias);
    }
    for (z, &mark) in z.iter_mut().zip(extras.marks.unwrap_or_default()) {
        if mark > 0 {
            let penalty = params.repetition_penalty;
            *z = clean(if *z > 0.0 { *z / penalty } else { *z * penalty });
        }
        if mark > 1 {
            let frequency = params.frequency_penalty * (mark / 2) as f32;
            *z = clean((*z - params.presence_penalty) - frequency);
        }
    }
    for &token in extras.banned {
        z[token as usize] = f32::NEG_INFINITY;
    }
    if let Some(mask) = extras.mask {
        let may = |at: usize| mask[at / 32] >> (at % 32) & 1 == 1;
        (0..z.len()).filter(|&at| !may(at)).for_each(|at| z[at] = f32::NEG_INFINITY);
    }

    let (greedy, highest) = first(&z);
    let drawn = |token| Sampled { token, logprob: logprob(token), top };
    if highest == f32::NEG_INFINITY || params.temperature.is_nan() || params.temperature <= 0.0 {
        return drawn(greedy);
    }

    // Weigh, then filter the ranking.
    let weight_of = |token: u32| weight((z[token as usize] - highest) / params.temperature);
    let mut kept: Vec<(u32, u64)> = by_rank(&z).into_iter().map(|t| (t, weight_of(t))).collect();
    kept.retain(|&(_, w)| w > 0);
    if params.top_k > 0 {
        kept.truncate(params.top_k as usize);
    }
    if params.top_p < 1.0 {
        let sum: u64 = kept.iter().map(|&(_, w)| w).sum();
        let need = (f64::from(params.top_p) * sum as f64).ceil() as u64;
        let mut running = 0;
        let enough = kept.iter().position(|&(_, w)| {
            running += w;
            running >= need
        });
        kept.truncate(enough.map_or(kept.len(), |last| last + 1));
    }
    if params.min_p > 0.0 {
        let least = (f64::from(params.min_p.min(1.0)) * ONE as f64).ceil() as u64;
        kept.retain(|&(_, w)| w >= least);
    }

    // Draw in the order of ids.
    kept.sort_by_key(|&(token, _)| token);
    let sum: u64 = kept.iter().map(|&(_, w)| w).sum();
    let target = (u128::from(uniform(params.seed, row.position)) * u128::from(sum)) >> 64;
    let mut running = 0;
    let (token, _) = kept
        .iter()
        .find(|&&(_, w)| {
            running += u128::from(w);
            running > target
        })
        .unwrap();
    drawn(*token)
}
