//! How a matrix is stored: as numbers, or as codes that scales multiply.
//!
//! Owns: which tensors each scheme stores a matrix as, and what their elements are. Must never: read one, or know
//! which matrix has which scheme (that is [`crate::config::Quantization`]).
//!
//! # Adding a scheme
//! 1. A variant of [`Scheme`], with what distinguishes its checkpoints; its tensors in [`Scheme::tensors`].
//! 2. Its codes, if they are new, in [`Code`]: bits, and what each code is. What codes need beside a scale for a
//!    block (zero points, a second scale) goes into `weights/coded.rs`, where all of it becomes a
//!    [`crate::weights::CodedMatrix`].
//! 3. How `config.json` says it, in `config/parse/quantization.rs`.

/// What the elements of a stored tensor are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// BF16, F16 or F32.
    Float,
    /// F8_E4M3.
    E4m3,
    /// Two E2M1 numbers a byte, the first in the low four bits: U8.
    E2m1Pairs,
    /// Powers of two: F8_E8M0, or U8 of the same bits.
    E8m0,
    /// What codes are multiplied by: BF16, F16, F32 or F8_E8M0.
    Scale,
}

impl Element {
    /// The types in a file that can hold it, for people.
    pub fn types(self) -> &'static str {
        match self {
            Element::Float => "BF16, F16 and F32",
            Element::E4m3 => "F8_E4M3",
            Element::E2m1Pairs => "U8",
            Element::E8m0 => "U8 and F8_E8M0",
            Element::Scale => "BF16, F16, F32 and F8_E8M0",
        }
    }
}

/// A tensor as a checkpoint must have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// By Hugging Face's naming.
    pub name: String,
    /// `[out, in]` for a projection, `[n]` for a norm or bias.
    pub shape: Vec<usize>,
    /// What it holds.
    pub element: Element,
    /// The scheme that it is a part of, by its name in errors; `None` for plain numbers.
    pub scheme: Option<&'static str>,
    /// Other names that some writers give it.
    pub aliases: Vec<String>,
}

impl TensorSpec {
    /// Plain numbers.
    pub fn plain(name: impl Into<String>, shape: &[usize]) -> TensorSpec {
        TensorSpec::of(name.into(), shape.to_vec(), Element::Float, None)
    }

    fn of(
        name: String,
        shape: Vec<usize>,
        element: Element,
        scheme: Option<&'static str>,
    ) -> TensorSpec {
        TensorSpec { name, shape, element, scheme, aliases: Vec::new() }
    }

    /// Elements; of packed codes, bytes.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&size| size as u64).product()
    }

    /// Bytes it takes as most checkpoints have it, or as dummies are made: plain numbers in 16 bits.
    pub fn bytes(&self) -> u64 {
        let element = match self.element {
            Element::Float => 2,
            Element::E4m3 | Element::E2m1Pairs | Element::E8m0 => 1,
            Element::Scale => 4,
        };
        self.elements() * element
    }

    /// Whether a stored tensor of `found` can be this one. Scales are written with axes of 1 or without.
    pub fn has_shape(&self, found: &[usize]) -> bool {
        let squeezed = |shape: &[usize]| -> Vec<usize> {
            shape.iter().copied().filter(|&size| size != 1).collect()
        };
        self.shape == found
            || self.element == Element::Scale && squeezed(&self.shape) == squeezed(found)
    }
}

/// What one code means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// A byte: sign, 4 bits of exponent less 7, 3 of mantissa; no infinities, 0x7f and 0xff are NaN (Micikevicius et
    /// al., "FP8 formats for deep learning", 2022, table 1).
    E4m3,
    /// Four bits: sign, 2 of exponent less 1, 1 of mantissa (OCP Microscaling Formats 1.0, section 5.3.3).
    E2m1,
}

impl Code {
    /// Bits of one.
    pub fn bits(self) -> usize {
        match self {
            Code::E4m3 => 8,
            Code::E2m1 => 4,
        }
    }

    /// Bytes that `count` codes take, packed.
    pub fn bytes(self, count: usize) -> usize {
        (count * self.bits()).div_ceil(8)
    }

