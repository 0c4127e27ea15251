//! Attention over pages: decode, prefill and mixes, and a plan replayed in a graph.

use cudarc::driver::CudaSlice;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use half::bf16;
use minisgl_kernels::attention::{
    ATTENTION_HEAD_DIMS, AttentionBatch, Heads, PagedAttention, PagedAttentionArgs,
};

use crate::bench::{Show, fill, time};
use crate::support::{Gpu, POISON};

/// A request's tokens in the cache before this step, and its rows in it.
type Request = (usize, usize);

/// A batch over a shuffled page pool.
struct Batch {
    requests: Vec<Request>,
    q_starts: Vec<i32>,
    page_starts: Vec<i32>,
    pages: Vec<i32>,
    last_page_len: Vec<i32>,
}

impl Batch {
    fn new(gpu: &mut Gpu, requests: &[Request], page_size: usize, pool: usize) -> Batch {
        let mut free: Vec<i32> = (0..pool as i32).collect();
        gpu.random.shuffle(&mut free);
        let mut batch = Batch {
            requests: requests.to_vec(),
            q_starts: vec![0],
            page_starts: vec![0],
            pages: Vec::new(),
            last_page_len: Vec::new(),
        };
        let mut rows = 0;
        for &(cached, new) in requests {
            // A padding request has a row and no tokens.
            let tokens = if cached == 0 && new == 0 { 0 } else { cached + new };
            rows += new.max(1);
            let taken = free.split_off(free.len() - tokens.div_ceil(page_size));
            batch.pages.extend(taken);
            batch.q_starts.push(rows as i32);
            batch.page_starts.push(batch.pages.len() as i32);
            batch.last_page_len.push((tokens.max(1) as i32 - 1) % page_size as i32 + 1);
        }
        batch
    }

    fn rows(&self) -> usize {
        self.q_starts[self.requests.len()] as usize
    }

    /// Softmax of all scores at once, in f64.
    fn expected(&self, heads: Heads, q: &[bf16], k: &[bf16], v: &[bf16]) -> Vec<f64> {
        let Heads { q_heads, kv_heads, head_dim, page_size } = heads;
        let mut expected = vec![0.0; self.rows() * q_heads * head_dim];
        for (request, &(cached, new)) in self.requests.iter().enumerate() {
            let pages = &self.pages[self.page_starts[request] as usize..];
            for row in 0..new {
                let at_row = self.q_starts[request] as usize + row;
                for head in 0..q_heads {
                    let q = &q[(at_row * q_heads + head) * head_dim..][..head_dim];
                    let of = |values: &'_ [bf16], token: usize| -> usize {
                        let slot =
                            pages[token / page_size] as usize * page_size + token % page_size;
                        let at = (slot * kv_heads + head * kv_heads / q_heads) * head_dim;
                        assert!(at < values.len());
                        at
                    };
                    let tokens = 0..cached + row + 1;
                    let scores: Vec<f64> = tokens
                        .clone()
                        .map(|token| {
                            let k = &k[of(k, token)..][..head_dim];
                            let dot = |(q, k): (&bf16, &bf16)| q.to_f32() * k.to_f32();
                            let sum: f32 = q.iter().zip(k).map(dot).sum();
                            f64::from(sum) / (head_dim as f64).sqrt()
                        })
                        .collect();
                    let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let sum: f64 = scores.iter().map(|score| (score - highest).exp()).sum();
                    let out = &mut expected[(at_row * q_heads + head) * head_dim..][..head_dim];
                    for (token, score) in tokens.zip(&scores) {
                        let share = (score - highest).exp() / sum;
                        let v = &v[of(v, token)..][..head_dim];
                        out.iter_mut().zip(v).for_each(|(out, v)| *out += share * v.to_f64());
                    }
                }
            }
        }
        expected
    }

    /// Against the reference; probabilities are rounded to bf16 on the way.
    fn assert_close(&self, what: &str, heads: Heads, out: &[bf16], expected: &[f64]) {
        let row_len = heads.q_heads * heads.head_dim;
        for (request, &(_, new)) in self.requests.iter().enumerate() {
            for row in self.q_starts[request] as usize..self.q_starts[request] as usize + new {
                let (out, expected) =
                    (&out[row * row_len..][..row_len], &expected[row * row_len..][..row_len]);
                let (mut error, mut norm) = (0.0, 0.0);
                for (i, (out, expected)) in out.iter().zip(expected).enumerate() {
                    assert_ne!(
                        out.to_bits(),
                        POISON,
                        "{what}: row {row}, element {i} was not written"
                    );
                    error += (out.to_f64() - expected) * (out.to_f64() - expected);
                    norm += expected * expected;
                }
                let share = (error / norm).sqrt();
                assert!(share <= 6e-3, "{what}: row {row} of request {request} is off by {share}");
            }
        }
    }
}

/// A batch on the GPU.
struct Uploaded {
    q_starts: CudaSlice<i32>,
    page_starts: CudaSlice<i32>,
    pages: CudaSlice<i32>,
    last_page_len: CudaSlice<i32>,
}

