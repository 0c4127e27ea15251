//! Dot products in registers: the one place where the CPU's vector units are spoken to.
//!
//! Owns: the summation order. Every dot product of two vectors, from whichever path, adds the same
//! products in the same order: one accumulator of [`Simd`] lanes, walked front to back, reduced once.
//! So a row's result never depends on how many rows are computed with it.
//! Must never: allocate, or know what the numbers mean.
//!
//! 16-bit weights are packed so that widening costs one instruction a vector, on any width: a block
//! of `2 * lanes` weights is stored as `lanes` words, word `j` holding weight `j` in its low half and
//! weight `lanes + j` in its high half. A bfloat16 is the upper half of an f32, so a shift widens
//! the low ones and a mask the high ones.

use pulp::{Arch, Simd, WithSimd};

/// How a packed 16-bit word becomes two f32.
pub trait Half: Copy + Send + Sync + 'static {
    /// The low and the high halves of every word, widened.
    fn widen<S: Simd>(simd: S, words: S::u32s) -> (S::f32s, S::f32s);
}

/// bfloat16 bits.
#[derive(Clone, Copy)]
pub struct Bf16Bits;

/// IEEE half precision bits. Infinities and NaNs, which no sane checkpoint holds, are not kept.
#[derive(Clone, Copy)]
pub struct F16Bits;

impl Half for Bf16Bits {
    #[inline(always)]
    fn widen<S: Simd>(simd: S, words: S::u32s) -> (S::f32s, S::f32s) {
        let low = simd.wrapping_dyn_shl_u32s(words, simd.splat_u32s(16));
        let high = simd.and_u32s(words, simd.splat_u32s(0xffff_0000));
        (simd.transmute_f32s_u32s(low), simd.transmute_f32s_u32s(high))
    }
}

impl Half for F16Bits {
    /// Exponent and mantissa, moved to their f32 places, are the number times 2^-112.
    #[inline(always)]
    fn widen<S: Simd>(simd: S, words: S::u32s) -> (S::f32s, S::f32s) {
        let sign = simd.splat_u32s(0x8000_0000);
        let magnitude = simd.splat_u32s(0x0fff_e000);
        let scale = simd.splat_f32s(f32::from_bits((127 + 112) << 23));
        let join = |sign_bits, magnitude_bits| {
            let bits = simd
                .or_u32s(simd.and_u32s(sign_bits, sign), simd.and_u32s(magnitude_bits, magnitude));
            simd.mul_f32s(simd.transmute_f32s_u32s(bits), scale)
        };
        let low = join(
            simd.wrapping_dyn_shl_u32s(words, simd.splat_u32s(16)),
            simd.wrapping_dyn_shl_u32s(words, simd.splat_u32s(13)),
        );
        let high = join(words, simd.wrapping_dyn_shr_u32s(words, simd.splat_u32s(3)));
        (low, high)
    }
}

/// f32 lanes of a vector register under `arch`: the block of the packed layout is twice that.
pub fn lanes(arch: Arch) -> usize {
    struct Lanes;
    impl WithSimd for Lanes {
        type Output = usize;
        #[inline(always)]
        fn with_simd<S: Simd>(self, _simd: S) -> usize {
            S::F32_LANES
        }
    }
    arch.dispatch(Lanes)
}

