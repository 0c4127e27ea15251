//! Times of the ops: the median of 20 replays of a graph of launches over cold buffers.

use std::time::{Duration, Instant};

use cudarc::driver::CudaSlice;
use cudarc::driver::sys::{CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode};
use half::bf16;
use minisgl_kernels::ArrayMut;
use minisgl_kernels::abi::{SampleParams, SampleRow};
use minisgl_kernels::gemm::{Gemm, GemmArgs, GemmOut};
use minisgl_kernels::ops::*;

use crate::support::Gpu;

/// What a graph reads before it comes round to the same buffer: three times an H100's L2 cache.
const COLD_BYTES: usize = 160 << 20;

const HIDDEN: usize = 4096;
const WIDTH: usize = 12_288;
const VOCAB: usize = 151_936;
const ROWS: [usize; 4] = [1, 32, 256, 4096];

/// Times the ops that have `only` in their names.
pub fn run(gpu: &mut Gpu, only: &str) {
    let wanted = |op: &str| op.contains(only);
    if wanted("gemm") {
        gemm(gpu);
    }
    if wanted("fp8") {
        crate::fp8_bench::run(gpu);
    }
    let copy = copy_rate(gpu);
    println!("copy {:.2} TB/s (read and written); share = bytes / time / copy", copy / 1e12);
    println!("{:<34} {:>6} {:>10} {:>8} {:>7}", "op", "rows", "time/us", "TB/s", "share");
    let show = |op: &str, rows: usize, bytes: usize, seconds: f64| {
        let rate = bytes as f64 / seconds;
        let (micros, tera) = (seconds * 1e6, rate / 1e12);
        println!("{op:<34} {rows:>6} {micros:>10.2} {tera:>8.3} {:>6.1}%", rate / copy * 100.0);
    };
    type Op = fn(&mut Gpu, usize, Show<'_>);
    let by_tokens: [(&str, Op); 5] = [
        ("embedding", embedding),
        ("rmsnorm", rmsnorm),
        ("rope", rope),
        ("silu_mul", silu_mul),
        ("layer", layer),
    ];
    for rows in ROWS {
        by_tokens.iter().filter(|(op, _)| wanted(op)).for_each(|(_, run)| run(gpu, rows, &show));
    }
    if wanted("attention") {
        crate::attention_bench::prefill_windows(gpu);
        crate::attention_bench::decode(gpu, &show);
        crate::attention_bench::prefill(gpu);
    }
    if wanted("decode") {
        crate::decode_bench::bench(gpu);
    }
    if wanted("experts") {
        crate::experts_bench::bench(gpu, &show);
    }
    if wanted("experts_fp8") {
        crate::experts_fp8_bench::bench(gpu, &show);
    }
    if wanted("experts_mxfp4") {
        crate::experts_mxfp4_bench::bench(gpu, &show);
    }
    if wanted("peers") {
        crate::peers::bench(gpu);
        crate::sampler::bench_ranks(gpu);
    }
    for rows in [1, 8, 32, 256].into_iter().filter(|_| wanted("sampler")) {
        sample(gpu, rows, &show);
    }
}

pub type Show<'a> = &'a dyn Fn(&str, usize, usize, f64);

/// Bytes a second that the driver's own copy moves, read and written.
fn copy_rate(gpu: &Gpu) -> f64 {
    let bytes = 1 << 30;
    let stream = gpu.device.stream();
    let from = stream.alloc_zeros::<u8>(bytes).unwrap();
    let mut to = stream.alloc_zeros::<u8>(bytes).unwrap();
    let flags = Some(CUevent_flags::CU_EVENT_DEFAULT);
    let mut times: Vec<f32> = (0..10)
        .map(|_| {
            let begin = stream.record_event(flags).unwrap();
            stream.memcpy_dtod(&from, &mut to).unwrap();
            let end = stream.record_event(flags).unwrap();
            begin.elapsed_ms(&end).unwrap()
        })
        .collect();
    times.sort_by(f32::total_cmp);
    2.0 * bytes as f64 / (f64::from(times[5]) * 1e-3)
}

/// How many buffers of `bytes` keep the cache cold.
pub fn sets(bytes: usize) -> usize {
    COLD_BYTES.div_ceil(bytes).clamp(2, 64)
}

/// Seconds of one launch; `launch(i)` works on the i-th set of buffers.
pub fn time(gpu: &Gpu, sets: usize, mut launch: impl FnMut(usize)) -> f64 {
    let stream = gpu.device.stream();
    launch(0);
    gpu.device.synchronize().unwrap();
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    (0..sets).for_each(&mut launch);
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY;
    let graph = stream.end_capture(flags).unwrap().unwrap();
    graph.launch().unwrap();
    let flags = Some(CUevent_flags::CU_EVENT_DEFAULT);
    let mut times: Vec<f32> = (0..20)
        .map(|_| {
            let begin = stream.record_event(flags).unwrap();
            graph.launch().unwrap();
            let end = stream.record_event(flags).unwrap();
            begin.elapsed_ms(&end).unwrap()
        })
        .collect();
    times.sort_by(f32::total_cmp);
    f64::from(times[10]) * 1e-3 / sets as f64
}

/// Random values, a megabyte of them again and again.
pub fn fill(gpu: &mut Gpu, len: usize) -> CudaSlice<bf16> {
    let (values, _) = gpu.normal((1 << 19).min(len), 1.0);
    let stream = gpu.device.stream();
    let mut slice = stream.alloc_zeros::<bf16>(len).unwrap();
    for at in (0..len).step_by(values.len()) {
        let end = len.min(at + values.len());
        stream.memcpy_htod(&values[..end - at], &mut slice.slice_mut(at..end)).unwrap();
    }
    slice
}

fn embedding(gpu: &mut Gpu, rows: usize, show: Show<'_>) {
    let bytes = 4 * rows * HIDDEN;
    let sets = sets(bytes);
    let table = fill(gpu, VOCAB * HIDDEN);
    let ids: Vec<i32> = (0..sets * rows).map(|_| gpu.random.below(VOCAB) as i32).collect();
    let tokens = gpu.upload(&ids);
    let mut out = gpu.poisoned(sets * rows * HIDDEN);
    let seconds = time(gpu, sets, |i| {
        Embedding {
            tokens: (&tokens.slice(i * rows..(i + 1) * rows)).into(),
            fed: (&tokens).into(),
            table: (&table).into(),
            out: (&mut out.slice_mut(i * rows * HIDDEN..(i + 1) * rows * HIDDEN)).into(),
            rows,
            hidden: HIDDEN,
            vocab_start: 0,
            vocab_len: VOCAB,
            scale: 1.0,
        }
        .launch(&gpu.device)
        .unwrap();
    });
    show("embedding, hidden 4096", rows, bytes, seconds);
}

fn rmsnorm(gpu: &mut Gpu, rows: usize, show: Show<'_>) {
    let bytes = 4 * rows * HIDDEN;
    let (sets, len) = (sets(bytes), rows * HIDDEN);
    let x = fill(gpu, sets * len);
    let (weight, mut out) = (fill(gpu, HIDDEN), gpu.poisoned(sets * len));
    let seconds = time(gpu, sets, |i| {
        let at = i * len..(i + 1) * len;
        RmsNorm {
            x: (&x.slice(at.clone())).into(),
            index: None,
            weight: (&weight).into(),
            out: (&mut out.slice_mut(at)).into(),
            rows,
            x_rows: rows,
            hidden: HIDDEN,
            eps: 1e-6,
            plus_one: false,
        }
        .launch(&gpu.device)
        .unwrap();
    });
    show("rmsnorm, hidden 4096", rows, bytes, seconds);
}

/// Qwen3-8B's heads.
fn rope(gpu: &mut Gpu, rows: usize, show: Show<'_>) {
    let (q_heads, kv_heads, head_dim) = (32, 8, 128);
    let heads = q_heads + 2 * kv_heads;
    let bytes = 4 * rows * heads * head_dim + 4 * rows * head_dim;
    let (sets, len) = (sets(bytes), rows * heads * head_dim);
    let qkv = fill(gpu, sets * len);
    let (weight, cos_sin) = (fill(gpu, head_dim), gpu.upload(&vec![0.7_f32; 8192 * head_dim]));
    let positions: Vec<i32> = (0..rows).map(|_| gpu.random.below(8192) as i32).collect();
    let mut order: Vec<i32> = (0..sets as i32 * rows as i32).collect();
    gpu.random.shuffle(&mut order);
    let (positions, slots) = (gpu.upload(&positions), gpu.upload(&order));
    let mut q_out = gpu.poisoned(sets * rows * q_heads * head_dim);
    let mut k_pages = gpu.poisoned(sets * rows * kv_heads * head_dim);
    let mut v_pages = gpu.poisoned(sets * rows * kv_heads * head_dim);
    let q_len = rows * q_heads * head_dim;
    let seconds = time(gpu, sets, |i| {
        QkRopePage {
            qkv: (&qkv.slice(i * len..(i + 1) * len)).into(),
            norm: Some(QkNorm {
                q_weight: (&weight).into(),
                k_weight: (&weight).into(),
                eps: 1e-6,
                plus_one: false,
            }),
            cos_sin: (&cos_sin).into(),
            positions: (&positions).into(),
            slots: (&slots.slice(i * rows..(i + 1) * rows)).into(),
            q_out: ArrayMut::from(&mut q_out.slice_mut(i * q_len..(i + 1) * q_len)).into(),
            k_pages: ArrayMut::from(&mut k_pages).into(),
            v_pages: ArrayMut::from(&mut v_pages).into(),
            rows,
            q_heads,
            kv_heads,
            head_dim,
        }
        .launch(&gpu.device)
        .unwrap();
    });
    show("qk_norm + rope + page, 32/8 x 128", rows, bytes, seconds);
}

fn silu_mul(gpu: &mut Gpu, rows: usize, show: Show<'_>) {
    let bytes = 6 * rows * WIDTH;
    let (sets, len) = (sets(bytes), rows * WIDTH);
    let (x, mut out) = (fill(gpu, sets * 2 * len), gpu.poisoned(sets * len));
    let seconds = time(gpu, sets, |i| {
        let from = x.slice(i * 2 * len..(i + 1) * 2 * len);
        let mut to = out.slice_mut(i * len..(i + 1) * len);
        GateMul {
            gate_up: (&from).into(),
            out: (&mut to).into(),
            rows,
            width: WIDTH,
            gate: Gate::Silu,
        }
        .launch(&gpu.device)
        .unwrap();
    });
    show("silu_mul, width 12288", rows, bytes, seconds);
}

/// What a layer of Qwen3-0.6B runs beside its GEMMs and attention, on buffers that stay in the cache: mostly
/// the cost of one launch after the other.
fn layer(gpu: &mut Gpu, rows: usize, show: Show<'_>) {
    let (hidden, width, layers) = (1024, 3072, 28);
    let (q_heads, kv_heads, head_dim) = (16, 8, 128);
    let heads = q_heads + 2 * kv_heads;
    let bytes = rows * (2 * 4 * hidden + 4 * heads * head_dim + 4 * head_dim + 6 * width);
    let x = fill(gpu, rows * hidden);
    let (weight, mut normed) = (fill(gpu, hidden), gpu.poisoned(rows * hidden));
    let (qkv, head_weight) = (fill(gpu, rows * heads * head_dim), fill(gpu, head_dim));
    let cos_sin = gpu.upload(&vec![0.7_f32; 8192 * head_dim]);
    let positions = gpu.upload(&(0..rows as i32).collect::<Vec<_>>());
    let mut q_out = gpu.poisoned(rows * q_heads * head_dim);
    let mut k_pages = gpu.poisoned(rows * kv_heads * head_dim);
    let mut v_pages = gpu.poisoned(rows * kv_heads * head_dim);
    let (gate_up, mut out) = (fill(gpu, rows * 2 * width), gpu.poisoned(rows * width));
    let seconds = time(gpu, layers, |_| {
        let mut norm = || {
            RmsNorm {
                x: (&x).into(),
                index: None,
                weight: (&weight).into(),
                out: (&mut normed).into(),
                rows,
                x_rows: rows,
                hidden,
                eps: 1e-6,
                plus_one: false,
            }
            .launch(&gpu.device)
            .unwrap();
        };
        norm();
        QkRopePage {
            qkv: (&qkv).into(),
            norm: Some(QkNorm {
                q_weight: (&head_weight).into(),
                k_weight: (&head_weight).into(),
                eps: 1e-6,
                plus_one: false,
            }),
            cos_sin: (&cos_sin).into(),
            positions: (&positions).into(),
            slots: (&positions).into(),
            q_out: ArrayMut::from(&mut q_out).into(),
            k_pages: ArrayMut::from(&mut k_pages).into(),
            v_pages: ArrayMut::from(&mut v_pages).into(),
            rows,
            q_heads,
            kv_heads,
            head_dim,
        }
        .launch(&gpu.device)
        .unwrap();
        norm();
        GateMul {
            gate_up: (&gate_up).into(),
            out: (&mut out).into(),
            rows,
            width,
            gate: Gate::Silu,
        }
        .launch(&gpu.device)
        .unwrap();
    });
    show("layer: 4 small ops, 0.6B, warm", rows, bytes, seconds);
}

/// Layers of Qwen3-0.6B and 8B: the first guess of cuBLASLt and the best of its algorithms.
fn gemm(gpu: &mut Gpu) {
    let mut gemm = Gemm::open(&gpu.device, None).unwrap();
    println!(
        "{:<26} {:>5} {:>9} {:>9} {:>8} {:>6} {:>8}",
        "gemm (N, K), cold weights", "rows", "first/us", "best/us", "TB/s", "tried", "tune/ms"
    );
    let shapes = [
        ("0.6B qkv", 4096, 1024),
        ("0.6B o, add", 1024, 2048),
        ("0.6B gate_up", 6144, 1024),
        ("0.6B down, add", 1024, 3072),
        ("0.6B lm_head, f32", 151_936, 1024),
        ("8B qkv", 6144, 4096),
        ("8B o, add", 4096, 4096),
        ("8B gate_up", 24_576, 4096),
        ("8B down, add", 4096, 12_288),
        ("8B lm_head, f32", 151_936, 4096),
    ];
    for (name, n, k) in shapes {
        let sets = sets(2 * n * k).min(28);
        let weights = fill(gpu, sets * n * k);
        let views: Vec<_> = (0..sets).map(|i| weights.slice(i * n * k..(i + 1) * n * k)).collect();
        for m in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 8192] {
            let head = name.ends_with("f32");
            if head && m > 256 {
                continue;
            }
            let x = fill(gpu, m * k);
            let (mut out, mut out_f32) =
                (gpu.poisoned(m * n), gpu.upload(&vec![0_f32; if head { m * n } else { 0 }]));
            let args = GemmArgs {
                x: (&x).into(),
                weight: (&views[0]).into(),
                bias: None,
                out: match (head, name.ends_with("add")) {
                    (true, _) => GemmOut::F32((&mut out_f32).into()),
                    (_, true) => GemmOut::AddTo((&mut out).into()),
                    _ => GemmOut::Bf16((&mut out).into()),
                },
                m,
                n,
                k,
            };
            let rest: Vec<_> = views[1..].iter().map(Into::into).collect();
            let began = Instant::now();
            let found = gemm.tune(&gpu.device, args, &rest, Duration::from_secs(1)).unwrap();
            let (millis, tried) = (began.elapsed().as_secs_f64() * 1e3, found.tried);
            let rate = (2 * (m * k + n * k + m * n)) as f64 / found.best_s / 1e12;
            let (first, best) = (found.first_s * 1e6, found.best_s * 1e6);
            println!(
                "{name:<26} {m:>5} {first:>9.2} {best:>9.2} {rate:>8.3} {tried:>6} {millis:>8.1}"
            );
        }
    }
}