struct Tensors {
    q: CudaSlice<bf16>,
    k: CudaSlice<bf16>,
    v: CudaSlice<bf16>,
    out: CudaSlice<bf16>,
}

fn launch(
    gpu: &Gpu,
    attention: &PagedAttention,
    heads: Heads,
    batch: &Uploaded,
    tensors: &mut Tensors,
) {
    let args = PagedAttentionArgs {
        q: (&tensors.q).into(),
        k_pages: (&tensors.k).into(),
        v_pages: (&tensors.v).into(),
        out: (&mut tensors.out).into(),
        q_starts: (&batch.q_starts).into(),
        page_starts: (&batch.page_starts).into(),
        pages: (&batch.pages).into(),
        last_page_len: (&batch.last_page_len).into(),
        scale: 1.0 / (heads.head_dim as f32).sqrt(),
    };
    // SAFETY: `Batch::new` made the indices for this pool and `plan` was given the same.
    unsafe { attention.launch(&gpu.device, args) }.unwrap();
}

/// Decode of every awkward length, whole prompts, chunks behind a cache, and all of it at once.
const MIXES: [&[Request]; 5] = [
    &[(0, 1)],
    &[(8191, 1)],
    &[(1, 1), (14, 1), (15, 1), (16, 1), (63, 1), (64, 1), (700, 1), (2000, 1)],
    &[(0, 130), (0, 1), (0, 17), (64, 33)],
    &[(300, 1), (0, 70), (5, 1), (1023, 40), (0, 1), (2, 2)],
];

pub fn attention(gpu: &mut Gpu) {
    for head_dim in ATTENTION_HEAD_DIMS {
        for page_size in [1, 16, 64] {
            for requests in if gpu.small { &MIXES[2..3] } else { &MIXES[..] } {
                let kv_heads = gpu.random.of(&[1, 2]);
                let q_heads = kv_heads * gpu.random.of(&[1, 4, 5, 8, 16]);
                check(gpu, Heads { q_heads, kv_heads, head_dim, page_size }, requests);
            }
        }
    }
}

fn check(gpu: &mut Gpu, heads: Heads, requests: &[Request]) {
    let Heads { q_heads, kv_heads, head_dim, page_size } = heads;
    let tokens: usize = requests.iter().map(|(cached, new)| cached + new).sum();
    let pool = tokens / page_size + requests.len() + 3;
    let batch = Batch::new(gpu, requests, page_size, pool);
    let (q, q_gpu) = gpu.normal(batch.rows() * q_heads * head_dim, 1.0);
    let (k, k_gpu) = gpu.normal(pool * page_size * kv_heads * head_dim, 1.0);
    let (v, v_gpu) = gpu.normal(pool * page_size * kv_heads * head_dim, 1.0);
    let out = gpu.poisoned(q.len());
    let mut tensors = Tensors { q: q_gpu, k: k_gpu, v: v_gpu, out };
    let uploaded = Uploaded {
        q_starts: gpu.upload(&batch.q_starts),
        page_starts: gpu.upload(&batch.page_starts),
        pages: gpu.upload(&batch.pages),
        last_page_len: gpu.upload(&batch.last_page_len),
    };
    let mut attention = PagedAttention::new(&gpu.device, heads).unwrap();
    let host =
        AttentionBatch { q_starts: &batch.q_starts, page_starts: &batch.page_starts, graph: false };
    attention.plan(&gpu.device, host).unwrap();
    launch(gpu, &attention, heads, &uploaded, &mut tensors);
    let expected = batch.expected(heads, &q, &k, &v);
    batch.assert_close(
        &format!("{heads:?}, {requests:?}"),
        heads,
        &gpu.download(&tensors.out),
        &expected,
    );
}

