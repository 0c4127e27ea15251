//! Codes and scales: any window of a matrix, what is verified, and dummies.

use super::*;
use crate::scheme::{Scales, Scheme};

const SHAPE: [usize; 2] = [10, 96];

fn fp8(scales: Scales) -> Scheme {
    Scheme::Fp8 { scales }
}

fn schemes() -> [Scheme; 4] {
    let block = Scales::Block { rows: 4, cols: 28 };
    [fp8(Scales::Tensor), fp8(Scales::Channel), fp8(block), Scheme::Mxfp4]
}

/// Element `[row, col]`, as [`CodedMatrix`] defines it.
fn number(matrix: &CodedMatrix, row: usize, col: usize) -> f32 {
    let bytes = &matrix.codes[row * matrix.code.bytes(matrix.cols)..];
    let bits = match matrix.code.bits() {
        8 => bytes[col],
        _ => bytes[col / 2] >> (col % 2 * 4) & 0xf,
    };
    let scale_row = (matrix.row_offset + row) / matrix.block_rows;
    let scale_col = (matrix.col_offset + col) / matrix.block_cols;
    matrix.code.values()[usize::from(bits)]
        * matrix.scales[scale_row * matrix.scale_cols + scale_col]
}

/// All of it, row by row.
fn numbers(source: &dyn WeightSource, shape: &[usize], scheme: Scheme, part: &Part) -> Vec<f32> {
    let MatrixPart::Coded(part) = MatrixPart::of(source, "w", shape, scheme, part).unwrap() else {
        panic!("plain")
    };
    let matrix = part.load();
    let (rows, cols) = (part.rows(), part.cols());
    assert_eq!((matrix.rows, matrix.cols), (rows, cols));
    (0..rows * cols).map(|at| number(&matrix, at / cols, at % cols)).collect()
}

/// A matrix whose codes and scales are all different, in a file.
fn stored(scheme: Scheme, shape: &[usize]) -> (TempDir, Vec<TensorSpec>) {
    let specs = scheme.tensors("w", shape);
    let dtypes = match scheme {
        Scheme::Mxfp4 => [Dtype::U8, Dtype::U8],
        _ => [Dtype::F8_E4M3, Dtype::F32],
    };
    let mut tensors = Tensors::new();
    for (spec, dtype) in specs.iter().zip(dtypes) {
        let count = spec.elements() as usize;
        let bytes = match dtype {
            Dtype::F32 => (0..count).flat_map(|i| (i as f32 + 1.0).to_le_bytes()).collect(),
            _ if spec.name.ends_with("scales") => (0..count).map(|i| 120 + i as u8 % 16).collect(),
            _ => (0..count).map(|i| (i * 37 % 120) as u8).collect(),
        };
        tensors.insert(spec.name.clone(), (dtype, spec.shape.clone(), bytes));
    }
    (single(&tensors), specs)
}

#[test]
fn a_window_is_that_window_of_the_whole() {
    for scheme in schemes() {
        let (dir, specs) = stored(scheme, &SHAPE);
        let source = opened(&dir, &specs).unwrap();
        let source = &*source;
        let whole = numbers(source, &SHAPE, scheme, &Part::All);
        let [rows, cols] = SHAPE;
        assert_eq!(whole.len(), rows * cols);
        let distinct: std::collections::BTreeSet<u32> = whole.iter().map(|v| v.to_bits()).collect();
        assert!(distinct.len() > 20, "{scheme:?}");
        for (from, to) in [(0, 1), (0, 10), (3, 9), (4, 8), (9, 10), (5, 5)] {
            let part = numbers(source, &SHAPE, scheme, &Part::Rows(from..to));
            assert_eq!(part, whole[from * cols..to * cols], "{scheme:?} {from}..{to}");
        }
        for (from, to) in [(0, 96), (27, 29), (28, 56), (1, 96), (33, 34), (31, 64), (7, 90)] {
            let part = numbers(source, &SHAPE, scheme, &Part::Cols(from..to));
            let wanted: Vec<f32> =
                whole.chunks_exact(cols).flat_map(|row| &row[from..to]).copied().collect();
            assert_eq!(part, wanted, "{scheme:?} columns {from}..{to}");
        }
    }
}

