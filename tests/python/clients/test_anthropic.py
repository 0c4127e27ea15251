"""anthropic: messages, streams, tools, thoughts in the history, errors."""

import asyncio
import unittest

import anthropic
from common import ANSWER, CHAT, KEY, MODEL, ROOT, TOO_LONG, Capital, Place, Weather, check_weather

TOOL = {"name": "get_weather", "description": "Get the weather of a city.", "input_schema": Weather.model_json_schema()}
ANY = {"type": "any", "disable_parallel_tool_use": True}


def client(key=KEY, **options):
    return anthropic.Anthropic(base_url=ROOT, api_key=key, max_retries=0, **options)


def ask(**options):
    return {"model": MODEL, "messages": CHAT, "max_tokens": 120, "extra_body": {"temperature": 0}} | options


class Messages(unittest.TestCase):
    def test_create(self):
        reply = client().messages.create(**ask())
        self.assertEqual((reply.type, reply.role, reply.model, reply.stop_reason), ("message", "assistant", MODEL, "end_turn"))
        self.assertEqual([(block.type, block.text) for block in reply.content], [("text", ANSWER)])
        self.assertEqual(reply.usage.output_tokens, 8)
        system = client().messages.create(**ask(system=[{"type": "text", "text": "Be brief."}], max_tokens=3))
        self.assertEqual((system.stop_reason, system.usage.output_tokens), ("max_tokens", 3))
        stopped = client().messages.create(**ask(stop_sequences=["France"]))
        self.assertEqual((stopped.stop_reason, stopped.stop_sequence), ("stop_sequence", "France"))
        self.assertEqual(stopped.content[0].text, "The capital of ")

    def test_stream(self):
        with client().messages.stream(**ask()) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        self.assertEqual((text, final.content[0].text), (ANSWER, ANSWER))
        self.assertEqual((final.stop_reason, final.usage.output_tokens), ("end_turn", 8))
        events = [event.type for event in client().messages.create(**ask(stream=True)) if event.type != "ping"]
        self.assertEqual(events[:2], ["message_start", "content_block_start"])
        self.assertEqual(events[-3:], ["content_block_stop", "message_delta", "message_stop"])

    def test_tools(self):
        for choice in [ANY, {"type": "tool", "name": "get_weather"}]:
            reply = client().messages.create(**ask(tools=[TOOL], tool_choice=choice))
            self.assertEqual(reply.stop_reason, "tool_use")
            [call] = reply.content
            self.assertEqual((call.type, call.name), ("tool_use", "get_weather"))
            check_weather(call.input)
            # The history of a call goes back, with a result of the tool.
            result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "sunny"}]}
            messages = [*CHAT, {"role": "assistant", "content": reply.content}, {"role": "user", "content": [result]}]
            after = client().messages.create(**ask(messages=messages, tools=[TOOL], tool_choice={"type": "none"}, max_tokens=8))
            self.assertEqual([block.type for block in after.content], ["text"])

    def test_stream_of_tools(self):
        with client().messages.stream(**ask(tools=[TOOL], tool_choice=ANY)) as stream:
            pieces = [event.partial_json for event in stream if event.type == "input_json"]
            final = stream.get_final_message()
        self.assertEqual(final.stop_reason, "tool_use")
        check_weather(final.content[0].input)
        self.assertEqual(check_weather("".join(pieces)), check_weather(final.content[0].input))

    def test_form(self):
        reply = client().messages.parse(**ask(output_format=Place))
        self.assertIsInstance(reply.parsed_output, Place)
        # The helper tells bounds of numbers in words; a schema as it is has them.
        schema = {"type": "json_schema", "schema": Capital.model_json_schema()}
        reply = client().messages.create(**ask(output_config={"format": schema}))
        Capital.model_validate_json(reply.content[0].text)

    def test_thoughts_in_the_history(self):
        said = [{"type": "thinking", "thinking": "France, so Paris.", "signature": ""}, {"type": "text", "text": ANSWER}]
        messages = [*CHAT, {"role": "assistant", "content": said}, {"role": "user", "content": "And of Italy?"}]
        thinking = {"type": "enabled", "budget_tokens": 1024}
        reply = client().messages.create(**ask(messages=messages, max_tokens=16, thinking=thinking))
        self.assertEqual([block.type for block in reply.content], ["text"])

    def test_count_tokens(self):
        counted = client().messages.count_tokens(model=MODEL, messages=CHAT)
        # Those of an OpenAI chat: ../test_openai.py has them, too.
        self.assertEqual(counted.input_tokens, 37)
        more = client().messages.count_tokens(model=MODEL, messages=CHAT, system="Answer in one short sentence.", tools=[TOOL])
        self.assertNotEqual(more.input_tokens, 37)

    def test_async(self):
        async def stream():
            async with anthropic.AsyncAnthropic(base_url=ROOT, api_key=KEY, max_retries=0) as api:
                async with api.messages.stream(**ask()) as stream:
                    return "".join([text async for text in stream.text_stream])

        self.assertEqual(asyncio.run(stream()), ANSWER)

    def test_models(self):
        self.assertEqual([model.id for model in client().models.list()], [MODEL])


class Errors(unittest.TestCase):
    def test_types(self):
        long = [{"role": "user", "content": TOO_LONG}]
        for expected, kind, told, request in [
            (anthropic.NotFoundError, "not_found_error", "nobody", ask(model="nobody")),
            (anthropic.BadRequestError, "invalid_request_error", "max_tokens", ask(max_tokens=0)),
            (anthropic.BadRequestError, "invalid_request_error", "prompt is too long: ", ask(messages=long)),
            (anthropic.BadRequestError, "invalid_request_error", "nothing", ask(tools=[TOOL], tool_choice={"type": "tool", "name": "nothing"})),
        ]:
            for more in [{}, {"stream": True}]:
                with self.subTest(told=told, **more), self.assertRaises(expected) as caught:
                    client().messages.create(**request | more)
                error = caught.exception
                self.assertEqual((error.body["type"], error.body["error"]["type"]), ("error", kind))
                self.assertIn(told, error.body["error"]["message"])
                self.assertTrue(error.request_id)

    def test_keys(self):
        with self.assertRaises(anthropic.AuthenticationError) as caught:
            client("sk-nobody-knows-this").messages.create(**ask())
        self.assertEqual(caught.exception.body["error"]["type"], "authentication_error")
        # As older releases send it.
        old = client(default_headers={"x-api-key": KEY, "authorization": anthropic.Omit()})
        self.assertEqual(old.messages.create(**ask(max_tokens=1)).stop_reason, "max_tokens")
        bad = client(default_headers={"x-api-key": "sk-nobody-knows-this", "authorization": anthropic.Omit()})
        with self.assertRaises(anthropic.AuthenticationError):
            bad.messages.create(**ask())


if __name__ == "__main__":
    unittest.main(verbosity=2)
