"""Runs recorded outputs through vLLM's own parsers, without vLLM's dependencies.

    vllm_calls.py CASES VLLM_DIR > RESULTS

As sglang_calls.py, for the folder with vLLM's files. Needs pydantic, openai, partial-json-parser, regex and ijson. Its parsers
read tokens beside text: they get a vocabulary of our markers, words and characters, and each piece as one token of it.
"""

import importlib.abc
import importlib.machinery
import json
import logging
import re
import sys
import types
import uuid
from types import SimpleNamespace
from typing import Any, Literal, Optional

from pydantic import BaseModel
from pydantic_core import core_schema

STAND_INS = [
    "torch", "transformers", "xgrammar", "zmq", "fastapi", "PIL", "requests", "openai_harmony", "mcp",
    "vllm.sampling_params", "vllm.config", "vllm.inputs", "vllm.renderers", "vllm.multimodal", "vllm.platforms",
    "vllm.outputs", "vllm.v1", "vllm.model_executor", "vllm.transformers_utils", "vllm.lora", "vllm.tokenizers",
    "vllm.entrypoints.openai", "vllm.entrypoints.serve", "vllm.entrypoints.mcp", "vllm.parser.metrics", "vllm.envs",
    "vllm.utils.import_utils", "vllm.logger",
]

# Dialect: parsers of calls (each is run), parser of thoughts.
PARSERS = {
    "command": (["cohere_command3"], "cohere_command3"),
    "deepseek_v3": (["deepseek_v3"], "deepseek_r1"),
    "deepseek_v31": (["deepseek_v31"], "deepseek_v3"),
    "gemma3": (["pythonic"], None),
    "gemma4": (["gemma4"], "gemma4"),
    "glm": (["glm45"], "glm45"),
    "granite": (["granite"], "granite"),
    "hermes": (["hermes"], "qwen3"),
    "kimi_k2": (["kimi_k2"], "kimi_k2"),
    "llama": (["llama3_json", "llama4_pythonic"], None),
    "minimax_m2": (["minimax_m2"], "minimax_m2"),
    "mistral": (["mistral"], "mistral"),
    "nemotron": (["qwen3_coder"], "nemotron_v3"),
    "phi4": (["phi4_mini_json"], None),
    "plain": (["hermes"], None),
    "qwen3_coder": (["qwen3_coder"], "qwen3"),
    "smollm3": (["hermes"], "qwen3"),
    "think": (["hermes"], "qwen3"),
}


