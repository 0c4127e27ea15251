//! Weights and activations of e4m3: products of few, some and many rows, and what makes the activations.

use std::cell::OnceCell;
use std::time::Duration;

use cudarc::driver::CudaSlice;
use half::bf16;
use minisgl_kernels::Array;
use minisgl_kernels::fp8::{BLOCK, Fp8Rows, Fp8Scales, Fp8Weight, ScaleForm, pad_scales};
use minisgl_kernels::gemm::{Fp8GemmArgs, Gemm, GemmOut};
use minisgl_kernels::ops::{
    BroadCut, BroadGemm, Fp8Gemv, Gate, GateMul, MediumGemm, NarrowGemm, Quantise, QuantiseInput,
    RmsNorm, SkinnyGemm, SkinnyInput, SkinnyOut, SkinnyWeight, Stage,
};

use crate::gate_mul::GATES;
use crate::skinny::{OUTS, Out};
use crate::support::{Gpu, assert_near, assert_same};

const FORMS: [ScaleForm; 2] = [ScaleForm::Block, ScaleForm::Row];

/// The value of an e4m3.
pub fn widened(byte: u8) -> f64 {
    let (exponent, fraction) = (i32::from(byte >> 3 & 15), f64::from(byte & 7));
    let size = match exponent {
        0 => fraction * 2_f64.powi(-9),
        _ => (8.0 + fraction) * 2_f64.powi(exponent - 10),
    };
    if byte & 0x80 == 0 { size } else { -size }
}

/// What e4m3 leaves of values, by their largest.
pub fn rounded(block: &[bf16]) -> Vec<f64> {
    let largest = block.iter().fold(0.0_f32, |most, x| most.max(x.to_f32().abs()));
    let scale = largest / 448.0;
    let up = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    let nearest = |value: f32| {
        let size = f64::from(value.abs());
        // The last code that is no larger, or the next one.
        let low = (0..0x7e).take_while(|&code| widened(code) <= size).last().unwrap_or(0);
        let middle = (widened(low) + widened(low + 1)) / 2.0;
        let up = size > middle || size == middle && low % 2 == 1;
        widened(if up { low + 1 } else { low }).copysign(f64::from(value))
    };
    block.iter().map(|x| nearest(x.to_f32() * up) * f64::from(scale)).collect()
}

/// Any e4m3 but NaN. In every third block of columns only small ones, subnormals among them.
pub fn bytes(gpu: &mut Gpu, rows: usize, columns: usize) -> Vec<u8> {
    let mut any = |column: usize| {
        let byte = gpu.random.bits() as u8;
        let byte = if column / BLOCK % 3 == 1 { byte & 0x97 } else { byte };
        if byte & 0x7f == 0x7f { byte ^ 1 } else { byte }
    };
    (0..rows * columns).map(|at| any(at % columns)).collect()
}

/// Between 0.5 and 1.5 times `size`, for small values so much more that they count.
fn scale(gpu: &mut Gpu, size: f32, small: bool) -> f32 {
    let scale = size * (0.5 + gpu.random.below(1000) as f32 / 1000.0);
    if small { 2048.0 * scale } else { scale }
}

/// A weight on both sides.
struct Weight {
    form: ScaleForm,
    /// `[n, k]`, scaled.
    values: Vec<f64>,
    data: CudaSlice<u8>,
    scales: CudaSlice<f32>,
}

impl Weight {
    /// Sums with normal rows of x are about 1.
    fn new(gpu: &mut Gpu, n: usize, k: usize, form: ScaleForm) -> Weight {
        let bytes = bytes(gpu, n, k);
        let size = (k as f32).powf(-0.5) / 128.0;
        let blocks = k.div_ceil(BLOCK);
        let scales: Vec<f32> = match form {
            ScaleForm::Block => (0..n.div_ceil(BLOCK) * blocks)
                .map(|at| scale(gpu, size, at % blocks % 3 == 1))
                .collect(),
            ScaleForm::Row => (0..n).map(|_| scale(gpu, size, false)).collect(),
        };
        let value = |(at, &byte): (usize, &u8)| {
            let (row, column) = (at / k, at % k);
            let scale = match form {
                ScaleForm::Block => scales[row / BLOCK * blocks + column / BLOCK],
                ScaleForm::Row => scales[row],
            };
            widened(byte) * f64::from(scale)
        };
        let values = bytes.iter().enumerate().map(value).collect();
        let laid_out = if form == ScaleForm::Block { pad_scales(&scales, k) } else { scales };
        Weight { form, values, data: gpu.upload(&bytes), scales: gpu.upload(&laid_out) }
    }

