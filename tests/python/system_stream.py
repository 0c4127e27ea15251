"""One stream of the official openai client against the service: `first` when it begins, then how it ended."""

import sys

import openai

model, tokens = sys.argv[1], int(sys.argv[2])
client = openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="unused", max_retries=0)
stream = client.completions.create(
    model=model, prompt="Once upon a time", max_tokens=tokens, temperature=0, stream=True,
    stream_options={"include_usage": True}, extra_body={"ignore_eos": True})
finish, usage, begun = None, None, False
for chunk in stream:
    if not begun:
        print("first", flush=True)
        begun = True
    for choice in chunk.choices:
        finish = choice.finish_reason or finish
    usage = chunk.usage or usage
print(finish, usage.completion_tokens)
