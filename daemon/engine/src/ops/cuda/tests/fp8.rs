//! Products with weights of e4m3 against the CPU's, by every way, for each kind of scales, stacked, and for ranks.

use minisgl_proto::LoadOptions;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::super::fp8::{Way, logits_fp8};
use super::super::linear::Input;
use super::super::memory::padded_tokens;
use super::super::quantised::Quantised;
use super::*;
use crate::scheme::{Code, Element, Scales, Scheme};
use crate::weights::{self, Part, WeightSource};

const ROWS: [usize; 6] = [1, 5, 16, 33, 200, 1024];

/// Parts of matrices `[rows, cols]` that one rank stacks.
pub(super) struct Case {
    pub(super) scales: Scales,
    pub(super) parts: &'static [([usize; 2], Piece)],
}

#[derive(Clone)]
pub(super) enum Piece {
    Rows(Range<usize>),
    Cols(Range<usize>),
}

pub(super) const BLOCK: Scales = Scales::Block { rows: 128, cols: 128 };

/// What ranks have of queries, keys and values, of gate and up, and of what sums them up. Rows that are a multiple of no
/// block, columns that are one of no block either, where the scales allow it.
const CASES: [Case; 8] = [
    Case {
        scales: BLOCK,
        parts: &[
            ([512, 384], Piece::Rows(256..512)),
            ([256, 384], Piece::Rows(128..256)),
            ([256, 384], Piece::Rows(128..256)),
        ],
    },
    Case {
        scales: BLOCK,
        parts: &[([512, 272], Piece::Rows(0..256)), ([512, 272], Piece::Rows(0..256))],
    },
    Case { scales: BLOCK, parts: &[([208, 640], Piece::Cols(128..384))] },
    Case { scales: BLOCK, parts: &[([336, 400], Piece::Rows(0..336))] },
    Case {
        scales: Scales::Channel,
        parts: &[
            ([200, 400], Piece::Rows(40..136)),
            ([104, 400], Piece::Rows(3..51)),
            ([104, 400], Piece::Rows(50..98)),
        ],
    },
    Case { scales: Scales::Channel, parts: &[([272, 480], Piece::Cols(80..208))] },
    Case {
        scales: Scales::Tensor,
        parts: &[([144, 208], Piece::Rows(0..144)), ([144, 208], Piece::Rows(0..144))],
    },
    Case { scales: Scales::Tensor, parts: &[([1024, 4112], Piece::Rows(0..1024))] },
];

/// A folder with the matrices of a case in it.
pub(super) fn folder(
    case: &Case,
    random: &mut Random,
) -> (tempfile::TempDir, Vec<weights::TensorSpec>) {
    let scheme = Scheme::Fp8 { scales: case.scales };
    let named = case.parts.iter().enumerate();
    let tensors: Vec<_> =
        named.flat_map(|(at, (shape, _))| scheme.tensors(&format!("w{at}"), shape)).collect();
    let raw: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|spec| {
            let len = spec.elements() as usize;
            let (dtype, bytes) = match spec.element {
                Element::E4m3 => {
                    let code = |byte: u8| if byte & 0x7f == 0x7f { byte ^ 1 } else { byte };
                    (Dtype::F8_E4M3, (0..len).map(|_| code(random.next() as u8)).collect())
                }
                _ => {
                    let scale = |_| (0.5 + random.below(1000) as f32 / 1000.0) / 1024.0;
                    (Dtype::F32, (0..len).map(scale).flat_map(f32::to_le_bytes).collect())
                }
            };
            (spec.name.clone(), dtype, spec.shape.clone(), bytes)
        })
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let views = raw.iter().map(|(name, dtype, shape, bytes)| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &dir.path().join("model.safetensors")).unwrap();
    (dir, tensors)
}

