"""The official openai client, unmodified, against the daemon at MINISGL_BASE_URL with `smollm2` loaded."""

import asyncio
import os
import unittest
from typing import Literal

import openai
import pydantic

BASE_URL = os.environ["MINISGL_BASE_URL"]
MODEL = "smollm2"
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."
# Whether the device computes the same whatever is cached or batched; elsewhere a tie may fall either way.
EXACT = os.environ.get("MINISGL_TEST_DEVICE", "cpu") == "cpu"


def client(**options):
    return openai.OpenAI(base_url=BASE_URL, api_key="unused", max_retries=0, **options)


def async_client():
    return openai.AsyncOpenAI(base_url=BASE_URL, api_key="unused", max_retries=0)


class Sync(unittest.TestCase):
    def test_chat(self):
        reply = client().chat.completions.create(model=MODEL, messages=CAPITAL, temperature=0, max_tokens=40)
        self.assertEqual(reply.object, "chat.completion")
        self.assertEqual(reply.model, MODEL)
        choice = reply.choices[0]
        self.assertEqual((choice.message.role, choice.message.content), ("assistant", ANSWER))
        self.assertEqual(choice.finish_reason, "stop")
        usage = reply.usage
        self.assertEqual(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)
        self.assertEqual((usage.prompt_tokens, usage.completion_tokens), (37, 8))

    def test_chat_stream(self):
        stream = client().chat.completions.create(
            model=MODEL, messages=CAPITAL, temperature=0, max_tokens=40, stream=True,
            stream_options={"include_usage": True})
        chunks = list(stream)
        self.assertEqual(len({chunk.id for chunk in chunks}), 1)
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        self.assertEqual(text, ANSWER)
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        self.assertEqual([c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason], ["stop"])
        self.assertEqual(chunks[-1].choices, [])
        self.assertEqual(chunks[-1].usage.completion_tokens, 8)

    def test_content_parts(self):
        parts = [{"role": "user", "content": [{"type": "text", "text": CAPITAL[0]["content"]}]}]
        reply = client().chat.completions.create(model=MODEL, messages=parts, temperature=0, max_tokens=40)
        self.assertEqual(reply.choices[0].message.content, ANSWER)

    def test_max_completion_tokens_and_length(self):
        reply = client().chat.completions.create(model=MODEL, messages=CAPITAL, temperature=0, max_completion_tokens=3)
        self.assertEqual(reply.choices[0].finish_reason, "length")
        self.assertEqual(reply.usage.completion_tokens, 3)

    def test_stop_string_across_tokens(self):
        reply = client().chat.completions.create(
            model=MODEL, messages=CAPITAL, temperature=0, max_tokens=40, stop=["France is"])
        self.assertEqual(reply.choices[0].message.content, "The capital of ")
        self.assertEqual(reply.choices[0].finish_reason, "stop")

    def test_logprobs(self):
        reply = client().chat.completions.create(
            model=MODEL, messages=CAPITAL, temperature=0, max_tokens=4, logprobs=True, top_logprobs=5)
        content = reply.choices[0].logprobs.content
        self.assertEqual(len(content), 4)
        for token in content:
            self.assertLessEqual(token.logprob, 0)
            self.assertEqual(len(token.top_logprobs), 5)
            self.assertEqual(token.token, token.top_logprobs[0].token)
        self.assertEqual("".join(t.token for t in content), reply.choices[0].message.content)

    def test_parse(self):
        class Capital(pydantic.BaseModel):
            city: str = pydantic.Field(max_length=20)
            inhabitants: int = pydantic.Field(ge=1000, le=99999999)
            river: Literal["Seine", "Rhine"]

        reply = client().chat.completions.parse(
            model=MODEL, messages=CAPITAL, temperature=0, max_tokens=200, response_format=Capital)
        self.assertEqual(reply.choices[0].finish_reason, "stop")
        self.assertIsInstance(reply.choices[0].message.parsed, Capital)
        with client().chat.completions.stream(
                model=MODEL, messages=CAPITAL, temperature=0, max_tokens=200, response_format=Capital) as stream:
            self.assertEqual(stream.get_final_completion().choices[0].message.parsed, reply.choices[0].message.parsed)

    def test_choice(self):
        reply = client().chat.completions.create(
            model=MODEL, messages=CAPITAL, temperature=0, max_tokens=20,
            extra_body={"structured_outputs": {"choice": ["Paris", "Rome"]}})
        self.assertEqual(reply.choices[0].message.content, "Paris")
        with self.assertRaises(openai.BadRequestError) as caught:
            client().chat.completions.create(model=MODEL, messages=CAPITAL, extra_body={"guided_regex": "("})
        self.assertEqual(caught.exception.param, "guided_regex")

    def test_seed_and_choices(self):
        def sample(seed):
            reply = client().chat.completions.create(
                model=MODEL, messages=CAPITAL, temperature=1.5, max_tokens=12, seed=seed, n=3)
            return [choice.message.content for choice in reply.choices]

        first, again, other = sample(1), sample(1), sample(2)
        self.assertEqual(first, again)
        self.assertNotEqual(first, other)
        self.assertGreater(len(set(first)), 1)

    def test_completion(self):
        reply = client().completions.create(model=MODEL, prompt="One, two, three,", temperature=0, max_tokens=4)
        self.assertIn("four", reply.choices[0].text)
        self.assertEqual(reply.object, "text_completion")

    def test_completion_batch_and_token_ids(self):
        reply = client().completions.create(model=MODEL, prompt=["One, two, three,", "A, B, C,"], temperature=0, max_tokens=4)
        self.assertEqual([choice.index for choice in reply.choices], [0, 1])
        self.assertIn("four", reply.choices[0].text)
        self.assertIn("D", reply.choices[1].text)
        ids = client().completions.create(model=MODEL, prompt=[[504, 3575, 282], [504]], max_tokens=2)
        self.assertEqual(ids.usage.prompt_tokens, 4)

    def test_completion_stream(self):
        stream = client().completions.create(
            model=MODEL, prompt="One, two, three,", temperature=0, max_tokens=4, stream=True)
        self.assertIn("four", "".join(c.choices[0].text for c in stream if c.choices))

    def test_characters_split_over_tokens(self):
        # Greedy, and far from a tie: 2.7 nat at least, so that no rounding and no cached prefix changes the answer.
        def ask(**options):
            return client().completions.create(
                model=MODEL, prompt="\u5317\u4eac\n" * 12, temperature=0, max_tokens=24, **options)

        whole = ask()
        lines = "\u5317\u4eac\n" * 8
        self.assertTrue(lines.startswith(whole.choices[0].text), whole.choices[0].text)
        self.assertLess(len(whole.choices[0].text), whole.usage.completion_tokens)
        chunks = [c.choices[0].text for c in ask(stream=True) if c.choices]
        self.assertEqual("".join(chunks), whole.choices[0].text)
        self.assertGreater(len(chunks), 5)

    def test_unicode_in_chat(self):
        # What is said is a tie of 0.01 nat, so this is about the form: only the end may cut a character.
        messages = [{"role": "user", "content": "Repeat: na\u00efve caf\u00e9 \u5317\u4eac \U0001f642"}]
        whole = client().chat.completions.create(model=MODEL, messages=messages, temperature=0, max_tokens=24)
        stream = client().chat.completions.create(model=MODEL, messages=messages, temperature=0, max_tokens=24, stream=True)
        text = "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
        for said in [whole.choices[0].message.content, text]:
            self.assertNotIn("\ufffd", said[:-1])
        if EXACT:
            self.assertEqual(text, whole.choices[0].message.content)

    def test_models(self):
        models = client().models.list()
        self.assertEqual([model.id for model in models], [MODEL])
        self.assertEqual(client().models.retrieve(MODEL).id, MODEL)

    def test_errors(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            client().chat.completions.create(model="nobody", messages=CAPITAL)
        self.assertEqual(caught.exception.code, "model_not_found")
        with self.assertRaises(openai.BadRequestError) as caught:
            client().chat.completions.create(model=MODEL, messages=CAPITAL, temperature=-1)
        self.assertEqual(caught.exception.param, "temperature")
        with self.assertRaises(openai.BadRequestError) as caught:
            client().chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "word " * 20000}])
        self.assertEqual(caught.exception.code, "context_length_exceeded")
        with self.assertRaises(openai.NotFoundError):
            client().models.retrieve("nobody")

    def test_stream_left_early(self):
        with client().chat.completions.create(model=MODEL, messages=CAPITAL, max_tokens=500, stream=True) as stream:
            next(iter(stream))
        self.test_chat()


class Async(unittest.IsolatedAsyncioTestCase):
    async def test_chat(self):
        async with async_client() as api:
            reply = await api.chat.completions.create(model=MODEL, messages=CAPITAL, temperature=0, max_tokens=40)
            self.assertEqual(reply.choices[0].message.content, ANSWER)

    async def test_32_streams(self):
        async def one(api, number):
            stream = await api.chat.completions.create(
                model=MODEL, messages=CAPITAL, temperature=0, max_tokens=40, stream=True, user=str(number))
            return "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])

        async with async_client() as api:
            answers = await asyncio.gather(*(one(api, number) for number in range(32)))
        self.assertEqual(answers, [ANSWER] * 32)


if __name__ == "__main__":
    unittest.main(verbosity=2)