    fn view(&self) -> Fp8Weight<'_> {
        let scales = Array::from(&self.scales);
        let scales = match self.form {
            ScaleForm::Block => Fp8Scales::Block(scales),
            ScaleForm::Row => Fp8Scales::Row(scales),
        };
        Fp8Weight { data: (&self.data).into(), scales }
    }
}

/// `x * weight^T`, of f64.
fn product(x: &[f64], weight: &[f64], k: usize) -> Vec<f64> {
    let dot = |row: &[f64], of: &[f64]| row.iter().zip(of).map(|(x, w)| x * w).sum::<f64>();
    x.chunks_exact(k).flat_map(|row| weight.chunks_exact(k).map(|of| dot(row, of))).collect()
}

/// Which of our kernels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Own {
    Skinny,
    Medium,
    Gemv,
}

const EPS: f32 = 1e-5;

/// Where a product has left its result.
fn downloaded(gpu: &Gpu, out: Out, to: &CudaSlice<bf16>, logits: &CudaSlice<f32>) -> Vec<bf16> {
    match out {
        Out::F32 => gpu.download(logits).into_iter().map(bf16::from_f32).collect(),
        _ => gpu.download(to),
    }
}

/// Runs one product twice, and holds it against the CPU's.
fn check(
    gpu: &mut Gpu,
    own: Own,
    (m, n, k): (usize, usize, usize),
    (out, form): (Out, ScaleForm),
    normed: bool,
) {
    let what = format!("{own:?}, [{m}, {k}] x [{n}, {k}], {out:?}, {form:?}, norm {normed}");
    // Tokens of very different sizes, and blocks of columns too.
    let (mut x, _) = gpu.normal(m * k, 1.0);
    let twice = normed || out.is_gated();
    for (at, x) in x.iter_mut().enumerate().filter(|_| !twice) {
        let shift = [0, 9, -14][(at / k + at % k / BLOCK) % 3];
        *x = bf16::from_f32(x.to_f32() * 2_f32.powi(shift));
    }
    let x_gpu = gpu.upload(&x);
    let weight = Weight::new(gpu, n, k, form);
    let (add, _) = gpu.normal(out.add_len(m, n), 2.0);
    let norm = normed.then(|| gpu.normal(k, 1.0).1);
    if let Some(weight) = &norm {
        let mut to = gpu.poisoned(m * k);
        RmsNorm {
            x: (&x_gpu).into(),
            index: None,
            weight: weight.into(),
            out: (&mut to).into(),
            rows: m,
            x_rows: m,
            hidden: k,
            eps: EPS,
            plus_one: false,
        }
        .launch(&gpu.device)
        .unwrap();
        x = gpu.download(&to);
    }
    let bias = gpu.upload(&add[add.len() - n..]);
    let stage = gpu.random.of(&Stage::ALL);
    let what = format!("{what}, {stage:?}");
    let run = || {
        let mut to = out.before(gpu, &add, m, n);
        let mut logits = gpu.upload(&vec![f32::NAN; m * n]);
        let into = match out {
            Out::Plain => SkinnyOut::Bf16 { out: (&mut to).into(), bias: None },
            Out::Bias => SkinnyOut::Bf16 { out: (&mut to).into(), bias: Some((&bias).into()) },
            Out::F32 => SkinnyOut::F32((&mut logits).into()),
            Out::Add => SkinnyOut::AddTo { residual: (&mut to).into(), bias: None },
            Out::AddBias => {
                SkinnyOut::AddTo { residual: (&mut to).into(), bias: Some((&bias).into()) }
            }
            Out::Gated(gate) => SkinnyOut::Gated((&mut to).into(), gate),
        };
        let plain = (&x_gpu).into();
        match own {
            Own::Medium => MediumGemm { x: plain, weight: weight.view(), out: into, m, n, k }
                .launch(&gpu.device)
                .unwrap(),
            Own::Skinny | Own::Gemv => {
                let residual = (&x_gpu).into();
                let input = match &norm {
                    None => SkinnyInput::Plain(plain),
                    Some(weight) => {
                        SkinnyInput::Normed { residual, weight: weight.into(), eps: EPS }
                    }
                };
                if own == Own::Gemv {
                    let weight = weight.view();
                    Fp8Gemv { input, weight, out: into, n, k }.launch(&gpu.device).unwrap();
                    return downloaded(gpu, out, &to, &logits);
                }
                let weight = SkinnyWeight::Fp8(weight.view());
                SkinnyGemm { input, weight, out: into, m, n, k }
                    .launch_by(&gpu.device, stage)
                    .unwrap();
            }
        }
        downloaded(gpu, out, &to, &logits)
    };
    let result: Vec<bf16> = run();
    let x: Vec<f64> = x.iter().map(|x| x.to_f64()).collect();
    let expected = out.of(product(&x, &weight.values, k), &add, n);
    // Rounding before the end may go to the other side of a tie, of x after its norm and of both halves; sums of large
    // tokens cancel.
    let largest = expected.iter().fold(1.0, |max: f64, value| max.max(value.abs()));
    let absolute = out.off(if twice { 0.03 } else { 1e-5 * largest.max(10.0) });
    assert_near(&what, &result, &expected, absolute, if out.is_gated() { 2.0 } else { 0.0 });
    assert_same(&format!("{what}, again"), &run(), &result);
}

