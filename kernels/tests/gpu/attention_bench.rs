//! Times of attention: decode against read bandwidth, prefill against the matrix units.

use minisgl_kernels::attention::{AttentionLimits, Backend, Heads, KvType, PagedPrefill};

use crate::attention_batch::{Batch, Planned, Request, Tensors, Uploaded};
use crate::bench::{Show, fill, time};
use crate::pages::Pages;
use crate::seen::Seen;
use crate::support::Gpu;

/// Decode with Qwen3's heads over live lengths of 100 to 1,600, one layer after the other.
pub fn decode(gpu: &mut Gpu, show: Show<'_>) {
    for (q_heads, requests) in [(16, 1), (16, 32), (16, 256), (32, 256)] {
        let lens: Vec<Request> = (0..requests)
            .map(|_| (if requests == 1 { 999 } else { 99 + gpu.random.below(1500) }, 1))
            .collect();
        let tokens: usize = lens.iter().map(|(cached, new)| cached + new).sum();
        for kv in [KvType::Bf16, KvType::Fp8] {
            let heads = Heads { q_heads, kv_heads: 8, head_dim: 128, page_size: 16 };
            let (seconds, _) = seconds(gpu, Backend::Fi, heads, (kv, &Seen::ALL), &lens);
            let bytes = tokens * 2 * heads.kv_heads * heads.head_dim * kv.bytes();
            show(&format!("decode, {q_heads}/8 x 128, page 16, {kv:?}"), requests, bytes, seconds);
        }
    }
}

/// Prefill of whole prompts and of chunks behind a cache: TFLOP/s of `fi` and `fa`.
pub fn prefill(gpu: &mut Gpu) {
    let fa = PagedPrefill::available(&gpu.device);
    println!(
        "{:<44} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "prefill, TFLOP/s", "fi plan", "fi/us", "fi", "fa plan", "fa/us", "fa"
    );
    let mut row = |heads: Heads, (count, cached, new): (usize, usize, usize)| {
        let seen: usize = (cached + 1..=cached + new).sum();
        let flops = (4 * count * seen * heads.q_heads * heads.head_dim) as f64;
        let requests = vec![(cached, new); count];
        let mut one = |backend| {
            let (seconds, plan) =
                seconds(gpu, backend, heads, (KvType::Bf16, &Seen::ALL), &requests);
            let rate = flops / seconds / 1e12;
            format!("{:>9.1} {:>9.1} {rate:>9.1}", plan * 1e6, seconds * 1e6)
        };
        let times = [one(Backend::Fi), if fa { one(Backend::Fa) } else { String::new() }];
        let Heads { q_heads, kv_heads, head_dim, page_size } = heads;
        let what = format!("{q_heads}/{kv_heads} x {head_dim}, page {page_size}, {count} x {new}");
        println!("{:<44} {} {}", format!("{what} over {cached}"), times[0], times[1]);
    };
    let heads =
        |q_heads, kv_heads, head_dim, page_size| Heads { q_heads, kv_heads, head_dim, page_size };
    for shape in [
        (16, 0, 1024),
        (1, 0, 8192),
        (8, 4096, 256),
        (64, 0, 128),
        (4, 1000, 64),
        (1, 4096, 256),
        (1, 0, 256),
        (4, 0, 256),
        (16, 0, 64),
        (32, 1000, 64),
        (4, 1000, 128),
        (32, 1000, 128),
        (2, 0, 512),
        (1, 1000, 512),
        (1, 4096, 1024),
    ] {
        row(heads(32, 8, 128, 16), shape);
    }
    for shape in [(16, 0, 1024), (8, 4096, 256), (64, 0, 128), (2, 0, 512)] {
        row(heads(16, 8, 128, 16), shape);
    }
    for page_size in [1, 64] {
        row(heads(32, 8, 128, page_size), (16, 0, 1024));
    }
    for (q_heads, kv_heads, head_dim) in [(32, 8, 64), (32, 32, 96), (16, 8, 256), (40, 8, 128)] {
        for shape in [(16, 0, 1024), (8, 4096, 256), (64, 0, 128)] {
            row(heads(q_heads, kv_heads, head_dim, 16), shape);
        }
    }
}

