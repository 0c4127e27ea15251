"""langchain-openai: chats, streams, structured output in its three ways, tools, contexts that are too long."""

import asyncio
import contextlib
import os
import unittest

os.environ["LANGSMITH_TRACING"] = "false"

import openai
from common import ANSWER, BASE_URL, KEY, MODEL, QUESTION, TOO_LONG, Capital, Weather, check_weather
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI

JSON = "Return JSON with a key city: the capital of France."


@tool(args_schema=Weather)
def get_weather(city, days):
    """Get the weather of a city."""
    return f"sunny in {city} for {days} days"


def model(**options):
    return ChatOpenAI(**{
        "base_url": BASE_URL, "api_key": KEY, "model": MODEL, "temperature": 0, "max_tokens": 120, "max_retries": 0} | options)


class Chat(unittest.TestCase):
    def test_invoke_and_stream(self):
        said = model().invoke([SystemMessage("You are a helpful AI assistant named SmolLM, trained by Hugging Face"), HumanMessage(QUESTION)])
        self.assertEqual((said.content, said.response_metadata["finish_reason"]), (ANSWER, "stop"))
        self.assertEqual(said.usage_metadata["output_tokens"], 8)
        chunks = list(model(stream_usage=True).stream(QUESTION))
        self.assertEqual("".join(chunk.text for chunk in chunks), ANSWER)
        self.assertEqual(sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata), 8)
        self.assertEqual(asyncio.run(model().ainvoke(QUESTION)).content, ANSWER)
        self.assertEqual([each.content for each in model().batch([QUESTION] * 3)], [ANSWER] * 3)

    def test_completion(self):
        llm = OpenAI(base_url=BASE_URL, api_key=KEY, model=MODEL, temperature=0, max_tokens=4, max_retries=0)
        self.assertIn("four", llm.invoke("One, two, three,"))

    def test_structured_output(self):
        for method in ["json_schema", "function_calling"]:
            with self.subTest(method):
                self.assertIsInstance(model().with_structured_output(Capital, method=method).invoke(QUESTION), Capital)
                streamed = list(model().with_structured_output(Capital, method=method).stream(QUESTION))
                self.assertIsInstance(streamed[-1], Capital)
        # Some object, which may well be longer than what there is room for.
        with contextlib.suppress(openai.LengthFinishReasonError):
            said = model(max_tokens=40).with_structured_output(None, method="json_mode").invoke(JSON)
            self.assertIsInstance(said, dict)

    def test_tools(self):
        bound = model().bind_tools([get_weather], tool_choice="any", strict=True, parallel_tool_calls=False)
        said = bound.invoke(QUESTION)
        [call] = said.tool_calls
        self.assertEqual((call["name"], said.invalid_tool_calls), ("get_weather", []))
        check_weather(call["args"])
        result = get_weather.invoke(call)
        self.assertIsInstance(result, ToolMessage)
        after = model(max_tokens=8).invoke([HumanMessage(QUESTION), said, result])
        self.assertIsInstance(after, AIMessage)
        whole = None
        for chunk in model().bind_tools([get_weather], tool_choice="get_weather").stream(QUESTION):
            whole = chunk if whole is None else whole + chunk
        self.assertEqual([call["name"] for call in whole.tool_calls], ["get_weather"])
        check_weather(whole.tool_calls[0]["args"])

    def test_too_long(self):
        for options in [{}, {"use_responses_api": True}]:
            with self.subTest(options), self.assertRaises(ContextOverflowError):
                model(**options).invoke(TOO_LONG)


class Responses(unittest.TestCase):
    def test_invoke_and_stream(self):
        responses = model(use_responses_api=True)
        self.assertEqual(responses.invoke(QUESTION).text, ANSWER)
        self.assertEqual("".join(chunk.text for chunk in responses.stream(QUESTION)), ANSWER)

    def test_structured_output_and_tools(self):
        responses = model(use_responses_api=True)
        self.assertIsInstance(responses.with_structured_output(Capital).invoke(QUESTION), Capital)
        said = responses.bind_tools([get_weather], tool_choice="any", strict=True, parallel_tool_calls=False).invoke(QUESTION)
        [call] = said.tool_calls
        check_weather(call["args"])
        responses.invoke([HumanMessage(QUESTION), said, get_weather.invoke(call)], max_tokens=8)

    def test_previous_response(self):
        first = model(use_responses_api=True).invoke(QUESTION)
        follow = model(use_responses_api=True, use_previous_response_id=True, max_tokens=8)
        second = follow.invoke([HumanMessage(QUESTION), first, HumanMessage("And of Italy?")])
        self.assertGreater(second.usage_metadata["input_tokens"], first.usage_metadata["input_tokens"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
