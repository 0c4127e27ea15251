//! What a request does not see must not matter to it, whatever is there: attention by every backend of prefill, with NaN and
//! infinities in every page and row that is none of its tokens', against the plain reference, which has none. (Tests of the decode kernel,
//! `decode.rs`, have them everywhere.)
//!
//! Pages before a window are another request's by now: the table leads to a page of NaN there. Rows of the window's own first page that
//! are before it are the request's, and numbers.

use minisgl_kernels::attention::{
    ATTENTION_HEAD_DIMS, AttentionLimits, Backend, DecodeInput, Heads, KvType, PagedPrefill,
};
use minisgl_kernels::ops::QkRopePage;

use crate::attention_batch::{Batch, Planned, Request, Tensors, Uploaded};
use crate::decode_batch;
use crate::pages::{Pages, round};
use crate::seen::Seen;
use crate::support::Gpu;

/// Chunks behind a cache and whole prompts, that end within pages and with them; decode rows with padding among them; a context
/// that is cut.
const MIXES: [&[Request]; 3] = [
    &[(1500, 130), (400, 1), (700, 40), (15, 1), (0, 97), (31, 2), (300, 60)],
    &[(900, 1), (0, 1), (0, 0), (15, 1), (16, 1), (333, 1), (0, 0)],
    &[(6000, 1)],
];

const WINDOWS: [Option<u32>; 5] = [None, Some(1), Some(17), Some(128), Some(1000)];