/// Outputs, inputs: cut tiles, cut blocks of columns, weights that are held, several passes, rings that wrap around.
const SHAPES: &[(usize, usize)] = &[
    (8, 16),
    (24, 144),
    (528, 272),
    (520, 1040),
    (64, 4112),
    (256, 2048),
    (2112, 1056),
    (8464, 80),
    (1056, 2320),
];

pub fn skinny(gpu: &mut Gpu) {
    let shapes = if gpu.small { &SHAPES[..5] } else { SHAPES };
    for &(n, k) in shapes {
        let rows: &[usize] =
            if gpu.small || n * k > 500_000 { &[1, 11] } else { &[1, 2, 4, 5, 8, 9, 16] };
        for &m in rows {
            for out in OUTS.into_iter().filter(|out| !out.is_gated() || n % 16 == 0) {
                let (form, normed) = (gpu.random.of(&FORMS), gpu.random.below(2) > 0);
                check(gpu, Own::Skinny, (m, n, k), (out, form), normed);
            }
        }
    }
}

pub fn medium(gpu: &mut Gpu) {
    if !MediumGemm::is_there(&gpu.device) {
        println!("no wgmma on this GPU: not run");
        return;
    }
    // The last: more tiles than clusters, and more rounds than the ring has stages.
    let more = [(256, 128), (2048, 512), (512, 9008), (34_832, 144)];
    let shapes = SHAPES[..if gpu.small { 4 } else { SHAPES.len() }].iter();
    for &(n, k) in shapes.chain(&more[..if gpu.small { 2 } else { more.len() }]) {
        let rows: &[usize] = match n * k {
            _ if gpu.small => &[9, 33],
            4_000_000.. => &[33],
            500_000.. => &[9, 33],
            _ => &[1, 3, 8, 9, 16, 17, 32, 33, 63, 64],
        };
        for &m in rows {
            let few = |out: &Out| n < 30_000 || matches!(out, Out::Plain | Out::Gated(_));
            let outs = OUTS.into_iter().filter(few);
            for out in outs.filter(|out| !out.is_gated() || n % 16 == 0) {
                let whole = !out.is_gated() || n % (2 * BLOCK) == 0;
                let form = if whole { gpu.random.of(&FORMS) } else { ScaleForm::Row };
                check(gpu, Own::Medium, (m, n, k), (out, form), false);
            }
        }
    }
}

/// Besides the shapes of all: stages with rows of two blocks of scales, rings that wrap around, two, three and five steps of a warp,
/// and lanes without columns in the last of them.
const GEMV_SHAPES: &[(usize, usize)] = &[
    (34_832, 144),
    (34_816, 272),
    (4224, 6144),
    (2120, 9008),
    (1096, 12_304),
    (1336, 25_600),
    (2640, 17_424),
];

