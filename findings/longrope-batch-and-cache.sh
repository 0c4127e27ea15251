#!/usr/bin/env bash
# What a good engineer would guess: LongRoPE (Phi 3 mini 128k, Phi 4 mini) gives a model a longer context by other rotation
# frequencies, so what transformers computes for a prompt depends on the prompt, and its generate() over a cache is what the whole text at once gives.
#
# What is true (transformers 5.17.0): there are two sets of frequencies, and the longest sequence of a call decides which of them every token of the
# call is rotated by. So a prompt of 10 tokens has other log-probabilities beside one that is longer than
# original_max_position_embeddings (by half a nat here) than alone. And a key that was cached keeps the rotation that it had: from the first token
# past that length on, a cache has keys of one set under queries of the other, and log-probabilities are off by tenths of a nat to nats.
# prepare_inputs_for_generation() of Phi 3 means to drop the cache at that token and feed everything once more, and asks by the length of
# the ids that it is handed; those are the new ones alone, so that it never happens: generate() goes on with the mixture.
#
# Why a server of models cares: a server that does as transformers does gives other answers by who shares the batch, and cannot share prefixes across the
# switch; one that recomputes at the switch, or takes one set for good by its configured context, is right and differs from transformers past
# it. As a reference, transformers is good up to original_max_position_embeddings, one sequence at a time; there minisgld ends the context.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check torch==2.11.0 transformers==5.17.0 numpy
cat >"$work/longrope.py" <<'PY'
import os, sys, warnings

os.environ["CUDA_VISIBLE_DEVICES"] = ""
warnings.simplefilter("ignore")
import torch, transformers
from transformers import AutoModelForCausalLM, Phi3Config

print("torch", torch.__version__, "transformers", transformers.__version__)
transformers.logging.set_verbosity(transformers.logging.CRITICAL)

# Of Phi 4 mini's form, but a short first context: 16 positions, stretched to 64.
BEFORE, AFTER = 16, 64
rope = dict(rope_type="longrope", rope_theta=10000.0, short_factor=[1.0] * 8,
            long_factor=[1.0 + i for i in range(8)], original_max_position_embeddings=BEFORE)
torch.manual_seed(0)
config = Phi3Config(vocab_size=100, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
                    num_key_value_heads=2, max_position_embeddings=AFTER, original_max_position_embeddings=BEFORE,
                    rope_parameters=rope, pad_token_id=0, eos_token_id=None, bos_token_id=None)
model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
with torch.no_grad():
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.mul_(4.0)

def logprobs(ids, **more):
    with torch.no_grad():
        return torch.log_softmax(model(ids, **more).logits.double(), -1)

short = torch.randint(1, 100, (1, 10), generator=torch.Generator().manual_seed(1))
long = torch.randint(1, 100, (1, 24), generator=torch.Generator().manual_seed(2))

def beside(other):
    """The short prompt's log-probabilities with another in its batch; it is padded behind, and what stands behind is masked."""
    wide = other.shape[1]
    ids = torch.zeros(2, wide, dtype=torch.long)
    ids[0, :10], ids[1] = short, other
    mask = (torch.arange(wide)[None] < torch.tensor([[10], [wide]])).long()
    return logprobs(ids, attention_mask=mask)[0, :10]

alone = logprobs(short)[0]
near = (alone - beside(long[:, :BEFORE])).abs().max().item()
far = (alone - beside(long)).abs().max().item()
print(f"10 tokens beside 16 others: {near:.1e} nat from what they get alone; beside 24 others: {far:.2f} nat")

# 14 tokens, then one at a time over a cache, as any server does it.
cache, steps = None, []
for first, end in [(0, 14)] + [(at, at + 1) for at in range(14, 24)]:
    with torch.no_grad():
        out = model(long[:, first:end], past_key_values=cache, use_cache=True)
    cache = out.past_key_values
    steps.append(torch.log_softmax(out.logits[0, -1].double(), -1))
off = [(steps[1 + at - 14] - logprobs(long[:, :at + 1])[0, -1]).abs().max().item() for at in range(14, 24)]
print("token by token over a cache, against the whole at once, by length: " + ", ".join(f"{15 + i}: {x:.1e}" for i, x in enumerate(off)))

# The class's prepare_inputs_for_generation() means to drop the cache at the switch, and to feed everything once more.
seen, forward = [], model.forward
def watched(*args, **more):
    seen.append(more["input_ids"].shape[1])
    return forward(*args, **more)
model.forward = watched
with torch.no_grad():
    out = model.generate(long[:, :12], max_new_tokens=8, do_sample=False, output_logits=True, return_dict_in_generate=True)
model.forward = forward
apart = []
for step, logits in enumerate(out.logits):
    whole = logprobs(out.sequences[:, :12 + step])[0, -1]
    apart.append((torch.log_softmax(logits[0].double(), -1) - whole).abs().max().item())
print("generate() feeds", seen, "tokens; by length it is off by " + ", ".join(f"{12 + i}: {x:.1e}" for i, x in enumerate(apart)))

changed = near > 1e-5 or far < 0.1 or max(off[:2]) > 1e-5 or min(off[2:]) < 1e-2
changed |= seen != [12] + [1] * 7 or max(apart[:5]) > 1e-5 or min(apart[5:]) < 1e-2
sys.exit("this has changed") if changed else print("as described")
PY
"$work/venv/bin/python" "$work/longrope.py"