    /// What each code is, by its bits.
    pub fn values(self) -> Vec<f32> {
        (0..1u32 << self.bits()).map(|bits| self.value(bits)).collect()
    }

    fn value(self, bits: u32) -> f32 {
        let (exponent_bits, mantissa_bits, bias) = match self {
            Code::E4m3 => (4, 3, 7),
            Code::E2m1 => (2, 1, 1),
        };
        let sign = if bits >> (exponent_bits + mantissa_bits) & 1 == 1 { -1.0 } else { 1.0 };
        let exponent = (bits >> mantissa_bits & ((1 << exponent_bits) - 1)) as i32;
        let mantissa = (bits & ((1 << mantissa_bits) - 1)) as f32 / (1 << mantissa_bits) as f32;
        if self == Code::E4m3 && bits & 0x7f == 0x7f {
            return f32::NAN;
        }
        let magnitude = match exponent {
            0 => mantissa * 2f32.powi(1 - bias),
            _ => (1.0 + mantissa) * 2f32.powi(exponent - bias),
        };
        sign * magnitude
    }
}

/// What one scale multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scales {
    /// The whole matrix.
    Tensor,
    /// A row of it, which is an output.
    Channel,
    /// A block; the last ones of rows and columns may be partly filled.
    Block {
        /// Rows of a block.
        rows: usize,
        /// Columns of a block.
        cols: usize,
    },
}

impl Scales {
    /// Rows and columns of a block in a matrix `[rows, cols]`.
    pub fn block(self, [rows, cols]: [usize; 2]) -> [usize; 2] {
        match self {
            Scales::Tensor => [rows, cols],
            Scales::Channel => [1, cols],
            Scales::Block { rows, cols } => [rows, cols],
        }
    }
}

/// How a matrix is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// As numbers.
    Plain,
    /// Each number is an E4M3 code times a scale. The scales are in `NAME_scale_inv` or `NAME_scale`, and multiply
    /// under either name.
    Fp8 {
        /// What a scale is of.
        scales: Scales,
    },
    /// Each number is an E2M1 code times a power of two for each 32 of an output's inputs (OCP Microscaling Formats
    /// 1.0). `NAME_blocks` are the codes, `NAME_scales` the exponents.
    Mxfp4,
}

/// Numbers that have one scale in common in MXFP4.
const MXFP4_BLOCK: usize = 32;

/// Ends of the names of tensors that some quantised checkpoints have and nothing here uses: scales of
/// activations, which are not quantised here, and of keys and values, whose pages have a type of their own.
const UNUSED: [&str; 5] = [".input_scale", ".activation_scale", ".k_scale", ".v_scale", ".q_scale"];