pub fn gemv(gpu: &mut Gpu) {
    if !Fp8Gemv::takes(&gpu.device, 4096) {
        println!("no bulk copies on this GPU: not run");
        return;
    }
    assert!(!Fp8Gemv::takes(&gpu.device, 25_616));
    let shapes = SHAPES[..if gpu.small { 4 } else { SHAPES.len() }].iter();
    for &(n, k) in shapes.chain(&GEMV_SHAPES[..if gpu.small { 1 } else { GEMV_SHAPES.len() }]) {
        let few = |out: &Out| n * k < 4_000_000 || matches!(out, Out::Add | Out::Gated(Gate::Silu));
        let outs =
            OUTS.into_iter().filter(|out| !out.is_gated() || n % 16 == 0 && Fp8Gemv::gates(k));
        for out in outs.filter(few) {
            let whole = !out.is_gated() || n % (2 * BLOCK) == 0;
            let form = if whole { gpu.random.of(&FORMS) } else { ScaleForm::Row };
            let normed = Fp8Gemv::norms(k) && gpu.random.below(2) > 0;
            check(gpu, Own::Gemv, (1, n, k), (out, form), normed);
            if n * k >= 4_000_000 && form == ScaleForm::Row && whole {
                check(gpu, Own::Gemv, (1, n, k), (out, ScaleForm::Block), normed);
            }
        }
    }
}

/// Every scale is the largest value's, and every element the nearest e4m3.
pub fn quantise(gpu: &mut Gpu) {
    for hidden in [8, 128, 144, 4096, 12_288, 25_608] {
        // More than blocks in y; and as many as have a kernel of their own with a norm.
        let rows: &[usize] = match (hidden, gpu.small) {
            (_, true) => &[1, 3],
            (128, _) => &[65_537],
            (4096, _) => &[1, 3, 64, 2051],
            _ => &[1, 3, 64],
        };
        for &rows in rows {
            for (input, form) in (0..6).map(|at| (at % 3, FORMS[at / 3])) {
                if input == 1 && hidden > minisgl_kernels::ops::HIDDEN_MAX {
                    continue;
                }
                let wide = if input == 2 { 2 * hidden } else { hidden };
                let (mut x, _) = gpu.normal(rows * wide, 3.0);
                // A token of zeros.
                if rows > 1 {
                    x[wide..2 * wide].fill(bf16::ZERO);
                }
                let (x_gpu, (_, weight)) = (gpu.upload(&x), gpu.normal(hidden, 1.0));
                let (gate, plus_one) = (gpu.random.of(&GATES), gpu.random.below(2) == 0);
                let mut y = gpu.poisoned(rows * hidden);
                match input {
                    0 => y = gpu.upload(&x),
                    1 => RmsNorm {
                        x: (&x_gpu).into(),
                        index: None,
                        weight: (&weight).into(),
                        out: (&mut y).into(),
                        rows,
                        x_rows: rows,
                        hidden,
                        eps: EPS,
                        plus_one,
                    }
                    .launch(&gpu.device)
                    .unwrap(),
                    _ => {
                        let (gate_up, out) = ((&x_gpu).into(), (&mut y).into());
                        GateMul { gate_up, out, rows, width: hidden, gate }
                            .launch(&gpu.device)
                            .unwrap();
                    }
                }
                let blocks = hidden.div_ceil(BLOCK);
                let scales_len = if form == ScaleForm::Block { blocks * rows } else { rows };
                let mut out = gpu.upload(&vec![0x7f_u8; rows * hidden]);
                let mut scales = gpu.upload(&vec![f32::NAN; scales_len]);
                Quantise {
                    input: match input {
                        0 => QuantiseInput::Plain((&x_gpu).into()),
                        1 => QuantiseInput::Normed {
                            x: (&x_gpu).into(),
                            weight: (&weight).into(),
                            eps: EPS,
                            plus_one,
                        },
                        _ => QuantiseInput::Gated((&x_gpu).into(), gate),
                    },
                    out: (&mut out).into(),
                    scales: (&mut scales).into(),
                    form,
                    rows,
                    hidden,
                }
                .launch(&gpu.device)
                .unwrap();

                let (y, out, scales) =
                    (gpu.download(&y), gpu.download(&out), gpu.download(&scales));
                let group = if form == ScaleForm::Block { BLOCK } else { hidden };
                for (row, y) in y.chunks_exact(hidden).enumerate() {
                    for (block, y) in y.chunks(group).enumerate() {
                        let what =
                            format!("{rows} x {hidden}, input {input}, {form:?}: {row}, {block}");
                        let largest = y.iter().fold(0.0, |max: f32, y| max.max(y.to_f32().abs()));
                        let scale = scales[block * rows + row];
                        // What is fused may round to the other side of a tie of bf16.
                        let (near, tie) = if input == 0 { (1e-6, 0.0) } else { (5e-3, 4e-3) };
                        let off = (scale - largest / 448.0).abs();
                        assert!(off <= near * scale, "{what}: {scale}");
                        let first = row * hidden + block * group;
                        for (y, &byte) in y.iter().zip(&out[first..]) {
                            let got = widened(byte) * f64::from(scale);
                            // Half a unit in the last place, of normal values and of subnormal ones.
                            let half = (y.to_f64().abs() / 16.0).max(f64::from(scale) / 1024.0);
                            let off = (got - y.to_f64()).abs();
                            let limit = half * 1.0001 + y.to_f64().abs() * tie;
                            assert!(off <= limit, "{what}: {got} of {y}");
                        }
                    }
                }
            }
        }
    }
}

