#!/usr/bin/env bash
# What a good engineer would guess: bad words (bad_words_ids of transformers' generate(), bad_words of OpenAI-like servers) are about the text that is
# generated: which of its tokens are ruled out depends on the tokens that were generated, and a list means what it says.
#
# What is true (transformers 5.17.0): the prompt counts as well. A word of three tokens of which a prompt ends with the first two has its third
# ruled out as the very first token of the answer, so the same answer is allowed after one prompt and not after another. A word whose rest
# is longer than all tokens so far is not looked at. And a word that is the end token alone is left out of the list without a
# word, so that a list of nothing but end tokens rules nothing out, while the same token within a longer word is ruled out.
#
# Why a server of models cares: it takes transformers for its reference, and a chat template puts words of the client's own question, or of a
# tool's result, right before the answer. vLLM (0.26) looks at generated tokens alone, as minisgld does; results of transformers with bad words can
# be compared with either only where no prompt ends with the beginning of a word, and end tokens have to be ruled out by other means (min_tokens).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check torch==2.11.0 transformers==5.17.0 numpy
cat >"$work/bad_words.py" <<'PY'
import os, warnings

os.environ["CUDA_VISIBLE_DEVICES"] = ""
warnings.simplefilter("ignore")
import torch, transformers
from transformers import AutoModelForCausalLM, LlamaConfig

print("torch", torch.__version__, "transformers", transformers.__version__)
transformers.logging.set_verbosity(transformers.logging.CRITICAL)
END = 7
torch.manual_seed(0)
config = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                     num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=None, eos_token_id=END)
model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()

def first(prompt, words):
    """Which tokens are ruled out as the first one of the answer."""
    out = model.generate(torch.tensor([prompt]), max_new_tokens=1, do_sample=False, bad_words_ids=words,
                         return_dict_in_generate=True, output_scores=True)
    return [at for at, score in enumerate(out.scores[0][0].tolist()) if score == float("-inf")]

word = [11, 12, 13]
after_its_beginning, after_others = first([5, 11, 12], [word]), first([5, 12, 11], [word])
print("a word of three tokens, first token of the answer:")
print("  the prompt ends with its first two: ruled out are", after_its_beginning)
print("  it does not:                        ruled out are", after_others)
short = first([12], [word])
print("  the prompt is shorter than the rest of the word:  ", short)
alone, with_another, within = first([5], [[END]]), first([5], [[END], [9]]), first([5, 9], [[9, END]])
print("the end token", END, "as a bad word: ruled out are", alone, "; with another word:", with_another)
print("  as the last token of a longer one:", within)
assert after_its_beginning == [13] and after_others == [] and short == []
assert alone == [] and with_another == [9] and within == [END]
PY
"$work/venv/bin/python" "$work/bad_words.py"
