"""instructor: forms through tools, JSON schemas and its partial streams, on an older openai that it brings."""

import unittest

import instructor
import openai
from common import BASE_URL, CHAT, KEY, MODEL, TOO_LONG, Capital, Place, Weather

WAYS = [instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA]


def client(mode):
    return instructor.from_openai(openai.OpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0), mode=mode)


class Forms(unittest.TestCase):
    def test_every_way_of_asking_gives_the_form(self):
        for mode in WAYS:
            for form in (Capital, Place, Weather):
                with self.subTest(mode=mode, form=form.__name__):
                    made = client(mode).create(
                        model=MODEL, messages=CHAT, response_model=form, max_retries=0, max_tokens=120, temperature=0)
                    self.assertIsInstance(made, form)
                    form.model_validate(made.model_dump())

    def test_the_answer_as_it_came_is_there_too(self):
        made, completion = client(instructor.Mode.TOOLS).create_with_completion(
            model=MODEL, messages=CHAT, response_model=Weather, max_retries=0, max_tokens=120, temperature=0)
        call = completion.choices[0].message.tool_calls[0]
        self.assertEqual((call.function.name, Weather.model_validate_json(call.function.arguments).model_dump()), ("Weather", made.model_dump()))

    def test_a_form_grows_while_it_streams(self):
        for mode in WAYS:
            with self.subTest(mode=mode):
                parts = list(client(mode).create_partial(
                    model=MODEL, messages=CHAT, response_model=Place, max_retries=0, max_tokens=120, temperature=0))
                self.assertIn(parts[-1].city, ("Paris", "Rome"))

    def test_errors_are_the_servers(self):
        with self.assertRaises(Exception) as raised:
            client(instructor.Mode.TOOLS).create(
                model=MODEL, messages=[{"role": "user", "content": TOO_LONG}], response_model=Place, max_retries=0, max_tokens=10)
        self.assertIn("maximum context length", str(raised.exception))


if __name__ == "__main__":
    unittest.main()
