"""Runs recorded outputs through SGLang's own parsers, without SGLang's dependencies.

    sglang_calls.py CASES SGLANG_DIR > RESULTS

CASES is what the test `cases_are_written_for_other_parsers` writes, SGLANG_DIR the folder with the package's files as its wheel
has them. Needs pydantic, orjson, partial-json-parser and msgspec; everything else that those files import is a stand-in.
Prints a JSON object: the parser's name, and a list of what each read of each case: whole, a token at a time (markers whole, words) and a character at a time.
"""

import importlib.abc
import importlib.machinery
import json
import logging
import re
import sys
import types
from typing import Any, Optional

from pydantic import BaseModel

STAND_INS = [
    "torch", "transformers", "xgrammar", "zmq", "openai", "fastapi", "PIL", "requests",
    "sglang.utils", "sglang.srt.server_args", "sglang.srt.managers", "sglang.srt.configs",
]

# Dialect: parsers of calls (each is run), parser of thoughts.
PARSERS = {
    "command": (["cohere_command4"], "cohere_command4"),
    "deepseek_v3": (["deepseekv3"], "deepseek-v3"),
    "deepseek_v31": (["deepseekv31"], "deepseek-v3"),
    "gemma3": (["pythonic"], None),
    "gemma4": (["gemma4"], "gemma4"),
    "glm": (["glm45", "glm47"], "glm45"),
    "gpt_oss": (["gpt-oss"], "gpt-oss"),
    "hermes": (["qwen25", "hermes"], "qwen3"),
    "kimi_k2": (["kimi_k2"], "kimi_k2"),
    "llama": (["llama3", "pythonic"], None),
    "minimax_m2": (["minimax-m2"], "qwen3"),
    "mistral": (["mistral"], "mistral"),
    "qwen3_coder": (["qwen3_coder"], "qwen3"),
    "think": (["qwen25"], "qwen3"),
    "smollm3": (["hermes"], "qwen3"),
    "plain": (["hermes"], None),
}


class StandIn(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (), {"__init__": lambda self, *a, **k: None, "__class_getitem__": classmethod(lambda c, k: c)})
        setattr(self, name, made)
        return made


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        if any(name == root or name.startswith(root + ".") for root in STAND_INS):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = StandIn(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module):
        pass


class Function(BaseModel):
    name: str
    description: Optional[str] = None
    parameters: Optional[Any] = None
    strict: Optional[bool] = None
    key_order: list[str] = []


class Tool(BaseModel):
    type: str = "function"
    function: Function


def load(folder):
    """The parsers, with the packages around them empty."""
    sys.meta_path.insert(0, Finder())
    for name in ["sglang", "sglang.srt", "sglang.srt.utils", "sglang.srt.parser", "sglang.srt.function_call",
                 "sglang.srt.entrypoints", "sglang.srt.entrypoints.openai"]:
        module = types.ModuleType(name)
        module.__path__ = [f"{folder}/{name.replace('.', '/')}"]
        sys.modules[name] = module
    protocol = StandIn("sglang.srt.entrypoints.openai.protocol")
    protocol.__path__ = []
    protocol.Tool, protocol.Function = Tool, Function
    sys.modules[protocol.__name__] = protocol
    from sglang.srt.function_call.function_call_parser import FunctionCallParser
    from sglang.srt.parser.reasoning_parser import ReasoningParser
    return FunctionCallParser, ReasoningParser


def whole(text, calls_of, thoughts_of):
    thought = ""
    if thoughts_of:
        thought, text = thoughts_of.parse_non_stream(text)
    text, calls = calls_of.parse_non_stream(text or "")
    return text, thought, [{"name": c.name, "arguments": c.parameters} for c in calls]


def tokens(text, markers):
    """A text as tokens would bring it: markers whole, words, spaces and signs."""
    marks = "|".join(re.escape(marker) for marker in sorted(markers, key=len, reverse=True))
    return re.findall(f"(?:{marks})|\\w+|\\s|." if marks else r"\w+|\s|.", text, re.DOTALL)


def streamed(pieces, calls_of, thoughts_of):
    text, thought, calls = "", "", {}

    def take(piece):
        nonlocal text
        plain, items = piece
        text += plain or ""
        for item in items:
            call = calls.setdefault(item.tool_index, {"name": "", "arguments": ""})
            call["name"] += item.name or ""
            call["arguments"] += item.parameters or ""

    def feed(piece):
        if piece:
            take(calls_of.parse_stream_chunk(piece))

    for piece in pieces:
        if not thoughts_of:
            feed(piece)
            continue
        more, plain = thoughts_of.parse_stream_chunk(piece)
        thought += more or ""
        feed(plain)
    if thoughts_of:
        more, plain = thoughts_of.parse_stream_end()
        thought += more or ""
        feed(plain)
    take(calls_of.parse_stream_end())
    # What the server adds at the end: arguments that were read and not sent.
    read, sent = calls_of.detector.prev_tool_call_arr, calls_of.detector.streamed_args_for_tool
    last = len(read) - 1
    if 0 <= last < len(sent):
        expected = read[last].get("arguments", {})
        expected = expected if isinstance(expected, str) else json.dumps(expected, ensure_ascii=False)
        if expected.startswith(sent[last]) and last in calls:
            calls[last]["arguments"] += expected[len(sent[last]):]
    return text, thought, [calls[index] for index in sorted(calls)]


def main(cases_path, folder):
    logging.disable(logging.CRITICAL)
    FunctionCallParser, ReasoningParser = load(folder)
    recorded = json.load(open(cases_path, encoding="utf-8"))
    tools = [Tool(function=Function(**tool)) for tool in recorded["tools"]]
    results = []
    for index, case in enumerate(recorded["cases"]):
        names, thinks = PARSERS.get(case["dialect"], ([], None))
        for name in names:
            said = {"case": index, "parser": name}
            output, markers = case["output"], recorded["markers"][case["dialect"]]
            modes = [("whole", whole, output), ("tokens", streamed, tokens(output, markers)), ("chars", streamed, list(output))]
            for mode, run, given in modes:
                try:
                    thoughts_of = thinks and ReasoningParser(
                        thinks, stream_reasoning=True, force_reasoning=case["in_thought"], tool_call_parser_active=True)
                    text, thought, calls = run(given, FunctionCallParser(tools, name), thoughts_of)
                    said[mode] = {"text": text or "", "thought": thought or "", "calls": calls}
                except Exception as error:  # what they raise is a result, too
                    said[mode] = {"error": f"{type(error).__name__}: {error}"}
            results.append(said)
    json.dump({"of": "SGLang", "results": results}, sys.stdout, ensure_ascii=False)


main(*sys.argv[1:])
