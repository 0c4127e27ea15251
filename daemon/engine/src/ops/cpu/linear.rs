//! Weight matrices in memory and their products with activations.
//!
//! Owns: the layouts of a matrix and the blocking of the product over caches and threads.
//! Must never: change the summation order with the number of rows (see [`super::simd`]).
//!
//! With few rows a product reads every weight once and does little with it: the packed 16-bit words
//! go straight from memory to registers. With many rows a panel of outputs is widened once into a
//! scratch that stays in the second-level cache, and tiles of rows are run against it. Codes are widened so for
//! any number of rows.

use std::cell::RefCell;
use std::ops::Range;

use half::{bf16, f16};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::coded::Coded;
use super::simd::{Bf16Bits, F16Bits, Half, dots, dots_packed, lanes, pack, packed_len, unpack};
use crate::weights::{HostTensor, MatrixPart};

/// Rows up to which the packed weights are used as they are.
const DIRECT_ROWS: usize = 8;
/// Outputs computed together in registers.
const TILE_OUTPUTS: usize = 4;
/// Bytes of widened weights that a thread keeps in its second-level cache.
const PANEL_BYTES: usize = 256 << 10;

/// A weight matrix `[outputs, inputs]`, row-major: row `n` yields output `n`.
#[derive(Clone)]
pub struct Matrix {
    outputs: usize,
    inputs: usize,
    data: Data,
}

#[derive(Clone)]
enum Data {
    F32(Vec<f32>),
    Bf16(Vec<u32>),
    F16(Vec<u32>),
    Coded(Coded),
}

impl Matrix {
    /// Stacks `parts`, each of whole rows of `inputs`, keeping codes as they are stored, and 16-bit weights at 16
    /// bits. Parts of different types are widened to f32.
    pub fn of(parts: &[MatrixPart<'_>], inputs: usize, arch: Arch) -> Matrix {
        if let Some(coded) = Coded::of(parts, inputs) {
            return Matrix { outputs: coded.rows(), inputs, data: Data::Coded(coded) };
        }
        let numbers = |part: &MatrixPart<'_>| match part {
            MatrixPart::Plain(part) => part.load(),
            MatrixPart::Coded(_) => match Coded::of(std::slice::from_ref(part), inputs) {
                Some(coded) => HostTensor::F32(coded.into_f32()),
                None => HostTensor::F32(Vec::new()),
            },
        };
        Matrix::new(parts.iter().map(numbers).collect(), inputs, arch)
    }

    /// Stacks `parts`, each of whole rows of `inputs`, keeping 16-bit weights at 16 bits.
    /// Parts of different types are widened to f32.
    pub fn new(parts: Vec<HostTensor>, inputs: usize, arch: Arch) -> Matrix {
        let lanes = lanes(arch);
        let all = |wanted: fn(&HostTensor) -> bool| parts.iter().all(wanted);
        let (data, elements) = if all(|part| matches!(part, HostTensor::Bf16(_))) {
            let words = parts.iter().map(|part| match part {
                HostTensor::Bf16(values) => pack(bytemuck::cast_slice(values), inputs, lanes),
                _ => Vec::new(),
            });
            (Data::Bf16(concat(words)), elements(&parts))
        } else if all(|part| matches!(part, HostTensor::F16(_))) {
            let words = parts.iter().map(|part| match part {
                HostTensor::F16(values) => pack(bytemuck::cast_slice(values), inputs, lanes),
                _ => Vec::new(),
            });
            (Data::F16(concat(words)), elements(&parts))
        } else {
            let elements = elements(&parts);
            (Data::F32(widen(parts)), elements)
        };
        Matrix { outputs: elements / inputs, inputs, data }
    }

    /// Number of rows of the matrix.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Number of columns of the matrix.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Bytes it holds.
    pub fn bytes(&self) -> usize {
        match &self.data {
            Data::F32(values) => size_of_val(values.as_slice()),
            Data::Bf16(words) | Data::F16(words) => size_of_val(words.as_slice()),
            Data::Coded(coded) => coded.bytes(),
        }
    }

    /// Writes row `n`, widened, into `out` of `[inputs]`.
    pub fn row(&self, arch: Arch, n: usize, out: &mut [f32]) {
        arch.dispatch(Rows { matrix: self, first: n, out });
    }
}

fn elements(parts: &[HostTensor]) -> usize {
    let len = |part: &HostTensor| match part {
        HostTensor::F32(values) => values.len(),
        HostTensor::Bf16(values) => values.len(),
        HostTensor::F16(values) => values.len(),
    };
    parts.iter().map(len).sum()
}

fn concat(parts: impl ExactSizeIterator<Item = Vec<u32>>) -> Vec<u32> {
    let mut parts: Vec<_> = parts.collect();
    if parts.len() == 1 { parts.remove(0) } else { parts.concat() }
}

/// `parts` one after the other, as f32.
pub fn widen(parts: Vec<HostTensor>) -> Vec<f32> {
    let mut all = Vec::with_capacity(elements(&parts));
    for part in parts {
        match part {
            HostTensor::F32(values) => all.extend(values),
            HostTensor::Bf16(values) => all.extend(values.into_iter().map(bf16::to_f32)),
            HostTensor::F16(values) => all.extend(values.into_iter().map(f16::to_f32)),
        }
    }
    all
}