/// Dot products of `R` vectors with `N` vectors, all as long as `a[0]`.
#[inline(always)]
pub fn dots<S: Simd, const R: usize, const N: usize>(
    simd: S,
    a: [&[f32]; R],
    b: [&[f32]; N],
) -> [[f32; N]; R] {
    let len = a[0].len();
    let whole = len / S::F32_LANES;
    let mut a_vectors: [&[S::f32s]; R] = [&[]; R];
    let mut b_vectors: [&[S::f32s]; N] = [&[]; N];
    for r in 0..R {
        a_vectors[r] = &S::as_simd_f32s(&a[r][..len]).0[..whole];
    }
    for n in 0..N {
        b_vectors[n] = &S::as_simd_f32s(&b[n][..len]).0[..whole];
    }
    let mut sums = [[simd.splat_f32s(0.0); N]; R];
    for i in 0..whole {
        let mut y = [simd.splat_f32s(0.0); N];
        for n in 0..N {
            y[n] = b_vectors[n][i];
        }
        for r in 0..R {
            let x = a_vectors[r][i];
            for n in 0..N {
                sums[r][n] = simd.mul_add_f32s(x, y[n], sums[r][n]);
            }
        }
    }
    let tail = whole * S::F32_LANES;
    if tail < len {
        for r in 0..R {
            let x = simd.partial_load_f32s(&a[r][tail..len]);
            for n in 0..N {
                let y = simd.partial_load_f32s(&b[n][tail..len]);
                sums[r][n] = simd.mul_add_f32s(x, y, sums[r][n]);
            }
        }
    }
    reduce(simd, sums)
}

/// As [`dots`], with `b` in the packed 16-bit layout: `ceil(len / 2 lanes) * lanes` words each,
/// padded with zeros.
#[inline(always)]
pub fn dots_packed<S: Simd, H: Half, const R: usize, const N: usize>(
    simd: S,
    a: [&[f32]; R],
    b: [&[u32]; N],
) -> [[f32; N]; R] {
    let len = a[0].len();
    let lanes = S::F32_LANES;
    let whole = len / (2 * lanes);
    let mut a_vectors: [&[[S::f32s; 2]]; R] = [&[]; R];
    let mut b_vectors: [&[S::u32s]; N] = [&[]; N];
    for r in 0..R {
        a_vectors[r] = &S::as_simd_f32s(&a[r][..len]).0.as_chunks::<2>().0[..whole];
    }
    for n in 0..N {
        b_vectors[n] = &S::as_simd_u32s(b[n]).0[..whole];
    }
    let mut sums = [[simd.splat_f32s(0.0); N]; R];
    for i in 0..whole {
        let mut y = [(simd.splat_f32s(0.0), simd.splat_f32s(0.0)); N];
        for n in 0..N {
            y[n] = H::widen(simd, b_vectors[n][i]);
        }
        for r in 0..R {
            let [low, high] = a_vectors[r][i];
            for n in 0..N {
                sums[r][n] = simd.mul_add_f32s(low, y[n].0, sums[r][n]);
                sums[r][n] = simd.mul_add_f32s(high, y[n].1, sums[r][n]);
            }
        }
    }
    let tail = whole * 2 * lanes;
    if tail < len {
        let middle = (tail + lanes).min(len);
        for r in 0..R {
            let low = simd.partial_load_f32s(&a[r][tail..middle]);
            let high = simd.partial_load_f32s(&a[r][middle..len]);
            for n in 0..N {
                let words = simd.partial_load_u32s(&b[n][whole * lanes..(whole + 1) * lanes]);
                let (y_low, y_high) = H::widen(simd, words);
                sums[r][n] = simd.mul_add_f32s(low, y_low, sums[r][n]);
                sums[r][n] = simd.mul_add_f32s(high, y_high, sums[r][n]);
            }
        }
    }
    reduce(simd, sums)
}

#[inline(always)]
fn reduce<S: Simd, const R: usize, const N: usize>(
    simd: S,
    sums: [[S::f32s; N]; R],
) -> [[f32; N]; R] {
    let mut out = [[0.0; N]; R];
    for r in 0..R {
        for n in 0..N {
            out[r][n] = simd.reduce_sum_f32s(sums[r][n]);
        }
    }
    out
}

/// Widens one packed row into `out`, in the order the weights had before packing.
#[inline(always)]
pub fn unpack<S: Simd, H: Half>(simd: S, words: &[u32], out: &mut [f32]) {
    let lanes = S::F32_LANES;
    for (block, out) in words.chunks_exact(lanes).zip(out.chunks_mut(2 * lanes)) {
        let (low, high) = H::widen(simd, simd.partial_load_u32s(block));
        let middle = lanes.min(out.len());
        let (out_low, out_high) = out.split_at_mut(middle);
        simd.partial_store_f32s(out_low, low);
        simd.partial_store_f32s(out_high, high);
    }
}

