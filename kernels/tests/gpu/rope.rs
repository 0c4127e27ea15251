//! QK-norm, rotary embedding and the KV page write, over every head_dim, groups of 1 to 16 queries a
//! key, pages of 1, 16 and 64 tokens and of every type.

use half::bf16;
use minisgl_kernels::attention::KvType;
use minisgl_kernels::ops::{HEAD_DIMS, QkNorm, QkRopePage};

use crate::pages::{KV_TYPES, Pages, round};
use crate::support::Gpu;

/// Positions in the table.
const POSITIONS: usize = 9000;

/// A model's heads and what is optional about them.
struct Shape {
    q_heads: usize,
    kv_heads: usize,
    head_dim: usize,
    page_size: usize,
    norm: bool,
    kv: KvType,
}

pub fn qk_rope_page(gpu: &mut Gpu) {
    for head_dim in HEAD_DIMS {
        for page_size in [1, 16, 64] {
            for &rows in gpu.row_counts() {
                let many = rows > 1000;
                let kv_heads = gpu.random.of(if many { &[1, 2] } else { &[1, 2, 3, 8] });
                let group = 1 + gpu.random.below(if many { 5 } else { 16 });
                let norm = gpu.random.below(2) == 0;
                let q_heads = kv_heads * group;
                let kv = gpu.random.of(&KV_TYPES);
                check(gpu, rows, &Shape { q_heads, kv_heads, head_dim, page_size, norm, kv });
            }
        }
    }
}

