mod coded;
mod refusals;

use std::collections::BTreeMap;
use std::fs;

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tempfile::TempDir;

use super::*;

/// The tensors of a model of two layers, with a vocabulary of 6 and a residual stream 4 wide.
fn tiny(tie_word_embeddings: bool) -> Vec<TensorSpec> {
    sized(tie_word_embeddings, 6, 4)
}

fn sized(tie_word_embeddings: bool, vocab: usize, hidden: usize) -> Vec<TensorSpec> {
    let mut all = Vec::new();
    let mut add = |name: String, shape: &[usize]| {
        all.push(TensorSpec::plain(name, shape));
    };
    add("model.embed_tokens.weight".into(), &[vocab, hidden]);
    for layer in 0..2 {
        let name = |name: &str| format!("model.layers.{layer}.{name}");
        add(name("input_layernorm.weight"), &[hidden]);
        for (which, rows) in [("q", 4), ("k", 2), ("v", 2)] {
            add(name(&format!("self_attn.{which}_proj.weight")), &[rows, hidden]);
            add(name(&format!("self_attn.{which}_proj.bias")), &[rows]);
        }
        add(name("self_attn.o_proj.weight"), &[hidden, 4]);
        add(name("post_attention_layernorm.weight"), &[hidden]);
        add(name("mlp.gate_proj.weight"), &[10, hidden]);
        add(name("mlp.up_proj.weight"), &[10, hidden]);
        add(name("mlp.down_proj.weight"), &[hidden, 10]);
    }
    add("model.norm.weight".into(), &[hidden]);
    if !tie_word_embeddings {
        add("lm_head.weight".into(), &[vocab, hidden]);
    }
    all
}

fn parameters(tensors: &[TensorSpec]) -> u64 {
    tensors.iter().map(TensorSpec::elements).sum()
}

/// One tensor to be written: type, shape, bytes.
type Tensor = (Dtype, Vec<usize>, Vec<u8>);
type Tensors = BTreeMap<String, Tensor>;

/// Element `i` of the tensor at `rank` in the model; a small integer, exact in every type.
fn value(rank: usize, i: usize) -> f32 {
    ((rank * 31 + i * 7) % 255) as f32 - 127.0
}

fn tensor(dtype: Dtype, shape: &[usize], value: impl Fn(usize) -> f32) -> Tensor {
    let values = (0..shape.iter().product()).map(value);
    let bytes: Vec<u8> = match dtype {
        Dtype::BF16 => values.flat_map(|v| bf16::from_f32(v).to_le_bytes()).collect(),
        Dtype::F16 => values.flat_map(|v| f16::from_f32(v).to_le_bytes()).collect(),
        Dtype::F32 => values.flat_map(f32::to_le_bytes).collect(),
        Dtype::U8 => values.map(|v| v as u8).collect(),
        other => panic!("{other:?} is not written here"),
    };
    (dtype, shape.to_vec(), bytes)
}

fn model(config: &[TensorSpec], dtype: Dtype) -> Tensors {
    let ranked = config.iter().cloned().enumerate();
    let one = |(rank, TensorSpec { name, shape, .. }): (usize, TensorSpec)| {
        (name, tensor(dtype, &shape, |i| value(rank, i)))
    };
    ranked.map(one).collect()
}

