//! Ops against loops that nobody could get wrong, on odd shapes, into poisoned buffers.

use std::sync::Arc;

use half::{bf16, f16};
use minisgl_sched::{Grown, Plan, Row, Want};
use pulp::Arch;

use super::attention::{Heads, View, attention};
use super::elementwise::{activate, add, head_norm, rms_norm, rope};
use super::kv::{KvElement, KvPages};
use super::linear::{Matrix, linear};
use super::{CpuOps, CpuSpec};
use crate::batch::Batch;
use crate::collective::Group;
use crate::config::{Activation, ModelConfig};
use crate::kv_groups::KvGroups;
use crate::ops::{Around, Closure, Linear, Norm, NormId, Ops, Scratch, Stream};
use crate::shard::Shard;
use crate::weights::HostTensor;

/// A 64-bit linear congruential generator (Knuth), good enough for numbers to compute with.
struct Random(u64);

impl Random {
    fn float(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.float()).collect()
    }
}

fn close(got: &[f32], expected: impl IntoIterator<Item = f64>, tolerance: f64, what: &str) {
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(*got) - expected).abs() / expected.abs().max(1.0);
        // A NaN left over from the poison fails too.
        assert!(error < tolerance, "{what}, element {i}: {got}, not {expected}");
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

#[test]
fn linear_is_a_matrix_product_whose_rows_do_not_know_each_other() {
    let mut random = Random(1);
    let shapes = [(1, 1), (3, 7), (4, 16), (5, 31), (66, 33), (31, 32), (9, 65), (130, 100)];
    for (outputs, inputs) in shapes {
        let bias = random.floats(outputs);
        for which in ["bf16", "f16", "f32", "mixed"] {
            let weights = random.floats(outputs * inputs);
            let half: Vec<_> = weights.iter().copied().map(bf16::from_f32).collect();
            let single: Vec<_> = weights.iter().copied().map(f16::from_f32).collect();
            let (parts, weights) = match which {
                "bf16" => {
                    let weights = half.iter().map(|value| value.to_f32()).collect();
                    (vec![HostTensor::Bf16(half)], weights)
                }
                "f16" => {
                    let weights = single.iter().map(|value| value.to_f32()).collect();
                    (vec![HostTensor::F16(single)], weights)
                }
                "f32" => (vec![HostTensor::F32(weights.clone())], weights),
                _ => {
                    let (first, rest) = weights.split_at(outputs / 2 * inputs);
                    let first = first.iter().copied().map(f16::from_f32).collect::<Vec<_>>();
                    let all = first.iter().map(|value| value.to_f32()).chain(rest.iter().copied());
                    let all = all.collect::<Vec<f32>>();
                    (vec![HostTensor::F16(first), HostTensor::F32(rest.to_vec())], all)
                }
            };
            let matrix = Matrix::new(parts, inputs, Arch::new());
            assert_eq!((matrix.outputs(), matrix.inputs()), (outputs, inputs));
            for n in 0..outputs {
                let mut row = vec![f32::NAN; inputs];
                matrix.row(Arch::new(), n, &mut row);
                assert_eq!(row, weights[n * inputs..][..inputs]);
            }
            let x = random.floats(23 * inputs);
            let mut alone = vec![f32::NAN; 23 * outputs];
            let mut scratch = Vec::new();
            for (x, out) in x.chunks_exact(inputs).zip(alone.chunks_exact_mut(outputs)) {
                linear(Arch::new(), &matrix, Some(&bias), x, out, &mut scratch);
            }
            let expected = x.chunks_exact(inputs).flat_map(|x| {
                let weights = weights.chunks_exact(inputs).zip(&bias);
                weights.map(move |(w, bias)| dot(w, x) + f64::from(*bias))
            });
            let what = format!("{which} [{outputs}, {inputs}]");
            close(&alone, expected.collect::<Vec<_>>(), 1e-5, &what);
            for rows in [0, 2, 3, 5, 8, 9, 23] {
                let mut out = vec![f32::NAN; rows * outputs];
                scratch.fill(f32::NAN);
                let x = &x[..rows * inputs];
                linear(Arch::new(), &matrix, Some(&bias), x, &mut out, &mut scratch);
                assert_eq!(out, alone[..rows * outputs], "{what}, {rows} rows");
            }
        }
    }
}

