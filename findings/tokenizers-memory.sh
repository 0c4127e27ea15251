#!/usr/bin/env bash
# What a good engineer would guess: turning a text into token ids takes memory of the order of the text and its ids, a few
# bytes a byte, and a piece at a time would do.
#
# What is true (tokenizers 0.22.2, the library under Hugging Face's tokenizers): encoding one text holds everything about
# every token at once (its spelling, offsets, word, masks). Where each byte is a token, that is over 300 bytes for each byte
# of text, gone again when the call returns; `encode_batch_fast`, which leaves the offsets out, still takes 280.
#
# Why a server of models cares: the length of a text is the client's choice. A body of 32 MiB, which many servers accept,
# takes gigabytes in the process that tokenizes, before anybody knows that the prompt does not fit the context. A limit on
# bodies alone does not bound memory: tokenize in pieces, in a process with a limit of its own.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check tokenizers==0.22.2
cat >"$work/measure.py" <<'PY'
import resource, subprocess, sys, time

CHILD = """
import resource, sys, time
from tokenizers import Tokenizer, models, pre_tokenizers
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
text = "a b " * (int(sys.argv[1]) << 18)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began = time.monotonic()
if sys.argv[2] == "encode":
    ids = len(tokenizer.encode(text).ids)
else:
    ids = len(tokenizer.encode_batch_fast([text])[0].ids)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(ids, (after - before) * 1024, time.monotonic() - began)
"""

def measure(mib, how):
    out = subprocess.run([sys.executable, "-c", CHILD, str(mib), how], capture_output=True, text=True, check=True)
    ids, grown, seconds = out.stdout.split()
    return int(ids), int(grown), float(seconds)

import tokenizers
print("tokenizers", tokenizers.__version__)
rows = []
for how in ["encode", "encode_batch_fast"]:
    for mib in [1, 2, 4]:
        ids, grown, seconds = measure(mib, how)
        a_byte = grown / (mib << 20)
        rows.append((how, mib, a_byte))
        print(f"{how:18} {mib} MiB: {ids} ids, peak memory grew by {grown / 2**20:.0f} MiB, {a_byte:.0f} bytes a byte of text, {seconds:.1f} s")
slow = [a for how, mib, a in rows if how == "encode" and mib == 4][0]
fast = [a for how, mib, a in rows if how == "encode_batch_fast" and mib == 4][0]
if not (slow > 200 and fast > slow / 2):
    sys.exit("this has changed")
print("as described")
PY
"$work/venv/bin/python" "$work/measure.py"