/// `out[r, n] = sum over k of x[r, k] * weight[n, k] (+ bias[n])`, with `x` of `[rows, inputs]`, `out`
/// of `[rows, outputs]`; `scratch` is overwritten and grows to `rows * outputs`.
/// Runs on the threads of the current rayon pool.
pub fn linear(
    arch: Arch,
    weight: &Matrix,
    bias: Option<&[f32]>,
    x: &[f32],
    out: &mut [f32],
    scratch: &mut Vec<f32>,
) {
    linear_rows(arch, weight, 0..weight.outputs, bias, x, out, scratch);
}

/// [`linear`] with the rows `outputs` of `weight` alone, which `bias` and `out` belong to.
pub fn linear_rows(
    arch: Arch,
    weight: &Matrix,
    outputs: Range<usize>,
    bias: Option<&[f32]>,
    x: &[f32],
    out: &mut [f32],
    scratch: &mut Vec<f32>,
) {
    let rows = x.len() / weight.inputs;
    let count = outputs.len();
    assert!(outputs.end <= weight.outputs, "linear: the weight has {} rows", weight.outputs);
    assert_eq!(x.len(), rows * weight.inputs, "linear: x is [rows, inputs]");
    assert_eq!(out.len(), rows * count, "linear: out is [rows, outputs]");
    if rows == 1 {
        // One row: [outputs, rows] and [rows, outputs] are the same thing.
        panels(arch, weight, outputs.start, x, rows, out);
        if let Some(bias) = bias {
            out.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
        }
    } else if rows > 1 {
        scratch.resize(scratch.len().max(out.len()), 0.0);
        let transposed = &mut scratch[..rows * count];
        panels(arch, weight, outputs.start, x, rows, transposed);
        transpose(transposed, bias, rows, count, out);
    }
}

/// Computes `[outputs, rows]` from row `start` of the weight on, in panels of whole outputs, which threads take in
/// any order.
fn panels(arch: Arch, weight: &Matrix, start: usize, x: &[f32], rows: usize, out: &mut [f32]) {
    let threads = rayon::current_num_threads();
    let widened = rows > DIRECT_ROWS || matches!(weight.data, Data::Coded(_));
    let fits = PANEL_BYTES / (weight.inputs * size_of::<f32>());
    let all = out.len() / rows;
    // Few rows: a panel is as large as keeps all threads busy to the end, for each costs a hand-over.
    let outputs = if widened { fits.clamp(4, 64) } else { all.div_ceil(4 * threads) };
    let outputs = outputs.next_multiple_of(TILE_OUTPUTS);
    let panel = |(index, out): (usize, &mut [f32])| {
        let first = start + index * outputs;
        WIDENED.with_borrow_mut(|scratch| {
            let widened = if widened { Some(scratch) } else { None };
            arch.dispatch(Panel { weight, first, x, rows, widened, out });
        });
    };
    if threads == 1 {
        out.chunks_mut(outputs * rows).enumerate().for_each(panel);
    } else {
        out.par_chunks_mut(outputs * rows).enumerate().for_each(panel);
    }
}

/// `[outputs, rows]` to `[rows, outputs]`, adding the bias.
fn transpose(from: &[f32], bias: Option<&[f32]>, rows: usize, outputs: usize, to: &mut [f32]) {
    const ROWS: usize = 16;
    to.par_chunks_mut(ROWS * outputs).enumerate().for_each(|(block, to)| {
        let first = block * ROWS;
        let count = to.len() / outputs;
        for n in 0..outputs {
            let bias = bias.map_or(0.0, |bias| bias[n]);
            let column = &from[n * rows + first..][..count];
            for (r, value) in column.iter().enumerate() {
                to[r * outputs + n] = value + bias;
            }
        }
    });
}

thread_local! {
    static WIDENED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Outputs `first ..` of a product, as many as `out` of `[outputs, rows]` has room for.
struct Panel<'a> {
    weight: &'a Matrix,
    first: usize,
    x: &'a [f32],
    rows: usize,
    /// Where to widen the weights to, if it pays.
    widened: Option<&'a mut Vec<f32>>,
    out: &'a mut [f32],
}

impl WithSimd for Panel<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Panel { weight, first, x, rows, widened, out } = self;
        let (inputs, outputs) = (weight.inputs, out.len() / rows);
        let words = packed_len(inputs, S::F32_LANES);
        let scratch = match (widened, &weight.data) {
            (_, Data::F32(values)) => {
                return tiles(simd, x, rows, &F32Rows { values: &values[first * inputs..] }, out);
            }
            (None, Data::Bf16(packed)) => {
                let weight = PackedRows::<Bf16Bits>::new(&packed[first * words..], words);
                return tiles(simd, x, rows, &weight, out);
            }
            (None, Data::F16(packed)) => {
                let weight = PackedRows::<F16Bits>::new(&packed[first * words..], words);
                return tiles(simd, x, rows, &weight, out);
            }
            (None, Data::Coded(_)) => unreachable!("codes are widened for any number of rows"),
            (Some(scratch), _) => scratch,
        };
        scratch.resize(scratch.len().max(outputs * inputs), 0.0);
        let values = &mut scratch[..outputs * inputs];
        Rows { matrix: weight, first, out: values }.with_simd(simd);
        tiles(simd, x, rows, &F32Rows { values }, out);
    }
}

