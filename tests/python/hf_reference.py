"""Writes models with random weights, and what Hugging Face transformers computes of them: the reference
of `daemon/engine/tests/hf.rs`.

    python tests/python/hf_reference.py OUT [--models NAME,...] [--folder NAME=DIR ...] [--layers N]
    MINISGL_HF_DIR=OUT cargo test -p minisgl-engine --features cuda --test hf -- --nocapture

Weights are those of transformers' own initialisation from a seed, in the shapes of SHAPES, with norms and
biases drawn as well (it leaves them at 1 and 0, which would test nothing), and the last norm scaled so that
logits spread equally in all of them. `--folder` takes a model as it is, for real weights.

OUT/NAME gets the model (bf16) and expected.json: for each of PROMPT_LENS a prompt, NEW tokens that are
fed after it whatever is likely, and at the prompt's end and after each fed token the 50 most likely next
tokens with their natural log-probabilities, as transformers computes them

    f32     in f32, which is the truth that the others are held to,
    bf16    in bf16 as it comes (scaled dot product attention), which is what the engine must be near,
    eager   in bf16 with its plain attention: how far it is from itself.

A quantised model's weights are what its codes and scales stand for, turned back here. Where its config.json asks for
activations in FP8, f32 has them as they are, and bf16 and eager have what every quantised product gets rounded to e4m3, under a
scale for each token and 128 of its columns where weights have blocks, else for each token: as transformers' and vLLM's kernels do it.

It runs on the GPU if there is one, and without a network.
"""

import argparse
import json
import math
import os
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM, Gemma3TextConfig, GptOssConfig, LlamaConfig, MistralConfig, MixtralConfig, Phi3Config,
    Qwen2Config, Qwen2MoeConfig, Qwen3Config, Qwen3MoeConfig)

PROMPT_LENS = [1, 2, 17, 64, 129, 300, 511, 700]
NEW = 32
TOP = 50
SEED = 0
# Standard deviation of a row's logits, about twice what transformers' initialisation gives. Errors grow with it: in
# the widest model what transformers is from itself in bf16 would fill the bound.
LOGIT_STD = 1.25
LOGIT_STD_OF = {"llama-3.2-1b": 0.75}
# What stands behind this word in a name is how the model is stored.
STORED_AS = "-as-"

LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
ROPE_1M = {"rope_type": "default", "rope_theta": 1000000.0}
SHAPES = {
    "qwen3-0.6b": (Qwen3Config, dict(
        vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=40960, rms_norm_eps=1e-6,
        tie_word_embeddings=True, rope_parameters=ROPE_1M)),
    "qwen2.5-0.5b": (Qwen2Config, dict(
        vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, max_position_embeddings=32768, rms_norm_eps=1e-6, tie_word_embeddings=True,
        rope_parameters=ROPE_1M)),
    "llama-3.2-1b": (LlamaConfig, dict(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, max_position_embeddings=131072, rms_norm_eps=1e-5,
        tie_word_embeddings=True, rope_parameters=LLAMA3_ROPE)),
    # Qwen3-14B's groups of five query heads, and an output matrix of its own.
    "gqa-5": (Qwen3Config, dict(
        vocab_size=50000, hidden_size=1280, intermediate_size=3456, num_hidden_layers=8, num_attention_heads=40,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=4096, rms_norm_eps=1e-6,
        tie_word_embeddings=False, rope_parameters=ROPE_1M)),
    "mistral-window": (MistralConfig, dict(
        vocab_size=50000, hidden_size=1024, intermediate_size=3584, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=2, head_dim=128, max_position_embeddings=4096, sliding_window=100)),
    "qwen2-window": (Qwen2Config, dict(
        vocab_size=50000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=8, num_attention_heads=16,
        num_key_value_heads=4, max_position_embeddings=4096, use_sliding_window=True, sliding_window=64, max_window_layers=3)),
    "gemma3": (Gemma3TextConfig, dict(
        vocab_size=50000, hidden_size=1152, intermediate_size=6912, num_hidden_layers=12, num_attention_heads=4,
        num_key_value_heads=1, head_dim=256, max_position_embeddings=4096, sliding_window=128,
        rope_parameters={"full_attention": dict(rope_type="linear", factor=8.0, rope_theta=1000000.0),
                         "sliding_attention": dict(rope_type="default", rope_theta=10000.0)})),
    # Phi 4's groups and Phi 3's window; then three quarters of each head, in LongRoPE's first context.
    "phi-window": (Phi3Config, dict(
        vocab_size=50000, hidden_size=1024, intermediate_size=3584, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=2, max_position_embeddings=4096, sliding_window=100)),
    "phi-longrope": (Phi3Config, dict(
        vocab_size=50000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=131072, original_max_position_embeddings=4096,
        tie_word_embeddings=True, rope_parameters=dict(
            rope_type="longrope", rope_theta=10000.0, partial_rotary_factor=0.75,
            short_factor=[1.0 + pair / 16 for pair in range(48)], long_factor=[1.0 + pair for pair in range(48)]))),
    "qwen3-moe": (Qwen3MoeConfig, dict(
        vocab_size=50000, hidden_size=1024, intermediate_size=3072, moe_intermediate_size=384, num_hidden_layers=6,
        num_attention_heads=16, num_key_value_heads=4, head_dim=128, num_experts=32, num_experts_per_tok=8,
        norm_topk_prob=True, max_position_embeddings=4096, rope_parameters=ROPE_1M)),
    "qwen2-moe": (Qwen2MoeConfig, dict(
        vocab_size=50000, hidden_size=1024, intermediate_size=2816, moe_intermediate_size=704, num_hidden_layers=6,
        num_attention_heads=8, num_key_value_heads=4, num_experts=16, num_experts_per_tok=4,
        shared_expert_intermediate_size=1408, mlp_only_layers=[1], max_position_embeddings=4096)),
    "mixtral": (MixtralConfig, dict(
        vocab_size=50000, hidden_size=1024, intermediate_size=1792, num_hidden_layers=6, num_attention_heads=8,
        num_key_value_heads=4, head_dim=128, num_local_experts=8, num_experts_per_tok=2, max_position_embeddings=4096)),
    # Of real width: 2880 is 90 blocks of MXFP4, and no multiple of 128.
    "gpt-oss": (GptOssConfig, dict(
        vocab_size=50000, hidden_size=2880, intermediate_size=2880, num_hidden_layers=4, num_attention_heads=64,
        num_key_value_heads=8, head_dim=64, num_local_experts=8, num_experts_per_tok=4, sliding_window=128,
        max_position_embeddings=4096, rope_parameters=dict(
            rope_type="yarn", rope_theta=150000.0, factor=32.0, beta_fast=32.0, beta_slow=1.0, truncate=False,
            original_max_position_embeddings=256))),
    # For the ways of storing one.
    "qwen3-8-layers": (Qwen3Config, dict(
        vocab_size=50000, hidden_size=1024, intermediate_size=3072, num_hidden_layers=8, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=4096, tie_word_embeddings=False,
        rope_parameters=ROPE_1M)),
}
QUANTISED = [f"qwen3-8-layers{STORED_AS}{scheme}" for scheme in ("fp8-block", "fp8-tensor", "fp8-channel")] + [
    f"qwen3-moe{STORED_AS}fp8-block", f"gpt-oss{STORED_AS}mxfp4"]


def write_model(folder, name, layers, device):
    """Random weights in the shape `name`, rounded to bf16, and quantised if the name says so."""
    shape, _, scheme = name.partition(STORED_AS)
    kind, numbers = SHAPES[shape]
    config = kind(**numbers)
    if layers:
        config = kind(**{**numbers, "num_hidden_layers": layers})
    torch.manual_seed(SEED)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    peak = LOGIT_STD_OF.get(name, LOGIT_STD) / (config.initializer_range * math.sqrt(config.hidden_size))
    with torch.no_grad():
        for key, value in model.named_parameters():
            if key.endswith("norm.weight") or "layernorm" in key:
                value.add_(torch.randn_like(value), alpha=0.25)
            elif key.endswith(("bias", "sinks")):
                value.normal_(std=0.5)
        last = model.model.norm.weight
        # Gemma's are stored less 1.
        less = 1.0 if config.model_type.startswith("gemma") else 0.0
        last.copy_((last + less) * peak - less)
    # Not the module's own .to(): it would round the table of frequencies too.
    for value in model.parameters():
        value.data = value.data.bfloat16()
    model.config.dtype = torch.bfloat16
    model.save_pretrained(folder)
    if scheme:
        quantise(folder, scheme)


def is_quantised(scheme, key, weight):
    """Whether `scheme` stores this tensor as codes: projections of layers; of gpt-oss, experts."""
    if scheme == "mxfp4":
        return key.endswith(("experts.gate_up_proj", "experts.down_proj"))
    return weight.ndim == 2 and key.startswith("model.layers.") and not key.endswith("mlp.gate.weight")


