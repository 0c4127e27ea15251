//! A batch of decode tokens over shuffled pages: what it should give, by a plain reference, and what it
//! takes to launch it. Whatever is no live token is NaN in the pages, so reading it shows.

use cudarc::driver::CudaSlice;
use half::bf16;
use minisgl_kernels::attention::{
    AttentionError, DecodeArgs, DecodeAttention, DecodeInput, DecodeOut, DecodePlanner, Heads,
    KvType,
};

use crate::pages::{Pages, round};
use crate::seen::Seen;
use crate::support::{Gpu, POISON};

/// A batch over a shuffled page pool.
pub struct Batch {
    pub heads: Heads,
    pub lens: Vec<u32>,
    page_starts: Vec<i32>,
    pub pages: Vec<i32>,
    pool: usize,
    pub seen: Seen,
}

impl Batch {
    pub fn new(gpu: &mut Gpu, heads: Heads, lens: &[u32], pool: usize) -> Batch {
        let mut free: Vec<i32> = (0..pool as i32).collect();
        gpu.random.shuffle(&mut free);
        let (mut page_starts, mut pages) = (vec![0], Vec::new());
        for &len in lens {
            let taken = free.split_off(free.len() - (len as usize).div_ceil(heads.page_size));
            pages.extend(taken);
            page_starts.push(pages.len() as i32);
        }
        Batch { heads, lens: lens.to_vec(), page_starts, pages, pool, seen: Seen::default() }
    }

    pub fn seeing(self, seen: Seen) -> Batch {
        Batch { seen, ..self }
    }

    pub fn pool_for(lens: &[u32], page_size: usize) -> usize {
        lens.iter().map(|&len| (len as usize).div_ceil(page_size)).sum::<usize>() + 3
    }

    pub fn slot(&self, request: usize, token: usize) -> usize {
        let size = self.heads.page_size;
        let page = self.pages[self.page_starts[request] as usize + token / size];
        page as usize * size + token % size
    }

    /// NaN, but for the live tokens, which are those that are seen; without the newest ones if `stale`.
    pub fn values(&self, gpu: &mut Gpu, kv: KvType, stale: bool) -> Vec<f32> {
        let Heads { kv_heads, head_dim, page_size, .. } = self.heads;
        let width = kv_heads * head_dim;
        let mut values = vec![f32::NAN; self.pool * page_size * width];
        for (request, &len) in self.lens.iter().enumerate() {
            let len = len as usize;
            for token in self.seen.first(len)..len.saturating_sub(usize::from(stale)) {
                let slot = self.slot(request, token);
                values[slot * width..][..width].fill_with(|| round(kv, gpu.random.normal()));
            }
        }
        values
    }

    /// The plan, for a launch of `rows`.
    pub fn work(&self, planner: DecodePlanner, rows: usize) -> Vec<i32> {
        let mut work = vec![-1; planner.words(rows)];
        planner.plan(&self.lens, &self.page_starts, self.seen.window, &mut work).unwrap();
        work
    }

    /// Softmax of all scores at once, in f64; NaN for padding.
    pub fn expected(&self, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f64> {
        let Heads { q_heads, kv_heads, head_dim, .. } = self.heads;
        let mut expected = vec![f64::NAN; self.lens.len() * q_heads * head_dim];
        for (request, &len) in self.lens.iter().enumerate().filter(|&(_, &len)| len > 0) {
            for head in 0..q_heads {
                let row = (request * q_heads + head) * head_dim;
                let q = &q[row..][..head_dim];
                let of = |token| {
                    (self.slot(request, token) * kv_heads + head * kv_heads / q_heads) * head_dim
                };
                let score = |token| {
                    let k = &k[of(token)..][..head_dim];
                    let sum: f64 =
                        q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
                    sum / (head_dim as f64).sqrt()
                };
                let first = self.seen.first(len as usize);
                let scores: Vec<f64> = (first..len as usize).map(score).collect();
                let out = &mut expected[row..][..head_dim];
                out.fill(0.0);
                for (at, share) in self.seen.softmax(&scores, head).into_iter().enumerate() {
                    let token = first + at;
                    let v = &v[of(token)..][..head_dim];
                    out.iter_mut().zip(v).for_each(|(out, v)| *out += share * f64::from(*v));
                }
            }
        }
        expected
    }

    /// Against the reference. Probabilities and outputs are rounded on the way.
    pub fn assert_close(&self, what: &str, out: &[bf16], expected: &[f64]) {
        let row_len = self.heads.q_heads * self.heads.head_dim;
        for (row, out) in out.chunks_exact(row_len).enumerate() {
            if self.lens.get(row).is_none_or(|&len| len == 0) {
                assert!(out.iter().all(|x| x.to_bits() == POISON), "{what}: padding row {row}");
                continue;
            }
            for head in 0..self.heads.q_heads {
                let of_head = head * self.heads.head_dim..(head + 1) * self.heads.head_dim;
                let expected = &expected[row * row_len..][of_head.clone()];
                let (mut error, mut norm) = (0.0, 0.0);
                for (out, expected) in out[of_head].iter().zip(expected) {
                    error += (out.to_f64() - expected).powi(2);
                    norm += expected.powi(2);
                }
                let share = (error / norm).sqrt();
                // NaN fails.
                assert!(
                    share <= 6e-3,
                    "{what}: row {row} of {} tokens, head {head} is off by {share}",
                    self.lens[row]
                );
            }
        }
    }
}

/// One attention on the GPU with what it reads.
pub struct Setup {
    pub attention: DecodeAttention,
    pub work: CudaSlice<i32>,
    pub pages: CudaSlice<i32>,
    rows: usize,
    scale: f32,
    seen: Seen,
}

impl Setup {
    pub fn new(gpu: &Gpu, batch: &Batch, kv: KvType) -> Setup {
        let attention = DecodeAttention::new(&gpu.device, batch.heads, kv).unwrap();
        let rows = batch.lens.len();
        let work = gpu.upload(&batch.work(attention.planner(), rows));
        let mut pages = batch.pages.clone();
        pages.push(-1); // Never empty.
        let scale = 1.0 / (batch.heads.head_dim as f32).sqrt();
        let seen = batch.seen.clone();
        Setup { attention, work, pages: gpu.upload(&pages), rows, scale, seen }
    }

    pub fn launch(
        &self,
        gpu: &Gpu,
        input: DecodeInput<'_>,
        pages: (&mut Pages, &mut Pages),
        out: &mut CudaSlice<bf16>,
    ) {
        self.try_launch(gpu, input, pages, DecodeOut::Bf16(out.into())).unwrap();
    }

    pub fn try_launch(
        &self,
        gpu: &Gpu,
        input: DecodeInput<'_>,
        (k, v): (&mut Pages, &mut Pages),
        out: DecodeOut<'_>,
    ) -> Result<(), AttentionError> {
        let args = DecodeArgs {
            input,
            k_pages: k.array_mut(),
            v_pages: v.array_mut(),
            out,
            work: (&self.work).into(),
            pages: (&self.pages).into(),
            rows: self.rows,
            scale: self.scale,
            view: self.seen.view(),
        };
        // SAFETY: `Batch` made the indices for this pool, the planner the work list; nothing but copies
        // wrote what is read early.
        unsafe { self.attention.launch(&gpu.device, args) }
    }
}
