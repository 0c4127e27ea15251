#!/usr/bin/env python3
"""What a schema costs, at any server of OpenAI's API: so many chat requests at once, by turns free and held to a schema.

  schema_speed.py --url http://127.0.0.1:8000 --model NAME [--running 1,32,256] [--tokens 512] [--rounds 2] [--schema FILE]

Answers are not streamed, have `--tokens` tokens each (`ignore_eos`; the schema must not end before) and temperature 1. A round sends
`running` requests at once and waits for all; tokens/s are those of `usage` over its time, the best round counts. Standard library alone.
"""
import argparse, http.client, json, os, random, threading, time, urllib.parse

HERE = os.path.dirname(os.path.abspath(__file__))


def ask(args, seed, held, out):
    words = random.Random(seed)
    text = " ".join(words.choice(["red", "green", "blue", "seven", "stone", "river", "cloud", "paper"]) for _ in range(args.words))
    body = {
        "model": args.model,
        "messages": [{"role": "user", "content": f"{seed} {text}"}],
        "max_tokens": args.tokens,
        "temperature": 1.0,
        "ignore_eos": True,
    }
    if held:
        schema = {"name": "records", "schema": args.form, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    url = urllib.parse.urlsplit(args.url)
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=300)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = json.loads(response.read())
    if response.status != 200:
        out.append((0, f"{response.status}: {json.dumps(answer)[:300]}"))
        return
    out.append((answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]))


def turn(args, running, held, seed):
    out = []
    threads = [threading.Thread(target=ask, args=(args, seed + at, held, out)) for at in range(running)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - began
    wrong = [reason for tokens, reason in out if tokens != args.tokens]
    if wrong or len(out) != running:
        raise SystemExit(f"{len(wrong)} of {running} answers have not {args.tokens} tokens, one is {wrong[:1]}")
    return running * args.tokens / seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", required=True)
    parser.add_argument("--running", default="1,32,256")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--words", type=int, default=100, help="words of each prompt")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--schema", default=os.path.join(HERE, "../fixtures/records_schema.json"))
    args = parser.parse_args()
    with open(args.schema) as file:
        args.form = json.load(file)
    seed = 1
    for running in map(int, args.running.split(",")):
        best = {False: 0.0, True: 0.0}
        for at in range(args.rounds + 1):
            for held in (False, True):
                rate = turn(args, running, held, seed)
                seed += running
                if at:  # The first round warms up.
                    best[held] = max(best[held], rate)
        free, form = best[False], best[True]
        print(f"{running:4} running: free {free:8.0f} tok/s, by the schema {form:8.0f} tok/s, {form / free:.3f}", flush=True)


if __name__ == "__main__":
    main()