/// Widens whole rows of a matrix from row `first` on, as many as `out` has room for.
struct Rows<'a> {
    matrix: &'a Matrix,
    first: usize,
    out: &'a mut [f32],
}

impl WithSimd for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Rows { matrix, first, out } = self;
        let inputs = matrix.inputs;
        let words = packed_len(inputs, S::F32_LANES);
        match &matrix.data {
            Data::F32(values) => out.copy_from_slice(&values[first * inputs..][..out.len()]),
            Data::Bf16(packed) => {
                for (row, out) in out.chunks_exact_mut(inputs).enumerate() {
                    unpack::<S, Bf16Bits>(simd, &packed[(first + row) * words..][..words], out);
                }
            }
            Data::Coded(coded) => {
                for (row, out) in out.chunks_exact_mut(inputs).enumerate() {
                    coded.widen(first + row, out);
                }
            }
            Data::F16(packed) => {
                for (row, out) in out.chunks_exact_mut(inputs).enumerate() {
                    unpack::<S, F16Bits>(simd, &packed[(first + row) * words..][..words], out);
                }
            }
        }
    }
}

/// Rows of a matrix that dot products can be taken with.
trait DotRows {
    fn dots<S: Simd, const R: usize, const N: usize>(
        &self,
        simd: S,
        x: [&[f32]; R],
        n: usize,
    ) -> [[f32; N]; R];
}

struct F32Rows<'a> {
    values: &'a [f32],
}

impl DotRows for F32Rows<'_> {
    #[inline(always)]
    fn dots<S: Simd, const R: usize, const N: usize>(
        &self,
        simd: S,
        x: [&[f32]; R],
        n: usize,
    ) -> [[f32; N]; R] {
        let inputs = x[0].len();
        let mut rows: [&[f32]; N] = [&[]; N];
        for (i, row) in rows.iter_mut().enumerate() {
            *row = &self.values[(n + i) * inputs..][..inputs];
        }
        dots(simd, x, rows)
    }
}

struct PackedRows<'a, H> {
    packed: &'a [u32],
    words: usize,
    half: std::marker::PhantomData<H>,
}

impl<'a, H> PackedRows<'a, H> {
    fn new(packed: &'a [u32], words: usize) -> Self {
        PackedRows { packed, words, half: std::marker::PhantomData }
    }
}

impl<H: Half> DotRows for PackedRows<'_, H> {
    #[inline(always)]
    fn dots<S: Simd, const R: usize, const N: usize>(
        &self,
        simd: S,
        x: [&[f32]; R],
        n: usize,
    ) -> [[f32; N]; R] {
        let mut rows: [&[u32]; N] = [&[]; N];
        for (i, row) in rows.iter_mut().enumerate() {
            *row = &self.packed[(n + i) * self.words..][..self.words];
        }
        dots_packed::<S, H, R, N>(simd, x, rows)
    }
}

/// Covers `[outputs, rows]` with register tiles: rows outside, so that a tile of activations stays
/// in the first-level cache while the panel streams by.
#[inline(always)]
fn tiles<S: Simd, W: DotRows>(simd: S, x: &[f32], rows: usize, weight: &W, out: &mut [f32]) {
    let mut r = 0;
    while r < rows {
        // Accumulators must fit the registers beside the operands.
        r += match rows - r {
            4.. if S::REGISTER_COUNT >= 32 => row_tile::<S, W, 4>(simd, x, r, rows, weight, out),
            2.. => row_tile::<S, W, 2>(simd, x, r, rows, weight, out),
            _ => row_tile::<S, W, 1>(simd, x, r, rows, weight, out),
        };
    }
}

#[inline(always)]
fn row_tile<S: Simd, W: DotRows, const R: usize>(
    simd: S,
    x: &[f32],
    r: usize,
    rows: usize,
    weight: &W,
    out: &mut [f32],
) -> usize {
    let inputs = x.len() / rows;
    let mut tile: [&[f32]; R] = [&[]; R];
    for (i, row) in tile.iter_mut().enumerate() {
        *row = &x[(r + i) * inputs..][..inputs];
    }
    let outputs = out.len() / rows;
    let mut n = 0;
    while n + TILE_OUTPUTS <= outputs {
        let sums = weight.dots::<S, R, TILE_OUTPUTS>(simd, tile, n);
        for i in 0..R {
            for j in 0..TILE_OUTPUTS {
                out[(n + j) * rows + r + i] = sums[i][j];
            }
        }
        n += TILE_OUTPUTS;
    }
    while n < outputs {
        let sums = weight.dots::<S, R, 1>(simd, tile, n);
        for i in 0..R {
            out[n * rows + r + i] = sums[i][0];
        }
        n += 1;
    }
    R
}
