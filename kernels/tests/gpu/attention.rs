//! Attention over pages against softmax in f64: decode, prefill and mixes, by every backend over every type of
//! cache, steps split between backends, and plans replayed in a graph.

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use half::bf16;
use minisgl_kernels::attention::{
    ATTENTION_HEAD_DIMS, AttentionError, AttentionLimits, Backend, Heads, KvType, PagedAttention,
    PagedPrefill, Prefill,
};

use crate::attention_batch::{Batch, Planned, Request, Tensors, Uploaded};
use crate::pages::{KV_TYPES, Pages, round};
use crate::seen::Seen;
use crate::support::{Gpu, POISON};

/// Decode of every awkward length, whole prompts, chunks behind a cache, and all of it at once.
const MIXES: [&[Request]; 6] = [
    &[(0, 1)],
    &[(8191, 1)],
    &[(1, 1), (14, 1), (15, 1), (16, 1), (63, 1), (64, 1), (700, 1), (2000, 1)],
    &[(0, 130), (0, 1), (0, 17), (64, 33)],
    &[(300, 1), (0, 70), (5, 1), (1023, 40), (0, 1), (2, 2)],
    &[(8191, 129), (1, 192), (15, 128), (16, 384), (64, 193)],
];

const PAGE_SIZES: [usize; 3] = [1, 16, 64];

/// One layer whose rows see all up to their own.
const ALL: [Seen; 1] = [Seen::ALL];

/// Query and key heads: 1 to 16 share one, few where the reference would take long.
fn groups(gpu: &mut Gpu, requests: &[Request]) -> (usize, usize) {
    let scores: usize = requests.iter().map(|(cached, new)| (cached + new) * new).sum();
    let (kv_heads, group) = match scores > 100_000 {
        true => (1, gpu.random.of(&[1, 5])),
        false => (gpu.random.of(&[1, 2]), gpu.random.of(&[1, 3, 4, 5, 7, 8, 16])),
    };
    (kv_heads * group, kv_heads)
}

pub fn attention(gpu: &mut Gpu) {
    for kv in KV_TYPES {
        for head_dim in ATTENTION_HEAD_DIMS {
            let some = [gpu.random.of(&PAGE_SIZES)];
            for &page_size in if kv == KvType::Bf16 { &PAGE_SIZES[..] } else { &some } {
                for requests in if gpu.small { &MIXES[2..3] } else { &MIXES[..] } {
                    let (q_heads, kv_heads) = groups(gpu, requests);
                    let heads = Heads { q_heads, kv_heads, head_dim, page_size };
                    check(gpu, heads, kv, requests, &[(Some(Backend::Fi), requests.len())], &ALL);
                }
            }
        }
    }
}

/// `fa`, where there is a GPU for it.
pub fn attention_fa(gpu: &mut Gpu) {
    if !PagedPrefill::available(&gpu.device) {
        println!("fa's prefill is for sm_90: not run");
        return;
    }
    for head_dim in ATTENTION_HEAD_DIMS {
        for page_size in PAGE_SIZES {
            for requests in if gpu.small { &MIXES[3..4] } else { &MIXES[..] } {
                let (q_heads, kv_heads) = groups(gpu, requests);
                let heads = Heads { q_heads, kv_heads, head_dim, page_size };
                let parts = [(Some(Backend::Fa), requests.len())];
                check(gpu, heads, KvType::Bf16, requests, &parts, &ALL);
            }
        }
    }
}