#[test]
fn rows_at_a_distance_are_found_in_a_stack() {
    let shape = [3, 10, 64];
    let (dir, specs) = stored(Scheme::Mxfp4, &shape);
    let source = opened(&dir, &specs).unwrap();
    let all = Part::Strided { first: 0, rows: 30, row_stride: 64, cols: 64, col_stride: 1 };
    let whole = numbers(&*source, &shape, Scheme::Mxfp4, &all);
    let odd =
        Part::Strided { first: 13 * 64 + 5, rows: 3, row_stride: 128, cols: 40, col_stride: 1 };
    let wanted: Vec<f32> =
        [13, 15, 17].iter().flat_map(|row| &whole[row * 64 + 5..][..40]).copied().collect();
    assert_eq!(numbers(&*source, &shape, Scheme::Mxfp4, &odd), wanted);
    let across = Part::Strided { first: 0, rows: 2, row_stride: 65, cols: 4, col_stride: 1 };
    assert!(MatrixPart::of(&*source, "w", &shape, Scheme::Mxfp4, &across).is_err());
}

#[test]
fn each_tensor_of_a_scheme_is_verified_and_its_scheme_named() {
    let scheme = fp8(Scales::Channel);
    let (_, specs) = stored(scheme, &[6, 4]);
    let codes = || (Dtype::F8_E4M3, vec![6, 4], vec![0x38; 24]);
    let scales = |shape: &[usize]| tensor(Dtype::BF16, shape, |_| 1.0);
    let folder = |tensors: Vec<(&str, Tensor)>| {
        single(&tensors.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect())
    };
    // Either name of the scales, with or without its axis of one, and scales of what is not quantised here.
    for (name, shape) in [("w_scale_inv", &[6, 1][..]), ("w_scale", &[6])] {
        let more = ("l.input_scale", scales(&[]));
        let kv = ("l.self_attn.k_scale", scales(&[1]));
        let dir = folder(vec![("w", codes()), (name, scales(shape)), more, kv]);
        let source = opened(&dir, &specs).unwrap();
        assert_eq!(source.dtype(), "fp8");
        assert_eq!(numbers(&*source, &[6, 4], scheme, &Part::All), [1.0; 24]);
    }
    let misfit = |tensors: Vec<(&str, Tensor)>, message: &str| {
        let found = opened(&folder(tensors), &specs).err().unwrap();
        let wanted = format!("the weights in DIR do not fit its config.json, 1 problem: {message}");
        assert_eq!(found, wanted);
    };
    let of = "by the quantization_config's fp8";
    misfit(vec![("w", codes())], &format!("w_scale_inv [6, 1] is missing {of}"));
    misfit(
        vec![("w", codes()), ("w_scale", scales(&[4, 1]))],
        &format!("w_scale has shape [4, 1], expected [6, 1] {of}"),
    );
    misfit(
        vec![("w", tensor(Dtype::BF16, &[6, 4], |_| 1.0)), ("w_scale_inv", scales(&[6, 1]))],
        &format!("w is BF16, supported is F8_E4M3 {of}"),
    );
    misfit(
        vec![("w", codes()), ("w_scale", tensor(Dtype::U8, &[6, 1], |_| 1.0))],
        &format!("w_scale is U8, supported are BF16, F16, F32 and F8_E8M0 {of}"),
    );
    // A plain model has no use for scales.
    let plain = [TensorSpec::plain("w", &[6, 4])];
    let dir =
        folder(vec![("w", tensor(Dtype::BF16, &[6, 4], |_| 1.0)), ("w.k_scale", scales(&[1]))]);
    assert!(opened(&dir, &plain).err().unwrap().contains("w.k_scale [1] is unexpected"));
}

#[test]
fn dummy_codes_are_weights_of_the_usual_size_however_they_are_cut() {
    let shape = [300, 640];
    for scheme in [fp8(Scales::Channel), Scheme::Mxfp4] {
        let source = DummyWeights::new(&scheme.tensors("w", &shape), 0);
        let whole = numbers(&source, &shape, scheme, &Part::All);
        let count = whole.len() as f64;
        let mean = whole.iter().map(|&v| f64::from(v)).sum::<f64>() / count;
        let variance = whole.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / count;
        // Codes are rounded towards zero, and the highest are not so high.
        let deviation = variance.sqrt();
        assert!(mean.abs() < 5.0 * 0.02 / count.sqrt(), "{scheme:?} {mean}");
        assert!((0.015..0.021).contains(&deviation), "{scheme:?} {deviation}");
        let most = whole.iter().fold(0.0f32, |most, v| most.max(v.abs()));
        assert!((0.04..0.075).contains(&most), "{scheme:?} {most}");
        let part = numbers(&source, &shape, scheme, &Part::Cols(33..77));
        let wanted: Vec<f32> =
            whole.chunks_exact(640).flat_map(|row| &row[33..77]).copied().collect();
        assert_eq!(part, wanted);
        assert_eq!(Some(source.dtype()), scheme.name());
        let stored = match scheme {
            Scheme::Mxfp4 => 300 * 640 / 32 * 17,
            _ => 300 * 640 + 300 * 4,
        };
        assert_eq!(source.bytes_total(), stored);
    }
}
