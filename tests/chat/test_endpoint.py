"""An endpoint is asked within bounds, and whatever it answers is read or ends in one error that shows no key."""

import json
import socket
import threading
import time
from contextlib import contextmanager, suppress

import pytest
from expected import raises
from stub_server import Stub, served

from ftengine.api import Prompt
from ftengine.chat import endpoint as endpoints
from ftengine.chat.endpoint import Endpoint, NoAnswer
from ftengine.chat.reply import Reply
from ftengine.errors import InputError

LIMITS = {"key": "STUB_KEY", "timeout": 5, "retries": 1}
ASKED = Prompt((), [{"role": "user", "content": "Hi."}])
SECRET = "sk-S3cret'\\key"


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(endpoints, "PAUSE", 0.0)


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("STUB_KEY", SECRET)
    return SECRET


@contextmanager
def raw_server(pieces):
    """Send bytes to whoever connects, a piece every 20 ms until there are none or nobody reads; give the address."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        over = threading.Event()

        def answer():
            while not over.is_set():
                with suppress(OSError), server.accept()[0] as one:
                    one.settimeout(5)
                    one.recv(1 << 16)
                    for piece in pieces():
                        one.sendall(piece)
                        if over.wait(0.02):
                            break

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            over.set()
            thread.join(5)


def repeated(*first, then):
    """Yield pieces, and then one without end."""

    def pieces():
        yield from first
        while True:
            yield then

    return pieces


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize("failing", ["drop", "503", "slow"])
def test_one_failure_is_tried_again(failing):
    with served(str.upper, [failing]) as (server, url):
        assert Endpoint(url, "", **{**LIMITS, "timeout": 0.5}).answer(ASKED, 4).text == "HI."
    assert len(server.seen) == 2


@pytest.mark.parametrize(("status", "told"), [("404", "/v1"), ("302", "302")])
def test_a_refusal_is_reported_and_no_redirect_followed(status, told):
    with served(str.upper, [status]) as (server, url), raises(InputError, told):
        Endpoint(url, "", **LIMITS).answer(ASKED, 4)
    assert len(server.seen) == 1


@pytest.mark.parametrize("status", ["401", "403"])
def test_a_key_that_is_refused_is_another_error_than_one_that_is_missing(status, monkeypatch):
    messages = []
    for secret in ("", SECRET):
        monkeypatch.setenv("STUB_KEY", secret)
        with served(str.upper, [status]) as (_, url), raises(InputError, status) as caught:
            Endpoint(url, "m", **LIMITS).answer(ASKED, 4)
        messages.append(str(caught.value).partition(status)[2])
    assert "--key-variable" in messages[0]
    assert "STUB_KEY" in messages[1]
    assert "--key-variable" not in messages[1]


def test_of_several_models_one_is_to_be_named():
    with served(str.upper, models=("a", "b")) as (_, url), raises(InputError, "a, b", "--model"):
        Endpoint(url, "", **LIMITS)
    with served(str.upper, models=()) as (_, url), raises(InputError, "no model", "--model", "its folder"):
        Endpoint(url, "", **LIMITS)


# keys


@pytest.mark.parametrize("secret", ["u:secret@", "", "?key=secret"])
def test_a_secret_is_not_shown(secret, monkeypatch):
    place = secret if secret.endswith("@") else ""
    monkeypatch.setenv("STUB_KEY", "" if secret else "secret\nX: y")
    with raises(InputError, "variable") as caught:
        Endpoint(f"http://{place}h/v1{'' if place else secret}", "m", **LIMITS)
    assert "secret" not in str(caught.value).replace("could be secret", "")


def http(status, body=b"", headers=b""):
    return b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n%s" % (status, headers, len(body), body)


def echoes(key):
    text, plain = json.dumps(key).encode(), key.encode()
    escaped = "".join(f"\\u{ord(c):04x}" for c in key).encode()
    return {
        "reason phrase": http(b"401 no " + plain),
        "status line": plain + b" 200 OK\r\n\r\n",
        "error": http(b"400 Bad", b'{"error": {"message": "Bearer %s is wrong"}}' % text[1:-1]),
        "escaped error": http(b"401 Bad", b'{"detail": "%s"}' % escaped),
        "answer": http(b"200 OK", b'{"choices": [%s]}' % text),
        "list": http(b"200 OK", b"[%s]" % text),
        "finish reason": http(b"200 OK", b'{"choices": [{"message": {"content": ""}, "finish_reason": [%s]}]}' % text),
        "behind many characters": http(b"401 Bad", b'{"message": "%s%s"}' % (b"x" * 195, text[1:-1])),
        "between controls": http(b"401 Bad", b'{"message": "%s"}' % b"\\u0007".join(text[1:-1].partition(b"S3"))),
    }


@pytest.mark.parametrize("place", echoes(SECRET))
def test_a_key_that_the_server_echoes_is_in_no_message(place, key):
    with raw_server(lambda: [echoes(key)[place]]) as url, raises(InputError) as caught:
        Endpoint(url, "m", **{**LIMITS, "retries": 0}).answer(ASKED, 4)
    message = str(caught.value)
    assert "S3" not in message.replace("\\", ""), message
    assert message.isprintable()


# time and size


@pytest.mark.parametrize(
    "pieces",
    [
        repeated(OK, b"X-A: ", then=b"a"),
        repeated(then=b"HTTP/1.1 100 Continue\r\n\r\n"),
        repeated(b"HTTP/1.1 200 ", then=b"O"),
        repeated(OK + b"Content-Length: 1000\r\n\r\n", then=b" "),
        repeated(OK + b"Transfer-Encoding: chunked\r\n\r\n", then=b"1\r\n \r\n"),
    ],
    ids=["header", "continue", "status line", "body", "chunks"],
)
def test_an_answer_that_never_ends_ends_with_the_timeout(pieces):
    with raw_server(pieces) as url:
        began = time.monotonic()
        with raises(InputError, "1 attempts", "0.2 s"):
            Endpoint(url, "m", **{**LIMITS, "timeout": 0.2, "retries": 0}).answer(ASKED, 4)
        assert time.monotonic() - began < 2


def test_all_requests_together_end_with_max_time():
    with raw_server(repeated(OK, then=b" ")) as url:
        endpoint = Endpoint(url, "m", **{**LIMITS, "retries": 10}, max_time=0.3)
        began = time.monotonic()
        with raises(InputError, "--max-time", "0.3 s"):
            endpoint.answer(ASKED, 4)
        assert time.monotonic() - began < 2


def test_an_answer_is_bounded_in_size():
    with (
        raw_server(repeated(OK + b"\r\n", then=b" " * (1 << 20))) as url,
        raises(InputError, "4 MiB"),
    ):
        Endpoint(url, "m", **LIMITS).answer(ASKED, 4)


@pytest.mark.parametrize("sent", [b"SSH-2.0-x\r\n", OK + b"Transfer-Encoding: chunked\r\n\r\nff\r\n{"])
def test_what_speaks_no_http_is_an_input_error(sent):
    with raw_server(lambda: [sent]) as url, raises(InputError, "2 attempts"):
        Endpoint(url, "m", **LIMITS).answer(ASKED, 4)


@pytest.mark.parametrize("url", ["localhost:8000", "file:///etc/passwd", "http://", "http://a:99999/v1", "http://a\0b"])
def test_what_is_no_address_is_refused(url):
    with raises(InputError):
        Endpoint(url, "m", **LIMITS).answer(ASKED, 4)


@pytest.mark.parametrize(
    ("header", "waited"),
    [(b"7", 7.0), (b"Thu, 01 Jan 2015 00:00:00 GMT", 0.0), (b"soon", 0.25), (b"-1", 0.25), (b"9" * 400, None)],
)
def test_a_busy_server_is_asked_again_when_it_says(header, waited, monkeypatch):
    """None: later than there is time for."""
    monkeypatch.setattr(endpoints, "PAUSE", 0.25)
    pauses, answers = [], [http(b"429 Busy", b"", b"Retry-After: %s\r\n" % header)]
    good = json.dumps({"choices": [{"message": {"content": "Hello."}}]}).encode()
    with raw_server(lambda: [answers.pop() if answers else http(b"200 OK", good)]) as url:
        endpoint = Endpoint(url, "m", **LIMITS)
        if waited is None:
            with raises(InputError, "--max-time"):
                endpoint.answer(ASKED, 4)
            return
        monkeypatch.setattr(endpoint._client, "pause", pauses.append)
        assert endpoint.answer(ASKED, 4).text == "Hello."
    assert pauses == [waited]


# what it refuses


def test_a_server_that_wants_another_name_of_the_limit_gets_it(monkeypatch):
    def answer(stub):
        if "max_tokens" in stub.body:
            return 400, {"error": {"message": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'."}}
        if "logprobs" in stub.body:
            return 400, {"error": {"message": "logprobs are not supported"}}
        return 200, {"choices": [{"message": {"content": "Hello."}, "finish_reason": "stop"}]}

    def post(stub):
        stub.body = json.loads(stub.rfile.read(int(stub.headers["Content-Length"])))
        stub.server.seen.append(stub.body)
        status, content = answer(stub)
        data = json.dumps(content).encode()
        stub.send_response(status)
        stub.send_header("Content-Length", str(len(data)))
        stub.end_headers()
        stub.wfile.write(data)

    monkeypatch.setattr(Stub, "do_POST", post)
    with served(str.upper) as (server, url):
        endpoint = Endpoint(url, "m", **LIMITS)
        assert [endpoint.answer(ASKED, 4) for _ in range(2)] == [Reply("Hello.", True)] * 2
    assert ["max_completion_tokens" in body for body in server.seen] == [False, True, True, True]
    assert ["logprobs" in body for body in server.seen] == [True, True, False, False]


def test_the_servers_reason_is_shown_on_one_bounded_line():
    body = json.dumps({"error": {"message": "context\n\x1b[31mof 8 tokens " + "x" * 5000}}).encode()
    with raw_server(lambda: [http(b"413 Too Large", body)]) as url, raises(InputError, "of 8 tokens") as caught:
        Endpoint(url, "m", **LIMITS).answer(ASKED, 4)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


# what it answers

ANSWER = {
    "choices": [
        {
            "message": {"role": "assistant", "content": "Hello."},
            "text": "Hello.",
            "finish_reason": "stop",
            "logprobs": {"content": [{"token": "Hello", "logprob": -0.5}, {"token": ".", "logprob": -0.25}]},
        }
    ],
    "usage": {"prompt_tokens": 7, "completion_tokens": 2},
}


def replaced(value, path, new):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


@pytest.mark.parametrize(
    ("place", "value", "fact"),
    [
        (("choices", 0, "finish_reason"), ["x"], "finish_reason is ['x']"),
        (("choices", 0, "message", "content"), "\ud800", "surrogate"),
        (("usage", "prompt_tokens"), 10**30, "10^30"),
        (("choices", 0, "logprobs", "content", 0, "logprob"), 3.0, "3.0"),
        (("choices",), [], "choices[0] is missing"),
        ((), {"error": {"message": "no such model"}}, "no such model"),
    ],
)
def test_a_malformed_answer_is_one_error_of_the_endpoint(place, value, fact):
    with served(None, answer=lambda body: replaced(ANSWER, place, value)) as (_, url), raises(InputError, url, fact):
        Endpoint(url, "m", **LIMITS).answer(ASKED, 4)


@pytest.mark.parametrize(
    "body", [b"", b"NaN", b"[" * 10**5, b'{"a": %s}' % (b"1" * 5000), b'{"choices": NaN}', b"\xff"]
)
def test_what_is_no_json_is_one_error_of_the_endpoint(body):
    with raw_server(lambda: [http(b"200 OK", body)]) as url, raises(InputError, url):
        Endpoint(url, "m", **LIMITS).answer(ASKED, 4)


@pytest.mark.parametrize(("status", "to_others"), [("500", True), ("400", True), ("401", False), ("404", False)])
def test_an_error_says_whether_another_request_may_be_answered(status, to_others):
    with served(str.upper, [status] * 2) as (_, url), raises(InputError, status) as caught:
        Endpoint(url, "m", **LIMITS).answer(ASKED, 4, scores=False)
    assert isinstance(caught.value, NoAnswer) == to_others


def test_log_probabilities_are_requested_where_they_are_wanted():
    with served(str.upper) as (server, url):
        for scores in (True, False):
            Endpoint(url, "m", **LIMITS).answer(ASKED, 4, scores=scores)
    assert ["logprobs" in body for _, _, body in server.seen] == [True, False]
