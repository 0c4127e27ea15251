//! Every refusal, by its text.

use super::*;

#[track_caller]
fn refused(dir: &TempDir, config: &[TensorSpec], message: &str) {
    match opened(dir, config) {
        Ok(_) => panic!("opened, expected: {message}"),
        Err(found) => assert_eq!(found, message),
    }
}

#[track_caller]
fn misfit(dir: &TempDir, config: &[TensorSpec], problems: &str) {
    refused(dir, config, &format!("the weights in DIR do not fit its config.json, {problems}"));
}

#[test]
fn each_misfit_is_named() {
    let config = tiny(false);
    let whole = model(&config, Dtype::BF16);
    let changed = |change: &dyn Fn(&mut Tensors)| {
        let mut tensors = whole.clone();
        change(&mut tensors);
        single(&tensors)
    };
    let dir = changed(&|tensors| {
        tensors.remove("lm_head.weight");
    });
    misfit(&dir, &config, "1 problem: lm_head.weight [6, 4] is missing");
    let dir = changed(&|tensors| {
        tensors.remove("model.layers.1.self_attn.q_proj.bias");
        tensors.insert("model.norm.weight".into(), tensor(Dtype::BF16, &[5], |_| 1.0));
        let down = tensor(Dtype::U8, &[4, 10], |_| 1.0);
        tensors.insert("model.layers.0.mlp.down_proj.weight".into(), down);
        tensors.insert("visual.weight".into(), tensor(Dtype::BF16, &[2, 3], |_| 1.0));
    });
    misfit(
        &dir,
        &config,
        "4 problems: model.layers.0.mlp.down_proj.weight is U8, supported are BF16, F16 and F32; \
         model.layers.1.self_attn.q_proj.bias [4] is missing; \
         model.norm.weight has shape [5], expected [4]; \
         visual.weight [2, 3] is unexpected",
    );
    let dir = changed(&|tensors| {
        for i in 0..12 {
            tensors.insert(format!("x.{i:02}"), tensor(Dtype::U8, &[0], |_| 1.0));
        }
    });
    let listed: Vec<_> = (0..10).map(|i| format!("x.{i:02} [0] is unexpected")).collect();
    misfit(&dir, &config, &format!("12 problems: {}; and 2 more", listed.join("; ")));
}

#[test]
fn an_index_is_held_to_its_files() {
    let config = tiny(true);
    let whole = model(&config, Dtype::BF16);
    let names: Vec<_> = whole.keys().map(String::as_str).collect();
    let with = |places: &[(&str, &str)]| {
        let all = names.iter().map(|name| (*name, "a.safetensors"));
        let all: Vec<_> = all.chain(places.iter().copied()).collect();
        folder(&[
            ("model.safetensors.index.json", index(&all)),
            ("a.safetensors", bytes_of(&whole)),
            ("b.safetensors", bytes_of(&Tensors::new())),
        ])
    };
    assert!(opened(&with(&[]), &config).is_ok());
    misfit(
        &with(&[("model.norm.weight", "b.safetensors")]),
        &config,
        "1 problem: model.norm.weight is not in b.safetensors, where the index places it",
    );
    refused(
        &with(&[("model.norm.weight", "c.safetensors"), ("z", "d.safetensors")]),
        &config,
        "2 of the 3 weight files that model.safetensors.index.json names are not in DIR: \
         c.safetensors; d.safetensors; fetch the model again",
    );
    for shard in
        ["../a.safetensors", "/etc/a.safetensors", "x/a.safetensors", "..", "", "a.bin", "./a"]
    {
        refused(
            &with(&[("model.norm.weight", shard)]),
            &config,
            &format!(
                "DIR/model.safetensors.index.json is not a safetensors index: it places \
                 model.norm.weight in {shard:?}, which is not the name of a .safetensors file in \
                 this folder"
            ),
        );
    }
    let dir = folder(&[("model.safetensors.index.json", b"{}".to_vec())]);
    refused(
        &dir,
        &config,
        "DIR/model.safetensors.index.json is not a safetensors index: missing field `weight_map` \
         at line 1 column 2",
    );
    let dir = folder(&[("model.safetensors.index.json", index(&[]))]);
    refused(
        &dir,
        &config,
        "DIR/model.safetensors.index.json is not a safetensors index: its weight_map is empty",
    );
}

