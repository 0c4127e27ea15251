#!/usr/bin/env bash
# What a good engineer would guess: a parser of tool calls that reads a model's whole output right reads the same output right in a stream, and the keys of a
# JSON object may come in any order.
#
# What is true (vLLM 0.33.0, --tool-call-parser hermes): of
#     <tool_call>
#     {"arguments": {"city": "Paris"}, "name": "get_weather"}
#     </tool_call>
# which is the order that the first Hermes prompts show, the whole output gives the arguments {"city": "Paris"}, and a stream gives
#     {"city": "Paris"}, "name": "get_weather"
# which is no JSON: the argument's end is taken for the call's. It is so however the text is cut into tokens.
#
# Why a server of models cares: an agent streams, cannot parse the arguments, and tells the model that its call, which was right, was broken.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check pydantic openai partial-json-parser regex ijson
"$work/venv/bin/pip" download -q --disable-pip-version-check --no-deps -d "$work" vllm==0.33.0
python3 -m zipfile -e "$work"/vllm-*.whl "$work/files"
cat >"$work/cases.json" <<'JSON'
{"tools": [{"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}],
 "markers": {"plain": ["<tool_call>", "</tool_call>"]},
 "cases": [{"dialect": "plain", "in_thought": false,
            "output": "<tool_call>\n{\"arguments\": {\"city\": \"Paris\"}, \"name\": \"get_weather\"}\n</tool_call>"}]}
JSON
"$work/venv/bin/python" "$root/tests/oracles/vllm_calls.py" "$work/cases.json" "$work/files" >"$work/said.json"
python3 - "$work/said.json" <<'PY'
import json
import sys

[said] = json.load(open(sys.argv[1]))["results"]
whole, stream = (said[mode]["calls"][0]["arguments"] for mode in ("whole", "tokens"))
print("whole: ", whole)
print("stream:", stream)
assert json.loads(whole) == {"city": "Paris"}, "the whole output is read otherwise"
try:
    json.loads(stream)
except ValueError:
    print("the stream's arguments are no JSON")
else:
    sys.exit("the stream is read right: this finding is out of date")
PY
