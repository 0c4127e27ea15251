"""pydantic-ai: text, its structured outputs, tools and streams over the three surfaces; contexts that are too long."""

import unittest

from anthropic import AsyncAnthropic
from common import ANSWER, BASE_URL, KEY, MODEL, QUESTION, ROOT, TOO_LONG, Capital, Place, Weather, check_weather
from openai import AsyncOpenAI
from pydantic_ai import Agent, NativeOutput, exceptions
from pydantic_ai.direct import model_request, model_request_stream
from pydantic_ai.messages import ModelRequest, ToolReturnPart
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.tools import ToolDefinition

SETTINGS = {"temperature": 0, "max_tokens": 120, "parallel_tool_calls": False}


class Agents(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        openai = AsyncOpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0)
        anthropic = AsyncAnthropic(base_url=ROOT, api_key=KEY, max_retries=0)
        self.addAsyncCleanup(openai.close)
        self.addAsyncCleanup(anthropic.close)
        self.models = [
            OpenAIChatModel(MODEL, provider=OpenAIProvider(openai_client=openai)),
            OpenAIResponsesModel(MODEL, provider=OpenAIProvider(openai_client=openai)),
            AnthropicModel(MODEL, provider=AnthropicProvider(anthropic_client=anthropic)),
        ]

    async def for_each(self, ask):
        for model in self.models:
            with self.subTest(type(model).__name__):
                await ask(model)

    async def test_text(self):
        async def ask(model):
            result = await Agent(model, model_settings=SETTINGS).run(QUESTION)
            self.assertEqual(result.output, ANSWER)
            self.assertEqual(result.usage.output_tokens, 8)
            async with Agent(model, model_settings=SETTINGS).run_stream(QUESTION) as stream:
                self.assertEqual("".join([text async for text in stream.stream_text(delta=True)]), ANSWER)

        await self.for_each(ask)

    async def test_output_by_a_tool(self):
        async def ask(model):
            agent = Agent(model, output_type=Place, model_settings=SETTINGS)
            self.assertIsInstance((await agent.run(QUESTION)).output, Place)
            async with agent.run_stream(QUESTION) as stream:
                self.assertIsInstance(await stream.get_output(), Place)

        await self.for_each(ask)

    async def test_native_output(self):
        async def ask(model):
            # Anthropic's are for models that the client knows by name.
            if isinstance(model, AnthropicModel):
                return
            self.assertIsInstance((await Agent(model, output_type=NativeOutput(Capital), model_settings=SETTINGS).run(QUESTION)).output, Capital)

        await self.for_each(ask)

    async def test_an_output_function(self):
        def get_weather(weather: Place) -> str:
            """Get the weather of a city."""
            return f"sunny in {weather.city}"

        async def ask(model):
            result = await Agent(model, output_type=get_weather, model_settings=SETTINGS).run(QUESTION)
            self.assertIn(result.output, ["sunny in Paris", "sunny in Rome"])

        await self.for_each(ask)

    async def test_a_tool_is_called_and_answered(self):
        tool = ToolDefinition(name="get_weather", parameters_json_schema=Weather.model_json_schema())
        first = ModelRequest.user_text_prompt(QUESTION)

        async def ask(model):
            must = ModelRequestParameters(function_tools=[tool], allow_text_output=False)
            called = await model_request(model, [first], model_settings=SETTINGS, model_request_parameters=must)
            [call] = called.tool_calls
            # A response with calls is `completed`, which this client calls a stop.
            reason = "stop" if isinstance(model, OpenAIResponsesModel) else "tool_call"
            self.assertEqual((call.tool_name, called.finish_reason), ("get_weather", reason))
            check_weather(call.args)
            result = ModelRequest(parts=[ToolReturnPart("get_weather", "sunny", tool_call_id=call.tool_call_id)])
            said = await model_request(model, [first, called, result], model_settings=SETTINGS | {"max_tokens": 8})
            self.assertTrue(said.text)
            async with model_request_stream(model, [first], model_settings=SETTINGS, model_request_parameters=must) as stream:
                async for _ in stream:
                    pass
            [streamed] = stream.get().tool_calls
            self.assertEqual(streamed.args_as_dict(), call.args_as_dict())

        await self.for_each(ask)

    async def test_too_long(self):
        async def ask(model):
            with self.assertRaises(exceptions.ModelContextWindowExceededError):
                await Agent(model, model_settings=SETTINGS).run(TOO_LONG)

        await self.for_each(ask)


if __name__ == "__main__":
    unittest.main(verbosity=2)
