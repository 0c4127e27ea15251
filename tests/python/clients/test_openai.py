"""openai: what its helpers make of structured output, tool calls and responses. Plain chats are in ../test_openai.py."""

import asyncio
import json
import unittest

import openai
from common import ANSWER, BASE_URL, CHAT, KEY, MODEL, QUESTION, TOO_LONG, Capital, Weather, check_weather

TOOL = openai.pydantic_function_tool(Weather, name="get_weather")
OTHER = {"type": "function", "function": {"name": "now", "parameters": {}}}
NAMED = {"type": "function", "function": {"name": "get_weather"}}
FLAT = {"type": "function", "name": "get_weather", "parameters": TOOL["function"]["parameters"], "strict": True}


def client(key=KEY):
    return openai.OpenAI(base_url=BASE_URL, api_key=key, max_retries=0)


def chat(**options):
    return {"model": MODEL, "messages": CHAT, "temperature": 0, "max_tokens": 120} | options


def respond(**options):
    return {"model": MODEL, "input": QUESTION, "temperature": 0, "max_output_tokens": 120} | options


class Chat(unittest.TestCase):
    def check_call(self, message):
        call = message.tool_calls[0]
        self.assertFalse(message.content)
        self.assertEqual((call.type, call.function.name), ("function", "get_weather"))
        check_weather(call.function.arguments)
        return call

    def test_parse(self):
        reply = client().chat.completions.parse(**chat(response_format=Capital))
        self.assertIsInstance(reply.choices[0].message.parsed, Capital)
        text = client().chat.completions.create(**chat(response_format={"type": "json_object"}, max_tokens=12))
        self.assertTrue(text.choices[0].message.content.startswith("{"), text)

    def test_length_cuts_a_form(self):
        with self.assertRaises(openai.LengthFinishReasonError):
            client().chat.completions.parse(**chat(response_format=Capital, max_tokens=3))

    def test_calls_that_must_come(self):
        for choice in ["required", NAMED]:
            with self.subTest(choice=choice):
                tools = [TOOL] if choice == "required" else [OTHER, TOOL]
                options = chat(tools=tools, tool_choice=choice, parallel_tool_calls=False)
                reply = client().chat.completions.create(**options)
                self.assertEqual(reply.choices[0].finish_reason, "tool_calls")
                call = self.check_call(reply.choices[0].message)
                parsed = client().chat.completions.parse(**options | {"tools": [TOOL]})
                self.assertIsInstance(parsed.choices[0].message.tool_calls[0].function.parsed_arguments, Weather)
                # The history of a tool's call goes back.
                history = [*CHAT, reply.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
                after = client().chat.completions.create(**chat(messages=history, tools=[TOOL], tool_choice="none", max_tokens=8))
                self.assertTrue(after.choices[0].message.content)

    def test_stream_of_calls(self):
        options = chat(tools=[TOOL], tool_choice="required", parallel_tool_calls=False)
        with client().chat.completions.stream(**options, stream_options={"include_usage": True}) as stream:
            events = list(stream)
            final = stream.get_final_completion()
        self.check_call(final.choices[0].message)
        self.assertEqual(final.choices[0].finish_reason, "tool_calls")
        self.assertEqual(final.usage.total_tokens, final.usage.prompt_tokens + final.usage.completion_tokens)
        deltas = [e.arguments_delta for e in events if e.type == "tool_calls.function.arguments.delta"]
        self.assertEqual("".join(deltas), final.choices[0].message.tool_calls[0].function.arguments)
        self.assertEqual([e.name for e in events if e.type == "tool_calls.function.arguments.done"], ["get_weather"])

    def test_stream_of_text_and_of_a_form(self):
        with client().chat.completions.stream(**chat()) as stream:
            text = "".join(event.delta for event in stream if event.type == "content.delta")
        self.assertEqual(text, ANSWER)
        with client().chat.completions.stream(**chat(response_format=Capital)) as stream:
            done = [event for event in stream if event.type == "content.done"]
        self.assertIsInstance(done[0].parsed, Capital)

    def test_async(self):
        async def both():
            async with openai.AsyncOpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0) as api:
                return await asyncio.gather(
                    api.chat.completions.parse(**chat(response_format=Capital)),
                    api.chat.completions.create(**chat(tools=[TOOL], tool_choice="required", parallel_tool_calls=False)))

        form, call = asyncio.run(both())
        self.assertIsInstance(form.choices[0].message.parsed, Capital)
        self.check_call(call.choices[0].message)