#[test]
fn half_precision_is_widened_exactly() {
    // Every finite half, subnormals and both zeros included.
    let bits = (0..=u16::MAX).filter(|bits| bits & 0x7c00 != 0x7c00);
    let values: Vec<f16> = bits.map(f16::from_bits).collect();
    let matrix = Matrix::new(vec![HostTensor::F16(values.clone())], values.len(), Arch::new());
    let mut row = vec![f32::NAN; values.len()];
    matrix.row(Arch::new(), 0, &mut row);
    for (got, expected) in row.iter().zip(values) {
        assert_eq!(got.to_bits(), expected.to_f32().to_bits(), "{expected}");
    }
}

#[test]
fn norms() {
    let mut random = Random(2);
    for (rows, width) in [(1, 1), (1, 44), (3, 17), (40, 64)] {
        let x = random.floats(rows * width);
        let delta = random.floats(rows * width);
        let weight = random.floats(width);
        let norm = |x: &[f32]| {
            let scale = 1.0 / (dot(x, x) / x.len() as f64 + 1e-5).sqrt();
            let scaled = x.iter().zip(&weight);
            scaled.map(|(x, w)| f64::from(*x) * scale * f64::from(*w)).collect::<Vec<_>>()
        };
        let mut out = vec![f32::NAN; rows * width];
        rms_norm(Arch::new(), &x, &weight, 1e-5, &mut out);
        close(&out, x.chunks_exact(width).flat_map(norm), 1e-5, "rms_norm");

        let mut residual = x.clone();
        let sum: Vec<f32> = x.iter().zip(&delta).map(|(x, delta)| x + delta).collect();
        add(&delta, &mut residual);
        assert_eq!(residual, sum);

        // Two heads in the middle of rows that are five heads wide.
        let rows_of_heads = random.floats(rows * 5 * width);
        let mut normed = rows_of_heads.clone();
        head_norm(Arch::new(), &mut normed, 5 * width, width, 2, &weight, 1e-5);
        for (i, head) in rows_of_heads.chunks_exact(width).enumerate() {
            let got = &normed[i * width..][..width];
            if (1..3).contains(&(i % 5)) {
                close(got, norm(head), 1e-5, "head_norm");
            } else {
                assert_eq!(got, head, "other heads are left alone");
            }
        }
    }
}

#[test]
fn rotation_turns_pairs_and_leaves_values() {
    let mut random = Random(3);
    let (rows, heads, dim) = (19, 3, 10);
    let stride = (heads + 2) * dim;
    let x = random.floats(rows * stride);
    let angles = random.floats(rows * dim / 2);
    let (sin, cos): (Vec<f32>, Vec<f32>) = angles.iter().map(|angle| angle.sin_cos()).unzip();
    let mut out = x.clone();
    rope(&mut out, stride, heads, dim, &cos, &sin);
    for row in 0..rows {
        for column in 0..stride {
            let at = row * stride + column;
            let (head, i) = (column / dim, column % dim);
            if head >= heads {
                assert_eq!(out[at], x[at]);
                continue;
            }
            let pair = i % (dim / 2);
            let (low, high) =
                (row * stride + head * dim + pair, row * stride + head * dim + pair + dim / 2);
            let (a, b) = (f64::from(x[low]), f64::from(x[high]));
            let (sin, cos) = f64::from(angles[row * dim / 2 + pair]).sin_cos();
            let expected = if i < dim / 2 { a * cos - b * sin } else { b * cos + a * sin };
            close(&out[at..=at], [expected], 1e-6, "rope");
        }
    }
}

