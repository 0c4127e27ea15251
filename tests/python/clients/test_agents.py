"""openai-agents: runs with a tool, a typed output, streams; over chat completions and responses."""

import unittest

from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, function_tool, set_tracing_disabled
from common import ANSWER, BASE_URL, KEY, MODEL, QUESTION, Capital, Weather
from openai import AsyncOpenAI

set_tracing_disabled(True)

asked = []


@function_tool
def get_weather(weather: Weather) -> str:
    """Get the weather of a city."""
    asked.append(weather)
    return "sunny"


class Agents(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        self.api = AsyncOpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0)
        self.addAsyncCleanup(self.api.close)

    def agent(self, kind, settings=None, max_tokens=120, **options):
        settings = ModelSettings(temperature=0, max_tokens=max_tokens, **settings or {})
        return Agent(name="guide", model=kind(model=MODEL, openai_client=self.api), model_settings=settings, **options)

    async def for_each(self, ask):
        for kind in [OpenAIChatCompletionsModel, OpenAIResponsesModel]:
            with self.subTest(kind.__name__):
                await ask(kind)

    async def test_text(self):
        async def ask(kind):
            self.assertEqual((await Runner.run(self.agent(kind), QUESTION)).final_output, ANSWER)
            stream = Runner.run_streamed(self.agent(kind), QUESTION)
            deltas = [
                event.data.delta async for event in stream.stream_events()
                if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"]
            self.assertEqual(("".join(deltas), stream.final_output), (ANSWER, ANSWER))

        await self.for_each(ask)

    async def test_output_type(self):
        async def ask(kind):
            self.assertIsInstance((await Runner.run(self.agent(kind, output_type=Capital), QUESTION)).final_output, Capital)

        await self.for_each(ask)

    async def test_a_tool_is_run(self):
        async def ask(kind):
            asked.clear()
            options = {"tools": [get_weather], "settings": {"tool_choice": "required", "parallel_tool_calls": False}}
            result = await Runner.run(self.agent(kind, tool_use_behavior="stop_on_first_tool", **options), QUESTION)
            self.assertEqual((len(asked), result.final_output), (1, "sunny"))
            options["settings"]["tool_choice"] = "get_weather"
            stream = Runner.run_streamed(self.agent(kind, tool_use_behavior="stop_on_first_tool", **options), QUESTION)
            items = [event.item.type async for event in stream.stream_events() if event.type == "run_item_stream_event"]
            self.assertEqual(items, ["tool_call_item", "tool_call_output_item"])
            self.assertEqual((len(asked), stream.final_output), (2, "sunny"))

        await self.for_each(ask)

    async def test_the_tools_output_goes_back(self):
        async def ask(kind):
            first = await Runner.run(self.agent(
                kind, tools=[get_weather], tool_use_behavior="stop_on_first_tool",
                settings={"tool_choice": "required", "parallel_tool_calls": False}), QUESTION)
            history = [*first.to_input_list(), {"role": "user", "content": QUESTION}]
            self.assertTrue((await Runner.run(self.agent(kind, max_tokens=8), history)).final_output)

        await self.for_each(ask)


if __name__ == "__main__":
    unittest.main(verbosity=2)
