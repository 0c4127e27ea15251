//! Times of the products of e4m3: cuBLASLt's best, ours, and what makes activations e4m3 before cuBLASLt.

use std::time::Duration;

use minisgl_kernels::ArrayMut;
use minisgl_kernels::fp8::{BLOCK, Fp8Rows, Fp8Scales, Fp8Weight, ScaleForm};
use minisgl_kernels::gemm::{Fp8GemmArgs, Gemm, GemmOut};
use minisgl_kernels::ops::{
    Fp8Gemv, Gate, MediumGemm, Quantise, QuantiseInput, SkinnyGemm, SkinnyInput, SkinnyOut,
    SkinnyWeight,
};

use crate::bench;
use crate::fp8::{Own, bytes};
use crate::support::Gpu;

/// The four products of a layer of Qwen3-8B, cold weights, in chains of dependent launches.
pub fn run(gpu: &mut Gpu) {
    let mut gemm = Gemm::open(&gpu.device, None).unwrap();
    println!(
        "{:<22} {:>5} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}  us; TB/s of the weight",
        "e4m3, 128 x 128", "rows", "cuBLASLt", "broad", "skinny", "medium", "gemv", "quantise"
    );
    for (name, n, k) in [
        ("qkv", 6144, 4096),
        ("o, add", 4096, 4096),
        ("gate_up", 24_576, 4096),
        ("down, add", 4096, 12_288),
    ] {
        let sets = bench::sets(n * k).min(16);
        let some = bytes(gpu, 256, 4096);
        let stream = gpu.device.stream().clone();
        let mut data = stream.alloc_zeros::<u8>(sets * n * k).unwrap();
        for at in (0..sets * n * k).step_by(some.len()) {
            stream.memcpy_htod(&some, &mut data.slice_mut(at..at + some.len())).unwrap();
        }
        let scales = gpu.upload(&vec![1e-3_f32; n / BLOCK * k / BLOCK]);
        let views: Vec<_> = (0..sets).map(|i| data.slice(i * n * k..(i + 1) * n * k)).collect();
        let weights: Vec<_> = views
            .iter()
            .map(|view| Fp8Weight { data: view.into(), scales: Fp8Scales::Block((&scales).into()) })
            .collect();
        for m in [1, 2, 4, 8, 16, 32, 64, 96, 128, 160, 192, 256, 512, 1024, 8192] {
            let x = bench::fill(gpu, m * k);
            let mut out = gpu.poisoned(m * n);
            let add = name.ends_with("add");
            let mut narrow = gpu.upload(&vec![0_u8; m * k]);
            let mut x_scales = gpu.upload(&vec![1_f32; k / BLOCK * m]);
            let quantise = bench::time(gpu, 4, |_| {
                Quantise {
                    input: QuantiseInput::Plain((&x).into()),
                    out: (&mut narrow).into(),
                    scales: (&mut x_scales).into(),
                    form: ScaleForm::Block,
                    rows: m,
                    hidden: k,
                }
                .launch(&gpu.device)
                .unwrap();
            });
            let library = m.is_multiple_of(4).then(|| {
                let args = Fp8GemmArgs {
                    x: Fp8Rows { data: (&narrow).into(), scales: (&x_scales).into() },
                    weight: weights[0],
                    bias: None,
                    out: if add {
                        GemmOut::AddTo((&mut out).into())
                    } else {
                        GemmOut::Bf16((&mut out).into())
                    },
                    m,
                    n,
                    k,
                };
                let (budget, shape) = (Duration::from_secs(1), args.shape());
                gemm.tune_fp8(&gpu.device, args, None, &weights[1..], budget).unwrap();
                gemm.times(shape).unwrap()
            });
            let mut own = |own: Own| {
                bench::time(gpu, sets, |i| {
                    let into = match name {
                        "gate_up" => {
                            SkinnyOut::Gated(ArrayMut::from(&mut out).first(m * n / 2), Gate::Silu)
                        }
                        _ if add => SkinnyOut::AddTo { residual: (&mut out).into(), bias: None },
                        _ => SkinnyOut::Bf16 { out: (&mut out).into(), bias: None },
                    };
                    match own {
                        Own::Skinny => SkinnyGemm {
                            input: SkinnyInput::Plain((&x).into()),
                            weight: SkinnyWeight::Fp8(weights[i]),
                            out: into,
                            m,
                            n,
                            k,
                        }
                        .launch(&gpu.device)
                        .unwrap(),
                        Own::Gemv => {
                            let input = SkinnyInput::Plain((&x).into());
                            Fp8Gemv { input, weight: weights[i], out: into, n, k }
                                .launch(&gpu.device)
                                .unwrap();
                        }
                        Own::Medium => {
                            let x = (&x).into();
                            MediumGemm { x, weight: weights[i], out: into, m, n, k }
                                .launch(&gpu.device)
                                .unwrap();
                        }
                    }
                })
            };
            let few = m <= SkinnyGemm::fp8_rows_worth(&gpu.device, k);
            let skinny = few.then(|| own(Own::Skinny));
            let there = MediumGemm::is_there(&gpu.device) && m <= MediumGemm::ROWS_MAX;
            let medium = there.then(|| own(Own::Medium));
            let one = m == 1 && Fp8Gemv::takes(&gpu.device, k);
            let gemv = one.then(|| own(Own::Gemv));
            let show = |seconds: Option<f64>| match seconds {
                Some(s) => format!("{:.1} {:.2}", s * 1e6, (n * k) as f64 / s / 1e12),
                None => "-".into(),
            };
            let broad = library.and_then(|times| times.broad);
            let broad = match broad {
                Some((cut, time)) => format!("{} {cut:?}", show(Some(time.as_secs_f64()))),
                None => "-".into(),
            };
            let library = library.map(|times| times.library.as_secs_f64());
            let (library, skinny, medium) = (show(library), show(skinny), show(medium));
            let gemv = show(gemv);
            println!(
                "{name:<22} {m:>5} {library:>10} {broad:>10} {skinny:>10} {medium:>10} {gemv:>10} {:>10.2}",
                quantise * 1e6
            );
        }
    }
}
