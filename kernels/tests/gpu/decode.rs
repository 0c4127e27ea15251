//! Decode attention: every head_dim, type of pages and size of group, ragged lengths with padding among them,
//! with and without the projection's row fused in, and one capture replayed over changing lengths.

use cudarc::driver::CudaSlice;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use half::bf16;
use minisgl_kernels::attention::{
    AttentionError, DECODE_CODES_DIM, DecodeAttention, DecodeInput, DecodeOut, Heads, KvType,
};
use minisgl_kernels::fp8::ScaleForm;
use minisgl_kernels::ops::{HEAD_DIMS, QkNorm, QkRopePage, Quantise, QuantiseInput};

use crate::decode_batch::{Batch, Setup};
use crate::pages::{KV_TYPES, Pages};
use crate::seen::Seen;
use crate::support::{Gpu, POISON, assert_same};

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

/// What queries are for pages of a type.
fn of_queries(kv: KvType) -> KvType {
    if kv == KvType::Fp16 { KvType::Fp16 } else { KvType::Bf16 }
}

pub fn decode(gpu: &mut Gpu) {
    for head_dim in HEAD_DIMS {
        for kv in KV_TYPES {
            for page_size in [1, 16, 64] {
                for lens in if gpu.small { &MIXES[3..] } else { &MIXES[..] } {
                    let long = lens[0] > 1000;
                    let kv_heads = gpu.random.of(if long { &[1, 2] } else { &[1, 2, 3, 8] });
                    let q_heads = kv_heads * gpu.random.of(&GROUPS);
                    let heads = Heads { q_heads, kv_heads, head_dim, page_size };
                    check(gpu, heads, kv, lens, Seen::default());
                }
            }
        }
    }
    for group in GROUPS {
        let heads = Heads { q_heads: 2 * group, kv_heads: 2, head_dim: 128, page_size: 16 };
        check(gpu, heads, KvType::Bf16, MIXES[3], Seen::default());
    }
}

/// Windows of one token, at the edges of units and pages, and longer than any request; with sinks and without. Tokens
/// before the window are NaN.
pub fn decode_windows(gpu: &mut Gpu) {
    const WINDOWS: [u32; 12] = [1, 2, 15, 16, 17, 31, 33, 64, 128, 700, 4096, 1 << 20];
    for head_dim in HEAD_DIMS {
        let table = rotations(gpu, head_dim);
        for kv in KV_TYPES {
            for page_size in [1, 16, 64] {
                for at in 0..if gpu.small { 1 } else { 3 } {
                    let window = match gpu.random.below(6) {
                        0 => None,
                        _ => Some(gpu.random.of(&WINDOWS)),
                    };
                    let with_sinks = window.is_none() || gpu.random.below(2) == 0;
                    let kv_heads = gpu.random.of(if at == 1 { &[1, 2, 3, 8] } else { &[1, 2] });
                    let q_heads = kv_heads * gpu.random.of(&GROUPS);
                    let heads = Heads { q_heads, kv_heads, head_dim, page_size };
                    let seen = Seen::new(gpu, q_heads, window, with_sinks);
                    let lens = [MIXES[2], MIXES[3], MIXES[1]][at];
                    check(gpu, heads, kv, lens, seen.clone());
                    let fits = lens.len() > 1 || page_size == 16;
                    if fits {
                        check_fused(gpu, (heads, &table), kv, lens, seen);
                    }
                }
            }
        }
    }
}

fn check(gpu: &mut Gpu, heads: Heads, kv: KvType, lens: &[u32], seen: Seen) {
    let what = format!("{heads:?}, {kv:?}, {lens:?}, {}", seen.describe());
    let batch = Batch::new(gpu, heads, lens, Batch::pool_for(lens, heads.page_size)).seeing(seen);
    let (k, v) = (batch.values(gpu, kv, false), batch.values(gpu, kv, false));
    let (mut k_gpu, mut v_gpu) = (Pages::upload(gpu, kv, &k), Pages::upload(gpu, kv, &v));
    let q_len = lens.len() * heads.q_heads * heads.head_dim;
    let (q, q_gpu) = Pages::normal(gpu, of_queries(kv), q_len, 0);
    let setup = Setup::new(gpu, &batch, kv);
    let mut first = gpu.poisoned(q.len());
    let mut again = gpu.poisoned(q.len());
    for out in [&mut first, &mut again] {
        setup.launch(gpu, DecodeInput::Queries(q_gpu.array()), (&mut k_gpu, &mut v_gpu), out);
    }
    let out = gpu.download(&first);
    batch.assert_close(&what, &out, &batch.expected(&q, &k, &v));
    assert_same(&format!("{what}, again"), &gpu.download(&again), &out);
    if heads.head_dim == DECODE_CODES_DIM {
        let q = DecodeInput::Queries(q_gpu.array());
        check_codes(gpu, (&setup, &batch), q, (&mut k_gpu, &mut v_gpu), &first, &what);
    }
}

