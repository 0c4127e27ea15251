//! Blocks of experts of e4m3 against the CPU's, for each kind of scales, and for ranks.

use minisgl_proto::LoadOptions;

use super::experts::{Block, HIDDEN, SHARE, model, run_with, spec};
use super::fp8::{BLOCK, Case, Piece, folder, parts};
use super::*;
use crate::config::{Activation, ExpertsSpec, Router};
use crate::scheme::Scales;
use crate::weights;

/// Up to so many rows activations are not rounded.
const FEW: usize = 8;
/// Where they are, each is off by a sixteenth at most, before both products.
const SHARE_ROUNDED: f64 = 6e-2;

/// The parts of gate and up, and of down, that a rank has of experts that are `whole` wide.
fn case(scales: Scales, spec: &ExpertsSpec, whole: usize, first: usize, down: bool) -> Case {
    let mine = first..first + spec.width;
    let parts: Vec<([usize; 2], Piece)> = match down {
        false => vec![([whole, HIDDEN], Piece::Rows(mine)); 2 * spec.count],
        true => vec![([HIDDEN, whole], Piece::Cols(mine)); spec.count],
    };
    Case { scales, parts: Box::leak(parts.into()) }
}

#[test]
fn blocks_of_experts_of_e4m3_are_the_cpus() {
    let router = Router::Softmax { renormalised: true };
    for (name, scales, width, whole, first, bias) in [
        ("block", BLOCK, 272, 272, 0, false),
        ("block, a rank's part", BLOCK, 256, 640, 128, true),
        ("block, no wider than one", BLOCK, 40, 40, 0, false),
        ("channel", Scales::Channel, 120, 120, 0, true),
        ("channel, a rank's part", Scales::Channel, 72, 216, 72, false),
        ("tensor", Scales::Tensor, 136, 136, 0, false),
    ] {
        let spec = ExpertsSpec { bias, ..spec(12, 3, width, router) };
        let mut config = model(&spec, Activation::Silu);
        config = config.quantised_to_fp8().unwrap();
        let Some((mut cpu, mut cuda)) = pair(&config, 16) else { return };
        let mut random = Random(37);
        let block = Block::new(spec.clone(), &mut random);
        let cases = [false, true].map(|down| case(scales, &spec, whole, first, down));
        let folders = cases.each_ref().map(|case| folder(case, &mut random));
        let sources = folders.each_ref().map(|(dir, tensors)| {
            weights::open(dir.path(), tensors, &LoadOptions::default()).unwrap()
        });
        let [gate_up, down] = [0, 1].map(|at| parts(&cases[at], &*sources[at]));
        let bytes = cuda.weight_bytes();
        let on_cuda = block.with(&cuda, [&gate_up, &down]);
        let on_cpu = block.with(&cpu, [&gate_up, &down]);
        let held = (cuda.weight_bytes() - bytes) as usize;
        // Columns up to whole blocks, scales, router and biases.
        let codes =
            12 * width * (2 * 256 + HIDDEN.max(HIDDEN * width.next_multiple_of(128) / width));
        assert!(
            held >= 12 * 3 * width * HIDDEN && held <= codes * 9 / 8 + 100_000,
            "{name}: {held}"
        );
        for rows in [1, 3, 8, 31, 65, 200, CHUNK] {
            let residual = random.floats(rows * HIDDEN);
            let eps = f64::from(config.rms_norm_eps);
            let clear: Vec<usize> = (0..rows)
                .filter(|&row| block.is_clear(&residual[row * HIDDEN..][..HIDDEN], eps))
                .collect();
            assert!(rows < 31 || clear.len() * 10 >= rows * 6, "{name}: {} of {rows}", clear.len());
            let expected = run_with(&mut cpu, &block, &on_cpu, &residual);
            let got = run_with(&mut cuda, &block, &on_cuda, &residual);
            for (got, expected) in got.iter().zip(&expected) {
                let of = |all: &[f32]| -> Vec<f32> {
                    let row = |&row: &usize| all[row * HIDDEN..][..HIDDEN].to_vec();
                    clear.iter().flat_map(row).collect()
                };
                assert!(got.iter().all(|x| x.is_finite()), "{name}, {rows} rows");
                if clear.is_empty() {
                    continue;
                }
                let bound = if rows <= FEW { (10.0, SHARE) } else { (64.0, SHARE_ROUNDED) };
                assert_within(bound, &format!("{name}, {rows} rows"), &of(got), &of(expected));
            }
        }
    }
}