class Meta(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        made = stand_in(name)
        type.__setattr__(cls, name, made)
        return made

    def __or__(cls, other):
        return cls

    def __ror__(cls, other):
        return cls


def stand_in(name):
    return Meta(name, (), {
        "__init__": lambda self, *a, **k: None,
        "__class_getitem__": classmethod(lambda c, k: c),
        "__get_pydantic_core_schema__": classmethod(lambda c, s, h: core_schema.any_schema()),
    })


class StandIn(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        made = stand_in(name)
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


class OpenAIBaseModel(BaseModel):
    model_config = {"extra": "allow"}


class FunctionDefinition(OpenAIBaseModel):
    name: str
    description: Optional[str] = None
    parameters: Optional[dict[str, Any]] = None
    strict: Optional[bool] = None


class ChatCompletionToolsParam(OpenAIBaseModel):
    type: Literal["function"] = "function"
    function: FunctionDefinition


class ChatCompletionRequest:
    """What the parsers read of a request."""

    def __init__(self, tools):
        self.tools, self.tool_choice, self.messages = tools, "auto", []
        self.include_reasoning, self.skip_special_tokens, self.stream = True, False, True
        self.structured_outputs = self.response_format = None
        self.parallel_tool_calls, self.chat_template_kwargs = True, {}

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return None


class Tokenizer:
    """Markers, and anything else, each a token of its own."""

    def __init__(self, markers, texts):
        self.is_fast, self.all_special_tokens = True, list(markers)
        self.ids, self.texts, self.markers = {}, [], list(markers)
        for text in list(markers) + texts:
            self.id(text)
        self.all_special_ids = [self.ids[marker] for marker in markers]
        self.eos_token_id, self.bos_token_id, self.chat_template = None, None, None

    def id(self, text):
        if text not in self.ids:
            self.ids[text] = len(self.texts)
            self.texts.append(text)
        return self.ids[text]

    def get_vocab(self):
        return dict(self.ids)

    vocab = property(get_vocab)

    def encode(self, text, **_):
        return [self.id(piece) for piece in tokens(text, self.markers)]

    def decode(self, ids, **_):
        return "".join(self.texts[i] for i in ([ids] if isinstance(ids, int) else ids))

    def tokenize(self, text, **_):
        return tokens(text, self.markers)

    def convert_tokens_to_ids(self, these):
        return self.ids.get(these) if isinstance(these, str) else [self.ids.get(t) for t in these]

    def convert_ids_to_tokens(self, ids, **_):
        return self.texts[ids] if isinstance(ids, int) else [self.texts[i] for i in ids]

    def __len__(self):
        return len(self.texts)


def tokens(text, markers):
    """A text as tokens would bring it: markers whole, words, spaces and signs."""
    marks = "|".join(re.escape(marker) for marker in sorted(markers, key=len, reverse=True))
    return re.findall(f"(?:{marks})|\\w+|\\s|." if marks else r"\w+|\s|.", text, re.DOTALL)


def load(folder):
    """The parsers, with the packages around them empty."""
    sys.meta_path.insert(0, Finder())
    for name in ["vllm", "vllm.entrypoints", "vllm.entrypoints.generate", "vllm.utils"]:
        module = types.ModuleType(name)
        module.__path__ = [f"{folder}/{name.replace('.', '/')}"]
        sys.modules[name] = module
    sys.modules["vllm.utils"].random_uuid = lambda: uuid.uuid4().hex
    logger = StandIn("vllm.logger")
    logger.__path__ = []

    def init_logger(name):
        made = logging.getLogger(name)
        for level in ["info_once", "warning_once", "debug_once"]:
            setattr(made, level, lambda *a, **k: None)
        return made

    logger.init_logger = init_logger
    sys.modules["vllm.logger"] = logger
    envs = StandIn("vllm.envs")
    envs.__path__, envs.VLLM_ENFORCE_STRICT_TOOL_CALLING, envs.VLLM_MAX_STOP_STRINGS = [], False, 16
    envs.VLLM_TOOL_PARSE_REGEX_TIMEOUT_SECONDS = 1.0
    sys.modules["vllm.envs"] = envs
    sys.modules["vllm"].envs = envs
    engine = StandIn("vllm.entrypoints.serve.engine.protocol")
    engine.__path__, engine.OpenAIBaseModel = [], OpenAIBaseModel
    sys.modules[engine.__name__] = engine
    chat = StandIn("vllm.entrypoints.openai.chat_completion.protocol")
    chat.__path__ = []
    chat.ChatCompletionRequest, chat.ChatCompletionToolsParam = ChatCompletionRequest, ChatCompletionToolsParam
    sys.modules[chat.__name__] = chat
    utils = StandIn("vllm.renderers.chat_utils")
    utils.__path__, utils.make_tool_call_id = [], lambda *a, **k: uuid.uuid4().hex
    utils.get_tool_call_id_type = lambda *a, **k: "random"
    sys.modules[utils.__name__] = utils
    mistral = StandIn("vllm.utils.mistral")
    mistral.__path__, mistral.is_mistral_tokenizer = [], lambda tokenizer: False
    sys.modules[mistral.__name__] = mistral
    imports = StandIn("vllm.utils.import_utils")
    imports.__path__ = []
    sys.modules[imports.__name__] = imports
    from vllm.parser.parser_manager import ParserManager
    return ParserManager


def read_whole(parser, request, case, tokenizer, pieces):
    ids = [tokenizer.id(piece) for piece in pieces]
    thought, text, calls = parser.parse(case["output"], request, enable_auto_tools=True, model_output_token_ids=ids)
    return text, thought, [{"name": c.name, "arguments": c.arguments} for c in calls or []]


def read_streamed(parser, request, case, tokenizer, pieces):
    prompt = [tokenizer.id(p) for p in tokens("<think>" if case["in_thought"] else " ", tokenizer.markers)]
    text, thought, calls = "", "", {}
    for at, piece in enumerate(pieces):
        delta = parser.parse_delta(
            piece, [tokenizer.id(piece)], request, prompt_token_ids=prompt if at == 0 else None, finished=at + 1 == len(pieces))
        if delta is None:
            continue
        text += delta.content or ""
        thought += getattr(delta, "reasoning", None) or ""
        for item in delta.tool_calls or []:
            call = calls.setdefault(item.index, {"name": "", "arguments": ""})
            if item.function:
                call["name"] += item.function.name or ""
                call["arguments"] += item.function.arguments or ""
    return text, thought, [calls[index] for index in sorted(calls)]


def main(cases_path, folder):
    logging.disable(logging.CRITICAL)
    manager = load(folder)
    recorded = json.load(open(cases_path, encoding="utf-8"))
    tools = [ChatCompletionToolsParam(function=FunctionDefinition(**tool)) for tool in recorded["tools"]]
    results = []
    for index, case in enumerate(recorded["cases"]):
        names, thinks = PARSERS.get(case["dialect"], ([], None))
        markers = list(recorded["markers"][case["dialect"]]) + ["<think>", "</think>"]
        markers = list(dict.fromkeys(markers))
        for name in names:
            said = {"case": index, "parser": name}
            for mode in ["whole", "tokens", "chars"]:
                pieces = list(case["output"]) if mode == "chars" else tokens(case["output"], markers)
                tokenizer = Tokenizer(markers, pieces)
                try:
                    kind = manager.get_parser(tool_parser_name=name, reasoning_parser_name=thinks, enable_auto_tools=True)
                    parser = kind(tokenizer, tools)
                    run = read_whole if mode == "whole" else read_streamed
                    text, thought, calls = run(parser, ChatCompletionRequest(tools), case, tokenizer, pieces)
                    said[mode] = {"text": text or "", "thought": thought or "", "calls": calls}
                except Exception as error:  # what they raise is a result, too
                    said[mode] = {"error": f"{type(error).__name__}: {error}"}
            results.append(said)
    json.dump({"of": "vLLM", "results": results}, sys.stdout, ensure_ascii=False)


main(*sys.argv[1:])