/// Outputs left as e4m3: what [`Quantise`] makes of `out`, to the same bits, and nothing for padding.
fn check_codes(
    gpu: &mut Gpu,
    (setup, batch): (&Setup, &Batch),
    input: DecodeInput<'_>,
    pages: (&mut Pages, &mut Pages),
    out: &CudaSlice<bf16>,
    what: &str,
) {
    let (rows, q_heads) = (batch.lens.len(), batch.heads.q_heads);
    let (tokens, hidden) = (rows + gpu.random.below(5), q_heads * DECODE_CODES_DIM);
    let room = |gpu: &Gpu, tokens: usize| {
        (gpu.upload(&vec![0x5a_u8; tokens * hidden]), gpu.upload(&vec![-1.0_f32; q_heads * tokens]))
    };
    let (mut data, mut scales) = room(gpu, tokens);
    let codes = DecodeOut::Codes { data: (&mut data).into(), scales: (&mut scales).into(), tokens };
    setup.try_launch(gpu, input, pages, codes).unwrap();
    let (mut apart, mut apart_scales) = room(gpu, rows);
    Quantise {
        input: QuantiseInput::Plain(out.into()),
        out: (&mut apart).into(),
        scales: (&mut apart_scales).into(),
        form: ScaleForm::Block,
        rows,
        hidden,
    }
    .launch(&gpu.device)
    .unwrap();
    let (data, scales) = (gpu.download(&data), gpu.download(&scales));
    let (apart, apart_scales) = (gpu.download(&apart), gpu.download(&apart_scales));
    for row in 0..tokens {
        let got = &data[row * hidden..(row + 1) * hidden];
        let of = |head: usize| scales[head * tokens + row].to_bits();
        if batch.lens.get(row).is_none_or(|&len| len == 0) {
            let left = (0..q_heads).all(|head| of(head) == (-1.0_f32).to_bits());
            assert!(
                left && got.iter().all(|&byte| byte == 0x5a),
                "{what}: padding row {row} as e4m3"
            );
            continue;
        }
        assert_eq!(got, &apart[row * hidden..(row + 1) * hidden], "{what}: row {row} as e4m3");
        for head in 0..q_heads {
            let expected = apart_scales[head * rows + row];
            assert_eq!(of(head), expected.to_bits(), "{what}: row {row}, head {head}: its scale");
        }
    }
}

/// The projection's row fused in: what the two ops do one after the other, to the same bits.
pub fn decode_fused(gpu: &mut Gpu) {
    for head_dim in HEAD_DIMS {
        let table = rotations(gpu, head_dim);
        for kv in KV_TYPES {
            for page_size in [1, 16, 64] {
                for lens in if gpu.small { &MIXES[3..] } else { &MIXES[..] } {
                    let long = lens[0] > 1000;
                    if long && page_size != 16 {
                        continue; // Takes long to make.
                    }
                    let kv_heads = gpu.random.of(if long { &[1, 2] } else { &[1, 2, 3, 8] });
                    let q_heads = kv_heads * gpu.random.of(&GROUPS);
                    let heads = Heads { q_heads, kv_heads, head_dim, page_size };
                    check_fused(gpu, (heads, &table), kv, lens, Seen::default());
                }
            }
        }
    }
}

/// A table of rotations, `[POSITIONS, head_dim]`.
fn rotations(gpu: &Gpu, head_dim: usize) -> CudaSlice<f32> {
    let turns: Vec<f64> =
        (0..head_dim / 2).map(|i| 1e6_f64.powf(i as f64 * -2.0 / head_dim as f64)).collect();
    let of = |position: usize| {
        let angles = turns.iter().map(move |turn| position as f64 * turn);
        let cos = angles.clone().map(|angle| angle.cos() as f32);
        cos.chain(angles.map(|angle| angle.sin() as f32))
    };
    gpu.upload(&(0..POSITIONS).flat_map(of).collect::<Vec<f32>>())
}