pub(super) fn parts<'a>(case: &Case, source: &'a dyn WeightSource) -> Vec<MatrixPart<'a>> {
    let scheme = Scheme::Fp8 { scales: case.scales };
    let part = |(at, (shape, piece)): (usize, &([usize; 2], Piece))| {
        let part = match piece {
            Piece::Rows(rows) => Part::Rows(rows.clone()),
            Piece::Cols(cols) => Part::Cols(cols.clone()),
        };
        MatrixPart::of(source, &format!("w{at}"), shape, scheme, &part).unwrap()
    };
    case.parts.iter().enumerate().map(part).collect()
}

/// `x weight^T`, by the CPU.
fn product(
    cpu: &mut CpuOps,
    x: &[f32],
    parts: &[MatrixPart<'_>],
    (n, k): (usize, usize),
) -> Vec<f32> {
    let linear = Linear { weight: cpu.matrix(parts, k).unwrap(), bias: None };
    let rows = x.len() / k;
    let mut sum = Stream::new(cpu.fill(n, &vec![0.0; rows * n]), cpu.poisoned(rows, n));
    let norms = Around { after: None, next: None };
    cpu.linear_add(rows, &linear, &cpu.fill(k, x), norms, &mut sum).unwrap();
    cpu.values(&sum.residual, rows)
}

/// What e4m3 leaves of activations, each block of columns, or each token, by its largest.
fn rounded(x: &[f32], k: usize, form: ScaleForm) -> Vec<f32> {
    let codes = Code::E4m3.values();
    let positive = &codes[..0x7f];
    let nearest = |value: f32| {
        let above = positive.partition_point(|&code| code < value.abs()).clamp(1, 0x7e);
        let (low, high) = (above - 1, above);
        let middle = (positive[low] + positive[high]) / 2.0;
        let up = value.abs() > middle || value.abs() == middle && high % 2 == 0;
        positive[if up { high } else { low }].copysign(value)
    };
    let group = if form == ScaleForm::Block { 128 } else { k };
    let block = |block: &[f32]| -> Vec<f32> {
        let scale = block.iter().fold(0.0_f32, |most, x| most.max(x.abs())) / 448.0;
        let up = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        block.iter().map(|x| nearest(x * up) * scale).collect()
    };
    x.chunks_exact(k).flat_map(|row| row.chunks(group).flat_map(block)).collect()
}

fn gated(product: &[f32], n: usize) -> Vec<f32> {
    let row = |row: &[f32]| -> Vec<f32> {
        let (gate, up) = row.split_at(n / 2);
        gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect()
    };
    product.chunks_exact(n).flat_map(row).collect()
}

/// By [`BroadGemm`], every cut that might be chosen.
fn broad(cuda: &CudaOps, [rows, n, k]: [usize; 3]) -> Vec<Way> {
    let m = padded_tokens(rows);
    match BroadGemm::takes(&cuda.device, m) {
        true => {
            BroadGemm::cuts(&cuda.device, [m, n, k]).unwrap().into_iter().map(Way::Broad).collect()
        }
        false => Vec::new(),
    }
}

/// Every way to compute every product, for few rows and many.
#[test]
fn coded_products_are_the_cpus() {
    let Some((mut cpu, mut cuda)) = pair(&wide(), 16) else { return };
    let mut random = Random(31);
    for (number, case) in CASES.iter().enumerate() {
        let (dir, tensors) = folder(case, &mut random);
        let source = weights::open(dir.path(), &tensors, &LoadOptions::default()).unwrap();
        let parts = parts(case, &*source);
        let inputs = match &case.parts[0] {
            ([_, cols], Piece::Rows(_)) => *cols,
            (_, Piece::Cols(cols)) => cols.len(),
        };
        let (bytes, weight) = (cuda.weight_bytes(), cuda.matrix(&parts, inputs).unwrap());
        let (n, k, form) = (weight.rows, inputs, weight.scale_form().unwrap());
        let few = (cuda.weight_bytes() - bytes) as usize;
        assert!((n * k..n * k + n * k / 16).contains(&few), "{few} bytes of {n} x {k}");
        assert_eq!(form == ScaleForm::Block, case.scales == BLOCK, "case {number}");
        cuda.quantised = Some(Quantised::new(cuda.stream(), 1024, k).unwrap());
        let bias = random.floats(n);
        let biased = Linear { weight, bias: Some(cuda.weight(&bias)) };
        let plain = Linear { weight: cuda.matrix(&parts, k).unwrap(), bias: None };
        let norm_weight = random.floats(k);
        let norm = Norm { id: NormId(0), weight: cuda.weight(&norm_weight) };
        for rows in ROWS {
            let (x, residual) = (random.floats(rows * k), random.floats(rows * n));
            // As the GPU leaves it behind, to the bit: what it becomes in e4m3 hangs on the last of them.
            let mut stream = Stream::new(cuda.fill(k, &x), cuda.poisoned(rows, k));
            cuda.normalise(rows, &mut stream, &norm).unwrap();
            let with_norm = cuda.values(&stream.normed, rows);
            let own: Vec<Way> = Fp8Product::all_of(&cuda.device, rows, k).map(Way::Own).collect();
            let narrow = (rows <= NarrowGemm::ROWS_MAX).then_some(Way::Narrow);
            let others = broad(&cuda, [rows, n, k]).into_iter().chain([Way::Library]);
            for way in own.iter().copied().chain(narrow).chain(others) {
                // An activation that is rounded to the other side of a tie is off by a sixteenth.
                let ulps = if matches!(way, Way::Own(_)) { 4.0 } else { 12.0 };
                let what = |name: &str| format!("{name}, case {number}, {rows} rows, {way:?}");
                let seen = |x: &[f32]| match way {
                    Way::Narrow | Way::Broad(_) | Way::Library => rounded(x, k, form),
                    Way::Own(_) => x.to_vec(),
                };
                let sums = product(&mut cpu, &seen(&x), &parts, (n, k));
                let of_norm = product(&mut cpu, &seen(&with_norm), &parts, (n, k));

                let mut out = cuda.fill(n, &residual);
                let input = cuda.fill(k, &x);
                cuda.run_fp8(way, rows, &plain, Input::Plain(&input), (&mut out).into(), Into::Sum)
                    .unwrap();
                let expected: Vec<f32> = sums.iter().zip(&residual).map(|(a, b)| a + b).collect();
                assert_close(&what("sum"), &cuda.values(&out, rows), &expected, ulps);

                let mut stream = Stream::new(cuda.fill(k, &x), cuda.poisoned(rows, k));
                let mut out = cuda.poisoned(rows, n);
                let input = Input::Normed(&mut stream, &norm);
                cuda.run_fp8(way, rows, &biased, input, (&mut out).into(), Into::Output).unwrap();
                let expected: Vec<f32> =
                    of_norm.iter().enumerate().map(|(at, value)| value + bias[at % n]).collect();
                assert_close(
                    &what("of a norm, with bias"),
                    &cuda.values(&out, rows),
                    &expected,
                    ulps,
                );

                // The norm may be there already.
                cuda.normalise(rows, &mut stream, &norm).unwrap();
                let mut out = cuda.poisoned(rows, n);
                let input = Input::Normed(&mut stream, &norm);
                cuda.run_fp8(way, rows, &plain, input, (&mut out).into(), Into::Output).unwrap();
                assert_close(&what("of a norm"), &cuda.values(&out, rows), &of_norm, ulps);
            }
            // By whichever way is chosen where nothing was timed: cuBLASLt for many rows.
            let mut stream = Stream::new(cuda.fill(k, &x), cuda.poisoned(rows, k));
            let mut scratch = Scratch { gate_up: cuda.poisoned(rows, n) };
            let mut out = cuda.poisoned(rows, n / 2);
            cuda.norm_gated(rows, &mut stream, &norm, [&plain; 2], &mut scratch, &mut out).unwrap();
            let seen = if !own.is_empty() { with_norm } else { rounded(&with_norm, k, form) };
            let expected = gated(&product(&mut cpu, &seen, &parts, (n, k)), n);
            let what = format!("gated, case {number}, {rows} rows");
            let ulps = if own.is_empty() { 16.0 } else { 8.0 };
            assert_close(&what, &cuda.values(&out, rows), &expected, ulps);
        }
        // As a head.
        for rows in [1, 33, 100] {
            let x = random.floats(rows * k);
            let expected = product(&mut cpu, &x, &parts, (n, k));
            let input = cuda.fill(k, &x);
            let mut logits = cuda.stream().clone_htod(&vec![f32::NAN; rows * n]).unwrap();
            let out = &mut logits.slice_mut(..);
            logits_fp8(&cuda.device, (rows, &input.rows(rows)), &plain.weight, out).unwrap();
            let got = cuda.stream().clone_dtoh(&logits).unwrap();
            assert_close(&format!("logits, case {number}, {rows} rows"), &got, &expected, 3.5);
        }
    }
}

/// What is gated may go into the next product as e4m3: the same bits as if it had been stored and quantised.
#[test]
fn coded_blocks_go_from_product_to_product() {
    let Some((_, mut cuda)) = pair(&wide(), 16) else { return };
    let mut random = Random(33);
    let (hidden, width) = (256, 384);
    let whole: &'static [_] = Box::leak(Box::new([
        ([width, hidden], Piece::Rows(0..width)),
        ([width, hidden], Piece::Rows(0..width)),
    ]));
    let down: &'static [_] = Box::leak(Box::new([([hidden, width], Piece::Rows(0..hidden))]));
    let linear = |parts_of, inputs, random: &mut Random| {
        let case = Case { scales: BLOCK, parts: parts_of };
        let (dir, tensors) = folder(&case, random);
        let source = weights::open(dir.path(), &tensors, &LoadOptions::default()).unwrap();
        let weight = cuda.matrix(&parts(&case, &*source), inputs).unwrap();
        Linear { weight, bias: None }
    };
    let gate_up = linear(whole, hidden, &mut random);
    let down = linear(down, width, &mut random);
    cuda.quantised = Some(Quantised::new(cuda.stream(), 1024, width).unwrap());
    let norm = Norm { id: NormId(0), weight: cuda.weight(&random.floats(hidden)) };
    for rows in [4, 9, 33, 64, 65, 200] {
        let (x, residual) = (random.floats(rows * hidden), random.floats(rows * hidden));
        let broad = broad(&cuda, [rows, 2 * width, hidden]);
        for way in [Way::Narrow, Way::Library].into_iter().chain(broad) {
            if way == Way::Narrow && rows > NarrowGemm::ROWS_MAX {
                continue;
            }
            let leaves_codes = !matches!(way, Way::Broad(_));
            let mut run = |coded: bool| {
                let mut stream = Stream::new(cuda.fill(hidden, &x), cuda.poisoned(rows, hidden));
                let mut scratch = Scratch { gate_up: cuda.poisoned(rows, 2 * width) };
                let mut out = cuda.poisoned(rows, width);
                let streams = (&mut stream, &norm);
                cuda.run_gated(way, coded, (rows, &gate_up), streams, &mut scratch, &mut out)
                    .unwrap();
                assert_eq!(out.codes.is_some(), coded && leaves_codes, "{way:?}, {rows} rows");
                let mut sum = cuda.fill(hidden, &residual);
                let to = (&mut sum).into();
                cuda.run_fp8(way, rows, &down, Input::Plain(&out), to, Into::Sum).unwrap();
                let own = Way::Own(Fp8Product::Medium);
                let mut other = cuda.fill(hidden, &residual);
                let to = (&mut other).into();
                let few = rows <= NarrowGemm::ROWS_MAX;
                if few && coded && leaves_codes {
                    let said = cuda.run_fp8(own, rows, &down, Input::Plain(&out), to, Into::Sum);
                    assert!(said.unwrap_err().reason.contains("e4m3 alone"));
                }
                cuda.values(&sum, rows)
            };
            let plain = run(false);
            assert!(plain.iter().all(|value| value.is_finite()), "{way:?}, {rows} rows");
            assert!(plain.iter().zip(&residual).any(|(sum, before)| sum != before));
            assert!(run(true) == plain, "{way:?}, {rows} rows");
        }
    }
}

