//! Decode attention: every head_dim, type of pages and size of group, ragged lengths with padding among them,
//! with and without the projection's row fused in, and one capture replayed over changing lengths.
//!
//! Whatever is no live token is NaN in the pages, so reading it shows.

use cudarc::driver::CudaSlice;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use half::{bf16, f16};
use minisgl_kernels::attention::{
    DecodeArgs, DecodeAttention, DecodeInput, DecodePlanner, Heads, KvArrayMut, KvType,
};
use minisgl_kernels::ops::{HEAD_DIMS, QkNorm, QkRopePage};

use crate::support::{Gpu, POISON, assert_same};

const KV_TYPES: [KvType; 3] = [KvType::Bf16, KvType::Fp16, KvType::Fp8];

/// Positions in the table.
const POSITIONS: usize = 8200;

/// Tokens of each request, this step's included; 0 is padding.
const MIXES: [&[u32]; 4] = [
    &[1],
    &[8192],
    &[1, 0, 2, 15, 16, 17, 0, 63, 64, 65, 701, 2001, 0],
    &[0, 0, 300, 1, 1, 1024, 0],
];

const GROUPS: [usize; 7] = [1, 2, 4, 5, 7, 8, 16];

/// Pages on the GPU.
pub enum Pages {
    Bf16(CudaSlice<bf16>),
    Fp16(CudaSlice<f16>),
    Fp8(CudaSlice<u8>),
}

/// What e4m3's 8 bits say: 4 of exponent, 3 of mantissa, no infinities (Micikevicius et al., arXiv 2209.05433).
pub fn of_e4m3(bits: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f64::from(bits & 7));
    let size = match (exponent, bits & 7) {
        (15, 7) => f64::NAN,
        (0, _) => mantissa / 8.0 * 2f64.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
    };
    if bits >> 7 == 1 { -size } else { size }
}

impl Pages {
    /// Pages of these elements, which are of the type already.
    fn upload(gpu: &Gpu, kv: KvType, values: &[f32]) -> Pages {
        match kv {
            KvType::Bf16 => Pages::Bf16(
                gpu.upload(&values.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>()),
            ),
            KvType::Fp16 => Pages::Fp16(
                gpu.upload(&values.iter().map(|&x| f16::from_f32(x)).collect::<Vec<_>>()),
            ),
            KvType::Fp8 => {
                let of: std::collections::HashMap<u32, u8> = (0..=u8::MAX)
                    .filter_map(|bits| Some(((of_e4m3(bits) as f32).to_bits(), bits)))
                    .collect();
                let bits = |x: &f32| match x.is_nan() {
                    true => 0x7f,
                    false => of[&x.to_bits()],
                };
                Pages::Fp8(gpu.upload(&values.iter().map(bits).collect::<Vec<_>>()))
            }
        }
    }

    fn download(&self, gpu: &Gpu) -> Vec<f32> {
        match self {
            Pages::Bf16(pages) => gpu.download(pages).iter().map(|x| x.to_f32()).collect(),
            Pages::Fp16(pages) => gpu.download(pages).iter().map(|x| x.to_f32()).collect(),
            Pages::Fp8(pages) => gpu.download(pages).iter().map(|&x| of_e4m3(x) as f32).collect(),
        }
    }

    pub fn array(&mut self) -> KvArrayMut<'_> {
        match self {
            Pages::Bf16(pages) => KvArrayMut::Bf16(pages.into()),
            Pages::Fp16(pages) => KvArrayMut::Fp16(pages.into()),
            Pages::Fp8(pages) => KvArrayMut::Fp8(pages.into()),
        }
    }
}

/// A normal value that the type holds.
fn value(gpu: &mut Gpu, kv: KvType) -> f32 {
    let x = gpu.random.normal();
    match kv {
        KvType::Bf16 => bf16::from_f32(x).to_f32(),
        KvType::Fp16 => f16::from_f32(x).to_f32(),
        // Of every size up to 3, denormals and -0 included.
        KvType::Fp8 => of_e4m3((gpu.random.below(0x44) | gpu.random.below(2) << 7) as u8) as f32,
    }
}