fn check(gpu: &mut Gpu, rows: usize, shape: &Shape) {
    let &Shape { q_heads, kv_heads, head_dim, page_size, norm, kv } = shape;
    let heads = q_heads + 2 * kv_heads;
    let what = format!(
        "{rows} rows, {q_heads}/{kv_heads} heads of {head_dim}, {kv:?} pages of {page_size}, norm {norm}"
    );

    // Ragged requests over shuffled pages: a few tokens each, after a cached prefix of any length.
    let pages = rows / page_size + rows + 8;
    let mut free: Vec<usize> = (0..pages).collect();
    gpu.random.shuffle(&mut free);
    let (mut positions, mut slots) = (Vec::new(), Vec::new());
    while positions.len() < rows {
        let start = gpu.random.of(&[0, 1, page_size - 1, page_size, 8191]);
        let len = (1 + gpu.random.below(2 * page_size)).min(rows - positions.len());
        let mut page = None;
        for position in start..start + len {
            if page.is_none() || position % page_size == 0 {
                page = Some(free.pop().unwrap());
            }
            positions.push(position as i32);
            slots.push((page.unwrap() * page_size + position % page_size) as i32);
        }
    }
    // Padding rows of every kind.
    for row in 0..rows {
        match gpu.random.below(20) {
            0 => slots[row] = gpu.random.of(&[-1, i32::MIN, (pages * page_size) as i32]),
            1 => positions[row] = gpu.random.of(&[-1, POSITIONS as i32]),
            _ => {}
        }
    }

    let cos_sin: Vec<f32> = (0..POSITIONS)
        .flat_map(|position| {
            let angle =
                move |i: usize| position as f64 * 1e6_f64.powf(-2.0 * i as f64 / head_dim as f64);
            let half = 0..head_dim / 2;
            half.clone()
                .map(move |i| angle(i).cos() as f32)
                .chain(half.map(move |i| angle(i).sin() as f32))
        })
        .collect();
    // Sometimes more than fp8 can hold.
    let scale = gpu.random.of(&[1.0, 300.0]);
    let (qkv, qkv_gpu) = gpu.normal(rows * heads * head_dim, scale);
    let (plus_one, of_weight) = gpu.random.of(&[(false, 1.0), (true, 0.01)]);
    let more = f64::from(u8::from(plus_one));
    let (q_weight, q_weight_gpu) = gpu.normal(head_dim, of_weight);
    let (k_weight, k_weight_gpu) = gpu.normal(head_dim, of_weight);
    let page_len = pages * page_size * kv_heads * head_dim;
    let of_q = if kv == KvType::Fp16 { KvType::Fp16 } else { KvType::Bf16 };
    let mut q_out = Pages::poisoned(gpu, of_q, rows * q_heads * head_dim);
    let mut k_pages = Pages::poisoned(gpu, kv, page_len);
    let mut v_pages = Pages::poisoned(gpu, kv, page_len);
    QkRopePage {
        qkv: (&qkv_gpu).into(),
        norm: norm.then_some(QkNorm {
            q_weight: (&q_weight_gpu).into(),
            k_weight: (&k_weight_gpu).into(),
            eps: 1e-6,
            plus_one,
        }),
        cos_sin: (&gpu.upload(&cos_sin)).into(),
        positions: (&gpu.upload(&positions)).into(),
        slots: (&gpu.upload(&slots)).into(),
        q_out: q_out.array_mut(),
        k_pages: k_pages.array_mut(),
        v_pages: v_pages.array_mut(),
        rows,
        q_heads,
        kv_heads,
        head_dim,
    }
    .launch(&gpu.device)
    .unwrap();

    let (q_out, mut k_pages, mut v_pages) =
        (q_out.download(gpu), k_pages.download(gpu), v_pages.download(gpu));
    let poison = |values: &[f32]| values.iter().all(|value| value.is_nan());
    for row in 0..rows {
        let (slot, position) = (slots[row], positions[row]);
        let padding = !(0..(pages * page_size) as i32).contains(&slot)
            || !(0..POSITIONS as i32).contains(&position);
        for head in 0..heads {
            let of = |values: &[bf16], at: usize| -> Vec<f64> {
                values[at * head_dim..][..head_dim].iter().map(|value| value.to_f64()).collect()
            };
            let mut x = of(&qkv, row * heads + head);
            let is_v = head >= q_heads + kv_heads;
            if norm && !is_v {
                let weight = of(if head < q_heads { &q_weight } else { &k_weight }, 0);
                let mean = x.iter().map(|x| x * x).sum::<f64>() / head_dim as f64;
                let scale = 1.0 / (mean + 1e-6).sqrt();
                x.iter_mut().zip(weight).for_each(|(x, w)| *x *= scale * (more + w));
            }
            if !is_v && !padding {
                let (cos, sin) =
                    cos_sin[position as usize * head_dim..][..head_dim].split_at(head_dim / 2);
                for i in 0..head_dim / 2 {
                    let (lo, hi) = (x[i], x[i + head_dim / 2]);
                    let (cos, sin) = (f64::from(cos[i]), f64::from(sin[i]));
                    x[i] = lo * cos - hi * sin;
                    x[i + head_dim / 2] = hi * cos + lo * sin;
                }
            }
            let (written, at) = if head < q_heads {
                (&q_out[..], row * q_heads + head)
            } else {
                let kv_head = (head - q_heads) % kv_heads;
                let pages = if is_v { &v_pages } else { &k_pages };
                (&pages[..], slot.max(0) as usize * kv_heads + kv_head)
            };
            if padding && head < q_heads {
                assert!(poison(&written[at * head_dim..][..head_dim]), "{what}: padding row {row}");
            } else if !padding {
                // The nearest value of the type, or its neighbour where the two are about as near.
                let of = if head < q_heads { of_q } else { kv };
                for (got, x) in written[at * head_dim..][..head_dim].iter().zip(x) {
                    let (got, nearest) = (f64::from(*got), f64::from(round(of, x as f32)));
                    let limit = (nearest - x).abs() + 1e-4 * x.abs() + 2e-5;
                    let off = (got - x).abs();
                    assert!(off <= limit, "{what}: row {row}, head {head}: {got}, expected {x}");
                }
            }
        }
        // Taken off the books: what remains at the end must be untouched.
        if !padding {
            let at = slot as usize * kv_heads * head_dim;
            k_pages[at..][..kv_heads * head_dim].fill(f32::NAN);
            v_pages[at..][..kv_heads * head_dim].fill(f32::NAN);
        }
    }
    assert!(poison(&k_pages) && poison(&v_pages), "{what}: a slot of nobody's was written");
}