/// A launch gives the same bits however often it runs, where each block walks several tiles: none takes the output of another
/// for its own or its values, whichever warp is late. Only many launches show a fault, or few under racecheck.
pub fn attention_fa_again(gpu: &mut Gpu) {
    if !PagedPrefill::available(&gpu.device) {
        println!("fa's prefill is for sm_90: not run");
        return;
    }
    for head_dim in [64, 128, 256] {
        let launches = match (gpu.small, head_dim) {
            (true, _) => 3,
            (false, 256) => 400,
            (false, _) => 20,
        };
        let heads = Heads { q_heads: 8, kv_heads: 1, head_dim, page_size: 16 };
        let requests = vec![(0, 128); 64];
        let pool = requests.len() * 128 / heads.page_size;
        let batch = Batch::new(gpu, &requests, heads.page_size, pool);
        let (len, slack) = (pool * heads.page_size * head_dim, heads.pages_slack());
        let q_len = batch.rows() * heads.q_heads * head_dim;
        let (_, q) = Pages::normal(gpu, KvType::Bf16, q_len, 0);
        let (_, k) = Pages::normal(gpu, KvType::Bf16, len, slack);
        let (_, v) = Pages::normal(gpu, KvType::Bf16, len, slack);
        let mut tensors = Tensors { q, k, v, out: gpu.poisoned(q_len) };
        let uploaded = Uploaded::new(gpu, &batch);
        let limits = AttentionLimits { rows: batch.rows(), requests: requests.len() };
        let fa = Some(Backend::Fa);
        let mut planned = Planned::new(gpu, fa, heads, KvType::Bf16, limits, &[None]);
        let all = 0..requests.len();
        planned.plan(gpu, batch.host(all.clone(), false));
        let mut launch = |out: &mut Vec<bf16>| {
            let seen = (head_dim, &ALL[0]);
            planned.launch(gpu, seen, (&uploaded, all.clone()), &mut tensors);
            gpu.device.stream().memcpy_dtoh(&tensors.out, out).unwrap();
        };
        let (mut first, mut out) = (vec![bf16::ZERO; q_len], vec![bf16::ZERO; q_len]);
        launch(&mut first);
        for number in 1..launches {
            launch(&mut out);
            let differ = out.iter().zip(&first).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
            assert_eq!(
                differ, 0,
                "{heads:?}: elements of launch {number} that differ from the first's"
            );
        }
    }
}

/// Windows of one token, at the edges of pages and tiles, and longer than any request; with sinks and without; several
/// windows planned at once, as a model's layers have them. Chunks of prompts behind a cache, and decode.
pub fn attention_windows(gpu: &mut Gpu) {
    const WINDOWS: [u32; 12] = [1, 2, 16, 17, 64, 95, 97, 128, 200, 1000, 8192, 1 << 20];
    let backends = match PagedPrefill::available(&gpu.device) {
        true => &[Backend::Fi, Backend::Fa][..],
        false => &[Backend::Fi],
    };
    for &backend in backends {
        for kv in KV_TYPES {
            if !backend.supports_prefill(&gpu.device, kv) {
                continue;
            }
            for head_dim in ATTENTION_HEAD_DIMS {
                for requests in if gpu.small { &MIXES[3..4] } else { &MIXES[..] } {
                    let (q_heads, kv_heads) = groups(gpu, requests);
                    let page_size = gpu.random.of(&PAGE_SIZES);
                    let heads = Heads { q_heads, kv_heads, head_dim, page_size };
                    let (one, two) = (gpu.random.below(6), 6 + gpu.random.below(6));
                    let sinks = [gpu.random.below(2) == 0, gpu.random.below(2) == 0];
                    let seen = [
                        Seen::new(gpu, q_heads, Some(WINDOWS[one]), sinks[0]),
                        Seen::new(gpu, q_heads, Some(WINDOWS[two]), sinks[1]),
                        Seen::new(gpu, q_heads, None, true),
                    ];
                    check(gpu, heads, kv, requests, &[(Some(backend), requests.len())], &seen);
                }
            }
        }
    }
}