fn check_fused(
    gpu: &mut Gpu,
    (heads, cos_sin): (Heads, &CudaSlice<f32>),
    kv: KvType,
    lens: &[u32],
    seen: Seen,
) {
    let Heads { q_heads, kv_heads, head_dim, page_size } = heads;
    let norm = gpu.random.below(2) == 0;
    let (plus_one, of_weight) = gpu.random.of(&[(false, 1.0), (true, 0.01)]);
    let what = format!(
        "fused, {heads:?}, {kv:?}, norm {norm}, less 1 {plus_one}, {lens:?}, {}",
        seen.describe()
    );
    let all_heads = q_heads + 2 * kv_heads;
    let batch = Batch::new(gpu, heads, lens, Batch::pool_for(lens, page_size)).seeing(seen);
    let (k, v) = (batch.values(gpu, kv, true), batch.values(gpu, kv, true));
    let (mut k_gpu, mut v_gpu) = (Pages::upload(gpu, kv, &k), Pages::upload(gpu, kv, &v));
    let (_, qkv) = gpu.normal(lens.len() * all_heads * head_dim, 1.0);
    let (_, q_weight) = gpu.normal(head_dim, of_weight);
    let (_, k_weight) = gpu.normal(head_dim, of_weight);
    let norms = || {
        let (q_weight, k_weight) = ((&q_weight).into(), (&k_weight).into());
        norm.then_some(QkNorm { q_weight, k_weight, eps: 1e-6, plus_one })
    };
    let setup = Setup::new(gpu, &batch, kv);
    let q_len = lens.len() * q_heads * head_dim;
    let mut out = gpu.poisoned(q_len);
    let input = DecodeInput::Qkv { qkv: (&qkv).into(), norm: norms(), cos_sin: cos_sin.into() };
    setup.launch(gpu, input, (&mut k_gpu, &mut v_gpu), &mut out);

    // One op after the other, on pages of their own.
    let rows = lens.len();
    let positions: Vec<i32> = lens.iter().map(|&len| len as i32 - 1).collect();
    let slot = |row: usize| match lens[row] {
        0 => -1,
        len => batch.slot(row, len as usize - 1) as i32,
    };
    let slots: Vec<i32> = (0..rows).map(slot).collect();
    let mut q = Pages::upload(gpu, of_queries(kv), &vec![0.0; q_len]);
    let (mut k_apart, mut v_apart) = (Pages::upload(gpu, kv, &k), Pages::upload(gpu, kv, &v));
    QkRopePage {
        qkv: (&qkv).into(),
        norm: norms(),
        cos_sin: cos_sin.into(),
        positions: (&gpu.upload(&positions)).into(),
        slots: (&gpu.upload(&slots)).into(),
        q_out: q.array_mut(),
        k_pages: k_apart.array_mut(),
        v_pages: v_apart.array_mut(),
        rows,
        q_heads,
        kv_heads,
        head_dim,
    }
    .launch(&gpu.device)
    .unwrap();
    let mut apart = gpu.poisoned(q_len);
    let input = DecodeInput::Queries(q.array());
    setup.launch(gpu, input, (&mut k_apart, &mut v_apart), &mut apart);

    let (got_k, got_v) = (k_gpu.download(gpu), v_gpu.download(gpu));
    let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
    for (got, expected) in [(&got_k, k_apart.download(gpu)), (&got_v, v_apart.download(gpu))] {
        assert!(got.iter().zip(&expected).all(same), "{what}: the pages differ");
    }
    let out = gpu.download(&out);
    assert_same(&what, &out, &gpu.download(&apart));
    if lens.len() < 8 && lens[0] < 1000 {
        batch.assert_close(&what, &out, &batch.expected(&q.download(gpu), &got_k, &got_v));
    }
}

/// One capture, replayed after other plans; the rows beyond the requests are padding.
pub fn decode_graph(gpu: &mut Gpu) {
    replay(gpu, Seen::default());
    let windowed = Seen::new(gpu, 16, Some(100), true);
    replay(gpu, windowed);
}

