"""Streams that outlive their worker: opens many, kills the worker again and again, looks for a lost or doubled token.

Needs a running daemon with a model, its admin socket, and nothing but Python. Each stream is read with its token ids:
every chunk has to go on where the one before ended, and the whole has to have as many ids as were asked for.

  survive_kills.py --url 127.0.0.1:8000 --ctl target/release/minisglctl --socket /tmp/minisgld.sock --model m
"""

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time


class Stream:
    """One stream: the ids so far, and when each chunk came."""

    def __init__(self, number, prompt, tokens, sampling):
        self.number, self.prompt, self.tokens, self.sampling = number, prompt, tokens, sampling
        self.ids = []
        self.times = []
        self.fault = None
        self.ended = None

    async def run(self, host, port, model):
        try:
            await self.read(host, port, model)
        except Exception as error:  # a stream that fails is the finding, not the end of the run
            self.fault = f"{type(error).__name__}: {error}"

    async def read(self, host, port, model):
        body = json.dumps({
            "model": model, "input_ids": self.prompt, "stream": True,
            "sampling_params": {"max_new_tokens": self.tokens, "ignore_eos": True, **self.sampling},
        }).encode()
        reader, writer = await asyncio.open_connection(host, port, limit=1 << 26)
        head = f"POST /generate HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        writer.write(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        status = await reader.readline()
        if b" 200 " not in status:
            rest = await asyncio.wait_for(reader.read(2000), 5)
            raise RuntimeError(f"{status!r} {rest[-500:]!r}")
        while True:
            line = await reader.readline()
            if not line:
                raise RuntimeError(f"broke off after {len(self.ids)} tokens")
            if not line.startswith(b"data: "):
                continue
            if line.startswith(b"data: [DONE]"):
                writer.close()
                return
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise RuntimeError(f"after {len(self.ids)} tokens: {chunk['error']}")
            ids = chunk["output_ids"]
            if ids[: len(self.ids)] != self.ids:
                raise RuntimeError(f"a chunk does not go on where the one before ended ({len(self.ids)} tokens)")
            self.ids = ids
            self.times.append(time.monotonic())
            meta = chunk["meta_info"]
            if meta["completion_tokens"] != len(ids):
                raise RuntimeError(f"usage says {meta['completion_tokens']}, there are {len(ids)} ids")
            self.ended = meta["finish_reason"]

    def verdict(self):
        if self.fault:
            return self.fault
        if len(self.ids) != self.tokens:
            return f"{len(self.ids)} ids of {self.tokens}"
        if not self.ended or self.ended.get("type") != "length":
            return f"ended with {self.ended}"
        return None


def worker(args):
    out = subprocess.run(
        [args.ctl, "-o", "json", "--socket", args.socket, "ps"], capture_output=True, text=True, check=True
    ).stdout
    return next(model for model in json.loads(out) if model["name"] == args.model)


async def run(args, kills):
    rng = random.Random(args.seed)
    streams = []
    for number in range(args.streams):
        prompt = [rng.randrange(10, args.vocab) for _ in range(rng.randint(16, args.prompt))]
        seeded = {"temperature": 0.8, "sampling_seed": number} if number % 2 else {"temperature": 0}
        streams.append(Stream(number, prompt, args.tokens, seeded))
    host, port = args.url.rsplit(":", 1)
    tasks = [asyncio.create_task(stream.run(host, int(port), args.model)) for stream in streams]
    gaps = []
    for kill in range(kills):
        await asyncio.sleep(rng.uniform(args.between / 2, args.between * 1.5))
        while True:
            status = await asyncio.to_thread(worker, args)
            if status["state"] == "ready" and status["pid"]:
                break
            await asyncio.sleep(0.05)
        live = [stream for stream in streams if not stream.ended and not stream.fault]
        if not live:
            print(f"all streams had ended before kill {kill + 1}: ask for more --tokens")
            break
        os.kill(status["pid"], signal.SIGKILL)
        killed = time.monotonic()
        deadline = killed + args.patience
        before = {stream.number: len(stream.times) for stream in live}
        await asyncio.sleep(0.3)  # what was on its way still comes
        before = {stream.number: len(stream.times) for stream in live}
        while time.monotonic() < deadline:
            waiting = [s for s in live if not s.fault and not s.ended and len(s.times) == before[s.number]]
            if not waiting:
                break
            await asyncio.sleep(0.01)
        again = [s.times[before[s.number]] - killed for s in live if len(s.times) > before[s.number]]
        first, last = (min(again), max(again)) if again else (float("nan"), float("nan"))
        gaps.append((first, last))
        print(f"kill {kill + 1}: {len(live)} streams, next token after {first:.2f} s, of the last after {last:.2f} s", flush=True)
    await asyncio.gather(*tasks)
    return streams, gaps


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", default="127.0.0.1:8000")
    parser.add_argument("--ctl", default="minisglctl")
    parser.add_argument("--socket", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--prompt", type=int, default=256, help="tokens of a prompt, at most")
    parser.add_argument("--vocab", type=int, default=1000, help="ids of prompts are below this")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--between", type=float, default=2.0, help="seconds between kills, about")
    parser.add_argument("--patience", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--exact", action="store_true", help="the ids have to be those of an undisturbed run")
    args = parser.parse_args()
    expected = None
    if args.exact:
        expected, _ = asyncio.run(run(args, 0))
    streams, gaps = asyncio.run(run(args, args.kills))
    faults = [(s.number, s.verdict()) for s in streams if s.verdict()]
    if expected:
        faults += [(s.number, "other ids") for s, e in zip(streams, expected) if not s.verdict() and s.ids != e.ids]
    for number, fault in faults[:10]:
        print(f"stream {number}: {fault}")
    tokens = sum(len(stream.ids) for stream in streams)
    print(f"{len(streams)} streams, {tokens} tokens, {len(gaps)} kills, {len(faults)} faults")
    sys.exit(1 if faults or len(gaps) < args.kills else 0)


if __name__ == "__main__":
    main()