/// Decode rows to one backend, prefill rows to another, in one output.
pub fn attention_split(gpu: &mut Gpu) {
    let mut prefill = vec![Some(Backend::Fi), None];
    if PagedPrefill::available(&gpu.device) {
        prefill.push(Some(Backend::Fa));
    }
    for head_dim in ATTENTION_HEAD_DIMS {
        for &prefill in &prefill {
            let mut requests: Vec<Request> = (0..9).map(|_| (gpu.random.below(900), 1)).collect();
            requests.extend([(0, 130), (77, 300), (16, 5)]);
            let (q_heads, kv_heads) = (14, 2);
            let page_size = gpu.random.of(&PAGE_SIZES);
            let heads = Heads { q_heads, kv_heads, head_dim, page_size };
            let parts = [(Some(Backend::Fi), 9), (prefill, 2), (None, 1)];
            check(gpu, heads, KvType::Bf16, &requests, &parts, &ALL);
            let sinks = gpu.random.below(2) == 0;
            let seen = Seen::new(gpu, q_heads, Some(40), sinks);
            check(gpu, heads, KvType::Bf16, &requests, &parts, &[seen, Seen::default()]);
        }
    }
}

/// One step whose requests go in turn to these backends, so many to each; a layer for each of what is seen.
fn check(
    gpu: &mut Gpu,
    heads: Heads,
    kv: KvType,
    requests: &[Request],
    parts: &[(Option<Backend>, usize)],
    layers: &[Seen],
) {
    let Heads { q_heads, kv_heads, head_dim, page_size } = heads;
    let tokens: usize = requests.iter().map(|(cached, new)| cached + new).sum();
    let pool = tokens / page_size + requests.len() + 3;
    let batch = Batch::new(gpu, requests, page_size, pool);
    let of_q = if kv == KvType::Fp16 { KvType::Fp16 } else { KvType::Bf16 };
    let (len, slack) = (pool * page_size * kv_heads * head_dim, heads.pages_slack());
    let (q, q_gpu) = Pages::normal(gpu, of_q, batch.rows() * q_heads * head_dim, 0);
    let (k, k_gpu) = Pages::normal(gpu, kv, len, slack);
    let (v, v_gpu) = Pages::normal(gpu, kv, len, slack);
    let out = gpu.poisoned(q.len());
    let mut tensors = Tensors { q: q_gpu, k: k_gpu, v: v_gpu, out };
    let uploaded = Uploaded::new(gpu, &batch);
    let limits = AttentionLimits { rows: batch.rows(), requests: requests.len() };
    let mut first = 0;
    let mut planned = Vec::new();
    let windows: Vec<Option<u32>> = layers.iter().map(|seen| seen.window).collect();
    for &(backend, count) in parts {
        let range = first..first + count;
        let mut part = Planned::new(gpu, backend, heads, kv, limits, &windows);
        let chosen = part.plan(gpu, batch.host(range.clone(), false));
        assert_eq!(chosen, backend.unwrap_or(chosen));
        planned.push((part, range));
        first += count;
    }
    for seen in layers {
        tensors.out = gpu.poisoned(q.len());
        for (part, range) in &planned {
            part.launch(gpu, (head_dim, seen), (&uploaded, range.clone()), &mut tensors);
        }
        let expected = batch.expected(heads, seen, &q, &k, &v);
        let seen = seen.describe();
        batch.assert_close(
            &format!("{heads:?}, {kv:?}, {requests:?} by {parts:?}, {seen}"),
            heads,
            &gpu.download(&tensors.out),
            &expected,
        );
    }
}

/// One capture, replayed after other plans of as many requests, some of them padding.
pub fn attention_graph(gpu: &mut Gpu) {
    for (head_dim, kv) in
        [(128, KvType::Bf16), (96, KvType::Bf16), (64, KvType::Fp8), (256, KvType::Fp16)]
    {
        let heads = Heads { q_heads: 14, kv_heads: 2, head_dim, page_size: 16 };
        replay(gpu, heads, kv, &Seen::default());
        let windowed = Seen::new(gpu, 14, Some(100), true);
        replay(gpu, heads, kv, &windowed);
    }
}

