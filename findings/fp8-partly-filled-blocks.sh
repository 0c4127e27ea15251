#!/usr/bin/env bash
# What a good engineer would guess: an FP8 checkpoint whose config.json says `weight_block_size: [128, 128]` has a scale for
# each block of 128 by 128 weights, the last blocks of a matrix being partly filled where its sides are no multiples of 128;
# and Hugging Face transformers, which allocates ceil(out / 128) by ceil(in / 128) scales for it, reads it so.
#
# What is true (transformers 5.17.0): where it has no GPU for FP8 it turns the weights back into numbers while it loads them,
# and takes the size of a block from the number of scales instead of from config.json. A matrix of 192 rows has two rows of
# scales, of 128 and 64 rows; transformers applies each to 96. Nothing is said: the model loads, and a sixth of this matrix
# has the wrong scale. Where the division leaves a rest (193 rows) loading fails instead.
#
# Why a server of models cares: not every width is a multiple of 128 (576 of SmolLM, 2880 of gpt-oss). Whoever takes
# transformers on a CPU as the reference for such a checkpoint is told that the right weights are wrong.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check torch==2.11.0 transformers==5.17.0 accelerate numpy
cat >"$work/blocks.py" <<'PY'
import json, os, sys, warnings

os.environ["CUDA_VISIBLE_DEVICES"] = ""
warnings.simplefilter("ignore")
import torch, transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

print("torch", torch.__version__, "transformers", transformers.__version__)
transformers.logging.set_verbosity(transformers.logging.CRITICAL)
folder = sys.argv[1]

def read(rows):
    """A model one of whose matrices is all ones in FP8, its first 128 rows scaled by 1 and the rest by 2."""
    config = LlamaConfig(vocab_size=16, hidden_size=128, intermediate_size=rows, num_hidden_layers=1, num_attention_heads=1,
                         num_key_value_heads=1, head_dim=128)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tensors = load_file(f"{folder}/model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    tensors[f"{name}.weight"] = torch.ones(rows, 128).to(torch.float8_e4m3fn)
    tensors[f"{name}.weight_scale_inv"] = torch.tensor([[1.0], [2.0]])
    save_file(tensors, f"{folder}/model.safetensors", metadata={"format": "pt"})
    said = json.load(open(f"{folder}/config.json"))
    said["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic",
                                   "modules_to_not_convert": ["lm_head", "self_attn", "gate_proj", "down_proj"]}
    json.dump(said, open(f"{folder}/config.json", "w"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.get_submodule(name).weight.detach()

def second(weight):
    """The first row that has the second scale."""
    return int((weight[:, 0] == 2).nonzero()[0])

at_256 = second(read(256))
at_192 = second(read(192))
print(f"256 rows: the second scale begins at row {at_256}")
print(f"192 rows: the second scale begins at row {at_192}, by config.json it is 128")
try:
    read(193)
    raised = False
except Exception as error:
    print(f"193 rows: {type(error).__name__}")
    raised = True
if (at_256, at_192, raised) != (128, 96, True):
    sys.exit("this has changed")
print("as described")
PY
mkdir "$work/model"
"$work/venv/bin/python" "$work/blocks.py" "$work/model" 2>&1 | grep -v -e 'Loading weights' -e 'Writing model' -e '^$'