/// Ways to sample, by name, with how many log-probabilities are wanted.
pub fn settings() -> [(&'static str, SampleParams, i32); 6] {
    let greedy = SampleParams::default();
    let plain = SampleParams { temperature: 0.6, ..greedy };
    [
        ("greedy", greedy, -1),
        ("temperature", plain, -1),
        ("top_p 0.95", SampleParams { top_p: 0.95, ..plain }, -1),
        ("top_k 20, top_p 0.95", SampleParams { top_p: 0.95, top_k: 20, ..plain }, -1),
        // Too many tokens for a list.
        ("top_p 0.95, flat", SampleParams { top_p: 0.95, temperature: 50.0, ..plain }, -1),
        ("top 5 logprobs", plain, 5),
    ]
}

/// Rows that are sampled so, each with a seed of its own.
pub fn draws(
    rows: usize,
    params: SampleParams,
    logprobs: i32,
) -> (Vec<SampleRow>, Vec<SampleParams>) {
    let row = |at: u32| SampleRow { logprobs, ..SampleRow::drawn(at, 1, at as i32) };
    let of = |at: u64| SampleParams { seed: at, ..params };
    ((0..rows as u32).map(row).collect(), (0..rows as u64).map(of).collect())
}

/// Logits of a model: normal, with a few that stand out.
pub fn likely(gpu: &mut Gpu, len: usize) -> Vec<f32> {
    (0..len).map(|i| gpu.random.normal() * 2.0 + if i % 5000 == 0 { 8.0 } else { 0.0 }).collect()
}

fn logits(gpu: &mut Gpu, len: usize) -> CudaSlice<f32> {
    let values = likely(gpu, 1 << 20);
    let stream = gpu.device.stream();
    let mut slice = stream.alloc_zeros::<f32>(len).unwrap();
    for at in (0..len).step_by(values.len()) {
        let end = len.min(at + values.len());
        stream.memcpy_htod(&values[..end - at], &mut slice.slice_mut(at..end)).unwrap();
    }
    slice
}

fn sample(gpu: &mut Gpu, rows: usize, show: Show<'_>) {
    let (sets, len) = (sets(4 * rows * VOCAB), rows * VOCAB);
    let logits = logits(gpu, sets * len);
    let top_max = 20;
    let mut marks = gpu.upload(&vec![0_u32; VOCAB]);
    let (mut tokens, mut logprob) =
        (gpu.upload(&vec![0_i32; rows]), gpu.upload(&vec![0_f32; rows]));
    let mut top_tokens = gpu.upload(&vec![0_i32; rows * top_max]);
    let mut top_logprobs = gpu.upload(&vec![0_f32; rows * top_max]);
    let (none_u32, none_f32) = (gpu.upload(&[0_u32]), gpu.upload(&[0_f32]));
    let mut scratch = gpu.upload(&[0_f32]);
    for (name, params, logprobs) in settings() {
        let (draws, params) = draws(rows, params, logprobs);
        let (draws, params) = (gpu.upload(&draws), gpu.upload(&params));
        let seconds = time(gpu, sets, |i| {
            Sample {
                draws: (&draws).into(),
                params: (&params).into(),
                masks: (&none_u32.slice(..0)).into(),
                bias_tokens: (&none_u32).into(),
                bias_values: (&none_f32).into(),
                banned: (&none_u32).into(),
                marks: (&mut marks).into(),
                scratch: (&mut scratch.slice_mut(..0)).into(),
                tokens: (&mut tokens).into(),
                logprob: (&mut logprob).into(),
                top_tokens: (&mut top_tokens).into(),
                top_logprobs: (&mut top_logprobs).into(),
                rows,
                vocab: VOCAB,
                top_max,
            }
            .launch(&gpu.device, (&logits.slice(i * len..(i + 1) * len)).into(), VOCAB)
            .unwrap();
        });
        show(&format!("sample, {name}"), rows, 4 * len, seconds);
    }
}