fn replay(gpu: &mut Gpu, heads: Heads, kv: KvType, seen: &Seen) {
    let Heads { q_heads, kv_heads, head_dim, page_size } = heads;
    let pool = 400;
    let (len, slack) = (pool * page_size * kv_heads * head_dim, heads.pages_slack());
    let (k, k_gpu) = Pages::normal(gpu, kv, len, slack);
    let (v, v_gpu) = Pages::normal(gpu, kv, len, slack);
    let stream = gpu.device.stream().clone();
    let mut uploaded = Uploaded {
        q_starts: stream.alloc_zeros(9).unwrap(),
        page_starts: stream.alloc_zeros(9).unwrap(),
        pages: stream.alloc_zeros(pool).unwrap(),
        last_page_len: stream.alloc_zeros(8).unwrap(),
    };
    let of_q = if kv == KvType::Fp16 { KvType::Fp16 } else { KvType::Bf16 };
    let out = gpu.poisoned(8 * q_heads * head_dim);
    let q_gpu = Pages::poisoned(gpu, of_q, 8 * q_heads * head_dim);
    let mut tensors = Tensors { q: q_gpu, k: k_gpu, v: v_gpu, out };
    let limits = AttentionLimits { rows: 8, requests: 8 };
    let mut attention = Planned::new(gpu, Some(Backend::Fi), heads, kv, limits, &[seen.window]);
    let mut graph = None;
    for requests in [
        [(3, 1), (0, 1), (100, 1), (15, 1), (16, 1), (17, 1), (1, 1), (2, 1)],
        [(3000, 1), (1, 1), (500, 1), (31, 1), (0, 0), (0, 0), (0, 0), (0, 0)],
        [(700, 1), (701, 1), (702, 1), (703, 1), (704, 1), (705, 1), (706, 1), (707, 1)],
        [(0, 1), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0)],
    ] {
        let batch = Batch::new(gpu, &requests, page_size, pool);
        let q: Vec<f32> =
            (0..8 * q_heads * head_dim).map(|_| round(of_q, gpu.random.normal())).collect();
        let poison = vec![bf16::from_bits(POISON); q.len()];
        stream.memcpy_htod(&poison, &mut tensors.out).unwrap();
        stream.memcpy_htod(&batch.q_starts, &mut uploaded.q_starts).unwrap();
        stream.memcpy_htod(&batch.page_starts, &mut uploaded.page_starts).unwrap();
        stream
            .memcpy_htod(&batch.pages, &mut uploaded.pages.slice_mut(..batch.pages.len()))
            .unwrap();
        stream.memcpy_htod(&batch.last_page_len, &mut uploaded.last_page_len).unwrap();
        tensors.q.overwrite(gpu, &Pages::upload(gpu, of_q, &q));
        attention.plan(gpu, batch.host(0..8, true));
        if graph.is_none() {
            attention.launch(gpu, (head_dim, seen), (&uploaded, 0..8), &mut tensors); // Loads what is loaded lazily.
            let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            stream.begin_capture(mode).unwrap();
            attention.launch(gpu, (head_dim, seen), (&uploaded, 0..8), &mut tensors);
            let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY;
            graph = stream.end_capture(flags).unwrap();
            stream.memcpy_htod(&poison, &mut tensors.out).unwrap();
        }
        graph.as_ref().unwrap().launch().unwrap();
        let expected = batch.expected(heads, seen, &q, &k, &v);
        batch.assert_close(
            &format!("graph, {heads:?}, {kv:?}, {requests:?}, {}", seen.describe()),
            heads,
            &gpu.download(&tensors.out),
            &expected,
        );
    }
}