#[test]
fn a_folder_without_weights() {
    let config = tiny(true);
    let none = "no model.safetensors and no model.safetensors.index.json in DIR";
    refused(&folder(&[]), &config, none);
    refused(
        &folder(&[("pytorch_model.bin", vec![])]),
        &config,
        &format!("{none}, only pytorch_model.bin; convert the model to safetensors"),
    );
    let dir = folder(&[]);
    fs::create_dir(dir.path().join("model.safetensors")).unwrap();
    refused(&dir, &config, "DIR/model.safetensors: is not a regular file");
}

#[test]
fn damaged_files() {
    let config = tiny(true);
    let good = bytes_of(&model(&config, Dtype::BF16));
    let header_bytes = u64::from_le_bytes(*good.first_chunk().unwrap()) as usize;
    let data_bytes = good.len() - 8 - header_bytes;
    let file = |bytes: &[u8], message: &str| {
        let dir = folder(&[("model.safetensors", bytes.to_vec())]);
        refused(&dir, &config, &format!("DIR/model.safetensors: {message}"));
    };
    let headed = |header: &str, data: usize| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    };

    file(&[], "has 0 bytes: too short for a safetensors file");
    file(&good[..7], "has 7 bytes: too short for a safetensors file");
    file(
        &good[..100],
        &format!(
            "is truncated or not a safetensors file: its header needs {header_bytes} bytes, 92 are there"
        ),
    );
    file(
        &good[..good.len() - 1],
        &format!(
            "is truncated: its tensors take {data_bytes} bytes, {} are there; fetch it again",
            data_bytes - 1
        ),
    );
    file(&[good.as_slice(), &[0; 3]].concat(), "has 3 bytes after its last tensor; fetch it again");
    file(
        b"<!DOCTYPE html><html>",
        &format!(
            "is not a safetensors file: its first 8 bytes would mean a header of {} bytes",
            u64::from_le_bytes(*b"<!DOCTYP")
        ),
    );
    file(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        "is a Git LFS pointer, not the weights themselves; run `git lfs pull` in its folder",
    );
    file(
        &headed("{\"t\": ", 0),
        "is not a safetensors file: invalid JSON in header: EOF while parsing a value at line 1 \
         column 6",
    );
    file(
        &headed(r#"{"t":{"dtype":"F32","shape":[2,3],"data_offsets":[0,20]}}"#, 20),
        "has an invalid header: tensor t of type F32 and shape [2, 3] has 20 bytes",
    );
    file(
        &headed(r#"{"t":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, 8),
        "has an invalid header: the bytes of tensor t do not follow those of the one before",
    );
    file(
        &headed(r#"{"t":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}"#, 8),
        "is not a safetensors file: overflow computing buffer size from shape and/or element type",
    );
    // No prefix of a good file is good, and none crashes.
    for end in 0..good.len() {
        assert!(opened(&folder(&[("model.safetensors", good[..end].to_vec())]), &config).is_err());
    }
}

#[test]
fn wrong_requests_are_refused() {
    let config = tiny(true);
    let dir = single(&model(&config, Dtype::BF16));
    for source in [opened(&dir, &config).unwrap(), Box::new(DummyWeights::new(&config, 1))] {
        let refuse = |name: &str, shape: &[usize], part: Part, message: &str| {
            let refused = source.part(name, shape, &part).err().expect("refused");
            assert_eq!(refused.to_string(), message);
        };
        let norm = "model.norm.weight";
        refuse("lm_head.weight", &[6, 4], Part::All, "the model has no tensor lm_head.weight");
        refuse(norm, &[5], Part::All, "tensor model.norm.weight has shape [4], not [5]");
        let bad = |part: &str| format!("tensor model.norm.weight of shape [4] has no {part}");
        refuse(norm, &[4], Part::Cols(0..1), &bad("columns 0..1"));
        refuse(norm, &[4], Part::Rows(2..5), &bad("rows 2..5"));
        #[expect(clippy::reversed_empty_ranges)]
        refuse(norm, &[4], Part::Rows(3..2), &bad("rows 3..2"));
        let embedding = "model.embed_tokens.weight";
        refuse(
            embedding,
            &[6, 4],
            Part::Cols(4..5),
            "tensor model.embed_tokens.weight of shape [6, 4] has no columns 4..5",
        );
    }
}
