//! A step for attention on both sides: page tables on the host, softmax in f64, arrays on the GPU, and the
//! backends behind one face.

use std::ops::Range;

use cudarc::driver::CudaSlice;
use half::bf16;
use minisgl_kernels::attention::{
    AttentionBatch, AttentionLimits, Backend, Heads, KvType, PagedAttentionArgs, Prefill,
};

use crate::pages::Pages;
use crate::seen::Seen;
use crate::support::{Gpu, POISON};

/// A request's tokens in the cache before this step, and its rows in it.
pub type Request = (usize, usize);

/// A batch over a shuffled page pool.
pub struct Batch {
    pub requests: Vec<Request>,
    pub q_starts: Vec<i32>,
    pub page_starts: Vec<i32>,
    pub pages: Vec<i32>,
    pub last_page_len: Vec<i32>,
}

impl Batch {
    pub fn new(gpu: &mut Gpu, requests: &[Request], page_size: usize, pool: usize) -> Batch {
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

    pub fn rows(&self) -> usize {
        self.q_starts[self.requests.len()] as usize
    }

    /// A range of the requests, for planning.
    pub fn host(&self, range: Range<usize>, graph: bool) -> AttentionBatch<'_> {
        AttentionBatch {
            q_starts: &self.q_starts[range.start..=range.end],
            page_starts: &self.page_starts[range.start..=range.end],
            last_page_len: &self.last_page_len[range],
            graph,
        }
    }