/// A product of many rows on both sides.
struct Many {
    shape: (usize, usize, usize),
    out: Out,
    x: (Vec<f64>, CudaSlice<u8>, CudaSlice<f32>),
    weight: Weight,
    add: (Vec<bf16>, CudaSlice<bf16>),
    /// What it comes to, computed when it is first asked for.
    expected: OnceCell<Vec<f64>>,
}

impl Many {
    fn new(gpu: &mut Gpu, shape: (usize, usize, usize), out: Out, form: ScaleForm) -> Many {
        let (m, n, k) = shape;
        let (bytes, blocks) = (bytes(gpu, m, k), k.div_ceil(BLOCK));
        let small = |at: usize| form == ScaleForm::Block && at / m % 3 == 1;
        let count = if form == ScaleForm::Block { blocks * m } else { m };
        let scales: Vec<f32> = (0..count).map(|at| scale(gpu, 1.0 / 128.0, small(at))).collect();
        let value = |(at, &byte): (usize, &u8)| {
            let (row, column) = (at / k, at % k);
            let block = if form == ScaleForm::Block { column / BLOCK } else { 0 };
            widened(byte) * f64::from(scales[block * m + row])
        };
        let values = bytes.iter().enumerate().map(value).collect();
        let x = (values, gpu.upload(&bytes), gpu.upload(&scales));
        let weight = Weight::new(gpu, n, k, form);
        let add = gpu.normal(out.add_len(m, n), 2.0);
        Many { shape, out, x, weight, add, expected: OnceCell::new() }
    }

    fn run(&self, gpu: &Gpu, gemm: &mut Gemm, tune: bool) -> Vec<bf16> {
        let (m, n, k) = self.shape;
        let mut out = self.out.before(gpu, &self.add.0, m, n);
        let mut out_f32 = gpu.upload(&vec![f32::NAN; m * n]);
        let bias = gpu.upload(&self.add.0[self.add.0.len() - n..]);
        for tuning in [true, false] {
            out = self.out.before(gpu, &self.add.0, m, n);
            let args = Fp8GemmArgs {
                x: Fp8Rows { data: (&self.x.1).into(), scales: (&self.x.2).into() },
                weight: self.weight.view(),
                bias: matches!(self.out, Out::Bias | Out::AddBias).then(|| (&bias).into()),
                out: match self.out {
                    Out::F32 => GemmOut::F32((&mut out_f32).into()),
                    Out::Add | Out::AddBias => GemmOut::AddTo((&mut out).into()),
                    _ => GemmOut::Bf16((&mut out).into()),
                },
                m,
                n,
                k,
            };
            match (tuning, tune) {
                (true, false) => {}
                (true, true) => {
                    let (shape, wide) = (args.shape(), gpu.poisoned(m * k));
                    let budget = Duration::from_secs(1);
                    let wide = Some((&wide).into());
                    let found = gemm.tune_fp8(&gpu.device, args, wide, &[], budget).unwrap();
                    let own = MediumGemm::is_there(&gpu.device) && m <= MediumGemm::ROWS_MAX;
                    assert_eq!(found.skinny_s.is_some(), own, "{found:?}");
                    assert!(gemm.is_tuned(shape));
                }
                (false, _) => gemm.launch_fp8(&gpu.device, args).unwrap(),
            }
        }
        match self.out {
            Out::F32 => gpu.download(&out_f32).into_iter().map(bf16::from_f32).collect(),
            _ => gpu.download(&out),
        }
    }

