"""Clients that send 32 MiB and go away: what the daemon holds meanwhile, and whether anybody else notices.

Needs a running daemon with a model that has a tokenizer and a chat template, its admin socket, and nothing but Python.

  leave_early.py --url 127.0.0.1:8000 --socket /tmp/minisgld.sock --model m
"""

import argparse
import http.client
import json
import multiprocessing
import os
import socket
import struct
import sys
import threading
import time

SO_PEERCRED = 17


class Unix(http.client.HTTPConnection):
    """HTTP over the admin socket."""

    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def daemon_pid(path):
    """Who listens on the socket, by the kernel's word."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        return struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, SO_PEERCRED, 12))[0]


def family(pid):
    """The process and its children other than workers, which hold weights."""
    pids = [pid]
    for other in filter(str.isdigit, os.listdir("/proc")):
        try:
            stat = open(f"/proc/{other}/stat").read().rsplit(") ", 1)[1].split()
            command = open(f"/proc/{other}/cmdline").read()
        except (OSError, IndexError):
            continue
        if int(stat[1]) == pid and "worker" not in command.split("\0")[:2][-1]:
            pids.append(int(other))
    return pids


def status(pid):
    fields = dict(line.split(":", 1) for line in open(f"/proc/{pid}/status") if ":" in line)
    return int(fields["VmRSS"].split()[0]) * 1024, int(fields["Threads"])


class Watch:
    """Asks the admin socket and looks at the processes, in a process of its own, until told to stop."""

    def __init__(self, path):
        self.path, self.pid = path, daemon_pid(path)
        self.daemon_peak, self.all_peak, self.slowest = (multiprocessing.Value("d", 0.0) for _ in range(3))
        self.threads, self.failures, self.over = (multiprocessing.Value("i", 0) for _ in range(3))
        self.process = multiprocessing.Process(target=self.run, daemon=True)

    def run(self):
        while not self.over.value:
            began = time.monotonic()
            try:
                ask = Unix(self.path, 30)
                ask.request("GET", "/admin/v1/version")
                ask.getresponse().read()
                ask.close()
            except OSError:
                self.failures.value += 1
            self.slowest.value = max(self.slowest.value, time.monotonic() - began)
            total = 0
            for pid in family(self.pid):
                try:
                    rss, threads = status(pid)
                except (OSError, KeyError):
                    continue
                total += rss
                if pid == self.pid:
                    self.daemon_peak.value = max(self.daemon_peak.value, rss)
                    self.threads.value = max(self.threads.value, threads)
            self.all_peak.value = max(self.all_peak.value, total)
            time.sleep(0.02)


class Reader(threading.Thread):
    """A stream that goes on all the time: its longest pause."""

    def __init__(self, host, port, model, tokens):
        super().__init__(daemon=True)
        self.host, self.port, self.model, self.tokens = host, port, model, tokens
        self.longest, self.count, self.fault, self.over = 0.0, 0, None, False

    def run(self):
        while not self.over and not self.fault:
            try:
                self.read()
            except (OSError, http.client.HTTPException) as error:
                self.fault = repr(error)

    def read(self):
        connection = http.client.HTTPConnection(self.host, self.port, timeout=120)
        body = {"model": self.model, "prompt": "Once upon a time", "stream": True, "max_tokens": self.tokens,
                "temperature": 0.8, "ignore_eos": True}
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise OSError(answer.read()[:300])
        last = None
        while not self.over:
            line = answer.readline()
            if not line or line.startswith(b"data: [DONE]"):
                break
            if line.startswith(b"data: "):
                now = time.monotonic()
                if last is not None:
                    self.longest = max(self.longest, now - last)
                last = now
                self.count += 1
        connection.close()


def flood(args, host, port, counts):
    """The clients, in a process of their own: those that measure must not wait for them. It gives way to the daemon."""
    os.nice(10)
    text = "a b " * ((args.mib << 20) // 4 - 100)
    bodies = [
        ("/tokenize", json.dumps({"model": args.model, "prompt": text}).encode()),
        ("/v1/chat/completions",
         json.dumps({"model": args.model, "max_tokens": 4, "messages": [{"role": "user", "content": text}]}).encode()),
    ]
    for number in range(args.rounds):
        path, body = bodies[number % 2]
        clients = [threading.Thread(target=leave, args=(host, port, path, body, counts)) for _ in range(args.clients)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()


def leave(host, port, path, body, counts):
    outcome = "refused"
    try:
        with socket.create_connection((host, port), timeout=120) as sock:
            head = f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
            sock.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode())
            sock.sendall(body)
            outcome = "sent"
    except OSError:
        pass
    counts.put(outcome)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", default="127.0.0.1:8000")
    parser.add_argument("--socket", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--mib", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--watch", type=float, default=10, help="seconds to look on after the last client has left")
    parser.add_argument("--stream-tokens", type=int, default=400)
    parser.add_argument("--rss-mb", type=float, default=400)
    parser.add_argument("--admin-ms", type=float, default=50)
    parser.add_argument("--pause-ms", type=float, default=100)
    args = parser.parse_args()
    host, port = args.url.rsplit(":", 1)
    port = int(port)
    readers = [Reader(host, port, args.model, args.stream_tokens) for _ in range(2)]
    watch = Watch(args.socket)
    watch.process.start()
    for reader in readers:
        reader.start()
    time.sleep(4)
    quiet = max(reader.longest for reader in readers)
    for reader in readers:
        reader.longest = 0.0
    watch.slowest.value = 0.0
    outcomes = multiprocessing.Queue()
    clients = multiprocessing.Process(target=flood, args=(args, host, port, outcomes))
    clients.start()
    counts = [outcomes.get() for _ in range(args.clients * args.rounds)]
    clients.join()
    time.sleep(args.watch)
    watch.over.value = 1
    for reader in readers:
        reader.over = True
    watch.process.join(40)
    pause = max(reader.longest for reader in readers)
    faults = [reader.fault for reader in readers if reader.fault]
    print(f"{len(counts)} bodies of {args.mib} MiB, {counts.count('sent')} sent whole")
    print(f"daemon {watch.daemon_peak.value / 1e6:.0f} MB at most, with its helpers {watch.all_peak.value / 1e6:.0f} MB; {watch.threads.value} threads")
    print(f"admin socket: slowest answer {watch.slowest.value * 1e3:.0f} ms, {watch.failures.value} failures")
    print(f"streams: longest pause {pause * 1e3:.0f} ms (before {quiet * 1e3:.0f}), {sum(r.count for r in readers)} chunks")
    wrong = [*faults]
    if watch.daemon_peak.value > args.rss_mb * 1e6:
        wrong.append(f"more than {args.rss_mb} MB")
    if watch.slowest.value * 1e3 > args.admin_ms or watch.failures.value:
        wrong.append(f"the admin socket took more than {args.admin_ms} ms")
    if pause * 1e3 > args.pause_ms:
        wrong.append(f"a stream paused for more than {args.pause_ms} ms")
    print("; ".join(map(str, wrong)) or "within its bounds")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