#[test]
fn activation() {
    let mut random = Random(4);
    for (rows, width) in [(1, 1), (5, 37), (33, 16)] {
        let gate_up: Vec<f32> = random.floats(rows * 2 * width).iter().map(|x| x * 20.0).collect();
        type Exact = fn(f64, f64) -> f64;
        let all: [(Activation, Exact); 3] = [
            (Activation::Silu, |gate, up| gate / (1.0 + (-gate).exp()) * up),
            (Activation::GeluTanh, |gate, up| {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (gate + 0.044715 * gate.powi(3));
                0.5 * gate * (1.0 + inner.tanh()) * up
            }),
            (Activation::ClampedSwish, |gate, up| {
                let (gate, up) = (gate.min(7.0), up.clamp(-7.0, 7.0));
                gate / (1.0 + (-1.702 * gate).exp()) * (up + 1.0)
            }),
        ];
        for (activation, exact) in all {
            let mut out = vec![f32::NAN; rows * width];
            activate(Arch::new(), activation, &gate_up, &mut out, width);
            let expected = gate_up.chunks_exact(2 * width).flat_map(|row| {
                let (gate, up) = row.split_at(width);
                gate.iter().zip(up).map(|(gate, up)| exact(f64::from(*gate), f64::from(*up)))
            });
            close(&out, expected, 1e-5, &format!("{activation:?}"));
        }
    }
}

/// Ragged batches over scattered pages whose unwritten slots are poisoned.
#[test]
fn attention_sees_its_own_past_and_nothing_else() {
    for element in [KvElement::F32, KvElement::Bf16] {
        for (kv_heads, group, head_dim) in
            [(1, 1, 8), (3, 3, 64), (2, 5, 24), (1, 8, 16), (2, 1, 10)]
        {
            for page_size in [1, 4, 16] {
                let heads = Heads { heads: kv_heads * group, kv_heads, head_dim };
                attention_case(heads, element, page_size, None, false);
            }
        }
    }
    let heads = Heads { heads: 6, kv_heads: 2, head_dim: 24 };
    for (window, with_sinks) in [(1, false), (5, true), (64, false), (70, true), (1000, true)] {
        attention_case(heads, KvElement::F32, 4, Some(window), with_sinks);
    }
    attention_case(heads, KvElement::Bf16, 16, None, true);
}