def e4m3(tensor, block):
    """Codes of a matrix under a scale for each `block`, in f32, and what they stand for."""
    rows, cols = tensor.shape
    high, wide = min(block[0], rows), min(block[1], cols)
    frame = torch.nn.functional.pad(tensor.float(), (0, -cols % wide, 0, -rows % high))
    tiles = frame.reshape(frame.shape[0] // high, high, frame.shape[1] // wide, wide)
    scales = tiles.abs().amax((1, 3)).clamp(min=1e-12) / 448.0
    codes = (tiles / scales[:, None, :, None]).to(torch.float8_e4m3fn)
    plain = (codes.float() * scales[:, None, :, None]).reshape(frame.shape)[:rows, :cols]
    return codes.reshape(frame.shape)[:rows, :cols].contiguous(), scales, plain


FP8_BLOCK = 128
# More than any matrix has rows or columns.
WHOLE = 1 << 30
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def mxfp4(shape):
    """Drawn codes and exponents of `[experts, inputs, outputs]`, and what they stand for. Scales make rows of about the usual size."""
    experts, inputs, outputs = shape
    generator = torch.Generator().manual_seed(SEED)
    codes = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(119, 122, (experts, outputs, inputs // 32), dtype=torch.uint8, generator=generator)
    values = torch.tensor(E2M1 + [-value for value in E2M1])
    # The first of a pair is in the low four bits.
    pairs = torch.stack([values[(codes & 15).long()], values[(codes >> 4).long()]], dim=-1)
    plain = pairs.reshape(experts, outputs, inputs // 32, 32) * torch.exp2(scales.float() - 127)[..., None]
    return codes, scales, plain.reshape(experts, outputs, inputs).transpose(1, 2).contiguous()


def quantise(folder, scheme):
    """Stores the model in `folder` as `scheme`, and beside it, in plain/, what that stands for."""
    stored, plain = {}, {}
    for key, weight in load_file(os.path.join(folder, "model.safetensors")).items():
        if not is_quantised(scheme, key, weight):
            stored[key] = plain[key] = weight
        elif scheme == "mxfp4":
            stored[f"{key}_blocks"], stored[f"{key}_scales"], plain[key] = mxfp4(weight.shape)
        else:
            name = key.removesuffix(".weight")
            block = {"fp8-block": (FP8_BLOCK, FP8_BLOCK), "fp8-channel": (1, WHOLE)}.get(scheme, (WHOLE, WHOLE))
            stored[key], scales, plain[key] = e4m3(weight, block)
            stored[f"{name}.weight_scale_inv" if scheme == "fp8-block" else f"{name}.weight_scale"] = (
                scales.reshape(1) if scheme == "fp8-tensor" else scales)
    save_file(stored, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    config = json.load(open(os.path.join(folder, "config.json")))
    os.makedirs(os.path.join(folder, "plain"), exist_ok=True)
    json.dump(config, open(os.path.join(folder, "plain", "config.json"), "w"))
    save_file(plain, os.path.join(folder, "plain", "model.safetensors"), metadata={"format": "pt"})
    activations = {"dynamic": True, "num_bits": 8, "strategy": "token", "symmetric": True, "type": "float"}
    weights = {"dynamic": False, "num_bits": 8, "strategy": scheme.removeprefix("fp8-"), "symmetric": True, "type": "float"}
    config["quantization_config"] = {
        "mxfp4": {"quant_method": "mxfp4", "modules_to_not_convert": [
            "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]},
        "fp8-block": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [FP8_BLOCK, FP8_BLOCK],
                      "modules_to_not_convert": ["lm_head"]},
    }.get(scheme, {
        "quant_method": "compressed-tensors", "format": "float-quantized", "quantization_status": "compressed",
        "ignore": ["lm_head", "re:.*mlp.gate$"], "config_groups": {"group_0": {
            "targets": ["Linear"], "weights": weights, "input_activations": activations, "format": "float-quantized"}}})
    json.dump(config, open(os.path.join(folder, "config.json"), "w"), indent=2)


def round_activations(model, columns):
    """From now on what quantised projections get is rounded to e4m3, for each token and so many of its columns."""
    def rounded(module, inputs):
        x = inputs[0]
        return (e4m3(x.reshape(-1, x.shape[-1]), (1, columns))[2].reshape(x.shape).to(x.dtype),)

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name.startswith("model.layers.") and not name.endswith("mlp.gate"):
            module.register_forward_pre_hook(rounded)


def prompts(vocab, folder):
    """Prompts, and what is fed after them: this file for a model that has a tokenizer, else random tokens."""
    tokenizer = os.path.join(folder, "tokenizer.json")
    count = sum(PROMPT_LENS) + NEW * len(PROMPT_LENS)
    if os.path.exists(tokenizer):
        ids = Tokenizer.from_file(tokenizer).encode(open(__file__).read()).ids
        ids = (ids * (count // len(ids) + 1))[:count]
    else:
        ids = torch.randint(vocab, (count,), generator=torch.Generator().manual_seed(SEED)).tolist()
    cut = lambda length: [ids.pop(0) for _ in range(length)]
    return [(cut(length), cut(NEW)) for length in PROMPT_LENS]


def load(folder, dtype, attention, device):
    config = json.load(open(os.path.join(folder, "config.json")))
    if config["model_type"] == "gpt_oss":
        attention = "eager"  # Of transformers' own, the one that knows sinks.
    plain = os.path.join(folder, "plain")
    model = AutoModelForCausalLM.from_pretrained(
        plain if os.path.exists(plain) else folder, dtype=dtype, attn_implementation=attention)
    for module in model.modules():
        if hasattr(module, "embed_scale"):
            # Gemma's in bf16 is not what it is in f32; the engine's is that of the model's own type.
            module.embed_scale = module.embed_scale.to(torch.bfloat16).to(dtype)
    how = config.get("quantization_config", {})
    if dtype != torch.float32 and how.get("quant_method") in ("fp8", "compressed-tensors"):
        # compressed-tensors says so by "token".
        round_activations(model, FP8_BLOCK if how["quant_method"] == "fp8" else WHOLE)
    return model.to(device).eval()


@torch.inference_mode()
def log_probabilities(model, ids, positions):
    """[positions, vocab] in f32, from the logits as the model gives them."""
    logits = model(torch.tensor([ids], device=model.device), use_cache=False).logits[0, positions]
    return torch.log_softmax(logits.float(), dim=-1)


def reference(folder, device):
    """What expected.json says of the model in `folder`."""
    asked, found, tops = None, [], []
    for name, dtype, attention in (
        ("f32", torch.float32, "eager"), ("bf16", torch.bfloat16, "sdpa"), ("eager", torch.bfloat16, "eager"),
    ):
        model = load(folder, dtype, attention, device)
        asked = asked or prompts(model.config.vocab_size, folder)
        for at, (prompt, fed) in enumerate(asked):
            # The last fed token's successor is asked for too: NEW + 1 positions.
            positions = list(range(len(prompt) - 1, len(prompt) + NEW))
            logprobs = log_probabilities(model, prompt + fed, positions)
            if name == "f32":
                tops.append(logprobs.topk(TOP).indices)
                found.append({"prompt": prompt, "fed": fed, "tokens": tops[at].tolist()})
            values = logprobs.gather(1, tops[at]).tolist()
            found[at][name] = [[round(value, 6) for value in row] for row in values]
        del model
    return {"torch": torch.__version__, "transformers": transformers.__version__, "device": device, "prompts": found}


def summary(expected):
    """Mean and 99th percentile of the differences that transformers has from itself, and how peaked it is."""
    flat = lambda key: torch.tensor([value for prompt in expected["prompts"] for row in prompt[key] for value in row])
    f32, bf16, eager = (flat(key) for key in ("f32", "bf16", "eager"))
    of = lambda a, b: "mean {:.4f} p99 {:.4f}".format(
        (a - b).abs().mean().item(), (a - b).abs().quantile(0.99).item())
    best = f32.reshape(-1, TOP)[:, 0].mean().item()
    return f"bf16 - f32 {of(bf16, f32)}; eager - bf16 {of(eager, bf16)}; likeliest token {best:.2f} nat"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--models", default=",".join([*SHAPES, *QUANTISED]), help="of " + ", ".join([*SHAPES, *QUANTISED]))
    parser.add_argument("--folder", action="append", default=[], metavar="NAME=DIR", help="a model that is there")
    parser.add_argument("--layers", type=int, help="fewer layers, for a machine without a GPU")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    transformers.logging.set_verbosity_error()

    for name in filter(None, options.models.split(",")):
        write_model(os.path.join(options.out, name), name, options.layers, device)
    for given in options.folder:
        name, folder = given.split("=", 1)
        os.makedirs(os.path.join(options.out, name), exist_ok=True)
        for file in os.listdir(folder):
            link = os.path.join(options.out, name, file)
            if not os.path.exists(link):
                os.symlink(os.path.abspath(os.path.join(folder, file)), link)

    for name in sorted(os.listdir(options.out)):
        folder = os.path.join(options.out, name)
        if not os.path.exists(os.path.join(folder, "config.json")):
            continue
        start = time.monotonic()
        expected = reference(folder, device)
        with open(os.path.join(folder, "expected.json"), "w") as file:
            json.dump(expected, file)
        print(f"{name}: {summary(expected)}; {time.monotonic() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main()