fn bytes_of(tensors: &Tensors) -> Vec<u8> {
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

fn folder(files: &[(&str, Vec<u8>)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

fn single(tensors: &Tensors) -> TempDir {
    folder(&[("model.safetensors", bytes_of(tensors))])
}

fn index(places: &[(&str, &str)]) -> Vec<u8> {
    let map: BTreeMap<_, _> = places.iter().copied().collect();
    serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string().into_bytes()
}

fn sharded(shards: &[(&str, Tensors)]) -> TempDir {
    let places: Vec<_> = shards
        .iter()
        .flat_map(|(shard, tensors)| tensors.keys().map(|name| (name.as_str(), *shard)))
        .collect();
    let mut files = vec![("model.safetensors.index.json", index(&places))];
    files.extend(shards.iter().map(|(shard, tensors)| (*shard, bytes_of(tensors))));
    folder(&files)
}

fn opened(dir: &TempDir, config: &[TensorSpec]) -> Result<Box<dyn WeightSource>, String> {
    open(dir.path(), config, &LoadOptions::default())
        .map_err(|error| error.to_string().replace(dir.path().to_str().unwrap(), "DIR"))
}

/// Every tensor and every kind of part, against values computed here.
fn reads_back(source: &dyn WeightSource, config: &[TensorSpec]) {
    for (rank, TensorSpec { name, shape, .. }) in config.iter().cloned().enumerate() {
        let (rows, cols) = (shape[0], shape.get(1).copied().unwrap_or(1));
        let load = |part: Part| source.part(&name, &shape, &part).unwrap().load().into_f32();
        let expect = |rows: std::ops::Range<usize>, cols_kept: std::ops::Range<usize>| {
            rows.flat_map(|row| cols_kept.clone().map(move |col| value(rank, row * cols + col)))
                .collect::<Vec<_>>()
        };
        assert_eq!(load(Part::All), expect(0..rows, 0..cols), "{name}");
        for start in 0..=rows {
            for end in start..=rows {
                assert_eq!(load(Part::Rows(start..end)), expect(start..end, 0..cols), "{name}");
            }
        }
        if shape.len() == 2 {
            for start in 0..=cols {
                for end in start..=cols {
                    assert_eq!(load(Part::Cols(start..end)), expect(0..rows, start..end), "{name}");
                }
            }
        }
    }
}

#[test]
fn every_part_in_every_type() {
    for (dtype, name, bytes) in
        [(Dtype::BF16, "bf16", 2), (Dtype::F16, "fp16", 2), (Dtype::F32, "fp32", 4)]
    {
        let config = tiny(false);
        let source = opened(&single(&model(&config, dtype)), &config).unwrap();
        assert_eq!((source.dtype(), source.bytes_total()), (name, bytes * parameters(&config)));
        reads_back(source.as_ref(), &config);
    }
}

#[test]
fn shards_and_mixed_types() {
    let config = tiny(true);
    let mut first = model(&config, Dtype::BF16);
    let mut second = first.split_off("model.layers.1.mlp.gate_proj.weight");
    let rank = config.iter().position(|tensor| tensor.name == "model.norm.weight").unwrap();
    second.insert("model.norm.weight".into(), tensor(Dtype::F32, &[4], |i| value(rank, i)));
    let dir = sharded(&[("a-1.safetensors", first), ("a-2.safetensors", second)]);
    let source = opened(&dir, &config).unwrap();
    assert_eq!((source.dtype(), source.bytes_total()), ("mixed", 2 * parameters(&config) + 8));
    reads_back(source.as_ref(), &config);
}

#[test]
fn unaligned_data_is_read() {
    // A header of odd length: older writers did not pad it.
    let config = tiny(true);
    let bytes = bytes_of(&model(&config, Dtype::F32));
    let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
    let length = u64::from_le_bytes(*length) as usize;
    for pad in 1..8 {
        let mut moved = ((length + pad) as u64).to_le_bytes().to_vec();
        moved.extend(&rest[..length]);
        moved.resize(moved.len() + pad, b' ');
        moved.extend(&rest[length..]);
        let source = opened(&folder(&[("model.safetensors", moved)]), &config).unwrap();
        reads_back(source.as_ref(), &config);
    }
}

#[test]
fn harmless_extras_are_tolerated() {
    let config = tiny(true);
    let mut tensors = model(&config, Dtype::BF16);
    let name = "model.layers.0.self_attn.rotary_emb.inv_freq";
    tensors.insert(name.into(), tensor(Dtype::F32, &[1], |_| 1.0));
    tensors.insert("lm_head.weight".into(), tensor(Dtype::BF16, &[6, 4], |_| 1.0));
    let source = opened(&single(&tensors), &config).unwrap();
    assert_eq!(source.bytes_total(), 2 * parameters(&config));
}

#[test]
fn dummy_weights_are_the_same_however_they_are_cut() {
    // Larger than a chunk, and no multiple of one.
    let config = sized(true, 333, 614);
    let dir = folder(&[]);
    let options = LoadOptions { dummy_weights: true, ..LoadOptions::default() };
    let source = open(dir.path(), &config, &options).unwrap();
    let (name, shape) = ("model.embed_tokens.weight", [333, 614]);
    let load = |part| source.part(name, &shape, &part).unwrap().load().into_f32();
    let whole = load(Part::All);
    assert_eq!(load(Part::Rows(100..300)), whole[100 * 614..300 * 614]);
    let cols = whole.chunks_exact(614).flat_map(|row| &row[205..500]).copied().collect::<Vec<_>>();
    assert_eq!(load(Part::Cols(205..500)), cols);
    assert!(load(Part::Cols(3..3)).is_empty());

    let count = whole.len() as f64;
    let mean = whole.iter().map(|&v| f64::from(v)).sum::<f64>() / count;
    let variance = whole.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / count - mean * mean;
    assert!(mean.abs() < 5.0 * 0.02 / count.sqrt(), "{mean}");
    assert!((variance.sqrt() - 0.02).abs() < 2e-4, "{}", variance.sqrt());

    let norm = source.part("model.norm.weight", &[614], &Part::All).unwrap().load();
    assert_eq!(norm, HostTensor::Bf16(vec![bf16::ONE; 614]));
    let bias = "model.layers.0.self_attn.q_proj.bias";
    let other = DummyWeights::new(&config, 1);
    let of =
        |source: &dyn WeightSource, name: &str| source.part(name, &[4], &Part::All).unwrap().load();
    assert_ne!(of(source.as_ref(), bias), of(&other, bias), "the seed counts");
    let second = "model.layers.1.self_attn.q_proj.bias";
    assert_ne!(of(source.as_ref(), bias), of(source.as_ref(), second), "the name counts");
    assert!(of(source.as_ref(), bias).into_f32().iter().all(|&v| v != 0.0 && v.abs() < 0.08));
}

/// Any range of any part, in any type: what a GPU's staging is filled with.
#[test]
fn every_range_reads_as_bf16() {
    let config = tiny(true);
    let (name, shape) = ("model.layers.1.mlp.down_proj.weight", [4, 10]);
    // Halfway between two bf16 numbers for some: those go to the even one.
    let value = |i: usize| 1.0 + i as f32 / 256.0;
    for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32] {
        let mut tensors = model(&config, dtype);
        tensors.insert(name.into(), tensor(dtype, &shape, value));
        let source = opened(&single(&tensors), &config).unwrap();
        for part in [Part::All, Part::Rows(1..3), Part::Cols(2..7), Part::Cols(9..10)] {
            let part = source.part(name, &shape, &part).unwrap();
            let bytes = if dtype == Dtype::F32 { 4 } else { 2 };
            assert_eq!((part.stored_bytes(), part.dummy()), (bytes * part.len(), None));
            let all = part.load();
            assert_eq!(all.len(), part.len());
            let all: Vec<bf16> = all.into_f32().into_iter().map(bf16::from_f32).collect();
            for start in 0..=part.len() {
                for end in start..=part.len() {
                    let mut out = vec![bf16::NAN; end - start];
                    part.read_bf16(start, &mut out);
                    assert_eq!(out, all[start..end], "{dtype:?} {start}..{end}");
                }
            }
        }
    }
    let memory = [1.5, -2.0, 3.0].map(bf16::from_f32);
    let part = TensorPart::of(&memory);
    let mut out = [bf16::ZERO; 2];
    part.read_bf16(1, &mut out);
    assert_eq!((out.as_slice(), part.load()), (&memory[1..], HostTensor::Bf16(memory.to_vec())));
}

#[test]
#[should_panic(expected = "is past the part's 3")]
fn a_range_past_the_end_panics() {
    let config = tiny(true);
    let source = DummyWeights::new(&config, 0);
    let norm = source.part("model.norm.weight", &[4], &Part::Rows(0..3)).unwrap();
    norm.read_bf16(2, &mut [bf16::ZERO; 2]);
}

/// How to make a part elsewhere, followed by hand.
#[test]
fn a_dummy_part_says_how_to_make_it() {
    let source = DummyWeights::new(&tiny(true), 3);
    let (name, shape) = ("model.layers.1.mlp.down_proj.weight", [4, 10]);
    for part in [Part::All, Part::Rows(1..3), Part::Cols(2..7)] {
        let part = source.part(name, &shape, &part).unwrap();
        let made = part.dummy().unwrap();
        assert_eq!((made.rows * made.cols, made.width), (part.len(), 10));
        let elements = (0..made.rows)
            .flat_map(|row| (0..made.cols).map(move |col| made.first + row * made.width + col))
            .map(|index| made.tensor.element(index));
        assert_eq!(part.load(), HostTensor::Bf16(elements.collect()));
    }
}

/// Parts that are scattered over a tensor of three dimensions: one matrix of a stack, transposed, every other column.
#[test]
fn a_scattered_part_is_gathered() {
    let shape = [2, 3, 8];
    let spec = TensorSpec::plain("stack", &shape);
    let tensors = Tensors::from([("stack".to_string(), tensor(Dtype::BF16, &shape, |i| i as f32))]);
    let dir = single(&tensors);
    let stored = opened(&dir, std::slice::from_ref(&spec)).unwrap();
    let part = |first, rows, row_stride, cols, col_stride| Part::Strided {
        first,
        rows,
        row_stride,
        cols,
        col_stride,
    };
    let odd_columns = part(24 + 1, 4, 2, 3, 8);
    let found = stored.part("stack", &shape, &odd_columns).unwrap();
    assert_eq!((found.len(), found.stored_bytes(), odd_columns.elements(&shape)), (12, 24, 12));
    let expected: Vec<f32> =
        (0..4).flat_map(|row| (0..3).map(move |col| (25 + 2 * row + 8 * col) as f32)).collect();
    assert_eq!(found.load().into_f32(), expected);
    let mut some = [bf16::ZERO; 5];
    found.read_bf16(4, &mut some);
    assert_eq!(some.map(bf16::to_f32), expected[4..9]);

    let made = DummyWeights::new(std::slice::from_ref(&spec), 1);
    let whole = made.part("stack", &shape, &Part::All).unwrap().load().into_f32();
    let of = |part: &Part| made.part("stack", &shape, part).unwrap();
    assert_eq!(of(&odd_columns).dummy(), None);
    let expected: Vec<f32> = expected.into_iter().map(|at| whole[at as usize]).collect();
    assert_eq!(of(&odd_columns).load().into_f32(), expected);
    let rows = part(24 + 8 + 2, 2, 8, 5, 1);
    assert!(of(&rows).dummy().is_some());
    assert_eq!(of(&rows).load().into_f32(), [&whole[34..39], &whole[42..47]].concat());

    for bad in [part(47, 2, 1, 1, 1), part(0, 2, usize::MAX, 2, 1), part(48, 1, 1, 1, 1)] {
        assert!(stored.part("stack", &shape, &bad).is_err(), "{bad}");
    }
    assert!(stored.part("stack", &shape, &Part::Rows(0..1)).is_err(), "three dimensions");
}

/// Weights that were read are the page cache's alone: a worker does not grow with its model.
#[test]
fn read_pages_are_let_go() {
    let config = sized(true, 1 << 15, 128);
    let dir = single(&model(&config, Dtype::BF16));
    let source = opened(&dir, &config).unwrap();
    let resident_kib = || {
        let maps = fs::read_to_string("/proc/self/smaps").unwrap();
        let of_file = maps.split_once(dir.path().to_str().unwrap()).unwrap().1;
        let rss = of_file.split_once("Rss:").unwrap().1.trim_start();
        rss.split_once(' ').unwrap().0.parse::<u64>().unwrap()
    };
    let part = source.part("model.embed_tokens.weight", &[1 << 15, 128], &Part::All).unwrap();
    assert_eq!(part.load().len(), 1 << 22, "8 MiB");
    assert!(resident_kib() < 1024, "{} KiB of the map are resident", resident_kib());
}