fn attention_case(
    heads: Heads,
    element: KvElement,
    page_size: usize,
    window: Option<usize>,
    with_sinks: bool,
) {
    let Heads { heads: query_heads, kv_heads, head_dim } = heads;
    let stride = (query_heads + 2 * kv_heads) * head_dim;
    let mut random = Random(5);
    // Cached tokens and new tokens of each row.
    let shapes =
        [(0, 1), (0, 5), (page_size - 1, 1), (page_size, 2), (63, 1), (64, 1), (130, 33), (3, 17)];
    let pages_of = |(start, len): (usize, usize)| (start + len).div_ceil(page_size);
    let pages: usize = shapes.iter().copied().map(pages_of).sum();
    // Page 0 belongs to nobody; the others are handed out from the end.
    let mut next = pages as u32;
    let mut tables = Vec::new();
    for shape in shapes {
        let count = pages_of(shape) as u32;
        tables.push((0..count).map(|i| next - i).collect::<Vec<u32>>());
        next -= count;
    }
    let mut kv =
        KvPages::new(element, KvGroups::one(2), pages + 1, kv_heads, page_size, head_dim).unwrap();
    let every: Vec<u32> = (0..=pages as u32).collect();
    let poison = vec![f32::NAN; (pages + 1) * page_size * stride];
    for layer in 0..2 {
        let all = batch(&[(0, (pages + 1) * page_size)], std::slice::from_ref(&every), page_size);
        kv.write(&all, layer, &poison, stride, query_heads * head_dim);
    }
    // The past goes in first, in another batch; then the present.
    let mut history: Vec<Vec<f32>> =
        shapes.iter().map(|(start, _)| random.floats(start * stride)).collect();
    // What is before every window that is left is not read, whatever is there.
    for (history, (start, _)) in history.iter_mut().zip(&shapes) {
        let unseen = window.map_or(0, |window| (start + 1).saturating_sub(window));
        history[..unseen * stride].fill(f32::NAN);
    }
    let sinks = with_sinks.then(|| random.floats(query_heads));
    let past: Vec<(usize, usize)> = shapes.iter().map(|(start, _)| (0, *start)).collect();
    kv.write(
        &batch(&past, &tables, page_size),
        1,
        &history.concat(),
        stride,
        query_heads * head_dim,
    );
    let present: Vec<Vec<f32>> =
        shapes.iter().map(|(_, len)| random.floats(len * stride)).collect();
    let now = batch(&shapes, &tables, page_size);
    kv.write(&now, 1, &present.concat(), stride, query_heads * head_dim);
    let tokens: usize = shapes.iter().map(|(_, len)| len).sum();
    let mut out = vec![f32::NAN; tokens * query_heads * head_dim];
    let scale = 0.7 / (head_dim as f32).sqrt();
    let view = View { scale, window, sinks: sinks.as_deref() };
    attention(Arch::new(), heads, view, (&kv, 1), &now, &present.concat(), &mut out);

    let tolerance = if element == KvElement::F32 { 1e-5 } else { 1e-2 };
    let mut results = out.chunks_exact(head_dim);
    for ((row, (start, len)), present) in shapes.iter().enumerate().zip(&present) {
        history[row].extend(present);
        let sequence = &history[row];
        for t in *start..start + len {
            for head in 0..query_heads {
                let part = |position: usize, head: usize| {
                    &sequence[position * stride + head * head_dim..][..head_dim]
                };
                let kv_head = query_heads + head / (query_heads / kv_heads);
                let first = window.map_or(0, |window| (t + 1).saturating_sub(window));
                let weight = |p| (dot(part(t, head), part(p, kv_head)) * f64::from(scale)).exp();
                let weights: Vec<f64> = (first..=t).map(weight).collect();
                let sink = sinks.as_ref().map_or(0.0, |sinks| f64::from(sinks[head]).exp());
                let sum: f64 = weights.iter().sum::<f64>() + sink;
                let expected = (0..head_dim).map(|i| {
                    let values = (first..=t).map(|p| f64::from(part(p, kv_head + kv_heads)[i]));
                    values.zip(&weights).map(|(value, weight)| value * weight).sum::<f64>() / sum
                });
                let what = format!("row {row} of {start} + {len}, token {t}, head {head}");
                close(results.next().unwrap(), expected, tolerance, &what);
            }
        }
    }
}

/// A batch of rows (first position, tokens) with these page tables; rows without tokens are left out.
fn batch(shapes: &[(usize, usize)], tables: &[Vec<u32>], page_size: usize) -> Batch {
    let mut plan = Plan::default();
    for ((start, len), table) in shapes.iter().zip(tables) {
        if *len == 0 {
            continue;
        }
        let slot = plan.rows.len() as u32;
        plan.grown.push(Grown { slot, group: 0, at: 0, len: table.len() as u32 });
        plan.rows.push(Row {
            slot,
            start: *start as u32,
            len: *len as u32,
            tokens_at: plan.tokens.len() as u32,
            want: Want::Last,
        });
        plan.tokens.extend(std::iter::repeat_n(0, *len));
        plan.pages.extend(table);
    }
    let mut batch = Batch::default();
    batch.prepare(Arc::new(plan), 1, page_size);
    batch
}