/// Packs rows of `columns` 16-bit weights for `lanes` lanes; see the module's head.
pub fn pack(bits: &[u16], columns: usize, lanes: usize) -> Vec<u32> {
    let words_per_row = packed_len(columns, lanes);
    let mut words = vec![0u32; bits.len() / columns.max(1) * words_per_row];
    for (row, out) in bits.chunks_exact(columns).zip(words.chunks_exact_mut(words_per_row)) {
        for (block, out) in row.chunks(2 * lanes).zip(out.chunks_exact_mut(lanes)) {
            for (j, word) in out.iter_mut().enumerate() {
                let low = block.get(j).copied().unwrap_or(0);
                let high = block.get(lanes + j).copied().unwrap_or(0);
                *word = u32::from(low) | u32::from(high) << 16;
            }
        }
    }
    words
}

/// Words of a packed row of `columns` weights.
pub fn packed_len(columns: usize, lanes: usize) -> usize {
    columns.div_ceil(2 * lanes) * lanes
}

/// `out[r] += sum over i of weights[r][i] * rows[i]`, adding in the order of `i`: `rows` is
/// `[count, width]`, `out` is `[R, width]`, and `weights[r]` starts at `r * stride`.
#[inline(always)]
pub fn weighted_sums<S: Simd, const R: usize>(
    simd: S,
    weights: &[f32],
    stride: usize,
    rows: &[f32],
    out: &mut [f32],
) {
    let width = out.len() / R;
    let count = rows.len() / width;
    let mut weight_rows: [&[f32]; R] = [&[]; R];
    for r in 0..R {
        weight_rows[r] = &weights[r * stride..][..count];
    }
    let whole = width / S::F32_LANES;
    let mut at = 0;
    while at < whole {
        at += match whole - at {
            4.. => weighted_vectors::<S, R, 4>(simd, weight_rows, rows, at, out),
            2.. => weighted_vectors::<S, R, 2>(simd, weight_rows, rows, at, out),
            _ => weighted_vectors::<S, R, 1>(simd, weight_rows, rows, at, out),
        };
    }
    let tail = whole * S::F32_LANES;
    if tail < width {
        for (weights, out) in weight_rows.iter().zip(out.chunks_exact_mut(width)) {
            let mut sum = simd.partial_load_f32s(&out[tail..]);
            for (weight, row) in weights.iter().zip(rows.chunks_exact(width)) {
                let value = simd.partial_load_f32s(&row[tail..]);
                sum = simd.mul_add_f32s(simd.splat_f32s(*weight), value, sum);
            }
            simd.partial_store_f32s(&mut out[tail..], sum);
        }
    }
}

/// Vectors `at .. at + V` of [`weighted_sums`]; returns `V`.
#[inline(always)]
fn weighted_vectors<S: Simd, const R: usize, const V: usize>(
    simd: S,
    weights: [&[f32]; R],
    rows: &[f32],
    at: usize,
    out: &mut [f32],
) -> usize {
    let width = out.len() / R;
    let (at, end) = (at * S::F32_LANES, (at + V) * S::F32_LANES);
    let mut sums = [[simd.splat_f32s(0.0); V]; R];
    for r in 0..R {
        let vectors = &S::as_simd_f32s(&out[r * width + at..r * width + end]).0[..V];
        sums[r].copy_from_slice(vectors);
    }
    for (i, row) in rows.chunks_exact(width).enumerate() {
        let values = &S::as_simd_f32s(&row[at..end]).0[..V];
        for r in 0..R {
            let weight = simd.splat_f32s(weights[r][i]);
            for v in 0..V {
                sums[r][v] = simd.mul_add_f32s(weight, values[v], sums[r][v]);
            }
        }
    }
    for r in 0..R {
        let vectors = S::as_mut_simd_f32s(&mut out[r * width + at..r * width + end]).0;
        vectors.copy_from_slice(&sums[r]);
    }
    V
}
