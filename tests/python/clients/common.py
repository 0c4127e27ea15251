"""What the tests of clients share: where the daemon is, and what they ask it.

Run by tests/tests/clients.rs, against a daemon with `smollm2` loaded and an API key. The model is small and its template
hides tools, so what is asserted is what a grammar makes: calls where they must come, and the form of answers.
"""

import os
from typing import Literal

import pydantic

ROOT = os.environ["MINISGL_ROOT_URL"]
BASE_URL = f"{ROOT}/v1"
KEY = os.environ["MINISGL_API_KEY"]
MODEL = "smollm2"

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
CHAT = [{"role": "user", "content": QUESTION}]
# More than the model's context of 8192 tokens.
TOO_LONG = "word " * 9000


class Form(pydantic.BaseModel):
    # Else a model may add what it likes, for as long as it likes.
    model_config = pydantic.ConfigDict(extra="forbid")


class Capital(Form):
    """A form that is short whatever a model fills in."""

    city: Literal["Paris", "Rome"]
    inhabitants: int = pydantic.Field(ge=1000, le=9_999_999, description="of the city alone")
    river: Literal["Seine", "Tiber"] | None = None


class Place(Form):
    """One without bounds of numbers."""

    city: Literal["Paris", "Rome"]
    river: Literal["Seine", "Tiber"] | None


class Weather(Form):
    """Get the weather of a city."""

    city: Literal["Paris", "Ulm"]
    days: int = pydantic.Field(ge=1, le=7)


def check_weather(arguments):
    """Arguments as an object, or as their JSON. Some clients leave `additionalProperties` out of what they send."""
    parse = Weather.model_validate_json if isinstance(arguments, str) else Weather.model_validate
    return parse(arguments, extra="ignore")