#[test]
fn the_largest_step_finds_its_buffers() {
    let config = ModelConfig::small(1, 20);
    const CHUNK: usize = 50;
    for ranks in [1, 2] {
        let group = Group::new(ranks);
        std::thread::scope(|scope| {
            for rank in 0..ranks {
                let (member, config) = (group.member(rank), &config);
                scope.spawn(move || {
                    let shard = Shard::new(config, ranks, rank).unwrap();
                    let spec = CpuSpec {
                        config,
                        shard: &shard,
                        member,
                        threads: 1,
                        slots: 40,
                        penalised: 40,
                        chunk_tokens: CHUNK,
                        logit_rows: 40,
                        page_size: 16,
                        groups: KvGroups::one(config.layers.len()),
                        kv_element: KvElement::F32,
                    };
                    let mut ops = CpuOps::new(spec).unwrap();
                    let before = rooms(&ops);
                    largest_step(&mut ops, config, &shard);
                    assert_eq!(rooms(&ops), before, "rank {rank} of {ranks}");
                });
            }
        });
    }
}

/// Elements that there is room for: buffers', and mailboxes'.
fn rooms(ops: &CpuOps) -> Vec<usize> {
    let CpuOps { ropes, scratch, delta, logits, logits_part, last_sampled, member, .. } = ops;
    let angles = ropes.iter().flat_map(|rope| [rope.cos.capacity(), rope.sin.capacity()]);
    let buffers = [scratch, delta, logits, logits_part].map(Vec::capacity);
    let others = buffers.into_iter().chain([last_sampled.capacity()]).chain(member.rooms());
    angles.chain(others).collect()
}

/// All tokens of a step through every op that has a buffer: 40 rows, the last of 11 tokens, all of them sampled.
fn largest_step(ops: &mut CpuOps, config: &ModelConfig, shard: &Shard) {
    let mut random = Random(9);
    let shapes: Vec<(usize, usize)> =
        (0..40).map(|row| (0, if row == 39 { 11 } else { 1 })).collect();
    let tables: Vec<Vec<u32>> = (0..40).map(|page| vec![page]).collect();
    let batch = batch(&shapes, &tables, 16);
    let (tokens, hidden) = (batch.tokens().len(), config.hidden_size);
    assert_eq!(tokens, 50);
    let mut product = |ops: &CpuOps, outputs: usize, inputs: usize| Linear::<CpuOps> {
        weight: Matrix::new(
            vec![HostTensor::F32(random.floats(outputs * inputs))],
            inputs,
            ops.arch,
        ),
        bias: None,
    };
    let heads = shard.heads.len() * config.head_dim;
    let qkv_width = heads + 2 * shard.kv_heads.len() * config.head_dim;
    let width = shard.dense_width(config);
    let table = product(ops, shard.vocab.len(), hidden);
    let [qkv, gate_up] = [qkv_width, 2 * width].map(|outputs| product(ops, outputs, hidden));
    let down = product(ops, hidden, width);
    let norm = Norm { id: NormId(0), weight: vec![1.0; hidden] };
    let buffer = |ops: &CpuOps, width: usize| ops.buffer(tokens, width).unwrap();
    let mut stream = Stream::new(buffer(ops, hidden), buffer(ops, hidden));
    let (mut out, mut last) = (buffer(ops, qkv_width), buffer(ops, hidden));
    let mut gated = buffer(ops, width);
    let mut scratch = Scratch { gate_up: buffer(ops, 2 * width) };
    let pass = |ops: &mut CpuOps| {
        let norms = || Around { after: None, next: None };
        ops.embed(&batch, &table.weight, 1.0, &mut stream)?;
        ops.norm_linear(tokens, &mut stream, &norm, &qkv, &mut out)?;
        ops.norm_gated(tokens, &mut stream, &norm, [&gate_up, &down], &mut scratch, &mut gated)?;
        ops.linear_add(tokens, &down, &gated, norms(), &mut stream)?;
        ops.norm_wanted(&batch, &stream, &norm, &mut last)?;
        ops.sample(&batch, &table.weight, &last)
    };
    let sampled = ops.step(&batch, &mut Closure(pass)).unwrap().expect("it waits for nothing");
    assert_eq!(sampled.wait().unwrap().len(), 40);
}
