//! Attention, and the pages that it writes.

use super::*;

/// Steps over a few requests: prompts in chunks, decode rows, and both mixed; layers that see all, that have windows,
/// rotations of their own, and sinks.
#[test]
fn attention_and_pages_are_the_cpus() {
    for (heads, kv_heads, head_dim, page_size, window) in [
        (4, 2, 64, 16, 1),
        (5, 1, 128, 1, 40),
        (16, 8, 128, 16, 128),
        (3, 3, 64, 7, 17),
        (4, 1, 256, 64, 300),
        (64, 8, 64, 16, 128),
    ] {
        let mut config = config(heads, kv_heads, head_dim);
        let layer = config.layers[0].clone();
        config.layers = vec![layer; 3];
        config.layers[1].attention = AttentionSpec { window: Some(window), rope: 1 };
        let scaling = RopeScaling::Linear { factor: 8.0 };
        config.ropes.push(RopeConfig { still: 0, theta: 150_000.0, scaling });
        config.norms.plus_one = heads == 5;
        let Some((mut cpu, mut cuda)) = pair(&config, page_size) else { return };
        let specs: Vec<AttentionSpec> =
            config.layers.iter().map(|layer| layer.attention.clone()).collect();
        let mut random = Random(3);
        let pages = 4000 / page_size + 8;
        let mut free: Vec<u32> = (0..pages as u32).collect();
        for at in (1..free.len()).rev() {
            free.swap(at, random.below(at + 1));
        }
        let table =
            |len: usize, free: &mut Vec<u32>| free.split_off(free.len() - len.div_ceil(page_size));
        let lens = [1 + page_size, 3 * page_size + 1, 1600, 90, 2 * page_size];
        let tables: Vec<_> = lens.iter().map(|&len| table(len, &mut free)).collect();
        cpu.reserve_kv(pages).unwrap();
        cuda.reserve_kv(pages).unwrap();
        cuda.commit_kv(pages).unwrap();
        let steps: [Vec<Row>; 4] = [
            vec![row(0, 0, page_size), row(1, 0, 1), row(2, 0, 600)],
            vec![row(2, 600, 600), row(1, 1, 2 * page_size.min(40)), row(0, page_size, 1)],
            vec![row(2, 1200, 399), row(4, 0, page_size - 1 + usize::from(page_size == 1))],
            vec![row(2, 1599, 1), row(3, 0, 89)],
        ];
        let norms = [random.floats(head_dim), random.floats(head_dim)];
        let sinks: Vec<f32> = random.floats(heads).iter().map(|sink| 3.0 * sink).collect();
        let width = (heads + 2 * kv_heads) * head_dim;
        for rows in &steps {
            let batch = batch(&tables, rows, page_size, &mut random);
            let tokens = batch.tokens().len();
            let qkv = random.floats(tokens * width);
            for (layer, spec) in specs.iter().enumerate() {
                let case = Case {
                    batch: &batch,
                    layer,
                    spec,
                    norms: (layer != 2).then_some(&norms),
                    plus_one: config.norms.plus_one,
                    sinks: (layer > 0).then_some(&sinks),
                    qkv: &qkv,
                };
                let out_width = heads * head_dim;
                let expected = attend(&mut cpu, &case, out_width);
                let got = attend(&mut cuda, &case, out_width);
                let what = format!(
                    "{heads}/{kv_heads} heads of {head_dim}, pages of {page_size}, {spec:?}, {rows:?}"
                );
                assert_close(&what, &got, &expected, 8.0);
            }
        }
    }
}

struct Case<'a> {
    batch: &'a Batch,
    layer: usize,
    spec: &'a AttentionSpec,
    norms: Option<&'a [Vec<f32>; 2]>,
    plus_one: bool,
    sinks: Option<&'a Vec<f32>>,
    qkv: &'a [f32],
}

fn attend<O: Visible>(ops: &mut O, case: &Case<'_>, out_width: usize) -> Vec<f32> {
    let (batch, tokens) = (case.batch, case.batch.tokens().len());
    let norms = case.norms.map(|norms| {
        let [query, key] = norms.each_ref().map(|norm| ops.norm_weight(norm, case.plus_one));
        HeadNorms { query, key }
    });
    let mut qkv = ops.fill(case.qkv.len() / tokens, case.qkv);
    let mut out = ops.poisoned(tokens, out_width);
    let sinks = case.sinks.map(|sinks| ops.weight(sinks));
    let attention = LayerAttention { layer: case.layer, spec: case.spec.clone(), norms, sinks };
    let pass = |ops: &mut O| ops.attention(batch, &attention, &mut qkv, &mut out, None);
    ops.step(batch, &mut Closure(pass)).unwrap();
    ops.values(&out, tokens)
}
