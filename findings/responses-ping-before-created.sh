#!/usr/bin/env bash
# What a good engineer would guess: a stream of server-sent events may say "ping" in silence wherever it likes. As a comment (": ping") every client reads
# over it; as an event of its own, with data, it is one more type that a client does not know and so ignores. Coding agents want the event: Codex counts
# events with data alone as a sign of life and gives a silent stream up, comments or not.
#
# What is true (openai 3.57.0 for Python): the client takes such an event anywhere but in front. responses.create(stream=True) hands a ping before
# response.created out like any other event, but the helper responses.stream() ends there with a RuntimeError: it wants response.created to be the very first.
# A comment in front, or the same event behind response.created, it takes.
#
# Why a server of models cares: it is silent longest before the first token, while a prompt waits and is read, which is when a keep-alive is needed most, and it would
# like to say nothing else before it knows that the request will not fail. Both kinds of clients are content only where response.created itself is
# the first sign of life, so minisgld opens a response's stream with it when the first ping is due, and sends events named ping from then on.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check openai==3.57.0
cat >"$work/ping.py" <<'PY'
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import openai

print("openai", openai.__version__)
RESPONSE = {"id": "resp_1", "object": "response", "created_at": 1, "model": "m", "output": [], "status": "in_progress",
            "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
MESSAGE = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed",
           "content": [{"type": "output_text", "text": "Hi", "annotations": []}]}


def event(kind, **fields):
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n"


def stream(first, later):
    at = {"output_index": 0, "content_index": 0, "item_id": "msg_1"}
    begun = {**MESSAGE, "status": "in_progress", "content": []}
    part = {"type": "output_text", "text": "", "annotations": []}
    return "".join([
        first,
        event("response.created", sequence_number=0, response=RESPONSE),
        later,
        event("response.output_item.added", sequence_number=1, output_index=0, item=begun),
        event("response.content_part.added", sequence_number=2, part=part, **at),
        event("response.output_text.delta", sequence_number=3, delta="Hi", logprobs=[], **at),
        event("response.output_text.done", sequence_number=4, text="Hi", logprobs=[], **at),
        event("response.output_item.done", sequence_number=5, output_index=0, item=MESSAGE),
        event("response.completed", sequence_number=6, response={**RESPONSE, "status": "completed", "output": [MESSAGE]}),
    ])


body = ""


class Server(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        answer = body.encode()
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="unused", max_retries=0)


def raw():
    return [event.type for event in client.responses.create(model="m", input="x", stream=True)][:2]


def helper():
    with client.responses.stream(model="m", input="x") as events:
        for _ in events:
            pass
        return events.get_final_response().output_text


def run(what):
    try:
        return what()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


EVENT, COMMENT = event("ping"), ": ping\n\n"
seen = {}
for name, first, later in [("no ping", "", ""), ("comment in front", COMMENT, ""), ("event in front", EVENT, ""), ("event later", "", EVENT)]:
    body = stream(first, later)
    seen[name] = (run(raw), run(helper))
    print(f"{name:16}  create(stream=True): {seen[name][0]}  stream(): {seen[name][1]!r}")

assert all(seen[name][1] == "Hi" for name in ("no ping", "comment in front", "event later")), seen
assert seen["event in front"][0] == ["ping", "response.created"], seen
assert seen["event in front"][1].startswith("RuntimeError") and "response.created" in seen["event in front"][1], seen
PY
"$work/venv/bin/python" "$work/ping.py"
echo "as described"
