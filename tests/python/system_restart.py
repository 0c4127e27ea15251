"""Connects to the service again and again until a line comes on standard input; then says what became of it.

Any answer will do, 503 too: what must not be is a connection that is refused, or closed without an answer.
"""

import http.client
import json
import sys
import threading

THREADS = 4
TIMEOUT_S = 60

stop = threading.Event()
lock = threading.Lock()
statuses, lost = {}, []


def knock():
    while not stop.is_set():
        connection = http.client.HTTPConnection("127.0.0.1", 8000, timeout=TIMEOUT_S)
        try:
            connection.request("GET", "/v1/models", headers={"Connection": "close"})
            status = connection.getresponse().status
            with lock:
                statuses[status] = statuses.get(status, 0) + 1
        except (OSError, http.client.HTTPException) as error:
            with lock:
                lost.append(repr(error))
        finally:
            connection.close()


threads = [threading.Thread(target=knock) for _ in range(THREADS)]
for thread in threads:
    thread.start()
print("knocking", flush=True)
sys.stdin.readline()
stop.set()
for thread in threads:
    thread.join()
print(json.dumps({"statuses": statuses, "lost": lost[:10], "lost_count": len(lost)}))