    fn run_narrow(&self, gpu: &Gpu) -> Vec<bf16> {
        self.run_coded(gpu, None)
    }

    /// By our own kernels from x of e4m3: by [`BroadGemm`] with a cut.
    fn run_coded(&self, gpu: &Gpu, cut: Option<BroadCut>) -> Vec<bf16> {
        let (m, n, k) = self.shape;
        let mut out = self.out.before(gpu, &self.add.0, m, n);
        let mut out_f32 = gpu.upload(&vec![f32::NAN; m * n]);
        let x = Fp8Rows { data: (&self.x.1).into(), scales: (&self.x.2).into() };
        let bias = gpu.upload(&self.add.0[self.add.0.len() - n..]);
        let into = match self.out {
            Out::Plain => SkinnyOut::Bf16 { out: (&mut out).into(), bias: None },
            Out::Bias => SkinnyOut::Bf16 { out: (&mut out).into(), bias: Some((&bias).into()) },
            Out::F32 => SkinnyOut::F32((&mut out_f32).into()),
            Out::Add => SkinnyOut::AddTo { residual: (&mut out).into(), bias: None },
            Out::AddBias => {
                SkinnyOut::AddTo { residual: (&mut out).into(), bias: Some((&bias).into()) }
            }
            Out::Gated(gate) => SkinnyOut::Gated((&mut out).into(), gate),
        };
        let (weight, out_at) = (self.weight.view(), into);
        match cut {
            Some(cut) => BroadGemm { x, weight, out: out_at, m, n, k }.launch(&gpu.device, cut),
            None => NarrowGemm { x, weight, out: out_at, m, n, k }.launch(&gpu.device),
        }
        .unwrap();
        match self.out {
            Out::F32 => gpu.download(&out_f32).into_iter().map(bf16::from_f32).collect(),
            _ => gpu.download(&out),
        }
    }

    /// What is gated as codes with scales: those that `Quantise` makes of what it would have been.
    fn check_codes(&self, gpu: &Gpu, plain: &[bf16], gate: Gate) {
        let (m, n, k) = self.shape;
        let room = || {
            (gpu.upload(&vec![0xa5_u8; m * n / 2]), gpu.upload(&vec![f32::NAN; n / 2 / BLOCK * m]))
        };
        let (mut codes, mut scales) = room();
        let x = Fp8Rows { data: (&self.x.1).into(), scales: (&self.x.2).into() };
        let out =
            SkinnyOut::GatedCodes { out: (&mut codes).into(), scales: (&mut scales).into(), gate };
        NarrowGemm { x, weight: self.weight.view(), out, m, n, k }.launch(&gpu.device).unwrap();
        let (mut expected, mut expected_scales) = room();
        Quantise {
            input: QuantiseInput::Plain((&gpu.upload(plain)).into()),
            out: (&mut expected).into(),
            scales: (&mut expected_scales).into(),
            form: ScaleForm::Block,
            rows: m,
            hidden: n / 2,
        }
        .launch(&gpu.device)
        .unwrap();
        let what = format!("codes of {:?}, {gate:?}", self.shape);
        assert!(gpu.download(&scales) == gpu.download(&expected_scales), "scales of {what}");
        assert!(gpu.download(&codes) == gpu.download(&expected), "{what}");
    }

