//! Llama weights from GGUF names, layout and formats to those of a Hugging Face checkpoint.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use half::bf16;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::gguf::Gguf;

/// Heads, which the layout of the q and k projections depends on.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Query heads.
    pub q: usize,
    /// Key and value heads.
    pub kv: usize,
}

/// Writes every tensor of `file` to `path` as safetensors in bf16 (rounded to nearest even).
pub fn write(file: &Gguf<'_>, heads: Heads, path: &Path) -> Result<()> {
    let mut tensors = Vec::new();
    for (name, tensor) in file.tensors() {
        let hf = hf_name(name)?;
        let values = file.elements(tensor).with_context(|| format!("tensor {name:?}"))?;
        let mut bytes = Vec::with_capacity(values.len() * 2);
        bytes.extend(values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()));
        let rows = tensor.shape[0];
        let bytes = match name.rsplit('.').nth(1) {
            Some("attn_q") => unpermute(&bytes, rows, heads.q)?,
            Some("attn_k") => unpermute(&bytes, rows, heads.kv)?,
            _ => bytes,
        };
        tensors.push((hf, tensor.shape.clone(), bytes));
    }
    let views = tensors.iter().map(|(name, shape, bytes)| {
        Ok((name.as_str(), TensorView::new(Dtype::BF16, shape.clone(), bytes)?))
    });
    let views: Vec<_> = views.collect::<Result<_>>()?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(views, Some(metadata), path)?;
    // The writer makes it private; a daemon may run as another user.
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))?;
    Ok(())
}

fn hf_name(name: &str) -> Result<String> {
    match name {
        "token_embd.weight" => return Ok("model.embed_tokens.weight".into()),
        "output_norm.weight" => return Ok("model.norm.weight".into()),
        "output.weight" => return Ok("lm_head.weight".into()),
        _ => {}
    }
    let parts: Vec<&str> = name.split('.').collect();
    let ["blk", layer, part, "weight"] = parts[..] else { bail!("unknown tensor {name:?}") };
    let part = match part {
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "ffn_norm" => "post_attention_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => bail!("unknown tensor {name:?}"),
    };
    Ok(format!("model.layers.{layer}.{part}.weight"))
}

/// Undoes the row permutation that GGUF applies to Llama's q and k projections.
///
/// Rotary embedding pairs dimension `j` of a head with `j + 1` there and with `j + head_dim / 2` in
/// Hugging Face's layout: row `2 j + i` of a head becomes row `i head_dim / 2 + j`, `i` in {0, 1}.
fn unpermute(data: &[u8], rows: usize, heads: usize) -> Result<Vec<u8>> {
    ensure!(heads > 0 && rows % (2 * heads) == 0, "{rows} rows do not divide into {heads} heads");
    let row_bytes = data.len() / rows;
    let (head_dim, half) = (rows / heads, rows / heads / 2);
    let mut out = Vec::with_capacity(data.len());
    for head in 0..heads {
        for i in 0..2 {
            for j in 0..half {
                let row = head * head_dim + 2 * j + i;
                out.extend_from_slice(&data[row * row_bytes..][..row_bytes]);
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpermute_separates_the_halves_of_each_head() {
        // 2 heads of 4 dimensions, one byte a row: pairs (0, 1), (2, 3) become (0, 2), (1, 3).
        let rows: Vec<u8> = vec![0, 1, 2, 3, 10, 11, 12, 13];
        assert_eq!(unpermute(&rows, 8, 2).unwrap(), [0, 2, 1, 3, 10, 12, 11, 13]);
        assert!(unpermute(&rows, 8, 3).is_err());
    }

    #[test]
    fn names() {
        assert_eq!(
            hf_name("blk.29.attn_k.weight").unwrap(),
            "model.layers.29.self_attn.k_proj.weight"
        );
        assert!(hf_name("blk.0.attn_q.bias").is_err());
        assert!(hf_name("rope_freqs.weight").is_err());
    }
}
