"""Planted pairs of answers, and servers that judge them as a test wants."""

import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from ftengine.api import SilentListener
from ftengine.chat import Endpoint
from ftengine_studio.answers import Pair
from ftengine_studio.judge_replies import RUBRIC
from ftengine_studio.judge_run import Bounds, Judge

FREE = Bounds(requests=None, cost=None, prices=None, max_tokens=64)


def pairs(count, base="short {}", tuned="a much longer answer {}"):
    return [
        Pair(i, "", f"prompt {i}?", None, {"base": base.format(i), "tuned": tuned.format(i)}, {}) for i in range(count)
    ]


def judge(run, url, planted, bounds=FREE, rubric=RUBRIC, **limits):
    endpoint = Endpoint(url, "judge", key="STUB_KEY", **{"timeout": 5, "retries": 1, "max_time": 60, **limits})
    return Judge(run, planted, endpoint, rubric, bounds, seed=0)


def judged(run, url, planted, bounds=FREE, **options):
    return judge(run, url, planted, bounds, **options).judge(SilentListener())


def shown(asked):
    """The two answers of a question, as they stand."""
    return [re.search(rf"<answer_{n}>\n(.*)\n</answer_{n}>", asked, re.DOTALL)[1] for n in (1, 2)]


def prefers(wanted):
    """A judge that says which of two texts it prefers, by its place."""

    def reply(asked):
        first, second = shown(asked)
        return f"Because.\n[[{wanted(first, second)}]]"

    return reply


LONGER = prefers(lambda first, second: 1 if len(first) > len(second) else 2)
FIRST = prefers(lambda first, second: 1)


@contextmanager
def answering(handle):
    """A server that answers as `handle` says, with the handler."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            handle(self, body)

        def log_message(self, *_):
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()


def send(handler, content, status=200, **headers):
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(data)), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(data)


def chat(text):
    return {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}