    fn check(&self, what: &str, result: &[bf16]) {
        let (_, n, k) = self.shape;
        let expected = self.expected.get_or_init(|| {
            self.out.of(product(&self.x.0, &self.weight.values, k), &self.add.0, n)
        });
        // The tensor cores keep some 13 bits of a sum of e4m3 before it is added up in f32.
        let what = format!("{what}: {:?}, {:?}, {:?}", self.shape, self.out, self.weight.form);
        // What is added to may be added after a rounding of the product, and both halves of what is gated are rounded before.
        let is_added = matches!(self.out, Out::Add | Out::AddBias);
        let off = self.out.off(if is_added { 0.1 } else { 0.01 });
        assert_near(&what, result, expected, off, if self.out.is_gated() { 2.0 } else { 0.0 });
    }
}

/// Cut tiles, blocks of columns and tokens, several passes, rings that wrap around.
pub fn narrow(gpu: &mut Gpu) {
    if !MediumGemm::is_there(&gpu.device) {
        println!("no wgmma on this GPU: not run");
        return;
    }
    let shapes = [
        (4, 24, 16),
        (8, 528, 272),
        (12, 512, 640),
        (32, 256, 2048),
        (36, 2112, 1056),
        (60, 512, 9008),
        (64, 34_832, 144),
    ];
    for shape in shapes.into_iter().take(if gpu.small { 3 } else { shapes.len() }) {
        for form in FORMS {
            let unit = if form == ScaleForm::Block { 2 * BLOCK } else { 16 };
            let few = |out: &Out| {
                shape.1 * shape.2 < 3_000_000 || matches!(out, Out::Add | Out::Gated(Gate::Silu))
            };
            let outs = OUTS.into_iter().filter(few);
            for out in outs.filter(|out| !out.is_gated() || shape.1 % unit == 0) {
                let case = Many::new(gpu, shape, out, form);
                let result = case.run_narrow(gpu);
                case.check("narrow", &result);
                assert_same("narrow, again", &case.run_narrow(gpu), &result);
                if let (Out::Gated(gate), ScaleForm::Block) = (out, form) {
                    case.check_codes(gpu, &result, gate);
                }
            }
        }
    }
}

/// Every cut, tiles that have rows of two blocks, tokens of several tiles, rings that wrap around, clusters.
pub fn broad(gpu: &mut Gpu) {
    if !MediumGemm::is_there(&gpu.device) {
        println!("no wgmma on this GPU: not run");
        return;
    }
    let shapes = [
        (4, 24, 16),
        (12, 512, 640),
        (68, 528, 272),
        (64, 768, 2048),
        (132, 256, 4096),
        (100, 2112, 1056),
        (260, 512, 1040),
        (132, 8704, 144),
        (384, 4352, 144),
    ];
    for shape in shapes.into_iter().take(if gpu.small { 4 } else { shapes.len() }) {
        let cuts = BroadGemm::cuts(&gpu.device, shape.into()).unwrap();
        for form in FORMS {
            let unit = if form == ScaleForm::Block { 2 * BLOCK } else { 16 };
            let few = |out: &Out| {
                shape.0 * shape.1 * shape.2 < 20_000_000
                    || matches!(out, Out::Add | Out::Gated(Gate::Silu))
            };
            let outs = OUTS.into_iter().filter(few);
            for out in outs.filter(|out| !out.is_gated() || shape.1 % unit == 0) {
                let case = Many::new(gpu, shape, out, form);
                for &cut in &cuts {
                    let result = case.run_coded(gpu, Some(cut));
                    case.check(&format!("{cut:?}"), &result);
                    assert_same("broad, again", &case.run_coded(gpu, Some(cut)), &result);
                }
            }
        }
    }
}

pub fn gemm(gpu: &mut Gpu) {
    if gpu.device.capability() < (9, 0) {
        println!("no such product on this GPU: not run");
        return;
    }
    let mut gemm = Gemm::open(&gpu.device, None).unwrap();
    let shapes = [(4, 24, 16), (40, 520, 640), (132, 264, 272), (260, 136, 1040)];
    for shape in shapes.into_iter().take(if gpu.small { 2 } else { shapes.len() }) {
        for form in FORMS {
            for out in OUTS.into_iter().filter(|out| !out.is_gated()) {
                let case = Many::new(gpu, shape, out, form);
                case.check("first", &case.run(gpu, &mut gemm, false));
            }
        }
    }

    // Tuned, and taken over by another start: the same bits.
    let cases = FORMS.map(|form| Many::new(gpu, (64, 512, 640), Out::Plain, form));
    let outs = cases.each_ref().map(|case| case.run(gpu, &mut gemm, true));
    let saved = gemm.save(&gpu.device);
    let mut again = Gemm::open(&gpu.device, None).unwrap();
    assert_eq!(again.restore(&gpu.device, &saved), cases.len(), "{saved}");
    for (case, out) in cases.iter().zip(&outs) {
        case.check("tuned", out);
        assert_same("restored", &case.run(gpu, &mut again, false), out);
    }
}