impl Scheme {
    /// For people; `None` for plain numbers.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Scheme::Plain => None,
            Scheme::Fp8 { .. } => Some("fp8"),
            Scheme::Mxfp4 => Some("mxfp4"),
        }
    }

    /// The codes it is made of.
    pub fn code(self) -> Option<Code> {
        match self {
            Scheme::Plain => None,
            Scheme::Fp8 { .. } => Some(Code::E4m3),
            Scheme::Mxfp4 => Some(Code::E2m1),
        }
    }

    /// Rows and columns of a scale's block in a matrix `[rows, cols]`.
    pub fn block(self, matrix: [usize; 2]) -> [usize; 2] {
        match self {
            Scheme::Plain => matrix,
            Scheme::Fp8 { scales } => scales.block(matrix),
            Scheme::Mxfp4 => [1, MXFP4_BLOCK],
        }
    }

    /// What `name`, of `[.., out, in]`, is stored as: numbers, or codes and then their scales.
    pub fn tensors(self, name: &str, shape: &[usize]) -> Vec<TensorSpec> {
        let scheme = self.name();
        let [above @ .., rows, cols] = shape else { return vec![TensorSpec::plain(name, shape)] };
        match self {
            Scheme::Plain => vec![TensorSpec::plain(name, shape)],
            Scheme::Fp8 { scales } => {
                let [block_rows, block_cols] = scales.block([*rows, *cols]);
                let grid = [rows.div_ceil(block_rows), cols.div_ceil(block_cols)];
                let grid = [above, &grid[..]].concat();
                let codes = TensorSpec::of(name.to_owned(), shape.to_vec(), Element::E4m3, scheme);
                let inverse = format!("{name}_scale_inv");
                let mut scales = TensorSpec::of(inverse, grid, Element::Scale, scheme);
                scales.aliases = vec![format!("{name}_scale")];
                vec![codes, scales]
            }
            Scheme::Mxfp4 => {
                let grid = [above, &[*rows, cols / MXFP4_BLOCK]].concat();
                let codes = [&grid[..], &[MXFP4_BLOCK / 2]].concat();
                vec![
                    TensorSpec::of(format!("{name}_blocks"), codes, Element::E2m1Pairs, scheme),
                    TensorSpec::of(format!("{name}_scales"), grid, Element::E8m0, scheme),
                ]
            }
        }
    }

    /// Whether a matrix with these inputs can be stored so.
    pub fn fits(self, inputs: usize) -> bool {
        self != Scheme::Mxfp4 || inputs.is_multiple_of(MXFP4_BLOCK)
    }

    /// Whether a tensor of this name may stand in a quantised checkpoint without being used.
    pub fn is_unused(name: &str) -> bool {
        UNUSED.iter().any(|end| name.ends_with(end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the tables of both papers.
    #[test]
    fn codes_are_what_their_formats_say() {
        let e4m3 = Code::E4m3.values();
        for (bits, value) in [
            (0x00, 0.0),
            (0x01, 0.001_953_125),
            (0x07, 0.013_671_875),
            (0x08, 0.015_625),
            (0x38, 1.0),
            (0x3c, 1.5),
            (0x7e, 448.0),
            (0xfe, -448.0),
            (0xb8, -1.0),
        ] {
            assert_eq!(e4m3[bits], value, "{bits:#x}");
        }
        assert!(e4m3[0x7f].is_nan() && e4m3[0xff].is_nan());
        assert_eq!(e4m3.iter().filter(|value| value.is_finite()).count(), 254);
        assert!(e4m3[0x80] == 0.0 && e4m3[0x80].is_sign_negative());
        let positive = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        let e2m1 = Code::E2m1.values();
        for (bits, value) in positive.into_iter().enumerate() {
            assert_eq!((e2m1[bits], e2m1[bits + 8]), (value, -value));
        }
    }

    #[test]
    fn a_matrix_is_stored_as_its_codes_and_a_scale_for_each_block() {
        let listed = |scheme: Scheme, shape: &[usize]| -> Vec<(String, Vec<usize>)> {
            scheme.tensors("w", shape).into_iter().map(|spec| (spec.name, spec.shape)).collect()
        };
        let fp8 = |scales| Scheme::Fp8 { scales };
        let scaled = |grid: [usize; 2]| {
            vec![("w".to_owned(), vec![152, 144]), ("w_scale_inv".to_owned(), grid.to_vec())]
        };
        let block = Scales::Block { rows: 128, cols: 64 };
        assert_eq!(listed(fp8(block), &[152, 144]), scaled([2, 3]));
        assert_eq!(listed(fp8(Scales::Channel), &[152, 144]), scaled([152, 1]));
        assert_eq!(listed(fp8(Scales::Tensor), &[152, 144]), scaled([1, 1]));
        let mxfp4 = listed(Scheme::Mxfp4, &[4, 10, 64]);
        let wanted = [("w_blocks", vec![4, 10, 2, 16]), ("w_scales", vec![4, 10, 2])];
        assert_eq!(mxfp4, wanted.map(|(name, shape)| (name.to_owned(), shape)));
    }

    #[test]
    fn scales_are_known_with_or_without_axes_of_one() {
        let scale = |scales| Scheme::Fp8 { scales }.tensors("w", &[6, 4]).remove(1);
        for shape in [&[][..], &[1], &[1, 1]] {
            assert!(scale(Scales::Tensor).has_shape(shape));
        }
        for shape in [&[6][..], &[6, 1]] {
            assert!(scale(Scales::Channel).has_shape(shape));
        }
        assert!(!scale(Scales::Channel).has_shape(&[4, 1]));
        assert!(!TensorSpec::plain("w", &[6, 1]).has_shape(&[6]));
    }
}