/// The workspaces hold the plan of every step within the limits.
pub fn attention_limits(gpu: &mut Gpu) {
    const WINDOWS: [Option<u32>; 3] = [None, Some(1), Some(1024)];
    let limits = AttentionLimits { rows: 8192, requests: 512 };
    for (q_heads, kv_heads, head_dim) in
        [(32, 32, 128), (16, 1, 256), (64, 8, 64), (14, 2, 96), (40, 8, 128), (128, 8, 128)]
    {
        let page_size = gpu.random.of(&PAGE_SIZES);
        let heads = Heads { q_heads, kv_heads, head_dim, page_size };
        let mut planned: Vec<Planned> = vec![
            Planned::new(gpu, Some(Backend::Fi), heads, KvType::Bf16, limits, &WINDOWS),
            Planned::new(gpu, Some(Backend::Fi), heads, KvType::Fp8, limits, &WINDOWS),
        ];
        if PagedPrefill::available(&gpu.device) {
            planned.push(Planned::new(
                gpu,
                Some(Backend::Fa),
                heads,
                KvType::Bf16,
                limits,
                &WINDOWS,
            ));
        }
        let mut even = vec![(0, 16); 512];
        (0..512).for_each(|i| even[i].0 = gpu.random.below(100));
        let mut one_long = vec![(700, 1); 511];
        one_long.push((3000, 7681));
        let decode: Vec<Request> = (0..512).map(|_| (gpu.random.below(3000), 1)).collect();
        let ragged: Vec<Request> = (0..31).map(|_| (0, 1 + gpu.random.below(257))).collect();
        for requests in [even, one_long, decode, ragged, vec![(0, 8192)], vec![(90_000, 1)]] {
            let tokens: usize = requests.iter().map(|(cached, new)| cached + new).sum();
            let batch = Batch::new(gpu, &requests, page_size, tokens / page_size + requests.len());
            let all = 0..requests.len();
            for (index, planned) in planned.iter_mut().enumerate() {
                let is_decode = batch.rows() == requests.len();
                planned.plan(gpu, batch.host(all.clone(), is_decode && index < 2));
            }
        }
    }
}

/// What a plan does not cover is refused before anything reaches the GPU.
pub fn attention_refusals(gpu: &mut Gpu) {
    let heads = Heads { q_heads: 4, kv_heads: 2, head_dim: 128, page_size: 16 };
    let limits = AttentionLimits { rows: 40, requests: 3 };
    let refused = |result: Result<(), AttentionError>, why: &str| {
        let said = result.expect_err(why).to_string();
        assert!(said.contains(why), "{said:?} does not say {why:?}");
    };
    let mut fi = PagedAttention::new(&gpu.device, heads, KvType::Bf16, limits, &[None]).unwrap();
    let mut plan = |gpu: &mut Gpu, requests: &[Request], change: fn(&mut Batch)| {
        let mut batch = Batch::new(gpu, requests, 16, 64);
        change(&mut batch);
        fi.plan(&gpu.device, batch.host(0..requests.len(), false))
    };
    refused(plan(gpu, &[(0, 41)], |_| ()), "1 requests of rows up to 41 exceed");
    refused(plan(gpu, &[(0, 1); 4], |_| ()), "4 requests of rows up to 4 exceed");
    refused(plan(gpu, &[(0, 5), (9, 5)], |batch| batch.q_starts[1] = 11), "do not descend");
    plan(gpu, &[(0, 20), (9, 20)], |_| ()).unwrap();

    let new = |heads: Heads| {
        PagedAttention::new(&gpu.device, heads, KvType::Bf16, limits, &[None]).map(drop)
    };
    refused(new(Heads { head_dim: 80, ..heads }), "head_dim is 80");
    refused(new(Heads { q_heads: 5, ..heads }), "do not share 2 key heads");
    let none = PagedAttention::new(&gpu.device, heads, KvType::Bf16, limits, &[None, Some(0)]);
    refused(none.map(drop), "it has a token at least");
    let prefill =
        |kv, wanted| Prefill::new(&gpu.device, heads, kv, limits, &[None], wanted).map(drop);
    refused(prefill(KvType::Fp8, Some(Backend::Fa)), "use --attn fi");
    prefill(KvType::Fp8, None).unwrap();
    if !PagedPrefill::available(&gpu.device) {
        return;
    }
    let mut fa = PagedPrefill::new(&gpu.device, heads, limits, &[None]).unwrap();
    let batch = Batch::new(gpu, &[(3, 9)], 16, 64);
    refused(fa.plan(&gpu.device, batch.host(0..1, true)), "not for graphs");
    let mut batch = Batch::new(gpu, &[(3, 9)], 16, 64);
    batch.last_page_len[0] = 8;
    refused(fa.plan(&gpu.device, batch.host(0..1, false)), "request 0 has 9 rows and 8 tokens");
}