pub fn refusals(gpu: &mut Gpu) {
    let (m, n, k) = (5, 256, 256);
    let weight = Weight::new(gpu, n, k, ScaleForm::Block);
    let (_, x) = gpu.normal(m * k, 1.0);
    let data = gpu.upload(&vec![0_u8; m * k]);
    let scales = gpu.upload(&vec![1_f32; k / BLOCK * m]);
    let mut out = gpu.poisoned(m * n);
    let mut gemm = Gemm::open(&gpu.device, None).unwrap();
    let args = Fp8GemmArgs {
        x: Fp8Rows { data: (&data).into(), scales: (&scales).into() },
        weight: weight.view(),
        bias: None,
        out: GemmOut::Bf16((&mut out).into()),
        m,
        n,
        k,
    };
    let shape = args.shape();
    let said = gemm.launch_fp8(&gpu.device, args).unwrap_err().to_string();
    assert!(said.contains("m is 5") && said.contains("multiple of 4"), "{said}");
    assert!(gemm.takes(&gpu.device, shape).is_err());

    // Scales that are not padded, and a gate that ends within a block of rows.
    let dense = gpu.upload(&vec![1_f32; n.div_ceil(BLOCK) * k.div_ceil(BLOCK)]);
    let bare = Fp8Weight { data: (&weight.data).into(), scales: Fp8Scales::Block((&dense).into()) };
    let launch = |weight, out: SkinnyOut<'_>, n| {
        let product = MediumGemm { x: (&x).into(), weight, out, m, n, k };
        product.launch(&gpu.device).unwrap_err().to_string()
    };
    if MediumGemm::is_there(&gpu.device) {
        let said = launch(bare, SkinnyOut::AddTo { residual: (&mut out).into(), bias: None }, n);
        assert!(said.contains("block scales"), "{said}");
        let half = weight.data.slice(..n / 2 * k);
        let one = weight.scales.slice(..minisgl_kernels::fp8::scale_stride(k));
        let half = Fp8Weight { data: (&half).into(), scales: Fp8Scales::Block((&one).into()) };
        let mut narrow = out.slice_mut(..m * n / 4);
        let said = launch(half, SkinnyOut::Gated((&mut narrow).into(), Gate::Silu), n / 2);
        assert!(said.contains("multiple of 256"), "{said}");
    }

    // More columns than a norm or a gate is there for, and a gate that ends within a block of rows.
    if Fp8Gemv::takes(&gpu.device, k) {
        let mut refusal = |(n, k), form, normed: bool, gated: bool| {
            let (weight, (_, x)) = (Weight::new(gpu, n, k, form), gpu.normal(k, 1.0));
            let mut to = gpu.poisoned(n);
            let (residual, eps) = ((&x).into(), EPS);
            let input = match normed {
                true => SkinnyInput::Normed { residual, weight: (&x).into(), eps },
                false => SkinnyInput::Plain(residual),
            };
            let mut half = gpu.poisoned(n / 2);
            let out = match gated {
                true => SkinnyOut::Gated((&mut half).into(), Gate::Silu),
                false => SkinnyOut::Bf16 { out: (&mut to).into(), bias: None },
            };
            let product = Fp8Gemv { input, weight: weight.view(), out, n, k };
            product.launch(&gpu.device).unwrap_err().to_string()
        };
        for (shape, form, normed, gated, word) in [
            ((16, 12_288), ScaleForm::Row, true, false, "norms"),
            ((16, 16_384), ScaleForm::Row, false, true, "gates"),
            ((16, 25_616), ScaleForm::Row, false, false, "takes"),
            ((128, 256), ScaleForm::Block, false, true, "multiple of 256"),
        ] {
            let said = refusal(shape, form, normed, gated);
            assert!(said.contains(word), "{said}");
        }
    }
}