/// One capture, replayed after other plans of as many requests, some of them padding.
pub fn attention_graph(gpu: &mut Gpu) {
    let heads = Heads { q_heads: 16, kv_heads: 8, head_dim: 128, page_size: 16 };
    let Heads { q_heads, kv_heads, head_dim, page_size } = heads;
    let pool = 400;
    let (k, k_gpu) = gpu.normal(pool * page_size * kv_heads * head_dim, 1.0);
    let (v, v_gpu) = gpu.normal(pool * page_size * kv_heads * head_dim, 1.0);
    let stream = gpu.device.stream().clone();
    let mut uploaded = Uploaded {
        q_starts: stream.alloc_zeros(9).unwrap(),
        page_starts: stream.alloc_zeros(9).unwrap(),
        pages: stream.alloc_zeros(pool).unwrap(),
        last_page_len: stream.alloc_zeros(8).unwrap(),
    };
    let (_, q_gpu) = gpu.normal(8 * q_heads * head_dim, 1.0);
    let out = gpu.poisoned(8 * q_heads * head_dim);
    let mut tensors = Tensors { q: q_gpu, k: k_gpu, v: v_gpu, out };
    let mut attention = PagedAttention::new(&gpu.device, heads).unwrap();
    let mut graph = None;
    for requests in [
        [(3, 1), (0, 1), (100, 1), (15, 1), (16, 1), (17, 1), (1, 1), (2, 1)],
        [(3000, 1), (1, 1), (500, 1), (31, 1), (0, 0), (0, 0), (0, 0), (0, 0)],
        [(700, 1), (701, 1), (702, 1), (703, 1), (704, 1), (705, 1), (706, 1), (707, 1)],
        [(0, 1), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0)],
    ] {
        let batch = Batch::new(gpu, &requests, page_size, pool);
        let (q, _) = gpu.normal(8 * q_heads * head_dim, 1.0);
        stream.memcpy_htod(&q, &mut tensors.q).unwrap();
        let poison = vec![bf16::from_bits(POISON); q.len()];
        stream.memcpy_htod(&poison, &mut tensors.out).unwrap();
        stream.memcpy_htod(&batch.q_starts, &mut uploaded.q_starts).unwrap();
        stream.memcpy_htod(&batch.page_starts, &mut uploaded.page_starts).unwrap();
        stream
            .memcpy_htod(&batch.pages, &mut uploaded.pages.slice_mut(..batch.pages.len()))
            .unwrap();
        stream.memcpy_htod(&batch.last_page_len, &mut uploaded.last_page_len).unwrap();
        let host = AttentionBatch {
            q_starts: &batch.q_starts,
            page_starts: &batch.page_starts,
            graph: true,
        };
        attention.plan(&gpu.device, host).unwrap();
        if graph.is_none() {
            launch(gpu, &attention, heads, &uploaded, &mut tensors); // Loads what is loaded lazily.
            let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            stream.begin_capture(mode).unwrap();
            launch(gpu, &attention, heads, &uploaded, &mut tensors);
            let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY;
            graph = stream.end_capture(flags).unwrap();
            stream.memcpy_htod(&poison, &mut tensors.out).unwrap();
        }
        graph.as_ref().unwrap().launch().unwrap();
        let expected = batch.expected(heads, &q, &k, &v);
        batch.assert_close(
            &format!("graph, {requests:?}"),
            heads,
            &gpu.download(&tensors.out),
            &expected,
        );
    }
}

/// Decode with Qwen3's heads over live lengths of 100 to 1,600, one layer after the other.
pub fn bench(gpu: &mut Gpu, show: Show<'_>) {
    for (q_heads, requests) in [(16, 1), (16, 32), (16, 256), (32, 256)] {
        let heads = Heads { q_heads, kv_heads: 8, head_dim: 128, page_size: 16 };
        let Heads { kv_heads, head_dim, page_size, .. } = heads;
        let lens: Vec<Request> = (0..requests)
            .map(|_| (if requests == 1 { 999 } else { 99 + gpu.random.below(1500) }, 1))
            .collect();
        let tokens: usize = lens.iter().map(|(cached, new)| cached + new).sum();
        let pool = tokens / page_size + requests + 1;
        let batch = Batch::new(gpu, &lens, page_size, pool);
        let layers = (200_000_000 / (tokens * 4096)).clamp(2, 40);
        let len = pool * page_size * kv_heads * head_dim;
        let k = fill(gpu, len);
        let mut caches = Vec::new();
        for _ in 0..layers {
            caches.push((
                gpu.device.stream().clone_dtod(&k).unwrap(),
                gpu.device.stream().clone_dtod(&k).unwrap(),
            ));
        }
        let (_, q) = gpu.normal(requests * q_heads * head_dim, 1.0);
        let mut out = gpu.poisoned(requests * q_heads * head_dim);
        let (q_starts, page_starts) = (gpu.upload(&batch.q_starts), gpu.upload(&batch.page_starts));
        let (pages, last_page_len) = (gpu.upload(&batch.pages), gpu.upload(&batch.last_page_len));
        let mut attention = PagedAttention::new(&gpu.device, heads).unwrap();
        let host = AttentionBatch {
            q_starts: &batch.q_starts,
            page_starts: &batch.page_starts,
            graph: true,
        };
        attention.plan(&gpu.device, host).unwrap();
        let seconds = time(gpu, layers, |layer| {
            let args = PagedAttentionArgs {
                q: (&q).into(),
                k_pages: (&caches[layer].0).into(),
                v_pages: (&caches[layer].1).into(),
                out: (&mut out).into(),
                q_starts: (&q_starts).into(),
                page_starts: (&page_starts).into(),
                pages: (&pages).into(),
                last_page_len: (&last_page_len).into(),
                scale: 0.088,
            };
            // SAFETY: as in `launch`.
            unsafe { attention.launch(&gpu.device, args) }.unwrap();
        });
        let bytes = tokens * 2 * kv_heads * head_dim * 2;
        show(&format!("decode, {q_heads}/8 x 128, page 16"), requests, bytes, seconds);
    }
}