/// A batch over a shuffled page pool.
struct Batch {
    heads: Heads,
    lens: Vec<u32>,
    page_starts: Vec<i32>,
    pages: Vec<i32>,
    pool: usize,
}

impl Batch {
    fn new(gpu: &mut Gpu, heads: Heads, lens: &[u32], pool: usize) -> Batch {
        let mut free: Vec<i32> = (0..pool as i32).collect();
        gpu.random.shuffle(&mut free);
        let (mut page_starts, mut pages) = (vec![0], Vec::new());
        for &len in lens {
            let taken = free.split_off(free.len() - (len as usize).div_ceil(heads.page_size));
            pages.extend(taken);
            page_starts.push(pages.len() as i32);
        }
        Batch { heads, lens: lens.to_vec(), page_starts, pages, pool }
    }

    fn pool_for(lens: &[u32], page_size: usize) -> usize {
        lens.iter().map(|&len| (len as usize).div_ceil(page_size)).sum::<usize>() + 3
    }

    fn slot(&self, request: usize, token: usize) -> usize {
        let size = self.heads.page_size;
        let page = self.pages[self.page_starts[request] as usize + token / size];
        page as usize * size + token % size
    }

    /// NaN, but for the live tokens; without the newest ones if `stale`.
    fn values(&self, gpu: &mut Gpu, kv: KvType, stale: bool) -> Vec<f32> {
        let Heads { kv_heads, head_dim, page_size, .. } = self.heads;
        let width = kv_heads * head_dim;
        let mut values = vec![f32::NAN; self.pool * page_size * width];
        for (request, &len) in self.lens.iter().enumerate() {
            for token in 0..(len as usize).saturating_sub(usize::from(stale)) {
                let slot = self.slot(request, token);
                values[slot * width..][..width].fill_with(|| value(gpu, kv));
            }
        }
        values
    }

    /// The plan, for a launch of `rows`.
    fn work(&self, planner: DecodePlanner, rows: usize) -> Vec<i32> {
        let mut work = vec![-1; planner.words(rows)];
        planner.plan(&self.lens, &self.page_starts, &mut work).unwrap();
        work
    }