class Responses(unittest.TestCase):
    def test_create_and_go_on(self):
        first = client().responses.create(**respond())
        self.assertEqual((first.status, first.error, first.output_text), ("completed", None, ANSWER))
        told = client().responses.create(**respond(instructions="Answer in one word, and in English.", max_output_tokens=1))
        self.assertNotEqual(told.usage.input_tokens, first.usage.input_tokens)
        self.assertEqual(first.usage.total_tokens, first.usage.input_tokens + first.usage.output_tokens)
        second = client().responses.create(**respond(
            input="And of Italy?", previous_response_id=first.id, max_output_tokens=8))
        self.assertEqual(second.previous_response_id, first.id)
        self.assertGreater(second.usage.input_tokens, first.usage.input_tokens)
        self.assertEqual(client().responses.retrieve(first.id).output_text, first.output_text)
        client().responses.delete(first.id)
        with self.assertRaises(openai.NotFoundError):
            client().responses.retrieve(first.id)
        with self.assertRaises(openai.BadRequestError) as caught:
            client().responses.create(**respond(previous_response_id=first.id))
        self.assertEqual(caught.exception.code, "previous_response_not_found")

    def test_incomplete(self):
        reply = client().responses.create(**respond(max_output_tokens=2))
        self.assertEqual((reply.status, reply.incomplete_details.reason), ("incomplete", "max_output_tokens"))

    def test_stream(self):
        with client().responses.stream(**respond()) as stream:
            events = list(stream)
            final = stream.get_final_response()
        self.assertEqual([events[0].type, events[-1].type], ["response.created", "response.completed"])
        self.assertEqual([e.sequence_number for e in events], list(range(len(events))))
        text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
        self.assertEqual((text, final.output_text), (ANSWER, ANSWER))

    def test_parse(self):
        reply = client().responses.parse(**respond(text_format=Capital))
        self.assertIsInstance(reply.output_parsed, Capital)
        with client().responses.stream(**respond(text_format=Capital)) as stream:
            self.assertEqual(stream.get_final_response().output_parsed, reply.output_parsed)

    def test_tools(self):
        for choice in ["required", {"type": "function", "name": "get_weather"}]:
            options = respond(tools=[FLAT], tool_choice=choice, parallel_tool_calls=False)
            reply = client().responses.create(**options)
            [call] = reply.output
            self.assertEqual((call.type, call.name, call.status), ("function_call", "get_weather", "completed"))
            check_weather(call.arguments)
            with client().responses.stream(**options) as stream:
                events = list(stream)
            deltas = "".join(e.delta for e in events if e.type == "response.function_call_arguments.delta")
            self.assertEqual(deltas, call.arguments)
            result = {"type": "function_call_output", "call_id": call.call_id, "output": json.dumps({"sky": "blue"})}
            by_id = client().responses.create(**respond(input=[result], previous_response_id=reply.id, max_output_tokens=8))
            by_hand = client().responses.create(**respond(
                input=[{"role": "user", "content": QUESTION}, call.to_dict(), result], max_output_tokens=8))
            self.assertEqual(by_id.output_text, by_hand.output_text)


class Errors(unittest.TestCase):
    def test_codes(self):
        nobody, bad, key = openai.NotFoundError, openai.BadRequestError, openai.AuthenticationError
        unique = TOOL | {"function": {"name": "f", "strict": True, "parameters": {"type": "array", "uniqueItems": True}}}
        for expected, code, param, ask in [
            (nobody, "model_not_found", None, lambda: client().chat.completions.create(**chat(model="nobody"))),
            (nobody, "model_not_found", None, lambda: client().responses.create(**respond(model="nobody"))),
            (bad, "context_length_exceeded", None,
             lambda: client().chat.completions.create(**chat(messages=[{"role": "user", "content": TOO_LONG}]))),
            (bad, "context_length_exceeded", None, lambda: client().responses.create(**respond(input=TOO_LONG))),
            (bad, None, "tool_choice", lambda: client().chat.completions.create(**chat(tool_choice="required"))),
            (bad, None, "tools", lambda: client().chat.completions.create(**chat(tools=[unique]))),
            (key, "invalid_api_key", None, lambda: client("sk-nobody-knows-this").chat.completions.create(**chat())),
            (key, "invalid_api_key", None, lambda: client("sk-nobody-knows-this").responses.create(**respond())),
        ]:
            with self.subTest(code=code, param=param), self.assertRaises(expected) as caught:
                ask()
            error = caught.exception
            self.assertTrue(error.request_id)
            if code:
                self.assertEqual(error.code, code)
            if param:
                self.assertEqual(error.param, param)

    def test_a_stream_fails_before_it_begins(self):
        with self.assertRaises(openai.BadRequestError):
            client().chat.completions.create(**chat(response_format={"type": "json_schema", "json_schema": {
                "name": "x", "strict": True, "schema": {"not": {}}}}, stream=True))


if __name__ == "__main__":
    unittest.main(verbosity=2)
