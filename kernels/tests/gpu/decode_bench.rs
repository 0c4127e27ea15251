//! Times of decode attention over batches and lengths, against the read bandwidth, for several settings.

use half::bf16;
use minisgl_kernels::attention::{
    DecodeArgs, DecodeAttention, DecodeInput, DecodeOut, DecodeTuning, Heads, KvArray, KvArrayMut,
    KvType, View,
};

use crate::bench::{fill, time};
use crate::support::Gpu;

/// What an H100 can read a second (measured apart), for the shares.
const READ: f64 = 3.14e12;

pub fn bench(gpu: &mut Gpu) {
    let tuned = |blocks, stages, begin, share_min| DecodeTuning {
        blocks: Some(blocks),
        stages: Some(stages),
        begin,
        share_min,
    };
    let settings = [
        ("2x3", tuned(2, 3, 2, 4)),
        ("2x2", tuned(2, 2, 2, 4)),
        ("1x4", tuned(1, 4, 2, 4)),
        ("1x3", tuned(1, 3, 2, 4)),
        ("2x3b0", tuned(2, 3, 0, 4)),
        ("2x3b4", tuned(2, 3, 4, 4)),
        ("2x3b8", tuned(2, 3, 8, 4)),
        ("2x3s8", tuned(2, 3, 2, 8)),
        ("2x3s16", tuned(2, 3, 2, 16)),
        ("1x4s8", tuned(1, 4, 2, 8)),
    ];
    print!("{:<24} {:>6} {:>6}", "decode us: batch", "floor", "fused");
    settings.iter().for_each(|(name, _)| print!(" {name:>6}"));
    println!("  best share");
    let mut cases: Vec<(&str, usize, Vec<u32>)> = Vec::new();
    for len in [100, 1000, 2000, 8000, 32_000] {
        cases.push(("1 request", 16, vec![len]));
    }
    cases.push(("1 request, group 8", 64, vec![1000]));
    for (requests, len) in [(4, 1000), (8, 1000), (8, 8000), (16, 1000), (64, 100)] {
        cases.push(("equal", 16, vec![len; requests]));
    }
    for requests in [4, 8, 16, 32, 64, 128, 256] {
        let lens = (0..requests).map(|_| 100 + gpu.random.below(1500) as u32).collect();
        cases.push(("mixed", 16, lens));
    }
    cases.push(("mixed, group 8", 64, cases.last().unwrap().2.clone()));
    let mut skewed = vec![200; 63];
    skewed.push(16_000);
    cases.push(("one long of many", 16, skewed));
    for (what, q_heads, lens) in cases {
        let heads = Heads { q_heads, kv_heads: 8, head_dim: 128, page_size: 16 };
        let mut data = Data::new(gpu, heads, &lens);
        let tokens: u32 = lens.iter().sum();
        let floor = f64::from(tokens) * 4096.0 / READ * 1e6;
        let fused = data.decode(gpu, settings[0].1, true);
        let times: Vec<f64> =
            settings.iter().map(|(_, tuning)| data.decode(gpu, *tuning, false)).collect();
        let best = times.iter().copied().fold(f64::INFINITY, f64::min);
        let name = format!("{what} {} x {}", lens.len(), tokens as usize / lens.len());
        print!("{name:<24} {floor:>6.1} {fused:>6.1}");
        times.iter().for_each(|time| print!(" {time:>6.1}"));
        println!("  {:.0} %", floor / best * 100.0);
    }
    planning(gpu);
    windows(gpu);
    // Other shapes, by the default setting.
    println!("{:<34} {:>8} {:>8} {:>7}", "decode, others", "rows", "us", "share");
    for (head_dim, kv_heads) in [(64, 8), (96, 8), (128, 8), (128, 4), (128, 1), (256, 4)] {
        for kv in [KvType::Bf16, KvType::Fp8] {
            for requests in [1, 32, 256] {
                let heads = Heads { q_heads: 4 * kv_heads, kv_heads, head_dim, page_size: 16 };
                let lens: Vec<u32> = (0..requests)
                    .map(|_| if requests == 1 { 1000 } else { 100 + gpu.random.below(1500) as u32 })
                    .collect();
                let mut data = Data::new(gpu, heads, &lens);
                data.kv = kv;
                let micros = data.decode(gpu, DecodeTuning::default(), false);
                let bytes =
                    lens.iter().sum::<u32>() as usize * 2 * kv_heads * head_dim * kv.bytes();
                let name = format!("{kv:?}, {kv_heads} x {head_dim}, group 4");
                let share = bytes as f64 / READ * 1e8 / micros;
                println!("{name:<34} {requests:>8} {micros:>8.1} {share:>6.0}%");
            }
        }
    }
}

/// gpt-oss' heads with its window and without, fused: a window costs what it holds.
fn windows(gpu: &mut Gpu) {
    println!("{:<34} {:>8} {:>8} {:>8}", "decode us, 64/8 x 64, fused", "all", "128", "floor");
    for (requests, len) in [(1, 128), (1, 1000), (1, 32_768), (32, 1000), (32, 32_768), (256, 4096)]
    {
        let heads = Heads { q_heads: 64, kv_heads: 8, head_dim: 64, page_size: 16 };
        let mut data = Data::new(gpu, heads, &vec![len; requests]);
        let mut micros = |window| {
            data.window = window;
            data.decode(gpu, DecodeTuning::default(), true)
        };
        let (all, windowed) = (micros(None), micros(Some(128)));
        let floor = (requests * 128 * 2048) as f64 / READ * 1e6;
        let name = format!("{requests} x {len}");
        println!("{name:<34} {all:>8.1} {windowed:>8.1} {floor:>8.1}");
    }
}

