"""An endpoint in this process, which answers as a test says."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Stub(BaseHTTPRequestHandler):
    """Answer as `server.reply` says."""

    def do_GET(self):
        self.send({"data": [{"id": name} for name in self.server.models]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, dict(self.headers), body))
        if not self.path.startswith("/v1/"):
            told = self.server.told.get(self.path)
            self.send({} if told is None else told(body))
            return
        failing = self.server.failing.pop(0) if self.server.failing else ""
        if failing == "drop":
            self.connection.close()
            return
        if failing == "slow":
            time.sleep(1)
        if failing.isdigit():
            self.send_response(int(failing))
            self.send_header("Location", "http://elsewhere.invalid/")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.server.answer is not None:
            self.send(self.server.answer(body))
            return
        asked = body["messages"][-1]["content"]
        message = {"role": "assistant", "content": self.server.reply(asked)}
        usage = {"usage": {"prompt_tokens": self.server.count(asked)}} if self.server.count else {}
        choice = {"message": message, "finish_reason": None}
        if self.server.logprobs:
            choice["logprobs"] = {"content": [{"logprob": x} for x in self.server.logprobs(asked)]}
        self.send({"choices": [choice], **usage})

    def send(self, content):
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        """Say nothing."""


@contextmanager
def served(reply, failing=(), models=("support",), count=None, told=None, logprobs=None, answer=None):
    """Serve a stub.

    Args:
        reply: what it makes of a message.
        failing: how its first answers fail.
        count: how many tokens it says that a message's prompt has.
        told: what it answers beside OpenAI's API, by path.
        logprobs: what it says of the tokens of its answer to a message.
        answer: all that it answers to a request's body, in place of these.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    server.reply, server.failing, server.models, server.seen = reply, list(failing), models, []
    server.count, server.told, server.logprobs, server.answer = count, told or {}, logprobs, answer
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