/// What no kernel can multiply is refused before it is there, and says what to do.
#[test]
fn coded_parts_without_kernels_are_refused() {
    let Some((_, cuda)) = pair(&config(4, 2, 64), 16) else { return };
    let mut random = Random(32);
    let refusal = |case: &Case, inputs: usize, random: &mut Random| {
        let (dir, tensors) = folder(case, random);
        let source = weights::open(dir.path(), &tensors, &LoadOptions::default()).unwrap();
        let error = cuda.matrix(&parts(case, &*source), inputs).err().expect("refused");
        error.reason
    };
    let across = [([256, 256], Piece::Rows(64..192)), ([128, 256], Piece::Rows(0..128))];
    let across: &'static [_] = Box::leak(Box::new(across));
    let refused = refusal(&Case { scales: BLOCK, parts: across }, 256, &mut random);
    assert!(refused.contains("128 x 128") && refused.contains("another --tp"), "{refused}");
    let odd: &'static [_] = Box::leak(Box::new([([64, 200], Piece::Rows(0..64))]));
    let refused = refusal(&Case { scales: Scales::Channel, parts: odd }, 200, &mut random);
    assert!(refused.contains("has 200 inputs") && refused.contains("16"), "{refused}");
}

/// Codes that the GPU makes, or gets in pieces, are the host's.
#[test]
fn codes_arrive_as_they_were_read() {
    let Some((_, cuda)) = pair(&config(4, 2, 64), 16) else { return };
    let scheme = Scheme::Fp8 { scales: BLOCK };
    let shape = [9000, 1040];
    let tensors = scheme.tensors("w", &shape);
    let dummies = LoadOptions { dummy_weights: true, ..LoadOptions::default() };
    let dir = tempfile::tempdir().unwrap();
    let source = weights::open(dir.path(), &tensors, &dummies).unwrap();
    let check = |source: &dyn WeightSource, what: &str| {
        for part in [Part::All, Part::Rows(128..8960), Part::Cols(256..1024)] {
            let part = MatrixPart::of(source, "w", &shape, scheme, &part).unwrap();
            let MatrixPart::Coded(coded) = &part else { panic!("codes") };
            let expected = coded.load().codes;
            let got = cuda.matrix(std::slice::from_ref(&part), coded.cols()).unwrap();
            let Data::Fp8 { codes, .. } = &got.data else { panic!("codes") };
            let got = cuda.stream().clone_dtoh(codes).unwrap();
            assert!(got == expected, "{what}");
        }
    };
    check(&*source, "made on the GPU");
    let part = source.part("w", &shape, &Part::All).unwrap();
    let mut codes = vec![0; part.len()];
    part.read_bytes(0, &mut codes);
    let scales = vec![0x3f_u8; 4 * 71 * 9];
    let views = [
        ("w", TensorView::new(Dtype::F8_E4M3, shape.to_vec(), &codes).unwrap()),
        ("w_scale_inv", TensorView::new(Dtype::F32, vec![71, 9], &scales).unwrap()),
    ];
    safetensors::serialize_to_file(views, None, &dir.path().join("model.safetensors")).unwrap();
    let source = weights::open(dir.path(), &tensors, &LoadOptions::default()).unwrap();
    check(&*source, "read from a file");
}