/// Time on the host: the mean of 1,000 plans.
fn planning(gpu: &mut Gpu) {
    let heads = Heads { q_heads: 32, kv_heads: 8, head_dim: 128, page_size: 16 };
    let planner = DecodeAttention::new(&gpu.device, heads, KvType::Bf16).unwrap().planner();
    for requests in [1, 32, 256, 1024] {
        let lens: Vec<u32> = (0..requests).map(|_| 100 + gpu.random.below(1500) as u32).collect();
        let page_starts = vec![0; requests];
        let mut work = vec![0; planner.words(requests)];
        let began = std::time::Instant::now();
        for _ in 0..1000 {
            planner.plan(&lens, &page_starts, None, std::hint::black_box(&mut work)).unwrap();
        }
        let micros = began.elapsed().as_secs_f64() * 1e3;
        println!("planning {requests} requests takes {micros:.2} us on the host");
    }
}

/// Caches of several layers, so that each is cold when its turn comes.
struct Data {
    heads: Heads,
    kv: KvType,
    window: Option<u32>,
    lens: Vec<u32>,
    page_starts: Vec<i32>,
    pages: Vec<i32>,
    layers: usize,
    caches: Vec<(cudarc::driver::CudaSlice<bf16>, cudarc::driver::CudaSlice<bf16>)>,
    q: cudarc::driver::CudaSlice<bf16>,
    out: cudarc::driver::CudaSlice<bf16>,
}

impl Data {
    fn new(gpu: &mut Gpu, heads: Heads, lens: &[u32]) -> Data {
        let Heads { q_heads, kv_heads, head_dim, page_size } = heads;
        let mut page_starts = vec![0];
        for &len in lens {
            page_starts.push(page_starts.last().unwrap() + (len as i32 + 15) / 16);
        }
        let pool = *page_starts.last().unwrap() as usize;
        let mut pages: Vec<i32> = (0..pool as i32).collect();
        gpu.random.shuffle(&mut pages);
        let len = pool * page_size * kv_heads * head_dim;
        let layers = (200_000_000 / (len * 4)).clamp(2, 40);
        let k = fill(gpu, len);
        let stream = gpu.device.stream().clone();
        let caches = (0..layers)
            .map(|_| (stream.clone_dtod(&k).unwrap(), stream.clone_dtod(&k).unwrap()))
            .collect();
        // Long enough for the projection.
        let (_, q) = gpu.normal(lens.len() * (q_heads + 2 * kv_heads) * head_dim, 1.0);
        let out = gpu.poisoned(lens.len() * q_heads * head_dim);
        let kv = KvType::Bf16;
        Data {
            heads,
            kv,
            window: None,
            lens: lens.to_vec(),
            page_starts,
            pages,
            layers,
            caches,
            q,
            out,
        }
    }

    fn decode(&mut self, gpu: &mut Gpu, tuning: DecodeTuning, fused: bool) -> f64 {
        let Heads { q_heads, head_dim, .. } = self.heads;
        let Ok(attention) = DecodeAttention::with_tuning(&gpu.device, self.heads, self.kv, tuning)
        else {
            return f64::NAN;
        };
        let rows = self.lens.len();
        let mut work = vec![0; attention.planner().words(rows)];
        let planner = attention.planner();
        planner.plan(&self.lens, &self.page_starts, self.window, &mut work).unwrap();
        let (work, pages) = (gpu.upload(&work), gpu.upload(&self.pages));
        let positions = *self.lens.iter().max().unwrap() as usize;
        let cos_sin = gpu.upload(&vec![0.7_f32; positions * head_dim]);
        let layers = self.layers;
        let kv = self.kv;
        // fp8: half of the bytes, whatever they say.
        let mut bytes: Vec<_> = match kv {
            KvType::Fp8 => {
                let len = self.caches[0].0.len();
                let new = || gpu.device.stream().alloc_zeros::<u8>(len).unwrap();
                (0..layers).map(|_| (new(), new())).collect()
            }
            _ => Vec::new(),
        };
        let (q, out, caches) = (&self.q, &mut self.out, &mut self.caches);
        let queries = q.slice(..rows * q_heads * head_dim);
        1e6 * time(gpu, layers, |layer| {
            let (k_pages, v_pages) = match kv {
                KvType::Fp8 => {
                    let (k, v) = &mut bytes[layer];
                    (KvArrayMut::Fp8(k.into()), KvArrayMut::Fp8(v.into()))
                }
                _ => {
                    let (k, v) = &mut caches[layer];
                    (KvArrayMut::Bf16(k.into()), KvArrayMut::Bf16(v.into()))
                }
            };
            let input = match fused {
                true => DecodeInput::Qkv { qkv: q.into(), norm: None, cos_sin: (&cos_sin).into() },
                false => DecodeInput::Queries(KvArray::Bf16((&queries).into())),
            };
            let args = DecodeArgs {
                input,
                k_pages,
                v_pages,
                out: DecodeOut::Bf16((&mut *out).into()),
                work: (&work).into(),
                pages: (&pages).into(),
                rows,
                scale: 0.088,
                view: View { window: self.window, sinks: None },
            };
            // SAFETY: the indices are of this pool, the work list the planner's; each layer's pages are
            // written by one kernel in many.
            unsafe { attention.launch(&gpu.device, args) }.unwrap();
        })
    }
}