/// Of page tables and pages that a layer sees `seen` of, with poison wherever it does not look.
struct Poisoned {
    pages: Vec<i32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Poisoned {
    fn new(batch: &Batch, (heads, kv): (Heads, KvType), seen: &Seen, k: &[f32], v: &[f32]) -> Self {
        let Heads { kv_heads, head_dim, page_size, .. } = heads;
        let width = kv_heads * head_dim;
        let nowhere = (0..).find(|page| !batch.pages.contains(page)).unwrap();
        let mut pages = batch.pages.clone();
        let mut live = vec![false; k.len() / width];
        for (request, &(cached, new)) in batch.requests.iter().enumerate() {
            let at = batch.page_starts[request] as usize;
            let before = if new == 0 { 0 } else { seen.first(cached + 1) / page_size };
            pages[at..at + before].fill(nowhere);
            for token in before * page_size..cached + new {
                let page = batch.pages[at + token / page_size] as usize;
                live[page * page_size + token % page_size] = true;
            }
        }
        let poison = |slot: usize| match kv {
            KvType::Bf16 if slot.is_multiple_of(3) => f32::INFINITY,
            _ => f32::NAN,
        };
        // Keys of heads of 96 are numbers wherever they are: their writers see to it.
        let keys = |slot| if head_dim == 96 { 448.0 } else { poison(slot) };
        let of = |values: &[f32], poison: &dyn Fn(usize) -> f32| -> Vec<f32> {
            let at = |(i, &value): (usize, &f32)| match live.get(i / width) {
                Some(false) => poison(i / width),
                _ => value,
            };
            values.iter().enumerate().map(at).collect()
        };
        Poisoned { pages, k: of(k, &keys), v: of(v, &poison) }
    }
}

pub fn attention(gpu: &mut Gpu) {
    let backends = match PagedPrefill::available(&gpu.device) {
        true => &[Backend::Fi, Backend::Fa][..],
        false => &[Backend::Fi],
    };
    let (mut failed, mut cases) = (Vec::new(), 0);
    for head_dim in ATTENTION_HEAD_DIMS {
        for kv in [KvType::Bf16, KvType::Fp8] {
            for page_size in [1, 16] {
                for (mix, requests) in MIXES.iter().enumerate() {
                    let heads = Heads { q_heads: 4, kv_heads: 2, head_dim, page_size };
                    let outcome = check(gpu, (heads, kv), requests, backends, mix > 0);
                    cases += outcome.0;
                    failed.extend(outcome.1);
                }
            }
        }
    }
    let count = failed.len();
    assert!(failed.is_empty(), "{count} of {cases} cases failed:\n{}", failed.join("\n"));
}

/// One batch for layers of each window. How many cases there were, and what those say that failed.
fn check(
    gpu: &mut Gpu,
    (heads, kv): (Heads, KvType),
    requests: &[Request],
    backends: &[Backend],
    is_decode: bool,
) -> (usize, Vec<String>) {
    let Heads { q_heads, kv_heads, head_dim, page_size } = heads;
    let tokens: usize = requests.iter().map(|(cached, new)| cached + new).sum();
    let pool = tokens / page_size + requests.len() + 3;
    let batch = Batch::new(gpu, requests, page_size, pool);
    let (len, slack) = (pool * page_size * kv_heads * head_dim, heads.pages_slack());
    let (q, _) = Pages::normal(gpu, KvType::Bf16, batch.rows() * q_heads * head_dim, 0);
    let values = |gpu: &mut Gpu| -> Vec<f32> {
        let of = |i: usize| if i < len { round(kv, gpu.random.normal()) } else { 0.0 };
        (0..len + slack).map(of).collect()
    };
    let (k, v) = (values(gpu), values(gpu));
    let limits = AttentionLimits { rows: batch.rows(), requests: requests.len() };
    let (mut cases, mut failed) = (0, Vec::new());
    for window in WINDOWS {
        let sinks = gpu.random.below(2) == 0;
        let seen = Seen::new(gpu, q_heads, window, sinks);
        let poisoned = Poisoned::new(&batch, (heads, kv), &seen, &k, &v);
        let mut uploaded = Uploaded::new(gpu, &batch);
        uploaded.pages = gpu.upload(&poisoned.pages);
        let mut tensors = Tensors {
            q: Pages::upload(gpu, KvType::Bf16, &q),
            k: Pages::upload(gpu, kv, &poisoned.k),
            v: Pages::upload(gpu, kv, &poisoned.v),
            out: gpu.poisoned(q.len()),
        };
        let expected = batch.expected(heads, &seen, &q, &k, &v);
        for &backend in backends {
            if !backend.supports_prefill(&gpu.device, kv) || backend == Backend::Fa && is_decode {
                continue;
            }
            tensors.out = gpu.poisoned(q.len());
            let mut planned = Planned::new(gpu, Some(backend), heads, kv, limits, &[window]);
            let all = 0..requests.len();
            planned.plan(gpu, batch.host(all.clone(), is_decode));
            planned.launch(gpu, (head_dim, &seen), (&uploaded, all), &mut tensors);
            let out = gpu.download(&tensors.out);
            let what = format!(
                "{backend:?}, {kv:?}, head_dim {head_dim}, page_size {page_size}, {}, {requests:?}",
                seen.describe()
            );
            cases += 1;
            let off = batch.worst(heads, &out, &expected);
            // NaN fails.
            if off.is_none_or(|off| off > 6e-3) {
                failed.push(format!("{what}: off by {off:?}"));
            }
        }
    }
    (cases, failed)
}

/// Templates that are 128 wide read a key of 96 with the start of what is behind it, and multiply that by zeros: both writers of pages
/// leave numbers as its keys, whatever they are given. Values stay what they are: a request that is broken must remain so.
pub fn keys_of_96_are_numbers(gpu: &mut Gpu) {
    let (rows, q_heads, kv_heads, head_dim) = (5, 4, 2, 96);
    let width = kv_heads * head_dim;
    let heads = Heads { q_heads, kv_heads, head_dim, page_size: 16 };
    let lens = [1, 17, 40, 16, 3];
    for kv in [KvType::Bf16, KvType::Fp16, KvType::Fp8] {
        let batch = decode_batch::Batch::new(gpu, heads, &lens, 12);
        let len = 12 * 16 * width;
        let setup = decode_batch::Setup::new(gpu, &batch, kv);
        let cos_sin = gpu.upload(&vec![0.5_f32; 64 * head_dim]);
        let (mut qkv, _) = gpu.normal(rows * (q_heads + 2 * kv_heads) * head_dim, 1.0);
        let wrong =
            [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX].map(half::bf16::from_f32);
        for (row, values) in qkv.chunks_mut((q_heads + 2 * kv_heads) * head_dim).enumerate().skip(1)
        {
            values[q_heads * head_dim..].fill(wrong[row - 1]);
        }
        let qkv = gpu.upload(&qkv);
        let slots: Vec<i32> = lens
            .iter()
            .enumerate()
            .map(|(row, &len)| batch.slot(row, len as usize - 1) as i32)
            .collect();
        let positions: Vec<i32> = lens.iter().map(|&len| len as i32 - 1).collect();
        for fused in [false, true] {
            let zeros = vec![0.0; len];
            let (mut k, mut v) = (Pages::upload(gpu, kv, &zeros), Pages::upload(gpu, kv, &zeros));
            if fused {
                let mut out = gpu.poisoned(rows * q_heads * head_dim);
                let input =
                    DecodeInput::Qkv { qkv: (&qkv).into(), norm: None, cos_sin: (&cos_sin).into() };
                setup.launch(gpu, input, (&mut k, &mut v), &mut out);
            } else {
                let of_q = if kv == KvType::Fp16 { kv } else { KvType::Bf16 };
                let mut q = Pages::poisoned(gpu, of_q, rows * q_heads * head_dim);
                QkRopePage {
                    qkv: (&qkv).into(),
                    norm: None,
                    cos_sin: (&cos_sin).into(),
                    positions: (&gpu.upload(&positions)).into(),
                    slots: (&gpu.upload(&slots)).into(),
                    q_out: q.array_mut(),
                    k_pages: k.array_mut(),
                    v_pages: v.array_mut(),
                    rows,
                    q_heads,
                    kv_heads,
                    head_dim,
                }
                .launch(&gpu.device)
                .unwrap();
            }
            let (k, v) = (k.download(gpu), v.download(gpu));
            assert!(k.iter().all(|x| x.is_finite()), "{kv:?}, fused {fused}: keys");
            for (row, &slot) in slots.iter().enumerate() {
                let v = &v[slot as usize * width..][..width];
                let nan = v.iter().filter(|x| x.is_nan()).count();
                assert_eq!(
                    nan,
                    if row == 1 { width } else { 0 },
                    "{kv:?}, fused {fused}, row {row}"
                );
                let k = &k[slot as usize * width..][..width];
                assert!(row > 0 || k.iter().any(|&x| x != 0.0), "{kv:?}, fused {fused}: keys");
            }
        }
    }
}
