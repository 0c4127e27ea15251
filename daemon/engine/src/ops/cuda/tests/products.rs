//! Products and what is fused around them.

use super::*;

/// With a bias and without, and with what is fused around it.
#[test]
fn products_are_the_cpus() {
    let Some((mut cpu, mut cuda)) = pair(&wide(), 16) else { return };
    let mut random = Random(2);
    for (rows, n, k) in [
        (1, 16, 8),
        (2, 208, 328),
        (9, 16, 8),
        (16, 1024, 328),
        (3, 48, 200),
        (8, 336, 64),
        (17, 336, 64),
        (31, 400, 1000),
        (300, 1008, 200),
        (CHUNK, 64, 328),
    ] {
        let x = random.floats(rows * k);
        let (weight, bias, norm) = (random.floats(n * k), random.floats(n), random.floats(k));
        fn run<O: Visible>(ops: &mut O, rows: usize, given: [&[f32]; 4]) -> [Vec<f32>; 3] {
            let [x, weight, bias, norm] = given;
            let (n, k) = (bias.len(), weight.len() / bias.len());
            let matrix = || ops.weights(weight, k);
            let plain = Linear { weight: matrix(), bias: None };
            let bias = Some(ops.weight(bias));
            let biased = Linear { weight: matrix(), bias };
            let norm = Norm { id: NormId(0), weight: ops.weight(norm) };
            let stream = |ops: &O| Stream::new(ops.fill(k, x), ops.poisoned(rows, k));
            let mut scratch = Scratch { gate_up: ops.poisoned(rows, n) };
            let mut out = [(); 2].map(|()| ops.poisoned(rows, n));
            let [normed, with_norm] = &mut out;
            let mut fresh = stream(ops);
            ops.norm_linear(rows, &mut fresh, &norm, &plain, normed).unwrap();
            // The norm may be there already, or not.
            ops.norm_linear(rows, &mut fresh, &norm, &biased, with_norm).unwrap();
            let mut gated = ops.poisoned(rows, n / 2);
            let mut fresh = stream(ops);
            ops.norm_gated(rows, &mut fresh, &norm, [&plain; 2], &mut scratch, &mut gated).unwrap();
            let [normed, with_norm] = out;
            [normed, with_norm, gated].map(|buffer| ops.values(&buffer, rows))
        }
        let given = [&x[..], &weight, &bias, &norm];
        let (expected, got) = (run(&mut cpu, rows, given), run(&mut cuda, rows, given));
        let names = ["of a norm", "of a norm, with bias", "gated"];
        for ((name, got), expected) in names.iter().zip(&got).zip(&expected) {
            // What is gated was rounded twice on its way.
            let ulps = if *name == "gated" { 10.0 } else { 3.5 };
            assert_close(&format!("{name}, {rows} x {k} by {n}"), got, expected, ulps);
        }
    }
}

/// Every activation, between few rows and many; and norms whose weights are stored less 1 before it.
#[test]
fn gated_blocks_are_the_cpus() {
    let kinds = [
        (Activation::Silu, false),
        (Activation::GeluTanh, true),
        (Activation::ClampedSwish, false),
    ];
    for (activation, plus_one) in kinds {
        let mut config = config(4, 2, 64);
        config.activation = activation;
        config.norms.plus_one = plus_one;
        let Some((mut cpu, mut cuda)) = pair(&config, 16) else { return };
        let mut random = Random(8);
        let (k, width) = (200, 328);
        for rows in [1, 2, 9, 16, 17, 300] {
            let x: Vec<f32> = random.floats(rows * k).iter().map(|x| x * 4.0).collect();
            let (weight, norm) = (random.floats(2 * width * k), random.floats(k));
            fn run<O: Visible>(
                ops: &mut O,
                (rows, plus_one): (usize, bool),
                [x, weight, norm]: [&[f32]; 3],
            ) -> Vec<f32> {
                let (k, width) = (norm.len(), weight.len() / norm.len() / 2);
                let linear = Linear { weight: ops.weights(weight, k), bias: None };
                let norm = Norm { id: NormId(0), weight: ops.norm_weight(norm, plus_one) };
                let mut stream = Stream::new(ops.fill(k, x), ops.poisoned(rows, k));
                let mut scratch = Scratch { gate_up: ops.poisoned(rows, 2 * width) };
                let mut out = ops.poisoned(rows, width);
                ops.norm_gated(rows, &mut stream, &norm, [&linear; 2], &mut scratch, &mut out)
                    .unwrap();
                ops.values(&out, rows)
            }
            let given = [&x[..], &weight, &norm];
            let expected = run(&mut cpu, (rows, plus_one), given);
            let got = run(&mut cuda, (rows, plus_one), given);
            assert_close(&format!("{activation:?}, {rows} rows"), &got, &expected, 10.0);
        }
    }
}

/// With a bias on what is added, with a norm of it, and with both; and the norm that the next block begins with.
#[test]
fn blocks_end_as_the_cpus() {
    for (bias, after, plus_one) in
        [(false, false, false), (true, false, false), (false, true, true), (true, true, false)]
    {
        let mut config = config(4, 2, 64);
        config.attention_bias.output = bias;
        config.norms = NormSpec { plus_one, after_blocks: after };
        let Some((mut cpu, mut cuda)) = pair(&config, 16) else { return };
        let mut random = Random(9);
        let n = config.hidden_size;
        for (rows, k) in
            [(1, 328), (2, 8), (9, 64), (16, 1000), (17, 328), (300, 1000), (CHUNK, 64)]
        {
            let (x, residual) = (random.floats(rows * k), random.floats(rows * n));
            let (weight, biases) = (random.floats(n * k), random.floats(n));
            let (own, next, then) = (random.floats(n), random.floats(n), random.floats(64 * n));
            struct Given<'a>(usize, [bool; 3], [&'a [f32]; 7]);
            fn run<O: Visible>(ops: &mut O, given: &Given<'_>) -> [Vec<f32>; 2] {
                let &Given(rows, [bias, after, plus_one], arrays) = given;
                let [x, weight, biases, residual, own, next, then] = arrays;
                let (n, k) = (biases.len(), weight.len() / biases.len());
                let bias = bias.then(|| ops.weight(biases));
                let linear = Linear { weight: ops.weights(weight, k), bias };
                let norm = |id, weight| Norm { id: NormId(id), weight };
                let own = norm(0, ops.norm_weight(own, plus_one));
                let next = norm(1, ops.norm_weight(next, plus_one));
                let mut stream = Stream::new(ops.fill(n, residual), ops.poisoned(rows, n));
                let norms = Around { after: after.then_some(&own), next: Some(&next) };
                ops.linear_add(rows, &linear, &ops.fill(k, x), norms, &mut stream).unwrap();
                let then = Linear { weight: ops.weights(then, n), bias: None };
                let mut out = ops.poisoned(rows, 64);
                ops.norm_linear(rows, &mut stream, &next, &then, &mut out).unwrap();
                [ops.values(&stream.residual, rows), ops.values(&out, rows)]
            }
            let arrays = [&x[..], &weight, &biases, &residual, &own, &next, &then];
            let given = Given(rows, [bias, after, plus_one], arrays);
            let (expected, got) = (run(&mut cpu, &given), run(&mut cuda, &given));
            let what = format!("{rows} rows of {k}, bias {bias}, after {after}, less 1 {plus_one}");
            assert_close(&format!("{what}: sum"), &got[0], &expected[0], 4.0);
            assert_close(&format!("{what}: next block"), &got[1], &expected[1], 8.0);
        }
    }
}