fn replay(gpu: &mut Gpu, seen: Seen) {
    let heads = Heads { q_heads: 16, kv_heads: 8, head_dim: 128, page_size: 16 };
    let (rows, pool, kv) = (8, 400, KvType::Bf16);
    let stream = gpu.device.stream().clone();
    let (mut q, mut q_gpu) = Pages::normal(gpu, kv, rows * heads.q_heads * heads.head_dim, 0);
    let mut out = gpu.poisoned(q.len());
    let empty = Batch::new(gpu, heads, &[0; 8], pool).seeing(seen.clone());
    let nothing = empty.values(gpu, kv, false);
    let (mut k_gpu, mut v_gpu) =
        (Pages::upload(gpu, kv, &nothing), Pages::upload(gpu, kv, &nothing));
    let mut setup = Setup::new(gpu, &empty, kv);
    setup.pages = gpu.upload(&vec![-1; pool]);
    setup.launch(gpu, DecodeInput::Queries(q_gpu.array()), (&mut k_gpu, &mut v_gpu), &mut out);
    let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    stream.begin_capture(mode).unwrap();
    setup.launch(gpu, DecodeInput::Queries(q_gpu.array()), (&mut k_gpu, &mut v_gpu), &mut out);
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
        let batch = Batch::new(gpu, heads, lens, pool).seeing(seen.clone());
        let (k, v) = (batch.values(gpu, kv, false), batch.values(gpu, kv, false));
        for (values, pages) in [(&k, &mut k_gpu), (&v, &mut v_gpu)] {
            pages.overwrite(gpu, &Pages::upload(gpu, kv, values));
        }
        let fresh = Pages::normal(gpu, kv, q.len(), 0);
        q_gpu.overwrite(gpu, &fresh.1);
        q = fresh.0;
        stream.memcpy_htod(&vec![bf16::from_bits(POISON); q.len()], &mut out).unwrap();
        let work = batch.work(setup.attention.planner(), rows);
        stream.memcpy_htod(&work, &mut setup.work).unwrap();
        let len = batch.pages.len();
        if len > 0 {
            stream.memcpy_htod(&batch.pages, &mut setup.pages.slice_mut(..len)).unwrap();
        }
        graph.launch().unwrap();
        let expected = batch.expected(&q, &k, &v);
        let what = format!("graph, {lens:?}, {}", seen.describe());
        batch.assert_close(&what, &gpu.download(&out), &expected);
    }
}

/// What does not fit together is refused before anything is launched.
pub fn decode_refusals(gpu: &mut Gpu) {
    let heads = Heads { q_heads: 8, kv_heads: 2, head_dim: 64, page_size: 16 };
    let new = |heads| DecodeAttention::new(&gpu.device, heads, KvType::Bf16).map(drop);
    let refused = |outcome: Result<(), AttentionError>, why: &str| {
        let said = outcome.unwrap_err().to_string();
        assert!(said.contains(why), "{said}");
    };
    refused(new(Heads { head_dim: 80, ..heads }), "head_dim is 80");
    refused(new(Heads { q_heads: 7, ..heads }), "7 query heads and 2 key heads");
    refused(new(Heads { q_heads: 34, ..heads }), "the limit is 16");
    refused(new(Heads { page_size: 0, ..heads }), "page_size is 0");

    let batch = Batch::new(gpu, heads, &[5, 40], 8);
    let k = batch.values(gpu, KvType::Bf16, false);
    let (mut k, mut v) =
        (Pages::upload(gpu, KvType::Bf16, &k), Pages::upload(gpu, KvType::Bf16, &k));
    let (mut setup, mut out) = (Setup::new(gpu, &batch, KvType::Bf16), gpu.poisoned(2 * 8 * 64));
    let (_, q) = Pages::normal(gpu, KvType::Bf16, 2 * 8 * 64, 0);
    let (_, half) = Pages::normal(gpu, KvType::Fp16, 2 * 8 * 64, 0);
    let (_, mut bytes) = Pages::normal(gpu, KvType::Fp8, 8 * 16 * 2 * 64, 0);
    let input = DecodeInput::Queries(half.array());
    let to = DecodeOut::Bf16((&mut out).into());
    let outcome = setup.try_launch(gpu, input, (&mut k, &mut v), to);
    refused(outcome, "queries are Fp16");
    let input = DecodeInput::Queries(q.array());
    let to = DecodeOut::Bf16((&mut out).into());
    refused(setup.try_launch(gpu, input, (&mut bytes, &mut v), to), "not of Bf16");
    let (mut data, mut scales) = (gpu.upload(&[0_u8; 2 * 8 * 64]), gpu.upload(&[0.0_f32; 16]));
    let input = DecodeInput::Queries(q.array());
    let to = DecodeOut::Codes { data: (&mut data).into(), scales: (&mut scales).into(), tokens: 2 };
    let why = "head_dim is 64; outputs are left as e4m3 with 128";
    refused(setup.try_launch(gpu, input, (&mut k, &mut v), to), why);
    setup.work = gpu.upload(&[0; 5]);
    let input = DecodeInput::Queries(q.array());
    let to = DecodeOut::Bf16((&mut out).into());
    refused(setup.try_launch(gpu, input, (&mut k, &mut v), to), "work has 5 elements");
}