    /// Softmax of all scores at once, in f64; some of the rows on each of a few threads.
    pub fn expected(&self, heads: Heads, seen: &Seen, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f64> {
        let row_len = heads.q_heads * heads.head_dim;
        let mut expected = vec![0.0; self.rows() * row_len];
        let mut rows: Vec<_> = expected.chunks_mut(row_len).map(Some).collect();
        let mut work: Vec<Vec<_>> = (0..16).map(|_| Vec::new()).collect();
        for (request, &(cached, new)) in self.requests.iter().enumerate() {
            for row in 0..new {
                let at = self.q_starts[request] as usize + row;
                let out = rows[at].take().unwrap();
                work[at % 16].push((request, at, cached + row + 1, out));
            }
        }
        std::thread::scope(|scope| {
            for share in work {
                scope.spawn(move || {
                    for (request, row, tokens, out) in share {
                        self.expected_row(
                            (heads, seen),
                            (request, tokens),
                            &q[row * row_len..],
                            (k, v),
                            out,
                        );
                    }
                });
            }
        });
        expected
    }

    fn expected_row(
        &self,
        (heads, seen): (Heads, &Seen),
        (request, tokens): (usize, usize),
        q: &[f32],
        (k, v): (&[f32], &[f32]),
        out: &mut [f64],
    ) {
        let Heads { q_heads, kv_heads, head_dim, page_size } = heads;
        let pages = &self.pages[self.page_starts[request] as usize..];
        for (head, out) in out.chunks_mut(head_dim).enumerate() {
            let q = &q[head * head_dim..][..head_dim];
            let at = |token: usize| {
                let slot = pages[token / page_size] as usize * page_size + token % page_size;
                (slot * kv_heads + head * kv_heads / q_heads) * head_dim
            };
            let score = |token| {
                let k = &k[at(token)..][..head_dim];
                let sum: f32 = q.iter().zip(k).map(|(q, k)| q * k).sum();
                f64::from(sum) / (head_dim as f64).sqrt()
            };
            let first = seen.first(tokens);
            let scores: Vec<f64> = (first..tokens).map(score).collect();
            for (i, share) in seen.softmax(&scores, head).into_iter().enumerate() {
                let v = &v[at(first + i)..][..head_dim];
                out.iter_mut().zip(v).for_each(|(out, &v)| *out += share * f64::from(v));
            }
        }
    }

    /// Against the reference; probabilities are rounded to 16 bits on the way.
    pub fn assert_close(&self, what: &str, heads: Heads, out: &[bf16], expected: &[f64]) {
        let row_len = heads.q_heads * heads.head_dim;
        for (request, row) in self.live_rows() {
            let (out, expected) = (&out[row * row_len..][..row_len], &expected[row * row_len..]);
            if let Some(i) = out.iter().position(|x| x.to_bits() == POISON) {
                panic!("{what}: row {row}, element {i} was not written");
            }
            let share = share_of_error(out, expected);
            assert!(share <= 6e-3, "{what}: row {row} of request {request} is off by {share}");
        }
    }

    /// By how much the worst row is off, as a share of its norm; `None` if one has a NaN.
    pub fn worst(&self, heads: Heads, out: &[bf16], expected: &[f64]) -> Option<f64> {
        let row_len = heads.q_heads * heads.head_dim;
        let of = |(_, row): (usize, usize)| {
            share_of_error(&out[row * row_len..][..row_len], &expected[row * row_len..])
        };
        let shares: Vec<f64> = self.live_rows().map(of).collect();
        let any_nan = shares.iter().any(|share| share.is_nan());
        (!any_nan).then(|| shares.into_iter().fold(0.0, f64::max))
    }

    /// Each request with each of its rows, without those of padding.
    fn live_rows(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.requests.iter().enumerate().flat_map(|(request, &(_, new))| {
            let first = self.q_starts[request] as usize;
            (first..first + new).map(move |row| (request, row))
        })
    }
}

/// The norm of the difference over that of what is expected.
fn share_of_error(out: &[bf16], expected: &[f64]) -> f64 {
    let (mut error, mut norm) = (0.0, 0.0);
    for (out, expected) in out.iter().zip(expected) {
        error += (out.to_f64() - expected).powi(2);
        norm += expected.powi(2);
    }
    (error / norm).sqrt()
}

/// A batch on the GPU.
pub struct Uploaded {
    pub q_starts: CudaSlice<i32>,
    pub page_starts: CudaSlice<i32>,
    pub pages: CudaSlice<i32>,
    pub last_page_len: CudaSlice<i32>,
}

impl Uploaded {
    pub fn new(gpu: &Gpu, batch: &Batch) -> Uploaded {
        Uploaded {
            q_starts: gpu.upload(&batch.q_starts),
            page_starts: gpu.upload(&batch.page_starts),
            pages: gpu.upload(&batch.pages),
            last_page_len: gpu.upload(&batch.last_page_len),
        }
    }
}

pub struct Tensors {
    pub q: Pages,
    pub k: Pages,
    pub v: Pages,
    pub out: CudaSlice<bf16>,
}

/// The backend that plans and launches a range of a step; `None` for whichever is faster.
pub struct Planned(Prefill);

impl Planned {
    pub fn new(
        gpu: &Gpu,
        backend: Option<Backend>,
        heads: Heads,
        kv: KvType,
        limits: AttentionLimits,
        windows: &[Option<u32>],
    ) -> Planned {
        Planned(Prefill::new(&gpu.device, heads, kv, limits, windows, backend).unwrap())
    }

    pub fn plan(&mut self, gpu: &Gpu, batch: AttentionBatch<'_>) -> Backend {
        self.0.plan(&gpu.device, batch).unwrap()
    }

    pub fn launch(
        &self,
        gpu: &Gpu,
        (head_dim, seen): (usize, &Seen),
        (batch, range): (&Uploaded, Range<usize>),
        tensors: &mut Tensors,
    ) {
        let starts = range.start..range.end + 1;
        let q_starts = batch.q_starts.slice(starts.clone());
        let page_starts = batch.page_starts.slice(starts);
        let last_page_len = batch.last_page_len.slice(range);
        let args = PagedAttentionArgs {
            q: tensors.q.array(),
            k_pages: tensors.k.array(),
            v_pages: tensors.v.array(),
            out: (&mut tensors.out).into(),
            q_starts: (&q_starts).into(),
            page_starts: (&page_starts).into(),
            pages: (&batch.pages).into(),
            last_page_len: (&last_page_len).into(),
            scale: 1.0 / (head_dim as f32).sqrt(),
            view: seen.view(),
        };
        // SAFETY: `Batch::new` made the indices for this pool and `plan` was given the same.
        unsafe { self.0.launch(&gpu.device, args) }.unwrap();
    }
}
