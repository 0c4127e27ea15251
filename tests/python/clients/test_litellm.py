"""litellm: completions, streams, tools, forms, its bridges from other surfaces, contexts that are too long."""

import asyncio
import os
import unittest

# Nothing is fetched.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
from common import ANSWER, BASE_URL, CHAT, KEY, MODEL, QUESTION, ROOT, TOO_LONG, Capital, Weather, check_weather

SCHEMA = Weather.model_json_schema()
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}
PROVIDERS = ["openai", "hosted_vllm"]


def options(provider="openai", **more):
    return {
        "model": f"{provider}/{MODEL}", "api_base": BASE_URL, "api_key": KEY, "temperature": 0, "max_tokens": 120, "num_retries": 0} | more


def chat(provider="openai", **more):
    return options(provider, messages=CHAT, **more)


class Completions(unittest.TestCase):
    def test_text(self):
        for provider in PROVIDERS:
            with self.subTest(provider):
                reply = litellm.completion(**chat(provider))
                self.assertEqual((reply.choices[0].message.content, reply.choices[0].finish_reason), (ANSWER, "stop"))
                self.assertEqual(reply.usage.completion_tokens, 8)
                stream = litellm.completion(**chat(provider, stream=True))
                self.assertEqual("".join(chunk.choices[0].delta.content or "" for chunk in stream), ANSWER)
        self.assertEqual(asyncio.run(litellm.acompletion(**chat())).choices[0].message.content, ANSWER)

    def test_tools(self):
        for provider in PROVIDERS:
            with self.subTest(provider):
                ask = chat(provider, tools=[TOOL], tool_choice="required", parallel_tool_calls=False)
                reply = litellm.completion(**ask)
                [call] = reply.choices[0].message.tool_calls
                self.assertEqual((reply.choices[0].finish_reason, call.function.name), ("tool_calls", "get_weather"))
                check_weather(call.function.arguments)
                chunks = list(litellm.completion(**ask, stream=True))
                whole = litellm.stream_chunk_builder(chunks)
                self.assertEqual(whole.choices[0].message.tool_calls[0].function.arguments, call.function.arguments)

    def test_forms(self):
        for provider in PROVIDERS:
            with self.subTest(provider):
                reply = litellm.completion(**chat(provider, response_format=Capital))
                Capital.model_validate_json(reply.choices[0].message.content)

    def test_errors(self):
        for provider in PROVIDERS:
            for expected, more in [
                (litellm.ContextWindowExceededError, {"messages": [{"role": "user", "content": TOO_LONG}]}),
                (litellm.NotFoundError, {"model": f"{provider}/nobody"}),
                (litellm.AuthenticationError, {"api_key": "sk-nobody-knows-this"}),
                (litellm.BadRequestError, {"temperature": -1}),
            ]:
                with self.subTest(provider, expected=expected), self.assertRaises(expected):
                    litellm.completion(**chat(provider) | more)


class Bridges(unittest.TestCase):
    def test_responses(self):
        ask = options(input=QUESTION, max_output_tokens=120)
        del ask["max_tokens"]
        self.assertEqual(litellm.responses(**ask).output_text, ANSWER)
        events = [event.type for event in litellm.responses(**ask, stream=True)]
        self.assertEqual((events[0], events[-1]), ("response.created", "response.completed"))

    def test_anthropics_form_over_openais(self):
        tool = {"name": "get_weather", "input_schema": SCHEMA}
        for provider in PROVIDERS:
            with self.subTest(provider):
                reply = litellm.anthropic.messages.create(**chat(provider))
                self.assertEqual(reply["content"][0]["text"], ANSWER)
                reply = litellm.anthropic.messages.create(**chat(provider, tools=[tool], tool_choice={"type": "tool", "name": "get_weather"}))
                calls = [block for block in reply["content"] if block["type"] == "tool_use"]
                self.assertEqual([call["name"] for call in calls], ["get_weather"])
                check_weather(calls[0]["input"])

    def test_openais_form_over_anthropics(self):
        ask = chat("anthropic", api_base=ROOT)
        self.assertEqual(litellm.completion(**ask).choices[0].message.content, ANSWER)
        stream = litellm.completion(**ask, stream=True)
        self.assertEqual("".join(chunk.choices[0].delta.content or "" for chunk in stream), ANSWER)
        reply = litellm.completion(**ask, tools=[TOOL], tool_choice="required", parallel_tool_calls=False)
        check_weather(reply.choices[0].message.tool_calls[0].function.arguments)
        with self.assertRaises(litellm.ContextWindowExceededError):
            litellm.completion(**ask | {"messages": [{"role": "user", "content": TOO_LONG}]})


if __name__ == "__main__":
    unittest.main(verbosity=2)
