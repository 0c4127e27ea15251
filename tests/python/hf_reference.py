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
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

PROMPT_LENS = [1, 2, 17, 64, 129, 300, 511, 700]
NEW = 32
TOP = 50
SEED = 0
# Standard deviation of a row's logits, about twice what transformers' initialisation gives. Errors grow with it: in
# the widest model what transformers is from itself in bf16 would fill the bound.
LOGIT_STD = 1.25
LOGIT_STD_OF = {"llama-3.2-1b": 0.75}

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
}


def write_model(folder, name, layers, device):
    """Random weights in the shape `name`, rounded to bf16."""
    kind, numbers = SHAPES[name]
    config = kind(**numbers)
    if layers:
        config = kind(**{**numbers, "num_hidden_layers": layers})
    torch.manual_seed(SEED)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    peak = LOGIT_STD_OF.get(name, LOGIT_STD) / (config.initializer_range * math.sqrt(config.hidden_size))
    with torch.no_grad():
        for key, value in model.named_parameters():
            if key.endswith("norm.weight"):
                value.add_(torch.randn_like(value), alpha=0.25)
            elif key.endswith(".bias"):
                value.normal_(std=0.5)
        model.model.norm.weight.mul_(peak)
    # Not the module's own .to(): it would round the table of frequencies too.
    for value in model.parameters():
        value.data = value.data.bfloat16()
    model.config.dtype = torch.bfloat16
    model.save_pretrained(folder)


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
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention)
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
    parser.add_argument("--models", default=",".join(SHAPES), help="of " + ", ".join(SHAPES))
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