    /// Softmax of all scores at once, in f64; NaN for padding.
    fn expected(&self, q: &[bf16], k: &[f32], v: &[f32]) -> Vec<f64> {
        let Heads { q_heads, kv_heads, head_dim, .. } = self.heads;
        let mut expected = vec![f64::NAN; self.lens.len() * q_heads * head_dim];
        for (request, &len) in self.lens.iter().enumerate().filter(|&(_, &len)| len > 0) {
            for head in 0..q_heads {
                let row = (request * q_heads + head) * head_dim;
                let q: Vec<f32> = q[row..][..head_dim].iter().map(|q| q.to_f32()).collect();
                let of = |token| {
                    (self.slot(request, token) * kv_heads + head * kv_heads / q_heads) * head_dim
                };
                let score = |token| {
                    let k = &k[of(token)..][..head_dim];
                    let sum: f64 =
                        q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
                    sum / (head_dim as f64).sqrt()
                };
                let scores: Vec<f64> = (0..len as usize).map(score).collect();
                let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|score| (score - highest).exp()).sum();
                let out = &mut expected[row..][..head_dim];
                out.fill(0.0);
                for (token, score) in scores.iter().enumerate() {
                    let share = (score - highest).exp() / sum;
                    let v = &v[of(token)..][..head_dim];
                    out.iter_mut().zip(v).for_each(|(out, v)| *out += share * f64::from(*v));
                }
            }
        }
        expected
    }

    /// Against the reference. Probabilities and outputs are rounded on the way.
    fn assert_close(&self, what: &str, out: &[bf16], expected: &[f64]) {
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
struct Setup {
    attention: DecodeAttention,
    work: CudaSlice<i32>,
    pages: CudaSlice<i32>,
    rows: usize,
    scale: f32,
}

impl Setup {
    fn new(gpu: &Gpu, batch: &Batch, kv: KvType) -> Setup {
        let attention = DecodeAttention::new(&gpu.device, batch.heads, kv).unwrap();
        let rows = batch.lens.len();
        let work = gpu.upload(&batch.work(attention.planner(), rows));
        let mut pages = batch.pages.clone();
        pages.push(-1); // Never empty.
        let scale = 1.0 / (batch.heads.head_dim as f32).sqrt();
        Setup { attention, work, pages: gpu.upload(&pages), rows, scale }
    }

    fn launch(
        &self,
        gpu: &Gpu,
        input: DecodeInput<'_>,
        (k, v): (&mut Pages, &mut Pages),
        out: &mut CudaSlice<bf16>,
    ) {
        let args = DecodeArgs {
            input,
            k_pages: k.array(),
            v_pages: v.array(),
            out: out.into(),
            work: (&self.work).into(),
            pages: (&self.pages).into(),
            rows: self.rows,
            scale: self.scale,
        };
        // SAFETY: `Batch` made the indices for this pool, the planner the work list; nothing but copies
        // wrote what is read early.
        unsafe { self.attention.launch(&gpu.device, args) }.unwrap();
    }
}

pub fn decode(gpu: &mut Gpu) {
    for head_dim in HEAD_DIMS {
        for kv in KV_TYPES {
            for page_size in [1, 16, 64] {
                for lens in if gpu.small { &MIXES[3..] } else { &MIXES[..] } {
                    let long = lens[0] > 1000;
                    let kv_heads = gpu.random.of(if long { &[1, 2] } else { &[1, 2, 3, 8] });
                    let q_heads = kv_heads * gpu.random.of(&GROUPS);
                    check(gpu, Heads { q_heads, kv_heads, head_dim, page_size }, kv, lens);
                }
            }
        }
    }
    for group in GROUPS {
        let heads = Heads { q_heads: 2 * group, kv_heads: 2, head_dim: 128, page_size: 16 };
        check(gpu, heads, KvType::Bf16, MIXES[3]);
    }
}

fn check(gpu: &mut Gpu, heads: Heads, kv: KvType, lens: &[u32]) {
    let what = format!("{heads:?}, {kv:?}, {lens:?}");
    let batch = Batch::new(gpu, heads, lens, Batch::pool_for(lens, heads.page_size));
    let (k, v) = (batch.values(gpu, kv, false), batch.values(gpu, kv, false));
    let (mut k_gpu, mut v_gpu) = (Pages::upload(gpu, kv, &k), Pages::upload(gpu, kv, &v));
    let (q, q_gpu) = gpu.normal(lens.len() * heads.q_heads * heads.head_dim, 1.0);
    let setup = Setup::new(gpu, &batch, kv);
    let mut first = gpu.poisoned(q.len());
    let mut again = gpu.poisoned(q.len());
    for out in [&mut first, &mut again] {
        setup.launch(gpu, DecodeInput::Queries((&q_gpu).into()), (&mut k_gpu, &mut v_gpu), out);
    }
    let out = gpu.download(&first);
    batch.assert_close(&what, &out, &batch.expected(&q, &k, &v));
    assert_same(&format!("{what}, again"), &gpu.download(&again), &out);
}

/// The projection's row fused in: what the two ops do one after the other, to the same bits.
pub fn decode_fused(gpu: &mut Gpu) {
    for head_dim in HEAD_DIMS {
        for kv in KV_TYPES {
            for page_size in [1, 16, 64] {
                for lens in if gpu.small { &MIXES[3..] } else { &MIXES[..] } {
                    let kv_heads = gpu.random.of(&[1, 2, 3, 8]);
                    let q_heads = kv_heads * gpu.random.of(&GROUPS);
                    check_fused(gpu, Heads { q_heads, kv_heads, head_dim, page_size }, kv, lens);
                }
            }
        }
    }
}

fn check_fused(gpu: &mut Gpu, heads: Heads, kv: KvType, lens: &[u32]) {
    let Heads { q_heads, kv_heads, head_dim, page_size } = heads;
    let (bias, norm) = (gpu.random.below(2) == 0, gpu.random.below(2) == 0);
    let what = format!("fused, {heads:?}, {kv:?}, bias {bias}, norm {norm}, {lens:?}");
    let all_heads = q_heads + 2 * kv_heads;
    let batch = Batch::new(gpu, heads, lens, Batch::pool_for(lens, page_size));
    let (k, v) = (batch.values(gpu, kv, true), batch.values(gpu, kv, true));
    let (mut k_gpu, mut v_gpu) = (Pages::upload(gpu, kv, &k), Pages::upload(gpu, kv, &v));
    let (_, qkv) = gpu.normal(lens.len() * all_heads * head_dim, 1.0);
    let (_, biases) = gpu.normal(all_heads * head_dim, 1.0);
    let (_, q_weight) = gpu.normal(head_dim, 1.0);
    let (_, k_weight) = gpu.normal(head_dim, 1.0);
    let cos_sin: Vec<f32> = (0..POSITIONS * head_dim)
        .map(|i| {
            let (position, at) = (i / head_dim, i % head_dim);
            let power = (at % (head_dim / 2)) as f64 * -2.0 / head_dim as f64;
            let angle = position as f64 * 1e6_f64.powf(power);
            (if at < head_dim / 2 { angle.cos() } else { angle.sin() }) as f32
        })
        .collect();
    let cos_sin = gpu.upload(&cos_sin);
    let norms = || {
        let (q_weight, k_weight) = ((&q_weight).into(), (&k_weight).into());
        norm.then_some(QkNorm { q_weight, k_weight, eps: 1e-6 })
    };
    let setup = Setup::new(gpu, &batch, kv);
    let q_len = lens.len() * q_heads * head_dim;
    let mut out = gpu.poisoned(q_len);
    let input = DecodeInput::Qkv {
        qkv: (&qkv).into(),
        bias: bias.then_some((&biases).into()),
        norm: norms(),
        cos_sin: (&cos_sin).into(),
    };
    setup.launch(gpu, input, (&mut k_gpu, &mut v_gpu), &mut out);

    // The op for it, onto bf16 pages of its own: a token's slot is its row.
    let rows = lens.len();
    let positions: Vec<i32> = lens.iter().map(|&len| len as i32 - 1).collect();
    let slots: Vec<i32> =
        (0..rows).map(|row| if lens[row] == 0 { -1 } else { row as i32 }).collect();
    let mut q = gpu.upload(&vec![bf16::ZERO; q_len]);
    let mut new_k = gpu.poisoned(rows * kv_heads * head_dim);
    let mut new_v = gpu.poisoned(rows * kv_heads * head_dim);
    QkRopePage {
        qkv: (&qkv).into(),
        bias: bias.then_some((&biases).into()),
        norm: norms(),
        cos_sin: (&cos_sin).into(),
        positions: (&gpu.upload(&positions)).into(),
        slots: (&gpu.upload(&slots)).into(),
        q_out: (&mut q).into(),
        k_pages: (&mut new_k).into(),
        v_pages: (&mut new_v).into(),
        rows,
        q_heads,
        kv_heads,
        head_dim,
    }
    .launch(&gpu.device)
    .unwrap();

    // In the pages: the new tokens where they belong, and nothing else touched.
    let (got_k, got_v) = (k_gpu.download(gpu), v_gpu.download(gpu));
    for (got, before, new) in
        [(&got_k, &k, gpu.download(&new_k)), (&got_v, &v, gpu.download(&new_v))]
    {
        let width = kv_heads * head_dim;
        let mut expected = before.clone();
        for row in (0..rows).filter(|&row| lens[row] > 0) {
            let at = batch.slot(row, lens[row] as usize - 1) * width;
            for (i, new) in new[row * width..][..width].iter().enumerate() {
                let got = got[at + i];
                // Rounded from f32 once, where this was rounded to bf16.
                let limit = match kv {
                    KvType::Bf16 => 0.0,
                    KvType::Fp16 => new.to_f32().abs() * 0.0046 + 1e-6,
                    KvType::Fp8 => new.to_f32().abs() * 0.067 + 2e-3,
                };
                let difference = (got - new.to_f32()).abs();
                assert!(difference <= limit, "{what}: row {row}, element {i}: {got}, {new}");
                expected[at + i] = got;
            }
        }
        let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
        assert!(got.iter().zip(&expected).all(same), "{what}: another slot was written");
    }

    let mut apart = gpu.poisoned(q_len);
    setup.launch(gpu, DecodeInput::Queries((&q).into()), (&mut k_gpu, &mut v_gpu), &mut apart);
    let out = gpu.download(&out);
    assert_same(&what, &out, &gpu.download(&apart));
    if lens.len() < 8 && lens[0] < 1000 {
        batch.assert_close(&what, &out, &batch.expected(&gpu.download(&q), &got_k, &got_v));
    }
}

/// One capture, replayed after other plans; the rows beyond the requests are padding.
pub fn decode_graph(gpu: &mut Gpu) {
    let heads = Heads { q_heads: 16, kv_heads: 8, head_dim: 128, page_size: 16 };
    let (rows, pool, kv) = (8, 400, KvType::Bf16);
    let stream = gpu.device.stream().clone();
    let (mut q, _) = gpu.normal(rows * heads.q_heads * heads.head_dim, 1.0);
    let mut q_gpu = gpu.upload(&q);
    let mut out = gpu.poisoned(q.len());
    let empty = Batch::new(gpu, heads, &[0; 8], pool);
    let nothing = empty.values(gpu, kv, false);
    let (mut k_gpu, mut v_gpu) =
        (Pages::upload(gpu, kv, &nothing), Pages::upload(gpu, kv, &nothing));
    let mut setup = Setup::new(gpu, &empty, kv);
    setup.pages = gpu.upload(&vec![-1; pool]);
    setup.launch(gpu, DecodeInput::Queries((&q_gpu).into()), (&mut k_gpu, &mut v_gpu), &mut out);
    let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    stream.begin_capture(mode).unwrap();
    setup.launch(gpu, DecodeInput::Queries((&q_gpu).into()), (&mut k_gpu, &mut v_gpu), &mut out);
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY;
    let graph = stream.end_capture(flags).unwrap().unwrap();
    for lens in [
        &[4_u32, 1, 101, 16, 17, 18, 2, 3][..],
        &[3001, 2, 501, 32],
        &[701, 702, 703, 704, 705, 706, 707, 708],
        &[],
        &[0, 0, 1],
        &[1],
        &[6000],
    ] {
        let batch = Batch::new(gpu, heads, lens, pool);
        let (k, v) = (batch.values(gpu, kv, false), batch.values(gpu, kv, false));
        for (values, pages) in [(&k, &mut k_gpu), (&v, &mut v_gpu)] {
            let Pages::Bf16(pages) = pages else { unreachable!() };
            let values: Vec<bf16> = values.iter().map(|&x| bf16::from_f32(x)).collect();
            stream.memcpy_htod(&values, pages).unwrap();
        }
        q = gpu.normal(q.len(), 1.0).0;
        stream.memcpy_htod(&q, &mut q_gpu).unwrap();
        stream.memcpy_htod(&vec![bf16::from_bits(POISON); q.len()], &mut out).unwrap();
        let work = batch.work(setup.attention.planner(), rows);
        stream.memcpy_htod(&work, &mut setup.work).unwrap();
        let len = batch.pages.len();
        if len > 0 {
            stream.memcpy_htod(&batch.pages, &mut setup.pages.slice_mut(..len)).unwrap();
        }
        graph.launch().unwrap();
        let expected = batch.expected(&q, &k, &v);
        batch.assert_close(&format!("graph, {lens:?}"), &gpu.download(&out), &expected);
    }
}