/// Of one layer, and of planning a step; as many layers take turns as keep the cache cold.
fn seconds(
    gpu: &mut Gpu,
    backend: Backend,
    heads: Heads,
    (kv, seen): (KvType, &Seen),
    requests: &[Request],
) -> (f64, f64) {
    let Heads { q_heads, kv_heads, head_dim, page_size } = heads;
    let tokens: usize = requests.iter().map(|(cached, new)| cached + new).sum();
    let pool = tokens / page_size + requests.len() + 1;
    let batch = Batch::new(gpu, requests, page_size, pool);
    let layers = (200_000_000 / (tokens * 4 * kv_heads * head_dim)).clamp(2, 40);
    let len = pool * page_size * kv_heads * head_dim + heads.pages_slack();
    let values = fill(gpu, len);
    let bytes = gpu.upload(&vec![0x35_u8; if kv == KvType::Fp8 { len } else { 0 }]);
    let pages = |_| match kv {
        KvType::Fp8 => Pages::Fp8(gpu.device.stream().clone_dtod(&bytes).unwrap()),
        _ => Pages::Bf16(gpu.device.stream().clone_dtod(&values).unwrap()),
    };
    let mut tensors: Vec<Tensors> = (0..layers)
        .map(|_| Tensors {
            q: Pages::Bf16(
                gpu.device.stream().alloc_zeros(batch.rows() * q_heads * head_dim).unwrap(),
            ),
            k: pages(()),
            v: pages(()),
            out: gpu.poisoned(batch.rows() * q_heads * head_dim),
        })
        .collect();
    for tensors in &mut tensors {
        tensors.q = Pages::Bf16(fill(gpu, batch.rows() * q_heads * head_dim));
    }
    let uploaded = Uploaded::new(gpu, &batch);
    let limits = AttentionLimits { rows: batch.rows(), requests: requests.len() };
    let mut attention = Planned::new(gpu, Some(backend), heads, kv, limits, &[seen.window]);
    let all = 0..requests.len();
    let graph = batch.rows() == requests.len();
    attention.plan(gpu, batch.host(all.clone(), graph));
    gpu.device.synchronize().unwrap();
    let began = std::time::Instant::now();
    for _ in 0..8 {
        attention.plan(gpu, batch.host(all.clone(), graph));
    }
    let plan = began.elapsed().as_secs_f64() / 8.0;
    let launched = time(gpu, layers, |layer| {
        attention.launch(gpu, (head_dim, seen), (&uploaded, all.clone()), &mut tensors[layer]);
    });
    (launched, plan)
}

/// Windows in a long prompt, by both backends: a window costs what it holds.
pub fn prefill_windows(gpu: &mut Gpu) {
    println!("{:<34} {:>8} {:>9} {:>9}", "prefill us, 1 x 8192", "window", "fi", "fa");
    for (q_heads, kv_heads, head_dim) in [(64, 8, 64), (32, 8, 128), (16, 8, 256), (4, 1, 256)] {
        let heads = Heads { q_heads, kv_heads, head_dim, page_size: 16 };
        for window in [Some(128), Some(256), Some(512), Some(1024), Some(4096), None] {
            let seen = Seen { window, ..Seen::ALL };
            let what = format!("{q_heads}/{kv_heads} x {head_dim}");
            print!("{what:<34} {:>8}", window.map_or("all".into(), |window| window.to_string()));
            let fa = PagedPrefill::available(&gpu.device);
            for backend in if fa { &[Backend::Fi, Backend::Fa][..] } else { &[Backend::Fi] } {
                let of = (KvType::Bf16, &seen);
                let (seconds, _) = seconds(gpu, *backend, heads, of, &[(0, 8192)]);
                print!(" {:>9.1}", seconds * 1e6);
            }
            println!();
        }
    }
}
